"""The Hugging Face layer: our draw inside ``model.generate()``.

The one line::

    model.generate(**inputs, **generate_kwargs(s, attention_mask=inputs["attention_mask"]))

`generate` runs under ``do_sample=False``. `SamplingLogitsProcessor` is terminal: it draws each
row's token and returns scores whose one finite entry is that token, so the argmax that follows
picks it, whatever else runs behind. Hugging Face's own filters, softmax and multinomial never run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from sampler import _inputs
from sampler.api import Sampler, check_batch, check_numbers


class SamplingLogitsProcessor(LogitsProcessor):
    """Draw each row's token with a `Sampler`; leave only that token finite.

    Parameters
    ----------
    sampler : Sampler
        Its settings and seed. A sampler made without a seed gives each processor a fresh one. Its
        own step counter does not move.
    streams : sequence of int of shape (batch,), in [0, 2**64), optional
        The random stream of each row; 0 ... batch - 1 by default.
    attention_mask : tensor or array of shape (batch, length), optional
        The prompt's mask, from which each row's left padding is learnt. Without it, padding counts
        as part of the row.

    Attributes
    ----------
    sampler : Sampler
        The sampler that draws: a copy of the one given.
    seed : int
        Its seed.

    Raises
    ------
    TypeError
        If `sampler` is not a Sampler, or streams are not integers.
    ValueError
        If streams are out of range, or the mask is not 2-D.

    Notes
    -----
    The step of a draw is the row's true length, its tokens without left padding; the stream is the
    row's place in the batch, or the one given. So the same seed, stream and prompt draw alike,
    whatever the rest of the batch and the padding. Two rows of one prompt differ by their stream.

    It has to be the last processor, and belongs under ``do_sample=False``: `generate_kwargs` sees
    to both. What the model's own configuration or the caller asks of Hugging Face beside sampling
    (penalties, forced or suppressed tokens, minimum lengths) runs before it, on the logits it then
    draws from. Beam search has no use for it. A row with NaN, +inf or no finite score always
    raises.
    """

    # Continuous batching reorders rows between steps, which streams could not follow.
    supports_continuous_batching = False

    def __init__(
        self, sampler: Sampler, *, streams: Any = None, attention_mask: Any = None
    ) -> None:
        if not isinstance(sampler, Sampler):
            raise TypeError(f"`sampler` has to be a Sampler, but is {sampler!r}")
        # A copy of its own: the caller's step counter is the caller's.
        self.sampler = sampler.replace(seed=None) if sampler._seed_is_fresh else sampler.replace()
        self._streams = check_numbers("streams", streams, None)
        self._padding = None if attention_mask is None else _left_padding(attention_mask)
        self._prompt_length = 0 if attention_mask is None else np.shape(attention_mask)[1]

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self.sampler.seed

    def __call__(self, input_ids: torch.LongTensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return scores of -inf, save 0 at each row's drawn token.

        Parameters
        ----------
        input_ids : tensor of shape (batch, length), int64, or None
            The rows so far. None draws without them, at the next step of its own sampler.
        scores : tensor of shape (batch, vocab), float32, on the CPU
            Never written to.

        Returns
        -------
        tensor of shape (batch, vocab)

        Raises
        ------
        TypeError
            If the scores are not on the CPU.
        ValueError
            If a row is invalid, or the batch is not that of the streams or the mask.
        """
        source = _inputs.read(scores, name="scores")
        _inputs.check_rows(source, "scores", (2,))
        batch = scores.shape[0]
        steps = None
        if input_ids is not None:
            check_batch("input_ids", len(input_ids), batch)
            length = input_ids.shape[-1]
            if self._padding is None:
                steps = np.full(batch, length, np.uint64)
            else:
                check_batch("attention_mask", len(self._padding), batch)
                if length < self._prompt_length:
                    raise ValueError(
                        f"`attention_mask` has to be that of the prompt, but has "
                        f"{self._prompt_length} tokens where the rows have {length}"
                    )
                steps = (length - self._padding).astype(np.uint64)
        if self._streams is not None:
            check_batch("streams", len(self._streams), batch)
        tokens = self.sampler._draw(source, self._streams, steps, flag_invalid=False, name="scores")
        only = torch.full_like(scores, -torch.inf)
        only[torch.arange(batch), torch.from_numpy(tokens)] = 0.0
        return only


def generate_kwargs(
    sampler: Sampler, *, attention_mask: Any = None, streams: Any = None
) -> dict[str, Any]:
    """Return the keyword arguments that make ``model.generate()`` draw with `sampler`.

    Every setting of Hugging Face's own sampling is among them at a value that does nothing, so
    that giving one of them twice is a TypeError ("multiple values") and not a second filter.

    Parameters
    ----------
    sampler : Sampler
        A sampler made without a seed takes a fresh one at each call of this function; read it from
        ``kwargs["logits_processor"][-1].seed``.
    attention_mask : tensor of shape (batch, length), optional
        The prompt's mask. Give it whenever prompts are padded. It still has to reach the model
        through its inputs.
    streams : sequence of int of shape (batch,), optional
        The random stream of each row.

    Returns
    -------
    dict

    Raises
    ------
    TypeError, ValueError
        As `SamplingLogitsProcessor`.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.hf import generate_kwargs
    >>> kwargs = generate_kwargs(Sampler(temperature=0.8, top_p=0.9, seed=7))
    >>> kwargs["do_sample"], kwargs["logits_processor"][-1].seed
    (False, 7)
    """
    processor = SamplingLogitsProcessor(sampler, streams=streams, attention_mask=attention_mask)
    return {
        "logits_processor": LogitsProcessorList([processor]),
        "do_sample": False,
        "num_beams": 1,
        "temperature": 1.0,
        "top_k": None,  # 0 would be taken for a setting that do_sample=False ignores, and warned of
        "top_p": 1.0,
        "min_p": None,
        "top_h": None,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "renormalize_logits": False,
    }


def _left_padding(attention_mask: Any) -> npt.NDArray[np.int64]:
    """Count each row's padding."""
    try:
        mask = np.asarray(attention_mask)
    except ValueError:  # ragged
        mask = np.empty(0, object)
    if mask.dtype.kind not in "biuf":
        raise TypeError(
            f"`attention_mask` has to be an array of 0 and 1, but is {attention_mask!r}"
        )
    if mask.ndim != 2:
        raise ValueError(f"`attention_mask` has to be 2-D, but has shape {mask.shape}")
    padding: npt.NDArray[np.int64] = np.sum(np.cumsum(mask != 0, axis=1) == 0, axis=1)
    return padding
