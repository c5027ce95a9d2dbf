"""What people use the softmax's temperature for.

- `entropy` and `perplexity`: how spread out softmax(logits / temperature) is.
- `temperature_for_entropy` and `temperature_for_perplexity`: the temperature that spreads it so.
- `fit_temperature`: the temperature that calibrates a classifier, with `reliability` and
  `expected_calibration_error` to see whether it did.
- `distillation_loss` and `distillation_loss_grad`: a small model learns the softened probabilities
  of a large one.

NumPy is all they need; only `Reliability.plot` needs matplotlib.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sampler import _inputs
from sampler._checks import (
    array_of,
    check_axes,
    check_choice,
    check_ids,
    check_integer,
    check_real,
    check_reals,
)
from sampler.softmax import (
    AnyAxis,
    check_ignore_index,
    kept_shape,
    log_softmax,
    reduced,
    rows_along,
    without,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Reliability",
    "distillation_loss",
    "distillation_loss_grad",
    "entropy",
    "expected_calibration_error",
    "fit_temperature",
    "perplexity",
    "reliability",
    "temperature_for_entropy",
    "temperature_for_perplexity",
]

_Array = npt.NDArray[Any]
_Floats = npt.NDArray[np.float64]

_CHUNK = 2**16  # logits worked on at once: a few arrays of so many stay in a core's cache
_EPS, SMALLEST, LARGEST = 2.0**-52, 5e-324, float(np.finfo(np.float64).max)
# exp of it is 0 in float32 and float64. It stands in for -inf, with which 0 * -inf would be NaN.
NO_WEIGHT = -1000.0
# Newton's last step leaves an error of about its square, relative to the temperature: 1e-8, less
# than float32's sums are good for, and 1e-14.
_LAST_STEP = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-7}
_SAMPLE = 16  # one row in so many tells where to start
NEAR_OVERFLOW = 2.0**969  # from here on the difference of two doubles may overflow
CLOSE = 0.25  # |log(q / p)| below which a series is more accurate than a difference


# ------------------------------------------------------------------------ entropy and perplexity


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
        If `logits` are no array of numbers on the CPU, or a parameter has the wrong type; if a
        tensor requires grad, unless grad is disabled: use `sampler.torch.entropy`.
    ValueError
        If a parameter is out of its range, or a row holds nothing.

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
    source, rows, shape, kept = _rows_along(logits, axis, keepdims)
    temperatures = _one_a_row(
        "temperature", 1.0 if temperature is None else temperature, shape,
        0.0, "a float in [0, inf]",
    )  # fmt: skip
    result = np.empty(len(rows))
    for chunk in _chunks(*rows.shape):
        gaps, ties, finite, scale = _gaps(_doubles(rows[chunk], source.kind))
        t = temperatures[chunk]
        # The limits are put in afterwards: 1 is any temperature that can be divided by.
        scaled = np.maximum(t * scale, SMALLEST)
        excess, _ = _excess(gaps, ties, np.where((t > 0) & (t < math.inf), scaled, 1.0))
        excess = np.where(t == 0, 0.0, excess)
        result[chunk] = np.where(t < math.inf, np.log(ties) + excess, np.log(finite))
    return source.give(result.reshape(kept))


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

    Examples
    --------
    >>> from sampler.temperature import perplexity
    >>> perplexity([5.0, 5.0, 5.0, 5.0]).round(6)
    np.float64(4.0)
    """
    value = entropy(logits, temperature=temperature, axis=axis, keepdims=keepdims)
    return value.exp() if hasattr(value, "exp") else np.exp(value)


def temperature_for_entropy(logits: Any, entropy: Any) -> Any:
    """Return the temperature at which softmax(logits / temperature) has the entropy, row by row.

    Parameters
    ----------
    logits : array_like of shape (..., vocab)
        Finite or -inf; dtypes and containers are those of the function `entropy`.
    entropy : float or array_like of shape (...)
        In nats, one for all rows or one a row. A row reaches from log(number of tokens with the
        largest logit) to log(number of logits above -inf).

    Returns
    -------
    array, tensor or scalar
        float64 of shape (...); a tensor for a tensor. 0 and inf at the two ends, and where
        no float64 is small or large enough. 1 for a row of equal logits, which has its one entropy
        at every temperature.

    Raises
    ------
    TypeError
        If `logits` are no array of numbers on the CPU, or `entropy` has the wrong type; if either
        requires grad.
    ValueError
        If a row has NaN or +inf or holds nothing above -inf, or cannot reach its entropy; the row
        is named, and what it reaches.

    Notes
    -----
    With p = softmax(logits / T) and b = 1 / T, the entropy is log(Z) - b E[x], and d log(Z) / db is
    E[x]. So its derivative with respect to b is -b Var[x], and with respect to T it is
    Var[x] / T**3: positive, unless all logits are equal, and there is one answer. Newton's method
    finds it, on the logarithm of the entropy as a function of b, inside a bracket that is halved
    where Newton would leave it. The entropy at the temperature found is within about 1e-13,
    relative, of the one asked for.

    Near the upper end the entropy hardly depends on the temperature: near log(n) (1 - 1e-16), even
    temperatures apart by a factor of 2 have the same in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import entropy, temperature_for_entropy
    >>> logits = np.array([1.0, 3.0, 2.0, 0.0])
    >>> t = temperature_for_entropy(logits, 1.2)
    >>> t.round(4), entropy(logits, temperature=t).round(9)
    (np.float64(1.7117), np.float64(1.2))
    >>> temperature_for_entropy(logits, 2.0)
    Traceback (most recent call last):
    ...
    ValueError: `entropy` has to be in [0, 1.38629], all that row 0 can reach, but is 2.0
    """
    return _temperature_for(logits, "entropy", entropy, lambda h: h, np.log)


def temperature_for_perplexity(logits: Any, perplexity: Any) -> Any:
    """Return the temperature at which softmax(logits / temperature) has the perplexity.

    Parameters
    ----------
    logits : array_like of shape (..., vocab)
        As `temperature_for_entropy` takes them.
    perplexity : float or array_like of shape (...)
        One for all rows or one a row. A row reaches from the number of tokens with the largest
        logit to the number of logits above -inf.

    Returns
    -------
    array, tensor or scalar
        As of `temperature_for_entropy`, whose errors these are too.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import temperature_for_perplexity
    >>> logits = np.array([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 5.0, -np.inf]])
    >>> temperature_for_perplexity(logits, [2.0, 3.0]).round(4)
    array([0.6916, 1.    ])
    """
    return _temperature_for(logits, "perplexity", perplexity, np.log, lambda count: count)


def _temperature_for(
    logits: Any,
    name: str,
    value: Any,
    to_entropy: Callable[[_Floats], _Floats],
    limit: Callable[[_Array], _Floats],
) -> Any:
    source, rows, shape, _ = _rows_along(logits, -1)
    lowest = 1.0 if name == "perplexity" else 0.0
    values = _one_a_row(name, value, shape, lowest, f"a float >= {lowest:g}")
    wanted = to_entropy(values)
    result = np.empty(len(rows))
    for chunk in _chunks(*rows.shape):
        x = _doubles(rows[chunk], source.kind)
        _refuse_invalid(x, range(chunk.start, chunk.stop), shape)
        gaps, ties, finite, scale = _gaps(x)
        h, low, high = wanted[chunk], np.log(ties), np.log(finite)
        slack = 4 * _EPS  # of what log(n) may be in the caller's arithmetic
        outside = ~((h >= low * (1 - slack)) & (h <= high * (1 + slack)))
        if outside.any():
            i = int(np.argmax(outside))
            ends = f"{limit(ties)[i]:.6g}, {limit(finite)[i]:.6g}"
            raise ValueError(
                f"`{name}` has to be in [{ends}], all that row "
                f"{_row_name(chunk.start + i, shape)} can reach, but is {values[chunk][i]}"
            )
        at_low, at_high = h <= low * (1 + slack), h >= high * (1 - slack)
        t = np.where(at_low, 0.0, math.inf)
        t[at_low & at_high] = 1.0
        inner = np.flatnonzero(~(at_low | at_high))
        t[inner] = _solve(gaps[inner], ties[inner], finite[inner], h[inner])
        result[chunk] = t / scale
    return source.give(result.reshape(shape))


def _solve(gaps: _Floats, ties: _Floats, finite: _Floats, wanted: _Floats) -> _Floats:
    """Temperatures of rows that reach their entropies between the two ends."""
    # Above log(ties), so that the logarithm below has a root to be steep at.
    excess_wanted = wanted - np.log(ties)
    low, high = np.zeros(len(gaps)), np.full(len(gaps), math.inf)
    # The mean distance from the largest logit, computed so that it cannot overflow.
    distance = np.sum(-np.where(gaps > -math.inf, gaps, 0.0) / finite[:, None], axis=1)
    t: _Floats = np.clip(0.25 * distance, 1e-300, 1e300)
    reach = np.full(len(gaps), 4.0)  # logarithm of the largest step
    active = np.arange(len(gaps))
    for _ in range(200):
        if not len(active):
            break
        now, aim = t[active], excess_wanted[active]
        excess, variance = _excess(gaps[active], ties[active], now)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            misfit = np.log(excess / aim)
            # Newton's step on log(excess) against 1 / T, as a factor.
            step = -np.log1p(misfit * excess / variance)
        below = excess < aim
        low[active] = np.where(below, now, low[active])
        high[active] = np.where(below, high[active], now)
        done = (np.abs(excess - aim) <= 2 * _EPS * wanted[active]) | (np.abs(step) <= 4 * _EPS)
        lowest, highest = low[active], high[active]
        bounded = (lowest > 0) & (highest < math.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            newton = now * np.exp(step)
            good = (newton > lowest) & (newton < highest) & (np.abs(step) <= reach[active])
            halved = np.sqrt(lowest) * np.sqrt(highest)
            far = now * np.exp(np.where(below, 1, -1) * reach[active])
        blind = ~good & ~bounded
        # Twice as far the next time: any double is reached in a dozen steps.
        reach[active] = np.where(blind, np.minimum(2 * reach[active], 300.0), reach[active])
        far = np.clip(far, SMALLEST, LARGEST)
        # Past the last double on either side.
        over, under = below & (now == LARGEST), ~below & (now == SMALLEST)
        t[active] = np.where(done, now, np.where(good, newton, np.where(bounded, halved, far)))
        t[active[over]], t[active[under]] = math.inf, 0.0
        done |= over | under
        done |= bounded & (lowest >= highest * (1 - 2 * _EPS))
        active = active[~done]
    return t


def _gaps(x: _Floats) -> tuple[_Floats, _Floats, _Floats, _Floats]:
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


def _excess(gaps: _Floats, ties: _Floats, temperatures: _Floats) -> tuple[_Floats, _Floats]:
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


# --------------------------------------------------------------------------------- calibration


def fit_temperature(logits: Any, labels: Any, *, ignore_index: int = -100) -> float:
    """Return the temperature under which the labels are most likely.

    It minimises the mean negative log-likelihood of `labels` under softmax(logits / temperature),
    over data that the classifier was not trained on. Dividing by it leaves the order of the classes
    as it is, so the accuracy too; above 1 it means that the classifier was overconfident.

    Parameters
    ----------
    logits : array_like of shape (..., vocab)
        One row for each example, finite or -inf; float16, bfloat16, float32 or float64; integers
        become float64. -inf rules a class out. Of shape (..., 1), they are those of class 1 of a
        binary classifier, whose class 0 has logit 0.
    labels : array_like of shape (...), integers in [0, vocab)
        The right classes. bools are the classes 0 and 1.
    ignore_index : int
        A row with this label does not count, whatever it holds. It may lie outside [0, vocab).

    Returns
    -------
    float
        In [0, inf]. 0 if every label has the largest logit of its row, or ties for it: the
        likelihood then only grows as the temperature falls. inf if the labels are no more likely
        than under equal logits. 1 if all logits of each row are equal: any temperature is as good.

    Raises
    ------
    TypeError
        If `logits` are no array of numbers on the CPU or require grad, or `labels` are no integers.
    ValueError
        If the shapes do not fit, no row counts, a label is out of range or has the logit -inf, or a
        row has NaN or +inf or holds nothing above -inf. The row is named.

    Warns
    -----
    UserWarning
        If all rows are in [0, 1] and sum to 1, within 1e-3, or all logits of a binary classifier
        are in [0, 1]: they are taken as logits, but look like probabilities, whose logits are
        ``np.log(p)``, or ``np.log(p / (1 - p))`` of a binary classifier.

    Notes
    -----
    In b = 1 / temperature the loss is convex: its derivative is the mean of E[x] - x[label], its
    second derivative the mean variance of x, both under softmax(b x). Newton's method with a
    bracket needs two or three passes over the rows, from where one row in sixteen leads it.
    float64 is worked on in float64, to about 1e-13 relative; the others in float32, to about 1e-6:
    far less than the labels leave open.

    References
    ----------
    Guo, Pleiss, Sun & Weinberger, *On Calibration of Modern Neural Networks*, 2017,
    arXiv:1706.04599.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import fit_temperature
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> round(fit_temperature(logits, [0, 0, 1, 1]), 4)  # 4 / log(3): one in four is wrong
    3.641
    """
    source = _inputs.read(logits, numbers=True)
    shape = source.array.shape
    array, classes, rows = _labelled_rows(source, "logits", labels, ignore_index)
    batch, vocab = shape[:-1], shape[-1]
    source = source._replace(array=array)
    is_in_unit = False
    if vocab == 1:
        z = source.widened()
        is_in_unit = bool(np.all((z >= 0) & (z <= 1)))
        source = _inputs.read(np.concatenate([np.zeros_like(z), z], axis=1))
    scale = 1.0
    if source.kind == "float64":
        finite = source.array[np.isfinite(source.array)]
        if np.max(np.abs(finite), initial=0.0) >= NEAR_OVERFLOW:
            source, scale = source._replace(array=source.array * 2.0**-60), 2.0**60
    data = _Calibration(source, classes, rows, batch)
    if data.are_probabilities and vocab > 1:
        warnings.warn(
            "`logits` are in [0, 1] and sum to 1 in each row, like probabilities: pass their "
            "logarithms, np.log(p)",
            stacklevel=2,
        )
    if is_in_unit:
        warnings.warn(
            "`logits` are all in [0, 1], like probabilities of a binary classifier: pass their "
            "logits, np.log(p / (1 - p))",
            stacklevel=2,
        )
    if not data.margin.any():
        return 0.0 if data.mean_gap() > 0 else 1.0

    start = 1.0
    if len(classes) >= 64 * _SAMPLE:
        # Some rows of all parts, of which it matters only that they are a fair guess.
        guess = data.every(_SAMPLE).solve(start)
        start = guess if 0 < guess < math.inf else start
    return scale / beta if (beta := data.solve(start)) else math.inf


class _Calibration:
    """Rows and their labels, and the derivatives of their mean negative log-likelihood."""

    def __init__(
        self,
        source: _inputs.Logits,
        labels: npt.NDArray[np.int64],
        places: npt.NDArray[np.int64],
        shape: tuple[int, ...],
    ):
        # Row i is row `places[i]` of the caller's batch, which has this shape.
        self.source, self.labels = source, labels
        batch = len(labels)
        self.top, self.margin = np.empty((batch, 1)), np.empty(batch)
        self.extreme = 0.0  # the largest magnitude
        self.are_probabilities = True
        for chunk in _chunks(*self.source.array.shape):
            x = self._read(chunk)
            top, low = x.max(axis=1), x.min(axis=1)
            if not np.all(np.isfinite(top)):
                _refuse_invalid(x, places[chunk], shape)
            own = x[np.arange(len(x)), labels[chunk]].astype(np.float64)
            impossible = own == -math.inf
            if impossible.any():
                i = int(np.argmax(impossible))
                raise ValueError(
                    f"`logits` have to be finite at the labels, but row "
                    f"{_row_name(places[chunk][i], shape)} has -inf at its label "
                    f"{labels[chunk][i]}"
                )
            if self.are_probabilities:
                off = np.abs(x.sum(axis=1, dtype=np.float64) - 1.0) > 1e-3
                self.are_probabilities = not (low.min() < 0 or top.max() > 1 or off.any())
            self.top[chunk, 0] = top
            self.margin[chunk] = self.top[chunk, 0] - own
            self.extreme = max(self.extreme, float(top.max()), -float(low.min()))

    def _read(self, chunk: slice) -> _Array:
        return self.source._replace(array=self.source.array[chunk]).widened()

    def every(self, count: int) -> _Calibration:
        """One row in `count`."""
        part = object.__new__(_Calibration)
        part.source = self.source._replace(array=self.source.array[::count])
        part.extreme, part.labels = self.extreme, self.labels[::count]
        part.top, part.margin = self.top[::count], self.margin[::count]
        return part

    def mean_gap(self) -> float:
        """The mean of max - x over the finite logits of a row, and over the rows."""
        total = 0.0
        for chunk in _chunks(*self.source.array.shape):
            x = self._read(chunk).astype(np.float64)
            finite = x > -math.inf
            count = finite.sum(axis=1, keepdims=True)
            # Divided before they are added: logits may be as large as they like.
            gaps = np.subtract(self.top[chunk], x, out=np.zeros_like(x), where=finite)
            total += float(np.sum(gaps / count) / len(self.labels))
        return total

    def solve(self, beta: float) -> float:
        """The b = 1 / temperature of the least loss, from a guess on; 0 and inf are the limits."""
        margin = float(np.mean(self.margin))
        if margin == 0:
            return math.inf
        low, high, reach = 0.0, math.inf, 4.0
        zero_is_below = False
        for _ in range(200):
            mean, variance, dtype = self._moments(beta)
            slope = beta * margin + mean  # b times the first derivative
            if slope < 0:
                low, zero_is_below = beta, True
            else:
                high = beta
            step = -slope / variance if variance > 0 else math.copysign(math.inf, -slope)
            if abs(step) <= _LAST_STEP[dtype]:
                return beta * (1 + step)
            if step <= -1 and not zero_is_below:
                # Only now is it worth a pass to know whether there is a least loss above 0.
                if margin >= self.mean_gap():
                    return 0.0
                zero_is_below = True
            newton = beta * (1 + step)
            if low < newton < high and math.exp(-reach) <= 1 + step <= math.exp(reach):
                beta = newton
            elif low > 0 and high < math.inf:
                beta = math.sqrt(low) * math.sqrt(high)
            else:
                # Not out of what a double holds.
                beta = min(max(beta * math.exp(math.copysign(reach, step)), 1e-307), 1e307)
                reach = min(2 * reach, 300.0)
            if not low < beta < high:
                break
        return beta

    def _moments(self, beta: float) -> tuple[float, float, np.dtype[Any]]:
        """The means over rows of the mean and the variance of b (x - max) under its softmax."""
        narrow = self.source.kind != "float64" and 1e-30 < beta < 1e30 and self.extreme < 1e38
        dtype = np.dtype(np.float32 if narrow else np.float64)
        batch, vocab = self.source.array.shape
        first, second = np.empty(batch), np.empty(batch)
        rows = min(batch, max(1, _CHUNK // vocab))
        buffers = np.empty((2, rows, vocab), dtype)
        ones = np.ones(vocab, dtype)
        top = self.top.astype(dtype, copy=False)
        factor = dtype.type(beta)
        # Whether exponents may be too low to be multiplied by their weight, which is 0.
        far = beta * self.extreme > 1e30
        with np.errstate(over="ignore", under="ignore"):
            for chunk in _chunks(batch, vocab):
                w, e = buffers[:, : min(rows, batch - chunk.start)]
                np.subtract(self._read(chunk), top[chunk], out=w)
                w *= factor
                if far:
                    np.maximum(w, dtype.type(NO_WEIGHT), out=w)
                np.exp(w, out=e)
                total = (e @ ones).astype(np.float64)
                e *= w
                first[chunk] = (e @ ones) / total
                second[chunk] = np.einsum("ij,ij->i", e, w) / total
        return float(np.mean(first)), float(np.mean(second - first * first)), dtype


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often a classifier is right, by how sure it is.

    Attributes
    ----------
    edges : ndarray of shape (bins + 1,), float64
        The bins, of equal width over [0, 1]. A confidence on an edge belongs to the lower one.
    confidence : ndarray of shape (bins,), float64
        The mean probability of the likeliest class in each bin; NaN in an empty one.
    accuracy : ndarray of shape (bins,), float64
        The share of examples whose likeliest class is right; NaN in an empty bin.
    count : ndarray of shape (bins,), int64
        How many examples there are.
    """

    edges: _Floats
    confidence: _Floats
    accuracy: _Floats
    count: npt.NDArray[np.int64]

    @property
    def error(self) -> float:
        """The expected calibration error, in [0, 1]."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.sum(self.count[filled] * gaps) / self.count.sum())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the reliability diagram: the accuracy of each bin, and what it is off by.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to; without one, a new figure of matplotlib.pyplot.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        try:
            from matplotlib import pyplot as plt
        except ImportError as error:
            raise ImportError(
                "Reliability.plot needs matplotlib: pip install 'token-sampler[temperature]'."
            ) from error
        if ax is None:
            _, ax = plt.subplots()
        filled = self.count > 0
        left, width = self.edges[:-1][filled], np.diff(self.edges)[filled]
        accuracy, confidence = self.accuracy[filled], self.confidence[filled]
        ax.bar(
            left, accuracy, width, align="edge", color="#56B4E9", edgecolor="white", lw=0.8,
            label="accuracy",
        )  # fmt: skip
        ax.bar(
            left, confidence - accuracy, width, accuracy, align="edge", facecolor="none",
            edgecolor="#D55E00", hatch="////", label="gap to the mean confidence",
        )  # fmt: skip
        ax.plot([0, 1], [0, 1], color="black", lw=0.8, ls="--", label="calibrated")
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
        ax.legend(loc="upper left", frameon=False)
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        note = f"ECE {self.error:.3f}"
        ax.text(0.96, 0.05, note, transform=ax.transAxes, ha="right", bbox=box)
        return ax


def reliability(
    probs: Any, labels: Any, *, bins: int = 15, ignore_index: int = -100
) -> Reliability:
    """Return how often the likeliest class is right, in bins of its probability.

    Parameters
    ----------
    probs : array_like of shape (..., vocab)
        Probabilities: each in [0, 1], each row summing to 1 within 1e-3; dtypes and containers are
        those of logits.
    labels : array_like of shape (...), integers in [0, vocab)
        The right classes. bools are the classes 0 and 1.
    bins : int, at least 1
        How many bins of equal width [0, 1] is cut into.
    ignore_index : int
        A row with this label does not count, whatever it holds. It may lie outside [0, vocab).

    Returns
    -------
    Reliability
        Among equal probabilities the first class is taken as the likeliest.

    Raises
    ------
    TypeError
        If `probs` are no array of numbers on the CPU or require grad, `labels` no integers, or
        `bins` or `ignore_index` none.
    ValueError
        If the shapes do not fit, no row counts, a row is no distribution or a label out of range
        (the row is named), or `bins` is less than 1.

    References
    ----------
    Niculescu-Mizil & Caruana, *Predicting Good Probabilities with Supervised Learning*, 2005.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import reliability
    >>> probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    >>> r = reliability(probs, [0, 1, 1, 1], bins=4)
    >>> r.count, r.accuracy
    (array([0, 0, 2, 2]), array([nan, nan, 1. , 0.5]))
    >>> round(r.error, 4)
    0.375
    """
    bins = check_integer("bins", bins, 1, None, "an integer >= 1")
    source = _inputs.read(probs, name="probs", numbers=True)
    array, classes, rows = _labelled_rows(source, "probs", labels, ignore_index)
    batch = source.array.shape[:-1]
    confidences, right = np.empty(len(classes)), np.empty(len(classes))
    for chunk in _chunks(*array.shape):
        p = _doubles(array[chunk], source.kind)
        outside = ~((p >= 0) & (p <= 1))
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise ValueError(
                f"`probs` have to be in [0, 1], but row {_row_name(rows[chunk][row], batch)} has "
                f"{p[row, column]} at class {column}"
            )
        sums = p.sum(axis=1)
        off = ~(np.abs(sums - 1) <= 1e-3)
        if off.any():
            row = int(np.argmax(off))
            raise ValueError(
                f"`probs` have to sum to 1 in each row, but row "
                f"{_row_name(rows[chunk][row], batch)} sums to {sums[row]:.6g}"
            )
        best = p.argmax(axis=1)
        confidences[chunk] = p[np.arange(len(p)), best]
        right[chunk] = best == classes[chunk]
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.maximum(np.searchsorted(edges, confidences, side="left") - 1, 0)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(place, confidences, bins) / count
        accuracy = np.bincount(place, right, bins) / count
    return Reliability(edges, confidence, accuracy, count)


def expected_calibration_error(
    probs: Any, labels: Any, *, bins: int = 15, ignore_index: int = -100
) -> float:
    """Return the mean distance between confidence and accuracy over bins of confidence.

    Parameters and errors are those of `reliability`.

    Returns
    -------
    float
        In [0, 1]: the sum over bins of (share of the examples) |accuracy - mean confidence|, of
        the likeliest class of each example.

    Notes
    -----
    It is a biased estimate, and depends on `bins`: with few examples a bin, chance alone keeps it
    above 0. Compare values only under the same bins and the same number of examples.

    References
    ----------
    Naeini, Cooper & Hauskrecht, *Obtaining Well Calibrated Probabilities Using Bayesian Binning*,
    2015. Guo, Pleiss, Sun & Weinberger, *On Calibration of Modern Neural Networks*, 2017,
    arXiv:1706.04599.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import expected_calibration_error
    >>> probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    >>> round(expected_calibration_error(probs, [0, 1, 1, 1]), 4)
    0.375
    """
    return reliability(probs, labels, bins=bins, ignore_index=ignore_index).error


# -------------------------------------------------------------------------------- distillation


def distillation_loss(
    student: Any, teacher: Any, *, temperature: float = 1.0, reduction: str = "mean"
) -> Any:
    """Return temperature**2 KL(softmax(teacher / temperature) || softmax(student / temperature)).

    Parameters
    ----------
    student, teacher : array_like of shape (..., vocab)
        Logits of the same shape; dtypes and containers are those of `entropy`. -inf has no mass.
    temperature : float, in (0, inf)
        The higher, the more the teacher's small probabilities count. 1 compares the
        distributions as they are.
    reduction : {"mean", "sum", "none"}
        Over rows: "mean" is what torch's ``kl_div`` calls "batchmean", "none" leaves one per row.

    Returns
    -------
    array, tensor or scalar
        float64, at least 0; a tensor where `student` is one. inf where the student has -inf and
        the teacher has not. NaN for a row in which either has NaN or +inf, or nothing above -inf.
        The mean of no rows is NaN, their sum 0.

    Raises
    ------
    TypeError
        If either is no array of numbers on the CPU, or a parameter has the wrong type; if a tensor
        requires grad, unless grad is disabled: use `sampler.torch.distillation_loss`.
    ValueError
        If the shapes differ or hold no token, or a parameter is out of its range.

    Notes
    -----
    Why temperature**2: the gradient of the divergence alone is (q - p) / temperature, and at high
    temperature q - p itself shrinks as 1 / temperature, so that beside a loss on hard labels it
    would fade as 1 / temperature**2. With the factor its size stays as it is when the temperature
    changes, and in the limit the loss is half the mean over tokens of (student - teacher)**2, of
    logits with their means taken off: it matches logits.

    Where the two are close the divergence is a sum of positive terms, not a difference of
    logarithms, so that it is accurate at high temperatures too.

    References
    ----------
    Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import distillation_loss
    >>> teacher, student = np.array([3.0, 1.0, 0.0, 2.0]), np.array([1.0, 0.0, 0.0, 2.0])
    >>> for temperature in (1.0, 2.0, 1000.0):
    ...     print(round(float(distillation_loss(student, teacher, temperature=temperature)), 3))
    0.429
    0.41
    0.344
    >>> difference = student - teacher
    >>> float(np.var(difference)) / 2
    0.34375
    """
    s, v, source, t = _check_pair(student, teacher, temperature, reduction)
    losses = np.empty(len(s))
    for chunk in _chunks(*s.shape):
        losses[chunk] = _divergence(*_compare(s[chunk], v[chunk], t), t)
    each = losses.reshape(source.array.shape[:-1])
    return source.give(np.asarray(reduced(each, reduction, each.size)))


def distillation_loss_grad(
    student: Any, teacher: Any, *, temperature: float = 1.0, reduction: str = "mean"
) -> Any:
    """Return the gradient of `distillation_loss` with respect to the student's logits.

    Parameters and errors are those of `distillation_loss`; under "none" it is that of "sum": of
    each row's loss with respect to the row.

    Returns
    -------
    array or tensor
        temperature (q - p), with q the student's and p the teacher's softmax at the temperature;
        over the number of rows under "mean". float64 where `student` is, else float32. A tensor
        where `student` is one. NaN in a row in which either is invalid.

    References
    ----------
    Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import distillation_loss_grad
    >>> teacher, student = np.array([3.0, 1.0, 0.0, 2.0]), np.array([1.0, 0.0, 0.0, 2.0])
    >>> distillation_loss_grad(student, teacher, temperature=2.0).round(3)
    array([-0.392, -0.021,  0.111,  0.302])
    """
    s, v, source, t = _check_pair(student, teacher, temperature, reduction)
    result = np.empty(s.shape, source.result_dtype)
    scale = t / max(len(s), 1) if reduction == "mean" else t
    for chunk in _chunks(*s.shape):
        log_q, log_p, r = _compare(s[chunk], v[chunk], t)
        p = np.exp(log_p)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.where(np.abs(r) < CLOSE, p * np.expm1(r), np.exp(log_q) - p)
        result[chunk] = scale * difference
    return source.give(result.reshape(source.array.shape))


def _check_pair(
    student: Any, teacher: Any, temperature: Any, reduction: Any
) -> tuple[_Floats, _Floats, _inputs.Logits, float]:
    """Both as float64 rows, what the student's were, and the temperature."""
    t = check_real("temperature", temperature, SMALLEST, LARGEST, "a float in (0, inf)")
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    source = _inputs.read(student, name="student", numbers=True)
    other = _inputs.read(teacher, name="teacher", numbers=True)
    shape = source.array.shape
    if other.array.shape != shape:
        raise ValueError(
            f"`teacher` has to have the shape of `student`, {shape}, but has {other.array.shape}"
        )
    if not shape or not shape[-1]:
        raise ValueError(f"`student` has to hold at least one token per row, but has shape {shape}")
    rows, others = (
        _doubles(logits.array.reshape(-1, shape[-1]), logits.kind) for logits in (source, other)
    )
    return rows, others, source, t


def _compare(student: _Floats, teacher: _Floats, t: float) -> tuple[_Floats, _Floats, _Floats]:
    """Return log(q), log(p) and log(q / p); that is NaN where neither has mass."""
    log_q, log_p = (log_softmax(x, temperature=t) for x in (student, teacher))
    nobody = (student == -math.inf) & (teacher == -math.inf)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        r = log_q - log_p
        # At a high temperature both are about -log(vocab), and what tells them apart is rounded
        # away. Where all of a row's r are small, take the differences of the logits instead.
        change = np.where(nobody, 0.0, student - teacher) / t
        p = np.exp(log_p)
        change -= np.sum(p * change, axis=1, keepdims=True)
        close = np.all(np.abs(change) < 1, axis=1, keepdims=True)
        # log(sum q / p): what shifts both sides alike has gone with the mean.
        change -= np.log1p(np.sum(p * np.expm1(np.minimum(change, 1.0)), axis=1, keepdims=True))
        r = np.where(close & ~nobody, change, r)
    return log_q, log_p, r


def _divergence(log_q: _Floats, log_p: _Floats, r: _Floats, t: float) -> _Floats:
    """t**2 times the Kullback-Leibler divergence of q from p, a row each."""
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        # sum p (exp(r) - 1 - r) is sum p (-r), since p and q both sum to 1, in positive terms.
        series = np.ones_like(r)
        for k in range(14, 2, -1):
            series = 1 + np.clip(r, -CLOSE, CLOSE) / k * series
        apart = np.where(p == 0, q, q - p - p * r)
        # t r, whose square is a number also where that of r is not.
        close = (np.abs(r) < CLOSE) & (p > 0)
        terms = np.where(close, p * (0.5 * (t * r) ** 2 * series), t * (t * apart))
        # Also where the teacher's mass is too small for a float.
        terms[(log_q == -math.inf) & (r == -math.inf)] = math.inf
    divergence: _Floats = terms.sum(axis=1)
    return divergence


# --------------------------------------------------------------------------------------- shared


def _rows_along(
    logits: Any, axis: Any, keepdims: Any = False
) -> tuple[_inputs.Logits, _Array, tuple[int, ...], tuple[int, ...]]:
    """What was read, its rows as a 2-D array of the dtype it had, and the shape of the batch.

    Of the two shapes, the first is that of parameters; results, the second, may keep the axes.
    """
    source = _inputs.read(logits, numbers=True)
    array = source.array
    axes = check_axes(axis, array.ndim)
    kept = kept_shape(array.shape, axes, keepdims)
    if not all(array.shape[axis] for axis in axes):
        raise ValueError(
            f"`logits` have to hold at least one token a row, but have shape {array.shape}"
        )
    return source, rows_along(array, axes), without(array.shape, axes), kept


def _doubles(array: _Array, kind: str) -> _Floats:
    return _inputs.widen(array, kind).astype(np.float64, copy=False)


def _chunks(batch: int, vocab: int) -> Iterator[slice]:
    """Rows that are worked on at once."""
    rows = max(1, _CHUNK // vocab)
    for start in range(0, batch, rows):
        yield slice(start, min(start + rows, batch))


def _one_a_row(
    name: str, value: Any, shape: tuple[int, ...], low: float, range_text: str
) -> _Floats:
    """Make one float a row, at least `low`, out of one for all or an array of the batch's shape."""
    values = check_reals(name, value, low, range_text, shape)
    return np.broadcast_to(values, shape).reshape(-1)


def _row_name(row: int, shape: tuple[int, ...]) -> str:
    return str(row if len(shape) < 2 else tuple(map(int, np.unravel_index(row, shape))))


def _refuse_invalid(x: _Array, places: Sequence[int] | _Array, shape: tuple[int, ...]) -> None:
    """Refuse rows, at these places of a batch, with NaN, +inf, or nothing above -inf."""
    invalid = ~(x < math.inf)
    if invalid.any():
        row, token = np.argwhere(invalid)[0]
        raise ValueError(
            f"`logits` have to be finite or -inf, but row {_row_name(places[row], shape)} has "
            f"{x[row, token]} at token {token}"
        )
    empty = x.max(axis=1) == -math.inf
    if empty.any():
        row = int(np.argmax(empty))
        raise ValueError(
            f"`logits` have to hold a finite value in every row, but row "
            f"{_row_name(places[row], shape)} is -inf throughout"
        )


def _labelled_rows(
    source: _inputs.Logits, name: str, labels: Any, ignore_index: Any
) -> tuple[_Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows that count, 2-D, their labels, and their places among all rows."""
    array = source.array
    if not array.ndim or not array.size:
        raise ValueError(
            f"`{name}` have to hold at least one row and one class, but have shape {array.shape}"
        )
    index = check_ignore_index(ignore_index, True)
    if array.ndim == 1 and array_of("labels", labels).shape == array.shape:
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
        raise ValueError(f"`labels` have to name a class, but all are {index}, the `ignore_index`")
    rows = array.reshape(-1, array.shape[-1])
    return rows[places] if len(places) < len(rows) else rows, ids, places


def _check_labels(
    labels: Any, batch: tuple[int, ...], classes: int, ignore_index: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The labels that count, and their rows."""
    wanted = f"integers in [0, {classes}), of shape {batch}"
    array = array_of("labels", labels)
    if array.dtype.kind == "b":
        labels = array = array.astype(np.int64)
    counts = np.asarray(array != ignore_index)
    if not counts.all():
        labels = np.where(counts, array, 0)
    ids = check_ids("labels", labels, classes, wanted, may_be_padded=True)
    if ids.shape != batch:
        raise ValueError(f"`labels` have to be {wanted}, but have shape {ids.shape}")
    return ids[counts].reshape(-1), np.flatnonzero(counts)
