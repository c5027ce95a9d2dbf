"""The log-probabilities and ranks of a text that exists."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessorList

from sampler import _inputs
from sampler._checks import (
    check_batch,
    check_flag,
    check_integer,
    check_logprobs,
    check_mask,
    check_numbers,
)
from sampler._engine import Given
from sampler._keywords import helps
from sampler._tensors import container_of
from sampler.api import Sampler, engine_of
from sampler.hf._arguments import (
    check_eos_ids,
    check_model,
    check_sampler,
)
from sampler.hf._masks import left_padding
from sampler.hf._record import TensorSamples, aligned
from sampler.hf._sampling import check_processors
from sampler.hf._texts import texts_of
from sampler.hf._transformers import has_own_positions
from sampler.memory import initial_states


@torch.no_grad()
@helps
def score(
    model: Any,
    sequences: torch.Tensor,
    sampler: Sampler,
    *,
    streams: Any = None,
    draws: Any = None,
    prompt_length: int = 1,
    attention_mask: Any = None,
    logprobs: int = 0,
    raw: bool = False,
    eos_token_id: Any = None,
    logits_processor: Iterable[Any] | None = None,
    **model_kwargs: Any,
) -> TensorSamples:
    """Return for an existing text what `SamplingLogitsProcessor.samples` has for a drawn one.

    One forward pass over the whole text. Log-probabilities agree with those of the draws up to the
    model's own rounding, which in one pass differs from that of one token after another.

    Parameters
    ----------
    model : PreTrainedModel
        A causal or encoder-decoder language model.
    sequences : tensor of shape (batch, length), int64
        Prompts and their continuations, as ``generate()`` returns them.
    sampler : Sampler
        Its settings. Its seed decides only how the coins of stages such as `XTC` fall: give the
        `sampler` of the processor that drew.
    streams : sequence of int of shape (batch,), in [0, 2**64), optional
        The random stream of each row; 0 ... batch - 1 by default.
    draws : int or sequence of int of shape (batch,), in [0, 2**64), optional
        The draw index of each row: 0 for the first text of a processor, 1 for its second.
    prompt_length : int, in [1, length)
        How many tokens of each row, padding included, come before the first one that is scored.
    attention_mask : tensor of shape (batch, any length up to length), optional
        As ``generate()`` takes it, for the prompt or for the whole text. The tokens after its end
        are text; what it masks is padding. For an encoder-decoder model: that of the encoder.
    logprobs : int, >= 0
        How many of the first tokens in rank to list at each place.
    raw : bool
        Also give the figures under the model's own softmax and the kept mass.
    eos_token_id : int or sequence of int, optional
        The ids that end a row: what follows the first one in the part scored is padding.
    logits_processor : iterable of LogitsProcessor, optional
        What ran before the draw, such as a penalty.
    **model_kwargs
        Further arguments of the model's forward pass; for an encoder-decoder model, `input_ids`
        of the encoder.

    Returns
    -------
    Samples
        Tensors of shape (batch, length - prompt_length). A token that the sampler would have
        removed has log-probability -inf; padding has what an invalid row has.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or the model gives NaN or +inf: row, step (the row's true
        length) and token are named.

    See Also
    --------
    generate_kwargs : records the figures while it draws.
    sampler.Sampler.score : for logits.

    Examples
    --------
    RIGHT, for what ``generate()`` has returned::

        score(
            model,
            output,
            s,
            prompt_length=inputs["input_ids"].shape[1],
            attention_mask=inputs["attention_mask"],
            eos_token_id=tokenizer.eos_token_id,
        )
    """
    check_sampler(sampler)
    check_model(model, "config", "forward")
    sampler = sampler.replace(on_invalid="raise")
    if getattr(sequences, "dtype", None) is not torch.int64:
        kind = getattr(sequences, "dtype", _inputs.kind_of(sequences))
        raise TypeError(f"`sequences` have to be a tensor of int64, but are {kind}")
    if sequences.ndim != 2:
        raise ValueError(f"`sequences` have to be 2-D, but have shape {tuple(sequences.shape)}")
    batch, length = sequences.shape
    if batch == 0:
        raise ValueError("`sequences` have to hold at least one row, but have none")
    streams, draws = check_numbers("streams", streams, batch), check_numbers("draws", draws, batch)
    tokens = sequences.cpu().numpy()
    _check_width(tokens, 0, model.config.get_text_config().vocab_size)
    first = check_integer("prompt_length", prompt_length, 1, length, f"an integer in [1, {length})")
    top = check_logprobs(logprobs)
    check_flag("raw", raw)
    eos_ids = check_eos_ids(eos_token_id)
    processors = LogitsProcessorList(check_processors(logits_processor or ()))
    accepts = signature(_unwrapped(model).forward).parameters
    for name in model_kwargs:
        if name not in accepts:
            raise TypeError(
                f"neither `score` nor the forward of the model takes `{name}`: leave it out"
            )
    mask = np.ones((batch, length), bool)
    if model.config.is_encoder_decoder:
        model_kwargs.update(decoder_input_ids=sequences)
        if attention_mask is not None:
            model_kwargs.update(attention_mask=attention_mask)
    else:
        model_kwargs.update(input_ids=sequences)
        if attention_mask is not None:
            mask = _whole_mask(attention_mask, batch, length)
            known = container_of(sequences)(mask).long()
            model_kwargs.update(attention_mask=known)
            if "position_ids" in accepts and not has_own_positions(model):
                model_kwargs.update(position_ids=(known.cumsum(-1) - 1).clamp(min=0))
        _extend_token_types(model_kwargs, length)
    if "logits_to_keep" in accepts:
        model_kwargs.update(logits_to_keep=length - first + 1)
    logits = model(**model_kwargs, use_cache=False, return_dict=True).logits
    logits = logits[:, -(length - first + 1) : -1]
    _check_width(tokens, first, logits.shape[-1])

    engine, scored, padding = engine_of(sampler), [], left_padding(mask)
    states = None if engine.memory is None else initial_states(engine.memory, batch)
    for place in range(first, length):
        rows: Any = sequences[:, :place]
        scores = processors(rows, logits[:, place - first].float())
        source = _inputs.read(scores, name="scores")
        given = tokens[:, place : place + 1]
        lengths = np.maximum(place - padding, 0).astype(np.uint64)
        texts = None
        if engine.needs_history is not None:
            texts = texts_of(tokens[:, :place], lengths, first, scores.shape[1])
        at = Given(streams, lengths, draws, None, texts, None if states is None else list(states))
        scored.append(engine.score(source, given, top, raw=raw, given=at, name="scores"))
        states = scored[-1].state
    real = mask[:, first:].copy()
    ended = np.logical_or.accumulate(np.isin(tokens[:, first:], eos_ids), axis=1)
    real[:, 1:] &= ~ended[:, :-1]
    return aligned(scored, real, sequences)


def _whole_mask(attention_mask: Any, batch: int, length: int) -> npt.NDArray[np.bool_]:
    """The mask of the whole text, of which `attention_mask` may be that of the prompt."""
    known = check_mask(attention_mask)
    check_batch("attention_mask", len(known), batch)
    if known.shape[1] > length:
        raise ValueError(
            f"`attention_mask` has to be for at most {length} tokens, but is for {known.shape[1]}"
        )
    return np.pad(known, ((0, 0), (0, length - known.shape[1])), constant_values=True)


def _extend_token_types(model_kwargs: dict[str, Any], length: int) -> None:
    """Extend the token types of a prompt to the text, as generate() does."""
    for name, value in model_kwargs.items():
        # A kind of text goes on, an image does not.
        if name.endswith("token_type_ids") and value is not None and value.shape[1] < length:
            text = value[:, -1:].expand(-1, length - value.shape[1])
            if name.endswith("mm_token_type_ids"):
                text = torch.zeros_like(text)
            model_kwargs[name] = torch.cat([value, text], dim=1)


def _check_width(tokens: npt.NDArray[np.int64], first: int, width: int) -> None:
    """Refuse ids from a place on for which the model has no logit."""
    outside = (tokens < 0) | (tokens >= width)
    outside[:, :first] = False
    if outside.any():
        row, place = np.argwhere(outside)[0].tolist()
        raise ValueError(
            f"`sequences` have to hold ids in [0, {width}), the width of the model's logits, but "
            f"row {row} has {tokens[row, place]} at place {place}"
        )


def _unwrapped(model: Any) -> Any:
    """The model whose forward names its arguments, which wrappers hide."""
    model = getattr(model, "_orig_mod", model)  # torch.compile
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT
    if "input_ids" not in signature(model.forward).parameters:
        raise TypeError(
            f"{_inputs.kind_of(model)} hides the arguments of its model's forward: pass the "
            "model inside it"
        )
    return model
