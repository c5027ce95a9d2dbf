"""Promise 1, stated as code: does what a sampler kept follow from what it had?

`TABLE` has a row for each stage: what the tests that go over all stages need to know of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sampler import MinP, Sampler, Smoothing, SuppressTokens, Temperature, TopK, TopP

BAND = 1e-12


def rank(x):
    """Token ids by (logit descending, id ascending), -inf left out."""
    ids = np.argsort(-x, kind="stable")
    return ids[x[ids] > -np.inf]


def prefix_mass(z):
    """Running share of the mass of tempered logits in rank order, in long double."""
    weights = np.exp((z - z[0]).astype(np.longdouble))
    mass = np.cumsum(weights)
    return mass / mass[-1]


def check_chain(row, stages, min_tokens_to_keep=1, ties="id", distribution=None):
    """Assert that every stage of the chain keeps what the law says, given what came before it.

    Runs the sampler on each prefix of the chain, so a stage is judged on its own and the band of
    one does not excuse another. Returns the whole chain's distribution.
    """
    x = np.array(row).astype(np.float64)  # -inf where removed, and new where rebased
    temperature = 1.0
    d = None
    for i, stage in enumerate(stages):
        s = Sampler(stages[: i + 1], min_tokens_to_keep=min_tokens_to_keep, ties=ties, seed=0)
        d = s.distribution(row)
        if stage.kind == "edit":
            TABLE[type(stage)].edit(x, stage.value)
        if isinstance(stage, Smoothing) and not stage.is_off and temperature > 0:
            x = smoothed(x, stage.factor, stage.curve, temperature)
            temperature = 1.0
        order = rank(x)
        keep = np.isin(order, d.ids)
        assert np.array_equal(d.ids, order[keep]), f"{stage} is not the law's"
        check_stage(x[order], stage, keep, temperature, min_tokens_to_keep, ties)
        x[order[~keep]] = -np.inf
        if isinstance(stage, Temperature):  # greedy is greedy, even after infinity
            greedy = temperature == 0 or stage.value == 0
            temperature = 0.0 if greedy else max(temperature * stage.value, 5e-324)
    return d if d is not None else Sampler(seed=0).distribution(row)


def check_stage(x, stage, keep, temperature, floor, ties):
    """Assert that `stage` may keep what the mask `keep` says of x, the logits in rank order."""
    if temperature == 0:
        assert keep.tolist() == [True]
    elif stage.kind != "cut" or stage.is_off:
        assert keep[0]
        assert keep.sum() == (1 if stage == Temperature(0) else len(x))
    else:
        TABLE[type(stage)].judge(x, stage.value, keep, temperature, min(floor, len(x)), ties)


def length_of_prefix(keep):
    kept = int(keep.sum())
    assert kept >= 1
    assert keep[:kept].all()
    return kept


def smoothed(x, factor, curve, temperature):
    there = x > -np.inf
    most = np.finfo(np.float64).max
    with np.errstate(all="ignore"):
        d = np.clip((x - x.max()) / temperature, -most, most)
        square, cube = np.clip([factor * (3 - curve) / -2, factor * (curve - 1) / 2], -most, most)
        new = np.clip(d * d * (square + cube * d), -most, most)
    return np.where(there, new + 0.0, -np.inf)


def judge_top_k(x, k, keep, temperature, floor, ties):
    k = min(k, len(x))
    if ties == "all":
        k = int(np.sum(x >= x[k - 1]))
    assert length_of_prefix(keep) == max(k, floor)


def judge_top_p(x, p, keep, temperature, floor, ties):
    kept = length_of_prefix(keep)
    with np.errstate(over="ignore"):  # so deep that it weighs nothing in any case
        depth = np.zeros(len(x)) if np.isinf(temperature) else (x - x[0]) / temperature
    mass = prefix_mass(depth)
    assert mass[kept - 1] >= p - BAND
    if kept > floor:
        assert kept == 1 or mass[kept - 2] < p + BAND


def judge_min_p(x, m, keep, temperature, floor, ties):
    kept = length_of_prefix(keep)
    if np.isinf(temperature):
        assert kept == len(x)
        return
    threshold = x[0] + temperature * np.log(m)
    slack = BAND * abs(threshold)
    if kept > floor:
        assert x[kept - 1] >= threshold - slack
    if kept < len(x):
        assert x[kept] < threshold + slack


def suppress_tokens(x, ids):
    for token in ids:
        x[token] = -np.inf


class Case(NamedTuple):
    """How the tests treat a stage. Everything that goes over all stages reads it."""

    values: tuple  # what it can do: keep one, a few, ties, nearly all; be greedy, or make all equal
    gentle: tuple  # leave enough for a stage that follows
    after: float  # what is left to do after another stage
    edges: tuple  # for random chains, half of the time
    random: Callable  # of a generator: the other half
    judge: Callable | None  # of (x, value, keep, temperature, floor, ties); x in rank order
    edit: Callable | None = None  # of an edit, in place of `judge`: (x, value), x the row


def edits_first(stages):
    """The same stages as a chain may have them."""
    return sorted(stages, key=lambda stage: stage.kind != "edit")


def random_stage(rng):
    """A scale or a cut: what an edit may be depends on the row (see test_masks.py)."""
    stage = rng.choice([one for one in TABLE if one.kind != "edit"])
    return stage.of(random_value(rng, stage, 0.5))


def random_value(rng, stage, edge):
    """What the keyword of a stage may be; of the edges, with that probability."""
    case = TABLE[stage]
    return case.edges[rng.integers(len(case.edges))] if rng.random() < edge else case.random(rng)


inf = float("inf")
TABLE = {
    SuppressTokens: Case(  # of rows whose token 4, at least, is there
        values=((1,), (0, 2, 5)), gentle=((2,),), after=(6,), edges=(), random=None, judge=None,
        edit=suppress_tokens,
    ),
    Temperature: Case(
        values=(0.0, 0.3, 4.0, inf), gentle=(0.8, inf), after=0.0,
        edges=(0.0, 1e-30, 0.1, 0.5, 0.8, 1.0, 2.0, 5.0, 100.0, 1e30, inf),
        random=lambda rng: rng.uniform(0.05, 3), judge=None,
    ),
    Smoothing: Case(
        values=(0.5, (0.2, 1.5), (0.1, 4.0)), gentle=(0.3, (0.1, 2.0)), after=(0.2, 1.5),
        edges=(1e-9, 0.2, (0.3, 2.0), (1.0, 3.0), (0.01, 5.0), (1e300, 1e300), 1e-300),
        random=lambda rng: (rng.uniform(0.01, 2), rng.uniform(1, 4)), judge=None,
    ),
    TopK: Case(
        values=(1, 3), gentle=(5,), after=4, edges=(1, 2, 5, 50, 100, 500, 1000, 4000),
        random=lambda rng: rng.integers(1, 4000), judge=judge_top_k,
    ),
    TopP: Case(
        values=(0.0, 0.35, 0.93), gentle=(0.97,), after=0.85,
        edges=(0.0, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1 - 1e-12, 1 - 2**-53),
        random=lambda rng: rng.random(), judge=judge_top_p,
    ),
    MinP: Case(
        values=(0.99, 0.2, 1.0), gentle=(0.01,), after=0.5,
        edges=(1e-300, 1e-10, 0.01, 0.05, 0.5, 1.0), random=lambda rng: rng.random(),
        judge=judge_min_p,
    ),
}  # fmt: skip
