"""A loop of our own that writes text."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from sampler import _inputs
from sampler._checks import check_flag, check_integer
from sampler._engine import NoTokenLeftError
from sampler._keywords import helps, hint_for, unknown_keyword
from sampler._names import SAME_IN_GENERATE, SAMPLER_ONLY
from sampler._tensors import container_of
from sampler.api import Sampler
from sampler.hf._arguments import check_model, check_sampler
from sampler.hf._expansion import check_rows_are_prompts
from sampler.hf._phrases import Guard
from sampler.hf._record import TensorSamples, aligned
from sampler.hf._sampling import SamplingLogitsProcessor
from sampler.hf._transformers import (
    CACHE_FIELD,
    EXPANDS_MEDIA,
    NOT_TWICE,
    OUR_DRAW,
    OUR_LOOPS,
    TAKES_LENGTH,
    UNSUPPORTED,
    cache_of,
    is_prepared,
    ours,
    overrides,
    pads,
)
from sampler.phrases import Phrases


@dataclass
class GenerateOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns under ``return_dict_in_generate=True``.

    Attributes
    ----------
    sequences : tensor of shape (batch, length), int64
        Prompts and new tokens.
    scores : tuple of tensor of shape (batch, vocab), float32
        Under ``output_scores=True``: what each token was drawn from, penalties and the like
        applied, the sampler's own stages not.
    logits : tuple of tensor of shape (batch, vocab), float32
        Under ``output_logits=True``: as the model gave them.
    cache : Cache
        To continue from; also as `past_key_values`, its name before transformers 5.24.
    samples : Samples
        What was drawn, tensors of shape (batch, new).
    seed : int
        That of the draws.
    texts : list of str
        With ``tokenizer=`` or `banned_phrases`: the new text of each row, up to its stop string
        or its end token.

    See Also
    --------
    generate : returns one.
    """

    # Not fields: models that put several generations together split every field by row.
    samples: ClassVar[TensorSamples | None] = None
    seed: ClassVar[int | None] = None
    texts: ClassVar[list[str] | None] = None


if CACHE_FIELD != "cache":
    GenerateOutput.cache = property(lambda self: self.past_key_values)  # type: ignore[assignment]


@helps
def generate(
    model: Any,
    inputs: torch.Tensor | None = None,
    *,
    sampler: Sampler,
    streams: Any = None,
    logprobs: int = 0,
    raw: bool = False,
    grammar: Any = None,
    banned_phrases: Any = None,
    num_return_sequences: int = 1,
    streamer: Any = None,
    **kwargs: Any,
) -> Any:
    """Write text in a plain loop: one forward pass, one draw per token.

    The same texts as ``model.generate(**inputs, **generate_kwargs(sampler, ...))``, which also
    knows assisted decoding and whatever else Hugging Face adds; this one can be read, or copied
    and changed. Hugging Face still prepares the inputs, the cache, the processors that run before
    the draw and the stopping criteria, so padding, encoder-decoder models and every length or stop
    setting are as there.

    Parameters
    ----------
    model : PreTrainedModel
        On the CPU.
    inputs : tensor, optional
        As ``model.generate`` takes them; or by keyword, such as ``input_ids=``.
    sampler : Sampler
        As for `generate_kwargs`.
    streams : sequence of int of shape (batch * num_return_sequences,), optional
        The random stream of each text.
    logprobs : int, >= 0
        How many top tokens the `samples` of a `GenerateOutput` list.
    raw : bool
        Whether they have the figures under the model's own softmax and the kept mass as well.
    grammar : llguidance.LLMatcher, xgrammar.CompiledGrammar or any other, optional
        What the outputs may be, such as JSON: `json_grammar`. A list has one per text, or None.
    banned_phrases : iterable of str or re.Pattern, or Phrases, optional
        What must not appear in the output, for one text at a time. Strings and patterns need
        ``tokenizer=``; a `sampler.phrases.Phrases` has its own, and says how often to try. Where a
        phrase has appeared, the text goes back to where it began, and draws another token.
    num_return_sequences : int, >= 1
        How many texts of each prompt, in neighbouring rows.
    streamer : BaseStreamer, optional
        Given the prompt and each token, as ``model.generate`` does, and ended once, after an error
        too.
    **kwargs
        Everything else that ``model.generate`` takes, except its settings of sampling.

    Returns
    -------
    tensor of shape (batch * num_return_sequences, length), int64, or GenerateOutput
        The latter under ``return_dict_in_generate=True``.

    Raises
    ------
    TypeError, ValueError
        As `SamplingLogitsProcessor`; for a model that cannot generate, a setting of Hugging Face's
        own sampling, an argument that ``model.generate`` refuses, and what this loop does not
        support: assisted decoding, token healing, paged caches, `output_attentions`,
        `output_hidden_states`, `penalty_alpha`, `dola_layers`, `force_words_ids`, `constraints`.
    RuntimeError
        If the model's own ``generate`` does not run this loop, as that of models whose tokens are
        not drawn one after another.

    Warns
    -----
    UserWarning
        If a text ends where every token that was tried began a banned phrase.

    See Also
    --------
    generate_kwargs : for the model's own ``generate()``.
    score : the same figures for a text that exists.

    Notes
    -----
    A token that was drawn again has the `samples` of a row without those that were forbidden there.

    Also a callable for ``model.generate(..., custom_generate=sampler.hf.generate, sampler=s)``.
    Hugging Face does not hand a streamer or tokenizer to such a callable, and filters before it
    under ``do_sample=True``, which is therefore refused.

    A model whose ``generate`` runs the loop several times, as Whisper's does for long audio, draws
    the k-th text with draw index k - 1, and returns its own output, without `samples`: those are in
    `SamplingLogitsProcessor.generations`, under `generate_kwargs`.

    Examples
    --------
    ::

        output = sampler.hf.generate(model, **inputs, sampler=s, max_new_tokens=50)
    """
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise TypeError(f"`streamer` has to be a streamer, but is {_inputs.kind_of(streamer)}")
    try:
        check_sampler(sampler)
        check_model(model, "config", "generate")
        check_integer("logprobs", logprobs, 0, 2**40, "an integer >= 0")
        check_flag("raw", raw)
        copies = check_integer(
            "num_return_sequences", num_return_sequences, 1, None, "an integer >= 1"
        )
        _check_loop(sampler, kwargs)
        phrases = _phrases(banned_phrases, kwargs)
        loop = partial(
            _loop, sampler=sampler, streams=streams, logprobs=logprobs, raw=raw, grammar=grammar,
            phrases=phrases, stops=_stops(phrases, kwargs), copies=copies, streamer=streamer,
            draw_indices=itertools.count(),
        )  # fmt: skip
        return _run(model, inputs, loop, kwargs)
    finally:
        if streamer is not None:
            streamer.end()  # or its reader would wait for ever


def _run(model: Any, inputs: Any, loop: partial[Any], kwargs: dict[str, Any]) -> Any:
    """Let the model's generate prepare everything and call the loop."""
    if inputs is not None and not (isinstance(inputs, torch.Tensor) and inputs.ndim > 1):
        found = f"has shape {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else (
            f"is {_inputs.kind_of(inputs)}"
        )  # fmt: skip
        raise TypeError(
            f"`inputs` has to be a tensor with a row for each text, but {found}: what a tokenizer "
            "returns goes in as generate(model, **inputs, sampler=s)"
        )
    given = () if inputs is None else (inputs,)  # the first parameter has different names
    if is_prepared(kwargs.get("generation_config")):
        # Prepared: model.generate() is calling, perhaps once for each of several texts.
        if overrides(model, "generate"):
            raise ValueError(
                f"{type(model).__name__}.generate() cannot use this loop as `custom_generate`: "
                "call sampler.hf.generate(model, ...) instead"
            )
        return loop(model, *given, **kwargs)
    tokenizer, strings = kwargs.pop("tokenizer", None), kwargs.pop("stop_strings", None)
    if strings is not None:
        # Hugging Face makes this criterion itself, but finds no tokenizer when the loop is ours.
        if tokenizer is None:
            raise ValueError("`stop_strings` needs the tokenizer: pass tokenizer=... as well")
        stop = StopStringCriteria(tokenizer, strings)
        kwargs["stopping_criteria"] = StoppingCriteriaList(
            [*(kwargs.get("stopping_criteria") or ()), stop]
        )
    # Whisper has its own temperature, and samples if it is given one.
    named = signature(model.generate).parameters
    if loop.keywords["copies"] > 1 and "return_timestamps" in named:
        raise ValueError(
            f"`num_return_sequences` has to be 1 for {type(model).__name__}, which puts its texts "
            "together by row: repeat its inputs with expand_inputs"
        )
    draw = OUR_DRAW | ours(loop.keywords["sampler"])
    draw = {name: value for name, value in draw.items() if name not in named}
    not_run = RuntimeError(
        f"{type(model).__name__}.generate() does not run this loop, so the sampler cannot draw in "
        "it: use model.generate(**inputs, **generate_kwargs(sampler)), or pass the part of the "
        "model that writes text, such as model.language_model"
    )
    try:
        result = model.generate(*given, custom_generate=loop, **draw, **kwargs)
    except (TypeError, ValueError) as error:
        if "custom_generate" in str(error):
            raise not_run from error
        raise
    if next(loop.keywords["draw_indices"]) == 0:
        raise not_run
    return result


def _loop(
    model: Any,
    input_ids: Any,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    sampler: Sampler,
    streams: Any,
    logprobs: int,
    raw: bool,
    grammar: Any,
    phrases: Phrases | None,
    stops: Phrases | None,
    copies: int,
    streamer: Any,
    draw_indices: Iterator[int],
    **model_kwargs: Any,
) -> Any:
    config = generation_config
    if input_ids.ndim != 2:
        raise ValueError(
            f"this loop draws one token per row, but the rows have shape {tuple(input_ids.shape)}"
        )
    if config.do_sample or config.num_beams != 1:
        raise ValueError(
            "`do_sample` has to be False and `num_beams` 1, since the sampler draws, but they are "
            f"{config.do_sample} and {config.num_beams}"
        )
    for name in (
        *("prompt_lookup_num_tokens", "assistant_early_exit"),
        *("output_attentions", "output_hidden_states"),
    ):
        if getattr(config, name, None):
            raise _not_in_this_loop(name)
    for name in UNSUPPORTED:
        if getattr(config, name, None):
            raise _not_with_a_sampler(name)
    for name, off in ours(sampler).items():  # on where model.generate() is calling
        if name in NOT_TWICE and getattr(config, name, None) not in (None, off):
            raise ValueError(
                f"`{name}` would be applied twice, by the sampler and by model.generate(): give "
                f"that {name}={off!r}"
            )
    encoder_decoder = model.config.is_encoder_decoder
    if copies > 1 and not EXPANDS_MEDIA and not overrides(model, "_expand_inputs_for_generation"):
        check_rows_are_prompts(
            {"input_ids": input_ids, **model_kwargs},
            "this transformers would mix them up, and 5.18 does not",
        )
    input_ids, model_kwargs = model._expand_inputs_for_generation(
        input_ids=input_ids,
        expand_size=copies,
        is_encoder_decoder=encoder_decoder,
        **model_kwargs,
    )
    mask = None if encoder_decoder else model_kwargs.get("attention_mask")
    if mask is not None and mask.shape != input_ids.shape:
        mask = None  # that of inputs_embeds; the rows are then the new tokens alone
    returns_dict = config.return_dict_in_generate
    processor = SamplingLogitsProcessor(
        sampler,
        streams=streams,
        attention_mask=mask,
        logprobs=logprobs if returns_dict else None,
        raw=raw,
        grammar=grammar,
    )
    processor._draw_index += next(draw_indices)
    if streamer is not None:
        streamer.put(input_ids.cpu())

    guard = None
    if phrases is not None:
        if len(input_ids) > 1:
            raise ValueError(
                f"`banned_phrases` are for one text at a time, but there are {len(input_ids)}: a "
                "row that goes back would take the others along"
            )
        guard = Guard(phrases, input_ids)
    unfinished = input_ids.new_ones(len(input_ids), dtype=torch.bool)
    to_tensor: Any = container_of(input_ids)
    # Rows that stop for another reason than an end token go on with the others, as there.
    padded = pads(stopping_criteria)
    drawn, real = [], []
    scores: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    last_only = {"next_sequence_length": 1} if model_kwargs["use_cache"] and TAKES_LENGTH else {}
    outputs = model._prefill(input_ids, config, model_kwargs)
    while True:
        model_kwargs = model._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=encoder_decoder
        )
        # A copy, or the view would keep the logits of the whole prompt alive. A model that is
        # spread over devices gives them on its last one.
        next_logits = outputs.logits[:, -1].to(input_ids.device, torch.float32, copy=True)
        next_scores = logits_processor(input_ids, next_logits)
        if guard is not None:
            guard.keep(next_scores, model_kwargs)
        if config.output_scores:
            scores.append(next_scores)
        if config.output_logits:
            logits.append(next_logits)
        while True:
            try:
                r = processor._draw(
                    input_ids, next_scores, unfinished.cpu().numpy() if padded else None,
                    None if guard is None else guard.text,
                )  # fmt: skip
            except NoTokenLeftError:
                if guard is None or not guard.text.draw:
                    raise
                back = guard.text.give_up()
                guard.go_back(back + 1)  # all tokens are in the cache
                input_ids = input_ids[:, : input_ids.shape[1] - back]
                break
            if returns_dict:
                drawn.append(r)
                real.append(unfinished.cpu().numpy() if padded else np.ones(len(unfinished), bool))
            tokens = to_tensor(r.tokens)[:, 0]
            if padded and not unfinished.all():
                tokens = torch.where(unfinished, tokens, config._pad_token_tensor)
            input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
            going_on = unfinished & ~stopping_criteria(input_ids, tuple(scores))
            back = 0 if guard is None else guard.take(tokens, is_last=not going_on.any())
            if not back:
                unfinished = going_on
                break
            assert guard is not None
            input_ids = input_ids[:, :-back]
            next_scores, model_kwargs = guard.go_back(back)
            processor._roll_back(input_ids.shape[1])
            place = len(guard.text)
            del drawn[place:], real[place:], scores[place + 1 :], logits[place + 1 :]
            if guard.text.is_over:
                break
        if streamer is not None:
            for token in [tokens] if guard is None else guard.to_show():
                streamer.put(token.cpu())
        if not unfinished.any() or (guard is not None and guard.text.is_over):
            break
        model_inputs = model.prepare_inputs_for_generation(input_ids, **last_only, **model_kwargs)
        outputs = model(**model_inputs, return_dict=True)
    if guard is not None:
        guard.warn_if_given_up()
    if not returns_dict:
        return input_ids
    new = len(drawn) if guard is None else len(guard.text)
    fields: dict[str, Any] = {
        "scores": tuple(scores[:new]) if config.output_scores else None,
        "logits": tuple(logits[:new]) if config.output_logits else None,
        CACHE_FIELD: cache_of(model_kwargs),
    }
    output = GenerateOutput(sequences=input_ids, **fields)
    # Of this instance, not of the class.
    samples = aligned(drawn[:new], np.stack(real[:new], axis=1), input_ids) if new else None
    vars(output).update(samples=samples, seed=processor.seed)
    if stops is not None:
        ends = getattr(config, "_eos_token_tensor", None)
        ends = [] if ends is None else ends.tolist()
        prompt = input_ids.shape[1] - new
        texts = (
            [
                _text(stops, row[:prompt], itertools.compress(row[prompt:], going), ends)
                for row, going in zip(
                    input_ids.tolist(), zip(*real[:new], strict=True), strict=True
                )
            ]
            if new
            else [""]
        )
        vars(output).update(texts=texts)
    return output


OUR_LOOPS.add(_loop.__code__)


def _phrases(banned: Any, kwargs: Mapping[str, Any]) -> Phrases | None:
    """Return the phrases that the argument stands for."""
    if banned is None or isinstance(banned, Phrases):
        return banned
    if kwargs.get("tokenizer") is None:
        raise ValueError("`banned_phrases` needs the tokenizer: pass tokenizer=... as well")
    return Phrases(banned, tokenizer=kwargs["tokenizer"])


def _stops(phrases: Phrases | None, kwargs: Mapping[str, Any]) -> Phrases | None:
    """Return what ends a text, to cut texts there; None without a tokenizer."""
    tokenizer, strings = kwargs.get("tokenizer"), kwargs.get("stop_strings") or []
    strings = [strings] if isinstance(strings, str) else list(strings)
    if phrases is not None:
        return Phrases(stop=[*phrases.stop, *strings], tokenizer=phrases.tokenizer)
    return None if tokenizer is None else Phrases(stop=strings, tokenizer=tokenizer)


def _text(stops: Phrases, prompt: list[int], tokens: Iterable[int], ends: list[int]) -> str:
    """Return the text of some tokens, up to its stop string or its end token."""
    text = stops.start(prompt)
    for token in tokens:
        if token in ends or text.is_over:
            break
        text.accept(token)
    text.end()
    return text.shown


def _check_loop(sampler: Sampler, kwargs: Mapping[str, Any]) -> None:
    for name in ("assistant_model", "assistant_tokenizer", "token_healing"):
        if kwargs.get(name):
            raise _not_in_this_loop(name)
    for name in UNSUPPORTED:
        if kwargs.get(name):
            raise _not_with_a_sampler(name)
    if kwargs.get("cache_implementation") == "paged":
        raise ValueError(
            "`cache_implementation='paged'` is not supported: transformers' continuous batching "
            "ignores the caller's processors, so no sampler can draw in it"
        )
    if "generation_config" in kwargs:  # perhaps that of a model.generate() that is calling
        return
    for name, value in kwargs.items():
        if name in ours(sampler):
            raise TypeError(f"`{name}` has to be left out, because the sampler has such a setting")
        if name in SAMPLER_ONLY or name in SAME_IN_GENERATE:
            raise unknown_keyword("generate", {name: value}, ())
        if name in OUR_DRAW:
            instead = {
                "do_sample": "greedy is Sampler(temperature=0)",
                "num_beams": "for beams, see filter_kwargs",
                "renormalize_logits": "log-probabilities are always normalised",
            }.get(name) or hint_for(name, value, ())
            raise TypeError(f"`{name}` has to be left out, because the sampler draws: {instead}")


def _not_in_this_loop(name: str) -> ValueError:
    return ValueError(
        f"`{name}` is not supported by sampler.hf.generate: use "
        f"model.generate(**inputs, **generate_kwargs(s), {name}=...)"
    )


def _not_with_a_sampler(name: str) -> ValueError:
    return ValueError(
        f"`{name}` is not supported: it chooses tokens in another way than by a draw from logits, "
        "and would have no effect"
    )
