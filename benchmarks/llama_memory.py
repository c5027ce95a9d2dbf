"""Hold Mirostat and adaptive-p against llama.cpp's own samplers: the same tokens kept, and states?

    make llama-memory                           # 1,000 texts of 50 tokens
    make llama-memory ARGS="--texts 100 --seed 1"

Every text has a setting and 50 random rows. llama.cpp draws each token; ours is given the same one,
by `score`, and goes on from its own state. Compared are what is kept, or the logits that adaptive-p
makes, and the state after every token, which is read out of llama.cpp's memory.

The bounds. llama.cpp computes in float32, one sum after another, so of n tokens a mass is off by at
most n 2^-24 of itself, and a logarithm of it by that much. A token is kept by the one and not by
the other only within that of the threshold, and what the two states differ by. Of version 1, the
slope is made of 99 logarithms with two roundings each: k may be another number where the real one
lies within 2^-16 (1 + ln k) / min(s, 1) of an integer. A known fault of llama.cpp is counted by
name: where the row is so flat that k is beyond 2^31, its conversion to an int makes it 1. A text
ends where what is kept differs.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from importlib.metadata import version
from typing import Any

import click
import llama_cpp as llama
import numpy as np
import numpy.typing as npt

import _machine
from _peers import Candidates
from _tables import new_console, new_table
from sampler import AdaptiveP, Mirostat, Sampler
from sampler.memory import State

Array = npt.NDArray[Any]
UNIT = 2.0**-24
LN_2 = float(np.log(2.0))


class Theirs:
    """A sampler of llama.cpp, and its state: floats at these places of its memory."""

    def __init__(self, stage: Any, vocab: int, seed: int) -> None:
        if isinstance(stage, AdaptiveP):
            self.sampler = llama.llama_sampler_init_adaptive_p(stage.target, stage.decay, seed)
            first = 16 + 5000  # after two floats, two seeds and a Mersenne twister
            self.places = [first, first + 4]
        elif stage.version == 1:
            self.sampler = llama.llama_sampler_init_mirostat(vocab, seed, stage.tau, stage.eta, 100)
            self.places = [24]
        else:
            self.sampler = llama.llama_sampler_init_mirostat_v2(seed, stage.tau, stage.eta)
            self.places = [16]
        self.memory = ctypes.cast(self.sampler, ctypes.POINTER(ctypes.c_void_p))[1]

    def state(self) -> list[float]:
        return [ctypes.c_float.from_address(self.memory + place).value for place in self.places]

    def draw(self, candidates: Candidates, row: Array) -> tuple[int, Array]:
        """The token, and the ids that are kept."""
        array = candidates.fill(row)
        llama.llama_sampler_apply(self.sampler, ctypes.byref(array))
        kept = candidates.id[: array.size].copy()
        token = int(candidates.id[array.selected])
        llama.llama_sampler_accept(self.sampler, token)
        return token, kept

    def free(self) -> None:
        llama.llama_sampler_free(self.sampler)


def reason(stage: Any, row: Array, mine: Array, kept: Array, mu: float, off: float) -> str:
    """Why other tokens are kept, or "unexplained"."""
    x = np.sort(row.astype(np.float64))[::-1]
    if isinstance(stage, AdaptiveP):
        return "unexplained"
    if stage.version == 2:
        log_mass = np.log(np.exp(x - x[0]).sum())
        z = row[np.setxor1d(mine, kept)].astype(np.float64) - x[0]
        slack = (len(x) + 16) * UNIT + off * LN_2 + 4 * UNIT * abs(x).max()
        close = abs(z - (log_mass - mu * LN_2)) <= slack
        return "float32" if close.all() else "unexplained"
    t = np.log((np.arange(1, 100) + 1) / np.arange(1, 100))[: len(x) - 1]
    slope = t @ -np.diff(x[: len(t) + 1]) / (t @ t)
    e = slope - 1
    log_k = (mu * LN_2 - np.log(-np.expm1(-e * np.log(len(x))) / e)) / slope
    slack = (2.0**-16 * (1 + abs(log_k)) + off * LN_2) / min(slope, 1.0)
    if len(kept) == 1 and len(mine) == len(x) and log_k + slack >= 31 * LN_2:
        return "overflow"
    least, most = np.floor(np.exp(np.minimum(log_k + np.array([-slack, slack]), 40)))
    sizes = len(mine), len(kept)
    return "float32" if least <= max(sizes) and min(sizes) <= most else "unexplained"


@click.command(help=__doc__.splitlines()[0])
@click.option("--texts", default=1000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(texts: int, seed: int) -> None:
    rng, candidates = np.random.default_rng(seed), Candidates()
    counts: dict[str, Counter[str]] = {}
    worst: dict[str, float] = {}
    failed = 0
    for i in range(texts):
        vocab = int(10 ** rng.uniform(1.3, 3.7))
        stage: Any = (
            Mirostat(1, rng.uniform(1, 7), rng.uniform(0.01, 0.5)),
            Mirostat(2, rng.uniform(1, 7), rng.uniform(0.01, 0.5)),
            AdaptiveP(rng.uniform(0, 1), rng.uniform(0, 0.99)),
        )[i % 3]
        name = f"mirostat {stage.version}" if i % 3 < 2 else "adaptive-p"
        count = counts.setdefault(name, Counter())
        # With the numbers as llama.cpp has them.
        stage = type(stage)(*(float(np.float32(one)) if isinstance(one, float) else one
                              for one in stage.values))  # fmt: skip
        theirs, state, s = Theirs(stage, vocab, i), State(stage), Sampler([stage], seed=0)
        count["texts"] += 1
        for _ in range(50):
            row = rng.normal(0, rng.uniform(0.5, 5), vocab).astype(np.float32)
            before = theirs.state()
            off = float(np.abs(np.array(before) - state.values).max())
            token, kept = theirs.draw(candidates, row)
            mine = s.distribution(row, state=state).ids
            if not np.array_equal(np.sort(mine), np.sort(kept)):
                why = reason(stage, row, mine, kept, state.values[0], off)
                count[why] += 1
                failed += why == "unexplained"
                break
            if isinstance(stage, AdaptiveP):
                logits = np.full(vocab, np.nan)
                logits[kept] = candidates.logit[: len(kept)]
                off = float(np.abs(logits - s.filter(row.astype(float), state=state)).max())
                worst["logit"] = max(worst.get("logit", 0.0), off)
            state = s.score(row, token, state=state).state
            size = np.maximum(np.abs(state.values), 1.0)
            off = float((np.abs(np.array(theirs.state()) - state.values) / size).max())
            worst[name] = max(worst.get(name, 0.0), off)
            count["steps"] += 1
        theirs.free()
    table = new_table(
        f"{texts:,} texts of 50 tokens", "",
        right=("texts", "tokens", "float32", "k beyond an int", "unexplained", "state off by"),
    )  # fmt: skip
    for name, count in counts.items():
        table.add_row(
            name, f"{count['texts']:,}", f"{count['steps']:,}", f"{count['float32']}",
            f"{count['overflow']}", f"{count['unexplained']}", f"{worst[name]:.1e}",
        )  # fmt: skip
        # Each of 50 steps adds the rounding of a mass, of up to 5,011 tokens, and of the state.
        failed += worst[name] > 50 * (5011 + 16) * UNIT / LN_2
    console = new_console()
    console.print(table)
    console.print(f"Adaptive-p's logits differ by at most {worst['logit']:.1e}.")
    info = _machine.describe()
    console.print(
        f"llama-cpp-python {version('llama-cpp-python')}, NumPy {np.__version__}, "
        f"{info['isa']}, {info['processor']}"
    )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
