"""Keyed uniforms, along each part of their key and between neighbours: `check_streams`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sampler._checks import U64_END, U64_TEXT, check_integer
from sampler.testing._arguments import check_floats, check_rates
from sampler.testing._findings import Finding
from sampler.testing._outcome import Outcome, combined, report
from sampler.testing._progress import bar
from sampler.testing._result import Result
from sampler.testing._statistics import Floats
from sampler.testing._uniforms import judge_independent, judge_uniform

AXES = ("seed", "stream", "step", "draw", "lane")


def check_streams(
    uniform: Callable[..., Any],
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    draws: int = 20_000,
    axes: tuple[str, ...] = AXES,
    seed: int = 0,
    bits: int = 53,
    progress: bool | None = None,
) -> Result:
    """Test whether keyed uniforms are uniform along each part of their key, and neighbours apart.

    Parameters
    ----------
    uniform : callable
        ``uniform(seed=, stream=, step=, draw=, lane=)``, or whichever of these `axes` names, gives
        one float for integers in [0, 2**64).
    alpha, power : float, in (0, 1)
        The two error rates of the whole; the parts share alpha equally.
    draws : int, >= 1
        Numbers of each axis.
    axes : tuple of str
        The parts of the key.
    seed : int, in [0, 2**64)
        Where every part of the key starts; along its axis it is seed, seed + 1, ...
    bits : int, in [1, 53]
        As for `check_uniform`.
    progress : bool, optional
        Show a bar on stderr; by default only if that is a terminal.

    Returns
    -------
    Result
        With two parts per axis: `check_uniform` of the numbers along it, and `check_independent` of
        neighbours (2i and 2i + 1). And one for each two axes: a step along one against a step along
        the other, which are the same number where a key is a sum.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or `uniform` does not return a float.

    See Also
    --------
    check_uniform : numbers without keys.

    Examples
    --------
    >>> from sampler.reference import uniform
    >>> from sampler.testing import check_streams
    >>> check_streams(uniform, draws=2000).ok
    True
    """
    alpha, power = check_rates(alpha, power)
    draws = check_integer("draws", draws, 1, 2**40, "an integer >= 1")
    seed = check_integer("seed", seed, 0, U64_END, U64_TEXT)
    if not axes or len(set(axes)) < len(axes):
        raise ValueError(f"`axes` have to be different names, but are {axes!r}")
    bits = check_integer("bits", bits, 1, 54, "an integer in [1, 53]")
    outcome = judge_streams(uniform, alpha, power, draws, axes, seed, bits, progress)
    return report("check_streams", outcome)


def judge_streams(
    uniform: Callable[..., Any],
    alpha: float,
    power: float,
    draws: int,
    axes: tuple[str, ...],
    seed: int,
    bits: int,
    progress: bool | None,
) -> Outcome:
    """`check_streams` of checked arguments."""
    crossed = [(a, b) for i, a in enumerate(axes) for b in axes[i + 1 :]]
    level, power = check_rates(alpha / (2 * len(axes) + len(crossed)), power)
    parts: dict[str, Outcome] = {}
    start = dict.fromkeys(axes, seed)

    def along(axis: str, numbers: range, base: dict[str, int]) -> Floats:
        keys = ({**base, axis: (base[axis] + i) % U64_END} for i in numbers)
        return check_floats("uniform", np.array([uniform(**key) for key in keys]))

    with bar((len(axes) + len(crossed)) * draws, "numbers", progress) as shown:
        for axis in axes:
            u = along(axis, range(draws + draws % 2), start)
            parts[axis] = judge_uniform(u, level, power, bits)
            parts[f"{axis} + 1"] = judge_independent(u[::2], u[1::2], level, power)
            shown.update(draws)
        for one, other in crossed:
            # Every second number along an axis that neither steps: no number is in two pairs.
            third = next((axis for axis in axes if axis not in (one, other)), one)
            half = range(0, draws, 2)
            x, y = (
                along(third, half, {**start, axis: (start[axis] + 1) % U64_END})
                for axis in (one, other)
            )
            parts[f"{one} + 1, {other} + 1"] = judge_independent(x, y, level, power)
            shown.update(draws)
    findings: list[Finding] = []
    for name, part in parts.items():
        where = f"along {name}" if name in axes else f"neighbours ({name})"
        if part.ok is not None or not findings:
            findings += [finding.within(where) for finding in part.findings]
    return combined(parts, alpha=alpha, power=power, findings=findings, seeds={"seed": seed})
