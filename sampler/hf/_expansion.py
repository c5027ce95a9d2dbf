"""Inputs of a model, repeated for several texts of one prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.utils.generic import ModelOutput

from sampler import _inputs
from sampler._checks import check_integer

# What has one row for each prompt, and what may have several or none.
_TEXT = ("input_ids", "inputs_embeds", "attention_mask")
_MEDIA = ("pixel", "image", "video", "audio", "input_features", "input_values")


def expand_inputs(inputs: Mapping[str, Any], num_return_sequences: int) -> dict[str, Any]:
    """Repeat each row of a model's inputs, for several texts of one prompt.

    Under ``do_sample=False`` Hugging Face refuses ``num_return_sequences`` above 1. Rows of one
    prompt have different streams, so their texts differ.

    Parameters
    ----------
    inputs : mapping
        What a tokenizer or a processor returns. Tensors are repeated along their first axis, which
        has to be that of the prompts; everything else is kept.
    num_return_sequences : int, >= 1

    Returns
    -------
    dict
        Row ``i * num_return_sequences + j`` is the j-th copy of row i.

    Raises
    ------
    TypeError
        If `inputs` is not a mapping or holds arrays or lists, or `num_return_sequences` is not an
        integer.
    ValueError
        If `num_return_sequences` is below 1, or the rows of a tensor are not known to be the
        prompts: images, videos or sounds that may be several for one prompt and none for another.
        `generate` takes those.

    See Also
    --------
    generate : repeats the inputs by itself.
    generate_kwargs : for the model's own ``generate()``.

    Examples
    --------
    >>> import torch
    >>> from sampler.hf import expand_inputs
    >>> expand_inputs({"input_ids": torch.tensor([[1, 2], [3, 4]])}, 2)["input_ids"].tolist()
    [[1, 2], [1, 2], [3, 4], [3, 4]]
    """
    n = check_integer("num_return_sequences", num_return_sequences, 1, None, "an integer >= 1")
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"`inputs` have to be a mapping, but are {_inputs.kind_of(inputs)}: write "
            '{"input_ids": ids} for a tensor of ids'
        )
    for name, value in inputs.items():
        if isinstance(value, (np.ndarray, list)):
            raise TypeError(
                f"`inputs` have to hold tensors, but {name} is {_inputs.kind_of(value)}: call "
                "the tokenizer with return_tensors='pt'"
            )
    if n > 1:
        check_rows_are_prompts(
            inputs,
            f"use sampler.hf.generate(model, **inputs, sampler=s, num_return_sequences={n})",
        )
    return {name: _repeated(name, value, n) for name, value in inputs.items()}


def _repeated(name: str, value: Any, n: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value.repeat_interleave(n, dim=0) if value.ndim else value
    if isinstance(value, ModelOutput):  # of an encoder
        return type(value)(**{part: _repeated(name, x, n) for part, x in value.items()})
    if n > 1 and (isinstance(value, tuple) or hasattr(value, "get_seq_length")):
        raise TypeError(
            f"`inputs` have to hold tensors, but {name} is {_inputs.kind_of(value)}: use "
            f"sampler.hf.generate(model, **inputs, sampler=s, num_return_sequences={n})"
        )
    return value


def check_rows_are_prompts(inputs: Mapping[str, Any], instead: str) -> None:
    """Refuse tensors whose rows are not known to be those of the text, where there is one."""
    tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.ndim}
    batch = next((len(tensors[name]) for name in _TEXT if name in tensors), None)
    for name, value in tensors.items() if batch is not None else ():
        # As many images as prompts may be two of the first and none of the second.
        rope = name == "position_ids" and value.ndim == 3  # time, height and width come first
        if len(value) != batch and name != "position_ids" and not name.startswith(_MEDIA):
            raise ValueError(
                f"`{name}` has to have a row for each of the {batch} prompts, but has shape "
                f"{tuple(value.shape)}"
            )
        if len(value) != batch or rope or (batch > 1 and name.startswith(_MEDIA)):
            raise ValueError(
                f"`{name}` has shape {tuple(value.shape)}, which does not say which of its rows "
                f"belong to which of the {batch} prompts: {instead}"
            )
