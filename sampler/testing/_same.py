"""Two samples of one law: `check_same`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sampler._checks import as_array, check_ids
from sampler.testing._arguments import check_any, check_floats, check_rates
from sampler.testing._findings import Finding, Kind
from sampler.testing._outcome import concluded, report
from sampler.testing._result import Result
from sampler.testing._statistics import bias_of_two, count_ids, two_samples


def check_same(
    a: Any,
    b: Any,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Test whether two samples, of tokens or of floats, come from one law, whatever it is.

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

    See Also
    --------
    check_draws : against a known law.

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
    first, second = as_array("a", a), as_array("b", b)
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
            both.append(check_floats(name, given))
            if np.isnan(both[-1]).any():
                raise ValueError(f"`{name}` has to hold numbers, but one is nan")
        else:
            check_any(name, given)
            both.append(check_ids(name, given, 2**63, "integers in [0, 2**63)").ravel())
    # By their rank among the values that there are: no table is as long as the largest id.
    values, ranks = np.unique(np.concatenate(both), return_inverse=True)
    one, other = (count_ids(r, len(values)) for r in np.split(ranks, [first.size]))
    statistic, pvalue, table = two_samples(one, other, ordered=are_floats)
    bins = table.shape[1]
    findings = []
    if pvalue < alpha:
        findings.append(
            Finding(Kind.DIFFERENT, observed=statistic, expected=bins - 1, size=bins, pvalue=pvalue)
        )
    likeliest = float(table.sum(0).max()) / draws
    bias = bias_of_two(likeliest, bins, (first.size, second.size), alpha, power)
    fewer = min(first.size, second.size)
    outcome = concluded(findings, pvalue, bias, draws, fewer, alpha, power)
    return report("check_same", outcome, seeds)
