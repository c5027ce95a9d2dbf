"""Our draw inside ``model.generate()``."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from sampler import _inputs
from sampler._checks import check_batch, check_flag, check_logprobs, check_numbers
from sampler._engine import Given
from sampler._keywords import helps
from sampler.api import Sampler, Samples, engine_of
from sampler.hf._arguments import check_eos_ids, check_rows, check_sampler
from sampler.hf._grammar import Grammars
from sampler.hf._masks import RowLengths
from sampler.hf._record import Record, TensorSamples
from sampler.hf._texts import texts_of
from sampler.hf._transformers import OTHER_ALGORITHMS, OUR_DRAW, Caller, ours
from sampler.hf._use import Use
from sampler.memory import initial_states
from sampler.phrases import Text

# Held while a generation takes its number: two threads may begin one of the same processor at once.
BEGINNING = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child lacks the thread that held it
    os.register_at_fork(after_in_child=BEGINNING._at_fork_reinit)  # type: ignore[attr-defined]


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
        The prompt's mask, which shows each row's left padding. Without it, padding counts
        as part of the row. Not for encoder-decoder models or ``inputs_embeds``, whose mask is not
        that of the rows.
    logprobs : int, >= 0, or None
        How many of the first tokens in rank `samples` lists at each place. None records nothing.
    raw : bool
        Whether `samples` has the figures under the model's own softmax and the kept mass as well:
        see `Sampler.sample`.
    eos_token_id : int or sequence of int, optional
        The ids that end a row, for `samples` to know padding by.
    grammar : llguidance.LLMatcher, xgrammar.CompiledGrammar or any other, optional
        What the outputs may be: each token is drawn from those that the grammar lets follow. A list
        has one per row, or None. docs/huggingface.md says what makes an object a grammar.

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
        If `sampler` is not a Sampler, streams, `logprobs` or `eos_token_id` are not integers,
        `raw` is not a bool, or `grammar` is not one.
    ValueError
        If one of these is out of range, the mask is not 2-D, not of 0 and 1, or pads on the right,
        or `grammar` has an error.

    See Also
    --------
    generate_kwargs : makes one, with what ``generate()`` needs as well.
    FilterLogitsProcessor : filters, and leaves the draw to Hugging Face.

    Notes
    -----
    The step of a draw is the row's true length, its tokens without left padding; the stream is the
    row's place in the batch, or the one given. So the same seed, stream and prompt draw alike,
    whatever the rest of the batch and the padding. Two rows of one prompt differ by their stream.

    A processor is made for one generation. In another one, such as each 30-second segment of
    Whisper's long form, it draws with the next draw index (docs/law.md). With `streams`, that one
    has to have as many rows; with an `attention_mask`, the same prompts.

    What a setting such as `repetition_penalty` looks at is read from the rows in each step: the
    prompt is what a row had when the generation began, without its left padding, the output the
    rest. Of an encoder-decoder model both are tokens of the decoder. What a setting such as
    `mirostat` remembers begins again with each generation.

    It has to be the last processor, and belongs under ``do_sample=False``: `generate_kwargs` sees
    to both. If a later processor replaces a drawn token, the next call raises RuntimeError; a
    replaced last token is not seen. What the model's own configuration or the caller asks of
    Hugging Face apart from sampling (penalties, forced or suppressed tokens, minimum lengths) runs
    before it, on the logits it then draws from. A row with NaN, +inf or no finite score always
    raises.

    It does not work with beam search: `generate_kwargs` refuses beams, and so does a processor made
    by hand that knows its batch, from a mask or streams. Without either it cannot tell a beam from
    a row, and row i of the prompts is drawn with stream i * num_beams.
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
        raw: bool = False,
        eos_token_id: Any = None,
        grammar: Any = None,
    ) -> None:
        check_sampler(sampler)
        # A copy of its own: the caller's step counter is the caller's. An invalid row cannot be
        # flagged in the middle of a text.
        fresh = {"seed": None} if engine_of(sampler).seed_is_fresh else {}
        self.sampler = sampler.replace(on_invalid="raise", **fresh)
        self._streams = check_numbers("streams", streams, None)
        self._lengths = RowLengths(attention_mask)
        self._top = None if logprobs is None else check_logprobs(logprobs)
        check_flag("raw", raw)
        self._raw = raw
        self._eos_ids = check_eos_ids(eos_token_id)
        self._grammars = None if grammar is None else Grammars(grammar)
        self._draw_index = -1  # of the last generation
        self._records: list[Record] = []  # in order
        self._running: dict[int, Record] = {}  # by `Caller.key`
        self._use = Use()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sampler!r})"

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self.sampler.seed

    @property
    def samples(self) -> TensorSamples:
        """What was drawn, one column per new token: those that `generate` returns.

        Tensors of shape (batch, new), top lists (batch, new, logprobs). After the end of a row they
        hold what `Samples` has for an invalid row: token -1, log-probability NaN.

        Without `eos_token_id`, the draws of assisted decoding may go on after the end of the text.

        Raises
        ------
        RuntimeError
            If nothing was drawn, if nothing was recorded (``logprobs=None``), or there was more
            than one generation.
        """
        every = self.generations
        if len(every) > 1:
            raise RuntimeError(
                f"this processor has drawn {len(every)} generations: read `generations`, one "
                "Samples for each, or call generate_kwargs for every prompt"
            )
        return every[0]

    @property
    def generations(self) -> tuple[TensorSamples, ...]:
        """What was drawn in each generation, in order: `samples` for each.

        Raises
        ------
        RuntimeError
            As `samples`, except for the number of generations.
        """
        if self._top is None:
            raise RuntimeError("nothing was recorded, because `logprobs` is None")
        if not self._records:
            if self._use.handed_out and not self._use.called:
                raise RuntimeError(
                    "generate() never called this processor, so the sampler drew nothing: "
                    "generate_batch and cache_implementation='paged' ignore the caller's processors"
                )
            raise RuntimeError("nothing has been drawn yet")
        return tuple(record.samples(self._eos_ids) for record in self._records)

    def __call__(self, input_ids: torch.LongTensor | None, scores: Any) -> torch.Tensor:
        """Return scores that leave each row's drawn token, at 0, no rival.

        The others get half the lowest finite number of the dtype, or -inf where they had that.

        Parameters
        ----------
        input_ids : tensor of shape (batch, length), int64, or None
            The rows so far. None draws without them, at the next step of its own sampler, and
            records nothing.
        scores : tensor of shape (batch, vocab), float32
            Never written to. They may require grad: a token has no gradient.

        Returns
        -------
        tensor of shape (batch, vocab)

        Raises
        ------
        TypeError
            If the scores are not a tensor.
        ValueError
            If a row is invalid, the batch is not that of the streams or the mask, or the mask not
            that of the prompt.
        RuntimeError
            If a token of the rows is neither the one drawn nor padding after the end of its row.
        """
        self._use.called = True
        if not isinstance(scores, torch.Tensor):
            kind = _inputs.kind_of(scores)
            raise TypeError(f"`scores` have to be a torch tensor, but are {kind}")
        tokens = self._draw(input_ids, scores).tokens
        # Not -inf for all others: prompt lookup asks the processors which tokens are forbidden, and
        # takes -inf, or the lowest finite score, for that. -inf stays -inf.
        drawn: torch.Tensor = scores.clamp(max=torch.finfo(scores.dtype).min / 2)
        drawn[torch.arange(len(scores)), torch.from_numpy(tokens[:, 0])] = 0.0
        return drawn

    def _draw(
        self,
        input_ids: Any,
        scores: torch.Tensor,
        unfinished: npt.NDArray[np.bool_] | None = None,
        text: Text | None = None,
    ) -> Samples:
        """Draw one token per row and record it, if that is wanted: arrays of shape (batch, 1).

        `unfinished` are the rows that go on, where the caller's loop knows; `text` is what may not
        come next in the only row, which may have been there before.
        """
        source = _inputs.read(scores, name="scores", draws=True)
        _inputs.check_rows(source, "scores", (2,))
        batch = source.batch
        engine = engine_of(self.sampler)
        if input_ids is None:
            if self._grammars is not None:
                raise ValueError("`grammar` follows the rows: `input_ids` cannot be None")
            needs_rows = engine.needs_history or (engine.memory and engine.memory.setting)
            if needs_rows:
                raise no_rows(needs_rows)
            if self._streams is not None:
                check_batch("streams", len(self._streams), batch)
            tokens = engine.draw(source, given=Given(self._streams), name="scores")
            return Samples(tokens[:, None])
        check_rows(input_ids)
        caller = Caller()
        if caller.processors is not None and batch == 2 * len(input_ids) > 0:
            raise ValueError(
                f"`scores` have {batch} rows for {batch // 2} texts, because classifier-free "
                "guidance runs after this processor: switch it off with guidance_scale=1, or draw "
                "from the guided scores in a loop of your own"
            )
        check_batch("input_ids", len(input_ids), batch)
        steps = self._lengths.of(input_ids, proposed=caller.proposes)
        if self._streams is not None:
            if len(self._streams) != batch and self._draw_index >= 0:
                raise ValueError(
                    f"`streams` are for {len(self._streams)} rows, but another generation of the "
                    f"same processor has {batch}: leave them out where generate() writes several "
                    "texts, one after another"
                )
            check_batch("streams", len(self._streams), batch)
        record = self._running.get(caller.key)
        # What is proposed is not of the text until it is verified.
        if record is not None and not record.continues(input_ids, caller):
            record = None
        texts = None
        if engine.needs_history is not None:
            begun = caller.text_length if caller.proposes else input_ids.shape[1]
            begun = begun if record is None else record.prompt_length
            texts = texts_of(input_ids.cpu().numpy(), steps, begun, scores.shape[1])
        states = None
        if engine.memory is not None:
            states = None if record is None else record.states(input_ids.shape[1])
            states = list(initial_states(engine.memory, batch) if states is None else states)
        begins = record is None and not caller.proposes
        with BEGINNING if begins else contextlib.nullcontext():
            draw_index = self._draw_index + 1 if record is None else record.draw_index
            at = Given(self._streams, steps, np.full(batch, draw_index, np.uint64))
            at = at._replace(texts=texts, states=states)
            outputs = None if record is None else record.outputs
            if self._grammars is not None and not caller.proposes:
                if outputs is None:
                    outputs = self._grammars.start(input_ids, scores.shape[1])
                elif batch > 1 and unfinished is None:
                    unfinished = caller.unfinished()
                at = at._replace(mask=outputs.mask(input_ids, unfinished))
            if text is not None and text.draw:
                draw_index += text.draw
                words = text.mask(scores.shape[1])
                assert words is not None
                at = at._replace(
                    draws=np.full(batch, draw_index, np.uint64),
                    mask=words[None] if at.mask is None else at.mask & words,
                )
            if caller.proposes or (self._top is None and engine.memory is None):
                r = Samples(engine.draw(source, given=at, name="scores")[:, None])
            else:
                r = engine.sample(source, 1, self._top, raw=self._raw, given=at, name="scores")
            if begins:
                record = self._begin(input_ids, caller)
                record.outputs = outputs
        if record is not None and not caller.proposes:
            record.add(input_ids, r, caller)
        return r

    def _roll_back(self, length: int) -> None:
        """Expect rows of that length next, in the one generation of a loop of ours."""
        for record in self._running.values():
            record.roll_back(length)

    def _begin(self, rows: torch.Tensor, caller: Caller) -> Record:
        """Count and keep another generation."""
        self._draw_index += 1
        record = Record(rows, caller, self._draw_index)
        self._running = {key: other for key, other in self._running.items() if not other.is_over()}
        self._running[caller.key] = record
        if self._top is not None:
            self._records.append(record)
        return record

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_running": {}}  # no generation goes on in another process


@helps
def generate_kwargs(
    sampler: Sampler,
    *,
    attention_mask: Any = None,
    streams: Any = None,
    logprobs: int | None = 0,
    raw: bool = False,
    eos_token_id: Any = None,
    grammar: Any = None,
    logits_processor: Iterable[Any] = (),
) -> dict[str, Any]:
    """Return the keyword arguments that make ``model.generate()`` draw with `sampler`.

    Every setting of Hugging Face's own sampling is among them at a value that does nothing, so
    that giving one of them twice is a TypeError ("multiple values") and not a second filter; beams,
    watermarks, `penalty_alpha` and `dola_layers` too, which a draw of our own leaves without
    effect. So are the processors of Hugging Face's for which the sampler has a setting that is on,
    such as `repetition_penalty`: nothing is applied twice.

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
    raw : bool
        Whether it has the figures under the model's own softmax and the kept mass as well.
    eos_token_id : int or sequence of int, optional
        The ids that end a row, for generation and for `samples` alike.
    grammar : llguidance.LLMatcher, xgrammar.CompiledGrammar or any other, optional
        What the outputs may be, such as JSON: `json_grammar`. A list has one per row, or None.
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

    See Also
    --------
    filter_kwargs : our filters before Hugging Face's own draw.
    generate : a plain loop of our own.
    score : the same figures for a text that exists.

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
        raw=raw,
        eos_token_id=eos_token_id,
        grammar=grammar,
    )
    before = check_processors(logits_processor)
    processor._use.warn_unless_called(processor, "so the sampler drew nothing")
    eos = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
    return {
        "logits_processor": LogitsProcessorList([*before, processor]),
        **OUR_DRAW,
        **OTHER_ALGORITHMS,
        **ours(sampler),
        "watermarking_config": None,  # it would run after the draw, and change nothing
        **eos,
    }


def no_rows(setting: str) -> ValueError:
    """Return the error for a setting that depends on the text, where there are no `input_ids`."""
    return ValueError(f"`{setting}` depends on the text so far: give the processor `input_ids`")


def check_processors(processors: Any) -> list[Any]:
    wanted = "an iterable of logits processors"
    if not isinstance(processors, Iterable):
        kind = _inputs.kind_of(processors)
        raise TypeError(f"`logits_processor` has to be {wanted}, but is {kind}: put it in a list")
    before = list(processors)
    for processor in before:
        if not callable(processor) or isinstance(processor, (Sampler, SamplingLogitsProcessor)):
            kind = _inputs.kind_of(processor)
            raise TypeError(
                "`logits_processor` has to hold processors that run before the draw, but holds "
                f"{kind}"
            )
    return before
