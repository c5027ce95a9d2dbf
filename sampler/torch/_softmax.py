"""The softmax, its logarithm, and the logarithm of its sum."""

from __future__ import annotations

import torch

from sampler.torch._checks import check_dim, check_dims, check_input, check_temperature
from sampler.torch._operators import logsumexp_through_core, softmax_through_core
from sampler.torch._shapes import keep_dims, move_last


def softmax(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    *,
    temperature: float = 1.0,
    dim: int = -1,
) -> torch.Tensor:
    """Return exp(input / temperature) over its sum along a dimension, with gradients.

    Parameters
    ----------
    input : tensor of one or more dimensions
        float16, bfloat16, float32 or float64; any strides.
    temperature : float, in [0, inf], off at 1
        0 is the limit: the largest entries share equally. inf gives every entry but -inf the same
        share. At both the gradient is 0. On other devices than the CPU, in (0, inf).
    dim : int
        The dimension that sums to 1.

    Returns
    -------
    tensor of the shape, dtype and device of `input`
        float16 and bfloat16 are computed in float32 and rounded once, and so is their gradient.

    Raises
    ------
    TypeError
        If `input` is not a dense tensor of floats, or a parameter has the wrong type.
    ValueError
        If `input` is a scalar, or a parameter is out of its range.
    NotImplementedError
        Under forward-mode differentiation, such as ``torch.func.jvp``.

    See Also
    --------
    sampler.softmax : for arrays, without gradients.
    log_softmax : its logarithm.

    Notes
    -----
    On the CPU the values are those of `sampler.softmax`: float32 within 4 ULP of the exact ones,
    and a slice with NaN or +inf, or -inf throughout, is NaN. Entries of -inf get gradient 0. On
    other devices the result is ``torch.softmax(input / temperature, dim)``.

    With g the gradient of the result p, that of `input` is p * (g - sum(g * p)) / temperature. It
    can be differentiated again, and ``torch.func.grad``, ``jacrev`` and ``vmap`` work.
    `torch.compile` keeps the core's pass as one operator, and compiles again for each temperature.

    A temperature to be learned is a tensor that `input` is divided by, with this one at 1. Logits
    at -inf would make its gradient NaN: mask after the division.

    Examples
    --------
    >>> import torch
    >>> from sampler.torch import softmax
    >>> logits = torch.tensor([1.0, 3.0, 2.0, 0.0], requires_grad=True)
    >>> p = softmax(logits, temperature=0.5)
    >>> p.detach().numpy().round(3)
    array([0.016, 0.865, 0.117, 0.002], dtype=float32)
    >>> p[1].backward()
    >>> logits.grad.numpy().round(3)
    array([-0.027,  0.234, -0.203, -0.004], dtype=float32)
    """
    check_input(input)
    temperature = check_temperature(input, temperature)
    dim = check_dim(input, dim)
    if not input.is_cpu:
        return torch.softmax(input / temperature, dim)
    return softmax_through_core(input, temperature, dim, False).to(input.dtype)


def log_softmax(
    input: torch.Tensor,  # noqa: A002
    *,
    temperature: float = 1.0,
    dim: int = -1,
) -> torch.Tensor:
    """Return input / temperature less its logsumexp along a dimension, with gradients.

    Parameters, errors and notes are those of `softmax`.

    Returns
    -------
    tensor of the shape, dtype and device of `input`
        On the CPU within 4 ULP of max(1, |value|), before float16 and bfloat16 are rounded; -inf
        where `input` is.

    See Also
    --------
    softmax : the probabilities.
    sampler.log_softmax : for arrays, without gradients.

    Notes
    -----
    With g the gradient of the result y, that of `input` is (g - exp(y) * sum(g)) / temperature. A
    result of -inf depends on nothing: g counts as 0 there, so an entry of -inf gets gradient 0,
    where `torch.log_softmax` passes g on.

    Examples
    --------
    >>> import torch
    >>> from sampler.torch import log_softmax
    >>> logits = torch.tensor([1.0, 3.0, 2.0, -torch.inf], requires_grad=True)
    >>> y = log_softmax(logits)
    >>> y.detach().numpy().round(3)
    array([-2.408, -0.408, -1.408,   -inf], dtype=float32)
    >>> y[1].backward()
    >>> logits.grad.numpy().round(3)
    array([-0.09 ,  0.335, -0.245,  0.   ], dtype=float32)
    """
    check_input(input)
    temperature = check_temperature(input, temperature)
    dim = check_dim(input, dim)
    if not input.is_cpu:
        return torch.log_softmax(input / temperature, dim)
    return softmax_through_core(input, temperature, dim, True).to(input.dtype)


def logsumexp(
    input: torch.Tensor,  # noqa: A002
    *,
    temperature: float = 1.0,
    dim: int | tuple[int, ...] = -1,
    keepdim: bool = False,
) -> torch.Tensor:
    """Return log(sum(exp(input / temperature))) along a dimension, with gradients.

    Parameters, errors and notes are those of `softmax`; `dim` may also be a tuple of
    dimensions to sum over, and with `keepdim` the result keeps them, of length 1.

    Returns
    -------
    tensor of the dtype and device of `input`
        On the CPU within 4 ULP of max(1, |value|), before float16 and bfloat16 are rounded; -inf
        where all of a slice is; inf where it has +inf and no NaN.

    See Also
    --------
    log_softmax : the logits less this.
    sampler.logsumexp : for arrays, without gradients.

    Notes
    -----
    The gradient is softmax(input / temperature) / temperature. An entry of -inf gets 0, also where
    all of a slice is -inf, for which `torch.logsumexp` gives NaN; one of +inf gets NaN, as torch
    gives it.

    Examples
    --------
    >>> import torch
    >>> from sampler.torch import logsumexp
    >>> logits = torch.tensor([1.0, 3.0, 2.0, -torch.inf], requires_grad=True)
    >>> y = logsumexp(logits)
    >>> round(y.item(), 3)
    3.408
    >>> y.backward()
    >>> logits.grad.numpy().round(3)
    array([0.09 , 0.665, 0.245, 0.   ], dtype=float32)
    """
    check_input(input)
    temperature = check_temperature(input, temperature)
    dims = check_dims(input, dim)
    if not input.is_cpu:
        return torch.logsumexp(input / temperature, dims, keepdim)
    rows = move_last(input, dims)
    result = logsumexp_through_core(rows, temperature)
    return keep_dims(result.to(input.dtype), input, dims, keepdim)
