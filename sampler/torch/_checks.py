"""Checks of arguments that several functions share."""

from __future__ import annotations

import math
from typing import Any

import torch

from sampler import _inputs, _tensors
from sampler._checks import check_integer
from sampler.stages import Temperature

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_input(value: Any, name: str = "input") -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` has to be a tensor, but is {_inputs.kind_of(value)}")
    if value.dtype not in FLOATS:
        raise TypeError(
            f"`{name}` has to be float16, bfloat16, float32 or float64, but is {value.dtype}"
        )
    if value.layout is not torch.strided or value.is_nested:
        found = f"has layout {value.layout}"
        if value.is_nested:
            found = f"is nested{_tensors.how_to_pad(name)}"
        raise TypeError(f"`{name}` has to be a dense tensor, but {found}")
    if value.ndim == 0:
        raise ValueError(f"`{name}` has to have at least one dimension, but is a scalar")


def check_temperature(x: torch.Tensor, value: Any) -> float:
    refuse_tensor(value, str(Temperature.range), "divide `input` by it")
    temperature: float = Temperature.range.check("temperature", value)
    # There input / temperature would be NaN.
    if not x.is_cpu and not 0.0 < temperature < math.inf:
        raise ValueError(
            f"`temperature` has to be a float in (0, inf) for a tensor on {x.device}, but is "
            f"{temperature}"
        )
    return temperature


def refuse_tensor(temperature: Any, wanted: str, remedy: str) -> None:
    if isinstance(temperature, torch.Tensor):
        raise TypeError(f"`temperature` has to be {wanted}, but is a tensor: {remedy}")


def check_dim(x: torch.Tensor, value: Any) -> int:
    dim = check_integer("dim", value, -x.ndim, x.ndim, f"an integer in [{-x.ndim}, {x.ndim})")
    return dim % x.ndim


def check_dims(x: torch.Tensor, value: Any) -> tuple[int, ...]:
    dims = sorted(check_dim(x, dim) for dim in (value if isinstance(value, tuple) else (value,)))
    if not dims or len(set(dims)) != len(dims):
        raise ValueError(f"`dim` has to name one dimension or some, each once, but is {value}")
    return tuple(dims)
