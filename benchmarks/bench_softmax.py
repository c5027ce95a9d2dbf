"""The softmax family, torch's and SciPy's: large vocabularies, and many short rows.

Every round has each of them in turn, so that a slow moment of the machine falls on all; what counts
is the median of the ratios within a round. A call is timed right after another of its kind, with
its rows in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch

import sampler

OURS = "sampler"
FAMILY = ("softmax", "log_softmax", "logsumexp")
SHAPES = (
    (1, 49_152), (1, 131_072), (1, 262_144),
    (4096, 64), (1024, 256), (256, 1024), (64, 4096),
)  # fmt: skip
ROUNDS = 200


def _ways(function: str, x: Any) -> dict[str, Callable[[], Any]]:
    tensor = torch.from_numpy(x)
    ours, scipys = getattr(sampler, function), getattr(scipy.special, function)
    torchs = getattr(torch, function)
    return {
        OURS: lambda: ours(x),
        "torch": lambda: torchs(tensor, -1),
        "SciPy": lambda: scipys(x, axis=-1),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", FAMILY)
def bench_softmax(benchmark: Any, function: str, dtype: str, shape: tuple[int, int]) -> None:
    benchmark.group = f"{function}, {dtype}, {shape[0]} x {shape[1]}"
    x = np.random.default_rng(0).normal(0, 3, shape).astype(dtype)
    ways = _ways(function, x)
    times: dict[str, list[float]] = {name: [] for name in ways}

    def run_others() -> None:
        for name in list(ways)[1:]:
            ways[name]()
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)
        ways[OURS]()

    benchmark.pedantic(ways[OURS], setup=run_others, rounds=ROUNDS)
    if benchmark.disabled:
        return
    times[OURS] = benchmark.stats.stats.data
    benchmark.extra_info.update(
        function=function,
        dtype=dtype,
        shape=shape,
        softmax_us={name: [t * 1e6 for t in times[name]] for name in ways},
    )
