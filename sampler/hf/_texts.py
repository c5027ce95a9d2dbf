"""The text of each row, out of `input_ids`: what penalties and bans of sequences look at.

And which generation the rows belong to, where Hugging Face draws.
"""

from __future__ import annotations

import weakref
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sampler.hf._memory import Memory
from sampler.hf._transformers import Caller


def texts_of(
    rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.uint64], prompt_length: int, vocab: int
) -> list[tuple[array[int], int]]:
    """Return each row's text as an `Engine` takes it: its last tokens, and how many are the prompt.

    `lengths` are those of the rows without left padding; `prompt_length` counts padding too. Ids
    that have no logit, such as placeholders of images, are left out.
    """
    known = (rows >= 0) & (rows < vocab)
    ids, texts = rows.astype(np.int32), []
    for row, has_logit, length in zip(ids, known, lengths.tolist(), strict=True):
        padding = len(row) - length
        shown = slice(padding, None)
        n_prompt = int(has_logit[padding:prompt_length].sum())
        tokens = row[shown] if has_logit[shown].all() else row[shown][has_logit[shown]]
        texts.append((array("i", tokens.tobytes()), n_prompt))
    return texts


class Generation:
    """One that is running: its prompts, padding included, and what a sampler remembers of it."""

    def __init__(self, prompt: torch.Tensor, processors: Any, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self.memory = Memory()
        self._processors = None if processors is None else weakref.ref(processors)
        self._prompt, self._longest = prompt, prompt_length

    @property
    def processors(self) -> Any:
        """The list of processors that it runs; None for none, and once it is over."""
        return None if self._processors is None else self._processors()

    def takes(self, rows: torch.Tensor) -> bool:
        """Whether rows belong to it: they begin with its prompts, and grow by one at most."""
        length, begun = rows.shape[1], self.prompt_length
        if not begun <= length <= self._longest + 1 or not torch.equal(
            rows[:, :begun], self._prompt
        ):
            return False
        self._longest = max(self._longest, length)
        return True


class Generations:
    """Those that are running, by the list of processors that each of them runs."""

    def __init__(self) -> None:
        self._known: dict[int, Generation] = {}  # by `Caller.key`

    def find(self, rows: torch.Tensor, caller: Caller) -> Generation:
        """Return the generation that is calling, which these rows may begin."""
        known = self._known.get(caller.key)
        if (
            known is not None
            and known.processors is caller.processors
            and (caller.proposes or known.takes(rows))
        ):
            return known
        if caller.proposes:  # perhaps ids of another tokenizer
            return Generation(rows, None, caller.text_length)
        self._known = {key: one for key, one in self._known.items() if one.processors is not None}
        # A copy: the caller's memory may be used again.
        made = Generation(rows.clone(), caller.processors, rows.shape[1])
        self._known[caller.key] = made
        return made

    def __reduce__(self) -> tuple[type[Generations], tuple[()]]:
        return type(self), ()  # no generation goes on in another process
