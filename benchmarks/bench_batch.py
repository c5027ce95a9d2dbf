"""Many rows in one call: sizes of the batch, types of the logits, settings per row, threads."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import _machine
import _rows
from _peers import OURS, PEERS, HuggingFace, Peer
from _rows import TOP_K, TOP_P, VOCAB, Setting
from sampler import Sampler

BATCHES = [
    *((TOP_P, size) for size in (1, 4, 16, 64)),
    *((setting, 64) for setting in (TOP_K, Setting(0.8))),
]


@pytest.mark.parametrize(
    "peer, setting, size",
    [
        pytest.param(peer, setting, size, id=f"{size}-{setting.id}-{peer.id}")
        for setting, size in BATCHES
        for peer in PEERS
        if peer.draws
    ],
)
def bench_batch(
    timed: Callable[..., None], benchmark: Any, peer: Peer, setting: Setting, size: int
) -> None:
    benchmark.group = f"{size} rows, {setting}"
    # Small batches differ in which of the rows they hold.
    rows = [_rows.batch(size, first=first) for first in range(5 if size < 64 else 1)]
    timed(
        peer.draw_each(setting),
        [peer.load(some) for some in rows],
        rows,
        seconds=0.01 * size,
        peer=peer.name,
        setting=str(setting),
        vocab=VOCAB,
        batch=size,
    )


def _words(rows: _rows.Row) -> Any:
    return torch.from_numpy(rows).bfloat16().view(torch.uint16).numpy()


# name -> the logits in it, and more arguments of the call
DTYPES: dict[str, tuple[Callable[[_rows.Row], Any], dict[str, str]]] = {
    "float32": (lambda rows: rows, {}),
    "bfloat16 words": (_words, {"dtype": "bfloat16"}),
    "bfloat16 tensor": (lambda rows: torch.from_numpy(rows).bfloat16(), {}),
    "float16": (lambda rows: rows.astype(np.float16), {}),
    "float64": (lambda rows: rows.astype(np.float64), {}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.replace(" ", "-"))
@pytest.mark.parametrize("setting", [TOP_K, TOP_P], ids=lambda setting: setting.id)
@pytest.mark.parametrize("many", [False, True], ids=["row", "beyond-the-cache"])
def bench_dtype(
    timed: Callable[..., None], benchmark: Any, many: bool, setting: Setting, dtype: str
) -> None:
    """A warm row, or a batch larger than the caches."""
    rows = [_rows.pool(VOCAB)] if many else _rows.rows(VOCAB)
    size = len(rows[0]) if many else 1
    benchmark.group = f"{size} rows, {setting}, dtypes"
    convert, more = DTYPES[dtype]
    s = Sampler(**setting.keywords, seed=0)
    timed(
        functools.partial(s, **more),
        [convert(row) for row in rows],
        rows,
        calls=None if many else 200,
        seconds=1.0,
        setting=str(setting),
        vocab=VOCAB,
        batch=size,
        dtype=dtype,
    )


@pytest.mark.parametrize("vocab", [32_768, VOCAB])
@pytest.mark.parametrize("setting", [TOP_K, TOP_P], ids=lambda setting: setting.id)
@pytest.mark.parametrize("settings", [1, 64])
def bench_per_row(
    timed: Callable[..., None], benchmark: Any, settings: int, setting: Setting, vocab: int
) -> None:
    """Sixty-four rows under one setting, or under 64 that make for about the same work."""
    rows = _rows.batch(64, vocab)
    keywords: dict[str, Any] = setting.keywords
    if settings > 1:
        near = np.linspace(0.999, 1.001, 64)
        keywords = {
            name: 50 + np.arange(64) % 2 if name == "top_k" else value * near
            for name, value in keywords.items()
            if value != getattr(Setting(), name)
        }
    benchmark.group = f"64 rows of {vocab}, {setting}, settings per row"
    timed(
        Sampler(**keywords, seed=0),
        [rows],
        [rows],
        seconds=0.5,
        setting=str(setting),
        vocab=vocab,
        batch=64,
        settings=settings,
    )


THREADS = sorted({n for n in (1, 2, 4, 8, 16, 32) if n < _machine.cores()} | {_machine.cores()})


@pytest.mark.parametrize(
    "peer, threads",
    [
        pytest.param(peer, threads, id=f"{threads}-{peer.id}")
        for peer in PEERS
        if peer is OURS or isinstance(peer, HuggingFace)
        for threads in [*THREADS, *(["auto"] if peer is OURS else [])]
    ],
)
def bench_threads(timed: Callable[..., None], benchmark: Any, peer: Peer, threads: Any) -> None:
    """Sixty-four rows on several cores; Hugging Face's threads are torch's."""
    rows = _rows.batch(64)
    if peer is OURS:
        call = Sampler(**TOP_P.keywords, threads=threads, seed=0)
    else:
        torch.set_num_threads(threads)
        call = peer.draw_each(TOP_P)
    benchmark.group = f"64 rows, {TOP_P}, threads"
    timed(
        call,
        [peer.load(rows)],
        [rows],
        seconds=1.0,
        peer=peer.name,
        setting=str(TOP_P),
        vocab=VOCAB,
        batch=64,
        threads=threads,
    )
