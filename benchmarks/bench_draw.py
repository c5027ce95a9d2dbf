"""One row to one token: every peer, setting and vocabulary, warm and cold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import _rows
from _peers import OURS, PEERS, Peer, check
from _rows import PRESETS, SETTINGS, TOP_P, VOCAB, VOCABS, Setting
from sampler import Sampler

WARM = dict.fromkeys(
    [
        *((setting, vocab) for vocab in VOCABS for setting in SETTINGS),
        *((TOP_P, 2**i) for i in range(10, 21)),  # time against V
        *((Setting(0.8, top_k=4**i), VOCAB) for i in range(9)),  # time against kept tokens
        *((Setting(t, top_p=0.9), VOCAB) for t in (1.0, 1.4, 2.0, 3.0, 5.0, 10.0)),
    ]
)
COLD = [(setting, VOCAB) for setting in SETTINGS]


def _with_peers(cases: list[tuple[Setting, int]]) -> list[object]:
    return [
        pytest.param(peer, setting, vocab, id=f"{vocab}-{setting.id}-{peer.id}")
        for setting, vocab in cases
        for peer in PEERS
        if peer.can(setting)
    ]


@pytest.mark.parametrize("peer, setting, vocab", _with_peers(list(WARM)))
def bench_warm(
    timed: Callable[..., None], benchmark: Any, peer: Peer, setting: Setting, vocab: int
) -> None:
    check(peer, setting)
    benchmark.group = f"V = {vocab:,}, {setting}"
    rows = _rows.rows(vocab)
    timed(
        peer.draw(setting),
        [peer.load(row) for row in rows],
        rows,
        calls=200 if peer is OURS else None,
        peer=peer.name,
        setting=str(setting),
        vocab=vocab,
        kept=_kept(setting, vocab),
    )


@pytest.mark.parametrize("peer, setting, vocab", _with_peers(COLD))
def bench_cold(
    timed: Callable[..., None], benchmark: Any, peer: Peer, setting: Setting, vocab: int
) -> None:
    benchmark.group = f"V = {vocab:,}, {setting}, cold"
    rows = _rows.pool(vocab)
    timed(
        peer.draw(setting),
        [peer.load(row) for row in rows],
        rows,
        cold=True,
        seconds=0.5,
        calls=200 if peer is OURS else None,
        peer=peer.name,
        setting=str(setting),
        vocab=vocab,
    )


@pytest.mark.parametrize(
    "peer, name",
    [
        pytest.param(peer, name, id=f"{name.replace(' ', '')}-{peer.id}")
        for name, setting in PRESETS.items()
        for peer in PEERS
        if peer.name in ("sampler", "Hugging Face", "llama.cpp", "NumPy") and peer.can(setting)
    ],
)
def bench_preset(timed: Callable[..., None], benchmark: Any, peer: Peer, name: str) -> None:
    setting = PRESETS[name]
    check(peer, setting)
    benchmark.group = f"V = {VOCAB:,}, {name}: {setting}"
    rows = _rows.rows(VOCAB)
    timed(
        peer.draw(setting),
        [peer.load(row) for row in rows],
        rows,
        calls=200 if peer is OURS else None,
        peer=peer.name,
        setting=name,
        vocab=VOCAB,
    )


@functools.cache
def _kept(setting: Setting, vocab: int) -> list[int]:
    s = Sampler(**setting.keywords, seed=0)
    return [int(s.sample(row).n_kept) for row in _rows.rows(vocab)]
