"""The entropy of a softmax, in float64."""

from __future__ import annotations

import math
from typing import Any

import torch

from sampler.temperature._limits import NEAR_OVERFLOW, NO_WEIGHT, SMALLEST
from sampler.torch._checks import check_dims, check_input, check_temperature
from sampler.torch._operators import divisor
from sampler.torch._shapes import keep_dims, move_last


def entropy(
    input: torch.Tensor,  # noqa: A002
    *,
    temperature: float = 1.0,
    dim: int | tuple[int, ...] = -1,
    keepdim: bool = False,
) -> torch.Tensor:
    """Return the Shannon entropy of softmax(input / temperature), in nats, with gradients.

    Parameters and errors are those of `logsumexp`; a row without entries is a ValueError as well.

    Returns
    -------
    tensor of the dtype and device of `input`
        `sampler.temperature.entropy`, computed in float64 on every device and rounded once; NaN for
        a row with NaN or +inf, or of -inf throughout.

    See Also
    --------
    sampler.temperature.entropy : for arrays, without gradients.
    softmax : the probabilities.

    Notes
    -----
    The gradient is -p * (w - sum(p * w)) / temperature, with p the softmax and w = input /
    temperature: no difference of logarithms, so that it is accurate at high temperatures too. An
    entry of -inf gets 0.

    References
    ----------
    Shannon, *A Mathematical Theory of Communication*, 1948.

    Examples
    --------
    >>> import torch
    >>> from sampler.torch import entropy
    >>> logits = torch.tensor([1.0, 3.0, 2.0, -torch.inf], requires_grad=True)
    >>> h = entropy(logits)
    >>> round(h.item(), 3)
    0.832
    >>> h.backward()
    >>> logits.grad.numpy().round(3)
    array([ 0.142, -0.283,  0.141,  0.   ], dtype=float32)
    """
    check_input(input)
    temperature = check_temperature(input, temperature)
    dims = check_dims(input, dim)
    if not all(input.shape[d] for d in dims):
        raise ValueError(
            f"`input` has to hold at least one entry per row, but has shape {tuple(input.shape)}"
        )
    rows = move_last(input, dims)
    result: torch.Tensor = _Entropy.apply(rows, temperature)  # type: ignore[no-untyped-call]
    return keep_dims(result.to(input.dtype), input, dims, keepdim)


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, temperature: float) -> torch.Tensor:
        w, is_top = _exponents(x, temperature)
        ties = is_top.sum(-1).double()
        if temperature == 0:
            result = ties.log()
        elif temperature == math.inf:
            result = (x > -math.inf).sum(-1).double().log()
        else:
            # All but the largest, so that a small rest is not rounded away against them.
            e = w.exp().masked_fill(is_top, 0.0)
            rest = e.sum(-1)
            result = ties.log() + torch.log1p(rest / ties) - (e * w).sum(-1) / (ties + rest)
        top = x.amax(-1)
        return result.masked_fill(~(top.abs() < math.inf), math.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, ctx.temperature = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        (x,) = ctx.saved_tensors
        w, _ = _exponents(x, ctx.temperature)
        p = torch.softmax(w, -1)
        slope = p * ((p * w).sum(-1, keepdim=True) - w)
        result = grad.unsqueeze(-1) * slope / divisor(ctx.temperature, slope.dtype)
        return result.to(x.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, temperature: float) -> Any:
        return _Entropy.apply(x.movedim(in_dims[0], 0), temperature), 0  # type: ignore[no-untyped-call]


def _exponents(x: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (x - max) / temperature in float64, and which entries are the largest.

    The former is never below what has no weight. At the limits of the temperature no one needs it.
    """
    x = x.double()
    top = x.detach().amax(-1, keepdim=True)
    # At half the size where differences might overflow.
    scale = torch.where(top >= NEAR_OVERFLOW, 0.5, 1.0).to(x.dtype)
    gaps = x * scale - top * scale
    divisor = (scale * (temperature if 0 < temperature < math.inf else 1.0)).clamp(min=SMALLEST)
    return (gaps / divisor).clamp(min=NO_WEIGHT), x == top
