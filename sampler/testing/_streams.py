"""The uniforms below a sampler: uniform, alike, independent; streams that do not overlap."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from sampler._checks import U64_END, U64_TEXT, array_of, check_ids, check_integer
from sampler.testing._draws import (
    bar,
    check_any,
    check_rates,
    check_seeds,
    counted,
    judge,
    times,
)
from sampler.testing._result import Result, combined, show_count, show_share
from sampler.testing._statistics import (
    LEAST,
    Floats,
    bias_of_two,
    contingency,
    two_samples,
)

AXES = ("seed", "stream", "step", "draw", "lane")
_CELLS = 16  # a side of a table of pairs of uniforms
_INTERVAL = 400  # expected numbers of an interval: few wide ones see more than many narrow ones
_ENDS = 30  # halvings of the intervals at both ends


def check_uniform(
    u: Any,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    bits: int = 53,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Tell whether numbers are uniform on [0, 1), up to both ends and down to the last bits.

    Parameters
    ----------
    u : array_like of float
        The numbers, in any shape.
    alpha, power : float, in (0, 1)
        The two error rates.
    bits : int, in [1, 53]
        How many bits the numbers should have: 24 for float32. Numbers that all are multiples of a
        larger power of two are a fault: a tail of less than that power is never reached.
    seeds : mapping, optional
        What they came from; the report repeats it.

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        If `u` are not floats, there are none, or another argument is not as above.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.testing import check_uniform
    >>> u = np.random.default_rng(7).random(100_000)
    >>> check_uniform(u).ok
    True
    >>> check_uniform(np.random.default_rng(7).random(100_000, dtype=np.float32)).findings
    ['every number is a multiple of 2**-24: they have 24 bits of 53']
    """
    alpha, power = check_rates(alpha, power)
    bits = check_integer("bits", bits, 1, 54, "an integer in [1, 53]")
    numbers = _check_uniforms("u", u)
    outside = ~((numbers >= 0.0) & (numbers < 1.0))
    inside = numbers[~outside]
    findings = []
    if outside.any():
        findings.append(
            f"{int(outside.sum()):,} numbers are outside [0, 1), such as {numbers[outside][0]}"
        )
    if not inside.size:
        return Result(
            check="check_uniform", ok=False, pvalue=0.0, detectable_bias=math.inf,
            draws=numbers.size, findings=findings, alpha=alpha, power=power,
            seeds=check_seeds(seeds),
        )  # fmt: skip
    edges = _edges(inside.size)
    places = np.searchsorted(edges, inside, side="right") - 1
    counts = np.bincount(places, minlength=len(edges) - 1).astype(np.int64)
    result = judge("check_uniform", np.diff(edges), counts, alpha, power, seeds)
    told = [_of_numbers(finding, edges) for finding in result.findings]
    coarse = _coarsest(inside, bits)
    certain = bool(findings)
    # By chance all are multiples once in 2**(bits left * numbers).
    if coarse < bits and (bits - coarse) * inside.size * math.log(2) > -math.log(alpha) + 10:
        told.append(
            f"every number is a multiple of 2**-{coarse}: they have {coarse} bits of {bits}"
        )
        certain = True
    return replace(
        result,
        ok=False if certain else result.ok,
        pvalue=0.0 if certain else result.pvalue,
        draws=numbers.size,
        findings=findings + told,
        tokens=[],
    )


def _edges(draws: int) -> Floats:
    """Equal intervals, the first and the last of them halved and halved again towards the ends."""
    equal = min(max(draws // _INTERVAL, 4), 256)
    halved = 0.5 ** np.arange(_ENDS, 0, -1) / equal
    inner = np.arange(1, equal) / equal
    return np.concatenate([[0.0], halved, inner, 1.0 - halved[::-1], [1.0]])


def _of_numbers(finding: str, edges: Floats) -> str:
    """Put a finding on tokens, which are intervals here, into words on numbers."""
    alone = re.match(r"token (\d+) was ([^;]*); of probability", finding)
    if alone:
        place = int(alone[1])
        low, high = edges[place], edges[place + 1]
        rest = finding.replace(f"token {place} was {alone[2]}", f"were {alone[2]}", 1)
        return f"numbers in [{low:.7g}, {high:.7g}) {rest}"
    several = re.match(r"the (?:([\d,]+) )?(first|last|least likely) token(?: id)?s?", finding)
    if several:
        size = int((several[1] or "1").replace(",", ""))
        name = {
            "first": f"numbers in [0, {edges[size]:.7g})",
            "last": f"numbers in [{edges[-1 - size]:.7g}, 1)",
            "least likely": "numbers next to 0 and 1",
        }[several[2]]
        return finding.replace(several[0], name, 1).replace(" was ", " were ", 1)
    return finding


def _coarsest(numbers: Floats, bits: int) -> int:
    """How many bits after the point the numbers use, at most `bits`."""
    low, high = 0, bits
    while low < high:
        middle = (low + high) // 2
        scaled = np.ldexp(numbers, middle)
        low, high = (
            (low, middle) if np.array_equal(scaled, np.floor(scaled)) else (middle + 1, high)
        )
    return high


def check_same(
    a: Any,
    b: Any,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Tell whether two samples, of tokens or of floats, come from one law, whatever it is.

    Parameters
    ----------
    a, b : array_like of int >= 0, or of float
        Both of one kind, in any shape. They are compared by chi-square over bins that expect 25 or
        more of either sample: tokens pooled by how frequent they are, floats in up to 16 intervals
        of equal frequency.
    alpha, power : float, in (0, 1)
        The two error rates.
    seeds : mapping, optional
        What they came from; the report repeats it.

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        If a sample is empty, or they are not numbers of one kind.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.testing import check_same
    >>> one, two = Sampler(seed=1), Sampler(seed=2, temperature=1.1)
    >>> logits = [1.0, 3.0, 2.0, 0.0]
    >>> check_same(*(s.sample(logits, n=50_000).tokens for s in (one, two))).ok
    False
    """
    alpha, power = check_rates(alpha, power)
    first, second = array_of("a", a), array_of("b", b)
    kinds = {first.dtype.kind.replace("u", "i"), second.dtype.kind.replace("u", "i")}
    if first.size and second.size and kinds not in ({"i"}, {"f"}):
        raise TypeError(
            f"`a` and `b` have to be integers, or floats, but are {first.dtype} and {second.dtype}"
        )
    draws = first.size + second.size
    are_floats = kinds == {"f"}
    both: list[Any] = []
    for name, given in (("a", a), ("b", b)):
        if are_floats:
            both.append(_check_uniforms(name, given))
            if np.isnan(both[-1]).any():
                raise ValueError(f"`{name}` has to be numbers, but holds nan")
        else:
            check_any(name, given)
            both.append(check_ids(name, given, 2**63, "integers in [0, 2**63)").ravel())
    # By their rank among the values that there are: no table is as long as the largest id.
    values, ranks = np.unique(np.concatenate(both), return_inverse=True)
    one, other = (counted(r, len(values)) for r in np.split(ranks, [first.size]))
    statistic, pvalue, table = two_samples(one, other, ordered=are_floats)
    bins = table.shape[1]
    told = (
        f"the counts differ: chi-square {statistic:,.0f} over {bins:,} bins, where "
        f"{bins - 1:,} is usual (p = {pvalue:.2g})"
    )
    likeliest = float(table.sum(0).max()) / draws
    bias = bias_of_two(likeliest, bins, (first.size, second.size), alpha, power)
    fewer = min(first.size, second.size)
    findings = [told] if pvalue < alpha else []
    return _concluded("check_same", findings, pvalue, bias, draws, fewer, alpha, power, seeds)


def check_independent(
    a: Any,
    b: Any,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Tell whether uniforms that come in pairs are independent.

    Parameters
    ----------
    a, b : array_like of float, in [0, 1), of one shape
        No number may be in two pairs.
    alpha, power : float, in (0, 1)
        The two error rates.
    seeds : mapping, optional
        What they came from; the report repeats it.

    Returns
    -------
    Result
        `detectable_bias` is the smallest correlation that is seen.

    Raises
    ------
    TypeError, ValueError
        If they are not floats in [0, 1) of one shape, or there are none.

    Notes
    -----
    Three tests share alpha equally: pairs that are equal, exact; the correlation, which sees a weak
    trend; and Pearson's chi-square of 16 x 16 joint bins, which sees any other pattern.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.testing import check_independent
    >>> u = np.random.default_rng(7).random((2, 100_000))
    >>> check_independent(*u).ok
    True
    >>> check_independent(u[0], 1 - u[0]).findings
    ['the correlation is -1.000, where 0.0161 is the most by chance',
    '256 joint bins: chi-square 1,500,000, where 225 is usual (p = 0)']
    """
    alpha, power = check_rates(alpha, power)
    x, y = _check_uniforms("a", a), _check_uniforms("b", b)
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"`a` and `b` have to be of one shape, but have {np.shape(a)} and {np.shape(b)}"
        )
    for name, v in (("a", x), ("b", y)):
        wrong = ~((v >= 0.0) & (v < 1.0))
        if wrong.any():
            raise ValueError(f"`{name}` has to be in [0, 1), but holds {v[wrong][0]}")
    level = alpha / 3
    findings = []
    equal = int(np.count_nonzero(x == y))
    # Of numbers of 24 bits; those of 53 are equal less often still.
    p_equal = float(stats.binom.sf(equal - 1, x.size, 2.0**-24)) if equal else 1.0
    if p_equal < level:
        findings.append(f"{show_share(equal / x.size)} of pairs are equal, {times(equal)}")
    least = stats.norm.isf(level / 2) / math.sqrt(x.size)
    # Constants correlate with nothing.
    constant = [
        f"all numbers of `{name}` are equal" for name, v in (("a", x), ("b", y))
        if v.size > 1 and v.min() == v.max()
    ]  # fmt: skip
    findings += constant
    r = float(np.corrcoef(x, y)[0, 1]) if x.size > 1 and not constant else 0.0
    p_trend = float(2 * stats.norm.sf(abs(r) * math.sqrt(x.size)))
    if p_trend < level:
        findings.append(f"the correlation is {r:.3f}, where {least:.3g} is the most by chance")
    side = min(_CELLS, int(math.sqrt(x.size / LEAST)))
    p_joint = 1.0
    if side > 1:
        cells = (x * side).astype(np.int64) * side + (y * side).astype(np.int64)
        table = np.bincount(cells, minlength=side**2).astype(np.int64).reshape(side, side)
        statistic, p_joint, freedom = contingency(table)
        if p_joint < level:
            findings.append(
                f"{side**2} joint bins: chi-square {show_count(statistic)}, where "
                f"{freedom} is usual (p = {p_joint:.2g})"
            )
    bias = (stats.norm.isf(level / 2) + stats.norm.isf(1 - power)) / math.sqrt(x.size)
    pvalue = 0.0 if constant else min(1.0, 3 * p_equal, 3 * p_trend, 3 * p_joint)
    return _concluded(
        "check_independent", findings, pvalue, float(bias), x.size, x.size, alpha, power, seeds
    )


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
    """Tell whether keyed uniforms are uniform along each part of their key, and neighbours apart.

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
        Show a bar; by default only on a terminal.

    Returns
    -------
    Result
        With two parts an axis: `check_uniform` of the numbers along it, and `check_independent` of
        neighbours (2i and 2i + 1). And one for each two axes: a step along one against a step along
        the other, which are the same number where a key is a sum.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or `uniform` gives no float.

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
    crossed = [(a, b) for i, a in enumerate(axes) for b in axes[i + 1 :]]
    level = alpha / (2 * len(axes) + len(crossed))
    parts: dict[str, Result] = {}
    plain = dict.fromkeys(axes, seed)

    def along(axis: str, numbers: range, base: dict[str, int]) -> Floats:
        keys = ({**base, axis: (base[axis] + i) % U64_END} for i in numbers)
        found = np.array([uniform(**key) for key in keys])
        return _check_uniforms("uniform", found)

    with bar((len(axes) + len(crossed)) * draws, "numbers", progress) as shown:
        for axis in axes:
            u = along(axis, range(draws + draws % 2), plain)
            parts[axis] = check_uniform(u, alpha=level, power=power, bits=bits)
            parts[f"{axis} + 1"] = check_independent(u[::2], u[1::2], alpha=level, power=power)
            shown.update(draws)
        for one, other in crossed:
            # Every second number along an axis that neither steps: no number is in two pairs.
            third = next((axis for axis in axes if axis not in (one, other)), one)
            half = range(0, draws, 2)
            pair = [
                along(third, half, {**plain, axis: (plain[axis] + 1) % U64_END})
                for axis in (one, other)
            ]
            parts[f"{one} + 1, {other} + 1"] = check_independent(
                pair[0], pair[1], alpha=level, power=power
            )
            shown.update(draws)
    findings: list[str] = []
    for name, part in parts.items():
        where = f"along {name}" if name in axes else f"neighbours ({name})"
        if part.ok is not None or not findings:
            findings += [f"{where}: {finding}" for finding in part.findings]
    return combined(
        "check_streams", {name: replace(part, check=name) for name, part in parts.items()},
        alpha=alpha, power=power, findings=findings, seeds={"seed": seed},
    )  # fmt: skip


def _check_uniforms(name: str, u: Any) -> Floats:
    array = array_of(name, u)
    if array.dtype.kind != "f":
        kind = array.dtype if array.size else "ragged"
        raise TypeError(f"`{name}` have to be floats, but are {kind}")
    if not array.size:
        raise ValueError(f"`{name}` have to be at least one number, but are none")
    numbers: Floats = array.astype(np.float64).ravel()
    return numbers


def _concluded(
    check: str,
    findings: list[str],
    pvalue: float,
    bias: float,
    draws: int,
    fewer: int,
    alpha: float,
    power: float,
    seeds: Mapping[str, Any] | None,
) -> Result:
    """The result; no conclusion where not even a bias of 1 would have been seen."""
    ok: bool | None = not findings and pvalue >= alpha
    if ok and not bias < 1:
        ok = None
        needed = 4 * LEAST if math.isinf(bias) else fewer * bias**2
        takes = (
            f"where it takes about {math.ceil(needed):,}" if needed > fewer
            else "nearly all of them of one bin"
        )  # fmt: skip
        findings = [f"too few draws for any conclusion: {fewer:,}, {takes}"]
    return Result(
        check=check, ok=ok, pvalue=pvalue, detectable_bias=bias, draws=draws, findings=findings,
        alpha=alpha, power=power, seeds=check_seeds(seeds),
    )  # fmt: skip
