"""The text of each row, out of `input_ids`: what penalties and bans of sequences look at."""

from __future__ import annotations

import weakref
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

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


class Prompts:
    """How long the prompts are, padding included, of each generation that is running."""

    def __init__(self) -> None:
        # By `Caller.key`: the list of processors, the prompts, and the longest rows so far.
        self._known: dict[int, tuple[Any, torch.Tensor, int]] = {}

    def length(self, rows: torch.Tensor, caller: Caller) -> int:
        """Return that of the generation that is calling, which these rows may begin."""
        length = rows.shape[1]
        known = self._known.get(caller.key)
        if known is not None and (known[0] and known[0]()) is caller.processors:
            listed, prompt, longest = known
            begun = prompt.shape[1]
            if caller.proposes:
                return begun
            if begun <= length <= longest + 1 and torch.equal(rows[:, :begun], prompt):
                self._known[caller.key] = listed, prompt, max(longest, length)
                return begun
        if caller.proposes:  # perhaps ids of another tokenizer
            return caller.text_length
        self._known = {
            key: one for key, one in self._known.items() if one[0] is not None and one[0]()
        }
        listed = None if caller.processors is None else weakref.ref(caller.processors)
        # A copy: the caller's memory may be used again.
        self._known[caller.key] = listed, rows.clone(), length
        return length

    def __reduce__(self) -> tuple[type[Prompts], tuple[()]]:
        return type(self), ()  # no generation goes on in another process
