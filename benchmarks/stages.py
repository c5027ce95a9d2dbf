"""Time a draw under each scale and each cut, alone and after others.

    make bench-stages

Medians over the calls of a row, in microseconds; the first line is `np.max` of the same row. The
rows are recorded ones, from a sure one to a broad one, and a random one that is nearly uniform.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import numpy as np

from _rows import VOCAB, rows
from _tables import new_console, new_table
from sampler import (
    XTC,
    DynamicTemperature,
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    PLess,
    Sampler,
    Smoothing,
    TailFree,
    Temperature,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    _core,
    build_info,
)
from sampler.stages.base import Stage

CALLS = 50
CHAINS: list[list[Stage]] = [
    [Temperature(0.8)],
    [TopP(0.9)],
    [DynamicTemperature(0.5, 1.5)],
    [Smoothing(0.3)],
    [TopNSigma(1.0)],
    [TopH(0.4)],
    [TypicalP(0.9)],
    [EpsilonCutoff(3e-4)],
    [EtaCutoff(3e-4)],
    [TopA(0.2)],
    [PLess(True)],
    [XTC(0.1, 1.0)],
    [MinP(0.02), XTC(0.1, 1.0)],
    [TopK(50), TailFree(0.95)],
    [TailFree(0.95)],
    [TopNSigma(1.0), XTC(0.1, 0.5)],
]


def times(call: Callable[..., object], *args: Any) -> float:
    """The median time of a call, in microseconds."""
    found = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        call(*args)
        found.append(time.perf_counter_ns() - start)
    return median(found) / 1e3


@click.command(help=__doc__.splitlines()[0])
def main() -> None:
    console = new_console()
    flat = np.random.default_rng(0).normal(0.0, 1.5, VOCAB).astype(np.float32)
    timed = [*rows(VOCAB), flat]
    names = [*(f"row {number}" for number in range(1, len(timed))), "flat"]
    info = build_info()
    for isa in reversed(info["isas"]):
        _core.choose_isa(isa)
        table = new_table(f"V = {VOCAB:,}, float32, {isa}: us", "", right=names)
        table.add_row("np.max", *(f"{times(np.max, row):.1f}" for row in timed))
        for chain in CHAINS:
            s = Sampler(chain, seed=0)
            found = [times(s, row) for row in timed]
            name = ", ".join(map(repr, chain)).replace(", (), False)", ")")
            table.add_row(name, *(f"{one:.1f}" for one in found))
        console.print(table)
    _core.choose_isa(info["isa"])


if __name__ == "__main__":
    main()
