"""Attention masks, and the length of a row without its left padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sampler._checks import check_batch, check_mask


class RowLengths:
    """The length of each row, less the left padding that the prompt's mask shows.

    Without a mask, padding counts. `repeats` says that there may be several rows of each prompt.
    """

    def __init__(self, attention_mask: Any, *, repeats: bool = False) -> None:
        self._repeats = repeats
        self._padding, self._prompt_length = None, 0
        self._prompt: torch.Tensor | None = None
        if attention_mask is None:
            return
        mask = check_mask(attention_mask)
        right_padded = np.flatnonzero(~mask[:, -1:].all(axis=1))
        if len(right_padded):
            raise ValueError(
                "`attention_mask` has to leave padding on the left, but row "
                f"{right_padded[0]} ends with padding: give the tokenizer padding_side='left', or "
                "leave the mask out for an encoder-decoder model"
            )
        self._padding, self._prompt_length = left_padding(mask), mask.shape[1]

    def of(self, rows: torch.Tensor, *, proposed: bool = False) -> npt.NDArray[np.uint64]:
        """Return the length of each row, which have to begin with the prompt unless `proposed`."""
        batch, length = rows.shape
        if self._padding is None:
            return np.full(batch, length, np.uint64)
        if self._repeats and batch % len(self._padding) == 0:
            padding = np.repeat(self._padding, batch // len(self._padding))
        else:
            check_batch("attention_mask", len(self._padding), batch)
            padding = self._padding
        if proposed:
            # Perhaps by a draft model with another tokenizer: the mask is not that of its rows.
            return np.maximum(length - padding, 0).astype(np.uint64)
        # The first draw follows the prompt; later ones follow more than that.
        if length < self._prompt_length or (self._prompt is None and length != self._prompt_length):
            raise ValueError(
                f"`attention_mask` has to be that of the prompt, but has {self._prompt_length} "
                f"tokens where the rows have {length}; for an encoder-decoder model, or "
                "inputs_embeds, leave it out"
            )
        prompt = rows[:, : self._prompt_length]
        if self._prompt is None:
            self._prompt = prompt.clone()  # the caller's memory may be used again
        elif not torch.equal(prompt, self._prompt):
            raise ValueError(
                "the rows begin with a different prompt than at the first draw, which "
                "`attention_mask` belongs to: make a processor for each prompt"
            )
        return (length - padding).astype(np.uint64)


def left_padding(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count each row's padding."""
    padding: npt.NDArray[np.int64] = np.sum(np.cumsum(mask, axis=1) == 0, axis=1)
    return padding
