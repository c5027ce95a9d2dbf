"""The path through the core: its operators for torch, and the gradients of these."""

from __future__ import annotations

import math
from typing import Any

import torch

from sampler.softmax import log_softmax, logsumexp, softmax


# The schema is written out: torch 2.4 cannot read annotations that are strings.
@torch.library.custom_op(
    "sampler::softmax",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor input, float temperature, int dim, bool log) -> Tensor",
)
def _softmax_operator(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
    function = log_softmax if log else softmax
    result: torch.Tensor = function(x.detach(), temperature=temperature, axis=dim)
    return result


@_softmax_operator.register_fake
def _(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=_wide(x.dtype))


@torch.library.custom_op(
    "sampler::logsumexp",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor input, float temperature) -> Tensor",
)
def _logsumexp_operator(x: torch.Tensor, temperature: float) -> torch.Tensor:
    result: torch.Tensor = logsumexp(x.detach(), temperature=temperature)
    return result


@_logsumexp_operator.register_fake
def _(x: torch.Tensor, temperature: float) -> torch.Tensor:
    return x.new_empty(x.shape[:-1], dtype=_wide(x.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype the core writes for this one."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# The gradient is not registered with the operator: such operators refuse torch.func.grad, and
# answer torch.func.jvp with zeros. A Function without a `jvp` refuses that, and torch.compile takes
# no Function with one.
class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
        result: torch.Tensor = _softmax_operator(x, temperature, dim, log)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.temperature, ctx.dim, ctx.log = inputs
        ctx.dtype = x.dtype
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        # The two halves of torch's own softmax: differentiable again, in terms of the output.
        (y,) = ctx.saved_tensors
        if ctx.log:
            grad = torch.where(y == -math.inf, 0.0, grad)
            grad = torch._log_softmax_backward_data(grad, y, ctx.dim, y.dtype)
        else:
            grad = torch._softmax_backward_data(grad, y, ctx.dim, y.dtype)
        return (grad / divisor(ctx.temperature, y.dtype)).to(ctx.dtype), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, temperature: float, dim: int, log: bool) -> Any:
        return softmax_through_core(x.movedim(in_dims[0], 0), temperature, dim + 1, log), 0


def divisor(temperature: float, dtype: torch.dtype) -> float:
    """What a gradient is divided by: at temperature 0 nothing moves the result."""
    # A temperature that is 0 in the dtype, where only ties have a gradient, would make NaN of 0s.
    return max(temperature, torch.finfo(dtype).tiny) if temperature else math.inf


def softmax_through_core(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
    """Apply the core to a CPU tensor; float32 for narrow dtypes. `dim` is not negative."""
    result: torch.Tensor = _Softmax.apply(x, temperature, dim, log)  # type: ignore[no-untyped-call]
    return result


# This works along the last dimension, and saves what it was given: what a gradient takes is made
# again, of operations that can be differentiated. So do the functions of `_entropy.py` and
# `_distillation.py`.
class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, temperature: float) -> torch.Tensor:
        result: torch.Tensor = _logsumexp_operator(x, temperature)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.temperature = inputs
        ctx.save_for_backward(x, output)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        x, y = ctx.saved_tensors
        gone = x == -math.inf
        # A row of -inf throughout has no softmax, and does not need one.
        p = softmax_through_core(
            x.masked_fill(gone.all(-1, keepdim=True), 0.0), ctx.temperature, x.ndim - 1, False
        )
        # As in torch: only the entries of +inf have no gradient.
        has_inf = (x == math.inf).any(-1) & (y == math.inf)
        p = p.masked_fill(has_inf.unsqueeze(-1) & (x < math.inf), 0.0)
        result = grad.unsqueeze(-1) * p / divisor(ctx.temperature, p.dtype)
        return result.masked_fill(gone, 0.0).to(x.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, temperature: float) -> Any:
        return logsumexp_through_core(x.movedim(in_dims[0], 0), temperature), 0


def logsumexp_through_core(x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Apply the core along the last dimension of a CPU tensor; float32 for narrow dtypes."""
    result: torch.Tensor = _LogSumExp.apply(x, temperature)  # type: ignore[no-untyped-call]
    return result
