"""Log-probabilities in OpenAI's shape: the sampler's numbers, and the bytes of the text."""

import json
import re
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import sampler.hf
import tiny
from sampler import Sampler, Samples
from sampler.logprobs import openai_logprobs, token_bytes

WORDS = {0: b" a", 1: b" cat", 2: b"\xf0\x9f", 3: b"\x98\x8a"}
ROW = [1.0, 3.0, 2.0, 0.0]
BATCH = np.array([ROW, ROW[::-1], [0.0, 0.0, 9.0, 0.0]])
S = Sampler(temperature=0.8, top_k=3, seed=7)


def byte_level():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(["the cat, the café, the thé; 中文 中文 中文"] * 3, trainer)
    # Of a letter that is also one of GPT-2's alphabet, and of two spaces.
    made.add_tokens(["naïve", "  "])
    return made


def byte_fallback():
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁catheé中"]
    pieces += ["ca", "cat", "▁cat", "he"]
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat"), ("h", "e")]
    ids = {piece: i for i, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(["<s>"])
    return made


KINDS = {"byte level": byte_level(), "byte fallback": byte_fallback()}
FAST = {name: PreTrainedTokenizerFast(tokenizer_object=one) for name, one in KINDS.items()}


# ----------------------------------------------------------------------------------- of the tokens

PARTS = [
    *("the cat", " naïve", "  ", "<|end|>", "<s>", "<0x41>", "\\xf0"),
    *("Ġ", "中文", "😊", "👩\u200d👩\u200d👧"),
]


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(st.sampled_from(PARTS) | st.text(), max_size=6))
def test_the_bytes_of_the_tokens_are_the_text(kind, texts):
    # The letter that stands for a space means one.
    text = "".join(texts).replace("▁", " ")
    ids = KINDS[kind].encode(text).ids
    r = Samples(np.array(ids, dtype=np.int64), np.zeros(len(ids)))
    for tokenizer in (KINDS[kind], FAST[kind]):
        entries = openai_logprobs(r, tokenizer)
        assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == text
        assert b"".join(token_bytes(tokenizer, i) for i in ids) == text.encode()
        for entry in entries:
            assert entry["token"] == bytes(entry["bytes"]).decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("kind", KINDS)
def test_part_of_a_character_is_written_as_openai_does(kind):
    ids = KINDS[kind].encode("😊").ids
    found = openai_logprobs(Samples(np.array(ids), np.zeros(4)), KINDS[kind])
    assert [entry["token"] for entry in found] == ["\\xf0", "\\x9f", "\\x98", "\\x8a"]
    assert [entry["bytes"] for entry in found] == [[0xF0], [0x9F], [0x98], [0x8A]]


class OfTiktoken:
    def decode_single_token_bytes(self, token):
        if token >= 2**32:
            raise OverflowError("out of range")
        return WORDS[token]


class OfLlama:
    """`llama_cpp.Llama` can be called, too, and an id that it lacks ends the process."""

    def n_vocab(self):
        return 4

    def detokenize(self, tokens, *, special=False):
        assert special and all(0 <= i < 4 for i in tokens)
        return b"".join(WORDS[i] for i in tokens)

    def __call__(self, prompt):
        raise AssertionError


OTHERS = {
    "mapping": WORDS,
    "proxy of a mapping": types.MappingProxyType(WORDS),
    "function": WORDS.get,
    "function that raises": WORDS.__getitem__,
    "list": [*WORDS.values()].__getitem__,
    "tiktoken": OfTiktoken(),
    "llama.cpp": OfLlama(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_tokenizers(kind):
    for _ in range(2):  # the second from what is remembered
        assert [token_bytes(OTHERS[kind], i) for i in range(4)] == [*WORDS.values()]
        assert token_bytes(OTHERS[kind], np.int64(2)) == b"\xf0\x9f"


@pytest.mark.parametrize("tokenizer", [*KINDS.values(), *FAST.values(), *OTHERS.values()])
def test_ids_beyond_the_tokenizer(tokenizer):
    for token in (5000, 2**40):
        assert token_bytes(tokenizer, token) is None
    entry = openai_logprobs(Samples(5000, -1.0), tokenizer)
    assert entry == {"token": "", "logprob": -1.0, "bytes": None, "top_logprobs": []}


def test_metaspace_and_special_tokens():
    made = Tokenizer(models.WordLevel({"▁the": 0, "é": 1, "</s>": 2}, unk_token="</s>"))
    made.decoder = decoders.Metaspace()
    assert [token_bytes(made, i) for i in range(3)] == [b" the", "é".encode(), b"</s>"]
    made = Tokenizer(models.WordLevel({"中 a": 0, "Ġa": 1}, unk_token="Ġa"))
    made.decoder = decoders.ByteLevel()
    assert [token_bytes(made, i) for i in range(2)] == ["中 a".encode(), b" a"]
    assert token_bytes(KINDS["byte level"], 0) == b"<|end|>"
    assert token_bytes(KINDS["byte fallback"], 1) == b"<s>"


def test_a_token_that_is_added_later_is_found():
    made = byte_level()
    new = made.get_vocab_size()
    assert token_bytes(made, new) is None
    made.add_tokens(["<new>"])
    assert token_bytes(made, new) == b"<new>"


@pytest.mark.parametrize(
    "make", [OfTiktoken, OfLlama, byte_level, lambda: lambda token: WORDS[token % 4]]
)
def test_a_tokenizer_is_not_kept_alive(make):
    made = make()
    assert token_bytes(made, 3)
    watched = weakref.ref(made)
    del made
    assert watched() is None


def test_a_tokenizer_is_asked_once_per_token():
    asked = []

    def pieces(token):
        asked.append(token)
        return WORDS[token]

    r = S.sample(BATCH, logprobs=3)
    openai_logprobs(r, pieces)
    openai_logprobs(r, pieces)
    assert sorted(asked) == [0, 1, 2, 3]


def test_what_is_returned_is_the_callers():
    r = S.sample(ROW, logprobs=2)
    found = openai_logprobs(r, WORDS.get)
    before = json.dumps(found)
    found["bytes"].append(1)
    found["top_logprobs"][0]["bytes"].clear()
    assert json.dumps(openai_logprobs(r, WORDS.get)) == before


def test_llama_cpp_gives_long_tokens_too(monkeypatch):
    # llama-cpp-python reads a token into 32 bytes: a longer one, such as a deep indentation, and
    # 47 of SmolLM2's, came out empty.
    pieces = [b"x" * 33, b" " * 70, b"", b"y" * 32]

    class Llama:
        model = "the model"

        def n_vocab(self):
            return 4

        def detokenize(self, tokens, *, special=False):
            (one,) = (pieces[i] for i in tokens)
            return one if len(one) <= 32 else b""

    def to_piece(vocab, token, buffer, size, lstrip, special):
        assert (vocab, lstrip, special) == ("the vocabulary", 0, True)
        if len(pieces[token]) > size:
            return -len(pieces[token])
        if size:
            buffer[: len(pieces[token])] = pieces[token]
        return len(pieces[token])

    library = types.SimpleNamespace(
        llama_model_get_vocab={"the model": "the vocabulary"}.get, llama_token_to_piece=to_piece
    )
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    llama = Llama()
    assert [token_bytes(llama, i) for i in range(5)] == [*pieces, None]


# ------------------------------------------------------------------------------------- the numbers

FIELDS = {"processed": "", "tempered": "", "raw": "raw_"}
SHAPES = {
    "row": (ROW, None), "draws": (ROW, 4), "batch": (BATCH, None), "draws of a batch": (BATCH, 2),
}  # fmt: skip


def by_hand(r, which):
    """The same out of the Samples of one token after the other."""
    if np.ndim(r.tokens):
        return [by_hand(one, which) for one in r]
    before = FIELDS[which]
    shift = r.log_mass if which == "tempered" else 0.0

    def entry(token, logprob):
        text = WORDS[token].decode("utf-8", "backslashreplace")
        return {"token": text, "logprob": logprob + shift, "bytes": [*WORDS[token]]}

    ids, tops = (getattr(r, before + name).tolist() for name in ("top_ids", "top_logprobs"))
    top = [entry(*one) for one in zip(ids, tops, strict=True) if one[0] >= 0]
    return {**entry(r.tokens, getattr(r, before + "logprobs")), "top_logprobs": top}


@pytest.mark.parametrize("which", FIELDS)
@pytest.mark.parametrize("container", [np.asarray, torch.tensor])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_numbers_are_those_of_the_samples(shape, container, which):
    rows, n = SHAPES[shape]
    r = S.sample(container(rows), n=n, logprobs=4, raw=True)
    found = openai_logprobs(r, WORDS, which=which)
    assert found == by_hand(r, which)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    first = found
    while isinstance(first, list):
        first = first[0]
    assert [*first] == ["token", "logprob", "bytes", "top_logprobs"]
    assert [[*top] for top in first["top_logprobs"]] == [["token", "logprob", "bytes"]] * (
        4 if which == "raw" else 3  # of four, top_k keeps three
    )
    assert [type(first[key]) for key in first] == [str, float, list, list]


def test_the_three_laws_of_one_draw():
    r = S.sample(ROW, logprobs=4, raw=True, steps=0)
    kinds = {which: openai_logprobs(r, WORDS, which=which)["logprob"] for which in FIELDS}
    assert kinds["tempered"] == kinds["processed"] + r.log_mass
    for which, law in (("tempered", Sampler(temperature=0.8)), ("raw", Sampler())):
        assert kinds[which] == pytest.approx(law.score(ROW, r.tokens).logprobs, abs=1e-9)
    assert len({*kinds.values()}) == 3


def test_fewer_are_listed_than_there_are():
    r = S.sample(BATCH, logprobs=3)
    every = openai_logprobs(r, WORDS)
    for n in range(4):
        found = openai_logprobs(r, WORDS, top_logprobs=n)
        assert found == [{**one, "top_logprobs": one["top_logprobs"][:n]} for one in every]
    assert openai_logprobs(S.sample(ROW), WORDS)["top_logprobs"] == []
    assert openai_logprobs(S.sample(ROW), WORDS, top_logprobs=0)["top_logprobs"] == []


def test_a_removed_token_has_openais_least():
    r = S.score(ROW, 3, logprobs=4)
    assert r.logprobs == -np.inf
    assert openai_logprobs(r, WORDS)["logprob"] == -9999.0
    far = Sampler(seed=7).sample([0.0, -20000.0], logprobs=2)
    assert [one["logprob"] for one in openai_logprobs(far, WORDS)["top_logprobs"]] == [0, -9999.0]


def test_where_there_is_no_token_there_is_none():
    rows = np.array([ROW, [np.nan] * 4])
    r = S.replace(on_invalid="flag").sample(rows, logprobs=2)
    first, second = openai_logprobs(r, WORDS)
    assert first["top_logprobs"] and second is None
    assert openai_logprobs(r[1], WORDS) is None
    assert openai_logprobs(r[:0], WORDS) == []


def test_texts_of_hugging_face():
    model, inputs = tiny.llama(), tiny.prompts(2)
    s = Sampler(temperature=0.8, seed=7)
    out = sampler.hf.generate(
        model, **inputs, sampler=s, max_new_tokens=6, return_dict_in_generate=True, logprobs=2,
        raw=True,
    )  # fmt: skip
    pieces = [b"%d " % i for i in range(tiny.VOCAB)].__getitem__
    texts = openai_logprobs(out.samples, pieces, which="raw")
    for row in range(2):
        assert texts[row] == openai_logprobs(out.samples[row], pieces, which="raw")
        assert texts[row] == [openai_logprobs(one, pieces, which="raw") for one in out.samples[row]]
        ids = out.sequences[row, 7:].tolist()
        assert "".join(one["token"] for one in texts[row]) == "".join(f"{i} " for i in ids)
    assert [len(one["top_logprobs"]) for one in texts[0]] == [2] * 6


# -------------------------------------------------------------------------------------- the errors


def with_decoder(decoder):
    made = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    made.decoder = decoder
    return made


class InPython:
    def decode_chain(self, tokens):
        return tokens


NO_TOKENIZERS = {
    "a name": ("gpt2", "or a function from ids to bytes, but is a str"),
    "nothing": (None, "but is a NoneType"),
    "a slow tokenizer": (type("Slow", (), {"__call__": id, "decode": id})(), "but is a .*Slow"),
    "no decoder": (tiny.tokenizer(), "but has none to read: give a mapping"),
    "pieces of words": (with_decoder(decoders.WordPiece()), "but has WordPiece"),
    "an expression": (with_decoder(decoders.Replace(Regex("a+"), "b")), "but has Replace"),
    "in Python": (with_decoder(decoders.Decoder.custom(InPython())), "but has none to read: "),
    "no bytes": (str, "give bytes, but gives a str for 1"),
}


@pytest.mark.parametrize("kind", NO_TOKENIZERS)
def test_no_tokenizer(kind):
    tokenizer, message = NO_TOKENIZERS[kind]
    for call in (lambda: token_bytes(tokenizer, 1), lambda: openai_logprobs(R, tokenizer)):
        with pytest.raises(TypeError, match=rf"^`tokenizer` has to .*{message}"):
            call()


R = S.score(ROW, 1, logprobs=2)
ERRORS = {
    "openai_logprobs([1, 2], WORDS)": (TypeError, "`samples` has to be a Samples, but is a list"),
    "openai_logprobs(R, WORDS, which='mine')": (
        ValueError, "`which` has to be 'processed', 'raw' or 'tempered', but is 'mine'"),
    "openai_logprobs(R, WORDS, which='raw')": (
        ValueError, "`which` is 'raw', which needs a sample with raw=True"),
    "openai_logprobs(R, WORDS, which='tempered')": (
        ValueError, "`which` is 'tempered', which needs a sample with raw=True"),
    "openai_logprobs(R, WORDS, top_logprobs=3)": (
        ValueError,
        "`top_logprobs` is 3, but the Samples have lists of 2: sample with logprobs=3"),
    "openai_logprobs(S.sample(ROW), WORDS, top_logprobs=1)": (
        ValueError,
        "`top_logprobs` is 1, but the Samples have lists of 0: sample with logprobs=1"),
    "openai_logprobs(R, WORDS, top_logprobs=-1)": (
        ValueError, "`top_logprobs` has to be an integer >= 0, but is -1"),
    "openai_logprobs(R, WORDS, top_logprobs=True)": (
        TypeError, "`top_logprobs` has to be an integer >= 0, but is True"),
    "token_bytes(WORDS, 1.0)": (TypeError, "`token` has to be an integer >= 0, but is 1.0"),
    "token_bytes(WORDS, -1)": (ValueError, "`token` has to be an integer >= 0, but is -1"),
}  # fmt: skip


@pytest.mark.parametrize("call", ERRORS)
def test_errors(call):
    kind, message = ERRORS[call]
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        eval(call)
