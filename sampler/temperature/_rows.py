"""Logits as rows of floats, read a few at a time, and the name of a row in an error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import _inputs
from sampler._checks import check_axes, check_reals
from sampler._engine import InvalidLogit
from sampler.softmax import kept_shape, rows_along, shape_without

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_CHUNK = 2**16  # logits worked on at once: a few arrays of so many stay in a core's cache


def read_rows(
    logits: Any, axis: Any, keepdims: Any = False
) -> tuple[_inputs.Logits, Array, tuple[int, ...], tuple[int, ...]]:
    """What was read, its rows as a 2-D array of the dtype it had, and the shape of the batch.

    Of the two shapes, the first is that of parameters; results, the second, may keep the axes.
    """
    source = _inputs.read(logits, numbers=True)
    array = source.array
    axes = check_axes(axis, array.ndim)
    kept = kept_shape(array.shape, axes, keepdims)
    if not all(array.shape[axis] for axis in axes):
        raise ValueError(
            f"`logits` have to hold at least one token per row, but have shape {array.shape}"
        )
    return source, rows_along(array, axes), shape_without(array.shape, axes), kept


def to_float64(array: Array, kind: str) -> Floats:
    return _inputs.widen(array, kind).astype(np.float64, copy=False)


def rows_at_once(vocab: int) -> int:
    """Return how many rows to work on at once."""
    return max(1, _CHUNK // vocab)


def chunks(batch: int, vocab: int) -> Iterator[slice]:
    """Cut the rows of a batch into parts that are worked on at once."""
    rows = rows_at_once(vocab)
    for start in range(0, batch, rows):
        yield slice(start, min(start + rows, batch))


def one_per_row(
    name: str, value: Any, shape: tuple[int, ...], low: float, range_text: str
) -> Floats:
    """Return one float per row, at least `low`, from one for all or the array of a batch."""
    values = check_reals(name, value, low, range_text, shape)
    return np.broadcast_to(values, shape).reshape(-1)


def row_name(row: int, shape: tuple[int, ...]) -> str:
    return str(row if len(shape) < 2 else tuple(map(int, np.unravel_index(row, shape))))


def refuse_invalid(x: Array, places: Sequence[int] | Array, shape: tuple[int, ...]) -> None:
    """Refuse rows, at these places of a batch, with NaN, +inf, or nothing above -inf."""
    invalid = ~(x < math.inf)
    if invalid.any():
        row, token = np.argwhere(invalid)[0]
        found = InvalidLogit(int(row), int(token), float(x[row, token]))
        raise found.error("logits", row_name(places[row], shape))
    empty = x.max(axis=1) == -math.inf
    if empty.any():
        row = int(np.argmax(empty))
        raise InvalidLogit(row, -1, -math.inf).error("logits", row_name(places[row], shape))
