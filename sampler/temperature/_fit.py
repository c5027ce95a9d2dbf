"""The temperature that calibrates a classifier."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import _inputs
from sampler.temperature._labels import labelled_rows
from sampler.temperature._limits import NEAR_OVERFLOW, NO_WEIGHT
from sampler.temperature._rows import Array, chunks, refuse_invalid, row_name, rows_at_once

# Newton's last step leaves an error of about its square, relative to the temperature: 1e-8, less
# than float32's sums are good for, and 1e-14.
_LAST_STEP = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-7}
_SAMPLE = 16  # one row in so many tells where to start


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
        than under equal logits. 1 if all logits of each row are equal: any temperature fits as
        well.

    Raises
    ------
    TypeError
        If `logits` are not an array of numbers or require grad, or `labels` are not
        integers.
    ValueError
        If the shapes do not fit, no row counts, a label is out of range or has the logit -inf, or a
        row has NaN or +inf or holds nothing above -inf. The row is named.

    Warns
    -----
    UserWarning
        If all rows are in [0, 1] and sum to 1, within 1e-3, or all logits of a binary classifier
        are in [0, 1]: they are taken as logits, but look like probabilities, whose logits are
        ``np.log(p)``, or ``np.log(p / (1 - p))`` of a binary classifier.

    See Also
    --------
    reliability : whether the probabilities are calibrated.

    Notes
    -----
    In b = 1 / temperature the loss is convex: its derivative is the mean of E[x] - x[label], its
    second derivative the mean variance of x, both under softmax(b x). Newton's method with a
    bracket needs two or three passes over the rows, starting from an estimate on one row in
    sixteen. float64 is computed in float64, to about 1e-13 relative; the others in float32, to
    about 1e-6: far less than the labels leave open.

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
    array, classes, rows = labelled_rows(source, "logits", labels, ignore_index)
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
        for chunk in chunks(*self.source.array.shape):
            x = self._read(chunk)
            top, low = x.max(axis=1), x.min(axis=1)
            if not np.all(np.isfinite(top)):
                refuse_invalid(x, places[chunk], shape)
            own = x[np.arange(len(x)), labels[chunk]].astype(np.float64)
            impossible = own == -math.inf
            if impossible.any():
                i = int(np.argmax(impossible))
                raise ValueError(
                    f"`logits` have to be finite at the labels, but row "
                    f"{row_name(places[chunk][i], shape)} has -inf at its label "
                    f"{labels[chunk][i]}"
                )
            if self.are_probabilities:
                off = np.abs(x.sum(axis=1, dtype=np.float64) - 1.0) > 1e-3
                self.are_probabilities = not (low.min() < 0 or top.max() > 1 or off.any())
            self.top[chunk, 0] = top
            self.margin[chunk] = self.top[chunk, 0] - own
            self.extreme = max(self.extreme, float(top.max()), -float(low.min()))

    def _read(self, chunk: slice) -> Array:
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
        for chunk in chunks(*self.source.array.shape):
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
        rows = min(batch, rows_at_once(vocab))
        buffers = np.empty((2, rows, vocab), dtype)
        ones = np.ones(vocab, dtype)
        top = self.top.astype(dtype, copy=False)
        factor = dtype.type(beta)
        # Whether exponents may be too low to be multiplied by their weight, which is 0.
        far = beta * self.extreme > 1e30
        with np.errstate(over="ignore", under="ignore"):
            for chunk in chunks(batch, vocab):
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
