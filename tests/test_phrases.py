"""Phrases that must not appear: found however tokens split them, and never shown."""

import itertools
import re
import time

import numpy as np
import pytest
import regex
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sampler import Sampler
from sampler.phrases import Phrases

# The last two are the bytes of one letter, alone no text.
PIECES = [b"a", b"b", b"ab", b"ba", b"c", b" ", b"bc a", b"\xc3", b"\xa9", b".", b""]
S = Sampler(seed=7)


class Bytes:
    """Tokens that are bytes; a decoder as those of byte-level tokenizers."""

    def __init__(self, pieces=PIECES):
        self.pieces, self.calls, self.decoded = pieces, 0, 0

    def decode(self, ids):
        self.calls += 1
        self.decoded += len(ids)
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


class Spaced(Bytes):
    """A decoder that drops the space before the first word, as those of SentencePiece do."""

    def decode(self, ids):
        return super().decode(ids).removeprefix(" ")


def logits_after(tokens):
    """A model: the logits depend on the last two tokens."""
    return np.random.default_rng(abs(hash(tuple(tokens[-2:])))).normal(0, 1.5, len(PIECES))


def write(phrases, n, prompt=(), s=S):
    """The loop that one would write: the text, and what was shown after each token."""
    text, shown = phrases.start(prompt), []
    while not text.is_over:
        if len(text) == n and not text.end():
            break
        if text.is_over:
            break
        r = s.sample(
            logits_after([*prompt, *text.tokens]), mask=text.mask(len(PIECES)),
            steps=len(text), draws=text.draw,
        )  # fmt: skip
        back = text.accept(r.tokens)
        assert 0 <= back <= len(text) + back
        shown.append((text.shown, text.n_shown))
    return text, shown


def naive(tokenizer, patterns, n, prompt=(), most_tries=5, s=S):
    """The same with a whole search of the whole text at every step."""
    begun, tokens, forbidden = len(tokenizer.decode(prompt)) if prompt else 0, [], {}

    def text_of(tokens):
        text = tokenizer.decode([*prompt, *tokens])
        # A letter that is not whole yet is no text, unless so much of it is there that it is none.
        tail = [PIECES[i] for i in tokens[-4:]]
        waits = text.endswith("\ufffd") and not (
            len(tail) == 4 and all(tokenizer.decode([*prompt, *tokens[: len(tokens) - i]])
                                   .endswith("\ufffd") for i in range(4))
        )  # fmt: skip
        return text, waits

    def first_match(tokens, over):
        text, _ = text_of(tokens)
        text = text.rstrip("\ufffd")
        starts = []
        for pattern in patterns:
            for match in regex.compile(pattern).finditer(text, overlapped=True):
                if match.end() <= begun or match.start() == match.end():
                    continue
                stands = all(
                    regex.compile(pattern).match(text + one, match.start()) for one in "x ."
                )
                if over or match.end() < len(text) or stands:
                    starts.append(match.start())
                    break
        return min(starts, default=None)

    while True:
        over = len(tokens) == n
        if not over:
            place = len(tokens)
            row = logits_after([*prompt, *tokens])
            row[forbidden.get(place, [])] = -np.inf
            draw = len(forbidden.get(place, []))
            tokens.append(s.sample(row, steps=place, draws=draw).tokens)
        start = first_match(tokens, over)
        if start is None:
            if over:
                return tokens
            continue
        place = 0
        while (
            place + 1 < len(tokens)
            and len(text_of(tokens[: place + 1])[0].rstrip("\ufffd")) <= start
        ):
            place += 1
        while place > 0 and text_of(tokens[:place])[0].endswith("\ufffd"):
            place -= 1
        forbidden = {i: ids for i, ids in forbidden.items() if i <= place}
        forbidden.setdefault(place, []).append(tokens[place])
        tokens = tokens[:place]
        if len(forbidden[place]) >= most_tries:
            return tokens  # or fewer


STRINGS = st.lists(st.text("abc \u00e9.", min_size=1, max_size=5), min_size=1, max_size=3)
# The byte that is nothing without the one before it, and the empty one, are not for the oracle.
WHOLE = S.replace(suppress_tokens=[8, 10])


@settings(max_examples=300)
@given(banned=STRINGS, n=st.integers(1, 30), seed=st.integers(0, 99))
def test_strings_against_a_naive_search(banned, n, seed):
    tokenizer, s = Bytes(), Sampler(seed=seed, suppress_tokens=[7, 8, 10])
    text, shown = write(Phrases(banned, tokenizer=tokenizer, most_tries=5), n, s=s)
    whole = tokenizer.decode(text.tokens)
    assert not any(one in whole for one in banned)
    assert text.shown == whole
    # What is shown stays.
    for (before, n_before), (after, n_after) in itertools.pairwise(shown):
        assert after.startswith(before)
        assert n_after >= n_before
    assert all(whole.startswith(one) for one, _ in shown)
    assert all(tokenizer.decode(text.tokens[:k]) == one[: len(tokenizer.decode(text.tokens[:k]))]
               for one, k in shown)  # fmt: skip
    if not text.gave_up:
        pattern = "|".join(regex.escape(one) for one in sorted(set(banned)))
        assert text.tokens == naive(tokenizer, [pattern], n, s=s)


@settings(max_examples=100)
@given(
    patterns=st.lists(
        st.sampled_from([
            r"\bab\b", "a+b", "(?i:BC)", "b(?=a)", "(?<=a)b", r"c\s", "a.{0,3}c", r"^b", "ab$",
            "(a)b\\1",
        ]),
        min_size=1, max_size=2, unique=True,
    ),
    n=st.integers(1, 25), seed=st.integers(0, 99), prompt=st.lists(st.integers(0, 6), max_size=4),
)  # fmt: skip
def test_patterns_against_a_naive_search(patterns, n, seed, prompt):
    tokenizer, s = Bytes(), Sampler(seed=seed, suppress_tokens=[7, 8, 10])
    made = Phrases([re.compile(one) for one in patterns], tokenizer=tokenizer, most_tries=5)
    text, shown = write(made, n, prompt=prompt, s=s)
    if not text.gave_up:
        assert text.tokens == naive(tokenizer, patterns, n, prompt=prompt, s=s)
    for (before, _), (after, _) in itertools.pairwise(shown):
        assert after.startswith(before)


def test_without_a_match_nothing_changes():
    plain, _ = write(Phrases([], tokenizer=Bytes()), 40)
    other, _ = write(Phrases(["zz", re.compile("a{9}")], tokenizer=Bytes()), 40)
    assert plain.tokens == other.tokens
    assert not other.gave_up
    first, _ = write(Phrases(["ab"], tokenizer=Bytes()), 40)
    again, _ = write(Phrases(["ab"], tokenizer=Bytes()), 40)
    assert first.tokens == again.tokens != plain.tokens


def tokens(text, ids):
    """Give a text these tokens; the last answer."""
    return [text.accept(token) for token in ids][-1]


def test_where_it_goes_back_to():
    text = Phrases(["abc"], tokenizer=Bytes()).start()
    assert [text.accept(i) for i in (4, 2)] == [0, 0]  # c, ab
    assert (text.shown, text.n_shown, text.draw, text.forbidden) == ("c", 1, 0, ())
    assert text.mask(11) is None
    assert text.accept(4) == 2  # to before "ab"
    assert (text.tokens, text.shown, text.draw, text.forbidden) == ([4], "c", 1, (2,))
    assert np.unpackbits(text.mask(11).view(np.uint8), bitorder="little")[:4].tolist() == [
        1, 1, 0, 1
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"^`token` 2 may not come next: give the draw the text's"):
        text.accept(2)
    assert tokens(text, (0, 1)) == 0  # a, b: the same letters otherwise
    assert text.draw == 0
    assert text.accept(4) == 3
    assert text.forbidden == (2, 0)
    assert tokens(text, (1, 9)) == 0
    assert text.shown == "cb."
    # What was forbidden at a later place is forgotten with what led there.
    assert tokens(text, (2, 4)) == 2
    assert text.forbidden == (2,)
    assert len(text) == 3


def test_letters_of_several_tokens():
    text = Phrases(["\u00e9b"], tokenizer=Bytes()).start()
    assert [text.accept(i) for i in (0, 7)] == [0, 0]
    assert (text.shown, text.n_shown) == ("a", 1)
    assert text.accept(8) == 0
    assert (text.shown, text.n_shown) == ("a", 1)
    assert text.accept(1) == 3  # the first byte of the letter
    assert text.forbidden == (7,)
    assert text.accept(4) == 0
    assert text.shown == "ac"
    # Bytes that never become a letter are shown at last.
    text = Phrases(["x"], tokenizer=Bytes()).start()
    for _ in range(9):
        text.accept(7)
    assert text.n_shown == 0
    text.end()
    assert (text.n_shown, text.shown) == (9, "\ufffd" * 9)


def test_tokens_without_text():
    text = Phrases(["ab"], tokenizer=Bytes()).start()
    assert tokens(text, (10, 0, 10)) == 0
    assert text.accept(1) == 3  # to the "a", not to what came before it
    assert text.forbidden == (0,)
    assert text.tokens == [10]


def test_a_decoder_that_drops_the_first_space():
    text = Phrases([" a"], tokenizer=Spaced()).start()
    assert tokens(text, (5, 0, 4, 5)) == 0  # the first space is no text
    assert text.shown == "ac"
    assert text.accept(0) == 2
    assert text.forbidden == (5,)


def test_the_prompt():
    tokenizer = Bytes()
    # What it has does not count, what begins in it does.
    text = Phrases(["ab", "bc"], tokenizer=tokenizer).start([2, 2])
    assert text.shown == ""
    assert text.accept(4) == 1
    assert text.forbidden == (4,)
    assert text.accept(9) == 0
    assert text.shown == "."
    text = Phrases([re.compile(r"\bab\b")], tokenizer=tokenizer).start([2])
    assert text.accept(5) == 0  # whole in the prompt
    text = Phrases([re.compile("(?<=a)b")], tokenizer=tokenizer).start([0])
    assert text.accept(1) == 1
    long = Phrases(["ab"], tokenizer=tokenizer).start([4] * 5000)
    tokenizer.decoded = 0
    for _ in range(100):
        long.accept(4)
    assert tokenizer.decoded < 100 * 40  # not the prompt each time


def test_a_pattern_that_waits_for_what_follows():
    word = re.compile(r"\bab\b")
    text = Phrases([word], tokenizer=Bytes()).start()
    assert tokens(text, (5, 2)) == 0
    assert text.shown == " "  # "ab" may be one
    assert text.accept(0) == 0
    assert text.shown == " aba"
    assert tokens(text, (5, 0, 1)) == 0
    assert text.accept(5) == 3
    text = Phrases([word], tokenizer=Bytes()).start()
    text.accept(2)
    assert text.end() == 1  # it is one where nothing follows
    assert not text.is_over
    text.accept(4)
    assert text.end() == 0
    assert text.is_over
    with pytest.raises(RuntimeError, match=r"^the text is over"):
        text.accept(0)


def test_stop_strings():
    for stop, ids, shown, n_shown in (
        (["b c", "c a"], (0, 6), "ab", 1), ([". "], (2, 9, 0, 9, 5), "ab.a", 3),
        (["b"], (0, 4, 2), "aca", 2), ([re.compile(r"c+\b")], (0, 4, 4, 9), "a", 1),
    ):  # fmt: skip
        text = Phrases(stop=stop, tokenizer=Bytes()).start()
        for token in ids:
            assert not text.is_over
            assert text.accept(token) == 0
        assert text.is_over
        assert not text.gave_up
        assert text.shown == shown
        assert text.n_shown == n_shown
        assert text.end() == 0
        assert text.shown == shown
    text = Phrases(["ab"], stop=["bc"], tokenizer=Bytes()).start()
    assert tokens(text, (0, 1)) == 2
    assert tokens(text, (1, 4)) == 0
    assert text.is_over


def test_it_gives_up():
    phrases = Phrases(["a", "b", "c"], tokenizer=Bytes(), most_tries=3)
    text = phrases.start()
    for token in (0, 1):
        assert text.accept(token) == 1
        assert not text.is_over
    assert text.accept(2) == 1
    assert text.is_over
    assert text.gave_up
    assert text.shown == ""
    text = phrases.start()
    text.accept(9)
    text.give_up()
    assert (text.shown, text.n_shown, text.gave_up, text.is_over) == (".", 1, True, True)


@pytest.mark.parametrize("pattern", ["ab$", r"\bab\b"])
def test_what_is_left_is_no_phrase(pattern):
    # Found: a text that gave up, or that a stop string cut off, ended with one.
    text = Phrases([re.compile("ab$"), ".", " "], tokenizer=Bytes(), most_tries=2).start()
    assert tokens(text, (4, 0, 1)) == 0
    assert text.accept(9) == 1
    assert text.accept(5) == 3  # "ab" goes as well
    assert (text.gave_up, text.shown, text.tokens) == (True, "c", [4])
    text = Phrases([re.compile(pattern)], stop=["c"], tokenizer=Bytes()).start()
    assert tokens(text, (0, 1)) == 0
    assert text.accept(4) == 3
    assert text.forbidden == (0,)
    assert not text.is_over


def test_one_phrase_within_another():
    # Found: a shorter one in the prompt hid a longer one; a digit that was not waited for.
    for banned, prompt, token in ((["ab", "abc"], [2], 4), ([re.compile("ab(c a)?")], [0, 1], 4)):
        text = Phrases(banned, tokenizer=Bytes()).start(prompt)
        assert text.accept(token) == (banned == ["ab", "abc"])
    text = Phrases([re.compile(r"1(?!\d)")], tokenizer=Bytes([b"1", b"2", b"a"])).start()
    assert tokens(text, (0, 1)) == 0
    assert tokens(text, (0,)) == 0
    assert text.accept(2) == 2


def test_characters_that_are_not_whole_at_the_end():
    # Found: all that their tokens wrote was lost, and not looked at.
    pieces = [b"b", b"ad\xc3", b" \xf0\x9f", b"\xc3", b"\xa9", b"a", b"\xe4"]
    text = Phrases(["bad"], tokenizer=Bytes(pieces)).start()
    assert tokens(text, (0, 1)) == 0
    assert text.end() == 2
    text = Phrases(["b "], tokenizer=Bytes(pieces)).start()
    assert tokens(text, (0, 2)) == 0
    assert text.end() == 2
    text = Phrases([], tokenizer=Bytes(pieces)).start()
    assert tokens(text, (0, 2)) == 0
    assert text.shown == "b"
    assert text.end() == 0
    assert text.shown == "b \ufffd"
    # Bytes astray before a letter, and a prompt that ends within one.
    text = Phrases(["\u00e9"], tokenizer=Bytes(pieces)).start()
    assert tokens(text, (6, 6, 6, 3)) == 0
    assert text.accept(4) >= 2
    text = Phrases(["\u00e9a"], tokenizer=Bytes(pieces)).start([0, 3])
    assert text.accept(4) == 0
    assert text.accept(5) == 2
    text = Phrases([], tokenizer=Bytes(pieces)).start([3])
    assert tokens(text, (4, 5)) == 0
    assert text.shown == "\u00e9a"


@settings(max_examples=300)
@given(
    ids=st.lists(st.integers(0, 10), max_size=25), prompt=st.lists(st.integers(0, 10), max_size=9)
)
def test_the_text_is_what_the_decoder_says(ids, prompt):
    tokenizer = Bytes()
    assume("\ufffd" not in tokenizer.decode(prompt[:-1]))  # it may end within a letter
    text = Phrases(["zzz"], tokenizer=tokenizer).start(prompt)
    whole = tokenizer.decode([*prompt, *ids])
    for token in ids:
        text.accept(token)
        assert (text._text[: text._begun] + text.shown).rstrip("\ufffd") in whole
    text.end()
    assert text._text[: text._begun] + text.shown == whole


def test_braces_mean_what_they_mean_to_re():
    # Found: `regex` reads them as fuzzy matches.
    for pattern, matches, other in (
        ("ab{s}", "ab{s}", "abc"), (r"ab\{i}", "ab{i}", "ab"), ("a{2}b", "aab", "ab"),
        ("a{,2}b{1,}", "aab", "c"), ("user{id}", "user{id}", "user"), ("[{]a{e}", "{a{e}", "ba"),
    ):  # fmt: skip
        assert re.search(pattern, matches)
        pieces = [matches.encode(), other.encode()]
        text = Phrases([re.compile(pattern)], tokenizer=Bytes(pieces)).start()
        assert text.accept(1) == (re.search(pattern, other) is not None), pattern
        assert text.accept(0) >= 1, pattern
    with pytest.warns(FutureWarning):
        nested = re.compile("[[:alpha:]]")
    with pytest.raises(ValueError, match=r"which regex refuses: a class inside of a class"):
        Phrases([nested], tokenizer=Bytes())
    # One of `regex` is as it is.
    text = Phrases([regex.compile("[a-b--a]", regex.V1)], tokenizer=Bytes()).start()
    assert (text.accept(0), text.accept(1)) == (0, 1)


def test_a_decoder_that_cleans_up():
    class Cleans(Bytes):
        clean_up_tokenization_spaces = True

        def decode(self, ids, clean_up_tokenization_spaces=True):
            text = super().decode(ids)
            return text.replace(" .", ".") if clean_up_tokenization_spaces else text

    text = Phrases(["a ."], tokenizer=Cleans()).start()
    assert tokens(text, (0, 5)) == 0
    assert text.accept(9) == 3


def test_a_search_that_takes_too_long_leaves_the_text_as_it_was():
    # Found: cut at the stop string, where the search before it took too long.
    class Slow:
        pattern = "slow"

        def finditer(self, text, start, end, **options):
            if end is not None:
                raise TimeoutError
            return iter(())

        def search(self, *args, **options):
            return None

    phrases = Phrases(stop=["bc"], tokenizer=Bytes())
    phrases._banned = [Slow()]
    text = phrases.start()
    assert tokens(text, (9, 0, 1)) == 0
    with pytest.raises(TimeoutError, match="slow"):
        text.accept(4)
    assert (text.tokens, text._text) == ([9, 0, 1], ".ab")
    phrases._banned = []
    assert text.accept(4) == 0
    assert (text.is_over, text.shown) == (True, ".a")


def test_a_decoder_that_fails():
    text = Phrases(["zz"], tokenizer=Bytes()).start()
    text.accept(0)
    with pytest.raises(IndexError):
        text.accept(99)
    assert text.tokens == [0]
    assert text.accept(1) == 0
    assert text.shown == "ab"


def test_time_in_proportion_to_the_text():
    # And not to its square.
    tokenizer = Bytes()
    phrases = Phrases(
        [f"a{i}b" for i in range(300)] + ["ab" * 20, re.compile("c{1,9}d")], tokenizer=tokenizer
    )
    took = []
    for n in (500, 4000):
        text, begun = phrases.start(), time.process_time()
        for i in range(n):
            text.accept((2, 4, 5)[i % 3])
        took.append(time.process_time() - begun)
    assert took[1] < 8 * 4 * took[0] + 0.5


def test_a_pattern_that_goes_back_and_forth_is_stopped():
    phrases = Phrases([re.compile("(a|a|aa)+z")], tokenizer=Bytes(), timeout=0.05)
    text = phrases.start()
    with pytest.raises(TimeoutError, match=r"took more than 0.05 s: it goes back and forth"):
        tokens(text, [0] * 60)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Phrases("ab", tokenizer=Bytes()), TypeError,
         "`banned` has to be an iterable of strings and patterns, but is a str"),
        (lambda: Phrases([1], tokenizer=Bytes()), TypeError,
         "`banned` has to hold strings and patterns of strings, but holds an int"),
        (lambda: Phrases([re.compile(b"a")], tokenizer=Bytes()), TypeError, "`banned` has to hold"),
        (lambda: Phrases([""], tokenizer=Bytes()), ValueError,
         "`banned` has to hold no empty string, but one is"),
        (lambda: Phrases(stop=["a", ""], tokenizer=Bytes()), ValueError, "`stop` has to hold"),
        (lambda: Phrases([re.compile("a*")], tokenizer=Bytes()), ValueError,
         "`banned` has 'a*', which matches the empty string"),
        (lambda: Phrases([re.compile(".|\n")], tokenizer=Bytes()), ValueError,
         "`banned` has '.|\\n', which matches any character"),
        (lambda: Phrases([re.compile(r"[\s\S]{1,3}")], tokenizer=Bytes()), ValueError, None),
        (lambda: Phrases(["a"], tokenizer=None), TypeError, "`tokenizer` has to have a `decode`"),
        (lambda: Phrases(["a"], tokenizer=Bytes(), most_tries=0), ValueError, "`most_tries` has"),
        (lambda: Phrases(["a"], tokenizer=Bytes(), timeout=0), ValueError, "`timeout` has"),
        (lambda: Phrases([re.compile(".")], tokenizer=Bytes()), ValueError, "`banned` has '.'"),
        (lambda: Phrases(["a"], tokenizer=Bytes()).start("ab"), TypeError, "`prompt` has to be a"),
        (lambda: Phrases(["a"], tokenizer=Bytes()).start([[1]]), TypeError, "`prompt` has to be a"),
        (lambda: Phrases(["a"], tokenizer=Bytes()).start().mask(0), ValueError, "`vocab` has"),
        (lambda: Phrases(["a"], tokenizer=Bytes()).start().accept(-1), ValueError, "`token` has"),
        (lambda: Phrases(["a"], tokenizer=Bytes()).start().accept("a"), TypeError, "`token` has"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=None if message is None else f"^{re.escape(message)}"):
        call()


def test_without_regex(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(ImportError, match=r"^sampler.phrases needs regex .*: pip install regex$"):
        Phrases(["a"], tokenizer=Bytes())


def test_flags_of_a_pattern():
    made = Phrases([re.compile("A B", re.IGNORECASE | re.VERBOSE)], tokenizer=Bytes())
    text = made.start()
    assert text.accept(2) == 1
    text = Phrases([regex.compile("AB", regex.IGNORECASE)], tokenizer=Bytes()).start()
    assert text.accept(2) == 1
    text = Phrases([re.compile("AB")], tokenizer=Bytes()).start()
    assert text.accept(2) == 0
