"""The arguments of `Sampler` and of its calls: their types, and their checks."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from sampler._checks import U64_END, U64_TEXT, as_array, check_integer, check_numbers, rows_text
from sampler._engine import Given
from sampler._inputs import Logits, kind_of
from sampler._keywords import check_known
from sampler._names import IGNORED_FIELDS, SAME
from sampler.history import read_histories
from sampler.masks import read_mask
from sampler.memory import read_states
from sampler.stages.base import Stage
from sampler.stages.settings import STAGES

# For type checkers: a lone row or a batch, where the type says which; what the calls take.
Row: TypeAlias = Sequence[float] | np.ndarray[tuple[int], np.dtype[Any]]
Batch: TypeAlias = Sequence[Sequence[float]] | np.ndarray[tuple[int, int], np.dtype[Any]]
Tokens: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Shape = TypeVar("Shape", bound=tuple[Any, ...])
DType = TypeVar("DType", bound=np.dtype[Any])
Bfloat16: TypeAlias = Literal["bfloat16"] | None


class Options(TypedDict, total=False):
    """What `filter` takes after its logits."""

    mask: Any
    history: Any
    state: Any
    streams: Any
    steps: Any
    draws: Any
    dtype: Bfloat16


class FigureOptions(Options, total=False):
    """What `sample` and `score` both take after their arrays."""

    logprobs: int | None
    raw: bool


class SampleOptions(FigureOptions, total=False):
    """What `sample` takes after its logits, but for `n`."""

    keep: bool


class ScoreOptions(FigureOptions, total=False):
    """What `score` takes after its arrays."""

    kept: Any


def check_chain(stages: Any, named: Iterable[Stage]) -> tuple[Stage, ...]:
    for stage in named:
        if not stage.is_off:
            raise TypeError(
                f"give either `stages` or `{stage.setting}`, not both: put {stage!r} into the chain"
            )
    if not isinstance(stages, Iterable) or isinstance(stages, (str, Mapping)):
        shown = repr(stages)
        if len(shown) > 60 or "\n" in shown:
            shown = kind_of(stages)
        raise TypeError(
            f"`stages` has to be a sequence of stages, but is {shown}{_other_stages(stages)}"
        )
    chain = tuple(stages)
    for stage in chain:
        if not isinstance(stage, tuple(STAGES.values())):
            raise TypeError(f"`stages` has to hold stages such as TopK(40), but holds {stage!r}")
    for before, stage in pairwise(chain):
        if stage.kind == "edit" and before.kind != "edit":
            raise TypeError(
                f"{stage!r} edits the logits, so in `stages` it has to come before {before!r}"
            )
    for before, stage in pairwise(stage for stage in chain if not stage.is_off):
        if before.kind == "memory":
            raise TypeError(
                f"{before!r} remembers what was drawn, so in `stages` it has to be the last, but "
                f"{stage!r} comes after it"
            )
    return chain


def check_together(named: Iterable[Stage]) -> None:
    """Refuse keywords of which one is meant in place of the other."""
    on = {stage.setting: stage for stage in named if not stage.is_off}
    for setting, stage in on.items():
        if stage.replaces in on:
            raise TypeError(
                f"give either `{stage.replaces}` or `{setting}`, not both"
                + ": in a chain they multiply" * (stage.kind == "scale")
            )


def _other_stages(stages: Any) -> str:
    """Say what to write where `stages` is what others take first."""
    if isinstance(stages, Stage):
        return f": write Sampler([{stages!r}])"
    if isinstance(stages, Mapping):
        return ": write Sampler(**settings)"
    if hasattr(stages, "do_sample"):
        return ": write Sampler.from_generation_config(config)"
    if isinstance(stages, (int, float)) and not isinstance(stages, bool):
        return f": write Sampler(temperature={stages!r})"
    return ""


def arguments_of_call(
    logits: Any,
    *others: Any,
    mask: Any = None,
    history: Any = None,
    dtype: Any = None,
    **unknown: Any,
) -> tuple[Any, Any, Any, Any]:
    if others:
        raise TypeError(
            f"a Sampler takes logits alone, but got {1 + len(others)} arguments. It is not a "
            "logits processor: write model.generate(**inputs, **sampler.hf.generate_kwargs(s))"
        )
    if unknown:
        check_known("Sampler.__call__", unknown, ("mask", "history", "dtype"))
    return logits, mask, history, dtype


arguments_of_call.__qualname__ = "Sampler.__call__"  # in Python's own error messages


def check_given(
    source: Logits,
    mask: Any,
    history: Any,
    streams: Any = None,
    steps: Any = None,
    draws: Any = None,
    state: Any = None,
) -> Given:
    """Return what a call says of its rows, as an `Engine` takes it."""
    shape = source.array.shape
    rows = shape[0] if len(shape) > 1 else None
    return Given(
        check_numbers("streams", streams, source.batch),
        check_numbers("steps", steps, source.batch),
        check_numbers("draws", draws, source.batch),
        None if mask is None else read_mask(mask, shape),
        None if history is None else read_histories(history, rows),
        None if state is None else read_states(state, rows),
    )


def check_kept(
    kept: Any, rows: int, vocab: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return what alone each row may keep: where its ids begin, and the ids."""
    if not isinstance(kept, Sequence) or len(kept) != 2:
        raise TypeError(
            f"`kept` has to be (kept_indptr, kept_ids), as sample(..., keep=True) gives them, but "
            f"is {kind_of(kept)}"
        )
    bounds, ids = (
        _integers_1d(f"kept[{i}]", one, what)
        for i, (one, what) in enumerate(zip(kept, _OF_KEPT, strict=True))
    )
    if len(bounds) != rows + 1 or bounds[0] != 0 or np.any(np.diff(bounds) < 0):
        raise ValueError(
            f"`kept[0]` has to rise from 0, with {rows + 1} numbers for {rows_text(rows)}, but "
            f"has {len(bounds)}: {np.array2string(bounds, threshold=6)}"
        )
    if bounds[-1] != len(ids):
        raise ValueError(
            f"`kept[0]` has to end with the number of ids, {len(ids)}, but ends with {bounds[-1]}"
        )
    outside = (ids < 0) | (ids >= vocab)
    if outside.any():
        raise ValueError(f"`kept[1]` has to hold ids in [0, {vocab}), but one is {ids[outside][0]}")
    falls = np.flatnonzero(np.diff(ids) <= 0) + 1
    inside = falls[~np.isin(falls, bounds)]
    if len(inside):
        row = np.searchsorted(bounds, inside[0], side="right") - 1
        raise ValueError(
            f"`kept[1]` has to ascend in each row, but row {row} has {ids[inside[0] - 1]} before "
            f"{ids[inside[0]]}"
        )
    return bounds, ids


_OF_KEPT = "where the ids of each row begin", "ids"


def _integers_1d(name: str, values: Any, what: str) -> npt.NDArray[np.int64]:
    array = as_array(name, values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(
            f"`{name}` has to be 1-D integers, {what}, but is {array.dtype} of shape {array.shape}"
        )
    return np.ascontiguousarray(array, np.int64)


def check_threads(threads: Any) -> int | Literal["auto"]:
    if threads == "auto" and isinstance(threads, str):
        return "auto"
    return check_integer("threads", threads, 1, 2**31, "an integer >= 1 or 'auto'")


def check_seed(seed: Any, rng: Any) -> int:
    if rng is not None:
        if seed is not None:
            raise TypeError("give either `seed` or `rng`, not both")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"`rng` has to be a numpy.random.Generator, but is {rng!r}")
        return int(rng.integers(0, U64_END, dtype=np.uint64))
    if seed is None:
        return secrets.randbits(64)
    for way, has in (
        ("rng=rng", "bit_generator"),
        ("seed=generator.initial_seed()", "initial_seed"),
    ):
        if hasattr(seed, has):  # NumPy's or torch's
            raise TypeError(f"`seed` has to be {U64_TEXT}, but is a generator: write {way}")
    return check_integer("seed", seed, 0, U64_END, U64_TEXT)


def no_attribute(name: str) -> AttributeError:
    """Return the error for an attribute that a `Sampler` does not have, with what to write."""
    if name in STAGES:  # `HasSettings` has refused
        hint = f"its chain has several {STAGES[name].__name__} stages: read `stages`"
    elif name in IGNORED_FIELDS:  # model.generate(ids, s) looks for them in its configuration
        hint = "in model.generate(), write **sampler.hf.generate_kwargs(s)"
    else:
        hint = f"write {SAME[name]}" if name in SAME else "dir(s) lists what it has"
    return AttributeError(f"'Sampler' object has no attribute '{name}': {hint}")
