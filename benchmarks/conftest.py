"""How a call is timed, and what a figure is kept with.

    make bench                                          # all of it, tables and plots
    .venv/bin/pytest benchmarks -k "top-k50 and 131072"    # or some, in pytest-benchmark's own way

A *warm* figure is the same row called again and again, one row after the other; its median is that
of the rows' medians. A *cold* one walks once through more rows than the caches hold. Both
come with the time of one `np.max` over the same float32 numbers, by the same timer, right before
and right after, so that a slow minute of a shared machine falls on both.
"""

from __future__ import annotations

import os

# Before NumPy, torch and jax start their threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import _machine
import _peers
from sampler import _core

Array = npt.NDArray[np.float32]
Call = Callable[[Any], Any]

CALLS = 200
LEAST = 5  # of a call that takes so long that `seconds` are over before
READS = 25


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., None]:
    """`timed(call, loaded, raw)` times call(x) for x in `loaded`; `raw` are the same in float32."""

    def run(
        call: Call,
        loaded: Sequence[Any],
        raw: Sequence[Array],
        *,
        calls: int | None = None,
        seconds: float = 0.15,
        cold: bool = False,
        **info: Any,
    ) -> None:
        if benchmark.disabled:
            benchmark(call, loaded[0])
            return
        call(loaded[0])  # compiles, allocates
        if calls is None:
            calls = min(CALLS, max(LEAST, int(seconds / _times(call, loaded[:1])[0])))
        if cold:
            # Reading all of them also takes the first ones out of the caches again.
            groups = [(raw, loaded[:calls])]
        else:
            groups = [([row] * READS, [x] * calls) for row, x in zip(raw, loaded, strict=True)]
        reads: list[list[float]] = []

        def arguments() -> Iterator[tuple[tuple[Any], dict[str, Any]]]:
            for read, called in groups:
                before = _times(np.max, read)
                for x in called:
                    yield (x,), {}
                reads.append(before + _times(np.max, read))

        each, rounds = arguments(), sum(len(called) for _, called in groups)
        counts = _counts()
        benchmark.pedantic(call, setup=lambda: next(each), rounds=rounds)
        next(each, None)  # the last reads
        times = np.reshape(benchmark.stats.stats.data, (len(groups), -1)) * 1e6
        benchmark.extra_info.update(
            info,
            cold=cold,
            calls=times.shape[1],
            median_us=np.median(times, axis=1).tolist(),
            p99_us=np.percentile(times, 99, axis=1).tolist(),
            read_us=(np.median(reads, axis=1) * 1e6).tolist(),
            counts={name: count - counts[name] for name, count in _counts().items()},
        )

    return run


def _times(call: Call, arguments: Sequence[Any]) -> list[float]:
    times = []
    for x in arguments:
        start = time.perf_counter()
        call(x)
        times.append(time.perf_counter() - start)
    return times


def _counts() -> dict[str, int]:
    """How often since import each question was settled in each way, as "question: way"."""
    return {
        f"{question}: {way}": count
        for question, ways in _core.counts().items()
        for way, count in ways.items()
    }


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pytest_report_header() -> str:
    missing = f"; not installed: {', '.join(_peers.MISSING)}" if _peers.MISSING else ""
    return f"peers: {', '.join(peer.name for peer in _peers.PEERS if peer.draws)}{missing}"


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["sampler"] = {**_machine.describe(), "missing": _peers.MISSING}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leave out the single times: what the report needs of them is in extra_info."""
    for bench in output_json["benchmarks"]:
        bench["stats"].pop("data", None)
