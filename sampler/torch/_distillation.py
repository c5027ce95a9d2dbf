"""The distillation loss, in float64, with gradients for both sides."""

from __future__ import annotations

import math
from typing import Any

import torch

from sampler._checks import Reduction, check_choice, check_real
from sampler.temperature._limits import CLOSE, LARGEST, SMALLEST
from sampler.torch._checks import check_input, refuse_tensor
from sampler.torch._operators import softmax_through_core
from sampler.torch._shapes import reduce


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
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
        If either is not a dense tensor of floats, or a parameter has the wrong type.
    ValueError
        If the shapes or devices differ, there is no token, or a parameter is out of its range.
    NotImplementedError
        Under forward-mode differentiation, such as ``torch.func.jvp``.

    See Also
    --------
    sampler.temperature.distillation_loss : for arrays, without gradients.
    cross_entropy : against hard labels.

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
    check_input(student, "student")
    check_input(teacher, "teacher")
    text = "a float in (0, inf)"
    refuse_tensor(temperature, text, "divide both by it, and multiply the loss by its square")
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
    return reduce(losses, reduction, losses.numel()).to(student.dtype)


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
        softmax_through_core(x, temperature, x.ndim - 1, True)
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
