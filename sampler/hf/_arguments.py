"""Checks of the arguments that several files share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sampler import _inputs
from sampler._checks import check_integer
from sampler.api import Sampler


def check_sampler(sampler: Any) -> None:
    if not isinstance(sampler, Sampler):
        raise TypeError(f"`sampler` has to be a Sampler, but is {_inputs.kind_of(sampler)}")


def check_model(model: Any, *wanted: str) -> None:
    if not all(hasattr(model, name) for name in wanted):
        raise TypeError(
            "`model` has to be a transformers model that generates text, but is "
            f"{_inputs.kind_of(model)}"
        )


def check_rows(input_ids: Any) -> None:
    """Refuse what is not rows of ids."""
    if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2:
        kind = _inputs.kind_of(input_ids)
        raise TypeError(f"`input_ids` have to be a 2-D tensor of ids, but are {kind}")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype is torch.bool:
        raise TypeError(f"`input_ids` have to be integers, but are {input_ids.dtype}")


def check_eos_ids(eos_token_id: Any) -> npt.NDArray[np.int64]:
    if eos_token_id is None:
        return np.empty(0, np.int64)
    values = eos_token_id.tolist() if hasattr(eos_token_id, "tolist") else eos_token_id
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        values = [values]
    text = "an integer >= 0, or a sequence of them"
    checked = [check_integer("eos_token_id", value, 0, 2**63, text) for value in values]
    return np.array(checked, np.int64)
