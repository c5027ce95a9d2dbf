"""Rows with the right class of each: which of them count, and their labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import _inputs
from sampler._checks import as_array, check_ids
from sampler._cross_entropy import check_ignore_index
from sampler.temperature._rows import Array


def labelled_rows(
    source: _inputs.Logits, name: str, labels: Any, ignore_index: Any
) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows that count, 2-D, their labels, and their places among all rows."""
    array = source.array
    if not array.ndim or not array.size:
        raise ValueError(
            f"`{name}` have to hold at least one row and one class, but have shape {array.shape}"
        )
    index = check_ignore_index(ignore_index, True)
    if array.ndim == 1 and as_array("labels", labels).shape == array.shape:
        columns, remedy = {
            "logits": (1, "logits[:, None]"),
            "probs": (2, "np.stack([1 - probs, probs], axis=1)"),
        }[name]
        raise ValueError(
            f"`{name}` of a binary classifier have to be of shape {(*array.shape, columns)}, but "
            f"have shape {array.shape}: pass {remedy}"
        )
    # One column alone is the logits of a binary classifier.
    classes = max(array.shape[-1], 2 if name == "logits" else 1)
    ids, places = _check_labels(labels, array.shape[:-1], classes, index)
    if not len(places):
        raise ValueError(f"every label is {index}, the `ignore_index`, so no row counts")
    rows = array.reshape(-1, array.shape[-1])
    return rows[places] if len(places) < len(rows) else rows, ids, places


def _check_labels(
    labels: Any, batch: tuple[int, ...], classes: int, ignore_index: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The labels that count, and their rows."""
    wanted = f"integers in [0, {classes}), of shape {batch}"
    array = as_array("labels", labels)
    if array.dtype.kind == "b":
        labels = array = array.astype(np.int64)
    counts = np.asarray(array != ignore_index)
    if not counts.all():
        labels = np.where(counts, array, 0)
    ids = check_ids("labels", labels, classes, wanted, may_be_padded=True)
    if ids.shape != batch:
        raise ValueError(f"`labels` have to be {wanted}, but have shape {ids.shape}")
    return ids[counts].reshape(-1), np.flatnonzero(counts)
