"""The law again, as one would write it on a page: float64 NumPy, whole sorts, no tricks.

It explains what the core computes and is the oracle of its tests. `kept` runs the stages and
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

from sampler.stages import MinP, Stage, SuppressTokens, Temperature, TopK, TopP

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


def top_k(state: State, stage: TopK, ties: str) -> int:
    """Count the first k in rank, with ties="all" everything equal to the k-th too."""
    k = min(int(stage.value), len(state.ids))
    return int(np.sum(state.logits >= state.logits[k - 1])) if ties == "all" else k


def top_p(state: State, stage: TopP, ties: str) -> int:
    """Count the smallest prefix in rank whose mass is >= p."""
    mass = np.cumsum(_weights(state.z))
    return int(np.sum(mass < np.longdouble(stage.value) * mass[-1])) + 1


def min_p(state: State, stage: MinP, ties: str) -> int:
    """Count the tokens with x >= max x + T ln m."""
    if math.isinf(state.temperature):
        return len(state.ids)
    threshold = state.logits[0] + state.temperature * math.log(stage.value)
    return int(np.sum(state.logits >= threshold))


# Each edit changes the row, before anything is ranked.
_EDITS: dict[type[Stage], Callable[[_Array, Any], None]] = {SuppressTokens: suppress_tokens}

# Each truncation counts how many of the kept tokens stay: all of these keep a prefix in rank.
_TRUNCATIONS: dict[type[Stage], Callable[[State, Any, str], int]] = {
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
        if isinstance(stage, Temperature):
            state = temper(state, stage)
            continue
        n = max(_TRUNCATIONS[type(stage)](state, stage, ties), min_tokens_to_keep)
        state = state._replace(ids=state.ids[:n], logits=state.logits[:n], z=state.z[:n])
    return state


def log_of_mass(z: _Array) -> float:
    """Log of the mass of tempered logits, to the nearest multiple of 2**-32."""
    return float(np.rint(np.log(_weights(z).sum()) * 2**32) / 2**32)


def logprobs(state: State) -> _Array:
    """Natural logs of the kept tokens' probabilities, in rank order."""
    with np.errstate(over="ignore"):
        logs: _Array = state.z.astype(np.float64) - log_of_mass(state.z)
    return logs


def probabilities(state: State, vocab: int) -> _Array:
    """Spread the whole distribution by token id, long double."""
    p = np.zeros(vocab, dtype=np.longdouble)
    weights = _weights(state.z)
    p[state.ids] = weights / weights.sum()
    return p


def log_mass(
    row: Any, stages: Iterable[Stage], *, min_tokens_to_keep: int = 1, ties: str = "id"
) -> float:
    """Log of what is kept of the mass under temperature alone: a difference of two such logs."""
    stages = list(stages)
    edits = [stage for stage in stages if stage.kind == "edit"]
    state = kept(row, stages, min_tokens_to_keep=min_tokens_to_keep, ties=ties)
    if state.greedy:
        return 0.0
    z = temper(kept(row, edits), Temperature(state.temperature)).z
    return log_of_mass(z[: len(state.ids)]) - log_of_mass(z)


def draw(state: State, vocab: int, u: float) -> int:
    """Find the smallest id whose cumulative probability, ids ascending, exceeds u."""
    cumulative = np.cumsum(probabilities(state, vocab))
    return int(np.searchsorted(cumulative, np.longdouble(u) * cumulative[-1], side="right"))


def uniform(seed: int, stream: int = 0, step: int = 0, draw: int = 0, lane: int = 0) -> float:
    """Draw the keyed uniform from NumPy's own Philox."""
    bits = np.random.Philox(key=seed | stream << 64, counter=step | draw << 64 | lane << 128)
    return float(np.random.Generator(bits).random())
