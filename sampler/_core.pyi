from array import array
from collections.abc import Sequence
from typing import Any, Self, final

import numpy as np
import numpy.typing as npt

COMPILER: str
STAGES: dict[str, int]
KINDS: dict[str, int]
FAMILY: dict[str, int]
TIERS: dict[str, int]
EDITS: dict[str, int]

def choose_isa(wanted: str | None = None) -> tuple[str, tuple[str, ...]]: ...
def counts() -> dict[str, dict[str, int]]: ...

@final
class Edits:
    def __new__(
        cls,
        vocab: int,
        ids: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
    ) -> Self: ...

@final
class Changes:
    def __new__(cls, vocab: int, edits: Sequence[tuple[Any, ...]], batch: int = 0) -> Self: ...

@final
class Rows:
    batch: int
    vocab: int
    def __new__(cls, words: npt.NDArray[Any], kind: int, swapped: bool) -> Self: ...
    def edit(self, edits: Edits, mask: npt.NDArray[np.int32] | None = None) -> None: ...
    def change(
        self,
        changes: Changes | Sequence[Changes | Edits | None],
        texts: Sequence[tuple[array[int], int]] | None = None,
        mask: npt.NDArray[np.int32] | Sequence[npt.NDArray[np.int32] | None] | None = None,
    ) -> tuple[int, int] | None: ...
    def remember(self, memory: npt.NDArray[np.float64]) -> None: ...
    def keep_only(self, bounds: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> None: ...

@final
class Chain:
    per_row: tuple[str, int] | None
    def __new__(
        cls,
        stages: Sequence[tuple[Any, ...]],
        ties_all: bool = False,
        min_tokens_to_keep: float | npt.NDArray[np.float64] = 1,
        tier: int = 1,
        per_row: tuple[str, int] | None = None,
    ) -> Self: ...

@final
class KeyedUniforms:
    seed: int
    def __new__(cls, seed: int, step: int, seeds: npt.NDArray[np.uint64] | None = None) -> Self: ...
    @property
    def step(self) -> int: ...

@final
class Kept:
    def __new__(cls, rows: int) -> Self: ...
    def bounds(
        self, n: int, n_kept: npt.NDArray[np.int64], bounds: npt.NDArray[np.int64]
    ) -> None: ...
    def copy(self, n: int, bounds: npt.NDArray[np.int64], ids: npt.NDArray[np.int32]) -> None: ...

def join(
    entries: Sequence[tuple[Chain, int, int, int, tuple[array[int], int], bool]],
    numbers: npt.NDArray[np.uint64],
) -> Chain: ...
def uniforms(
    out: npt.NDArray[np.float64],
    seed: int,
    step: int = 0,
    streams: npt.NDArray[np.uint64] | None = None,
    steps: npt.NDArray[np.uint64] | None = None,
    lane: int = 0,
) -> None: ...
def draw_token(
    chain: Chain, rows: Rows, keys: KeyedUniforms, flag_invalid: bool
) -> int | tuple[int, int, float]: ...
def draw_tokens(
    chain: Chain,
    rows: Rows,
    keys: KeyedUniforms | None,
    tokens: npt.NDArray[np.int64],
    flag_invalid: bool,
    threads: int = 1,
    streams: npt.NDArray[np.uint64] | None = None,
    steps: npt.NDArray[np.uint64] | None = None,
    u: npt.NDArray[np.float64] | None = None,
    draws: npt.NDArray[np.uint64] | None = None,
) -> tuple[int, int, float] | None: ...
def sample_tokens(
    chain: Chain,
    rows: Rows,
    keys: KeyedUniforms | None,
    tokens: npt.NDArray[np.int64],
    logprobs: npt.NDArray[np.float64],
    top_ids: npt.NDArray[np.int64],
    top_logprobs: npt.NDArray[np.float64],
    flag_invalid: bool,
    threads: int = 1,
    streams: npt.NDArray[np.uint64] | None = None,
    steps: npt.NDArray[np.uint64] | None = None,
    draws: npt.NDArray[np.uint64] | None = None,
    given: bool = False,
    observed: npt.NDArray[np.float64] | None = None,
    kept: Kept | None = None,
) -> tuple[int, int, float] | None: ...
def filter_rows(
    chain: Chain,
    rows: Rows,
    out: npt.NDArray[Any],
    limit: float,
    flag_invalid: bool,
    threads: int = 1,
    keys: KeyedUniforms | None = None,
    streams: npt.NDArray[np.uint64] | None = None,
    steps: npt.NDArray[np.uint64] | None = None,
    draws: npt.NDArray[np.uint64] | None = None,
) -> tuple[int, int, float] | None: ...
def distribution_row(
    chain: Chain,
    rows: Rows,
    ids: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float64],
    probs: npt.NDArray[np.float64],
    logprobs: npt.NDArray[np.float64],
    cumulative: npt.NDArray[np.float64],
    keys: KeyedUniforms | None = None,
    streams: npt.NDArray[np.uint64] | None = None,
    steps: npt.NDArray[np.uint64] | None = None,
    draws: npt.NDArray[np.uint64] | None = None,
    observed: npt.NDArray[np.float64] | None = None,
) -> tuple[int, float, tuple[int, int, float] | None]: ...
def softmax_rows(
    rows: Rows,
    temperature: float,
    temperatures: npt.NDArray[np.float64] | None,
    what: int,
    out: npt.NDArray[Any],
) -> None: ...
def idle_scratch(give_back: bool = False) -> list[tuple[int, int, int, int]]: ...
def masses(
    rows: Rows, temperature: float, floors: npt.NDArray[np.float64] | None = None
) -> dict[float, tuple[float, float]]: ...
def depths(rows: Rows, temperature: float) -> tuple[tuple[float, float], float]: ...
def moments(rows: Rows, temperature: float) -> dict[str, tuple[tuple[float, float], float]]: ...
def whole_masses(
    rows: Rows, temperature: float
) -> tuple[tuple[float, float], tuple[float, float]]: ...
def canonical(function: str, x: float) -> float: ...
def fused(a: float, b: float, c: float) -> float: ...
