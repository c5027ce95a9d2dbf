"""The softmax family as torch's autograd sees it: softmax, log_softmax, cross_entropy.

CPU tensors go through the core, under a `torch.library` operator that `torch.compile` takes as it
is; tensors elsewhere through torch's own operations. `sampler.softmax` is the same for whoever
needs no gradient.
"""

from __future__ import annotations

import math
from typing import Any

try:
    import torch  # torch itself: imports are absolute
except ImportError as error:
    raise ImportError(
        f"sampler.torch needs torch 2.4 or newer ({error}); it comes with "
        'pip install "token-sampler[hf]"'
    ) from error

from sampler import _inputs
from sampler._checks import check_choice, check_integer, check_real
from sampler.softmax import log_softmax as _core_log_softmax
from sampler.softmax import softmax as _core_softmax

__all__ = ["cross_entropy", "log_softmax", "softmax"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def softmax(
    input: torch.Tensor,  # noqa: A002  (torch's name)
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
        If `input` is no dense tensor of floats, or a parameter has the wrong type.
    ValueError
        If `input` is a scalar, or a parameter is out of its range.
    NotImplementedError
        Under forward-mode differentiation, such as ``torch.func.jvp``.

    Notes
    -----
    On the CPU the values are those of `sampler.softmax`: float32 within 4 ULP of the exact ones,
    and a slice with NaN or +inf, or -inf throughout, is NaN. Entries of -inf get gradient 0. On
    other devices the result is ``torch.softmax(input / temperature, dim)``.

    With g the gradient of the result p, that of `input` is p * (g - sum(g * p)) / temperature. It
    can be differentiated again, and ``torch.func.grad``, ``jacrev`` and ``vmap`` work.
    `torch.compile` keeps the core's pass as one operator, and compiles anew for each temperature.

    A temperature to be learned is a tensor that `input` is divided by, with this one at 1. Logits
    at -inf would make its gradient NaN: mask behind the division.

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
    _check_input(input)
    temperature = _check_temperature(input, temperature)
    dim = _check_dim(input, dim)
    if not input.is_cpu:
        return torch.softmax(input / temperature, dim)
    return _through_core(input, temperature, dim, False).to(input.dtype)


def log_softmax(
    input: torch.Tensor,  # noqa: A002
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
    _check_input(input)
    temperature = _check_temperature(input, temperature)
    dim = _check_dim(input, dim)
    if not input.is_cpu:
        return torch.log_softmax(input / temperature, dim)
    return _through_core(input, temperature, dim, True).to(input.dtype)


def cross_entropy(
    input: torch.Tensor,  # noqa: A002
    target: torch.Tensor,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the cross entropy of the softmax of input / temperature against targets.

    Parameters
    ----------
    input : tensor of shape (classes,), (batch, classes) or (batch, classes, ...)
        Logits, float16, bfloat16, float32 or float64; any strides.
    target : tensor
        int64 class indices in [0, classes), of the shape of `input` without its classes; or floats
        of the shape of `input`, the probabilities of the classes, which are not checked.
    temperature : float, in [0, inf], off at 1
        As for `softmax`.
    label_smoothing : float, in [0, 1], off at 0
        The share of the target that is spread evenly over all classes.
    reduction : {"mean", "sum", "none"}
        What is made of the losses: their mean over everything but the classes, their sum, or
        themselves.

    Returns
    -------
    tensor of the dtype and device of `input`
        A scalar, or under "none" the shape of `input` without its classes. float16 and bfloat16
        are computed in float32, the reduction included, and rounded once.

    Raises
    ------
    TypeError
        If `input` is no dense tensor of floats, `target` no tensor of int64 or floats, or a
        parameter has the wrong type.
    ValueError
        If `input` is a scalar, `target` does not fit it or holds an index that is no class, or a
        parameter is out of its range.
    NotImplementedError
        Under forward-mode differentiation, such as ``torch.func.jvp``.

    Notes
    -----
    The values of ``torch.nn.functional.cross_entropy(input / temperature, target)``, which it is
    on other devices than the CPU. With y the target, smoothed, each loss has the gradient
    (softmax(input / temperature) - y) / temperature.

    A class at -inf gets gradient 0, and adds nothing to the loss where its probability in a target
    of floats is 0 (torch gives NaN). Where it has a share of the target, by its index, by its
    probability or by smoothing, the loss is inf; the gradient is then as though that share were 0.

    There is no `weight` and no `ignore_index`: take such places out, as
    ``cross_entropy(input[keep], target[keep])`` with ``keep = target != -100``. An index that is
    no class is a RuntimeError of torch's inside `torch.compile`, and torch's to find on other
    devices.

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
    _check_input(input)
    temperature = _check_temperature(input, temperature)
    smoothing = check_real("label_smoothing", label_smoothing, 0.0, 1.0, "a float in [0, 1]")
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    dim = min(input.ndim - 1, 1)
    _check_target(input, target, dim)
    if not input.is_cpu:
        return torch.nn.functional.cross_entropy(
            input / temperature, target, label_smoothing=smoothing, reduction=reduction
        )

    logs = _through_core(input, temperature, dim, True)
    if target.is_floating_point():
        if smoothing:
            target = (1.0 - smoothing) * target + smoothing / input.shape[dim]
        # 0 log 0 is 0.
        absent = (target == 0.0) & (logs == -math.inf)
        losses = -(target * logs.masked_fill(absent, 0.0)).sum(dim)
    else:
        losses = -_gather(logs, target, dim)
        if smoothing == 1.0:  # no 0 * inf
            losses = -logs.mean(dim)
        elif smoothing:
            losses = (1.0 - smoothing) * losses - smoothing * logs.mean(dim)
    if reduction == "mean":
        losses = losses.mean()
    elif reduction == "sum":
        losses = losses.sum()
    return losses.to(input.dtype)


def _gather(logs: torch.Tensor, target: torch.Tensor, dim: int) -> torch.Tensor:
    # gather looks at every index anyway. A look of our own beforehand would be one more pass, and
    # neither torch.compile nor vmap lets Python branch on values.
    try:
        return logs.gather(dim, target.unsqueeze(dim)).squeeze(dim)
    except (IndexError, RuntimeError):
        classes = logs.shape[dim]
        outside = target[(target < 0) | (target >= classes)]
        if not len(outside):
            raise
        raise ValueError(
            f"`target` has to hold class indices in [0, {classes}), but one is {outside[0]}"
        ) from None


# ---------------------------------------------------------------------------- the core in autograd


# The schema is written out: torch 2.4 cannot read annotations that are strings.
@torch.library.custom_op(
    "sampler::softmax",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor input, float temperature, int dim, bool log) -> Tensor",
)
def _operator(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
    result: torch.Tensor = (_core_log_softmax if log else _core_softmax)(x, temperature, dim)
    return result


@_operator.register_fake
def _(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=_wide(x.dtype))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype the core writes for this one."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# The gradient is not registered with the operator: such operators refuse torch.func.grad, and
# answer torch.func.jvp with zeros. A Function without a `jvp` refuses that, and torch.compile takes
# no Function with one.
class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
        result: torch.Tensor = _operator(x, temperature, dim, log)
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
        # At temperature 0 nothing moves the result. A temperature that is 0 in the dtype, where
        # only ties have a gradient, would make NaN of the zeros.
        divisor = max(ctx.temperature, torch.finfo(y.dtype).tiny) if ctx.temperature else math.inf
        return (grad / divisor).to(ctx.dtype), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, temperature: float, dim: int, log: bool) -> Any:
        return _through_core(x.movedim(in_dims[0], 0), temperature, dim + 1, log), 0


def _through_core(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
    """Apply the core to a CPU tensor; float32 for narrow dtypes. `dim` is not negative."""
    result: torch.Tensor = _Softmax.apply(x, temperature, dim, log)  # type: ignore[no-untyped-call]
    return result


# ------------------------------------------------------------------------------------------ checks


def _check_input(value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`input` has to be a tensor, but is a {_inputs.kind_of(value)}")
    if value.dtype not in _FLOATS:
        raise TypeError(
            f"`input` has to be float16, bfloat16, float32 or float64, but is {value.dtype}"
        )
    if value.layout is not torch.strided:
        raise TypeError(f"`input` has to be a dense tensor, but has layout {value.layout}")
    if value.ndim == 0:
        raise ValueError("`input` has to have at least one dimension, but is a scalar")


def _check_temperature(x: torch.Tensor, value: Any) -> float:
    if isinstance(value, torch.Tensor):
        raise TypeError(
            "`temperature` has to be a float in [0, inf], but is a tensor: divide `input` by it"
        )
    temperature = check_real("temperature", value, 0.0, math.inf, "a float in [0, inf]")
    # There input / temperature would be NaN.
    if not x.is_cpu and not 0.0 < temperature < math.inf:
        raise ValueError(
            f"`temperature` has to be a float in (0, inf) for a tensor on {x.device}, but is "
            f"{temperature}"
        )
    return temperature


def _check_dim(x: torch.Tensor, value: Any) -> int:
    dim = check_integer("dim", value, -x.ndim, x.ndim, f"an integer in [{-x.ndim}, {x.ndim})")
    return dim % x.ndim


def _check_target(x: torch.Tensor, target: Any, dim: int) -> None:
    wanted = "int64 class indices or floats"
    if not isinstance(target, torch.Tensor):
        raise TypeError(
            f"`target` has to be a tensor of {wanted}, but is a {_inputs.kind_of(target)}"
        )
    if target.dtype is not torch.int64 and target.dtype not in _FLOATS:
        raise TypeError(f"`target` has to be {wanted}, but is {target.dtype}")
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
        raise ValueError(
            f"`target` has to have shape {shape} for {wanted}, but has shape {tuple(target.shape)}"
        )
