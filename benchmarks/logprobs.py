"""What log-probabilities add to a draw.

    make bench-logprobs
    SAMPLER_ISA=v3 make bench-logprobs    # as on a machine with AVX2 alone

Times are of the whole Python call on float32 rows. The calls of a row are timed in turn, so that a
busy machine is equally busy for each; the figure is the median, and then the mean of five rows.
"""

from __future__ import annotations

import statistics
import time

import click
import numpy as np

import _machine
from _rows import FLAT, TOP_K, VOCAB, Setting, rows
from _tables import new_console, new_table
from sampler import Sampler, build_info

SETTINGS = {
    "none": Setting(),
    "T 0.8": Setting(0.8),
    str(TOP_K): TOP_K,
    "top-p 0.9": Setting(top_p=0.9),
    "min-p 0.05": Setting(min_p=0.05),
    f"{FLAT}, near-uniform": FLAT,
}
CALLS = {
    "draw": None,
    "logprobs=0": {"logprobs": 0},
    "logprobs=20": {"logprobs": 20},
    "logprobs=0, raw": {"logprobs": 0, "raw": True},
}


def measure(setting: Setting, calls: int) -> list[float]:
    """Microseconds of each of `CALLS`."""
    s = Sampler(**setting.keywords, seed=0)
    figures = []
    for row in rows(VOCAB):
        times: dict[str, list[int]] = {name: [] for name in CALLS}
        for _ in range(calls):
            for name, more in CALLS.items():
                start = time.perf_counter_ns()
                if more is None:
                    s(row)
                else:
                    s.sample(row, **more)
                times[name].append(time.perf_counter_ns() - start)
        figures.append([statistics.median(t) / 1e3 for t in times.values()])
    return [float(mean) for mean in np.mean(figures, axis=0)]


@click.command(help=__doc__.splitlines()[0])
@click.option("--calls", default=100, show_default=True, help="How often each call is timed.")
def main(calls: int) -> None:
    info = _machine.describe()
    title = f"Microseconds of a call, V = {VOCAB:,}, {build_info()['isa']}, {info['processor']}"
    table = new_table(title, "", right=CALLS)
    for name, setting in SETTINGS.items():
        table.add_row(name, *(f"{figure:.1f}" for figure in measure(setting, calls)))
    new_console().print(table)


if __name__ == "__main__":
    main()
