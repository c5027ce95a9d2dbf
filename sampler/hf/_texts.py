"""The text of each row, out of `input_ids`: what penalties and bans of sequences look at."""

from __future__ import annotations

import weakref
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sampler.hf._transformers import Caller

_MOST = 2**27  # ids of tokens


def texts_of(
    rows: npt.NDArray[np.int64], lengths: npt.NDArray[np.uint64], prompt_length: int
) -> list[tuple[array[int], int]]:
    """Return each row's text as an `Engine` takes it: its last tokens, and how many are the prompt.

    `lengths` are those of the rows without left padding; `prompt_length` counts padding too.
    """
    outside = (rows < 0) | (rows >= _MOST)
    if outside.any():
        row, place = np.argwhere(outside)[0].tolist()
        raise ValueError(
            f"`input_ids` have to hold ids in [0, {_MOST}), but row {row} has {rows[row, place]} "
            f"at place {place}"
        )
    ids, output = rows.astype(np.int32), rows.shape[1] - prompt_length
    return [
        (array("i", row[len(row) - length :].tobytes()), max(length - output, 0))
        for row, length in zip(ids, lengths.tolist(), strict=True)
    ]


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
