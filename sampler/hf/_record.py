"""What was drawn in one generation, and the `Samples` of it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from sampler._tensors import container_of
from sampler.api import Samples
from sampler.hf._grammar import Outputs
from sampler.hf._transformers import Caller

TensorSamples: TypeAlias = Samples[torch.Tensor, torch.Tensor]

# What `Samples` has where there is no token.
_BLANK = {
    "tokens": -1,
    "logprobs": math.nan,
    "ranks": 0,
    "n_kept": 0,
    "entropy": math.nan,
    "raw_logprobs": math.nan,
    "raw_ranks": 0,
    "log_mass": math.nan,
}
_BLANK_LISTS = {
    "top_ids": -1,
    "top_logprobs": math.nan,
    "raw_top_ids": -1,
    "raw_top_logprobs": math.nan,
}


class Record:
    """One generation: its rows, the draw at each place, and which rows went on there.

    `draw_index` is that of its draws.
    """

    def __init__(self, rows: torch.Tensor, caller: Caller, draw_index: int) -> None:
        self.draw_index = draw_index
        self._prompt = rows.clone()  # the caller's memory may be used again
        self._length = 0  # of the rows last drawn from
        self._drawn: list[Samples] = []
        self._unfinished: list[npt.NDArray[np.bool_]] = []
        self._processors = None if caller.processors is None else weakref.ref(caller.processors)
        self._checked_length = rows.shape[1]  # up to here tokens are as they were drawn
        self._knows_unfinished = len(rows) == 1  # a lone row is never padded
        self._candidates: torch.Tensor | None = None  # the rows, where they were verified last
        self.outputs: Outputs | None = None  # what its grammar follows

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_processors": None, "_candidates": None, "outputs": None}

    @property
    def prompt_length(self) -> int:
        """The length of its prompts, padding included."""
        return self._prompt.shape[1]

    def states(self, length: int) -> Any:
        """What a sampler with memory remembers of rows of that length; None before any token."""
        place = min(length - self._prompt.shape[1], len(self._drawn))
        return self._drawn[place - 1].state if place > 0 else None

    def roll_back(self, length: int) -> None:
        """Expect rows of that length next, from which there was a draw already."""
        self._length = length - 1
        self._checked_length = min(self._checked_length, length)

    def is_over(self) -> bool:
        """Whether its generation is known to be over."""
        return self._processors is not None and self._processors() is None

    def continues(self, rows: torch.Tensor, caller: Caller) -> bool:
        """Whether rows belong to this generation; raise if one lacks a token that was drawn."""
        if (self._processors and self._processors()) is not caller.processors:
            return False
        if caller.proposes:
            return True  # perhaps of other ids
        length, prompt = rows.shape[1], self._prompt.shape[1]
        if not (
            len(rows) == len(self._prompt)
            and prompt <= length <= prompt + len(self._drawn)
            and (caller.verifies or length > self._length)
            and torch.equal(rows[:, :prompt], self._prompt)
        ):
            return False
        # While candidates are verified, only the first slice of them is the text so far.
        known = self._candidates
        if not caller.verifies or known is None or rows.data_ptr() != known.data_ptr():
            self._check_replaced(rows)
        return True

    def _check_replaced(self, rows: torch.Tensor) -> None:
        """Raise if a token that was put into a row that goes on is not the one drawn."""
        first, self._checked_length = self._checked_length, rows.shape[1]
        for length in range(first, rows.shape[1]):
            place = length - self._prompt.shape[1]
            shown, drawn = rows[:, length].cpu().numpy(), self._drawn[place].tokens[:, 0]
            replaced = (shown != drawn) & self._unfinished[place]
            if replaced.any() and (place == 0 or self._knows_unfinished):
                row = int(np.argmax(replaced))
                raise RuntimeError(
                    f"the generated text does not contain the sampled tokens: row {row} has token "
                    f"{shown[row]} where {drawn[row]} was drawn. A later logits processor replaced "
                    "it; SamplingLogitsProcessor has to be the last one, as in "
                    "generate_kwargs(..., logits_processor=[...])"
                )

    def add(self, rows: torch.Tensor, r: Samples, caller: Caller) -> None:
        """Record what was drawn after these rows, in place of what was drawn there before."""
        place = rows.shape[1] - self._prompt.shape[1]
        unfinished = np.ones(len(rows), bool)
        if len(rows) > 1 and place:
            known = caller.unfinished()
            if known is not None:
                unfinished = known
            else:
                # Somebody else's loop. A row that shows another token than the one drawn is padded,
                # from there on.
                same = rows[:, -1].cpu().numpy() == self._drawn[place - 1].tokens[:, 0]
                unfinished = self._unfinished[place - 1] = self._unfinished[place - 1] & same
            self._knows_unfinished = known is not None
        del self._drawn[place:], self._unfinished[place:]
        self._drawn.append(r)
        self._unfinished.append(unfinished)
        self._length = rows.shape[1]
        self._candidates = rows if caller.verifies else None

    def samples(self, eos_ids: npt.NDArray[np.int64]) -> TensorSamples:
        """What was drawn of the texts themselves."""
        tokens = np.concatenate([r.tokens for r in self._drawn], axis=1)
        real = np.stack(self._unfinished, axis=1)
        if self._candidates is not None:
            # After a wrong candidate, in whose place the draw then came, nothing is of the text.
            shown = self._candidates[:, self._prompt.shape[1] :].cpu().numpy()
            wrong = tokens[:, : shown.shape[1]] != shown
            real[:, 1 : shown.shape[1] + 1] &= ~np.logical_or.accumulate(wrong, axis=1)
        # Assisted decoding draws beyond the end.
        real[:, 1:] &= ~np.logical_or.accumulate(np.isin(tokens, eos_ids), axis=1)[:, :-1]
        new = np.flatnonzero(real.any(axis=0))[-1] + 1
        return aligned(self._drawn[:new], real[:, :new], self._prompt)


def aligned(
    drawn: Sequence[Samples], real: npt.NDArray[np.bool_], like: torch.Tensor
) -> TensorSamples:
    """Put samples of shape (batch, 1) side by side, one per place, and blank what is not real.

    The fields are tensors as `like` is.
    """
    to_tensor: Any = container_of(like)

    def stack(name: str, blank: float) -> Any:
        array = np.stack([getattr(r, name) for r in drawn], axis=1)
        array[~real] = blank
        return to_tensor(array[..., 0] if name in _BLANK else array)

    blanks = {**_BLANK, **_BLANK_LISTS}
    asked = {name: blank for name, blank in blanks.items() if getattr(drawn[0], name) is not None}
    return Samples(**{name: stack(name, blank) for name, blank in asked.items()})
