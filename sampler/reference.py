"""The law again, as one would write it on a page: float64 NumPy, whole sorts, no tricks.

It explains what the core computes and is the oracle of its tests. `kept` runs the stages, each of
which says by a boolean mask over the ranked tokens which of them stay, or changes their logits, and
gives the kept token ids in rank order with their tempered logits; `probabilities`, `draw` and
`log_mass` follow. `uniform` makes the uniforms of draws, and the coins that some stages throw.
Every function takes one row, and stages whose settings are numbers: of an array of settings,
``stage.at(row)``. Slow: it sorts the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler._reference_edits import Text, edited
from sampler.stages import (
    XTC,
    AdaptiveP,
    DynamicTemperature,
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    Mirostat,
    PLess,
    Smoothing,
    TailFree,
    Temperature,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
)
from sampler.stages.base import Stage

__all__ = [
    "State",
    "Text",
    "adaptive_p",
    "draw",
    "dynamic_temperature",
    "edited",
    "entropy",
    "epsilon_cutoff",
    "eta_cutoff",
    "kept",
    "log_mass",
    "log_of_mass",
    "logprobs",
    "min_p",
    "mirostat",
    "p_less",
    "probabilities",
    "rebase",
    "smooth",
    "tail_free",
    "temper",
    "top_a",
    "top_h",
    "top_k",
    "top_n_sigma",
    "top_p",
    "typical_p",
    "uniform",
    "xtc",
]

_Array = npt.NDArray[Any]


class State(NamedTuple):
    """The kept tokens in rank order: their ids, logits, and tempered logits."""

    ids: _Array
    logits: _Array
    z: _Array
    temperature: float = 1.0
    greedy: bool = False


def _weights(z: _Array) -> _Array:
    # Long double where the platform has one: a running sum of 500,000 equal float64 terms is off
    # by more than the 1e-12 that the tests allow.
    weights: _Array = np.exp(z.astype(np.longdouble))
    return weights


def tempered(logits: _Array, temperature: float) -> _Array:
    """Divide what is below the largest, which comes first; inf makes all equal."""
    if math.isinf(temperature):
        return np.zeros(len(logits), np.longdouble)
    z: _Array = (logits.astype(np.longdouble) - logits[0]) / np.longdouble(temperature)
    return z


def temper(state: State, stage: Temperature) -> State:
    """Divide; 0 keeps the first in rank, inf makes all equal. Several multiply."""
    t = float(stage.value)
    if t == 0:
        return state._replace(
            ids=state.ids[:1], logits=state.logits[:1], z=np.zeros(1, np.longdouble), greedy=True
        )
    with np.errstate(over="ignore"):
        t = max(float(np.float64(state.temperature) * t), 5e-324)
    return state._replace(z=tempered(state.logits, t), temperature=t)


def dynamic_temperature(state: State, stage: DynamicTemperature) -> State:
    """Divide by a temperature that grows with the entropy."""
    low, high, exponent = stage.values
    n = len(state.ids)
    if n == 1:
        return state
    share = min(entropy(state) / math.log(n), 1.0)
    return temper(state, Temperature(low + (high - low) * share**exponent))


def smooth(state: State, stage: Smoothing) -> State:
    """Bend the tempered logits, and rank by what comes out; in double, as the law has it."""
    f, c = stage.values
    if math.isinf(state.temperature):
        return rebase(state, np.zeros(len(state.ids)))
    most = np.finfo(np.float64).max
    # Halved where the difference would overflow.
    half = 0.5 if state.logits[0] >= 2.0**969 else 1.0
    with np.errstate(over="ignore", under="ignore"):
        below = state.logits * half - state.logits[0] * half
        d = np.maximum(below / max(state.temperature * half, 5e-324), -most)
        a, b = np.clip([f * (3.0 - c) * -0.5, f * (c - 1.0) * 0.5], -most, most)
        return rebase(state, np.clip(d * d * (a + b * d), -most, most))


def rebase(state: State, logits: _Array) -> State:
    """Give the kept tokens new logits, at temperature 1."""
    order = np.lexsort((state.ids, -logits))
    x = logits[order]
    return state._replace(ids=state.ids[order], logits=x, z=tempered(x, 1.0), temperature=1.0)


def top_k(state: State, stage: TopK, ties: str) -> _Array:
    """Keep the first k in rank, with ties="all" everything equal to the k-th too."""
    k = min(int(stage.value), len(state.ids))
    keep: _Array = np.arange(len(state.ids)) < k
    if ties == "all":
        keep |= state.logits >= state.logits[k - 1]
    return keep


def top_p(state: State, stage: TopP, ties: str) -> _Array:
    """Keep the smallest prefix in rank whose mass is >= p."""
    mass = np.cumsum(_weights(state.z))
    before = np.concatenate([[0], mass[:-1]])
    keep: _Array = before < np.longdouble(stage.value) * mass[-1]
    keep[0] = True
    return keep


def min_p(state: State, stage: MinP, ties: str) -> _Array:
    """Keep the tokens with x >= max x + T ln m."""
    return _above(state, math.log(stage.value))


def top_n_sigma(state: State, stage: TopNSigma, ties: str) -> _Array:
    """Keep the tokens with x >= max x - n sigma, sigma the population deviation."""
    x = state.logits.astype(np.longdouble)
    if math.isinf(state.temperature) or x[0] == x[-1]:
        return np.ones(len(x), bool)
    scale = x[0] - x[-1]
    sigma = ((x[0] - x) / scale).std() * scale
    keep: _Array = state.logits >= float(x[0] - np.longdouble(stage.value) * sigma)
    return keep


def top_h(state: State, stage: TopH, ties: str) -> _Array:
    """Of the first 100 in rank, keep the longest prefix with h of their entropy."""
    z = state.z[:100]
    if len(z) > 1 and z[1] < -600:
        # Only shares matter, and all but the first might underflow: they in parts of the second.
        w = _weights(tempered(state.logits[1:100], state.temperature))
        part = np.concatenate([[w.sum()], np.where(w > 0, w * -z[1:], 0)])
    else:
        w = _weights(z[1:])
        log_mass = np.log1p(w.sum())
        part = np.concatenate([[log_mass], np.where(w > 0, w * (log_mass - z[1:]), 0)])
    keep = np.cumsum(part) <= np.longdouble(stage.value) * part.sum()
    keep &= part.sum() > 0  # else the first has all there is
    keep |= stage.value == 1.0
    keep[0] = True
    return np.concatenate([keep, np.zeros(len(state.ids) - len(z), bool)])


def typical_p(state: State, stage: TypicalP, floor: int) -> _Array:
    """Keep the least distance |-ln p - H| that holds the mass, and `floor` tokens."""
    distance = np.abs(state.z - _mean(state))
    near = np.argsort(distance, kind="stable")
    mass = np.cumsum(_weights(state.z)[near])
    enough = max(int(np.searchsorted(mass, stage.value * mass[-1])), min(floor, len(near)) - 1)
    keep: _Array = distance <= distance[near[min(enough, len(near) - 1)]]
    return keep


def epsilon_cutoff(state: State, stage: EpsilonCutoff, ties: str) -> _Array:
    """Keep p >= e."""
    return _above(state, math.log(stage.value) + _log_mass(state))


def eta_cutoff(state: State, stage: EtaCutoff, ties: str) -> _Array:
    """Keep p >= min(e, sqrt(e) exp(-H))."""
    log = math.log(stage.value)
    # ln M - H is the mean of z.
    return _above(state, min(log + _log_mass(state), 0.5 * log + _mean(state)))


def top_a(state: State, stage: TopA, ties: str) -> _Array:
    """Keep p >= a pmax^2."""
    return _above(state, math.log(stage.value) - _log_mass(state))


def p_less(state: State, stage: PLess, ties: str) -> _Array:
    """Keep p >= sum p^2."""
    return _above(state, np.log(_weights(2 * state.z).sum()) - _log_mass(state))


def tail_free(state: State, stage: TailFree, ties: str) -> _Array:
    """Keep as many tokens as there are bends before their running share exceeds z."""
    p = _weights(state.z) / _weights(state.z).sum()
    keep = np.ones(len(p), bool)
    if len(p) > 2:
        bends = np.abs(np.diff(p, 2))
        total = bends.sum()
        share = np.cumsum(bends) / total if total > 1e-6 else np.arange(1, len(p) - 1) / len(bends)
        exceeds = np.flatnonzero(share > stage.value)
        if exceeds.size:
            keep[max(int(exceeds[0]), 1) :] = False
    return keep


def xtc(state: State, stage: XTC, floor: int, coin: float | None) -> State:
    """Where the coin falls, remove the likely tokens except the last; `expected` weighs them down.

    Does nothing where fewer than `floor` tokens would be left.
    """
    threshold, probability, protected, expected = stage.values
    if not expected:
        if coin is None:
            raise ValueError(
                f"`coins` have to hold one for each XTC, but none is left for {stage!r}"
            )
        if not coin < probability:
            return state
    with np.errstate(divide="ignore"):
        likely = _above(state, np.log(np.float64(threshold)) + _log_mass(state))
    likely &= ~np.isin(state.ids, protected)
    if likely.sum() < 2:
        return state
    likely[np.flatnonzero(likely)[-1]] = False
    if expected and probability < 1:
        # ln of (1 - q) / (1 + q m / (1 - m)); with logs, since 1 - m may underflow.
        gone, rest = (state.z[one][0] + np.log(_weights(state.z[one] - state.z[one][0]).sum())
                      for one in (likely, ~likely))  # fmt: skip
        factor = np.log1p(-probability) - np.logaddexp(0, np.log(probability) + gone - rest)
        return rebase(state, (state.z + likely * factor).astype(np.float64))
    return state if (~likely).sum() < floor else keep_only(state, ~likely)


def mirostat(state: State, stage: Mirostat, vocab: int, mu: float) -> _Array:
    """Keep the tokens of a surprise up to mu; in version 1, as many as a Zipf law has them."""
    if stage.version == 2:
        return _above(state, _log_mass(state) - mu * math.log(2.0))
    n = len(state.ids)
    i = np.arange(1, min(n, 100), dtype=np.longdouble)
    t = np.log((i + 1) / i)
    slope = t @ -np.diff(state.z[: len(i) + 1]) / (t @ t) if n > 1 else 0.0
    if slope <= 0:
        return np.ones(n, bool)
    e, log_vocab = slope - 1, np.log(np.longdouble(vocab))
    zipf = -np.expm1(-e * log_vocab) / e if e else log_vocab
    log_k = (mu * np.log(np.longdouble(2)) - np.log(zipf)) / slope
    keep: _Array = np.arange(n) < max(1, math.floor(np.exp(min(log_k, np.log(n) + 1))))
    return keep


def adaptive_p(state: State, stage: AdaptiveP, total: float, weight: float) -> State:
    """Prefer probabilities near a target that the average so far moves; in double."""
    p = np.exp(np.minimum(logprobs(state), 0.0))
    target = min(max(2 * stage.values[0] - total / weight, 0.0), 1.0)
    d = np.abs(p - target) / 0.3
    return rebase(state, 5.0 - 10.0 * d * d / (1.0 + d))


def keep_only(state: State, keep: _Array) -> State:
    """Drop the others; what is left starts from its own largest logit."""
    logits = state.logits[keep]
    z = state.z[keep] if keep[0] else tempered(logits, state.temperature)
    return state._replace(ids=state.ids[keep], logits=logits, z=z)


def _above(state: State, log: Any) -> _Array:
    """Test for z >= log, by x >= max x + T log; the first stays in any case."""
    if log > 1e-12 or math.isinf(state.temperature):
        keep = np.full(len(state.ids), log <= 1e-12)
    else:
        with np.errstate(over="ignore"):
            keep = state.logits >= float(state.logits[0] + state.temperature * min(log, 0))
    keep[0] = True
    return keep


def _log_mass(state: State) -> Any:
    return np.log(_weights(state.z).sum())


def _mean(state: State) -> Any:
    """Return the mean of z, which is ln M - H."""
    w = _weights(state.z)
    return np.where(w > 0, state.z, 0) @ w / w.sum()


# Each scale changes the logits of what is kept, or how they are tempered.
_SCALES: dict[type[Stage], Callable[[State, Any], State]] = {
    Temperature: temper,
    DynamicTemperature: dynamic_temperature,
    Smoothing: smooth,
}

# Each cut says which of the kept tokens stay: a boolean mask in rank order. `typical_p` and `xtc`
# are not here, since each has a floor of another kind.
_CUTS: dict[type[Stage], Callable[[State, Any, str], _Array]] = {
    TopNSigma: top_n_sigma,
    TopH: top_h,
    TopK: top_k,
    TopP: top_p,
    MinP: min_p,
    EpsilonCutoff: epsilon_cutoff,
    EtaCutoff: eta_cutoff,
    TopA: top_a,
    TailFree: tail_free,
    PLess: p_less,
}


def kept(
    row: Any,
    stages: Iterable[Stage],
    *,
    min_tokens_to_keep: int = 1,
    ties: str = "id",
    coins: Iterable[float] = (),
    history: tuple[Sequence[int], Sequence[int]] = ((), ()),
    remembered: Sequence[float] = (),
) -> State:
    """Run the stages over one row of logits; each `XTC`, on or off, has one of the coins.

    `history` is the text so far: its prompt and its output. `remembered` is what the last stage
    remembers of it, if it has memory: the `values` of a `sampler.memory.State`.
    """
    stages, coins = list(stages), iter(coins)
    x = np.array(row, dtype=np.float64)
    x = edited(x, stages, Text(*history))
    ids = np.argsort(-x, kind="stable")  # rank: logit descending, then id ascending
    ids = ids[x[ids] > -np.inf]
    state = State(ids, x[ids], tempered(x[ids], 1.0))
    for stage in stages:
        coin = next(coins, None) if stage.has_coin else None
        if stage.is_off or stage.kind == "edit" or state.greedy:
            continue
        if isinstance(stage, XTC):
            state = xtc(state, stage, min_tokens_to_keep, coin)
        elif isinstance(stage, TypicalP):
            state = keep_only(state, typical_p(state, stage, min_tokens_to_keep))
        elif isinstance(stage, AdaptiveP):
            state = adaptive_p(state, stage, *remembered)
        elif stage.kind == "scale":
            state = _SCALES[type(stage)](state, stage)
        else:
            keep = (
                mirostat(state, stage, len(x), *remembered)
                if isinstance(stage, Mirostat)
                else _CUTS[type(stage)](state, stage, ties)
            )
            keep[:min_tokens_to_keep] = True
            state = keep_only(state, keep)
    return state


def log_of_mass(z: _Array) -> float:
    """Log of the mass of tempered logits, to the nearest multiple of 2**-32."""
    return float(np.rint(np.log(_weights(z).sum()) * 2**32) / 2**32)


def logprobs(state: State) -> _Array:
    """Natural logs of the kept tokens' probabilities, in rank order."""
    with np.errstate(over="ignore"):
        logs: _Array = state.z.astype(np.float64) - log_of_mass(state.z)
    return logs


def entropy(state: State) -> float:
    """Entropy of the law in nats, to the nearest multiple of 2**-30."""
    weights = _weights(state.z)
    mass = weights.sum()
    # -z w is 0 where w underflows, z = -inf too.
    depth = np.where(weights > 0, -state.z, 0) @ weights
    return float(np.rint((np.log(mass) + depth / mass) * 2**30) / 2**30)


def probabilities(state: State, vocab: int) -> _Array:
    """Spread the whole distribution by token id, long double."""
    p = np.zeros(vocab, dtype=np.longdouble)
    weights = _weights(state.z)
    p[state.ids] = weights / weights.sum()
    return p


def log_mass(
    row: Any,
    stages: Iterable[Stage],
    *,
    min_tokens_to_keep: int = 1,
    ties: str = "id",
    coins: Iterable[float] = (),
    history: tuple[Sequence[int], Sequence[int]] = ((), ()),
    remembered: Sequence[float] = (),
) -> float:
    """Log of the probability that the kept tokens have without the cuts: a difference of two logs.

    An `XTC` with `expected` is not a cut, nor is `AdaptiveP`.
    """
    stages = list(stages)
    more: dict[str, Any] = {
        "min_tokens_to_keep": min_tokens_to_keep,
        "history": history,
        "remembered": remembered,
    }
    state = kept(row, stages, ties=ties, coins=coins, **more)
    if state.greedy:
        return 0.0
    scales = [
        s for s in stages
        if not (s.kind == "cut" or isinstance(s, Mirostat)) or (isinstance(s, XTC) and s.expected)
    ]  # fmt: skip
    whole = kept(row, scales, **more)
    z = whole.z[np.isin(whole.ids, state.ids)]
    if not z.size:  # without the cuts the row is greedy, and has none of them
        return -math.inf
    return log_of_mass(z - z[0]) - log_of_mass(whole.z) + float(z[0])


def draw(state: State, vocab: int, u: float) -> int:
    """Find the smallest id whose cumulative probability, ids ascending, exceeds u."""
    cumulative = np.cumsum(probabilities(state, vocab))
    return int(np.searchsorted(cumulative, np.longdouble(u) * cumulative[-1], side="right"))


def uniform(seed: int, stream: int = 0, step: int = 0, draw: int = 0, lane: int = 0) -> float:
    """Draw the keyed uniform from NumPy's own Philox."""
    bits = np.random.Philox(key=seed | stream << 64, counter=step | draw << 64 | lane << 128)
    return float(np.random.Generator(bits).random())
