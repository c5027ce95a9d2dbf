"""Rows of logits: what a caller gives, and changes of them whose effect on the law is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sampler._checks import as_array
from sampler._engine import InvalidLogit
from sampler.testing._statistics import Ints

Row = npt.NDArray[Any]

SHIFT = 128.0  # beyond the range of a float32 exp, exact on a grid of 2**-10
TAIL_TOKENS, TAIL_DEPTH = 2**18, 20.5  # deeper than float32 noise reaches: 16.6 above, 2.8 below
_PADDED = 7  # tokens of -inf at the end; twice as many anywhere, and one at the start


def check_logits(logits: Any) -> Row:
    """Return the logits as an array of shape (rows, vocab), or raise."""
    array = as_array("logits", logits)
    wanted = "floats of shape (vocab,) or (rows, vocab)"
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f"`logits` have to be {wanted}, but are {array.dtype}")
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"`logits` have to be {wanted}, but have shape {array.shape}")
    rows = np.array(array, ndmin=2)
    wrong = ~(rows < np.inf)
    if wrong.any():
        row, token = np.argwhere(wrong)[0].tolist()
        raise InvalidLogit(row, token, float(rows[row, token])).error("logits")
    empty = np.isneginf(rows).all(axis=1)
    if empty.any():
        raise InvalidLogit(int(np.argmax(empty)), -1, -np.inf).error("logits")
    return rows


def shifted(row: Row, by: float) -> Row:
    """Add to all logits, as far as the dtype goes; -inf stays where it is."""
    limit = float(np.finfo(row.dtype).max)
    x = np.clip(row.astype(np.float64) + by, -limit, limit)
    return np.where(np.isneginf(row), row, x).astype(row.dtype)


def on_grid(row: Row) -> Row | None:
    """The row, rounded to what is exact also when shifted; None if there is no such row.

    Rounding afterwards would make equals of neighbours, between which a cut may fall.
    """
    x = row.astype(np.float64)
    near = x > x.max() - 5000.0  # what is lower has no probability at all
    largest = np.abs(x[near]).max() + SHIFT
    if largest > float(np.finfo(row.dtype).max):
        return None
    step = float(np.spacing(row.dtype.type(largest)))
    x[near] = np.round(x[near] / step) * step
    rounded = x.astype(row.dtype)
    moved = (shifted(rounded, by)[near].astype(np.float64) - by for by in (SHIFT, -SHIFT))
    return rounded if all(np.array_equal(m, x[near]) for m in moved) else None


def order_of(row: Row, rng: np.random.Generator) -> Ints:
    """A permutation in which equal logits keep their order, by which a cut may choose."""
    shuffled = rng.permutation(len(row))
    order = np.empty_like(shuffled)
    order[np.argsort(row[shuffled], kind="stable")] = np.argsort(row, kind="stable")
    return order


def padded(row: Row, rng: np.random.Generator) -> tuple[Row, Ints]:
    """Put in tokens of -inf; also return the old id of each token, len(row) for those put in."""
    vocab = len(row)
    places = np.sort(rng.integers(0, vocab + 1, 2 * _PADDED))
    places = np.concatenate([[0], places, [vocab] * _PADDED])
    return np.insert(row, places, -np.inf), np.insert(np.arange(vocab), places, vocab)


def layouts(batch: Row) -> list[Row]:
    """The batch in every second column, backwards; columns first; in every third row."""
    rows, vocab = batch.shape
    backwards = np.full((rows, 2 * vocab), 9.0, batch.dtype)[:, ::-2]
    backwards[...] = batch
    apart = np.full((3 * rows, vocab), 9.0, batch.dtype)[::3]
    apart[...] = batch
    return [backwards, np.asfortranarray(batch), apart]


def tail_row(depth: float, dtype: npt.DTypeLike) -> Row:
    """One token, and `TAIL_TOKENS` that lie `depth` nats below it."""
    row = np.full(TAIL_TOKENS + 1, -depth, dtype)
    row[0] = 0
    return row
