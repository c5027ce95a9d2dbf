"""The log-softmax over the tokens that a sampler kept."""

from __future__ import annotations

import math
from typing import Any

import torch

from sampler._arguments import check_kept
from sampler._checks import check_ids
from sampler.torch._checks import check_input, check_temperature


def kept_log_softmax(
    input: torch.Tensor,  # noqa: A002  (torch's name)
    kept: tuple[Any, Any],
    *,
    tokens: Any = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Return the log-probabilities of what was kept, under new logits, with gradients.

    For importance ratios: `sampler.Sampler.sample` with ``keep=True`` says which tokens each row
    kept, and what it drew; a trainer's logits then give the log-probabilities of the law that was
    sampled from, and not of a softmax over the whole vocabulary.

    Parameters
    ----------
    input : tensor of shape (batch, vocab)
        float16, bfloat16, float32 or float64, on any device: the trainer's logits.
    kept : (array_like of shape (batch + 1,), array_like of shape (nnz,)), integers
        ``(r.kept_indptr, r.kept_ids)``: the ids of row i are ``kept_ids[kept_indptr[i] :
        kept_indptr[i + 1]]``, ascending.
    tokens : array_like of int of shape (batch,), optional
        One token per row; without it, every kept one.
    temperature : float, in (0, inf), off at 1
        The sampler's. Its penalties and biases have to be in `input` already.

    Returns
    -------
    tensor of shape (nnz,), or (batch,) with `tokens`
        On the device of `input`: float64 for float64, else float32. Computed in float64. -inf for a
        token that was not kept, with gradient 0.

    Raises
    ------
    TypeError
        If `input` is not a dense tensor of floats, or `kept` or `tokens` are not integers.
    ValueError
        If `input` is not 2-D, or `kept` or `tokens` are not for its rows and its vocabulary.

    See Also
    --------
    sampler.Sampler.score : the same of any settings, bit for bit, without gradients.

    Examples
    --------
    >>> import torch
    >>> from sampler import Sampler
    >>> from sampler.torch import kept_log_softmax
    >>> logits = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.0, 1.0, 1.0, 4.0]], requires_grad=True)
    >>> r = Sampler(top_k=2, seed=7).sample(logits, keep=True)
    >>> kept = r.kept_indptr, r.kept_ids
    >>> new = kept_log_softmax(logits, kept, tokens=r.tokens)
    >>> ratio = torch.exp(new - r.logprobs)  # 1: nothing has been learned yet
    >>> ratio.sum().backward()
    >>> logits.grad.numpy().round(3)
    array([[ 0.   , -0.731,  0.731,  0.   ],
           [ 0.   , -0.047,  0.   ,  0.047]], dtype=float32)
    """
    check_input(input)
    if input.ndim != 2:
        raise ValueError(f"`input` has to be of shape (batch, vocab), but has {tuple(input.shape)}")
    temperature = check_temperature(input, temperature)
    if not 0.0 < temperature < math.inf:
        raise ValueError(f"`temperature` has to be in (0, inf), but is {temperature}")
    batch, vocab = input.shape
    bounds, ids = (torch.from_numpy(one).to(input.device) for one in check_kept(kept, batch, vocab))
    counts = bounds.diff()
    rows = torch.repeat_interleave(torch.arange(batch, device=input.device), counts)
    z = input[rows, ids].double() / temperature
    top = torch.full((batch,), -math.inf, dtype=z.dtype, device=z.device)
    top = top.scatter_reduce(0, rows, z.detach(), "amax")
    gaps = z - top[rows]
    total = torch.zeros_like(top).index_add(0, rows, gaps.exp())
    logs = (gaps - total.log()[rows]).to(torch.promote_types(input.dtype, torch.float32))
    if tokens is None:
        return logs
    named = check_ids("tokens", tokens, vocab, f"integers in [0, {vocab}), one per row")
    if named.shape != (batch,):
        raise ValueError(f"`tokens` have to be {batch}, one per row, but have shape {named.shape}")
    wanted = torch.from_numpy(named).to(input.device)
    found = (ids == wanted[rows]).nonzero()[:, 0]
    result = torch.full((batch,), -math.inf, dtype=logs.dtype, device=logs.device)
    return result.index_copy(0, rows[found], logs[found])
