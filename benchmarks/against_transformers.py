"""Time one draw: the whole Python call, against Hugging Face's processors, softmax and multinomial.

    make bench        # or, where sampler is installed: python benchmarks/against_transformers.py

One core, one process, the same float32 rows for both: SmolLM2's recorded logits, resampled to each
vocabulary with their true first thousand kept. Medians; "warm" repeats rows that fit the cache,
"cold" walks through rows that do not. Shared machines are noisy: read the ratios.
"""

from __future__ import annotations

import os

# Before NumPy and torch start their threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from _machine import describe
from sampler import Sampler

Row = npt.NDArray[np.float32]
RECORDED = Path(__file__).parents[1] / "tests" / "data" / "smollm2_logits.npz"

# label, our settings, Hugging Face's processors
SETTINGS: list[tuple[str, dict[str, float], list[object]]] = [
    (
        "T 0.8, top-p 0.9",
        {"temperature": 0.8, "top_p": 0.9},
        [TemperatureLogitsWarper(0.8), TopPLogitsWarper(0.9)],
    ),
    ("top-k 50", {"top_k": 50}, [TopKLogitsWarper(50)]),
    (
        "T 0.8, top-k 50, top-p 0.9",
        {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
        [TemperatureLogitsWarper(0.8), TopKLogitsWarper(50), TopPLogitsWarper(0.9)],
    ),
    (
        "T 0.8, min-p 0.05",
        {"temperature": 0.8, "min_p": 0.05},
        [TemperatureLogitsWarper(0.8), MinPLogitsWarper(0.05)],
    ),
    (
        "T 0.8, top-k 1000",
        {"temperature": 0.8, "top_k": 1000},
        [TemperatureLogitsWarper(0.8), TopKLogitsWarper(1000)],
    ),
    ("T 0.8", {"temperature": 0.8}, [TemperatureLogitsWarper(0.8)]),
    (
        "T 5, top-p 0.95 (flat)",
        {"temperature": 5.0, "top_p": 0.95},
        [TemperatureLogitsWarper(5.0), TopPLogitsWarper(0.95)],
    ),
]


def resample(row: Row, vocab: int, rng: np.random.Generator) -> Row:
    """Stretch a row to `vocab` tokens: its first thousand in rank, and draws from the rest."""
    order = np.argsort(-row)
    wide = rng.choice(row[order[1000:]], vocab) + rng.normal(0.0, 1e-3, vocab)
    wide[rng.choice(vocab, 1000, replace=False)] = row[order[:1000]]
    return wide.astype(np.float32)


def median(call: Callable[[Row], object], rows: list[Row], seconds: float) -> float:
    """Median time of a call in microseconds, over as many rounds of the rows as fit `seconds`."""
    times = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        for row in rows:
            start = time.perf_counter()
            call(row)
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def hugging_face(processors: list[object]) -> Callable[[Row], torch.Tensor]:
    """What `generate(do_sample=True)` does with a row of scores."""
    chain = LogitsProcessorList(processors)

    def call(row: Row) -> torch.Tensor:
        scores = chain(None, torch.from_numpy(row)[None])
        return torch.multinomial(torch.softmax(scores, dim=-1), num_samples=1)

    return call


def main() -> None:
    """Print one table a vocabulary."""
    torch.set_num_threads(1)
    console = Console()
    rng = np.random.default_rng(0)
    with np.load(RECORDED) as data:
        recorded = data["logits"].astype(np.float32)
    console.print(f"{describe()}; float32, one core", highlight=False, soft_wrap=True)
    for vocab in (49_152, 131_072, 262_144):
        table = Table(title=f"V = {vocab:,}: one draw, ours and Hugging Face's, in microseconds")
        table.add_column("setting", no_wrap=True)
        table.add_column("rows")
        for heading in ("np.max", "ours", "/ max", "theirs", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        warm = [resample(row, vocab, rng) for row in recorded[::7]]
        cold = [resample(recorded[i % len(recorded)], vocab, rng) for i in range(96)]
        for label, settings, processors in track(
            SETTINGS, description=f"V = {vocab:,}", console=console, transient=True
        ):
            s = Sampler(**settings, seed=0)  # type: ignore[arg-type]
            for name, rows in (("warm", warm), ("cold", cold)):
                base = median(np.max, rows, 0.2)
                ours = median(s, rows, 0.5)
                theirs = median(hugging_face(processors), rows[:24], 0.8)
                table.add_row(
                    label, name, f"{base:.1f}", f"{ours:.1f}", f"{ours / base:.1f}",
                    f"{theirs:,.0f}", f"{theirs / ours:.0f}x",
                )  # fmt: skip
        console.print(table)


if __name__ == "__main__":
    main()
