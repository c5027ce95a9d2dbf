"""The settings and the logits that every benchmark times."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import _machine

Row = npt.NDArray[np.float32]
VOCABS = (49_152, 131_072, 262_144)
VOCAB = 131_072  # where a benchmark needs only one

_RECORDED = Path(__file__).parents[1] / "tests" / "data" / "smollm2_logits.npz"
# Recorded rows of all kinds: at temperature 0.8 and V = 131,072 their entropies are 0.03, 1.4, 2.4,
# 4.1 and 6.3 nats, and top-p 0.9 keeps 1, 5, 16, 112 and 1,376 tokens.
_CHOSEN = (17, 3, 26, 10, 25)


@dataclass(frozen=True)
class Setting:
    """What is asked of every peer, by Hugging Face's names and in its order."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_n_sigma: float = 0.0
    xtc: tuple[float, float] | None = None  # threshold and probability

    def __str__(self) -> str:
        parts = [
            f"T {self.temperature:g}" if self.temperature != 1.0 else "",
            f"top-n-sigma {self.top_n_sigma:g}" if self.top_n_sigma else "",
            f"top-k {self.top_k}" if self.top_k else "",
            f"top-p {self.top_p:g}" if self.top_p < 1.0 else "",
            f"min-p {self.min_p:g}" if self.min_p else "",
            f"XTC {self.xtc[0]:g} / {self.xtc[1]:g}" if self.xtc else "",
        ]
        return ", ".join(filter(None, parts)) or "T 1"

    @property
    def id(self) -> str:
        """The name without spaces, for pytest's -k."""
        return str(self).replace(", ", "-").replace(" ", "")

    @property
    def keywords(self) -> dict[str, Any]:
        """The settings as keywords of `Sampler`."""
        return asdict(self)


TOP_P = Setting(0.8, top_p=0.9)
TOP_K = Setting(0.8, top_k=50)
FLAT = Setting(5.0, top_p=0.95)  # nearly every token is kept
SETTINGS = (
    TOP_K,
    Setting(0.8, top_k=50, top_p=0.9),
    Setting(0.8, min_p=0.05),
    Setting(0.8, top_k=1000),
    TOP_P,
    Setting(0.8),
    FLAT,
)
# What people run: the model cards' own advice, and two presets of storytellers.
PRESETS = {
    "Llama 3": Setting(0.6, top_p=0.9),
    "Qwen 3": Setting(0.6, top_k=20, top_p=0.95),
    "Gemma 3": Setting(top_k=64, top_p=0.95),
    "gpt-oss": Setting(),
    "DeepSeek-R1": Setting(0.6, top_p=0.95),
    "SmolLM3": Setting(0.6, top_p=0.95),
    "Mistral 7B": Setting(0.7),
    "Mistral Small": Setting(0.15),
    "Phi-4": Setting(0.8, top_k=50, top_p=0.95),
    "stories, min-p": Setting(1.2, min_p=0.02),
    "stories, XTC": Setting(top_n_sigma=1.0, xtc=(0.1, 0.5)),
}


@functools.cache
def rows(vocab: int) -> list[Row]:
    """SmolLM2's recorded logits, stretched to `vocab` tokens: five rows, from sure to unsure.

    A row keeps its first thousand tokens in rank; the others are drawn from its own others. So what
    top-p and min-p have to find is what a model of that vocabulary would leave them.
    """
    rng = np.random.default_rng(0)
    return [_resample(row, vocab, rng) for row in recorded()[list(_CHOSEN)]]


@functools.cache
def recorded() -> npt.NDArray[np.float32]:
    """SmolLM2's logits as they were recorded."""
    with np.load(_RECORDED) as data:
        return data["logits"].astype(np.float32)


def _resample(row: Row, vocab: int, rng: np.random.Generator) -> Row:
    order = np.argsort(-row)
    wide = rng.choice(row[order[1000:]], vocab) + rng.normal(0.0, 1e-3, vocab)
    wide[rng.choice(vocab, 1000, replace=False)] = row[order[:1000]]
    return wide.astype(np.float32)


def batch(size: int, vocab: int = VOCAB, first: int = 0) -> npt.NDArray[np.float32]:
    """`size` rows, each of `rows` in turn, beginning with that number; no two alike."""
    made = np.empty((size, vocab), np.float32)
    for i in range(size):
        made[i] = np.roll(rows(vocab)[(first + i) % len(_CHOSEN)], 977 * i)
    return made


@functools.lru_cache(maxsize=1)
def pool(vocab: int) -> npt.NDArray[np.float32]:
    """More rows than the processor's caches hold."""
    return batch(max(64, int(1.25 * _machine.cache_bytes() / (4 * vocab))), vocab)
