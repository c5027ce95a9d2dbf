"""How spread out a softmax is: entropy and perplexity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sampler import _tensors
from sampler.softmax import AnyAxis
from sampler.stages import Temperature
from sampler.temperature._limits import NEAR_OVERFLOW, NO_WEIGHT, SMALLEST
from sampler.temperature._rows import Floats, chunks, one_per_row, read_rows, to_float64


def entropy(
    logits: Any, *, temperature: Any = 1.0, axis: AnyAxis = -1, keepdims: bool = False
) -> Any:
    """Return the Shannon entropy of softmax(logits / temperature), in nats.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64, of any shape; integers, bools and lists become
        float64. -inf counts for nothing.
    temperature : float or array_like of floats, in [0, inf], off at 1 or None
        One for all, or one per row: an array that broadcasts to the shape of `logits` without
        `axis`. 0 and inf are the limits, log(number of tokens with the largest logit) and
        log(number of logits above -inf).
    axis : int, tuple of int, or None
        The axis that holds a row, the axes that do together, or all.
    keepdims : bool
        Whether the result keeps the axis, of length 1.

    Returns
    -------
    array, tensor or scalar
        float64 in [0, log(vocab)], of the shape of `logits` less the axis; a tensor for a tensor.
        NaN for a row with NaN or +inf, or of -inf throughout.

    Raises
    ------
    TypeError
        If `logits` are not an array of numbers, or a parameter has the wrong type; if a
        tensor requires grad, unless grad is disabled: use `sampler.torch.entropy`.
    ValueError
        If a parameter is out of its range, or a row holds nothing.

    See Also
    --------
    perplexity : its exponential.
    sampler.torch.entropy : with gradients.

    Notes
    -----
    With w = (logits - max) / temperature and Z = sum(exp(w)), it is log(Z) - sum(w exp(w)) / Z, in
    which nothing cancels: within about 1e-13, relative, however small.

    References
    ----------
    Shannon, *A Mathematical Theory of Communication*, 1948.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import entropy
    >>> logits = np.array([1.0, 3.0, 2.0, -np.inf])
    >>> entropy(logits).round(3)
    np.float64(0.832)
    >>> entropy(np.stack([logits] * 3), temperature=[0.0, 0.5, np.inf]).round(3)
    array([0.   , 0.441, 1.099])
    """
    source, rows, shape, kept = read_rows(logits, axis, keepdims)
    temperatures = one_per_row(
        "temperature", 1.0 if temperature is None else temperature, shape,
        Temperature.range.low, str(Temperature.range),
    )  # fmt: skip
    result = np.empty(len(rows))
    for chunk in chunks(*rows.shape):
        gaps, ties, finite, scale = gaps_to_top(to_float64(rows[chunk], source.kind))
        t = temperatures[chunk]
        # The limits are put in afterwards: 1 is any temperature that can be divided by.
        scaled = np.maximum(t * scale, SMALLEST)
        excess, _ = excess_entropy(gaps, ties, np.where((t > 0) & (t < math.inf), scaled, 1.0))
        excess = np.where(t == 0, 0.0, excess)
        result[chunk] = np.where(t < math.inf, np.log(ties) + excess, np.log(finite))
    return source.to_container(result.reshape(kept))


def perplexity(
    logits: Any, *, temperature: Any = 1.0, axis: AnyAxis = -1, keepdims: bool = False
) -> Any:
    """Return exp(`entropy`): the number of equally likely tokens that would be as uncertain.

    Parameters and errors are those of `entropy`.

    Returns
    -------
    array, tensor or scalar
        float64 in [1, vocab], of the shape of `logits` less the axis; a tensor for a tensor. NaN
        where `entropy` is.

    See Also
    --------
    entropy : its logarithm.

    Examples
    --------
    >>> from sampler.temperature import perplexity
    >>> perplexity([5.0, 5.0, 5.0, 5.0]).round(6)
    np.float64(4.0)
    """
    value = entropy(logits, temperature=temperature, axis=axis, keepdims=keepdims)
    return _tensors.exp(value)


def gaps_to_top(x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Distances from the largest logit (<= 0), how many are largest, and how many are finite.

    Rows that are not valid get NaN throughout. The distances of a row are multiplied by the last
    of the results: 1, or 1/2 where they might overflow.
    """
    top = x.max(axis=1, keepdims=True)
    finite = np.sum(x > -math.inf, axis=1).astype(np.float64)
    scale = np.where(top >= NEAR_OVERFLOW, 0.5, 1.0)
    with np.errstate(invalid="ignore", over="ignore"):
        gaps = x * scale - top * scale
    valid = np.isfinite(top[:, 0])
    ties = np.where(valid, np.sum(x == top, axis=1), math.nan)
    return gaps, ties, np.where(valid, finite, math.nan), scale[:, 0]


def excess_entropy(gaps: Floats, ties: Floats, temperatures: Floats) -> tuple[Floats, Floats]:
    """The entropy less log(ties), without cancellation, and the variance of gaps / T."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        w = gaps / temperatures[:, None]
        np.maximum(w, NO_WEIGHT, out=w)
        e = np.exp(w)
        # All but the largest, so that a small rest is not rounded away against them.
        e[gaps == 0] = 0.0
        rest = e.sum(axis=1)
        total = ties + rest
        e *= w
        mean = e.sum(axis=1) / total
        e *= w
        return np.log1p(rest / ties) - mean, e.sum(axis=1) / total - mean * mean
