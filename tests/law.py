"""Promise 1, stated as code: does what a sampler kept follow from what it had?

`TABLE` has a row for each stage: what the tests that go over all stages need to know of it.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sampler import (
    DRY,
    XTC,
    AdaptiveP,
    BadWords,
    BeginSuppressTokens,
    DynamicTemperature,
    EpsilonCutoff,
    EtaCutoff,
    ForcedTokens,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    MinP,
    Mirostat,
    NoRepeatNgram,
    PLess,
    PresencePenalty,
    RepetitionPenalty,
    Sampler,
    Samples,
    SequenceBias,
    Smoothing,
    SuppressTokens,
    TailFree,
    Temperature,
    TokenCount,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    reference,
)
from sampler import _reference_edits as reference_edits
from sampler._reference_edits import Text
from sampler.history import History
from sampler.memory import State

BAND = 1e-12
# The fields of every Samples: the state is that of a sampler with memory.
_APART = ("state", "kept_ids", "kept_indptr")  # not an array of one figure per token
FIGURES = [one.name for one in dataclasses.fields(Samples) if one.name not in _APART]
HISTORY = History([1, 0, 3, 1], [0, 3, 1])  # where a chain needs one


def given(stages):
    """What a call says of the text, if any of the stages looks at it or remembers it."""
    needed = any(stage.kind == "edit" and stage.needs_history for stage in stages)
    said = {"history": HISTORY} if needed else {}
    memory = [stage for stage in stages if stage.kind == "memory" and not stage.is_off]
    return {**said, "state": State(*memory)} if memory else said


def remembered(stages):
    """The same for the twin."""
    state = given(stages).get("state")
    return () if state is None else state.values


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
    x = reference_edits.edited(x, stages, Text(HISTORY.prompt, HISTORY.output))
    for i, stage in enumerate(stages):
        if [one.kind for one in stages[i : i + 2]] == ["edit", "edit"]:
            continue  # all edits are judged together
        s = Sampler(stages[: i + 1], min_tokens_to_keep=min_tokens_to_keep, ties=ties, seed=0)
        d = s.distribution(row, **given(stages[: i + 1]))
        if stage.is_off or temperature == 0:
            pass
        elif isinstance(stage, Smoothing):
            x = smoothed(x, stage.factor, stage.curve, temperature)
            temperature = 1.0
        elif isinstance(stage, AdaptiveP):
            law = adaptive(x, stage, temperature)
            x = s.filter(np.array(row, np.float64), **given(stages))  # which ranks by its own bits
            assert same_logits(law, x), f"{stage} is not the law's"
            temperature = 1.0
        elif isinstance(stage, XTC):
            floor, u = min_tokens_to_keep, coin(i, stages)
            branches = [xtc(x, stage, temperature, floor, u, slack) for slack in (0, -BAND, BAND)]
            if stage.expected:  # logits close to the law's, which rank by their own bits
                new = s.filter(np.array(row, np.float64))
                branches = [
                    (new if y is not x and same_logits(y, new) else y, t) for y, t in branches
                ]
            branches = [one for one in branches if np.array_equal(rank(one[0]), d.ids)]
            assert branches, f"{stage} is not the law's"
            x, temperature = branches[0]
            continue
        order = rank(x)
        keep = np.isin(order, d.ids)
        assert np.array_equal(d.ids, order[keep]), f"{stage} is not the law's"
        check_stage(x[order], stage, keep, temperature, min_tokens_to_keep, ties, len(x))
        if isinstance(stage, DynamicTemperature) and not stage.is_off:
            stage = Temperature(dynamic(x[order], stage, temperature))
        x[order[~keep]] = -np.inf
        if isinstance(stage, Temperature):  # greedy is greedy, even after infinity
            greedy = temperature == 0 or stage.value == 0
            temperature = 0.0 if greedy else max(temperature * stage.value, 5e-324)
    return d if d is not None else Sampler(seed=0).distribution(row)


def same_logits(a, b):
    return np.allclose(a - a.max(), b - b.max(), rtol=BAND, atol=BAND)


def adaptive(x, stage, temperature):
    """The row after an AdaptiveP in its first state, whose target is that of the stage."""
    z = tempered(x, temperature) if np.isinf(temperature) else (x - x.max()) / temperature
    log_mass = np.rint(np.log(np.exp(np.longdouble(1) * z)[x > -np.inf].sum()) * 2**32) / 2**32
    d = np.abs(np.exp(np.minimum(z - log_mass, 0)) - stage.target) / 0.3
    return np.where(x > -np.inf, 5 - 10 * d * d / (1 + d), -np.inf).astype(np.float64)


def check_stage(x, stage, keep, temperature, floor, ties, vocab):
    """Assert that `stage` may keep what the mask `keep` says of x, the logits in rank order."""
    if temperature == 0:
        assert keep.tolist() == [True]
    elif TABLE[type(stage)].judge is None or stage.is_off:
        greedy = stage == Temperature(0) or (
            isinstance(stage, DynamicTemperature)
            and not stage.is_off
            and dynamic(x, stage, temperature) == 0
        )
        assert keep[0]
        assert keep.sum() == (1 if greedy else len(x))
    else:
        more = {"vocab": vocab} if isinstance(stage, Mirostat) else {}
        floor = min(floor, len(x))
        TABLE[type(stage)].judge(x, stage.value, keep, temperature, floor, ties, **more)


def length_of_prefix(keep):
    kept = int(keep.sum())
    assert kept >= 1
    assert keep[:kept].all()
    return kept


def smoothed(x, factor, curve, temperature):
    there = x > -np.inf
    most = np.finfo(np.float64).max
    with np.errstate(all="ignore"):
        half = 0.5 if x.max() >= 2.0**969 else 1.0  # where the difference would overflow
        d = np.clip((x * half - x.max() * half) / (temperature * half), -most, most)
        d = np.zeros(len(x)) if np.isinf(temperature) else d
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


def tempered(x, temperature):
    """The tempered logits of x, in rank order."""
    if np.isinf(temperature):
        return np.zeros(len(x), np.longdouble)
    return (x.astype(np.longdouble) - x[0]) / np.longdouble(temperature)


def judge_above(x, keep, temperature, floor, log):
    """All with z >= log, of which either way only where p is within a relative band of it."""
    kept = length_of_prefix(keep)
    if np.isinf(temperature):
        assert kept == len(x) or (kept == max(1, floor) and log > -BAND)
        assert kept == max(1, floor) or log <= BAND
        return
    threshold = x[0] + temperature * float(log)
    slack = BAND * abs(threshold) + BAND * abs(x[0]) + BAND * temperature
    if kept > max(floor, 1):
        assert x[kept - 1] >= threshold - slack
    if kept < len(x):
        assert x[kept] < threshold + slack


def sums(x, temperature):
    """ln M, the mean of z, and ln of the sum of w^2."""
    z = tempered(x, temperature)
    w = np.exp(z)
    mean = np.where(w > 0, z, 0) @ w / w.sum()
    return np.log(w.sum()), mean, np.log(np.exp(2 * z).sum())


def judge_epsilon_cutoff(x, e, keep, temperature, floor, ties):
    judge_above(x, keep, temperature, floor, np.log(e) + sums(x, temperature)[0])


def judge_eta_cutoff(x, e, keep, temperature, floor, ties):
    log_mass, mean, _ = sums(x, temperature)
    judge_above(x, keep, temperature, floor, min(np.log(e) + log_mass, np.log(e) / 2 + mean))


def judge_top_a(x, a, keep, temperature, floor, ties):
    judge_above(x, keep, temperature, floor, np.log(a) - sums(x, temperature)[0])


def judge_p_less(x, _, keep, temperature, floor, ties):
    log_mass, _, log_squares = sums(x, temperature)
    judge_above(x, keep, temperature, floor, log_squares - log_mass)


def judge_top_n_sigma(x, n, keep, temperature, floor, ties):
    kept = length_of_prefix(keep)
    if np.isinf(temperature) or x[0] == x[-1]:
        assert kept == len(x)
        return
    wide = x.astype(np.longdouble)
    sigma = float(((wide[0] - wide) / (wide[0] - wide[-1])).std() * (wide[0] - wide[-1]))
    threshold = x[0] - n * sigma
    slack = BAND * (abs(x[0]) + n * sigma)
    if kept > floor:
        assert x[kept - 1] >= threshold - slack
    if kept < len(x):
        assert x[kept] < threshold + slack


def judge_top_h(x, h, keep, temperature, floor, ties):
    kept = length_of_prefix(keep)
    n = min(100, len(x))
    z = tempered(x[:n], temperature)
    deep = n > 1 and z[1] < -600  # so that all but the first might underflow
    w = np.exp(tempered(x[1:n], temperature) if deep else z[1:])
    log_mass = 0 if deep else np.log1p(w.sum())
    rest = np.where(w > 0, w * (log_mass - z[1:]), 0)
    part = np.concatenate([[w.sum() if deep else log_mass], rest])
    share = np.cumsum(part) / part.sum() if part.sum() > 0 else np.ones(n)
    assert kept <= max(n, floor)
    if kept > max(floor, 1):
        assert share[kept - 1] <= h + BAND
    if kept < n:
        assert h < 1
        assert share[kept] > h - BAND


def judge_tail_free(x, z, keep, temperature, floor, ties):
    kept = length_of_prefix(keep)
    n = len(x)
    if n <= 2:
        assert kept == n
        return
    w = np.exp(tempered(x, temperature))
    bends = np.abs(np.diff(w / w.sum(), 2))
    total = bends.sum()
    if abs(total / 1e-6 - 1) < 1e-9:
        return  # on which side of the rule, nobody can say
    share = np.cumsum(bends) / total if total > 1e-6 else np.arange(1, n - 1) / (n - 2)
    slack = BAND + 1e-15 / max(total, 1e-6)
    least, most = (
        n if before == n - 2 else max(int(before), 1, floor)
        for before in np.searchsorted(share, [z - slack, z + slack], side="right")
    )
    assert least <= kept <= most


def judge_mirostat(x, value, keep, temperature, floor, ties, vocab):
    """In its first state, whose mu is twice tau."""
    version, tau, _ = value
    log_mu = 2 * tau * np.log(2)
    if version == 2:
        judge_above(x, keep, temperature, floor, sums(x, temperature)[0] - log_mu)
        return
    kept = length_of_prefix(keep)
    i = np.arange(1, min(len(x), 100), dtype=np.longdouble)
    t = np.log((i + 1) / i)
    slope = t @ -np.diff(tempered(x, temperature)[: len(i) + 1]) / (t @ t if len(x) > 1 else 1)
    if slope <= 0:
        assert kept == len(x)
        return
    e = slope - 1
    zipf = -np.expm1(-e * np.log(vocab)) / e if e else np.log(vocab)
    k = np.exp(min((log_mu - np.log(zipf)) / slope, 40))
    least = max(1, floor)
    ends = [np.clip(int(min(k * (1 + band), 1e9)), least, len(x)) for band in (-1e-11, 1e-11)]
    assert ends[0] <= kept <= ends[1]


def judge_typical_p(x, m, keep, temperature, floor, ties):
    z = tempered(x, temperature)
    w = np.exp(z)
    log_mass, mean, _ = sums(x, temperature)
    distance = np.abs(z - mean)
    last = np.flatnonzero(keep)[np.argmax(distance[keep])]
    slack = BAND * np.maximum(log_mass - z, log_mass - mean)
    slack += slack[last]
    # An interval: all nearer ones are in.
    nearer = distance < distance[last] - slack
    assert keep[nearer].all()
    share = w / w.sum()
    assert share[distance <= distance[last] + slack].sum() >= m - BAND
    if nearer.any() and nearer.sum() >= floor:
        assert share[nearer].sum() < m + BAND


def xtc(x, stage, temperature, floor, u, slack):
    """The row and its temperature after XTC with the coin u, its threshold off by `slack`."""
    threshold, q, protected, expected = stage.values
    if not expected and not u < q:
        return x, temperature
    order = rank(x)
    z = tempered(x[order], temperature)
    w = np.exp(z)
    with np.errstate(divide="ignore"):
        log = np.log(np.float64(threshold)) + np.log(w.sum())
    log += slack * (1 + np.log(w.sum()))
    if np.isinf(temperature):
        likely = np.full(len(order), log <= 0)
    else:
        # Above 0 nothing is, although the product may underflow.
        likely = (x[order] >= float(x[order[0]] + temperature * log)) & (log <= BAND)
    likely &= ~np.isin(order, protected)
    if likely.sum() < 2:
        return x, temperature
    likely[np.flatnonzero(likely)[-1]] = False
    after = np.full(len(x), -np.inf)
    if expected and q < 1:
        factor = (1 - q) / (1 + q * w[likely].sum() / w[~likely].sum())
        after[order] = z + likely * np.log(factor)
        return after, 1.0
    if (~likely).sum() < floor:
        return x, temperature
    after[order[~likely]] = x[order[~likely]]
    return after, temperature


def coin(place, stages):
    """The coin of the stage at that place of a chain, for the first draw of a sampler of seed 0."""
    before = sum(stage.has_coin for stage in stages[:place])
    return reference.uniform(0, lane=1 + before)


def coins_of(stages):
    return [coin(i, stages) for i, stage in enumerate(stages) if stage.has_coin]


def dynamic(x, stage, temperature):
    """The temperature of a DynamicTemperature, of the logits x in rank order."""
    low, high, exponent = stage.values
    if len(x) == 1 or temperature == 0:
        return 1.0
    log_mass, mean, _ = sums(x, temperature)
    entropy = float(np.rint((log_mass - mean) * 2**30) / 2**30)
    return low + (high - low) * min(entropy / np.log(len(x)), 1.0) ** exponent


class Case(NamedTuple):
    """How the tests treat a stage. Everything that goes over all stages reads it."""

    values: tuple  # what it can do: keep one, a few, ties, nearly all; be greedy, or make all equal
    gentle: tuple  # leave enough for a stage that follows
    after: float  # what is left to do after another stage
    edges: tuple  # for random chains, half of the time
    random: Callable  # of a generator: the other half
    judge: Callable | None  # of (x, value, keep, temperature, floor, ties); x in rank order


def in_order(stages):
    """The same stages as a chain may have them."""
    return sorted(stages, key=lambda stage: (stage.kind == "memory") - (stage.kind == "edit"))


def random_stage(rng):
    """A scale or a cut: what an edit may be depends on the row (see test_masks.py)."""
    stage = rng.choice([one for one in TABLE if one.kind in ("scale", "cut")])
    return stage.of(random_value(rng, stage, 0.5))


def random_value(rng, stage, edge):
    """What the keyword of a stage may be; of the edges, with that probability."""
    case = TABLE[stage]
    return case.edges[rng.integers(len(case.edges))] if rng.random() < edge else case.random(rng)


def edit(value, gentle, *more):
    return Case(
        values=(value, *more), gentle=(gentle,), after=gentle, edges=(), random=None, judge=None
    )


inf = float("inf")
TABLE = {
    # Of rows whose token 4, at least, is there. The edits are judged by the twin.
    LogitBias: edit({1: 1.5, 2: -0.7, 0: -inf}, {6: 2.0}),
    SequenceBias: edit({(3, 1, 2): 1.5, (1,): -1.0, (1, 0): -inf}, {(1, 6): 2.0}),
    RepetitionPenalty: edit((1.7, 3, True, 2), (1.1, 5, False, 0)),
    FrequencyPenalty: edit((0.4, None, True, 0), -0.3),
    PresencePenalty: edit((0.6, 2, False, 3), 0.2),
    DRY: edit((0.8, 1.75, 1, None, True, ()), (1.0, 2.0, 2, 6, True, ((5,),))),
    NoRepeatNgram: edit(2, 3),
    BadWords: edit(((1, 2), (5,)), ((3, 1, 6),)),
    SuppressTokens: edit((1,), (6,), (0, 2, 5)),
    BeginSuppressTokens: edit((1, 2), (3,)),
    MinNewTokens: edit((5, (1, 2)), (2, (1,))),
    TokenCount: edit(5, 300),
    ForcedTokens: edit({3: 4}, {9: 1}),
    Temperature: Case(
        values=(0.0, 0.3, 4.0, inf), gentle=(0.8, inf), after=0.0,
        edges=(0.0, 1e-30, 0.1, 0.5, 0.8, 1.0, 2.0, 5.0, 100.0, 1e30, inf),
        random=lambda rng: rng.uniform(0.05, 3), judge=None,
    ),
    DynamicTemperature: Case(
        values=((0.0, 1.5, 1.0), (0.5, 2.0, 0.5)), gentle=((0.9, 1.3, 1.0),), after=(0.5, 1.5, 1.0),
        edges=((0.0, 2.0, 1.0), (0.7, 0.7, 1.0), (0.1, 3.0, 0.0), (0.5, 1.5, 8.0)),
        random=lambda rng: (rng.uniform(0.1, 1), rng.uniform(1, 3), rng.uniform(0, 3)), judge=None,
    ),
    Smoothing: Case(
        values=(0.5, (0.2, 1.5), (0.1, 4.0)), gentle=(0.3, (0.1, 2.0)), after=(0.2, 1.5),
        edges=(1e-9, 0.2, (0.3, 2.0), (1.0, 3.0), (0.01, 5.0), (1e300, 1e300), 1e-300),
        random=lambda rng: (rng.uniform(0.01, 2), rng.uniform(1, 4)), judge=None,
    ),
    TopNSigma: Case(
        values=(0.1, 1.03), gentle=(2.9,), after=1.7,
        edges=(1e-300, 0.5, 1.0, 1.5, 2.0, 3.0, 1e300), random=lambda rng: rng.uniform(0.05, 4),
        judge=judge_top_n_sigma,
    ),
    TopH: Case(
        values=(1e-3, 0.37, 1.0), gentle=(0.97,), after=0.83, edges=(1e-9, 0.1, 0.4, 0.9, 1.0),
        random=lambda rng: rng.uniform(0.01, 1), judge=judge_top_h,
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
    TypicalP: Case(
        values=(1e-3, 0.43, 0.93), gentle=(0.98,), after=0.87,
        edges=(1e-12, 0.2, 0.5, 0.9, 0.95, 0.999, 1 - 1e-9), random=lambda rng: 1 - rng.random(),
        judge=judge_typical_p,
    ),
    EpsilonCutoff: Case(
        values=(0.93, 0.113), gentle=(1e-4,), after=0.011,
        edges=(1e-300, 1e-9, 3e-4, 1e-3, 0.01, 0.1, 0.999), random=lambda rng: rng.random() ** 4,
        judge=judge_epsilon_cutoff,
    ),
    EtaCutoff: Case(
        values=(0.93, 0.113), gentle=(1e-4,), after=0.011,
        edges=(1e-300, 1e-9, 3e-4, 4e-3, 0.1, 0.999), random=lambda rng: rng.random() ** 4,
        judge=judge_eta_cutoff,
    ),
    TopA: Case(
        values=(0.97, 0.23), gentle=(1e-3,), after=0.31, edges=(1e-300, 1e-6, 0.01, 0.2, 1.0),
        random=lambda rng: rng.random() ** 2, judge=judge_top_a,
    ),
    TailFree: Case(
        values=(1e-3, 0.37, 0.93), gentle=(0.99,), after=0.87,
        edges=(1e-9, 0.1, 0.5, 0.9, 0.95, 0.999), random=lambda rng: 1 - rng.random(),
        judge=judge_tail_free,
    ),
    PLess: Case(
        values=(True,), gentle=(True,), after=True, edges=(True,), random=lambda rng: True,
        judge=judge_p_less,
    ),
    XTC: Case(
        values=((0.11, 1.0), (0.03, 1.0, (1, 4)), (0.07, 0.6, (), True)), gentle=((0.21, 1.0),),
        after=(0.11, 0.6),
        edges=((0.0, 1.0), (0.5, 1.0), (0.1, 0.5), (1e-3, 1.0, (0,)), (0.01, 0.5, (0,), True)),
        random=lambda rng: (rng.random() / 2, rng.random()), judge=None,
    ),
    Mirostat: Case(
        values=((1, 0.3), 2, (2, 0.1), (1, 1.7), (2, 1.1)), gentle=((2, 4.0),), after=(2, 2.0),
        edges=((1, 0.0), (2, 0.0), (1, 5.0), (2, 1e6), (1, 1e6)),
        random=lambda rng: (rng.integers(1, 3), rng.uniform(0, 6)), judge=judge_mirostat,
    ),
    AdaptiveP: Case(
        values=(0.1, (0.9, 0.0)), gentle=(0.5,), after=0.3, edges=(0.0, 1.0, (0.5, 0.99)),
        random=lambda rng: (rng.random(), rng.uniform(0, 0.99)), judge=None,
    ),
}  # fmt: skip
