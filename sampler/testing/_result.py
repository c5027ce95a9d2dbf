"""What a check tells: `Result`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import stats

from sampler.testing._statistics import Bins, Tail

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's colours, which the colour-blind tell apart.
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#BBBBBB"


class TokenCount(NamedTuple):
    """How often a token was drawn, and how often it should have been."""

    token: int
    probability: float
    expected: float
    observed: int
    pvalue: float  # of this token alone, exact, two-sided


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Result:
    """What a check found.

    Attributes
    ----------
    check : str
        Which check, or which part of one.
    ok : bool or None
        False where a fault was found. True where none was and the draws could have shown one. None
        where they could not: too few draws, no conclusion. None is falsy, so that ``if
        result.ok`` and ``assert result.ok`` never take it for a pass.
    pvalue : float
        How often a correct sampler looks at least as bad, corrected for how many tests there
        were. 0 where something that cannot happen did.
    detectable_bias : float
        The smallest relative bias of the likeliest bin that this many draws show with probability
        `power`: 0.02 is 2 % more or less than the probability. A bin is a token, or several where
        they are rare, or, of a wide vocabulary, less likely than 1 in 64. Rarer bins, and a token
        among several, have to be further off. inf where none is seen.
    draws : int
        How many tokens, or uniforms, were looked at.
    findings : list of str
        Every fault, in a sentence.
    notes : list of str
        What was not checked and why.
    alpha, power : float
        The two error rates of the design: a correct sampler fails with probability at most alpha,
        a bias of `detectable_bias` is seen with at least `power`.
    seeds : mapping
        What it takes to repeat the check.
    tokens : list of TokenCount
        The ten tokens whose counts are the least likely, the worst first.
    tails : list of Tail
        The least likely tokens, the first ids and the last ids, each taken together.
    bins : Bins or None
        The pooled counts.
    parts : dict of str to Result
        The checks that this one is made of.
    """

    check: str
    ok: bool | None
    pvalue: float
    detectable_bias: float
    draws: int
    findings: list[str]
    alpha: float
    power: float
    notes: list[str] = field(default_factory=list)
    seeds: Mapping[str, Any] = field(default_factory=dict)
    tokens: list[TokenCount] = field(default_factory=list)
    tails: list[Tail] = field(default_factory=list)
    bins: Bins | None = None
    parts: dict[str, Result] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"Result({self.check}, ok={self.ok}, pvalue={self.pvalue:.2g}, draws={self.draws}, "
            f"detectable_bias={self.detectable_bias:.2g}, findings={self.findings})"
        )

    def __str__(self) -> str:
        lines = [f"{self.check}: {_VERDICTS[self.ok]}"]
        lines += [_wrapped(f"- {finding}") for finding in self.findings]
        bias = f"a bias of {show_share(self.detectable_bias)} of the likeliest bin"
        seen = f"{'no bias' if math.isinf(self.detectable_bias) else bias} would have been seen"
        lines.append(
            _wrapped(
                f"  {self.draws:,} draws, p = {self.pvalue:.2g} (alpha = {self.alpha:g}); "
                f"{seen} in {show_share(self.power)} of runs"
            )
        )
        lines += [_wrapped(f"  not checked: {note}") for note in self.notes]
        if self.seeds:
            told = ", ".join(f"{name}={value}" for name, value in self.seeds.items())
            lines.append(_wrapped(f"  repeat it with {told}"))
        return "\n".join(lines)

    def plot(self, path: str | PathLike[str] | None = None, *, ax: Axes | None = None) -> Figure:
        """Draw observed over expected counts of every bin, with the band that holds them.

        Parameters
        ----------
        path : path, optional
            Also save the figure there.
        ax : matplotlib.axes.Axes, optional
            Where to draw the bins of this result itself, not of its parts.

        Returns
        -------
        matplotlib.figure.Figure
            One panel, or one for each part that has bins; with `ax`, the figure that it is in.

        Raises
        ------
        ImportError
            If matplotlib is missing.
        ValueError
            If there are no bins to draw.
        """
        try:
            from matplotlib.figure import Figure  # without pyplot: no global state, no display
        except ImportError as error:
            raise ImportError(
                f"`plot` needs matplotlib ({error}); it comes with "
                'pip install "token-sampler[testing]"'
            ) from error
        parts = [self] if ax is not None else [self, *self.parts.values()]
        panels = [part for part in parts if part.bins is not None]
        if not panels:
            raise ValueError(f"`plot` has to have bins to draw, but {self.check} has none")
        if ax is not None:
            _draw(ax, self)
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
            _draw(ax, panel)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        axes[0].legend(framealpha=1, edgecolor="none", fontsize=8)
        if path is not None:
            figure.savefig(path)
        return figure


_VERDICTS = {True: "ok", False: "NOT ok", None: "no conclusion"}


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 100, subsequent_indent="  ", break_long_words=False)


def show_share(share: float) -> str:
    """Write a share as a percentage."""
    return f"{100 * share:.3g} %"


def show_count(number: float) -> str:
    """Write an expected count: whole where it is large."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _draw(ax: Axes, result: Result) -> None:
    from matplotlib import ticker

    assert result.bins is not None
    order = np.argsort(-result.bins.probs, kind="stable")  # a pooled bin may be the larger one
    probs, observed = result.bins.probs[order], result.bins.observed[order]
    draws = int(observed.sum())
    expected = draws * probs
    law = stats.binom(draws, np.minimum(probs, 1.0))
    # Wide enough that all bins of a correct sampler lie within it, but for alpha.
    miss = result.alpha / (2 * len(probs))
    bands = [
        (law.ppf(0.0005), law.isf(0.0005), 0.9, "a bin, in 99.9 % of runs"),
        (law.ppf(miss), law.isf(miss), 0.45, f"every bin, in all but {result.alpha:.2g} of runs"),
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
    ax.plot(x[~outside], ratio[~outside], "o", ms=3.5, mew=0, color=_BLUE, label="a bin")
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
    ax.set_title(f"{result.check}: {_VERDICTS[result.ok]}, p = {result.pvalue:.2g}", loc="left")
    ax.spines[["top", "right"]].set_visible(False)


def combined(
    check: str,
    parts: Mapping[str, Result],
    *,
    alpha: float,
    power: float,
    findings: Sequence[str],
    notes: Sequence[str] = (),
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Join parts that each ran at alpha / len(parts): Bonferroni's bound on all of them."""
    oks = [part.ok for part in parts.values()]
    ok = False if False in oks else None if None in oks or not oks else True
    return Result(
        check=check,
        ok=ok,
        pvalue=min([1.0, *(len(parts) * part.pvalue for part in parts.values())]),
        # Of the least sharp part that counts tokens: every such part would have seen this much.
        detectable_bias=max(
            (part.detectable_bias for part in parts.values() if part.bins is not None),
            default=math.inf,
        ),
        draws=sum(part.draws for part in parts.values()),
        findings=list(findings),
        alpha=alpha,
        power=power,
        notes=list(notes),
        seeds=dict(seeds or {}),
        parts=dict(parts),
    )
