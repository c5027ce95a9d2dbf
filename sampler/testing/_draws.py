"""Recorded draws against their probabilities: `check_draws`, and how many it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from sampler._checks import check_integer, check_real
from sampler.testing._arguments import check_probs, check_rates, count_tokens
from sampler.testing._findings import Finding, Kind
from sampler.testing._outcome import Outcome, report
from sampler.testing._result import Result, TokenCount
from sampler.testing._statistics import (
    MIN_EXPECTED,
    TAIL_SHARE,
    TOKEN_SHARE,
    Floats,
    Ints,
    Tail,
    bins_of,
    chi_square_share,
    detectable_bias,
    draws_for_bias,
    fit,
    noncentrality,
    tails,
    token_pvalues,
)

_NAMED = 3  # tokens that have a finding each


def check_draws(
    tokens: Any,
    probs: Any,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Test whether recorded draws follow their probabilities.

    Parameters
    ----------
    tokens : array_like of int, in [0, vocab)
        The draws, in any shape. They have to be independent: one history, drawn from one law.
    probs : array_like of shape (vocab,), or Distribution
        The law. It has to sum to 1 within 1e-5.
    alpha : float, in (0, 1)
        How often draws of a correct sampler may fail.
    power : float, in (alpha, 1)
        With which probability a bias of `detectable_bias` has to be seen.
    seeds : mapping, optional
        What the draws came from; the report repeats it.

    Returns
    -------
    Result
        ``ok`` is None, never True, if there are too few draws to show even that the likeliest bin
        is never drawn; or for a second bin, or for eight where even the likeliest token is too rare
        for one of its own. The finding says how many it takes. One token with all probability needs
        no second.

    Raises
    ------
    TypeError
        If the tokens are not integers, or the probabilities not floats.
    ValueError
        If there are no tokens, one is outside the vocabulary, the probabilities are negative, NaN
        or do not sum to 1, alpha or power are outside (0, 1), or power is not the larger.

    See Also
    --------
    check_sampler : everything else that a sampler has to get right.
    check_same : without a law to compare with.

    Notes
    -----
    A token of probability 0 must not be drawn even once; this costs no false alarms. Three more
    tests share alpha:

    - half: Pearson's chi-square [1]_ over bins of at least 25 expected draws, in the decomposition
      of Lancaster [2]_, which keeps the false-alarm rate where it should be down to 1e-6 and
      below. The G-test and small bins do not: their rates are wrong by factors. Of more than 64
      bins, half of it goes to the same over at most 64 wide ones, which see a drift that no
      narrow one shows;
    - a quarter: each token's count, exact, corrected for the size of the vocabulary;
    - a quarter: the least likely tokens, the first and the last ids, each taken together, exact.

    References
    ----------
    .. [1] K. Pearson, "On the criterion that a given system of deviations ...", 1900.
    .. [2] H. O. Lancaster, "The derivation and partition of chi-square in certain discrete
       distributions", Biometrika 36, 1949.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.testing import check_draws
    >>> s = Sampler(top_k=3, seed=7)
    >>> logits = [1.0, 3.0, 2.0, 0.0]
    >>> result = check_draws(s.sample(logits, n=20_000).tokens, s.distribution(logits))
    >>> result
    Result(check_draws, ok=True, pvalue=0.36, draws=20000, detectable_bias=0.043, findings=[])
    >>> result = check_draws([0, 1, 1, 2, 3, 1], s.distribution(logits))
    >>> result.ok, result.findings
    (False, ['token 3 was drawn 1 time; its probability is 0'])
    """
    alpha, power = check_rates(alpha, power)
    law = check_probs("probs", probs)
    counts = count_tokens("tokens", tokens, len(law))
    return report("check_draws", judge_counts(law, counts, alpha, power), seeds)


def judge_counts(law: Floats, counts: Ints, alpha: float, power: float) -> Outcome:
    """`check_draws` of checked counts."""
    draws = int(counts.sum())
    findings = impossible_tokens(law, counts)
    possible = np.where(law > 0, counts, 0)
    n_possible = int(np.count_nonzero(law))
    bins = bins_of(law, possible)
    statistic, fit_pvalue, n_bins, corrected = fit(law, possible, bins)
    pvalues = token_pvalues(law, possible)
    groups = tails(law, possible)
    token_pvalue = float(pvalues.min()) * n_possible
    tail_pvalue = min((tail.pvalue for tail in groups), default=1.0) * len(groups)
    pvalue = min(
        1.0, corrected, token_pvalue / TOKEN_SHARE, tail_pvalue / TAIL_SHARE if groups else 1.0
    )
    expected = law * int(possible.sum())
    # Of equal p-values, which may all be 0, the one that is furthest off.
    worst = [
        TokenCount(i, float(law[i]), float(expected[i]), int(counts[i]), float(pvalues[i]))
        for i in np.lexsort((-np.abs(possible - expected), pvalues))[:10].tolist()
        if law[i] > 0
    ]
    if pvalue < alpha:
        findings += _misfits(worst, TOKEN_SHARE * alpha / n_possible)
        findings += _group_misfits(groups, TAIL_SHARE * alpha / max(len(groups), 1))
        if corrected < alpha:
            findings.append(
                Finding(
                    Kind.FIT, observed=statistic, expected=n_bins - 1, size=n_bins,
                    pvalue=fit_pvalue,
                )
            )  # fmt: skip
    bias = detectable_bias(law, draws, alpha, power)
    ok: bool | None = not findings
    if ok and bias > 1:
        ok = None
        needed = draws_for_bias(law, 1.0, alpha, power, above=draws)
        findings.append(Finding(Kind.FEW_DRAWS, observed=draws, expected=needed))
    return Outcome(
        ok=ok,
        pvalue=0.0 if np.any(counts[law == 0]) else pvalue,
        detectable_bias=bias,
        draws=draws,
        findings=findings,
        alpha=alpha,
        power=power,
        tokens=worst,
        tails=groups,
        bins=bins,
    )


def impossible_tokens(law: Floats, counts: Ints) -> list[Finding]:
    """Find the tokens of probability 0 that were drawn."""
    drawn = np.flatnonzero((law == 0) & (counts > 0))
    drawn = drawn[np.argsort(-counts[drawn], kind="stable")]
    findings = [
        Finding(Kind.IMPOSSIBLE, token, observed=int(counts[token]))
        for token in drawn[:_NAMED].tolist()
    ]
    more = drawn[_NAMED:]
    if len(more):
        total = int(counts[more].sum())
        findings.append(Finding(Kind.MORE_IMPOSSIBLE, observed=total, size=len(more)))
    return findings


def _misfits(worst: list[TokenCount], level: float) -> list[Finding]:
    return [
        Finding(Kind.COUNT, token, observed, expected, probability=p, pvalue=pvalue)
        for token, p, expected, observed, pvalue in worst[:_NAMED]
        if pvalue < level
    ]


def _group_misfits(groups: list[Tail], level: float) -> list[Finding]:
    """The least likely size of each tail, if it is too unlikely."""
    findings = []
    for name in dict.fromkeys(tail.name for tail in groups):
        tail = min((t for t in groups if t.name == name), key=lambda t: (t.pvalue, -t.tokens))
        if tail.pvalue < level:
            findings.append(
                Finding(
                    Kind.GROUP, name, tail.observed, tail.expected, size=tail.tokens,
                    probability=tail.probability, pvalue=tail.pvalue,
                )
            )  # fmt: skip
    return findings


def required_draws(effect: float, bins: int, *, alpha: float = 1e-6, power: float = 0.999) -> int:
    """Return how many draws `check_draws` takes to see an effect.

    Parameters
    ----------
    effect : float, in (0, inf)
        Cohen's w [1]_: the root of the sum of (q - p)^2 / p over the bins, q being what the sampler
        does and p the law. If half of the probability is 1 % too high and half 1 % too low, it is
        0.01; if one bin of probability p is off by a share b, it is b sqrt(p / (1 - p)).
    bins : int, in [2, 2**36)
        How many bins there are: the tokens of 25 or more expected draws, and the rest pooled.
    alpha, power : float, in (0, 1)
        The two error rates; power is the larger.

    Returns
    -------
    int
        Not less than 25 per bin.

    See Also
    --------
    check_draws : the check.
    check_sequentially : stops as soon as a fault shows.

    References
    ----------
    .. [1] J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988.

    Examples
    --------
    >>> from sampler.testing import required_draws
    >>> required_draws(0.01, bins=50)
    1341314
    """
    effect = check_real("effect", effect, 0.0, math.inf, "a float in (0, inf)")
    if not 0.0 < effect < math.inf:
        raise ValueError(f"`effect` has to be a float in (0, inf), but is {effect}")
    bins = check_integer("bins", bins, 2, 2**36, "an integer in [2, 2**36)")
    alpha, power = check_rates(alpha, power)
    value = noncentrality(bins - 1, chi_square_share(bins) * alpha, power)
    # Exact, since the square of a small float is 0.
    return max(math.ceil(Fraction(value) / Fraction(effect) ** 2), math.ceil(MIN_EXPECTED * bins))
