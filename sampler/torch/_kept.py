"""The log-softmax over the tokens that a sampler kept."""

from __future__ import annotations

import math
from typing import Any

import torch

from sampler import _inputs
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
        kept_indptr[i + 1]]``, each once.
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
    given: Any = kept
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(f"`kept` has to be (kept_indptr, kept_ids), but is {_inputs.kind_of(kept)}")
    bounds = _integers("kept[0]", kept[0], input.device)
    ids = _integers("kept[1]", kept[1], input.device)
    if len(bounds) != batch + 1 or bounds[0] != 0 or bounds[-1] != len(ids):
        raise ValueError(
            f"`kept[0]` has to be {batch + 1} numbers from 0 to {len(ids)}, the number of ids, but "
            f"is {bounds.tolist()!r:.60}"
        )
    counts = bounds.diff()
    if len(ids) and not (ids.min() >= 0 and ids.max() < vocab and counts.min() >= 0):
        raise ValueError(f"`kept` has to rise, and to hold ids in [0, {vocab})")
    rows = torch.repeat_interleave(torch.arange(batch, device=input.device), counts)
    z = input[rows, ids].double() / temperature
    top = torch.full((batch,), -math.inf, dtype=z.dtype, device=z.device)
    top = top.scatter_reduce(0, rows, z.detach(), "amax")
    gaps = z - top[rows]
    total = torch.zeros_like(top).index_add(0, rows, gaps.exp())
    logs = (gaps - total.log()[rows]).to(torch.promote_types(input.dtype, torch.float32))
    if tokens is None:
        return logs
    wanted = _integers("tokens", tokens, input.device)
    if wanted.shape != (batch,):
        raise ValueError(f"`tokens` have to be {batch}, one per row, but are {len(wanted)}")
    found = (ids == wanted[rows]).nonzero()[:, 0]
    result = torch.full((batch,), -math.inf, dtype=logs.dtype, device=logs.device)
    return result.index_copy(0, rows[found], logs[found])


def _integers(name: str, values: Any, device: torch.device) -> torch.Tensor:
    found = torch.as_tensor(values, device=device)
    if found.ndim != 1 or found.is_floating_point() or found.dtype == torch.bool:
        raise TypeError(
            f"`{name}` has to be 1-D integers, but is {found.dtype} of shape {tuple(found.shape)}"
        )
    return found.long()
