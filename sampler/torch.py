"""The softmax family as torch's autograd sees it, with gradients.

`softmax`, `log_softmax`, `logsumexp`, `cross_entropy`, `entropy` and `distillation_loss`. CPU
tensors go through the core, under a `torch.library` operator that `torch.compile` takes as it is;
tensors elsewhere through torch's own operations. Without a gradient, `sampler.softmax` and
`sampler.temperature` do the same for arrays too.
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
from sampler._checks import check_choice, check_integer, check_real, told_outside
from sampler.softmax import check_ignore_index
from sampler.softmax import log_softmax as _core_log_softmax
from sampler.softmax import logsumexp as _core_logsumexp
from sampler.softmax import softmax as _core_softmax
from sampler.temperature._limits import CLOSE, LARGEST, NEAR_OVERFLOW, NO_WEIGHT, SMALLEST

__all__ = [
    "cross_entropy",
    "distillation_loss",
    "entropy",
    "log_softmax",
    "logsumexp",
    "softmax",
]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    _check_input(input)
    temperature = _check_temperature(input, temperature)
    dim = _check_dim(input, dim)
    if not input.is_cpu:
        return torch.softmax(input / temperature, dim)
    return _through_core(input, temperature, dim, False).to(input.dtype)


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


def logsumexp(
    input: torch.Tensor,  # noqa: A002
    *,
    temperature: float = 1.0,
    dim: int | tuple[int, ...] = -1,
    keepdim: bool = False,
) -> torch.Tensor:
    """Return log(sum(exp(input / temperature))) along a dimension, with gradients.

    Parameters, errors and notes are those of `softmax`; besides, `dim` may be a tuple of
    dimensions to sum over, and with `keepdim` the result keeps them, of length 1.

    Returns
    -------
    tensor of the dtype and device of `input`
        On the CPU within 4 ULP of max(1, |value|), before float16 and bfloat16 are rounded; -inf
        where all of a slice is; inf where it has +inf and no NaN.

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
    _check_input(input)
    temperature = _check_temperature(input, temperature)
    dims = _check_dims(input, dim)
    if not input.is_cpu:
        return torch.logsumexp(input / temperature, dims, keepdim)
    rows = _last(input, dims)
    result: torch.Tensor = _LogSumExp.apply(rows, temperature)  # type: ignore[no-untyped-call]
    return _kept(result.to(input.dtype), input, dims, keepdim)


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
    _check_input(input)
    temperature = _check_temperature(input, temperature)
    dims = _check_dims(input, dim)
    if not all(input.shape[d] for d in dims):
        raise ValueError(
            f"`input` has to hold at least one entry per row, but has shape {tuple(input.shape)}"
        )
    rows = _last(input, dims)
    result: torch.Tensor = _Entropy.apply(rows, temperature)  # type: ignore[no-untyped-call]
    return _kept(result.to(input.dtype), input, dims, keepdim)


def cross_entropy(
    input: torch.Tensor,  # noqa: A002
    target: torch.Tensor,
    *,
    temperature: float = 1.0,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
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
        If `input` is no dense tensor of floats, `target` no tensor of int64 or floats, or a
        parameter has the wrong type.
    ValueError
        If `input` is a scalar, `target` does not fit it, holds an index that is no class or has
        its classes in another dimension, or a parameter is out of its range.
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

    There is no `weight`. An index that is no class is a RuntimeError of torch's inside
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
    _check_input(input)
    temperature = _check_temperature(input, temperature)
    smoothing = check_real("label_smoothing", label_smoothing, 0.0, 1.0, "a float in [0, 1]")
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    dim = _check_dim(input, 0 if dim == 1 and input.ndim == 1 else dim)
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

    logs = _through_core(input, temperature, dim, True)
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
    return _reduced(losses, reduction, count).to(input.dtype)


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return temperature**2 KL(softmax(teacher / temperature) || softmax(student / temperature)).

    Parameters
    ----------
    student, teacher : tensor of shape (..., vocab)
        Logits of the same shape, on the same device: float16, bfloat16, float32 or float64; any
        strides. -inf has no mass.
    temperature : float, in (0, inf)
        The higher, the more the teacher's small probabilities count.
    reduction : {"mean", "sum", "none"}
        Over rows: "mean" is what torch's ``kl_div`` calls "batchmean".

    Returns
    -------
    tensor of the dtype and device of `student`
        `sampler.temperature.distillation_loss`, computed in float64 on every device and rounded
        once. Of shape (), or (...) under "none".

    Raises
    ------
    TypeError
        If either is no dense tensor of floats, or a parameter has the wrong type.
    ValueError
        If the shapes or devices differ, there is no token, or a parameter is out of its range.
    NotImplementedError
        Under forward-mode differentiation, such as ``torch.func.jvp``.

    Notes
    -----
    With p the teacher's and q the student's softmax and r = log(q / p), the gradient of a row's
    loss is temperature * (q - p) for the student, and temperature * p * (sum(p * r) - r) for the
    teacher: pass ``teacher.detach()`` where only the student learns. Entries of -inf get 0; where
    the student has -inf and the teacher has mass, the loss is inf, and the gradient as though that
    entry had no part in it.

    References
    ----------
    Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531.

    Examples
    --------
    >>> import torch
    >>> from sampler.torch import distillation_loss
    >>> teacher = torch.tensor([3.0, 1.0, 0.0, 2.0])
    >>> student = torch.tensor([1.0, 0.0, 0.0, 2.0], requires_grad=True)
    >>> loss = distillation_loss(student, teacher, temperature=2.0)
    >>> round(loss.item(), 3)
    0.41
    >>> loss.backward()
    >>> student.grad.numpy().round(3)
    array([-0.392, -0.021,  0.111,  0.302], dtype=float32)
    """
    _check_input(student, "student")
    _check_input(teacher, "teacher")
    text = "a float in (0, inf)"
    _refuse_tensor(temperature, text, "divide both by it, and multiply the loss by its square")
    temperature = check_real("temperature", temperature, SMALLEST, LARGEST, text)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if teacher.shape != student.shape:
        raise ValueError(
            f"`teacher` has to have the shape of `student`, {tuple(student.shape)}, but has "
            f"{tuple(teacher.shape)}"
        )
    if teacher.device != student.device:
        raise ValueError(
            f"`teacher` has to be on {student.device}, as `student`, but is on {teacher.device}"
        )
    if student.shape[-1] == 0:
        raise ValueError(
            f"`student` has to hold at least one token per row, but has shape "
            f"{tuple(student.shape)}"
        )
    losses: torch.Tensor = _Distillation.apply(  # type: ignore[no-untyped-call]
        student, teacher, temperature
    )
    return _reduced(losses, reduction, losses.numel()).to(student.dtype)


def _reduced(losses: torch.Tensor, reduction: str, count: Any) -> torch.Tensor:
    """The losses, `count` of which count, or their sum or mean; the mean of none is NaN."""
    if reduction == "none":
        return losses
    return losses.sum() / count if reduction == "mean" else losses.sum()


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
        told = told_outside(int(target[place]), place, True)
        raise ValueError(
            f"`target` has to hold class indices in [0, {classes}), but one is {told}"
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
    function = _core_log_softmax if log else _core_softmax
    result: torch.Tensor = function(x.detach(), temperature=temperature, axis=dim)
    return result


@_operator.register_fake
def _(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
    return x.new_empty(x.shape, dtype=_wide(x.dtype))


@torch.library.custom_op(
    "sampler::logsumexp",
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor input, float temperature) -> Tensor",
)
def _sum_operator(x: torch.Tensor, temperature: float) -> torch.Tensor:
    result: torch.Tensor = _core_logsumexp(x.detach(), temperature=temperature)
    return result


@_sum_operator.register_fake
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
        return (grad / _divisor(ctx.temperature, y.dtype)).to(ctx.dtype), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, temperature: float, dim: int, log: bool) -> Any:
        return _through_core(x.movedim(in_dims[0], 0), temperature, dim + 1, log), 0


def _divisor(temperature: float, dtype: torch.dtype) -> float:
    """What a gradient is divided by: at temperature 0 nothing moves the result."""
    # A temperature that is 0 in the dtype, where only ties have a gradient, would make NaN of 0s.
    return max(temperature, torch.finfo(dtype).tiny) if temperature else math.inf


def _through_core(x: torch.Tensor, temperature: float, dim: int, log: bool) -> torch.Tensor:
    """Apply the core to a CPU tensor; float32 for narrow dtypes. `dim` is not negative."""
    result: torch.Tensor = _Softmax.apply(x, temperature, dim, log)  # type: ignore[no-untyped-call]
    return result


# These work along the last dimension, and save their inputs alone: what a gradient takes is made
# again, of operations that can be differentiated.
class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(x: torch.Tensor, temperature: float) -> torch.Tensor:
        result: torch.Tensor = _sum_operator(x, temperature)
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
        p = _through_core(
            x.masked_fill(gone.all(-1, keepdim=True), 0.0), ctx.temperature, x.ndim - 1, False
        )
        # As in torch: only the entries of +inf have no gradient.
        has_inf = (x == math.inf).any(-1) & (y == math.inf)
        p = p.masked_fill(has_inf.unsqueeze(-1) & (x < math.inf), 0.0)
        result = grad.unsqueeze(-1) * p / _divisor(ctx.temperature, p.dtype)
        return result.masked_fill(gone, 0.0).to(x.dtype), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Any, temperature: float) -> Any:
        return _LogSumExp.apply(x.movedim(in_dims[0], 0), temperature), 0  # type: ignore[no-untyped-call]


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
        result = grad.unsqueeze(-1) * slope / _divisor(ctx.temperature, slope.dtype)
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


class _Distillation(torch.autograd.Function):
    @staticmethod
    def forward(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        log_q, log_p, r = _compare(student, teacher, temperature)
        p, q = log_p.exp(), log_q.exp()
        # As in `sampler.temperature`: sum p (exp(r) - 1 - r) in positive terms, by a series where
        # r is small.
        series = torch.ones_like(r)
        for k in range(14, 2, -1):
            series = 1 + r.clamp(-CLOSE, CLOSE) / k * series
        apart = torch.where(p == 0, q, q - p - p * r)
        close = (r.abs() < CLOSE) & (p > 0)
        terms = torch.where(
            close, p * (0.5 * (temperature * r) ** 2 * series), temperature * (temperature * apart)
        )
        only_teacher = (log_q == -math.inf) & (log_p > -math.inf)
        return terms.masked_fill(only_teacher, math.inf).sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        student, teacher, ctx.temperature = inputs
        ctx.save_for_backward(student, teacher)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        student, teacher = ctx.saved_tensors
        log_q, log_p, r = _compare(student, teacher, ctx.temperature)
        p, grad = log_p.exp(), ctx.temperature * grad.unsqueeze(-1)
        to_student = to_teacher = None
        if ctx.needs_input_grad[0]:
            near = p * torch.expm1(r.clamp(-CLOSE, CLOSE))
            change = torch.where(r.abs() < CLOSE, near, log_q.exp() - p)
            to_student = grad * torch.where(log_p == -math.inf, log_q.exp(), change)
            to_student = to_student.to(student.dtype)
        if ctx.needs_input_grad[1]:
            to_teacher = grad * p * ((p * r).sum(-1, keepdim=True) - r)
            to_teacher = to_teacher.to(teacher.dtype)
        return to_student, to_teacher, None

    @staticmethod
    def vmap(info: Any, in_dims: Any, student: Any, teacher: Any, temperature: float) -> Any:
        pair = [
            x.expand(info.batch_size, *x.shape) if d is None else x.movedim(d, 0)
            for x, d in zip((student, teacher), in_dims, strict=False)
        ]
        return _Distillation.apply(*pair, temperature), 0  # type: ignore[no-untyped-call]


def _compare(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log(q), log(p), and log(q / p), which is 0 where either has no mass; in float64."""
    s, v = student.double(), teacher.double()
    log_q, log_p = (
        _through_core(x, temperature, x.ndim - 1, True)
        if x.is_cpu
        else torch.log_softmax(x / temperature, -1)
        for x in (s, v)
    )
    has_q, has_p = log_q != -math.inf, log_p != -math.inf
    both = has_q & has_p
    # At a high temperature both are about -log(vocab), and what tells them apart is rounded away.
    # Where all of a row's r are small, take the differences of the logits instead.
    change = torch.where(both, s - v, 0.0) / temperature
    p = log_p.exp()
    change = change - (p * change).sum(-1, keepdim=True)
    close = ((change.abs() < 1) & (has_q == has_p)).all(-1, keepdim=True)
    change = torch.where(close & both, change, 0.0)
    # log(sum q / p): what shifts both sides alike has gone with the mean.
    change = change - torch.log1p((p * torch.expm1(change)).sum(-1, keepdim=True))
    r = torch.where(close, change, torch.where(both, log_q - log_p, 0.0))
    return log_q, log_p, r.masked_fill(~both, 0.0)


def _last(x: torch.Tensor, dims: tuple[int, ...]) -> torch.Tensor:
    """These dimensions as one, the last."""
    return x.movedim(dims, tuple(range(-len(dims), 0))).flatten(x.ndim - len(dims))


def _kept(
    result: torch.Tensor, x: torch.Tensor, dims: tuple[int, ...], keepdim: bool
) -> torch.Tensor:
    """What is left of x when these dimensions are gone, or kept, of length 1."""
    if not keepdim:
        return result
    return result.reshape([1 if d in dims else n for d, n in enumerate(x.shape)])


# ------------------------------------------------------------------------------------------ checks


def _check_input(value: Any, name: str = "input") -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` has to be a tensor, but is a {_inputs.kind_of(value)}")
    if value.dtype not in _FLOATS:
        raise TypeError(
            f"`{name}` has to be float16, bfloat16, float32 or float64, but is {value.dtype}"
        )
    if value.layout is not torch.strided or value.is_nested:
        found = f"has layout {value.layout}"
        if value.is_nested:
            found = f"is nested{_inputs.how_to_pad(name)}"
        raise TypeError(f"`{name}` has to be a dense tensor, but {found}")
    if value.ndim == 0:
        raise ValueError(f"`{name}` has to have at least one dimension, but is a scalar")


def _check_temperature(x: torch.Tensor, value: Any) -> float:
    _refuse_tensor(value, "a float in [0, inf]", "divide `input` by it")
    temperature = check_real("temperature", value, 0.0, math.inf, "a float in [0, inf]")
    # There input / temperature would be NaN.
    if not x.is_cpu and not 0.0 < temperature < math.inf:
        raise ValueError(
            f"`temperature` has to be a float in (0, inf) for a tensor on {x.device}, but is "
            f"{temperature}"
        )
    return temperature


def _refuse_tensor(temperature: Any, wanted: str, remedy: str) -> None:
    if isinstance(temperature, torch.Tensor):
        raise TypeError(f"`temperature` has to be {wanted}, but is a tensor: {remedy}")


def _check_dim(x: torch.Tensor, value: Any) -> int:
    dim = check_integer("dim", value, -x.ndim, x.ndim, f"an integer in [{-x.ndim}, {x.ndim})")
    return dim % x.ndim


def _check_dims(x: torch.Tensor, value: Any) -> tuple[int, ...]:
    dims = sorted(_check_dim(x, dim) for dim in (value if isinstance(value, tuple) else (value,)))
    if not dims or len(set(dims)) != len(dims):
        raise ValueError(f"`dim` has to name one dimension or some, each once, but is {value}")
    return tuple(dims)


def _check_target(x: torch.Tensor, target: Any, dim: int) -> None:
    wanted = "int64 class indices or floats"
    if not isinstance(target, torch.Tensor):
        raise TypeError(
            f"`target` has to be a tensor of {wanted}, but is a {_inputs.kind_of(target)}"
        )
    if target.dtype is not torch.int64 and target.dtype not in _FLOATS:
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
