"""Phrases that must not appear in a text, and strings that end it, however tokens split them.

`Phrases` holds the strings and patterns, and starts a `Text` for each text. Where a phrase has
appeared, the text goes back to the token that began it, which is forbidden there, and the next draw
index is taken: so a retry is another draw, the same in every run. Needs the package `regex`, which
transformers brings.
"""

from __future__ import annotations

import operator
import re
import string
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler._checks import check_integer, check_real
from sampler._inputs import kind_of

__all__ = ["Phrases", "Text"]

_INCOMPLETE = "\ufffd"  # what a decoder makes of a part of a character
_MOST_BYTES = 4  # of a character in UTF-8
# What `re` reads as it stands, and `regex` as a fuzzy match: a brace that is no count.
_BRACE = re.compile(r"(\\.)|\{(?!\d*,?\d*\})", re.DOTALL)
_CONTEXT = 8  # tokens of the prompt that the first pieces are decoded after
_NEXT = string.printable  # what may follow a match
_ANY = ("a", "Z", "0", " ", ".", "\u00e9", "\u4e2d")


class Phrases:
    r"""What must not appear in a text, and what ends it.

    Parameters
    ----------
    banned : iterable of str or re.Pattern
        Strings, and regular expressions as ``re.compile`` makes them, of which no text has a match.
    stop : iterable of str or re.Pattern, optional
        What ends a text: it is over as soon as it has one, and shows what comes before.
    tokenizer : object with ``decode(ids)``
        The model's. Special tokens are text, too. What a token writes has to stay, whatever
        follows; only a part of a character may wait for the rest.
    most_tries : int, >= 1
        After so many tokens that began a phrase at one place, the text ends there, or before,
        where what is left would end with a phrase.
    timeout : float, > 0
        Seconds that one search may take: an expression that goes back and forth is stopped.

    Attributes
    ----------
    stop, tokenizer
        As given.
    most_tries : int
    timeout : float

    Raises
    ------
    TypeError
        If these are not strings and patterns, or the tokenizer cannot decode.
    ValueError
        If a string is empty, a pattern is no regular expression, matches the empty string, or
        matches any character, or a number is out of its range.
    ImportError
        If `regex` is not installed.

    See Also
    --------
    sampler.hf.generate : takes ``banned_phrases=``.

    Notes
    -----
    A match counts as soon as no next ASCII character undoes it: ``\bcat\b`` waits, after "cat", for
    what follows. A lookahead further than one character is not waited for. What the prompt has
    already does not count, but a phrase that begins in the prompt and ends after it does.

    Each token costs a search of what may still become a match, so a text takes time in proportion
    to its length. But a pattern without a bound, such as ``a.*b``, may always become one: it holds
    back all that follows an "a".

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.phrases import Phrases
    >>> class Letters:
    ...     def decode(self, ids):
    ...         return "".join("abcd"[i] for i in ids)
    >>> s, logits = Sampler(seed=7), [0.0, 0.0, 0.0, 0.0]  # of the model, after the text
    >>> for banned in ([], ["aa", "bca"]):
    ...     text = Phrases(banned, tokenizer=Letters()).start()
    ...     while len(text) < 20 and not text.is_over:
    ...         r = s.sample(logits, mask=text.mask(4), steps=len(text), draws=text.draw)
    ...         back = text.accept(r.tokens)  # crop a cache by so many, roll a history back
    ...     text.shown
    'daababcbdbdcadcabbaa'
    'dcababcbdbdcadcabbd'
    """

    def __init__(
        self,
        banned: Iterable[str | re.Pattern[str]] = (),
        *,
        stop: Iterable[str | re.Pattern[str]] = (),
        tokenizer: Any,
        most_tries: int = 32,
        timeout: float = 1.0,
    ) -> None:
        banned, self.stop = _listed("banned", banned), _listed("stop", stop)
        self._banned, self._stop = _compiled("banned", banned), _compiled("stop", self.stop)
        if not callable(getattr(tokenizer, "decode", None)):
            raise TypeError(f"`tokenizer` has to have a `decode`, but is {kind_of(tokenizer)}")
        self.tokenizer = tokenizer
        # Else " ." may become ".", and text that was there already is another.
        cleans = hasattr(tokenizer, "clean_up_tokenization_spaces")
        self._as_it_stands = {"clean_up_tokenization_spaces": False} if cleans else {}
        self.most_tries = check_integer("most_tries", most_tries, 1, None, "an integer >= 1")
        self.timeout = check_real("timeout", timeout, 1e-9, 1e9, "a float > 0, in seconds")

    def start(self, prompt: Sequence[int] = ()) -> Text:
        """Begin a text.

        Parameters
        ----------
        prompt : sequence of int
            Its tokens so far, after which it goes on.

        See Also
        --------
        Text.accept : takes each token.
        """
        try:
            ids = [operator.index(token) for token in prompt]
        except TypeError:
            raise TypeError(
                f"`prompt` has to be a sequence of ids, one row of them, but is {kind_of(prompt)}"
            ) from None
        return Text(self, ids)

    def _decode(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, **self._as_it_stands)
        return text


class Text:
    """One text, token by token: made by `Phrases.start`.

    Attributes
    ----------
    is_over : bool
        Whether it has a stop string, or there is no way on without a phrase.
    gave_up : bool
        Whether the latter.

    See Also
    --------
    Phrases : starts one.
    """

    def __init__(self, phrases: Phrases, prompt: list[int]) -> None:
        self._phrases = phrases
        self._ids = prompt[-_CONTEXT:]
        self._n_context = len(self._ids)
        self._window, self._read = 0, len(self._ids)  # see `_decode_next`
        self._text = phrases._decode(prompt) if prompt else ""
        for n in range(1, min(_MOST_BYTES, len(prompt) + 1)):  # perhaps a part of a character
            if not self._text.endswith(_INCOMPLETE):
                break
            whole = phrases._decode(prompt[:-n])
            if not whole.endswith(_INCOMPLETE):
                self._text, self._read = whole, len(self._ids) - n
        self._begun = len(self._text)  # characters
        # Before each token of the output: the characters, the window, what was read of it, and from
        # where on there might be a match.
        self._before: list[tuple[int, int, int, int]] = []
        self._forbidden: dict[int, list[int]] = {}  # by place
        self.is_over = self.gave_up = False
        self._end: int | None = None  # where a stop string begins
        starts = [self._earliest(pattern, 0)[1] for pattern in (*phrases._banned, *phrases._stop)]
        self._safe = min(starts, default=self._begun)  # from here on there may be a match yet

    def __len__(self) -> int:
        return len(self._before)

    @property
    def tokens(self) -> list[int]:
        """The tokens of the output."""
        return self._ids[self._n_context :]

    @property
    def draw(self) -> int:
        """The draw index of the next token: how many were taken back at its place."""
        return len(self.forbidden)

    @property
    def forbidden(self) -> tuple[int, ...]:
        """The ids that may not come next, since they began a phrase."""
        return tuple(self._forbidden.get(len(self), ()))

    @property
    def shown(self) -> str:
        """The output so far, as far as nothing of it will be taken back."""
        end = self._end
        if end is None:
            shown = self.n_shown
            end = self._before[shown][0] if shown < len(self) else len(self._text)
        return self._text[self._begun : end]

    @property
    def n_shown(self) -> int:
        """How many tokens of the output will stay, and have no part of a stop string."""
        if self.is_over and self._end is None:
            return len(self)
        if self._end is not None:
            return self._tokens_up_to(self._end)
        place = self._tokens_up_to(self._safe)
        # Those that may be taken back may be replaced by others, which go on with what came before.
        while 0 < place < len(self) and self._before[place][3] < self._before[place][0]:
            place = self._tokens_up_to(self._before[place][3])
        return place

    def _tokens_up_to(self, character: int) -> int:
        """How many tokens of the output have nothing from this character on."""
        place = self._place(character)
        if (self._before[place][0] if place < len(self) else len(self._text)) == character:
            return place
        # A token reaches beyond, perhaps with others that write one character with it.
        return self._place(self._before[place - 1][0]) if place else 0

    def _place(self, character: int) -> int:
        """The first token that begins at this character or after it."""
        return bisect_left(self._before, character, key=lambda one: one[0])

    def mask(self, vocab: int) -> npt.NDArray[np.int32] | None:
        """Return the tokens that may come next, as the calls of a `Sampler` take them.

        Parameters
        ----------
        vocab : int
            The number of logits in a row.

        Returns
        -------
        ndarray of shape (ceil(vocab / 32),), int32, or None
            None where every token may.

        See Also
        --------
        Text.forbidden : those that may not.
        """
        vocab = check_integer("vocab", vocab, 1, None, "an integer >= 1")
        if not self.forbidden:
            return None
        if max(self.forbidden) >= vocab:
            raise ValueError(f"`vocab` has to be above {max(self.forbidden)}, but is {vocab}")
        words = np.full(-(-vocab // 32), -1, np.int32)
        for token in self.forbidden:
            words.view(np.uint32)[token >> 5] &= ~np.uint32(1 << (token & 31))
        return words

    def accept(self, token: int) -> int:
        """Take the next token.

        Parameters
        ----------
        token : int, >= 0

        Returns
        -------
        int
            0, or how many tokens of the output are taken back, this one included: go back with
            your cache and your history, and draw again with `mask` and `draw`.

        Raises
        ------
        TypeError, ValueError
            If it is not such an integer, or may not come next.
        RuntimeError
            If the text is over.
        TimeoutError
            If a search takes too long.

        See Also
        --------
        Text.end : where the text ends.
        """
        token = check_integer("token", token, 0, None, "an integer >= 0")
        if self.is_over:
            raise RuntimeError("the text is over: `is_over`")
        if token in self.forbidden:
            raise ValueError(f"`token` {token} may not come next: give the draw the text's mask")
        self._before.append((len(self._text), self._window, self._read, self._safe))
        self._ids.append(token)
        try:
            self._decode_next()
            return self._judge(over=False)
        except BaseException:  # of the decoder, or a search that takes too long
            self._roll_back(len(self) - 1)
            raise

    def end(self) -> int:
        """Say that the text ends here, by an end token or a limit.

        Returns
        -------
        int
            As `accept`: a phrase that waited for what follows may be one now, and then the text
            goes on from its beginning.

        See Also
        --------
        Text.accept : takes each token.
        """
        if self.is_over:
            return 0
        self._decode_next(over=True)
        back = self._judge(over=True)
        if not (back or self.is_over):
            self._safe, self.is_over = len(self._text), True
        return back

    def give_up(self) -> int:
        """End the text here, since no token may come next.

        Returns
        -------
        int
            How many tokens of the output are taken back: what is left may not end with a phrase.

        See Also
        --------
        Text.end : where it ends by itself.
        """
        before = len(self)
        self._decode_next(over=True)
        while (start := self._look(self._phrases._banned, over=True)[0]) is not None and len(self):
            self._roll_back(self._place_of(start))
            self._decode_next(over=True)
        self._safe = len(self._text)
        self.is_over = self.gave_up = True
        return before - len(self)

    def _decode_next(self, *, over: bool = False) -> None:
        """Add what the new tokens write: nothing, until their last character is whole.

        Decoders look at neighbours, so the new tokens are decoded after those before them.
        """
        known = self._phrases._decode(self._ids[self._window : self._read])
        whole = self._phrases._decode(self._ids[self._window :])
        if len(whole) > len(known) and (over or not whole.endswith(_INCOMPLETE)):
            self._text += whole[len(known) :]
            self._window, self._read = self._read, len(self._ids)
        elif whole == known:  # special tokens that a decoder leaves out
            self._read = len(self._ids)

    def _judge(self, *, over: bool) -> int:
        """Look for phrases and stop strings; go back, if need be."""
        start, waits = self._look(self._phrases._banned, over=over)
        if start is None:
            stop, waits_too = self._look(self._phrases._stop, over=over)
            waits = min(waits, waits_too)
            if stop is not None:  # what comes before it is the text
                start, _ = self._look(self._phrases._banned, stop, over=True)
                if start is None:
                    self._end, self.is_over = stop, True
        if start is not None:
            return self._go_back(start)
        self._safe = waits
        return 0

    def _look(
        self, patterns: list[Any], end: int | None = None, *, over: bool
    ) -> tuple[int | None, int]:
        """Where the first match of any begins, and from where on there may be one yet."""
        found = [self._earliest(one, self._safe, end, over=over) for one in patterns]
        starts = [start for start, _ in found if start is not None]
        return min(starts, default=None), min((w for _, w in found), default=len(self._text))

    def _earliest(
        self, pattern: Any, start: int, end: int | None = None, *, over: bool = False
    ) -> tuple[int | None, int]:
        """Where the first match is that counts; and from where on there may be one yet.

        With an `end`, as if the text ended there.
        """
        text, limit = self._text, self._phrases.timeout
        waits = len(text)
        try:
            for match in pattern.finditer(text, start, end, overlapped=True, timeout=limit):
                first, last = match.span()
                if first == last or last <= self._begun:
                    continue
                if over or last < len(text) or self._stands(pattern, first):
                    return first, first
                waits = min(waits, first)
                break
            while start < waits and not over:
                match = pattern.search(text, start, partial=True, timeout=limit)
                if match is None:
                    break
                if match.partial or match.end() > self._begun or match.end() == len(text):
                    waits = min(waits, match.start())
                    break
                start = match.start() + 1
        except TimeoutError:
            raise TimeoutError(
                f"looking for {pattern.pattern!r} took more than {limit} s: it goes back and forth "
                "over the text, so write it in another way, or bound its repetitions"
            ) from None
        return None, waits

    def _stands(self, pattern: Any, first: int) -> bool:
        """Whether a match at the end of the text is one whatever comes next."""
        limit = self._phrases.timeout
        return all(pattern.match(self._text + one, first, timeout=limit) for one in _NEXT)

    def _place_of(self, start: int) -> int:
        """The first token of the output that wrote this character, or that comes after it."""
        place = len(self) - 1
        while place > 0 and self._before[place][0] > start:
            place -= 1
        while place > 0 and self._before[place - 1][:3] == self._before[place][:3]:
            place -= 1
        return place

    def _roll_back(self, place: int) -> None:
        """Take back the output from a place on."""
        length, self._window, self._read, self._safe = self._before[place]
        self._text = self._text[:length]
        del self._ids[self._n_context + place :], self._before[place:]
        self._forbidden = {i: ids for i, ids in self._forbidden.items() if i <= place}

    def _go_back(self, start: int) -> int:
        """Take back the token that wrote this character, and forbid it."""
        place = self._place_of(start)
        back, token = len(self) - place, self._ids[self._n_context + place]
        self._roll_back(place)
        self._forbidden.setdefault(place, []).append(token)
        if self.draw >= self._phrases.most_tries:
            back += self.give_up()
        return back


def _listed(name: str, given: Any) -> list[Any]:
    if isinstance(given, (str, bytes, re.Pattern)) or not isinstance(given, Iterable):
        raise TypeError(
            f"`{name}` has to be an iterable of strings and patterns, but is {kind_of(given)}"
        )
    return list(given)


def _compiled(name: str, given: list[Any]) -> list[Any]:
    """Compile strings, all in one, and patterns, each by itself."""
    try:
        import regex
    except ImportError as error:
        raise ImportError(f"sampler.phrases needs regex ({error}): pip install regex") from error
    strings, patterns = [], []
    for one in given:
        if isinstance(one, str):
            if not one:
                raise ValueError(f"`{name}` has to hold no empty string, but one is")
            strings.append(one)
        elif isinstance(one, (re.Pattern, regex.Pattern)) and isinstance(one.pattern, str):
            patterns.append(_pattern(name, one))
        else:
            raise TypeError(
                f"`{name}` has to hold strings and patterns of strings, but holds {kind_of(one)}"
            )
    # The longer ones first, since the first that matches does.
    words = sorted(set(strings), key=lambda one: (-len(one), one))
    return [*([regex.compile("|".join(map(regex.escape, words)))] if words else []), *patterns]


def _pattern(name: str, pattern: Any) -> Any:
    """Compile a pattern of `re` again, so that it means the same; one of `regex` is as it is."""
    import regex

    found = pattern
    if isinstance(pattern, re.Pattern):
        flags = 0
        for flag in ("IGNORECASE", "MULTILINE", "DOTALL", "VERBOSE", "ASCII"):
            flags |= getattr(regex, flag) if pattern.flags & getattr(re, flag) else 0
        text = _BRACE.sub(lambda found: found[1] or r"\{", pattern.pattern)
        try:
            if "[[:" in text:
                raise regex.error("a class inside of a class")
            found = regex.compile(text, flags)
        except regex.error as error:
            raise ValueError(
                f"`{name}` has {pattern.pattern!r}, which regex refuses: {error}"
            ) from None
    for texts, what in ((("",), "the empty string"), (_ANY, "any character")):
        if all(found.search(one, timeout=1.0) for one in texts):
            raise ValueError(f"`{name}` has {pattern.pattern!r}, which matches {what}")
    return found
