"""The law again, as one would write it on a page: float64 NumPy, whole sorts, no tricks.

It explains what the core computes and is the oracle of its tests. `kept` runs the stages, each of
which says by a boolean mask over the ranked tokens which of them stay, or changes their logits, and
gives the kept token ids in rank order with their tempered logits; `probabilities`, `draw` and
`log_mass` follow. Every function takes one row, and stages whose settings are numbers: of an array
of settings, ``stage.at(row)``. Slow: it sorts the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler.stages import MinP, Smoothing, Stage, SuppressTokens, Temperature, TopK, TopP

__all__ = [
    "State",
    "draw",
    "kept",
    "log_mass",
    "log_of_mass",
    "logprobs",
    "min_p",
    "probabilities",
    "suppress_tokens",
    "temper",
    "top_k",
    "top_p",
    "uniform",
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


def suppress_tokens(x: _Array, stage: SuppressTokens) -> None:
    """Forbid these ids."""
    x[list(stage.value)] = -np.inf


def temper(state: State, stage: Temperature) -> State:
    """Divide; 0 keeps the first in rank, inf makes all equal."""
    t = stage.value
    if t == 0:
        return State(state.ids[:1], state.logits[:1], np.zeros(1), greedy=True)
    with np.errstate(over="ignore"):  # so deep that it weighs nothing in any case
        z = np.zeros_like(state.z) if math.isinf(t) else state.z / t
    return state._replace(z=z, temperature=max(state.temperature * t, 5e-324))


def smooth(state: State, stage: Smoothing) -> State:
    """Bend the tempered logits, and rank by what comes out; in double, as the law has it."""
    f, c = stage.values
    if math.isinf(state.temperature):
        return rebase(state, np.zeros(len(state.ids)))
    most = np.finfo(np.float64).max
    # Halved where the difference would overflow.
    half = 0.5 if state.logits[0] >= 2.0**969 else 1.0
    with np.errstate(over="ignore"):
        below = state.logits * half - state.logits[0] * half
        d = np.maximum(below / (state.temperature * half), -most)
        a, b = np.clip([f * (3.0 - c) * -0.5, f * (c - 1.0) * 0.5], -most, most)
        return rebase(state, np.clip(d * d * (a + b * d), -most, most))


def rebase(state: State, logits: _Array) -> State:
    """Give the kept tokens new logits, at temperature 1."""
    order = np.lexsort((state.ids, -logits))
    x = logits[order]
    return State(state.ids[order], x, x.astype(np.longdouble) - x[0])


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
    if math.isinf(state.temperature):
        return np.ones(len(state.ids), bool)
    keep: _Array = state.logits >= state.logits[0] + state.temperature * math.log(stage.value)
    return keep


# Each edit changes the row, before anything is ranked.
_EDITS: dict[type[Stage], Callable[[_Array, Any], None]] = {SuppressTokens: suppress_tokens}

# Each scale changes the logits of what is kept, or how they are tempered.
_SCALES: dict[type[Stage], Callable[[State, Any], State]] = {
    Temperature: temper,
    Smoothing: smooth,
}

# Each cut says which of the kept tokens stay: a boolean mask in rank order.
_CUTS: dict[type[Stage], Callable[[State, Any, str], _Array]] = {
    TopK: top_k,
    TopP: top_p,
    MinP: min_p,
}


def kept(
    row: Any, stages: Iterable[Stage], *, min_tokens_to_keep: int = 1, ties: str = "id"
) -> State:
    """Run the stages over one row of logits."""
    stages = list(stages)
    x = np.array(row, dtype=np.float64)
    for edit in stages:
        if edit.kind == "edit":
            _EDITS[type(edit)](x, edit)
    ids = np.argsort(-x, kind="stable")  # rank: logit descending, then id ascending
    ids = ids[x[ids] > -np.inf]
    state = State(ids, x[ids], x[ids].astype(np.longdouble) - x[ids[0]])
    for stage in stages:
        if stage.is_off or stage.kind == "edit" or state.greedy:
            continue
        if stage.kind == "scale":
            state = _SCALES[type(stage)](state, stage)
            continue
        keep = _CUTS[type(stage)](state, stage, ties)
        keep[:min_tokens_to_keep] = True
        state = state._replace(ids=state.ids[keep], logits=state.logits[keep], z=state.z[keep])
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
    row: Any, stages: Iterable[Stage], *, min_tokens_to_keep: int = 1, ties: str = "id"
) -> float:
    """Log of what is kept of the mass without the cuts: a difference of two such logs."""
    stages = list(stages)
    state = kept(row, stages, min_tokens_to_keep=min_tokens_to_keep, ties=ties)
    if state.greedy:
        return 0.0
    whole = kept(row, [stage for stage in stages if stage.kind != "cut"])
    above = float((whole.logits[0] - state.logits[0]) / state.temperature)
    return log_of_mass(state.z) - above - log_of_mass(whole.z)


def draw(state: State, vocab: int, u: float) -> int:
    """Find the smallest id whose cumulative probability, ids ascending, exceeds u."""
    cumulative = np.cumsum(probabilities(state, vocab))
    return int(np.searchsorted(cumulative, np.longdouble(u) * cumulative[-1], side="right"))


def uniform(seed: int, stream: int = 0, step: int = 0, draw: int = 0, lane: int = 0) -> float:
    """Draw the keyed uniform from NumPy's own Philox."""
    bits = np.random.Philox(key=seed | stream << 64, counter=step | draw << 64 | lane << 128)
    return float(np.random.Generator(bits).random())
