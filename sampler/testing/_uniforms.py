"""Are numbers uniform, and are pairs of them independent? `check_uniform`, `check_independent`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from sampler._checks import check_integer
from sampler.testing import _statistics
from sampler.testing._arguments import check_floats, check_rates, check_unit
from sampler.testing._draws import judge_counts
from sampler.testing._findings import Finding, Kind, Numbers
from sampler.testing._outcome import Outcome, concluded, report
from sampler.testing._result import Result
from sampler.testing._statistics import MIN_EXPECTED, Floats, contingency

_CELLS = 16  # a side of a table of pairs of uniforms
_PER_INTERVAL = 400  # expected numbers: few wide intervals see more than many narrow ones
_HALVINGS = 30  # of the intervals at both ends


def check_uniform(
    u: Any,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    bits: int = 53,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Test whether numbers are uniform on [0, 1), up to both ends and down to the last bits.

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

    See Also
    --------
    check_independent : pairs of them.
    check_streams : keyed ones.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.testing import check_uniform
    >>> u = np.random.default_rng(7).random(100_000)
    >>> check_uniform(u).ok
    True
    >>> check_uniform(np.random.default_rng(7).random(100_000, dtype=np.float32)).findings
    ['every number is a multiple of 2**-24: they have 24 of 53 bits']
    """
    alpha, power = check_rates(alpha, power)
    bits = check_integer("bits", bits, 1, 54, "an integer in [1, 53]")
    numbers = check_floats("u", u)
    return report("check_uniform", judge_uniform(numbers, alpha, power, bits), seeds)


def judge_uniform(numbers: Floats, alpha: float, power: float, bits: int) -> Outcome:
    """`check_uniform` of checked numbers."""
    outside = ~((numbers >= 0.0) & (numbers < 1.0))
    inside = numbers[~outside]
    certain = []
    if outside.any():
        example = float(numbers[outside][0])
        certain.append(Finding(Kind.OUTSIDE, example, observed=int(outside.sum())))
    if not inside.size:
        return Outcome(
            ok=False, pvalue=0.0, detectable_bias=math.inf, draws=numbers.size, findings=certain,
            alpha=alpha, power=power,
        )  # fmt: skip
    edges = _edges(inside.size)
    places = np.searchsorted(edges, inside, side="right") - 1
    counts = np.bincount(places, minlength=len(edges) - 1).astype(np.int64)
    outcome = judge_counts(np.diff(edges), counts, alpha, power)
    findings = certain + [_of_numbers(finding, edges) for finding in outcome.findings]
    used = _bits_used(inside, bits)
    # By chance all are multiples once in 2**(bits left * numbers).
    if used < bits and (bits - used) * inside.size * math.log(2) > -math.log(alpha) + 10:
        certain.append(Finding(Kind.COARSE, observed=used, expected=bits))
        findings.append(certain[-1])
    return replace(
        outcome,
        ok=False if certain else outcome.ok,
        pvalue=0.0 if certain else outcome.pvalue,
        draws=numbers.size,
        findings=findings,
        tokens=[],
    )


def _edges(draws: int) -> Floats:
    """Equal intervals, the first and the last of them halved and halved again towards the ends."""
    equal = min(max(draws // _PER_INTERVAL, 4), 256)
    halved = 0.5 ** np.arange(_HALVINGS, 0, -1) / equal
    inner = np.arange(1, equal) / equal
    return np.concatenate([[0.0], halved, inner, 1.0 - halved[::-1], [1.0]])


def _of_numbers(finding: Finding, edges: Floats) -> Finding:
    """Put a finding on tokens, which are intervals here, as one on numbers."""
    bounds = edges.tolist()
    match finding.kind, finding.subject:
        case Kind.COUNT, int(place):
            return replace(finding, subject=Numbers((bounds[place], bounds[place + 1])))
        case Kind.GROUP, _statistics.FIRST_IDS:
            return replace(finding, subject=Numbers((0.0, bounds[finding.size])))
        case Kind.GROUP, _statistics.LAST_IDS:
            return replace(finding, subject=Numbers((bounds[-1 - finding.size], 1.0)))
        case Kind.GROUP, _:
            return replace(finding, subject=Numbers())
    return finding


def _bits_used(numbers: Floats, bits: int) -> int:
    """How many bits after the point the numbers use, at most `bits`."""
    low, high = 0, bits
    while low < high:
        middle = (low + high) // 2
        scaled = np.ldexp(numbers, middle)
        low, high = (
            (low, middle) if np.array_equal(scaled, np.floor(scaled)) else (middle + 1, high)
        )
    return high


def check_independent(
    a: Any,
    b: Any,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Test whether uniforms that come in pairs are independent.

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

    See Also
    --------
    check_uniform : one by one.

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
    ['the correlation is -1.000, where chance gives at most 0.0161',
    '256 joint bins: chi-square 1,500,000, where 225 is expected (p = 0)']
    """
    alpha, power = check_rates(alpha, power)
    x, y = check_floats("a", a), check_floats("b", b)
    if np.shape(a) != np.shape(b):
        raise ValueError(
            f"`a` and `b` have to be of one shape, but have {np.shape(a)} and {np.shape(b)}"
        )
    return report("check_independent", judge_independent(x, y, alpha, power), seeds)


def judge_independent(x: Floats, y: Floats, alpha: float, power: float) -> Outcome:
    """`check_independent` of as many numbers each, which still may be outside [0, 1)."""
    check_unit("a", x)
    check_unit("b", y)
    level = alpha / 3
    findings = []
    equal = int(np.count_nonzero(x == y))
    # Of numbers of 24 bits; those of 53 are equal less often still.
    p_equal = float(stats.binom.sf(equal - 1, x.size, 2.0**-24)) if equal else 1.0
    if p_equal < level:
        findings.append(Finding(Kind.EQUAL, observed=equal, size=x.size, pvalue=p_equal))
    # Constants correlate with nothing.
    constant = [
        Finding(Kind.CONSTANT, name) for name, v in (("a", x), ("b", y))
        if v.size > 1 and v.min() == v.max()
    ]  # fmt: skip
    findings += constant
    r = float(np.corrcoef(x, y)[0, 1]) if x.size > 1 and not constant else 0.0
    p_trend = float(2 * stats.norm.sf(abs(r) * math.sqrt(x.size)))
    if p_trend < level:
        most = float(stats.norm.isf(level / 2)) / math.sqrt(x.size)
        findings.append(Finding(Kind.CORRELATION, observed=r, expected=most, pvalue=p_trend))
    side = min(_CELLS, int(math.sqrt(x.size / MIN_EXPECTED)))
    p_joint = 1.0
    if side > 1:
        cells = (x * side).astype(np.int64) * side + (y * side).astype(np.int64)
        table = np.bincount(cells, minlength=side**2).astype(np.int64).reshape(side, side)
        statistic, p_joint, freedom = contingency(table)
        if p_joint < level:
            findings.append(
                Finding(
                    Kind.JOINT, observed=statistic, expected=freedom, size=side**2, pvalue=p_joint
                )
            )
    bias = float(stats.norm.isf(level / 2) + stats.norm.isf(1 - power)) / math.sqrt(x.size)
    pvalue = 0.0 if constant else min(1.0, 3 * p_equal, 3 * p_trend, 3 * p_joint)
    return concluded(findings, pvalue, bias, x.size, x.size, alpha, power)
