"""The picture of a `Result`: observed over expected counts, drawn by matplotlib."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from sampler._build import install
from sampler.testing._findings import VERDICTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sampler.testing._result import Result

# Of Okabe and Ito's colours, which the colour-blind tell apart.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#BBBBBB"


def plot(result: Result, path: str | PathLike[str] | None, ax: Axes | None) -> Figure:
    """`Result.plot`."""
    try:
        from matplotlib.figure import Figure  # without pyplot: no global state, no display
    except ImportError as error:
        raise ImportError(
            f"`plot` needs matplotlib ({error}); it comes with {install('testing')}"
        ) from error
    parts = [result] if ax is not None else [result, *result.parts.values()]
    panels = [part for part in parts if part.bins is not None]
    if not panels:
        raise ValueError(f"there is nothing to plot: {result.check} has no bins")
    if ax is not None:
        _plot_bins(ax, result)
        figure = ax.figure.figure  # not a subfigure
        if path is not None:
            figure.savefig(path)
        return figure
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (8.0, 5.0) if len(panels) == 1 else (4.5 * columns, 3.2 * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, panel in zip(axes, panels, strict=False):
        _plot_bins(ax, panel)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    _explain(figure)
    if path is not None:
        figure.savefig(path)
    return figure


def _explain(figure: Figure) -> None:
    """Put one legend for all panels under them: inside a panel it would lie on a band."""
    found: dict[str, Any] = {}
    for ax in figure.axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= {label: handle for handle, label in zip(handles, labels, strict=True)}
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=2 if figure.get_figwidth() < 9 else 4,
        frameon=False,
        fontsize=8,
    )


def _plot_bins(ax: Axes, result: Result) -> None:
    from matplotlib import ticker

    assert result.bins is not None
    order = np.argsort(-result.bins.probs, kind="stable")  # a pooled bin may be the larger one
    probs, observed = result.bins.probs[order], result.bins.observed[order]
    draws = int(observed.sum())
    expected = draws * probs
    law = stats.binom(draws, np.minimum(probs, 1.0))
    # Wide enough that all bins of a correct sampler lie within it, but for alpha.
    miss = result.alpha / (2 * len(probs))
    all_bins = f"where all bins lie, except in {result.alpha:.2g} of runs"
    bands = [
        (law.ppf(0.0005), law.isf(0.0005), 0.9, "where one bin lies in 99.9 % of runs"),
        (law.ppf(miss), law.isf(miss), 0.45, all_bins),
    ]
    # Bins of one size are spread out by their place, others by what is expected of them.
    spread = expected.max() > 1.5 * expected.min()
    x = expected if spread else np.arange(len(expected))
    outside = (observed < bands[1][0]) | (observed > bands[1][1])
    for low, high, shade, label in reversed(bands):
        # Counts are whole: the edges lie half a draw beyond the last ones inside.
        edges = np.maximum(low - 0.5, 0) / expected, (high + 0.5) / expected
        ax.fill_between(x, *edges, color=_GREY, alpha=shade, lw=0, label=label)
    ax.axhline(1, color="black", lw=0.8)
    ratio = observed / expected
    inside: dict[str, Any] = {"color": _BLUE, "label": "a bin: a token, or several rare ones"}
    ax.plot(x[~outside], ratio[~outside], "o", ms=3.5, mew=0, **inside)
    if outside.any():
        ax.plot(x[outside], ratio[outside], "X", ms=8, mew=0, color=_ORANGE, label="outside")
    if spread:
        ax.set_xscale("log")
        steps = (1.0, 2.0, 5.0) if expected.max() < 100 * expected.min() else (1.0,)
        ax.xaxis.set_major_locator(ticker.LogLocator(subs=steps))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_minor_formatter(ticker.NullFormatter())
    ax.set_xlabel("expected draws of a bin" if spread else "bin")
    ax.set_ylabel("observed / expected")
    ax.set_title(f"{result.check}: {VERDICTS[result.ok]}, p = {result.pvalue:.2g}", loc="left")
    ax.spines[["top", "right"]].set_visible(False)
