"""Dimensions moved to the end, kept with length 1, or reduced."""

from __future__ import annotations

from typing import Any

import torch


def move_last(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """These dimensions as one, the last."""
    return x.movedim(dims, tuple(range(-len(dims), 0))).flatten(x.ndim - len(dims))


def keep_dims(
    result: torch.Tensor, x: torch.Tensor, dims: tuple[int, ...], keepdim: bool
) -> torch.Tensor:
    """What is left of x when these dimensions are gone, or kept, of length 1."""
    if not keepdim:
        return result
    return result.reshape([1 if d in dims else n for d, n in enumerate(x.shape)])


def reduce(losses: torch.Tensor, reduction: str, count: Any) -> torch.Tensor:
    """The losses, `count` of which count, or their sum or mean; the mean of none is NaN."""
    if reduction == "none":
        return losses
    return losses.sum() / count if reduction == "mean" else losses.sum()
