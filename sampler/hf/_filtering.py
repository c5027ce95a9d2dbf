"""Our temperature and filters before Hugging Face's own draw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Unpack

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
)

from sampler import _inputs
from sampler._checks import Integers, check_batch, check_real
from sampler._engine import Given
from sampler._keywords import check_known, helps, keywords_of
from sampler._tensors import container_of
from sampler.api import Sampler, engine_of
from sampler.hf._arguments import check_rows, check_sampler
from sampler.hf._masks import RowLengths
from sampler.hf._sampling import BEGINNING, check_processors, no_rows
from sampler.hf._texts import Generations, texts_of
from sampler.hf._transformers import NEUTRAL, Caller, ours
from sampler.hf._use import Use
from sampler.stages import Mirostat, Temperature
from sampler.stages.base import Edit
from sampler.stages.settings import Settings, lists_settings

_FILTER_TEXT = "a float, finite in float32, or -inf"
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@lists_settings
class FilterLogitsProcessor(LogitsProcessor):
    """Temper the scores and remove tokens, as Hugging Face's warpers do, for its own draw.

    In place of all its warpers, in its order (temperature, top-h, top-k, top-p, min-p, typical,
    epsilon, eta): the same kept tokens, without sorting the vocabulary.

    Parameters
    ----------
    sampler : Sampler, optional
        Its stages and their order; its seed is used by the coins of `XTC` alone. Not together with
        settings.
    {settings}
    filter_value : float, below inf
        The score of every token that the stages remove, including those that were -inf before.
    min_tokens_to_keep : int, >= 1, off at 1
    attention_mask : tensor or array of shape (batch, length), optional
        The prompts' mask, for settings that look at the text so far: left padding is no part of
        it. Without it padding counts. Not for encoder-decoder models.

    Raises
    ------
    TypeError
        If `sampler` is not a Sampler, settings are given as well, or one has the wrong type.
    ValueError
        If a setting is out of its range, or the mask is not 2-D, not of 0 and 1, or pads on the
        right.

    See Also
    --------
    filter_kwargs : makes one, with what ``generate()`` needs as well.
    SamplingLogitsProcessor : draws as well.

    Notes
    -----
    The setting `top_k` keeps everything equal to the k-th, as Hugging Face does.

    Kept sets are exact (docs/law.md) where Hugging Face's float32 sums are not, and among tokens
    tied at the edge of `top_p` the lower ids stay. Scores on another device are copied to the host
    and back.

    docs/huggingface.md lists the other differences. Under beam search Hugging Face raises its own
    floor to 1 + the number of end tokens; give it here. With an `XTC` each call takes a number from
    torch's random state for the coins, so Hugging Face's own draws take other numbers after it.
    """

    supports_continuous_batching = True

    def __init__(
        self,
        sampler: Sampler | None = None,
        *,
        filter_value: float = -math.inf,
        min_tokens_to_keep: Integers | None = 1,
        attention_mask: Any = None,
        **settings: Unpack[Settings],
    ) -> None:
        check_known("FilterLogitsProcessor", settings, keywords_of(FilterLogitsProcessor))
        made = Sampler(**settings, min_tokens_to_keep=min_tokens_to_keep, ties="all", seed=0)
        if sampler is not None:
            check_sampler(sampler)
            floors = np.atleast_1d(made.min_tokens_to_keep)
            if not all(stage.is_off for stage in made.stages) or (floors != 1).any():
                raise TypeError(
                    f"give either a sampler or settings, not both: {sampler!r} and {made!r}"
                )
            made = sampler
        # An invalid row cannot be flagged in the middle of a text.
        self.sampler = made.replace(on_invalid="raise")
        if filter_value != -math.inf:
            check_real("filter_value", filter_value, -_FLOAT32_MAX, _FLOAT32_MAX, _FILTER_TEXT)
        self.filter_value = float(filter_value)
        self._lengths, self._generations = RowLengths(attention_mask, repeats=True), Generations()
        self._use = Use()
        # Of each row, or of one that stands for all.
        removes = np.zeros((1, 1), bool)
        for stage in made.stages:
            if isinstance(stage, Edit):  # what the others forbid had a score
                removes = removes | (stage.bans and not stage.is_off)
                continue
            if isinstance(stage, Temperature):
                removes = removes | (np.atleast_1d(stage.value)[:, None] == 0.0)
            elif stage.kind == "cut" or isinstance(stage, Mirostat):
                removes = removes | ~np.atleast_1d(stage.off_rows)[:, None]
        self._removes = removes
        self._has_coins = any(stage.has_coin and not stage.is_off for stage in made.stages)

    def __call__(self, input_ids: torch.LongTensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return the tempered scores, `filter_value` where a token is not kept.

        Parameters
        ----------
        input_ids : tensor of shape (batch, length), int64, or None
            The rows so far, for settings that look at the text.
        scores : tensor of shape (batch, vocab), float32
            Never written to.

        Returns
        -------
        tensor of shape (batch, vocab)

        Raises
        ------
        ValueError
            If a row is invalid, the dtype cannot hold `filter_value`, a setting looks at the text
            and the rows are None, or the mask is not that of the prompt.
        """
        self._use.called = True
        if not (
            self.filter_value == -math.inf
            or abs(self.filter_value) <= torch.finfo(scores.dtype).max
        ):
            raise ValueError(
                f"`filter_value` has to be a finite {scores.dtype} or -inf, but is "
                f"{self.filter_value}"
            )
        source = _inputs.read(scores, name="scores")
        _inputs.check_rows(source, "scores", (2,))
        at = Given()
        if self._has_coins:  # Hugging Face draws from torch's random state: so do the coins
            step = int(torch.randint(2**63 - 1, ()))
            at = Given(steps=np.full(source.batch, step, np.uint64))
        engine = engine_of(self.sampler)
        generation = None
        needs_rows = engine.needs_history or (engine.memory and engine.memory.setting)
        if needs_rows:
            if input_ids is None:
                raise no_rows(needs_rows)
            check_rows(input_ids)
            check_batch("input_ids", len(input_ids), source.batch)
            caller = Caller()
            lengths = self._lengths.of(input_ids, proposed=caller.proposes)
            with BEGINNING:
                generation = self._generations.find(input_ids, caller)
            if engine.needs_history is not None:
                begun = generation.prompt_length
                texts = texts_of(input_ids.cpu().numpy(), lengths, begun, scores.shape[1])
                at = at._replace(texts=texts)
            if engine.memory is not None:
                begun = generation.prompt_length
                states = generation.memory.states(engine, input_ids, begun, caller)
                at = at._replace(states=states)
        filtered: torch.Tensor = source.to_original(engine.filter(source, given=at, name="scores"))
        if generation is not None and at.states is not None:
            generation.memory.add(input_ids, scores, at, caller)  # type: ignore[arg-type]
        if self.filter_value != -math.inf:
            gone = container_of(scores)(self._removes) | (scores > -math.inf)
            filtered.masked_fill_((filtered == -math.inf) & gone, self.filter_value)
        return filtered

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sampler!r}, filter_value={self.filter_value})"


@lists_settings
@helps
def filter_kwargs(
    sampler: Sampler | None = None,
    *,
    filter_value: float = -math.inf,
    min_tokens_to_keep: Integers | None = 1,
    attention_mask: Any = None,
    logits_processor: Iterable[Any] = (),
    **settings: Unpack[Settings],
) -> dict[str, Any]:
    """Return the keyword arguments that put our filters in place of Hugging Face's.

    Hugging Face draws, from its global random state: ``torch.manual_seed``. Its own filters are
    off, the hidden ``top_k=50`` included, so that giving one of them again is a TypeError
    ("multiple values"); and so are those of its penalties and bans for which a setting is on here.

    Parameters
    ----------
    sampler, filter_value, min_tokens_to_keep, attention_mask, **settings
        As for `FilterLogitsProcessor`.
    logits_processor : iterable of LogitsProcessor, optional
        Yours, to run before the filters.

    Returns
    -------
    dict

    Raises
    ------
    TypeError, ValueError
        As `FilterLogitsProcessor`; and if `logits_processor` is not an iterable of processors.

    Warns
    -----
    RuntimeWarning
        As `generate_kwargs`.

    See Also
    --------
    generate_kwargs : our draw as well.

    Examples
    --------
    >>> from sampler.hf import filter_kwargs
    >>> kwargs = filter_kwargs(temperature=0.8, top_p=0.9)
    >>> kwargs["do_sample"], kwargs["top_k"], kwargs["top_p"]
    (True, None, 1.0)
    """
    check_known("filter_kwargs", settings, keywords_of(filter_kwargs))
    processor = FilterLogitsProcessor(
        sampler,
        filter_value=filter_value,
        min_tokens_to_keep=min_tokens_to_keep,
        attention_mask=attention_mask,
        **settings,
    )
    before = check_processors(logits_processor)
    processor._use.warn_unless_called(processor, "so nothing was filtered")
    processors = LogitsProcessorList([*before, processor])
    off = NEUTRAL | ours(processor.sampler)
    return {"logits_processor": processors, "do_sample": True, **off}
