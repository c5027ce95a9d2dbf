"""Checks of the arguments that several files share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sampler import _inputs
from sampler._checks import array_of, check_integer
from sampler.api import Sampler


def check_sampler(sampler: Any) -> None:
    if not isinstance(sampler, Sampler):
        raise TypeError(f"`sampler` has to be a Sampler, but is a {_inputs.kind_of(sampler)}")


def check_model(model: Any, *wanted: str) -> None:
    if not all(hasattr(model, name) for name in wanted):
        raise TypeError(
            "`model` has to be a transformers model that generates text, but is a "
            f"{_inputs.kind_of(model)}"
        )


def check_eos_ids(eos_token_id: Any) -> npt.NDArray[np.int64]:
    if eos_token_id is None:
        return np.empty(0, np.int64)
    values = eos_token_id.tolist() if hasattr(eos_token_id, "tolist") else eos_token_id
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        values = [values]
    text = "an integer >= 0, or a sequence of them"
    checked = [check_integer("eos_token_id", value, 0, 2**63, text) for value in values]
    return np.array(checked, np.int64)


def check_mask(attention_mask: Any) -> npt.NDArray[np.bool_]:
    if isinstance(attention_mask, torch.Tensor) and attention_mask.device.type != "cpu":
        raise TypeError(
            f"`attention_mask` has to be on the CPU, as the model, but is on "
            f"{attention_mask.device}"
        )
    mask = array_of("attention_mask", attention_mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(
            f"`attention_mask` has to be an array of 0 and 1, but is {attention_mask!r}"
        )
    if mask.ndim != 2:
        raise ValueError(f"`attention_mask` has to be 2-D, but has shape {mask.shape}")
    held: npt.NDArray[np.bool_] = mask == 1
    other = mask[~held & (mask != 0)]
    if len(other):
        raise ValueError(f"`attention_mask` has to be an array of 0 and 1, but has {other[0]}")
    return held


def left_padding(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count each row's padding."""
    padding: npt.NDArray[np.int64] = np.sum(np.cumsum(mask, axis=1) == 0, axis=1)
    return padding
