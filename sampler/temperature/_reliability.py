"""Whether a classifier is right as often as it is sure: `Reliability`, its error and its plot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sampler import _inputs
from sampler._build import install
from sampler._checks import check_integer
from sampler.temperature._labels import labelled_rows
from sampler.temperature._rows import Floats, chunks, row_name, to_float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        How many examples there are in each bin.

    See Also
    --------
    reliability : makes one.
    """

    __module__ = "sampler.temperature"  # what pickles name, wherever this file moves

    edges: Floats
    confidence: Floats
    accuracy: Floats
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
            Where to draw; by default, a new figure of matplotlib.pyplot.

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
                f"Reliability.plot needs matplotlib ({error}); it comes with "
                f"{install('temperature')}"
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
        If `probs` are not an array of numbers or require grad, `labels` are not
        integers, or `bins` or `ignore_index` is not an integer.
    ValueError
        If the shapes do not fit, no row counts, a row is not a distribution or a label out of range
        (the row is named), or `bins` is less than 1.

    See Also
    --------
    fit_temperature : calibrates them.

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
    array, classes, rows = labelled_rows(source, "probs", labels, ignore_index)
    batch = source.array.shape[:-1]
    confidences, right = np.empty(len(classes)), np.empty(len(classes))
    for chunk in chunks(*array.shape):
        p = to_float64(array[chunk], source.kind)
        outside = ~((p >= 0) & (p <= 1))
        if outside.any():
            row, column = np.argwhere(outside)[0]
            raise ValueError(
                f"`probs` have to be in [0, 1], but row {row_name(rows[chunk][row], batch)} has "
                f"{p[row, column]} at class {column}"
            )
        sums = p.sum(axis=1)
        off = ~(np.abs(sums - 1) <= 1e-3)
        if off.any():
            row = int(np.argmax(off))
            raise ValueError(
                f"`probs` have to sum to 1 in each row, but row "
                f"{row_name(rows[chunk][row], batch)} sums to {sums[row]:.6g}"
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

    See Also
    --------
    reliability : the bins that it sums over.
    fit_temperature : often makes it smaller.

    Notes
    -----
    It is a biased estimate and depends on `bins`: with few examples per bin, chance alone keeps it
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
