"""The cross-entropy of a softmax with a temperature, and its gradient.

docs/softmax.md has the mathematics.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import _inputs
from sampler._checks import (
    Reduction,
    as_array,
    check_choice,
    check_ids,
    check_integer,
    reals,
)
from sampler._keywords import helps
from sampler.softmax import check_positive, log_softmax, read_classes, softmax, to_container

__all__ = ["cross_entropy", "cross_entropy_grad"]


@helps
def cross_entropy(
    logits: Any,
    targets: Any,
    *,
    temperature: float | None = 1.0,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Any:
    """Return -sum(y * log_softmax(logits / temperature)), the loss of classifiers.

    Parameters
    ----------
    logits : array_like, shape (..., K)
        float16, bfloat16, float32 or float64; integers, bools and lists become float64.
    targets : array_like
        Integers in [0, K) of shape (...), the right classes, or bools, the classes 0 and 1; or
        floats of the shape of the logits, probabilities that sum to 1 along the last axis.
    temperature : float, in (0, inf], off at 1 or None
    label_smoothing : float, in [0, 1], off at 0
        The share of every target that is spread evenly over the K classes (Szegedy et al. 2016).
    reduction : {"mean", "sum", "none"}
        Over the rows that count; "none" returns the loss of each row.
    ignore_index : int
        A row with this class as its target does not count: its loss is 0. It may lie outside
        [0, K); with targets of floats it has to be negative, and has no effect.

    Returns
    -------
    array, tensor or scalar
        In nats, of shape () or (...). float64 for float64, else float32; a tensor for a tensor.
        inf where a target has a logit of -inf; what has target 0 never counts. If no row counts,
        the mean is NaN and the sum 0.

    Raises
    ------
    TypeError
        If `logits` or `targets` are not such arrays, or a parameter has the wrong type; if a tensor
        requires grad, unless grad is disabled: use `sampler.torch.cross_entropy`, whose classes
        are along dimension 1, with ``dim=-1``.
    ValueError
        If a parameter is out of its range, shapes do not fit, targets are outside or do not sum to
        1 within 1e-3, or there is no class.

    See Also
    --------
    cross_entropy_grad : its gradient.
    sampler.torch.cross_entropy : with gradients.

    Examples
    --------
    >>> from sampler import cross_entropy, cross_entropy_grad
    >>> cross_entropy([[2.0, 0.0], [0.0, 0.0]], [0, 1], reduction="none").round(3)
    array([0.127, 0.693])
    >>> cross_entropy_grad([[2.0, 0.0], [0.0, 0.0]], [0, 1], reduction="none").round(3)
    array([[-0.119,  0.119],
           [ 0.5  , -0.5  ]])
    >>> cross_entropy([[2.0, 0.0], [0.0, 0.0]], [0, -100]).round(3)
    np.float64(0.127)
    """
    source, t, y, counts = _check_loss(
        logits, targets, temperature, label_smoothing, reduction, ignore_index
    )
    log_p = log_softmax(source.widened(), temperature=t).astype(np.float64)
    with np.errstate(invalid="ignore"):  # 0 * -inf
        losses = np.sum(np.where(y == 0.0, 0.0, -y * log_p), axis=-1)
    return to_container(reduced(losses, reduction, np.sum(counts)), source)


@helps
def cross_entropy_grad(
    logits: Any,
    targets: Any,
    *,
    temperature: float | None = 1.0,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
) -> Any:
    """Return the gradient of `cross_entropy` with respect to the logits: (p - y) / temperature.

    Parameters and errors are those of `cross_entropy`; "mean" divides by the number of rows that
    count, and "none" gives for each row the gradient of its own loss.

    Returns
    -------
    array or tensor, of the shape of `logits`
        float64 for float64, else float32; a tensor for a tensor. Rows sum to 0; those that do not
        count are 0.

    See Also
    --------
    cross_entropy : the loss.
    """
    source, t, y, counts = _check_loss(
        logits, targets, temperature, label_smoothing, reduction, ignore_index
    )
    with np.errstate(over="ignore", invalid="ignore"):
        result = (softmax(source.widened(), temperature=t).astype(np.float64) - y) / t
    result = np.where(counts[..., None], result, 0.0)
    return to_container(result / (max(np.sum(counts), 1) if reduction == "mean" else 1), source)


def reduced(losses: npt.NDArray[np.float64], reduction: Reduction, count: Any) -> Any:
    """The losses of rows, `count` of which count, or their sum or mean; the mean of none is NaN."""
    if reduction == "none":
        return losses
    with np.errstate(invalid="ignore"):
        return losses.sum() / count if reduction == "mean" else losses.sum()


def _check_loss(
    logits: Any,
    targets: Any,
    temperature: Any,
    label_smoothing: Any,
    reduction: Any,
    ignore_index: Any,
) -> tuple[_inputs.Logits, Any, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The logits, the temperature, the targets as smoothed probabilities, and which rows count."""
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    share = reals(0.0, 1.0).check("label_smoothing", label_smoothing)
    if np.ndim(temperature):
        raise TypeError(f"`temperature` has to be a float in (0, inf], but is {temperature!r}")
    t = check_positive(temperature, ())
    source = read_classes(logits, "logits")
    shape = source.array.shape
    if shape[-1] == 0:
        raise ValueError(f"`logits` have to hold at least one class, but have {shape=}")
    y, counts = _check_targets(targets, shape, ignore_index)
    if share:
        y = np.where(counts[..., None], (1.0 - share) * y + share / shape[-1], 0.0)
    return source, t, y, counts


def _check_targets(
    targets: Any, shape: tuple[int, ...], ignore_index: Any
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    classes = shape[-1]
    array = as_array("targets", targets)
    if array.size == 0 and array.shape == shape[:-1]:
        array = array.astype(np.int64)  # of no rows, [] too
    if array.dtype.kind == "b":
        array = array.astype(np.int64)
    are_ids = array.dtype.kind in "iu"
    check_ignore_index(ignore_index, are_ids)
    y = array if are_ids else _inputs.read(targets, name="targets").widened().astype(np.float64)
    if y.shape != (shape[:-1] if are_ids else shape):
        raise ValueError(
            f"`targets` have to be integers of shape {shape[:-1]} or floats of shape {shape}, but "
            f"are {array.dtype} of shape {y.shape}"
        )
    if are_ids:
        counts = y != ignore_index
        ids = check_ids(
            "targets", np.where(counts, y, 0), classes, f"integers in [0, {classes})",
            may_be_padded=True,
        )  # fmt: skip
        y = np.zeros(shape)
        np.put_along_axis(y, ids[..., None], counts[..., None], axis=-1)
        return y, counts
    if not (y >= 0.0).all() or not (np.abs(y.sum(axis=-1) - 1.0) <= 1e-3).all():
        raise ValueError("`targets` have to be probabilities: at least 0, and 1 in sum")
    return y, np.ones(shape[:-1], np.bool_)


def check_ignore_index(value: Any, are_ids: bool) -> int:
    """An integer; negative for targets that are probabilities, where it has no effect."""
    index = check_integer("ignore_index", value, -(2**63), 2**63, "an integer in [-2**63, 2**63)")
    if index >= 0 and not are_ids:
        raise ValueError(
            f"`ignore_index` has to be negative for targets of floats, but is {index}: such "
            "targets have no class to ignore"
        )
    return index
