"""Log-probabilities as servers give them: the entries of OpenAI's chat completions.

`openai_logprobs` makes them of what `Sampler.sample` returns. `token_bytes` is what it asks a
tokenizer: the bytes of one token, so that those of a text, joined, are the text, although tokens
split its characters.
"""

from __future__ import annotations

import ctypes
import json
import re
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from itertools import repeat
from typing import Any, Literal

from sampler._checks import check_integer
from sampler._inputs import kind_of
from sampler.results import Samples

__all__ = ["openai_logprobs", "token_bytes"]

_LEAST = -9999.0  # what OpenAI writes for a token that is very unlikely; JSON has no -inf
_FIELDS = {
    "processed": ("logprobs", "top_ids", "top_logprobs"),
    "tempered": ("logprobs", "top_ids", "top_logprobs"),
    "raw": ("raw_logprobs", "raw_top_ids", "raw_top_logprobs"),
}
_MOST_PIECES = 2**15  # remembered per tokenizer: a few MB

_Read = Callable[[int], "bytes | None"]
_Piece = Callable[[int], tuple[str, "bytes | None"]]


def openai_logprobs(
    samples: Samples[Any, Any],
    tokenizer: Any,
    *,
    which: Literal["processed", "raw", "tempered"] = "processed",
    top_logprobs: int | None = None,
) -> Any:
    r"""Return what ``logprobs.content`` of a chat completion has for each token.

    Parameters
    ----------
    samples : Samples
        Of `Sampler.sample`, of `Sampler.score`, or of `sampler.hf`.
    tokenizer : object
        As `token_bytes` takes it.
    which : {"processed", "raw", "tempered"}
        The law that the log-probabilities are under. "processed": the one the token was drawn from.
        "raw": the model's own softmax; needs ``raw=True``. "tempered": the one before the cuts,
        `logprobs` plus `log_mass`; needs ``raw=True``. Its list has kept tokens only.
    top_logprobs : int, >= 0, optional
        How many of the first tokens in rank to list, at most the ``logprobs=`` of the sampler.
        Default: all there are; without ``logprobs=``, none.

    Returns
    -------
    dict, or list of dict, or list of lists of dict
        Nested as ``samples.tokens`` is: of a lone row, one dict; of a batch, one per row; of texts
        of many steps, a list per text. Its keys are "token" (str), "logprob" (float), "bytes" (list
        of int, or None) and "top_logprobs", a list of dicts with the first three. None where there
        is no token: for an invalid row, and after the end of a text in `sampler.hf`.

    Raises
    ------
    TypeError
        If `samples` is not a `Samples`, or the tokenizer is none of those.
    ValueError
        If `which` is none of the three, or the Samples lack what is asked for.

    See Also
    --------
    token_bytes : the bytes of one token.
    sampler.Sampler.sample : takes ``logprobs=`` and ``raw=``.

    Notes
    -----
    As OpenAI does, a token that is not whole characters has its bytes written out in "token":
    ``"\\xf0\\x9f"``. An id that the tokenizer lacks has the token "" and the bytes None. A
    log-probability below -9999.0, such as -inf, is -9999.0. A list is shorter than asked for where
    fewer tokens were kept.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.logprobs import openai_logprobs
    >>> words = {0: b" a", 1: b" cat", 2: b"\xf0\x9f", 3: b"\x98\x8a"}
    >>> r = Sampler(top_k=2, seed=7).sample([1.0, 3.0, 2.0, 0.0], logprobs=2)
    >>> entry = openai_logprobs(r, words)
    >>> entry["token"], round(entry["logprob"], 3), entry["bytes"]
    ('\\xf0\\x9f', -1.313, [240, 159])
    >>> [(top["token"], round(top["logprob"], 3)) for top in entry["top_logprobs"]]
    [(' cat', -0.313), ('\\xf0\\x9f', -1.313)]
    """
    if not isinstance(samples, Samples):
        raise TypeError(f"`samples` has to be a Samples, but is {kind_of(samples)}")
    if which not in _FIELDS:
        raise ValueError(f"`which` has to be 'processed', 'raw' or 'tempered', but is {which!r}")
    logprobs, ids, tops = (getattr(samples, name) for name in _FIELDS[which])
    shift = samples.log_mass if which == "tempered" else 0.0
    if logprobs is None or shift is None:
        raise ValueError(f"`which` is {which!r}, which needs a sample with raw=True")
    there = 0 if ids is None else ids.shape[-1]
    if top_logprobs is not None:
        n = check_integer("top_logprobs", top_logprobs, 0, None, "an integer >= 0")
        if n > there:
            raise ValueError(
                f"`top_logprobs` is {n}, but the Samples have lists of {there}: sample with "
                f"logprobs={n}"
            )
        there = n
    if ids is None:
        ids = tops = []
    values = (samples.tokens, logprobs, shift, ids, tops)
    return _entries(
        _piece_of(tokenizer),
        there,
        *(value.tolist() if hasattr(value, "tolist") else value for value in values),
    )


def _entries(
    piece: _Piece, most: int, tokens: Any, logprobs: Any, shift: Any, ids: Any, tops: Any
) -> Any:
    """Return the entry of a token, or those of nested lists of them."""
    if isinstance(tokens, list):
        # All draws of a row have its one list.
        has_own = ids and isinstance(ids[0], list)
        each = zip(
            tokens,
            logprobs,
            shift if isinstance(shift, list) else repeat(shift),
            ids if has_own else repeat(ids),
            tops if has_own else repeat(tops),
            strict=False,
        )
        return [_entries(piece, most, *one) for one in each]
    if tokens < 0:
        return None
    entry = _entry(piece, tokens, logprobs + shift)
    listed = zip(ids[:most], tops, strict=False)
    entry["top_logprobs"] = [_entry(piece, i, top + shift) for i, top in listed if i >= 0]
    return entry


def _entry(piece: _Piece, token: int, logprob: float) -> dict[str, Any]:
    text, data = piece(token)
    return {
        "token": text,
        "logprob": max(logprob, _LEAST),
        "bytes": None if data is None else list(data),
    }


def token_bytes(tokenizer: Any, token: int) -> bytes | None:
    r"""Return the bytes that a token writes, also where they are a part of a character.

    Parameters
    ----------
    tokenizer : object
        A fast tokenizer of Hugging Face, or a `tokenizers.Tokenizer`, whose decoder is made of
        ByteLevel, or of ByteFallback, Metaspace and Replace; an encoding of tiktoken; a
        `llama_cpp.Llama`; a mapping, or a function, from ids to bytes.
    token : int
        An id.

    Returns
    -------
    bytes, or None
        Of a special token, its text. None where the tokenizer has no such id, as in a vocabulary
        that is padded.

    Raises
    ------
    TypeError
        If the tokenizer is none of these, or gives something else than bytes, or `token` is not an
        integer.
    ValueError
        If `token` is negative.

    See Also
    --------
    openai_logprobs : writes them.
    sampler.phrases.Phrases : looks for strings in what tokens write.

    Notes
    -----
    The space that a tokenizer puts before a text, and its decoder takes away again, is a byte of
    the first token.

    Each tokenizer is looked at once, and the last 32768 tokens asked for are remembered, as long as
    it lives.

    Examples
    --------
    >>> from sampler.logprobs import token_bytes
    >>> words = {0: b" a", 1: b" cat", 2: b"\xf0\x9f", 3: b"\x98\x8a"}
    >>> token_bytes(words, 2), token_bytes(words, 4)
    (b'\xf0\x9f', None)
    >>> b"".join(token_bytes(words, i) for i in [1, 2, 3]).decode()
    ' cat😊'
    """
    return _piece_of(tokenizer)(check_integer("token", token, 0, None, "an integer >= 0"))[1]


# ------------------------------------------------------------------------------ what a token writes

_PIECES: weakref.WeakKeyDictionary[Any, _Piece] = weakref.WeakKeyDictionary()


def _piece_of(tokenizer: Any) -> _Piece:
    """Return what gives the text and the bytes of a token, remembered with the tokenizer."""
    try:
        known = _PIECES.get(tokenizer)
        held = weakref.proxy(tokenizer)  # what is remembered must not keep the tokenizer alive
    except TypeError:  # of a dict, say
        return _piece(_reader(tokenizer, tokenizer))
    if known is None:
        known = _PIECES[tokenizer] = _piece(_reader(tokenizer, held))
    return known


def _piece(read: _Read) -> _Piece:
    @lru_cache(_MOST_PIECES)
    def known(token: int) -> tuple[str, bytes]:
        data = read(token)
        if data is None:
            raise LookupError  # which is not remembered: tokens may be added
        if not isinstance(data, bytes):
            raise TypeError(f"`tokenizer` has to give bytes, but gives {kind_of(data)} for {token}")
        return data.decode("utf-8", "backslashreplace"), data

    def piece(token: int) -> tuple[str, bytes | None]:
        try:
            return known(token)
        except (LookupError, OverflowError):
            return "", None

    return piece


def _reader(tokenizer: Any, held: Any) -> _Read:
    """Return what reads the bytes of a token, by way of `held`, the tokenizer or a proxy of it.

    It gives None or raises LookupError for an id that the tokenizer lacks.
    """
    if hasattr(tokenizer, "decode_single_token_bytes"):
        # A bound method would keep the tokenizer alive.
        return lambda token: held.decode_single_token_bytes(token)  # noqa: PLW0108
    if hasattr(tokenizer, "detokenize") and hasattr(tokenizer, "n_vocab"):
        return lambda token: _llama_piece(held, token)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "id_to_token") and hasattr(backend, "decoder"):
        return _backend_reader(backend, held if backend is tokenizer else backend)
    if isinstance(tokenizer, Mapping):
        return lambda token: held[token]
    # Tokenizers that are not fast are callable, too.
    if callable(tokenizer) and not hasattr(tokenizer, "decode"):
        return held  # type: ignore[no-any-return]
    raise TypeError(
        "`tokenizer` has to be a fast tokenizer of Hugging Face, one of tiktoken, a "
        "llama_cpp.Llama, or a mapping or a function from ids to bytes, but is "
        f"{kind_of(tokenizer)}"
    )


def _llama_piece(llama: Any, token: int) -> bytes | None:
    if token >= llama.n_vocab():
        return None
    piece: bytes = llama.detokenize([token], special=True)
    if piece or not hasattr(llama, "model"):
        return piece
    # Its buffer has 32 bytes; a token that is longer, such as a deep indentation, comes out empty.
    library = import_module("llama_cpp")
    vocab = library.llama_model_get_vocab(llama.model)
    size = -library.llama_token_to_piece(vocab, token, None, 0, 0, True)
    buffer = ctypes.create_string_buffer(max(size, 1))
    library.llama_token_to_piece(vocab, token, buffer, size, 0, True)
    return buffer.raw[:size]


# GPT-2's alphabet: a letter for each byte, in which the tokens of ByteLevel are written.
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTED}
_BYTES |= {chr(0x100 + i): b for i, b in enumerate(sorted({*range(0x100)} - {*_PRINTED}))}
_BYTE = re.compile("<0x[0-9a-fA-F]{2}>")


def _backend_reader(backend: Any, held: Any) -> _Read:
    """Return what reads a `tokenizers.Tokenizer` as its decoder does, but token by token."""
    state: dict[str, Any] = {}
    with suppress(Exception):  # no decoder, or one written in Python
        state = json.loads(backend.decoder.__getstate__())
    kinds, replaced = set(), []
    for step in state.get("decoders", [state]):
        match step:
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                replaced.append((old, new))
            case {"type": "Metaspace", "replacement": old}:
                replaced.append((old, " "))
            case {"type": "ByteLevel" | "ByteFallback" as kind}:
                kinds.add(kind)
            case {"type": "Fuse" | "Strip"}:
                pass  # of the text, not of a token
            case _:
                found = step.get("type", "none to read")
                raise TypeError(
                    "`tokenizer` has to have a decoder that shows the bytes of a token, but has "
                    f"{found}: give a mapping or a function from ids to bytes"
                )
    # These are written in letters, not in GPT-2's alphabet.
    added = backend.get_added_tokens_decoder() if "ByteLevel" in kinds else {}

    def read(token: int) -> bytes | None:
        text: str | None = held.id_to_token(token)
        if text is None:
            return None
        if "ByteLevel" in kinds and token not in added:
            try:
                return bytes([_BYTES[letter] for letter in text])
            except KeyError:
                return text.encode()
        if "ByteFallback" in kinds and _BYTE.fullmatch(text):
            return bytes([int(text[3:5], 16)])
        for old, new in replaced:
            text = text.replace(old, new)
        return text.encode()

    return read
