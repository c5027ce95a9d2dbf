"""Promise 1, stated as code: does what a sampler kept follow from what it had?

`TABLE` has a row for each stage: what the tests that go over all stages need to know of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sampler import MinP, Sampler, SuppressTokens, Temperature, TopK, TopP

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
    x = np.array(row).astype(np.float64)
    order = rank(x)
    had, temperature = len(order), 1.0
    d = None
    for i, stage in enumerate(stages):
        s = Sampler(stages[: i + 1], min_tokens_to_keep=min_tokens_to_keep, ties=ties, seed=0)
        d = s.distribution(row)
        if stage.kind == "edit":
            TABLE[type(stage)].edit(x, stage.value)
            order = rank(x)
            had = len(order)
            assert np.array_equal(d.ids, order), f"{stage} is not the law's"
            continue
        assert np.array_equal(d.ids, order[: len(d)]), f"{stage} keeps no prefix in rank"
        check_stage(x[order], stage, had, len(d), temperature, min_tokens_to_keep, ties)
        if isinstance(stage, Temperature):  # greedy is greedy, even after infinity
            greedy = temperature == 0 or stage.value == 0
            temperature = 0.0 if greedy else max(temperature * stage.value, 5e-324)
        had = len(d)
    return d if d is not None else Sampler(seed=0).distribution(row)


def check_stage(x, stage, had, kept, temperature, floor, ties):
    """Assert that `stage` may keep `kept` of the first `had` of x, the logits in rank order."""
    if temperature == 0:
        assert kept == had == 1
    elif isinstance(stage, Temperature):
        assert kept == (1 if stage.value == 0 else had)
    else:
        assert 1 <= kept <= had
        if stage.is_off:
            assert kept == had
        else:
            TABLE[type(stage)].judge(x[:had], stage.value, kept, temperature, min(floor, had), ties)


def judge_top_k(x, k, kept, temperature, floor, ties):
    k = min(k, len(x))
    if ties == "all":
        k = int(np.sum(x >= x[k - 1]))
    assert kept == max(k, floor)


def judge_top_p(x, p, kept, temperature, floor, ties):
    depth = np.zeros(len(x)) if np.isinf(temperature) else (x - x[0]) / temperature
    mass = prefix_mass(depth)
    assert mass[kept - 1] >= p - BAND
    if kept > floor:
        assert kept == 1 or mass[kept - 2] < p + BAND


def judge_min_p(x, m, kept, temperature, floor, ties):
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
    judge: Callable | None  # of (x, value, kept, temperature, floor, ties); x in rank order
    edit: Callable | None = None  # of an edit, in place of `judge`: (x, value), x the row


def edits_first(stages):
    """The same stages as a chain may have them."""
    return sorted(stages, key=lambda stage: stage.kind != "edit")


def random_stage(rng):
    """A scale or a cut: what an edit may be depends on the row (see test_masks.py)."""
    stage = rng.choice([one for one in TABLE if one.kind != "edit"])
    case = TABLE[stage]
    return stage(rng.choice(case.edges) if rng.random() < 0.5 else case.random(rng))


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
