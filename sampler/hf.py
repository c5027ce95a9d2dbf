"""The Hugging Face layer: our draw inside ``model.generate()``, or our filters before theirs.

The one line::

    model.generate(**inputs, **generate_kwargs(s, attention_mask=inputs["attention_mask"]))

`generate` runs under ``do_sample=False``. `SamplingLogitsProcessor` is terminal: it draws each
row's token and returns scores that leave it no rival, so the argmax that follows picks it,
whatever of Hugging Face's sampling runs after it. Its filters, softmax and multinomial never run.

`FilterLogitsProcessor` and `filter_kwargs` are the other way round: our temperature and filters,
Hugging Face's draw. `generate` is a loop of our own; `score` tells of an existing text what a
sampler would have told while drawing it.
"""

from __future__ import annotations

import itertools
import math
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from types import FrameType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

try:
    import torch
    from transformers import (
        GenerationMixin,
        LogitsProcessor,
        LogitsProcessorList,
        MinPLogitsWarper,
        StoppingCriteriaList,
        StopStringCriteria,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )
    from transformers.generation import candidate_generator
    from transformers.generation.utils import GenerateDecoderOnlyOutput
    from transformers.utils.generic import ModelOutput
except ImportError as error:
    raise ImportError(
        f"sampler.hf needs torch, and transformers 5 or newer ({error}); they come with "
        'pip install "token-sampler[hf]"'
    ) from error

from sampler import _inputs
from sampler._checks import (
    array_of,
    check_batch,
    check_integer,
    check_logprobs,
    check_numbers,
    check_real,
)
from sampler.api import Sampler, Samples, engine_of
from sampler.stages import MinP, Temperature, TopK, TopP

# Every setting of Hugging Face's own sampling at a value that does nothing. None for top_k, min_p
# and top_h: under do_sample=False a number is taken for a setting that is ignored, and warned of.
_NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": None,
    "top_p": 1.0,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_OUR_DRAW: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "renormalize_logits": False,
    **_NEUTRAL,
}
# Other ways to choose a token. They would have no effect on a draw of our own, silently.
_NO_EFFECT: dict[str, Any] = {"dola_layers": None, "penalty_alpha": None}
_NOTHING_OF_OURS = (*_NO_EFFECT, "constraints", "force_words_ids")
# The names that a model's cache has had; "cache" is that of transformers 5.24.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params", "state", "mems", "past_buckets_states")
# In the first releases of transformers 5 the model finds out by itself what its cache lacks.
_TAKES_LENGTH = (
    "next_sequence_length" in signature(GenerationMixin.prepare_inputs_for_generation).parameters
)
# What is running while a processor is called: `_Caller` looks for these.
_RUNS_PROCESSORS = LogitsProcessorList.__call__.__code__
_SAMPLES = GenerationMixin._sample.__code__
_VERIFIES = GenerationMixin._assisted_decoding.__code__
_PROPOSES = {
    kind.get_candidates.__code__
    for kind in vars(candidate_generator).values()
    if isinstance(kind, type) and hasattr(kind, "get_candidates")
}
_NESTS = {_SAMPLES, _VERIFIES, _RUNS_PROCESSORS, StoppingCriteriaList.__call__.__code__}
# From transformers 5.24 on the cache in an output is `cache`, before that `past_key_values`.
_HAS_CACHE = hasattr(GenerateDecoderOnlyOutput, "cache")
# Whether transformers knows which image belongs to which prompt when it repeats inputs.
_EXPANDS_MEDIA = hasattr(GenerationMixin, "_expand_multimodal_outputs")
_FILTER_TEXT = "a float, finite in float32, or -inf"
_FLOAT32_MAX = float(np.finfo(np.float32).max)


# ------------------------------------------------------------------------------------- our draw


class SamplingLogitsProcessor(LogitsProcessor):
    """Draw each row's token with a `Sampler`; leave it a score far above all others.

    Parameters
    ----------
    sampler : Sampler
        Its settings and seed. A sampler made without a seed gives each processor a fresh one. Its
        own step counter does not move.
    streams : sequence of int of shape (batch,), in [0, 2**64), optional
        The random stream of each row; 0 ... batch - 1 by default.
    attention_mask : tensor or array of shape (batch, length), optional
        The prompt's mask, from which each row's left padding is learnt. Without it, padding counts
        as part of the row. Not for encoder-decoder models or ``inputs_embeds``, whose mask is not
        that of the rows.
    logprobs : int, >= 0, or None
        How many of the first tokens in rank `samples` lists at each place. None records nothing,
        which saves one exact pass over each row.
    eos_token_id : int or sequence of int, optional
        The ids that end a row, for `samples` to know padding by.

    Attributes
    ----------
    sampler : Sampler
        The sampler that draws: a copy of the one given.
    seed : int
        Its seed.
    samples : Samples
        What was drawn in its one generation.
    generations : tuple of Samples
        What was drawn in each generation, in order.

    Raises
    ------
    TypeError
        If `sampler` is not a Sampler, or streams, `logprobs` or `eos_token_id` are not integers.
    ValueError
        If one of these is out of range, or the mask is not 2-D, not of 0 and 1, or pads on the
        right.

    Notes
    -----
    The step of a draw is the row's true length, its tokens without left padding; the stream is the
    row's place in the batch, or the one given. So the same seed, stream and prompt draw alike,
    whatever the rest of the batch and the padding. Two rows of one prompt differ by their stream.

    A processor is made for one generation. In another one, such as each 30-second segment of
    Whisper's long form, it draws with the next draw index (docs/law.md). With `streams`, that one
    has to have as many rows; with an `attention_mask`, the same prompts.

    It has to be the last processor, and belongs under ``do_sample=False``: `generate_kwargs` sees
    to both. If a later processor replaces a drawn token, the next call raises RuntimeError; a
    replaced last token is not seen. What the model's own configuration or the caller asks of
    Hugging Face besides sampling (penalties, forced or suppressed tokens, minimum lengths) runs
    before it, on the logits it then draws from. A row with NaN, +inf or no finite score always
    raises.

    Beam search has no use for it: `generate_kwargs` refuses beams, and so does a processor made by
    hand that knows its batch, from a mask or streams. Without either it cannot tell a beam from a
    row, and row i of the prompts is drawn with stream i * num_beams.
    """

    # Continuous batching reorders rows between steps, which streams could not follow. Hugging Face
    # then drops the processor with a warning, or, under cache_implementation="paged", without one.
    supports_continuous_batching = False

    def __init__(
        self,
        sampler: Sampler,
        *,
        streams: Any = None,
        attention_mask: Any = None,
        logprobs: int | None = 0,
        eos_token_id: Any = None,
    ) -> None:
        _check_sampler(sampler)
        # A copy of its own: the caller's step counter is the caller's. An invalid row cannot be
        # flagged in the middle of a text.
        fresh = {"seed": None} if engine_of(sampler).seed_is_fresh else {}
        self.sampler = sampler.replace(on_invalid="raise", **fresh)
        self._streams = check_numbers("streams", streams, None)
        self._padding, self._prompt_length = None, 0
        if attention_mask is not None:
            mask = _mask_array(attention_mask)
            ends = np.flatnonzero(~mask[:, -1:].all(axis=1))
            if len(ends):
                raise ValueError(
                    f"`attention_mask` has to leave padding on the left, but row {ends[0]} ends "
                    "with padding: give the tokenizer padding_side='left', or leave the mask out "
                    "for an encoder-decoder model"
                )
            self._padding, self._prompt_length = _left_padding(mask), mask.shape[1]
        self._top = None if logprobs is None else check_logprobs(logprobs)
        self._ends = _check_ends(eos_token_id)
        self._prompt: torch.Tensor | None = None
        self._generation = -1  # the number of the last one
        self._texts: list[_Text] = []  # those recorded, in order
        self._live: dict[int, _Text] = {}  # by the list of processors that runs; 0 where none does
        self._use = _Use()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sampler!r})"

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self.sampler.seed

    @property
    def samples(self) -> Samples:
        """What was drawn, a column a new token: those that `generate` returns.

        Arrays have shape (batch, new), top lists (batch, new, logprobs). After the end of a row
        they hold what `Samples` has for an invalid row: token -1, log-probability NaN.

        Without `eos_token_id`, the draws of assisted decoding may go on after the end of the text.

        Raises
        ------
        RuntimeError
            If nothing was drawn, nothing recorded (``logprobs=None``), or there was more than one
            generation.
        """
        every = self.generations
        if len(every) > 1:
            raise RuntimeError(
                f"this processor has drawn {len(every)} generations: read `generations`, one "
                "Samples for each, or call generate_kwargs for every prompt"
            )
        return every[0]

    @property
    def generations(self) -> tuple[Samples, ...]:
        """What was drawn in each generation, in order: `samples` for each.

        Raises
        ------
        RuntimeError
            As `samples`, except for the number of generations.
        """
        if self._top is None:
            raise RuntimeError("nothing was recorded, because `logprobs` is None")
        if not self._texts:
            if self._use.handed_out and not self._use.called:
                raise RuntimeError(
                    "generate() never called this processor, so the sampler drew nothing: "
                    "generate_batch and cache_implementation='paged' ignore the caller's processors"
                )
            raise RuntimeError("nothing has been drawn yet")
        return tuple(text.samples(self._ends) for text in self._texts)

    def __call__(self, input_ids: torch.LongTensor | None, scores: Any) -> torch.Tensor:
        """Return scores that leave each row's drawn token, at 0, no rival.

        The others get half the lowest finite number of the dtype, or -inf where they had that.

        Parameters
        ----------
        input_ids : tensor of shape (batch, length), int64, or None
            The rows so far. None draws without them, at the next step of its own sampler, and
            records nothing.
        scores : tensor of shape (batch, vocab), float32, on the CPU
            Never written to. They may require grad: a token has no gradient.

        Returns
        -------
        tensor of shape (batch, vocab)

        Raises
        ------
        TypeError
            If the scores are no tensor on the CPU.
        ValueError
            If a row is invalid, the batch is not that of the streams or the mask, or the mask not
            that of the prompt.
        RuntimeError
            If a token of the rows is neither the one drawn nor padding after the end of its row.
        """
        self._use.called = True
        if not isinstance(scores, torch.Tensor):
            kind = _inputs.kind_of(scores)
            raise TypeError(f"`scores` have to be a torch tensor, but are a {kind}")
        tokens = self._draw(input_ids, scores).tokens
        # Not -inf for all others: prompt lookup asks the processors which tokens are forbidden, and
        # takes -inf, or the lowest finite score, for that. -inf stays -inf.
        drawn: torch.Tensor = scores.clamp(max=torch.finfo(scores.dtype).min / 2)
        drawn[torch.arange(len(scores)), torch.from_numpy(tokens[:, 0])] = 0.0
        return drawn

    def _draw(self, input_ids: Any, scores: torch.Tensor) -> Samples:
        """Draw one token per row and record it, if that is wanted: arrays of shape (batch, 1)."""
        source = _inputs.read(scores, name="scores", draws=True)
        _inputs.check_rows(source, "scores", (2,))
        batch = source.batch
        if input_ids is None:
            if self._streams is not None:
                check_batch("streams", len(self._streams), batch)
            tokens = engine_of(self.sampler).draw(source, streams=self._streams, name="scores")
            return Samples(tokens[:, None], None, None, None, None, None)
        if not isinstance(input_ids, torch.Tensor) or input_ids.ndim != 2:
            kind = _inputs.kind_of(input_ids)
            raise TypeError(f"`input_ids` have to be a 2-D tensor of ids, but are a {kind}")
        caller = _Caller()
        steps = self._steps(input_ids, batch, caller)
        if self._streams is not None:
            if len(self._streams) != batch and self._generation >= 0:
                raise ValueError(
                    f"`streams` are for {len(self._streams)} rows, but another generation of the "
                    f"same processor has {batch}: leave them out where generate() writes several "
                    "texts, one after another"
                )
            check_batch("streams", len(self._streams), batch)
        text = self._live.get(id(caller.processors) if caller.processors is not None else 0)
        # What is proposed is not of the text until it is verified.
        if text is not None and not text.goes_on(input_ids, caller):
            text = None
        engine = engine_of(self.sampler)
        draw = self._generation + 1 if text is None else text.number
        if self._top is None or caller.proposes:
            tokens = engine.draw(
                source, streams=self._streams, steps=steps, first_draw=draw, name="scores"
            )
            r = Samples(tokens[:, None], None, None, None, None, None)
        else:
            r = engine.sample(
                source, 1, self._top, streams=self._streams, steps=steps, first_draw=draw,
                name="scores",
            )  # fmt: skip
        if not caller.proposes:
            text = text or self._begin(input_ids, caller)
            text.add(input_ids, r, caller)
        return r

    def _begin(self, rows: torch.Tensor, caller: _Caller) -> _Text:
        """Count and keep another generation."""
        self._generation += 1
        text = _Text(rows, caller, self._generation)
        self._live = {key: other for key, other in self._live.items() if not other.is_over()}
        self._live[id(caller.processors) if caller.processors is not None else 0] = text
        if self._top is not None:
            self._texts.append(text)
        return text

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_live": {}}  # no generation goes on in another process

    def _steps(
        self, input_ids: torch.Tensor, batch: int, caller: _Caller
    ) -> npt.NDArray[np.uint64]:
        """The true length of each row."""
        if caller.processors is not None and batch == 2 * len(input_ids) > 0:
            raise ValueError(
                f"`scores` have {batch} rows for {batch // 2} texts, because classifier-free "
                "guidance runs after this processor: switch it off with guidance_scale=1, or draw "
                "from the guided scores in a loop of your own"
            )
        check_batch("input_ids", len(input_ids), batch)
        length = input_ids.shape[-1]
        if self._padding is None:
            return np.full(batch, length, np.uint64)
        check_batch("attention_mask", len(self._padding), batch)
        if caller.proposes:
            # Perhaps by a draft model with another tokenizer: the mask is not that of its rows.
            return np.maximum(length - self._padding, 0).astype(np.uint64)
        # The first draw follows the prompt; later ones follow more than that.
        if length < self._prompt_length or (self._prompt is None and length != self._prompt_length):
            raise ValueError(
                f"`attention_mask` has to be that of the prompt, but has {self._prompt_length} "
                f"tokens where the rows have {length}; for an encoder-decoder model, or "
                "inputs_embeds, leave it out"
            )
        prompt = input_ids[:, : self._prompt_length]
        if self._prompt is None:
            self._prompt = prompt.clone()  # the caller's memory may be used again
        elif not torch.equal(prompt, self._prompt):
            raise ValueError(
                "`attention_mask` has to be that of the prompt, but the rows begin with another "
                "one than at the first draw: make a processor for each prompt"
            )
        return (length - self._padding).astype(np.uint64)


class _Caller:
    """What of transformers is calling a processor, which is not among its arguments.

    Attributes
    ----------
    processors : LogitsProcessorList or None
        The list that the calling generation runs, each generation another; None outside of one.
    proposes : bool
        Whether candidates of assisted decoding are proposed: drawn from a draft model's logits, or,
        by prompt lookup, from made-up scores, to learn which tokens are forbidden.
    verifies : bool
        Whether candidates are verified, for which assisted decoding comes back to them.
    """

    def __init__(self) -> None:
        self.processors: Any = None
        self.proposes = self.verifies = False
        self._loop: FrameType | None = None
        frame: FrameType | None = sys._getframe(2)
        # Outwards to the loop of the generation. One that runs inside another, in a processor of
        # the caller's for example, has nothing to do with that one; a draft model's does.
        while frame is not None:
            code = frame.f_code
            if code in _PROPOSES:
                self.proposes = True
            elif code is _VERIFIES and self.proposes:
                self.processors, self._loop = frame.f_locals["logits_processor"], None
                break
            elif self._loop is not None and not self.proposes and code in _NESTS:
                break
            elif code is _VERIFIES:
                self.verifies = True
                break
            elif code is _SAMPLES:
                self._loop = frame
            elif code is _RUNS_PROCESSORS:
                self.processors = frame.f_locals["self"]
            elif code is _loop.__code__:
                break
            frame = frame.f_back

    def unfinished(self) -> npt.NDArray[np.bool_] | None:
        """Which rows of a batch go on, where that is known: the others are being padded.

        Python keeps what it shows of a running function until it shows it again, and with it the
        logits of a step: do not ask while they are those of the prompt.
        """
        if self._loop is None:
            return None
        known = self._loop.f_locals
        unfinished: npt.NDArray[np.bool_] = known["unfinished_sequences"].cpu().numpy() != 0
        # Without an end token, rows that a criterion has stopped go on with the others.
        return unfinished | (not known["has_eos_stopping_criteria"])


class _Use:
    """Whether a processor was handed out for generate(), and whether that has called it."""

    def __init__(self) -> None:
        self.called = self.handed_out = False
        self._error = 0

    def __deepcopy__(self, memo: Any) -> _Use:
        return self  # whichever copy is called

    def hand_out(self, processor: Any, lost: str) -> None:
        """Warn, at the line that asked for it, if the processor goes without having been called."""
        self.handed_out = True
        self._error = id(getattr(sys, "last_value", None))
        frame = sys._getframe(2)
        place = frame.f_code.co_filename, frame.f_lineno
        weakref.finalize(processor, self._warn, f"{_UNCALLED}, {lost}: {_IGNORED}", *place)

    def _warn(self, message: str, filename: str, line: int) -> None:
        # After an error, that is what there is to read.
        if not self.called and id(getattr(sys, "last_value", None)) == self._error:
            warnings.warn_explicit(message, RuntimeWarning, filename, line)


_UNCALLED = "generate() never called the processor made here"
_IGNORED = (
    "generate_batch and cache_implementation='paged' ignore the caller's processors, and a call "
    "that failed needs none"
)


class _Text:
    """One generation: its rows, the draw at each place, and which rows went on there.

    `number` is its draw index.
    """

    def __init__(self, rows: torch.Tensor, caller: _Caller, number: int) -> None:
        self.number = number
        self._prompt = rows.clone()  # the caller's memory may be used again
        self._length = 0  # of the rows last drawn from
        self._drawn: list[Samples] = []
        self._going_on: list[npt.NDArray[np.bool_]] = []
        self._processors = None if caller.processors is None else weakref.ref(caller.processors)
        self._checked = rows.shape[1]  # the length of rows whose tokens are as they were drawn
        self._knows_ends = len(rows) == 1  # a lone row is never padded
        self._candidates: torch.Tensor | None = None  # the rows, where they were verified last

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_processors": None, "_candidates": None}

    def is_over(self) -> bool:
        """Whether its generation is known to be over."""
        return self._processors is not None and self._processors() is None

    def goes_on(self, rows: torch.Tensor, caller: _Caller) -> bool:
        """Whether rows belong to this generation."""
        if (self._processors and self._processors()) is not caller.processors:
            return False
        if caller.proposes:
            return True  # perhaps of other ids
        length, prompt = rows.shape[1], self._prompt.shape[1]
        if not (
            len(rows) == len(self._prompt)
            and prompt <= length <= prompt + len(self._drawn)
            and (caller.verifies or length > self._length)
            and torch.equal(rows[:, :prompt], self._prompt)
        ):
            return False
        # While candidates are verified, only the first slice of them is the text so far.
        known = self._candidates
        if not caller.verifies or known is None or rows.data_ptr() != known.data_ptr():
            self._find_replaced(rows)
        return True

    def _find_replaced(self, rows: torch.Tensor) -> None:
        """Raise if a token that was put into a row that goes on is not the one drawn."""
        first, self._checked = self._checked, rows.shape[1]
        for length in range(first, rows.shape[1]):
            place = length - self._prompt.shape[1]
            shown, drawn = rows[:, length].cpu().numpy(), self._drawn[place].tokens[:, 0]
            replaced = (shown != drawn) & self._going_on[place]
            if replaced.any() and (place == 0 or self._knows_ends):
                row = int(np.argmax(replaced))
                raise RuntimeError(
                    f"the generated text does not contain the sampled tokens: row {row} has token "
                    f"{shown[row]} where {drawn[row]} was drawn. A later logits processor replaced "
                    "it; SamplingLogitsProcessor has to be the last one, as in "
                    "generate_kwargs(..., logits_processor=[...])"
                )

    def add(self, rows: torch.Tensor, r: Samples, caller: _Caller) -> None:
        """Record what was drawn after these rows, in place of what was drawn there before."""
        place = rows.shape[1] - self._prompt.shape[1]
        going_on = np.ones(len(rows), bool)
        if len(rows) > 1 and place:
            unfinished = caller.unfinished()
            if unfinished is not None:
                going_on = unfinished
            else:
                # Somebody else's loop. A row that shows another token than the one drawn is padded,
                # from there on.
                same = rows[:, -1].cpu().numpy() == self._drawn[place - 1].tokens[:, 0]
                going_on = self._going_on[place - 1] = self._going_on[place - 1] & same
            self._knows_ends = unfinished is not None
        del self._drawn[place:], self._going_on[place:]
        self._drawn.append(r)
        self._going_on.append(going_on)
        self._length = rows.shape[1]
        self._candidates = rows if caller.verifies else None

    def samples(self, ends: npt.NDArray[np.int64]) -> Samples:
        """What was drawn of the texts themselves."""
        tokens = np.concatenate([r.tokens for r in self._drawn], axis=1)
        real = np.stack(self._going_on, axis=1)
        if self._candidates is not None:
            # After a wrong candidate, in whose place the draw then came, nothing is of the text.
            shown = self._candidates[:, self._prompt.shape[1] :].cpu().numpy()
            wrong = tokens[:, : shown.shape[1]] != shown
            real[:, 1 : shown.shape[1] + 1] &= ~np.logical_or.accumulate(wrong, axis=1)
        # Assisted decoding draws beyond the end.
        real[:, 1:] &= ~np.logical_or.accumulate(np.isin(tokens, ends), axis=1)[:, :-1]
        new = np.flatnonzero(real.any(axis=0))[-1] + 1
        return _aligned(self._drawn[:new], real[:, :new])


def generate_kwargs(
    sampler: Sampler,
    *,
    attention_mask: Any = None,
    streams: Any = None,
    logprobs: int | None = 0,
    eos_token_id: Any = None,
    logits_processor: Iterable[Any] = (),
) -> dict[str, Any]:
    """Return the keyword arguments that make ``model.generate()`` draw with `sampler`.

    Every setting of Hugging Face's own sampling is among them at a value that does nothing, so
    that giving one of them twice is a TypeError ("multiple values") and not a second filter; beams,
    watermarks, `penalty_alpha` and `dola_layers` too, which a draw of our own leaves without
    effect.

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
    logprobs : int, >= 0, or None
        How many top tokens ``kwargs["logits_processor"][-1].samples`` lists; None records nothing.
    eos_token_id : int or sequence of int, optional
        The ids that end a row, for generation and for `samples` alike.
    logits_processor : iterable of LogitsProcessor, optional
        Yours, to run before the draw.

    Returns
    -------
    dict
        For one generation: its processor records what that drew.

    Raises
    ------
    TypeError, ValueError
        As `SamplingLogitsProcessor`; and if `logits_processor` is not an iterable of processors.

    Warns
    -----
    RuntimeWarning
        If the processor goes without having been called: ``generate_batch`` and
        ``cache_implementation="paged"`` ignore it.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.hf import generate_kwargs
    >>> kwargs = generate_kwargs(Sampler(temperature=0.8, top_p=0.9, seed=7))
    >>> kwargs["do_sample"], kwargs["logits_processor"][-1].seed
    (False, 7)
    """
    processor = SamplingLogitsProcessor(
        sampler,
        streams=streams,
        attention_mask=attention_mask,
        logprobs=logprobs,
        eos_token_id=eos_token_id,
    )
    own = _check_processors(logits_processor)
    processor._use.hand_out(processor, "so the sampler drew nothing")
    ends = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
    return {
        "logits_processor": LogitsProcessorList([*own, processor]),
        **_OUR_DRAW,
        **_NO_EFFECT,
        "watermarking_config": None,  # it would run after the draw, and change nothing
        **ends,
    }


def expand_inputs(inputs: Mapping[str, Any], num_return_sequences: int) -> dict[str, Any]:
    """Repeat each row of a model's inputs, for several texts of one prompt.

    Under ``do_sample=False`` Hugging Face refuses ``num_return_sequences`` above 1. Rows of one
    prompt have different streams, so their texts differ.

    Parameters
    ----------
    inputs : mapping
        What a tokenizer or a processor returns. Tensors are repeated along their first axis, which
        has to be that of the prompts; everything else is kept.
    num_return_sequences : int, >= 1

    Returns
    -------
    dict
        Row ``i * num_return_sequences + j`` is the j-th copy of row i.

    Raises
    ------
    TypeError
        If `inputs` is not a mapping or holds arrays or lists, or `num_return_sequences` is not an
        integer.
    ValueError
        If `num_return_sequences` is below 1, or the rows of a tensor are not known to be the
        prompts: images, videos or sounds that may be several for one prompt and none for another.
        `generate` takes those.

    Examples
    --------
    >>> import torch
    >>> from sampler.hf import expand_inputs
    >>> expand_inputs({"input_ids": torch.tensor([[1, 2], [3, 4]])}, 2)["input_ids"].tolist()
    [[1, 2], [1, 2], [3, 4], [3, 4]]
    """
    n = check_integer("num_return_sequences", num_return_sequences, 1, None, "an integer >= 1")
    if not isinstance(inputs, Mapping):
        raise TypeError(f"`inputs` have to be a mapping, but are a {_inputs.kind_of(inputs)}")
    for name, value in inputs.items():
        if isinstance(value, (np.ndarray, list)):
            raise TypeError(
                f"`inputs` have to hold tensors, but {name} is a {_inputs.kind_of(value)}: call "
                "the tokenizer with return_tensors='pt'"
            )
    if n > 1:
        _check_rows_are_prompts(
            inputs,
            f"use sampler.hf.generate(model, **inputs, sampler=s, num_return_sequences={n})",
        )
    return {name: _repeated(name, value, n) for name, value in inputs.items()}


def _repeated(name: str, value: Any, n: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value.repeat_interleave(n, dim=0) if value.ndim else value
    if isinstance(value, ModelOutput):  # of an encoder
        return type(value)(**{part: _repeated(name, x, n) for part, x in value.items()})
    if n > 1 and (isinstance(value, tuple) or hasattr(value, "get_seq_length")):
        raise TypeError(
            f"`inputs` have to hold tensors, but {name} is a {_inputs.kind_of(value)}: use "
            f"sampler.hf.generate(model, **inputs, sampler=s, num_return_sequences={n})"
        )
    return value


# What has one row for each prompt, and what may have several or none.
_TEXT = ("input_ids", "inputs_embeds", "attention_mask")
_MEDIA = ("pixel", "image", "video", "audio", "input_features", "input_values")


def _check_rows_are_prompts(inputs: Mapping[str, Any], instead: str) -> None:
    """Refuse tensors whose rows are not known to be those of the text, where there is one."""
    tensors = {k: v for k, v in inputs.items() if isinstance(v, torch.Tensor) and v.ndim}
    batch = next((len(tensors[name]) for name in _TEXT if name in tensors), None)
    for name, value in tensors.items() if batch is not None else ():
        # As many images as prompts may be two of the first and none of the second.
        rope = name == "position_ids" and value.ndim == 3  # time, height and width come first
        if len(value) != batch and name != "position_ids" and not name.startswith(_MEDIA):
            raise ValueError(
                f"`{name}` has to have a row for each of the {batch} prompts, but has shape "
                f"{tuple(value.shape)}"
            )
        if len(value) != batch or rope or (batch > 1 and name.startswith(_MEDIA)):
            raise ValueError(
                f"`{name}` has shape {tuple(value.shape)}, which does not say which of its rows "
                f"belong to which of the {batch} prompts: {instead}"
            )


# --------------------------------------------------------------------------------- our filters


class FilterLogitsProcessor(LogitsProcessor):
    """Temper the scores and remove tokens, as Hugging Face's warpers do, for its own draw.

    In place of `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper` and
    `MinPLogitsWarper` in this order: the same kept tokens, without sorting the vocabulary.

    Parameters
    ----------
    sampler : Sampler, optional
        Its stages and their order; its seed has no part. Not together with settings.
    temperature : float, in [0, inf], off at 1
    top_k : int, >= 0, off at 0
        Everything equal to the k-th is kept, as Hugging Face does.
    top_p : float, in [0, 1], off at 1
    min_p : float, in [0, 1], off at 0
    filter_value : float, below inf
        What a token gets that the stages remove, one that was -inf before included.
    min_tokens_to_keep : int, >= 1, off at 1

    Raises
    ------
    TypeError
        If `sampler` is not a Sampler, settings are given as well, or one has the wrong type.
    ValueError
        If a setting is out of its range.

    Notes
    -----
    Scores on the CPU go through the core: kept sets are exact (docs/law.md) where Hugging Face's
    float32 sums are not, and among tokens tied at the edge of `top_p` the lower ids stay. Scores
    on another device never leave it: Hugging Face's own warpers compute the same chain there; they
    take neither ``temperature=0`` or inf nor, with `top_k`, a sampler of ``ties="id"``.

    One difference: a `min_tokens_to_keep` above `top_k` is never widened by ties. And under beam
    search Hugging Face raises its own floor to 1 + the number of end tokens; give it here.
    """

    supports_continuous_batching = True

    def __init__(
        self,
        sampler: Sampler | None = None,
        *,
        temperature: float | None = 1.0,
        top_k: int | None = 0,
        top_p: float | None = 1.0,
        min_p: float | None = 0.0,
        filter_value: float = -math.inf,
        min_tokens_to_keep: int | None = 1,
    ) -> None:
        own = Sampler(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            min_tokens_to_keep=min_tokens_to_keep,
            ties="all",
            seed=0,
        )
        if sampler is not None:
            _check_sampler(sampler)
            if not all(stage.is_off for stage in own.stages) or own.min_tokens_to_keep != 1:
                raise TypeError(
                    f"`sampler` and settings exclude each other, but both are given: {sampler!r} "
                    f"and {own!r}"
                )
            own = sampler
        # An invalid row cannot be flagged in the middle of a text.
        self.sampler = own.replace(on_invalid="raise")
        if filter_value != -math.inf:
            check_real("filter_value", filter_value, -_FLOAT32_MAX, _FLOAT32_MAX, _FILTER_TEXT)
        self.filter_value = float(filter_value)
        self._use = _Use()
        self._removes = any(
            not (stage.is_off or (isinstance(stage, Temperature) and stage.value > 0.0))
            for stage in own.stages
        )

    def __call__(self, input_ids: torch.LongTensor | None, scores: torch.Tensor) -> torch.Tensor:
        """Return the tempered scores, `filter_value` where a token is not kept.

        Parameters
        ----------
        input_ids : tensor of shape (batch, length), int64, or None
            Not looked at.
        scores : tensor of shape (batch, vocab), float32
            Never written to.

        Returns
        -------
        tensor of shape (batch, vocab)

        Raises
        ------
        ValueError
            If a row on the CPU is invalid, another device cannot follow the sampler, or the dtype
            cannot hold `filter_value`.
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
        if scores.device.type != "cpu":
            warped = scores.clone()
            for warper in self._warpers(scores.device):
                warped = warper(input_ids, warped)
            return warped
        source = _inputs.read(scores, name="scores")
        _inputs.check_rows(source, "scores", (2,))
        filtered: torch.Tensor = source.wrap(engine_of(self.sampler).filter(source, name="scores"))
        if self._removes and self.filter_value != -math.inf:
            filtered.masked_fill_(filtered == -math.inf, self.filter_value)
        return filtered

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sampler!r}, filter_value={self.filter_value})"

    def _warpers(self, device: torch.device) -> list[Any]:
        """The same chain of Hugging Face's own."""
        limits: dict[str, Any] = {
            "filter_value": self.filter_value,
            "min_tokens_to_keep": self.sampler.min_tokens_to_keep,
        }
        warpers: list[Any] = []
        for stage in self.sampler.stages:
            if stage.is_off:
                continue
            value: Any = stage.value
            if isinstance(stage, Temperature):
                if not 0.0 < value < math.inf:
                    raise ValueError(
                        f"`temperature` has to be in (0, inf) on {device}, but is {value}"
                    )
                warpers.append(TemperatureLogitsWarper(value))
            elif isinstance(stage, TopK):
                if self.sampler.ties != "all":
                    ties = self.sampler.ties
                    raise ValueError(f"`ties` has to be 'all' on {device}, but is {ties!r}")
                warpers.append(TopKLogitsWarper(value, **limits))
            elif isinstance(stage, TopP):
                warpers.append(TopPLogitsWarper(value, **limits))
            else:
                assert isinstance(stage, MinP)
                warpers.append(MinPLogitsWarper(value, **limits))
        return warpers


def filter_kwargs(
    sampler: Sampler | None = None,
    *,
    temperature: float | None = 1.0,
    top_k: int | None = 0,
    top_p: float | None = 1.0,
    min_p: float | None = 0.0,
    filter_value: float = -math.inf,
    min_tokens_to_keep: int | None = 1,
    logits_processor: Iterable[Any] = (),
) -> dict[str, Any]:
    """Return the keyword arguments that put our filters in place of Hugging Face's.

    Hugging Face draws, from its global random state: ``torch.manual_seed``. Its own filters are
    off, the hidden ``top_k=50`` included, so that giving one of them again is a TypeError
    ("multiple values").

    Parameters
    ----------
    sampler, temperature, top_k, top_p, min_p, filter_value, min_tokens_to_keep
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

    Examples
    --------
    >>> from sampler.hf import filter_kwargs
    >>> kwargs = filter_kwargs(temperature=0.8, top_p=0.9)
    >>> kwargs["do_sample"], kwargs["top_k"], kwargs["top_p"]
    (True, None, 1.0)
    """
    processor = FilterLogitsProcessor(
        sampler,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        filter_value=filter_value,
        min_tokens_to_keep=min_tokens_to_keep,
    )
    own = _check_processors(logits_processor)
    processor._use.hand_out(processor, "so nothing was filtered")
    processors = LogitsProcessorList([*own, processor])
    return {"logits_processor": processors, "do_sample": True, **_NEUTRAL}


# ---------------------------------------------------------------------------- an existing text


@torch.no_grad()
def score(
    model: Any,
    sequences: torch.Tensor,
    sampler: Sampler,
    *,
    prompt_length: int = 1,
    attention_mask: Any = None,
    logprobs: int = 0,
    eos_token_id: Any = None,
    logits_processor: Iterable[Any] | None = None,
    **model_kwargs: Any,
) -> Samples:
    """Tell of an existing text what `SamplingLogitsProcessor.samples` tells of a drawn one.

    One forward pass over the whole text. Log-probabilities agree with those of the draws up to the
    model's own rounding, which is another in one pass than token by token.

    Parameters
    ----------
    model : PreTrainedModel
        A causal or encoder-decoder language model on the CPU.
    sequences : tensor of shape (batch, length), int64
        Prompts and their continuations, as ``generate()`` returns them.
    sampler : Sampler
        Its settings; its seed has no part.
    prompt_length : int, in [1, length)
        How many tokens of each row, padding included, are there before the first that is scored.
    attention_mask : tensor of shape (batch, any length up to length), optional
        As ``generate()`` takes it, for the prompt or for the whole text. What it does not reach
        is text; what it masks is padding. For an encoder-decoder model: that of the encoder.
    logprobs : int, >= 0
        How many of the first tokens in rank to list at each place.
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
        Arrays of shape (batch, length - prompt_length). A token that the sampler would have
        removed has log-probability -inf; padding has what an invalid row has.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or the model gives NaN or +inf: row, step (the row's true
        length) and token are named.

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
    _check_sampler(sampler)
    _check_model(model, "config", "forward")
    sampler = sampler.replace(on_invalid="raise")
    if getattr(sequences, "dtype", None) is not torch.int64:
        kind = getattr(sequences, "dtype", _inputs.kind_of(sequences))
        raise TypeError(f"`sequences` have to be a tensor of int64, but are {kind}")
    if sequences.ndim != 2:
        raise ValueError(f"`sequences` have to be 2-D, but have shape {tuple(sequences.shape)}")
    batch, length = sequences.shape
    if batch == 0:
        raise ValueError("`sequences` have to hold at least one row, but have none")
    tokens = sequences.numpy()
    _check_width(tokens, 0, model.config.get_text_config().vocab_size)
    first = check_integer("prompt_length", prompt_length, 1, length, f"an integer in [1, {length})")
    top = check_logprobs(logprobs)
    ends = _check_ends(eos_token_id)
    processors = LogitsProcessorList(_check_processors(logits_processor or ()))
    accepts = signature(_unwrapped(model).forward).parameters
    for name in model_kwargs:
        if name not in accepts:
            raise TypeError(
                f"`{name}` has to be an argument of `score` or of the model, but is not"
            )
    padding = np.zeros(batch, np.int64)
    real = np.ones((batch, length - first), bool)
    if model.config.is_encoder_decoder:
        model_kwargs.update(decoder_input_ids=sequences)
        if attention_mask is not None:
            model_kwargs.update(attention_mask=attention_mask)
    else:
        model_kwargs.update(input_ids=sequences)
        if attention_mask is not None:
            known = _mask_array(attention_mask)
            check_batch("attention_mask", len(known), batch)
            if known.shape[1] > length:
                raise ValueError(
                    f"`attention_mask` has to be for at most {length} tokens, but is for "
                    f"{known.shape[1]}"
                )
            padding = _left_padding(known)
            mask = torch.ones(batch, length, dtype=torch.int64)
            mask[:, : known.shape[1]] = torch.from_numpy(known)
            real &= mask[:, first:].numpy() != 0
            model_kwargs.update(attention_mask=mask)
            # Models that place images in several dimensions work these out from the mask.
            has_own = any(hasattr(part, "get_rope_index") for part in model.modules())
            if "position_ids" in accepts and not has_own:
                model_kwargs.update(position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
        for name, value in model_kwargs.items():
            # As generate() extends those of a prompt: a kind of text goes on, an image does not.
            if name.endswith("token_type_ids") and value is not None and value.shape[1] < length:
                text = value[:, -1:].expand(-1, length - value.shape[1])
                if name.endswith("mm_token_type_ids"):
                    text = torch.zeros_like(text)
                model_kwargs[name] = torch.cat([value, text], dim=1)
    if "logits_to_keep" in accepts:
        model_kwargs.update(logits_to_keep=length - first + 1)
    logits = model(**model_kwargs, use_cache=False, return_dict=True).logits
    logits = logits[:, -(length - first + 1) : -1]
    _check_width(tokens, first, logits.shape[-1])

    told = []
    engine = engine_of(sampler)
    for place in range(first, length):
        rows: Any = sequences[:, :place]
        scores = processors(rows, logits[:, place - first].float())
        source = _inputs.read(scores, name="scores")
        given = tokens[:, place : place + 1]
        steps = np.maximum(place - padding, 0).astype(np.uint64)
        told.append(engine.score(source, given, top, steps=steps, name="scores"))
    ended = np.logical_or.accumulate(np.isin(tokens[:, first:], ends), axis=1)
    real[:, 1:] &= ~ended[:, :-1]
    return _aligned(told, real)


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


# --------------------------------------------------------------------------- a loop of our own


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
        To go on from; also as `past_key_values`, its name before transformers 5.24.
    samples : Samples
        What was drawn, arrays of shape (batch, new).
    seed : int
        That of the draws.
    """

    # Not fields: models that put several generations together split every field by row.
    samples: ClassVar[Samples | None] = None
    seed: ClassVar[int | None] = None


if not _HAS_CACHE:
    GenerateOutput.cache = property(lambda self: self.past_key_values)  # type: ignore[assignment]


def generate(
    model: Any,
    inputs: torch.Tensor | None = None,
    *,
    sampler: Sampler,
    streams: Any = None,
    logprobs: int = 0,
    num_return_sequences: int = 1,
    streamer: Any = None,
    **kwargs: Any,
) -> Any:
    """Write text in a plain loop: one forward pass, one draw a token.

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
    num_return_sequences : int, >= 1
        How many texts of each prompt, in neighbouring rows.
    streamer : BaseStreamer, optional
        Given the prompt and each token, as ``model.generate`` does, and ended once, after an error
        too.
    **kwargs
        Everything else that ``model.generate`` takes, save settings of its own sampling.

    Returns
    -------
    tensor of shape (batch * num_return_sequences, length), int64, or GenerateOutput
        The latter under ``return_dict_in_generate=True``.

    Raises
    ------
    TypeError, ValueError
        As `SamplingLogitsProcessor`; for a model that cannot generate, a setting of Hugging Face's
        own sampling, an argument that ``model.generate`` refuses, and what this loop does without:
        assisted decoding, token healing, paged caches, `output_attentions`,
        `output_hidden_states`, `penalty_alpha`, `dola_layers`, `force_words_ids`, `constraints`.
    RuntimeError
        If the model's own ``generate`` does not run this loop, as that of models whose tokens are
        not drawn one after another.

    Notes
    -----
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
        raise TypeError(f"`streamer` has to be a streamer, but is a {_inputs.kind_of(streamer)}")
    try:
        _check_sampler(sampler)
        _check_model(model, "config", "generate")
        check_integer("logprobs", logprobs, 0, 2**40, "an integer >= 0")
        copies = check_integer(
            "num_return_sequences", num_return_sequences, 1, None, "an integer >= 1"
        )
        _check_loop(kwargs)
        loop = partial(
            _loop, sampler=sampler, streams=streams, logprobs=logprobs, copies=copies,
            streamer=streamer, draws=itertools.count(),
        )  # fmt: skip
        return _run(model, inputs, loop, kwargs)
    finally:
        if streamer is not None:
            streamer.end()  # or its reader would wait for ever


def _run(model: Any, inputs: Any, loop: partial[Any], kwargs: dict[str, Any]) -> Any:
    """Let the model's generate prepare everything and call the loop."""
    if inputs is not None and not (isinstance(inputs, torch.Tensor) and inputs.ndim > 1):
        found = f"has shape {tuple(inputs.shape)}" if isinstance(inputs, torch.Tensor) else (
            f"is a {_inputs.kind_of(inputs)}"
        )  # fmt: skip
        raise TypeError(
            f"`inputs` has to be a tensor with a row for each text, but {found}: what a tokenizer "
            "returns goes in as generate(model, **inputs, sampler=s)"
        )
    given = () if inputs is None else (inputs,)  # the first parameter has different names
    if hasattr(kwargs.get("generation_config"), "_eos_token_tensor"):
        # Prepared: model.generate() is calling, perhaps once for each of several texts.
        if _has_own(model, "generate"):
            raise ValueError(
                f"{type(model).__name__}.generate() cannot have this loop as `custom_generate`: "
                "call sampler.hf.generate(model, ...) instead"
            )
        return loop(model, *given, **kwargs)
    tokenizer, strings = kwargs.pop("tokenizer", None), kwargs.pop("stop_strings", None)
    if strings is not None:
        # Hugging Face makes this criterion itself, but finds no tokenizer when the loop is ours.
        if tokenizer is None:
            raise ValueError("`tokenizer` has to be given with `stop_strings`, but is not")
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
    draw = {name: value for name, value in _OUR_DRAW.items() if name not in named}
    elsewhere = RuntimeError(
        f"{type(model).__name__}.generate() does not run this loop, so the sampler cannot draw in "
        "it: use model.generate(**inputs, **generate_kwargs(sampler)), or pass the part of the "
        "model that writes text, such as model.language_model"
    )
    try:
        result = model.generate(*given, custom_generate=loop, **draw, **kwargs)
    except (TypeError, ValueError) as error:
        if "custom_generate" in str(error):
            raise elsewhere from error
        raise
    if next(loop.keywords["draws"]) == 0:
        raise elsewhere
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
    copies: int,
    streamer: Any,
    draws: Iterator[int],
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
    for name in _NOTHING_OF_OURS:
        if getattr(config, name, None):
            raise _not_with_a_sampler(name)
    encoder_decoder = model.config.is_encoder_decoder
    if copies > 1 and not _EXPANDS_MEDIA and not _has_own(model, "_expand_inputs_for_generation"):
        _check_rows_are_prompts(
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
    tells = config.return_dict_in_generate
    processor = SamplingLogitsProcessor(
        sampler, streams=streams, attention_mask=mask, logprobs=logprobs if tells else None
    )
    processor._generation += next(draws)
    if streamer is not None:
        streamer.put(input_ids.cpu())

    unfinished = torch.ones(len(input_ids), dtype=torch.bool)
    # Rows that stop for another reason than an end token go on with the others, as there.
    pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    drawn, real = [], []
    scores: tuple[torch.Tensor, ...] = ()
    logits: tuple[torch.Tensor, ...] = ()
    last_only = {"next_sequence_length": 1} if model_kwargs["use_cache"] and _TAKES_LENGTH else {}
    outputs = model._prefill(input_ids, config, model_kwargs)
    while True:
        model_kwargs = model._update_model_kwargs_for_generation(
            outputs, model_kwargs, is_encoder_decoder=encoder_decoder
        )
        # A copy, or the view would keep the logits of the whole prompt alive.
        next_logits = outputs.logits[:, -1].to(torch.float32, copy=True)
        next_scores = logits_processor(input_ids, next_logits)
        r = processor._draw(input_ids, next_scores)
        if tells:
            drawn.append(r)
            real.append(unfinished.numpy() if pads else np.ones(len(unfinished), bool))
        if config.output_scores:
            scores += (next_scores,)
        if config.output_logits:
            logits += (next_logits,)

        tokens = torch.from_numpy(r.tokens)[:, 0]
        if pads and not unfinished.all():
            tokens = torch.where(unfinished, tokens, config._pad_token_tensor)
        input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
        if streamer is not None:
            streamer.put(tokens)
        unfinished = unfinished & ~stopping_criteria(input_ids, scores)
        if not unfinished.any():
            break
        model_inputs = model.prepare_inputs_for_generation(input_ids, **last_only, **model_kwargs)
        outputs = model(**model_inputs, return_dict=True)
    if not tells:
        return input_ids
    cache = next((model_kwargs[name] for name in _CACHE_NAMES if name in model_kwargs), None)
    fields: dict[str, Any] = {
        "scores": scores if config.output_scores else None,
        "logits": logits if config.output_logits else None,
        "cache" if _HAS_CACHE else "past_key_values": cache,
    }
    output = GenerateOutput(sequences=input_ids, **fields)
    # Of this instance, not of the class.
    vars(output).update(samples=_aligned(drawn, np.stack(real, axis=1)), seed=processor.seed)
    return output


def _check_loop(kwargs: Mapping[str, Any]) -> None:
    for name in ("assistant_model", "assistant_tokenizer", "token_healing"):
        if kwargs.get(name):
            raise _not_in_this_loop(name)
    for name in _NOTHING_OF_OURS:
        if kwargs.get(name):
            raise _not_with_a_sampler(name)
    if kwargs.get("cache_implementation") == "paged":
        raise ValueError(
            "`cache_implementation='paged'` is not supported: transformers' continuous batching "
            "ignores the caller's processors, so no sampler can draw in it"
        )
    if "generation_config" in kwargs:  # perhaps that of a model.generate() that is calling
        return
    for name in _OUR_DRAW:
        if name in kwargs and name != "num_return_sequences":
            instead = "for beams, see filter_kwargs" if "beams" in name else "set it on the Sampler"
            raise TypeError(f"`{name}` has to be left out, because the sampler draws: {instead}")


def _has_own(model: Any, method: str) -> bool:
    """Whether a model's class overrides a method of transformers' own generation."""
    return getattr(type(model), method, None) is not getattr(GenerationMixin, method)


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


# ------------------------------------------------------------------------------------- checks


def _unwrapped(model: Any) -> Any:
    """The model whose forward names its arguments, which wrappers hide."""
    model = getattr(model, "_orig_mod", model)  # torch.compile
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT
    if "input_ids" not in signature(model.forward).parameters:
        raise TypeError(
            f"`model` has to name the arguments of its forward, but is a {_inputs.kind_of(model)} "
            "that does not: give the model inside"
        )
    return model


def _check_model(model: Any, *wanted: str) -> None:
    if not all(hasattr(model, name) for name in wanted):
        raise TypeError(
            "`model` has to be a transformers model that generates text, but is a "
            f"{_inputs.kind_of(model)}"
        )


def _check_processors(processors: Any) -> list[Any]:
    wanted = "an iterable of logits processors"
    if not isinstance(processors, Iterable):
        kind = _inputs.kind_of(processors)
        raise TypeError(f"`logits_processor` has to be {wanted}, but is a {kind}: put it in a list")
    own = list(processors)
    for processor in own:
        if not callable(processor) or isinstance(processor, SamplingLogitsProcessor):
            kind = _inputs.kind_of(processor)
            raise TypeError(
                f"`logits_processor` has to hold processors that run before the draw, but holds a "
                f"{kind}"
            )
    return own


def _check_sampler(sampler: Any) -> None:
    if not isinstance(sampler, Sampler):
        raise TypeError(f"`sampler` has to be a Sampler, but is a {_inputs.kind_of(sampler)}")


def _check_ends(eos_token_id: Any) -> npt.NDArray[np.int64]:
    if eos_token_id is None:
        return np.empty(0, np.int64)
    values = eos_token_id.tolist() if hasattr(eos_token_id, "tolist") else eos_token_id
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        values = [values]
    text = "an integer >= 0, or a sequence of them"
    checked = [check_integer("eos_token_id", value, 0, 2**63, text) for value in values]
    return np.array(checked, np.int64)


def _mask_array(attention_mask: Any) -> npt.NDArray[np.bool_]:
    if isinstance(attention_mask, torch.Tensor) and attention_mask.device.type != "cpu":
        raise TypeError(
            f"`attention_mask` has to be on the CPU, as the model, but is on "
            f"{attention_mask.device}"
        )
    mask = array_of("attention_mask", attention_mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(
            f"`attention_mask` has to be an array of 0 and 1, but is {attention_mask!r}"
        )
    if mask.ndim != 2:
        raise ValueError(f"`attention_mask` has to be 2-D, but has shape {mask.shape}")
    held: npt.NDArray[np.bool_] = mask == 1
    other = mask[~held & (mask != 0)]
    if len(other):
        raise ValueError(f"`attention_mask` has to be an array of 0 and 1, but has {other[0]}")
    return held


def _left_padding(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Count each row's padding."""
    padding: npt.NDArray[np.int64] = np.sum(np.cumsum(mask, axis=1) == 0, axis=1)
    return padding


# ------------------------------------------------------------------------------------ results


# What `Samples` has where there is no token.
_BLANK = {
    "tokens": -1,
    "logprobs": math.nan,
    "raw_logprobs": math.nan,
    "ranks": 0,
    "kept": 0,
    "log_mass": math.nan,
}
_BLANK_LISTS = {
    "top_ids": -1,
    "top_logprobs": math.nan,
    "raw_top_ids": -1,
    "raw_top_logprobs": math.nan,
}


def _aligned(drawn: Sequence[Samples], real: npt.NDArray[np.bool_]) -> Samples:
    """Put samples of shape (batch, 1) side by side, one a place, and blank what is not real."""

    def together(name: str, blank: float) -> npt.NDArray[Any]:
        array = np.stack([getattr(r, name) for r in drawn], axis=1)
        array[~real] = blank
        return array

    figures = {name: together(name, blank)[..., 0] for name, blank in _BLANK.items()}
    lists = {name: together(name, blank) for name, blank in _BLANK_LISTS.items()}
    return Samples(**figures, **lists)
