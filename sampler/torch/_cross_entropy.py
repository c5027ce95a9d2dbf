"""The cross entropy of a softmax against class indices or probabilities."""

from __future__ import annotations

import math
from typing import Any

import torch

from sampler import _inputs
from sampler._checks import Reduction, check_choice, describe_outside, reals
from sampler._cross_entropy import check_ignore_index
from sampler.torch._checks import FLOATS, check_dim, check_input, check_temperature
from sampler.torch._operators import softmax_through_core
from sampler.torch._shapes import reduce


def cross_entropy(
    input: torch.Tensor,  # noqa: A002
    target: torch.Tensor,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    dim: int = 1,
) -> torch.Tensor:
    """Return the cross entropy of the softmax of input / temperature against targets.

    Parameters
    ----------
    input : tensor of shape (classes,), (batch, classes) or (batch, classes, ...)
        Logits, float16, bfloat16, float32 or float64; any strides. For logits of shape (batch,
        seq, vocab), give ``dim=-1``.
    target : tensor
        int64 class indices in [0, classes), of the shape of `input` without its classes; or floats
        of the shape of `input`, the probabilities of the classes. Of these only one mistake is
        found, on the CPU and outside ``torch.compile`` and ``vmap``: they sum to 1 along the last
        dimension and not along `dim`, within 1e-3 (0.0078 for bfloat16).
    temperature : float, in [0, inf], off at 1
        As for `softmax`.
    label_smoothing : float, in [0, 1], off at 0
        The share of the target that is spread evenly over all classes.
    reduction : {"mean", "sum", "none"}
        What is made of the losses: their mean over all that count, their sum, or themselves.
    ignore_index : int
        A target that does not count: its loss is 0. It may lie outside [0, classes); with a target
        of floats it has to be negative, and has no effect.
    dim : int
        The dimension that holds the classes; 1, as in torch, is the only one of a 1-D `input` too.

    Returns
    -------
    tensor of the dtype and device of `input`
        A scalar, or under "none" the shape of `input` without its classes. float16 and bfloat16
        are computed in float32, the reduction included, and rounded once. If nothing counts, the
        mean is NaN and the sum 0.

    Raises
    ------
    TypeError
        If `input` is not a dense tensor of floats, `target` not a tensor of int64 or floats, or a
        parameter has the wrong type.
    ValueError
        If `input` is a scalar, `target` does not fit it, holds an index that is not a class or has
        its classes in another dimension, or a parameter is out of its range.
    NotImplementedError
        Under forward-mode differentiation, such as ``torch.func.jvp``.

    See Also
    --------
    sampler.cross_entropy : for arrays, without gradients; classes along the last axis.
    log_softmax : the log-probabilities.

    Notes
    -----
    The values of ``torch.nn.functional.cross_entropy(input / temperature, target)``, which it is
    on other devices than the CPU. With y the target, smoothed, each loss has the gradient
    (softmax(input / temperature) - y) / temperature.

    A class at -inf gets gradient 0, and adds nothing to the loss where its probability in a target
    of floats is 0 (torch gives NaN). Where it has a share of the target, by its index, by its
    probability or by smoothing, the loss is inf; the gradient is then as though that share were 0.

    There is no `weight`. An index that is not a class is a RuntimeError of torch's inside
    `torch.compile`, and torch's to find on other devices.

    Examples
    --------
    >>> import torch
    >>> from sampler.torch import cross_entropy
    >>> logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]], requires_grad=True)
    >>> loss = cross_entropy(logits, torch.tensor([1]), temperature=2.0)
    >>> round(loss.item(), 3)
    0.787
    >>> loss.backward()
    >>> logits.grad.numpy().round(3)
    array([[ 0.084, -0.272,  0.138,  0.051]], dtype=float32)
    """
    check_input(input)
    temperature = check_temperature(input, temperature)
    smoothing = reals(0.0, 1.0).check("label_smoothing", label_smoothing)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    dim = check_dim(input, 0 if dim == 1 and input.ndim == 1 else dim)
    _check_target(input, target, dim)
    if target.is_floating_point():
        _check_sums(target, dim)
    ignore_index = check_ignore_index(ignore_index, not target.is_floating_point())
    if not input.is_cpu:
        place = min(input.ndim - 1, 1)
        return torch.nn.functional.cross_entropy(
            (input / temperature).movedim(dim, place),
            target.movedim(dim, place) if target.is_floating_point() else target,
            label_smoothing=smoothing, reduction=reduction, ignore_index=ignore_index,
        )  # fmt: skip

    logs = softmax_through_core(input, temperature, dim, True)
    if target.is_floating_point():
        if smoothing:
            target = (1.0 - smoothing) * target + smoothing / input.shape[dim]
        # 0 log 0 is 0.
        absent = (target == 0.0) & (logs == -math.inf)
        losses = -(target * logs.masked_fill(absent, 0.0)).sum(dim)
        count: Any = losses.numel()
    else:
        ignored = target == ignore_index
        count = (~ignored).sum()
        losses = -_gather(logs, target.masked_fill(ignored, 0), dim)
        if smoothing == 1.0:  # no 0 * inf
            losses = -logs.mean(dim)
        elif smoothing:
            losses = (1.0 - smoothing) * losses - smoothing * logs.mean(dim)
        losses = losses.masked_fill(ignored, 0.0)
    return reduce(losses, reduction, count).to(input.dtype)


def _gather(logs: torch.Tensor, target: torch.Tensor, dim: int) -> torch.Tensor:
    # gather looks at every index anyway. A look of our own beforehand would be one more pass, and
    # neither torch.compile nor vmap lets Python branch on values.
    try:
        return logs.gather(dim, target.unsqueeze(dim)).squeeze(dim)
    except (IndexError, RuntimeError):
        classes = logs.shape[dim]
        outside = ((target < 0) | (target >= classes)).nonzero()
        if not len(outside):
            raise
        place = tuple(outside[0].tolist())
        found = describe_outside(int(target[place]), place, True)
        raise ValueError(
            f"`target` has to hold class indices in [0, {classes}), but one is {found}"
        ) from None


def _check_target(x: torch.Tensor, target: Any, dim: int) -> None:
    wanted = "int64 class indices or floats"
    if not isinstance(target, torch.Tensor):
        raise TypeError(
            f"`target` has to be a tensor of {wanted}, but is {_inputs.kind_of(target)}"
        )
    if target.dtype is not torch.int64 and target.dtype not in FLOATS:
        raise TypeError(f"`target` has to be {wanted}, but is {target.dtype}")
    if target.is_nested:
        raise TypeError("`target` has to be a dense tensor, but is nested")
    if x.shape[dim] == 0 and target.is_floating_point():
        raise ValueError(f"`input` has to hold at least one class, but has shape {tuple(x.shape)}")
    if target.device != x.device:
        raise ValueError(f"`target` has to be on {x.device}, as `input`, but is on {target.device}")
    shape = tuple(x.shape)
    if target.dtype is torch.int64:
        wanted, shape = "class indices", shape[:dim] + shape[dim + 1 :]
    else:
        wanted = "probabilities"
    if tuple(target.shape) != shape:
        is_last = target.dtype is torch.int64 and target.shape == x.shape[:-1]
        hint = ": pass dim=-1 for classes in the last dimension" if is_last else ""
        raise ValueError(
            f"`target` has to have shape {shape} for {wanted}, but has shape "
            f"{tuple(target.shape)}{hint}"
        )


def _check_sums(target: torch.Tensor, dim: int) -> None:
    """Refuse probabilities whose classes are in the last dimension, and not along `dim`."""
    last = target.ndim - 1
    if dim == last or not target.is_cpu or torch.compiler.is_compiling():
        return

    tolerance = max(1e-3, torch.finfo(target.dtype).eps)  # bfloat16 has no 1e-3

    def is_sum_1(along: int) -> bool:
        sums = target.detach().sum(along, dtype=torch.float32)
        return bool(((sums - 1.0).abs() <= tolerance).all())

    try:
        is_wrong = is_sum_1(last) and not is_sum_1(dim)
    except RuntimeError:  # under vmap, and where else there are no values to look at
        return
    if is_wrong:
        raise ValueError(
            f"`target` has to sum to 1 along dimension {dim}, which holds the classes, but does "
            "along the last: pass dim=-1 for classes in the last dimension"
        )
