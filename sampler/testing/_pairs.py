"""The independence of tokens: from those of neighbouring rows, calls and seeds.

Ids are put in a few bins of about equal mass; a table counts the pairs of bins, and chi-square from
its own margins judges it: the law plays no part.
"""

from __future__ import annotations

import math

import numpy as np

from sampler.testing._findings import Finding, Kind
from sampler.testing._outcome import Outcome
from sampler.testing._statistics import MIN_EXPECTED, Ints, contingency, noncentrality

JOINT_BINS = 8  # a side of a table of pairs

Pairs = dict[str, tuple[Ints, Ints]]


def judge_rows_and_steps(
    tokens: Ints, vocab: int, alpha: float, power: float
) -> dict[str, Outcome]:
    """Judge the pairs within calls, "rows", and those of neighbouring calls, "steps"."""
    bins = joint_bins(tokens, vocab)
    parts = {
        "rows": _judge_rows(bins, alpha, power),
        "steps": _judge_steps(bins, alpha, power),
    }
    if all(part.ok is False for part in parts.values()):
        # Repeated pairs look like dependence of the other kind too. What repeats more is the
        # cause, and the other is judged once more where there are no repeats.
        rows = float(np.mean(tokens[:, 1:] == tokens[:, :-1]))
        steps = float(np.mean(tokens[1:] == tokens[:-1]))
        if steps < 0.5 * rows:
            parts["steps"] = _judge_steps(bins[:, :2], alpha, power)
        elif rows < 0.5 * steps:
            parts["rows"] = _judge_rows(bins[:1], alpha, power)
    return parts


def judge_seeds(
    a: Ints, b: Ints, plain: dict[str, Outcome], vocab: int, alpha: float, power: float
) -> Outcome:
    """Judge pairs of tokens under neighbouring seeds; `plain` is of one seed's rows and steps."""
    a, b = joint_bins(a, vocab), joint_bins(b, vocab)
    # Of rows or calls that repeat, few: their pairs are no further evidence.
    if plain["rows"].ok is False:
        a, b = a[:, :2], b[:, :2]
    if plain["steps"].ok is False:
        a, b = a[:2], b[:2]
    pairs = {
        "seeds s and s + 1": (a, b),
        "row i + 1 under seed s and row i under seed s + 1": (a[:, 1:], b[:, :-1]),
        "call t + 1 under seed s and call t under seed s + 1": (a[1:], b[:-1]),
    }
    return _judge(pairs, {}, alpha, power)


def joint_bins(tokens: Ints, vocab: int) -> Ints:
    """Contiguous ids in bins of about equal mass: what is near in u is near here."""
    counts = np.bincount(tokens.ravel(), minlength=vocab)
    middle = (np.cumsum(counts) - 0.5 * counts) / counts.sum()
    labels = np.minimum((middle * JOINT_BINS).astype(np.int64), JOINT_BINS - 1)
    bins: Ints = labels[tokens]
    return bins


def _judge_rows(bins: Ints, alpha: float, power: float) -> Outcome:
    """Rows 1, 2, 4 ... apart; a row in one pair of each kind, so that pairs are independent."""
    batch = bins.shape[1]
    pairs = {}
    lag = 1
    while lag < batch:
        left = np.arange(batch - lag)
        left = left[(left // lag) % 2 == 0]
        pairs[f"rows i and i + {lag} of a batch"] = (bins[:, left], bins[:, left + lag])
        lag *= 2
    # The first row, the second, two more, four more ...; the same from the end.
    places = np.minimum(np.ceil(np.log2(1 + np.arange(batch))), JOINT_BINS - 1).astype(np.int64)
    distances = {
        f"a row's distance from the {end} of the batch and its tokens": (
            np.broadcast_to(labels, bins.shape), bins,
        )
        for end, labels in (("first", places), ("last", places[::-1]))
    }  # fmt: skip
    return _judge(pairs, distances, alpha, power)


def _judge_steps(bins: Ints, alpha: float, power: float) -> Outcome:
    """Calls 1 and 2 apart; also one row further, where a seed is a sum of row and step."""
    pairs = {}
    for lag in (1, 2):
        left = np.arange(len(bins) - lag)
        left = left[(left // lag) % 2 == 0]
        if len(left):
            a, b = bins[left], bins[left + lag]
            pairs[f"calls t and t + {lag}"] = (a, b)
            pairs[f"row i + 1 of call t and row i of call t + {lag}"] = (a[:, 1:], b[:, :-1])
            pairs[f"row i of call t and row i + 1 of call t + {lag}"] = (a[:, :-1], b[:, 1:])
    return _judge(pairs, {}, alpha, power)


def _judge(alike: Pairs, others: Pairs, alpha: float, power: float) -> Outcome:
    """Chi-square of every table of pairs. Those that are `alike`, two tokens, can also agree."""
    pairs = {**alike, **others}
    level = alpha / max(len(pairs), 1)
    pvalues, findings = [], []
    count, enough = 0, False
    for name, (a, b) in pairs.items():
        key = a * JOINT_BINS + b
        table = np.bincount(key.ravel(), minlength=JOINT_BINS**2).reshape(JOINT_BINS, -1)
        _, pvalue, freedom = contingency(table)
        pvalues.append(pvalue)
        count += a.size
        # Without freedom among many pairs, nearly all are of one bin: nothing to depend on.
        enough = enough or freedom > 0 or a.size >= 4 * MIN_EXPECTED * JOINT_BINS
        if pvalue < level:
            findings.append(_dependence(name, table, pvalue, name in alike))
    copies = [f for f in findings if f.kind is Kind.AGREEING and f.observed > 0.9]
    findings = copies or findings  # what is a copy explains the rest
    # How much likelier one joint bin of 64 would have to be, in the table of the fewest pairs.
    fewest = min((a.size for a, _ in pairs.values()), default=0)  # one call has no next
    value = noncentrality((JOINT_BINS - 1) ** 2, level, power)
    ok: bool | None = not findings
    if not enough:
        ok = None
        findings = [Finding(Kind.FEW_PAIRS, observed=count)]
    return Outcome(
        ok=ok, pvalue=min([1.0, *(len(pairs) * p for p in pvalues)]), draws=count,
        findings=findings[:3],
        detectable_bias=math.sqrt(value * (JOINT_BINS**2 - 1) / fewest) if fewest else math.inf,
        alpha=alpha, power=power,
    )  # fmt: skip


def _dependence(name: str, table: Ints, pvalue: float, can_agree: bool) -> Finding:
    if not can_agree:
        return Finding(Kind.DEPENDENT, name, pvalue=pvalue)
    shares = table / table.sum()
    agreeing = float(np.trace(shares))
    usual = float(np.sum(shares.sum(0) * shares.sum(1)))
    return Finding(Kind.AGREEING, name, agreeing, usual, pvalue=pvalue)
