"""Hold whole random chains against llama.cpp's own samplers: the same kept tokens?

    make llama-chains                           # 100,000 rows
    make llama-chains ARGS="--rows 10000 --seed 1"

Every row has a chain of four to seven different stages in random order. After each stage the tokens
that llama.cpp has left are compared with ours. A row is *equal* if they agree after every stage. It
is *float32* if at the first stage where they do not, every token in question is so near the edge
that float32 explains it. Two known faults of llama.cpp's stages are counted by name. Anything else
is *unexplained*, and the script fails.

The bound. llama.cpp computes in float32, one sum after another, so of n tokens a sum is off by at
most n 2^-24 of itself; a probability adds two roundings, an exponential, and the rounding of
logit / temperature, 2^-24 of the largest logit at every temperature so far. An entropy is off by
that times 1 + H, and so is the temperature that a dynamic one makes of it; what that does to a
later logit is in proportion to its depth z.
"""

from __future__ import annotations

import ctypes
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import click
import llama_cpp as llama
import numpy as np
import numpy.typing as npt

import _machine
from _peers import Candidates
from _rows import recorded
from _tables import new_console, new_table
from sampler import (
    XTC,
    DynamicTemperature,
    MinP,
    Sampler,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
)
from sampler.stages.base import Stage

Array = npt.NDArray[Any]
Random = np.random.Generator
UNIT = 2.0**-24

# Of each kind of stage: ours with random settings, and theirs with the same.
KINDS: dict[type[Stage], tuple[Callable[[Random, int], tuple[float, ...]], Callable[..., Any]]] = {
    TopK: (lambda rng, n: (int(n ** rng.uniform(0.2, 1)),), llama.llama_sampler_init_top_k),
    TopP: (
        lambda rng, n: (rng.uniform(0.1, 0.999),),
        lambda p: llama.llama_sampler_init_top_p(p, 1),
    ),
    MinP: (
        lambda rng, n: (10.0 ** rng.uniform(-4, -0.5),),
        lambda p: llama.llama_sampler_init_min_p(p, 1),
    ),
    TypicalP: (
        lambda rng, n: (rng.uniform(0.2, 0.99),),
        lambda p: llama.llama_sampler_init_typical(p, 1),
    ),
    TopNSigma: (lambda rng, n: (rng.uniform(0.7, 4),), llama.llama_sampler_init_top_n_sigma),
    XTC: (
        lambda rng, n: (10.0 ** rng.uniform(-3, -0.5), 1.0),
        lambda t, q: llama.llama_sampler_init_xtc(q, t, 1, 0),
    ),
    Temperature: (lambda rng, n: (rng.uniform(0.3, 2.5),), llama.llama_sampler_init_temp),
    DynamicTemperature: (
        lambda rng, n: (rng.uniform(0.3, 0.9), rng.uniform(1, 2), rng.uniform(0.5, 2)),
        lambda low, high, e: llama.llama_sampler_init_temp_ext(
            (low + high) / 2, (high - low) / 2, e
        ),
    ),
}


@dataclass
class State:
    """What both have kept so far: the ids, and their exact tempered logits in rank order."""

    ids: Array
    z: Array
    largest: float  # of the logits as llama.cpp has them, in absolute value
    temperatures: int = 0
    slack: float = 0.0  # the relative error of its temperature

    def __post_init__(self) -> None:
        self.z = self.z.astype(np.longdouble)
        weights = np.exp(self.z - self.z.max())
        self.p = weights / weights.sum()
        self.logs = self.z - self.z.max() - np.log(weights.sum())
        self.entropy = float(-(self.p * self.logs).sum())

    @property
    def error(self) -> float:
        """How far off, relatively, a float32 mass or probability of a likely token may be."""
        n = len(self.ids)
        logits = 2 * self.largest * (self.temperatures + 1)
        return UNIT * (n + 16 + logits) + self.slack * (1 + math.log(n))


def near(state: State, stage: Any, edge: Array, theirs: Array) -> float:
    """Return how far the tokens that only one of the two keeps are off the edge, over the bound."""
    error, logs = state.error, state.logs
    error_of = error + state.slack * np.abs(state.z - state.z.max()) + UNIT * np.abs(logs)
    if isinstance(stage, TopK):
        return math.inf
    if isinstance(stage, TopP):
        # Their sum from the top: what it is at each token in question, and at the one before it.
        order = np.argsort(-state.z, kind="stable")
        mass = np.cumsum(state.p[order])[:-1] if len(order) > 1 else np.zeros(1)
        places = np.flatnonzero(edge[order]) - 1
        return float(np.abs(mass[places] - stage.top_p).max() / (2 * error))
    if isinstance(stage, MinP):
        off = np.abs(state.z - state.z.max() - math.log(stage.min_p))
        return float((off / error_of)[edge].max())
    if isinstance(stage, XTC):
        # The last that is likely enough stays, so the one in question is the next in rank.
        order = np.argsort(-state.z, kind="stable")
        after = order[np.flatnonzero(edge[order]) + 1]
        off = np.abs(logs - math.log(stage.threshold))
        return float((off / error_of)[after].max())
    if isinstance(stage, TopNSigma):
        x = state.z
        sigma = float(x.std())
        off = np.abs(x.max() - stage.top_n_sigma * sigma - x)
        return float((off / ((error + error_of) * (1 + stage.top_n_sigma * sigma)))[edge].max())
    assert isinstance(stage, TypicalP)
    # Theirs has to be the nearest tokens, whose mass passes typical_p with the last of them.
    distance = np.abs(-logs - state.entropy)
    last = distance[theirs].max()
    slack = 2 * (error_of.max() + error * (1 + state.entropy))
    for share in 2.0 ** np.arange(-20, 1):
        nearer = distance < last - share * slack
        if (
            theirs[nearer].all()
            and state.p[theirs].sum() >= stage.typical_p - share * error
            and state.p[nearer].sum() <= stage.typical_p + share * error
        ):
            return float(share)
    return math.inf


def goes_wrong(array: Any, stage: Any) -> str:
    """Name the defect that llama.cpp's stage has on these candidates, if it has one."""
    logits = np.ctypeslib.as_array(array.data, (array.size,))["logit"]
    if isinstance(stage, DynamicTemperature) and np.isneginf(logits).any():
        return "dynamic temperature: what top-n-sigma has removed counts in ln n"
    weights = np.exp(logits - logits.max())
    if isinstance(stage, TypicalP) and (weights / weights.sum() == 0).any():
        return "typical-p: a probability of 0 makes the entropy NaN"
    return ""


def apply(array: Any, stage: Any) -> None:
    theirs = KINDS[type(stage)][1](*stage.values[: 2 if isinstance(stage, XTC) else None])
    llama.llama_sampler_apply(theirs, ctypes.byref(array))
    llama.llama_sampler_free(theirs)


def kept(array: Any) -> tuple[Array, Array]:
    """The ids, ascending, and the logits of the tokens that llama.cpp has left."""
    data = np.ctypeslib.as_array(array.data, (array.size,))
    data = data[data["logit"] > -np.inf]
    data = data[np.argsort(data["id"])]
    return data["id"].astype(np.int64), data["logit"].astype(np.float64)


def compare(row: Array, stages: list[Any], candidates: Candidates) -> tuple[str, float, float]:
    """Go through a chain stage by stage; return what came of it, the share of the bound that the
    explanation needs, and the largest difference of a probability at the end."""
    array = candidates.fill(row)
    state = State(np.arange(len(row)), row.astype(np.float64), float(np.abs(row).max()))
    for i, stage in enumerate(stages):
        defect = goes_wrong(array, stage)
        apply(array, stage)
        d = Sampler(stages[: i + 1], seed=0).distribution(row)
        ours = np.sort(d.ids)
        theirs, logits = kept(array)
        if defect and (stage.kind == "scale" or not np.array_equal(ours, theirs)):
            return defect, 0.0, 0.0
        if not np.array_equal(ours, theirs):
            edge = np.isin(state.ids, np.setxor1d(ours, theirs))
            share = near(state, stage, edge, np.isin(state.ids, theirs))
            return ("float32" if share <= 1 else f"unexplained: {stage}"), share, 0.0
        temperatures, slack = state.temperatures, state.slack
        if stage.kind == "scale":
            temperatures += 1
            if isinstance(stage, DynamicTemperature) and len(ours) > 1:
                slack += relative_error(stage, state)
        by_id = np.argsort(d.ids)
        state = State(d.ids[by_id], d.logprobs[by_id], np.abs(logits).max(), temperatures, slack)
    weights = np.exp(logits - logits.max())
    return "equal", 0.0, float(np.abs(weights / weights.sum() - state.p).max())


def relative_error(stage: DynamicTemperature, state: State) -> float:
    """Of the temperature that a float32 entropy gives."""
    low, high, exponent = stage.values
    error = state.error * (1 + state.entropy)

    def temperature(entropy: float) -> float:
        share = min(max(entropy / math.log(len(state.ids)), 0.0), 1.0)
        return low + (high - low) * share**exponent

    middle = temperature(state.entropy)
    ends = (temperature(state.entropy - error), temperature(state.entropy + error))
    return max(abs(end - middle) for end in ends) / middle + 8 * UNIT


def random_row(rng: Random) -> Array:
    """Without equal logits: which of them stay is arbitrary in llama.cpp."""
    n = int(10 ** rng.uniform(1, 3.7))
    if rng.random() < 0.3:
        rows = recorded()
        row = rng.choice(rows[rng.integers(len(rows))], n) + rng.normal(0, 1e-2, n)
    else:
        row = rng.normal(0, rng.uniform(0.3, 5), n) + rng.uniform(-20, 20)
    row = row.astype(np.float32)
    return row if len(np.unique(row)) == n else random_row(rng)


def random_chain(rng: Random, n: int) -> list[Any]:
    kinds = list(KINDS)
    chosen = rng.permutation(len(kinds))[: rng.integers(4, 8)]
    return [kinds[i](*KINDS[kinds[i]][0](rng, n)) for i in chosen]


@click.command(help=__doc__.splitlines()[0])
@click.option("--rows", default=100_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(rows: int, seed: int) -> None:
    rng, candidates = np.random.default_rng(seed), Candidates()
    counts: Counter[str] = Counter()
    worst_share = worst_p = 0.0
    for _ in range(rows):
        row = random_row(rng)
        stages = random_chain(rng, len(row))
        found, share, p = compare(row, stages, candidates)
        counts[found.partition(": ")[0] if found.startswith("unexplained") else found] += 1
        if found.startswith("unexplained"):
            print(found, share, stages, len(row))
        else:
            worst_share, worst_p = max(worst_share, share), max(worst_p, p)
    table = new_table(f"{rows:,} rows, chains of 4 to 7 stages, float32", "what", right=("rows",))
    for name, count in counts.most_common():
        table.add_row(name, f"{count:,}")
    console = new_console()
    console.print(table)
    console.print(
        f"The largest share of the bound: {worst_share:.1g}. "
        f"The largest difference of a probability where all is equal: {worst_p:.1e}."
    )
    info = _machine.describe()
    console.print(
        f"llama-cpp-python {version('llama-cpp-python')}, NumPy {np.__version__}, "
        f"{info['isa']}, {info['processor']}"
    )
    sys.exit(counts["unexplained"] > 0)


if __name__ == "__main__":
    main()
