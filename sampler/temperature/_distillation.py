"""Distillation: the loss of a small model against a large one, and its gradient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sampler import _inputs
from sampler._checks import Reduction, check_choice, check_real
from sampler._cross_entropy import reduced
from sampler.softmax import log_softmax
from sampler.temperature._limits import CLOSE, LARGEST, SMALLEST
from sampler.temperature._rows import Floats, chunks, to_float64


def distillation_loss(
    student: Any, teacher: Any, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> Any:
    """Return temperature**2 KL(softmax(teacher / temperature) || softmax(student / temperature)).

    Parameters
    ----------
    student, teacher : array_like of shape (..., vocab)
        Logits of the same shape; dtypes and containers are those of `entropy`. -inf has no mass.
    temperature : float, in (0, inf)
        The higher, the more the teacher's small probabilities count. 1 compares the
        distributions as they are.
    reduction : {"mean", "sum", "none"}
        Over rows: "mean" is what torch's ``kl_div`` calls "batchmean", "none" leaves one per row.

    Returns
    -------
    array, tensor or scalar
        float64, at least 0; a tensor where `student` is one. inf where the student has -inf and
        the teacher has not. NaN for a row in which either has NaN or +inf, or nothing above -inf.
        The mean of no rows is NaN, their sum 0.

    Raises
    ------
    TypeError
        If either is not an array of numbers, or a parameter has the wrong type; if a
        tensor requires grad, unless grad is disabled: use `sampler.torch.distillation_loss`.
    ValueError
        If the shapes differ or hold no token, or a parameter is out of its range.

    See Also
    --------
    sampler.torch.distillation_loss : with gradients.

    Notes
    -----
    Why temperature**2: the gradient of the divergence alone is (q - p) / temperature, and at high
    temperature q - p itself shrinks as 1 / temperature, so that next to a loss on hard labels it
    would fade as 1 / temperature**2. With the factor its size stays as it is when the temperature
    changes, and in the limit the loss is half the mean over tokens of (student - teacher)**2, of
    logits with their means taken off: it matches logits.

    Where the two are close the divergence is a sum of positive terms, not a difference of
    logarithms, so that it is accurate at high temperatures too.

    References
    ----------
    Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import distillation_loss
    >>> teacher, student = np.array([3.0, 1.0, 0.0, 2.0]), np.array([1.0, 0.0, 0.0, 2.0])
    >>> for temperature in (1.0, 2.0, 1000.0):
    ...     print(round(float(distillation_loss(student, teacher, temperature=temperature)), 3))
    0.429
    0.41
    0.344
    >>> difference = student - teacher
    >>> float(np.var(difference)) / 2
    0.34375
    """
    s, v, source, t = _check_pair(student, teacher, temperature, reduction)
    losses = np.empty(len(s))
    for chunk in chunks(*s.shape):
        losses[chunk] = _divergence(*_compare(s[chunk], v[chunk], t), t)
    each = losses.reshape(source.array.shape[:-1])
    return source.to_container(np.asarray(reduced(each, reduction, each.size)))


def distillation_loss_grad(
    student: Any, teacher: Any, *, temperature: float = 1.0, reduction: Reduction = "mean"
) -> Any:
    """Return the gradient of `distillation_loss` with respect to the student's logits.

    Parameters and errors are those of `distillation_loss`; under "none" it is that of "sum": of
    each row's loss with respect to the row.

    Returns
    -------
    array or tensor
        temperature (q - p), with q the student's and p the teacher's softmax at the temperature;
        over the number of rows under "mean". float64 where `student` is, else float32. A tensor
        where `student` is one. NaN in a row in which either is invalid.

    See Also
    --------
    distillation_loss : the loss.
    sampler.torch.distillation_loss : with gradients.

    References
    ----------
    Hinton, Vinyals & Dean, *Distilling the Knowledge in a Neural Network*, 2015, arXiv:1503.02531.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import distillation_loss_grad
    >>> teacher, student = np.array([3.0, 1.0, 0.0, 2.0]), np.array([1.0, 0.0, 0.0, 2.0])
    >>> distillation_loss_grad(student, teacher, temperature=2.0).round(3)
    array([-0.392, -0.021,  0.111,  0.302])
    """
    s, v, source, t = _check_pair(student, teacher, temperature, reduction)
    result = np.empty(s.shape, source.result_dtype)
    scale = t / max(len(s), 1) if reduction == "mean" else t
    for chunk in chunks(*s.shape):
        log_q, log_p, r = _compare(s[chunk], v[chunk], t)
        p = np.exp(log_p)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.where(np.abs(r) < CLOSE, p * np.expm1(r), np.exp(log_q) - p)
        result[chunk] = scale * difference
    return source.to_container(result.reshape(source.array.shape))


def _check_pair(
    student: Any, teacher: Any, temperature: Any, reduction: Any
) -> tuple[Floats, Floats, _inputs.Logits, float]:
    """Both as float64 rows, what the student's were, and the temperature."""
    t = check_real("temperature", temperature, SMALLEST, LARGEST, "a float in (0, inf)")
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    source = _inputs.read(student, name="student", numbers=True)
    other = _inputs.read(teacher, name="teacher", numbers=True)
    shape = source.array.shape
    if other.array.shape != shape:
        raise ValueError(
            f"`teacher` has to have the shape of `student`, {shape}, but has {other.array.shape}"
        )
    if not shape or not shape[-1]:
        raise ValueError(f"`student` has to hold at least one token per row, but has shape {shape}")
    rows, others = (
        to_float64(logits.array.reshape(-1, shape[-1]), logits.kind) for logits in (source, other)
    )
    return rows, others, source, t


def _compare(student: Floats, teacher: Floats, t: float) -> tuple[Floats, Floats, Floats]:
    """Return log(q), log(p) and log(q / p); that is NaN where neither has mass."""
    log_q, log_p = (log_softmax(x, temperature=t) for x in (student, teacher))
    neither = (student == -math.inf) & (teacher == -math.inf)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        r = log_q - log_p
        # At a high temperature both are about -log(vocab), and what tells them apart is rounded
        # away. Where all of a row's r are small, take the differences of the logits instead.
        change = np.where(neither, 0.0, student - teacher) / t
        p = np.exp(log_p)
        change -= np.sum(p * change, axis=1, keepdims=True)
        close = np.all(np.abs(change) < 1, axis=1, keepdims=True)
        # log(sum q / p): what shifts both sides alike has gone with the mean.
        change -= np.log1p(np.sum(p * np.expm1(np.minimum(change, 1.0)), axis=1, keepdims=True))
        r = np.where(close & ~neither, change, r)
    return log_q, log_p, r


def _divergence(log_q: Floats, log_p: Floats, r: Floats, t: float) -> Floats:
    """t**2 times the Kullback-Leibler divergence of q from p, a row each."""
    p, q = np.exp(log_p), np.exp(log_q)
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        # sum p (exp(r) - 1 - r) is sum p (-r), since p and q both sum to 1, in positive terms.
        series = np.ones_like(r)
        for k in range(14, 2, -1):
            series = 1 + np.clip(r, -CLOSE, CLOSE) / k * series
        apart = np.where(p == 0, q, q - p - p * r)
        # t r, whose square is a number also where that of r is not.
        close = (np.abs(r) < CLOSE) & (p > 0)
        terms = np.where(close, p * (0.5 * (t * r) ** 2 * series), t * (t * apart))
        # Also where the teacher's mass is too small for a float.
        terms[(log_q == -math.inf) & (r == -math.inf)] = math.inf
    divergence: Floats = terms.sum(axis=1)
    return divergence
