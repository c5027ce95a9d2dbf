"""From findings to a result: every check makes an `Outcome`, and `report` a `Result` of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sampler.testing._arguments import check_seeds
from sampler.testing._findings import Finding, Kind, sentence
from sampler.testing._result import Result, TokenCount
from sampler.testing._statistics import MIN_EXPECTED, Bins, Tail


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A `Result` before it has a name and is in English: the fields that they share are the same.

    The functions called ``judge_...`` take checked arguments and return one.
    """

    ok: bool | None
    pvalue: float
    detectable_bias: float
    draws: int
    findings: list[Finding]
    alpha: float
    power: float
    notes: list[str] = field(default_factory=list)
    seeds: dict[str, Any] = field(default_factory=dict)
    tokens: list[TokenCount] = field(default_factory=list)
    tails: list[Tail] = field(default_factory=list)
    bins: Bins | None = None
    parts: dict[str, Outcome] = field(default_factory=dict)


def report(check: str, outcome: Outcome, seeds: Any = None) -> Result:
    """Name an outcome and all its parts, and write their findings in English.

    `seeds` are what the caller says the draws came from.
    """
    same = {f.name: getattr(outcome, f.name) for f in fields(outcome)}
    return Result(
        **{
            **same,
            "check": check,
            "findings": [sentence(finding) for finding in outcome.findings],
            "seeds": {**outcome.seeds, **check_seeds(seeds)},
            "parts": {name: report(name, part) for name, part in outcome.parts.items()},
        }
    )


def exact(draws: int, findings: list[Finding], alpha: float, power: float) -> Outcome:
    """The outcome of a comparison without chance: any finding is a fault."""
    return Outcome(
        ok=not findings, pvalue=0.0 if findings else 1.0, detectable_bias=0.0, draws=draws,
        findings=findings, alpha=alpha, power=power,
    )  # fmt: skip


def concluded(
    findings: list[Finding],
    pvalue: float,
    bias: float,
    draws: int,
    fewer: int,
    alpha: float,
    power: float,
) -> Outcome:
    """The outcome of numbers; no conclusion where not even a bias of 1 would have been seen.

    `fewer` is the size of the smaller sample.
    """
    ok: bool | None = not findings and pvalue >= alpha
    if ok and not bias < 1:
        ok = None
        needed = 4 * MIN_EXPECTED if math.isinf(bias) else fewer * bias**2
        findings = [
            Finding(Kind.FEW_NUMBERS, observed=fewer, expected=math.ceil(needed))
            if needed > fewer
            else Finding(Kind.FEW_BINS, observed=fewer)
        ]
    return Outcome(
        ok=ok, pvalue=pvalue, detectable_bias=bias, draws=draws, findings=findings, alpha=alpha,
        power=power,
    )  # fmt: skip


def combined(
    parts: Mapping[str, Outcome],
    *,
    alpha: float,
    power: float,
    findings: Iterable[Finding] | None = None,
    notes: Iterable[str] = (),
    seeds: Mapping[str, Any] | None = None,
) -> Outcome:
    """Join parts that each ran at alpha / len(parts): Bonferroni's bound on all of them.

    The findings are those of the parts, if not given.
    """
    oks = [part.ok for part in parts.values()]
    ok = False if False in oks else None if None in oks or not oks else True
    if findings is None:
        findings = (f.within(name) for name, part in parts.items() for f in part.findings)
    return Outcome(
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
