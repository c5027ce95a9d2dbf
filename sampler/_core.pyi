from collections.abc import Iterable
from typing import Self, final

import numpy as np
import numpy.typing as npt

TEMPERATURE: int
TOP_K: int
TOP_P: int
MIN_P: int
SOFTMAX: int
LOG_SOFTMAX: int
LOGSUMEXP: int
KINDS: dict[str, int]
COMPILER: str

def choose_isa(wanted: str | None = None) -> tuple[str, tuple[str, ...]]: ...

@final
class Rows:
    batch: int
    vocab: int
    def __new__(
        cls,
        words: npt.NDArray[np.uint16] | npt.NDArray[np.uint32] | npt.NDArray[np.uint64],
        kind: int,
        swapped: bool,
    ) -> Self: ...

@final
class Chain:
    def __new__(
        cls,
        stages: Iterable[tuple[int, float]],
        ties_all: bool = False,
        min_tokens_to_keep: int = 1,
        exact: bool = False,
    ) -> Self: ...

@final
class Steps:
    def __new__(cls, start: int) -> Self: ...
    @property
    def next(self) -> int: ...
    def take(self) -> int: ...

def uniforms(
    out: npt.NDArray[np.float64],
    seed: int,
    step: int = 0,
    streams: npt.NDArray[np.uint64] | None = None,
    steps: npt.NDArray[np.uint64] | None = None,
    lane: int = 0,
) -> None: ...
def draw_tokens(
    chain: Chain,
    rows: Rows,
    u: npt.NDArray[np.float64],
    tokens: npt.NDArray[np.int64],
    flag_invalid: bool,
) -> tuple[int, int, float] | None: ...
def sample_tokens(
    chain: Chain,
    rows: Rows,
    u: npt.NDArray[np.float64] | None,
    tokens: npt.NDArray[np.int64],
    logprobs: npt.NDArray[np.float64],
    top_ids: npt.NDArray[np.int64],
    top_logprobs: npt.NDArray[np.float64],
    flag_invalid: bool,
) -> tuple[int, int, float] | None: ...
def filter_rows(
    chain: Chain,
    rows: Rows,
    out: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    limit: float,
    flag_invalid: bool,
) -> tuple[int, int, float] | None: ...
def distribution_row(
    chain: Chain,
    rows: Rows,
    ids: npt.NDArray[np.int64],
    logits: npt.NDArray[np.float64],
    probs: npt.NDArray[np.float64],
    logprobs: npt.NDArray[np.float64],
    cumulative: npt.NDArray[np.float64],
) -> tuple[int, tuple[int, int, float] | None]: ...
def softmax_rows(
    rows: Rows,
    temperature: float,
    what: int,
    out: npt.NDArray[np.float32] | npt.NDArray[np.float64],
) -> None: ...
def masses(rows: Rows, temperature: float) -> list[tuple[float | None, float | None, float]]: ...
def canonical(function: str, x: float) -> float: ...
