"""What a check reports: `Result`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

from sampler.testing import _plot
from sampler.testing._findings import VERDICTS, show_share
from sampler.testing._statistics import Bins, Tail

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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

    See Also
    --------
    check_sampler : returns one, with parts.
    check_draws : returns one, of counts.
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
        lines = [f"{self.check}: {VERDICTS[self.ok]}"]
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
            seeds = ", ".join(f"{name}={value}" for name, value in self.seeds.items())
            lines.append(_wrapped(f"  repeat it with {seeds}"))
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
        return _plot.plot(self, path, ax)


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 100, subsequent_indent="  ", break_long_words=False)
