"""Masks of tokens that may be drawn: any of the forms that users have, as words.

The words have the layout that xgrammar, llguidance and outlines share: int32 of shape
(batch, ceil(vocab / 32)), where token j of a row is bit j & 31 of word j >> 5, and 1 is allowed. A
mask may be narrower, by up to half, where the model's vocabulary is padded: the tokens beyond it
are not allowed. Narrower still, it is more likely an array of ids, and refused. It may be wider if
the words beyond the row's are 0. The spare bits of the row's last word mean nothing.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler._checks import as_array, check_batch, check_ids
from sampler._inputs import kind_of

__all__ = [
    "read_mask",
]

_Words = npt.NDArray[np.int32]
_BITS = 32
_INT32 = np.dtype(np.int32)
_COLLECTIONS = (set, frozenset, range)
_WANTED = "int32 words, bools, or lists of allowed ids"


def read_mask(mask: Any, shape: tuple[int, ...]) -> _Words:
    """Take a mask for logits of a shape, (vocab,) or (batch, vocab).

    Parameters
    ----------
    mask : array_like
        int32 words as above, one row of them per row of logits. Bools of exactly `shape`. NumPy
        arrays, tensors, lists of bools. Or the ids that are allowed, each once: a list, set or
        range for a lone row, one per row for a batch. Never written to.
    shape : tuple of int

    Returns
    -------
    ndarray of shape (batch, any), int32
        Rows of contiguous words, at least one in each; the mask's own memory where that will do.

    Raises
    ------
    TypeError
        If `mask` is none of these, such as an array of floats.
    ValueError
        If it is for other rows, an id is outside the vocabulary or named twice, words cover less
        than half of a row, or a bit beyond is set.
    """
    *batch, vocab = shape
    rows = batch[0] if batch else 1
    width = -(-vocab // _BITS)
    if (
        type(mask) is np.ndarray
        and mask.dtype is _INT32
        and mask.shape == (*batch, width)
        and mask.strides[-1] == mask.itemsize
    ):
        return mask if batch else mask[None]  # the usual, quickly
    if isinstance(mask, (list, tuple)) or (not batch and isinstance(mask, _COLLECTIONS)):
        given = [_as_list(row) for row in (mask if batch else [mask])]
        lists = [as_array("mask", row) for row in given]
        if not any(one.dtype == np.bool_ for one in lists):
            return _words_of_ids(given, lists, shape)
    array = as_array("mask", mask)
    if array.dtype == np.bool_:
        if array.shape != shape:
            raise ValueError(
                f"a `mask` of bools has to have the shape of the logits, {shape}, but has shape "
                f"{array.shape}"
            )
        return _words_of_bools(array.reshape(rows, vocab))
    if array.dtype.kind != "i" or array.dtype.itemsize != 4:
        found = f"{array.dtype}" if hasattr(mask, "dtype") else kind_of(mask)
        if hasattr(mask, "dtype") and array.dtype.kind in "iu":
            found += ": for ids pass mask.tolist(), for words cast to int32, for flags to bool"
        raise TypeError(f"`mask` has to be {_WANTED}, but is {found}")
    if array.ndim not in (len(batch) + 1, 2) or (array.ndim == 2 and array.shape[0] != rows):
        raise ValueError(
            f"a `mask` of words has to have shape {(*batch, width)} for logits of shape {shape}, "
            f"but has shape {array.shape}"
        )
    words = array.reshape(rows, array.shape[-1])
    if 2 * words.shape[1] < width:
        raise ValueError(
            f"a `mask` of words has to have about {width} of them per row, 1 bit for each of the "
            f"{vocab} tokens, but has {words.shape[1]}: for ids, pass lists (mask.tolist())"
        )
    beyond = words[:, width:]
    if beyond.any():
        raise ValueError(
            f"a `mask` of words has to be 0 after the word of token {vocab - 1}, the last, but row "
            f"{int(np.argwhere(beyond)[0, 0])} has bits set there: for ids, pass lists "
            "(mask.tolist())"
        )
    return np.ascontiguousarray(words, np.int32)


def _as_list(row: Any) -> Any:
    return list(row) if isinstance(row, _COLLECTIONS) else row


def _words_of_bools(allowed: npt.NDArray[np.bool_]) -> _Words:
    rows, vocab = allowed.shape
    packed = np.packbits(allowed, axis=1, bitorder="little")
    words = np.zeros((rows, -(-vocab // _BITS)), "<i4")
    words.view(np.uint8)[:, : packed.shape[1]] = packed
    return words.astype(np.int32, copy=False)


def _words_of_ids(
    given: Sequence[Any], lists: list[npt.NDArray[Any]], shape: tuple[int, ...]
) -> _Words:
    *batch, vocab = shape
    rows = batch[0] if batch else 1
    check_batch("mask", len(lists), rows)
    wanted = f"ids in [0, {vocab})"
    ids = []
    for row, (raw, one) in enumerate(zip(given, lists, strict=True)):
        if one.ndim != 1 or one.dtype.kind == "O":
            raise TypeError(f"`mask` has to be {_WANTED}, but a row is {reprlib.repr(raw)}")
        where = f" in row {row}" if batch else ""
        ids.append(check_ids("mask", raw, vocab, wanted, where=where, holds=True))
        named, counts = np.unique(ids[-1], return_counts=True)
        if len(named) < len(one):
            raise ValueError(
                f"`mask` has to hold each id once, but holds {named[counts > 1][0]} more than "
                f"once{where}: flags have to be bools"
            )
    width = -(-vocab // _BITS)
    words = np.zeros(rows * width, np.uint32)
    if ids:
        tokens = np.concatenate(ids)
        first = np.repeat(np.arange(rows) * width, [len(one) for one in ids])
        bits = np.left_shift(np.uint32(1), (tokens & _BITS - 1).astype(np.uint32))
        np.bitwise_or.at(words, first + (tokens >> 5), bits)
    return words.view(np.int32).reshape(rows, width)
