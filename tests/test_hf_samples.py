"""What was drawn, `score`, and a loop of our own: each against `Sampler.sample` on the logits."""

import copy
import dataclasses
import gc
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.modeling_outputs import CausalLMOutput

import tiny
from sampler import Sampler, Samples, _core, hf
from sampler.hf import SamplingLogitsProcessor, _sampling, expand_inputs, generate_kwargs, score
from tiny import (
    CACHE_NAME,
    NEVER,
    NEW,
    VOCAB,
    Puts,
    by_hand,
    count,
    encoder_inputs,
    label,
    padded,
    prompts,
    same_samples,
)

HOT = Sampler(temperature=2.0, top_p=0.95, seed=7)
BLANK = {
    "tokens": -1, "logprobs": math.nan, "ranks": 0, "n_kept": 0, "entropy": math.nan,
    "top_ids": -1, "top_logprobs": math.nan,
    "raw_logprobs": math.nan, "raw_ranks": 0, "log_mass": math.nan,
    "raw_top_ids": -1, "raw_top_logprobs": math.nan,
}  # fmt: skip


def run(model, inputs, s, *, ends=None, logprobs=2, **more):
    """All that `model.generate` returns, and the processor."""
    mask = None if model.config.is_encoder_decoder else inputs["attention_mask"]
    kwargs = generate_kwargs(s, attention_mask=mask, logprobs=logprobs, raw=True, eos_token_id=ends)
    out = model.generate(
        **inputs, **kwargs, **{"max_new_tokens": NEW, **more},
        return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    return out, kwargs["logits_processor"][-1]


def samples_by_hand(model, inputs, s, out, ends=(), logprobs=2, logits=None, draw=0):
    """What `samples` should be, from the sampler and the logits of `generate`."""
    if model.config.is_encoder_decoder:
        lengths, new = np.ones(len(out.sequences), int), out.sequences[:, 1:].numpy()
    else:
        lengths = inputs["attention_mask"].sum(dim=1).numpy()
        new = out.sequences[:, inputs["input_ids"].shape[1] :].numpy()
    steps = [
        tiny.sample(s, rows, lengths + t, logprobs, draw)
        for t, rows in enumerate(logits or out.logits)
    ]
    ended = np.zeros(new.shape, bool)
    ended[:, 1:] = np.logical_or.accumulate(np.isin(new, ends), axis=1)[:, :-1]
    fields = {}
    for name, blank in BLANK.items():
        values = [getattr(r, name) for r in steps]
        if values[0] is not None:
            fields[name] = np.stack(values, axis=1)
            fields[name][ended] = blank
    assert np.array_equal(fields["tokens"], np.where(ended, -1, new))
    return Samples(**fields)


def check_equal(a, b):
    assert [f.name for f in dataclasses.fields(Samples)] == [
        *BLANK,
        "state",
        "kept_ids",
        "kept_indptr",
    ]
    for name in BLANK:
        x, y = getattr(a, name), getattr(b, name)
        if x is None or y is None:
            assert x is y, name
            continue
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype, name
        assert x.shape == y.shape, name
        assert x.tobytes() == y.tobytes() or np.array_equal(x, y, equal_nan=True), name


# ------------------------------------------------------------------------------ what was drawn


@pytest.mark.parametrize("logprobs", [0, 1, 5, VOCAB, VOCAB + 3])
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 2.0}, {"top_k": 3, "ties": "all"}, {"temperature": 0.8, "top_p": 0.9}],
    ids=str,
)
def test_samples(model, settings, logprobs):
    s = Sampler(**settings, seed=7)
    for inputs in (prompts(), padded(3, 9, 6), prompts(1)):
        out, processor = run(model, inputs, s, logprobs=logprobs)
        r = processor.samples
        check_equal(r, samples_by_hand(model, inputs, s, out, logprobs=logprobs))
        batch, length = inputs["input_ids"].shape
        assert r.tokens.tolist() == out.sequences[:, length:].tolist()
        for lists in (r.top_ids, r.raw_top_logprobs):
            assert lists.shape == (batch, NEW, logprobs) if logprobs else lists is None


def test_raw_figures_are_none_unless_asked_for(model):
    inputs = prompts(2)
    more = {"max_new_tokens": 3, "return_dict_in_generate": True}
    found = []
    for raw in ({}, {"raw": False}, {"raw": True}):
        how = {"logprobs": 2, **raw}
        kwargs = generate_kwargs(HOT, attention_mask=inputs["attention_mask"], **how)
        out = model.generate(**inputs, **kwargs, **more)
        ours = hf.generate(model, **inputs, sampler=HOT, **more, **how).samples
        check_equal(kwargs["logits_processor"][-1].samples, ours)
        found.append(ours)
        scored = score(model, out.sequences, HOT, prompt_length=7, **how)
        for r in (ours, scored):
            for name in ("raw_logprobs", "raw_ranks", "log_mass", "raw_top_ids"):
                assert (getattr(r, name) is not None) == (raw == {"raw": True}), name
    check_equal(found[0], found[1])
    assert torch.equal(found[0].logprobs, found[2].logprobs)


@pytest.mark.parametrize("raw", [None, 1, "yes"])
def test_bad_raw(model, raw):
    form = "^`raw` has to be True or False, but is "
    for call in (
        lambda: SamplingLogitsProcessor(HOT, raw=raw),
        lambda: score(model, torch.ones(1, 5).long(), HOT, raw=raw),
        lambda: hf.generate(model, **prompts(1), sampler=HOT, raw=raw),
        lambda: HOT.sample([0.0, 1.0], raw=raw),
        lambda: HOT.score([0.0, 1.0], 0, raw=raw),
    ):
        with pytest.raises(TypeError, match=form):
            call()


def test_samples_of_encoder_decoder(encoder_decoder):
    inputs = encoder_inputs()
    out, processor = run(encoder_decoder, inputs, HOT)
    check_equal(processor.samples, samples_by_hand(encoder_decoder, inputs, HOT, out))


def test_nothing_recorded(model):
    inputs = prompts()
    recorded, _ = run(model, inputs, HOT)
    out, processor = run(model, inputs, HOT, logprobs=None)
    assert torch.equal(out.sequences, recorded.sequences)
    with pytest.raises(RuntimeError, match=r"^nothing was recorded, because `logprobs` is None$"):
        _ = processor.samples
    processor = SamplingLogitsProcessor(HOT)
    nothing = r"^nothing has been drawn yet$"
    with pytest.raises(RuntimeError, match=nothing):
        _ = processor.samples
    processor(None, torch.zeros(1, VOCAB))  # without rows there is no place to record it at
    with pytest.raises(RuntimeError, match=nothing):
        _ = processor.samples


@pytest.mark.parametrize("logprobs", [-1, 1.0, True, "1"])
def test_bad_logprobs(logprobs):
    for make in (SamplingLogitsProcessor, generate_kwargs):
        with pytest.raises((TypeError, ValueError), match=r"^`logprobs` has to be an integer >= 0"):
            make(HOT, logprobs=logprobs)


@pytest.mark.parametrize("ends", [1.0, [1.0], "1", [-1], -1, True, [None], torch.tensor([1.0])])
def test_bad_eos_token_id(ends):
    for make in (SamplingLogitsProcessor, generate_kwargs):
        with pytest.raises((TypeError, ValueError), match=r"^`eos_token_id` has to be an integer"):
            make(HOT, eos_token_id=ends)


# ------------------------------------------------------------------------------ rows that end


@pytest.mark.parametrize("pad", [0, "the end"])
@pytest.mark.parametrize("ends", [[2], [2, 5], [2, 5, 8], [2, 5, 8, 11]], ids=str)
def test_rows_that_end(model, ends, pad):
    # One row after the other ends, then another one twice over.
    inputs = padded(3, 9, 6, 4)
    text = run(model, inputs, HOT)[0].sequences[:, 9:].tolist()
    ends = [text[i % 4][place] for i, place in enumerate(ends)]
    for given in (ends, tuple(ends), torch.tensor(ends)) if len(ends) > 1 else (ends, ends[0]):
        more = {"pad_token_id": ends[0] if pad == "the end" else pad}
        if isinstance(given, tuple):
            given = list(given)
        out, processor = run(model, inputs, HOT, ends=given, **more)
        r = processor.samples
        check_equal(r, samples_by_hand(model, inputs, HOT, out, ends))
        assert r.tokens.shape == (4, out.sequences.shape[1] - 9)
        assert (r.tokens == -1).any()


def test_all_rows_end_early(model):
    inputs = padded(3, 9, 6)
    text = run(model, inputs, HOT)[0].sequences[:, 9:].tolist()
    ends = [text[0][1], text[1][4], text[2][2]]
    out, processor = run(model, inputs, HOT, ends=ends)
    assert out.sequences.shape == (3, 14)
    check_equal(processor.samples, samples_by_hand(model, inputs, HOT, out, ends))
    ends = [row[0] for row in text]
    out, processor = run(model, inputs, HOT, ends=ends)
    assert processor.samples.tokens.tolist() == [[end] for end in ends]


def test_a_lone_row_that_ends(model):
    inputs = prompts(1)
    text = run(model, inputs, HOT)[0].sequences[0, 7:].tolist()
    out, processor = run(model, inputs, HOT, ends=text[4])
    check_equal(processor.samples, samples_by_hand(model, inputs, HOT, out, text[4]))
    assert processor.samples.tokens.shape == (1, text.index(text[4]) + 1)


@pytest.mark.parametrize("pad", [0, 5])
def test_ends_over_many_texts(model, pad):
    # So hot that padding is drawn as text here and there.
    inputs, padding_as_text = prompts(3), 0
    for seed in range(80):
        s = Sampler(temperature=5.0, seed=seed)
        out, processor = run(model, inputs, s, ends=5, pad_token_id=pad, max_new_tokens=30)
        r = processor.samples
        check_equal(r, samples_by_hand(model, inputs, s, out, 5))
        padding_as_text += (r.tokens == 0).any() and (r.tokens == -1).any()
    assert padding_as_text > 3


@pytest.mark.parametrize("pad", [0, 5])
def test_ends_are_seen_by_the_padding(model, pad, monkeypatch):
    monkeypatch.setattr(model.generation_config, "eos_token_id", 5)
    monkeypatch.setattr(model.generation_config, "pad_token_id", pad)
    inputs, seen = prompts(3), 0
    for seed in range(80):
        s = Sampler(temperature=5.0, seed=seed)
        out, processor = run(model, inputs, s, max_new_tokens=30)
        want = samples_by_hand(model, inputs, s, out, 5)
        drawn = np.stack([s.sample(x, steps=7 + t).tokens for t, x in enumerate(out.logits)], 1)
        ended = want.tokens == -1
        # What can be known: padding shows in the token before the last one, and was not drawn.
        if (drawn[ended] == pad).any() or (ended.sum(axis=1) == 1).any():
            continue
        check_equal(processor.samples, want)
        seen += ended.any()
    assert seen > 20


# -------------------------------------------------------------------- a processor used again


@pytest.mark.parametrize("batch", [1, 3])
def test_another_generation_draws_afresh(model, batch):
    # As each segment of Whisper's long form: equal random numbers gave equal texts.
    processor, same = SamplingLogitsProcessor(HOT, logprobs=2, raw=True), prompts(batch)
    unrecorded, outs = SamplingLogitsProcessor(HOT, logprobs=None), []
    for inputs, new in (
        (same, NEW),
        (same, 1),  # the same tensors, and other ones of the same ids
        (same, 1),
        (prompts(batch), 5),
        (prompts(batch), NEW),
        ({name: value[:, :7] for name, value in prompts(batch, 9).items()}, 5),  # a slice, twice
        ({name: value[:, :7] for name, value in prompts(batch, 9).items()}, NEW),
        ({name: value[:, -7:].clone() for name, value in prompts(batch, 29).items()}, NEW),
        ({name: value[:, -7:] for name, value in prompts(batch, 29).items()}, 5),  # cut on the left
        (prompts(batch, seed=1), 5),
        (prompts(batch, length=9), NEW),
        (prompts(batch, length=8, seed=2), NEW),
        (prompts(batch + 1, length=3), 4),
    ):
        for drawing in (processor, unrecorded):
            out = model.generate(
                **inputs, logits_processor=LogitsProcessorList([drawing]), do_sample=False,
                max_new_tokens=new, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            outs.append((inputs, out))
        assert torch.equal(out.sequences, outs[-2][1].sequences)
        assert len(processor.generations) == len(outs) // 2
    for draw, ((inputs, out), r) in enumerate(zip(outs[::2], processor.generations, strict=True)):
        check_equal(r, samples_by_hand(model, inputs, HOT, out, draw=draw))
    with pytest.raises(RuntimeError, match=r"has drawn 13 generations: read `generations`"):
        _ = processor.samples


@pytest.mark.parametrize("how", [
    {}, {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}, {"assistant_model": "itself"}
], ids=str)  # fmt: skip
def test_another_assisted_generation_draws_afresh(model, how, monkeypatch):
    monkeypatch.setattr(model.generation_config, "num_assistant_tokens", 4)
    row = prompts(1, 6)["input_ids"].repeat(1, 5)
    mask, cool = torch.ones_like(row), HOT.replace(temperature=0.5)
    if how.get("assistant_model"):
        how = {"assistant_model": model}
    for more in ({}, how, {"max_new_tokens": 1}, {**how, "max_new_tokens": 2}):
        kwargs = generate_kwargs(cool, attention_mask=mask)
        texts = [
            model.generate(
                row, attention_mask=mask, **kwargs, eos_token_id=NEVER,
                **{"max_new_tokens": 20, **(more if i else how)},
            )[0, 30:].tolist()
            for i in range(3)
        ]  # fmt: skip
        generations = kwargs["logits_processor"][-1].generations
        assert [r.tokens[0].tolist() for r in generations] == texts
        for i, text in enumerate(texts):
            assert text == by_hand(model, row[0].tolist(), cool, 0, len(text), draw=i)


@pytest.mark.parametrize("before", [
    lambda ids, x: x / 0.7, lambda ids, x: x + 1.0, lambda ids, x: x.log_softmax(-1),
    hf.FilterLogitsProcessor(temperature=0.7), "guidance",
], ids=label)  # fmt: skip
@pytest.mark.parametrize("how", [
    {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}, {"assistant_model": "itself"}
], ids=str)  # fmt: skip
def test_processors_before_the_draw_of_assisted_decoding(model, before, how):
    # Prompt lookup asks the processors about scores it made up, and they change these.
    row = prompts(1, 6)["input_ids"].repeat(1, 5)
    mask, texts = torch.ones_like(row), []
    more = {"guidance_scale": 1.5} if before == "guidance" else {}
    if "assistant_model" in how:
        how = {"assistant_model": model}
    for assistance in ({}, how):
        kwargs = generate_kwargs(
            HOT.replace(temperature=0.5), attention_mask=mask, eos_token_id=NEVER,
            logits_processor=[] if more else [before],
        )  # fmt: skip
        text = model.generate(
            row, attention_mask=mask, **kwargs, max_new_tokens=20, **more, **assistance
        )
        texts.append(text[0, 30:].tolist())
        assert kwargs["logits_processor"][-1].samples.tokens.tolist() == [texts[-1]]
    if before != "guidance":  # whose cache goes wrong under assisted decoding
        assert texts[0] == texts[1]


@pytest.mark.parametrize("how", [
    {}, {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}, {"assistant_model": "itself"}
], ids=str)  # fmt: skip
def test_prompts_that_are_views(model, how):
    # A slice of longer rows looks like candidates that are being verified.
    if how:
        how = {"assistant_model": model} if "assistant_model" in how else how
    many = prompts(1, 6)["input_ids"].repeat(4, 5)
    kwargs = generate_kwargs(HOT, eos_token_id=NEVER)
    processor, texts = kwargs["logits_processor"][-1], []
    cases = [many[:1].clone(), many[:1], many[:1], many[1:2], *(many[:1, :k] for k in (6, 7, 8))]
    for draw, view in enumerate(cases):
        for new in (1, 9):
            text = model.generate(
                view, attention_mask=torch.ones_like(view), **kwargs, max_new_tokens=new, **how
            )[0, view.shape[1] :].tolist()
            want = by_hand(model, view[0].tolist(), HOT, 0, new, 2 * draw + (new == 9))
            assert text == want
            texts.append(text)
    assert [r.tokens[0].tolist() for r in processor.generations] == texts


class Nests(StoppingCriteria):
    """A criterion, processor and streamer that writes a text in the middle of another one."""

    def __init__(self, write):
        self.write = write

    def __call__(self, input_ids, scores):
        self.write()
        return scores if isinstance(scores, torch.Tensor) else torch.zeros(len(input_ids)).bool()

    def put(self, value):
        self.write()

    def end(self):
        pass


@pytest.mark.parametrize("where", ["logits_processor", "stopping_criteria", "streamer"])
@pytest.mark.parametrize("outer", ["plain", "draft", "lookup", "greedy"])
@pytest.mark.parametrize("inner", ["generate", "loop", "same kwargs"])
def test_a_text_within_a_text(model, where, outer, inner):
    # The inner generation read the outer one's loop off the stack.
    batch = 3 if outer in ("plain", "greedy") and where != "streamer" else 1
    prompt, ends = prompts(batch)["input_ids"].repeat(1, 2), [7, 8, 9, 10, 11, 12, 13, 14, 15]
    alone = model.generate(
        **prompts(3, seed=5), **generate_kwargs(HOT), max_new_tokens=4, eos_token_id=ends
    )
    kwargs, written = generate_kwargs(HOT, eos_token_id=NEVER), []
    shown = alone[:, 7:].tolist()

    def write():
        if len(written) > 2:
            return
        more = {"max_new_tokens": 4, "eos_token_id": ends}
        if inner == "loop":
            more["return_dict_in_generate"] = True
            out = hf.generate(model, **prompts(3, seed=5), sampler=HOT, **more)
            written.append(out.sequences)
            assert np.where(out.samples.tokens < 0, 0, out.samples.tokens).tolist() == shown
            return
        given = kwargs if inner == "same kwargs" else generate_kwargs(HOT)
        given = {name: value for name, value in given.items() if name != "eos_token_id"}
        written.append(model.generate(**prompts(3, seed=5), **given, **more))
        if inner == "generate":
            r = given["logits_processor"][-1].samples
            assert np.where(r.tokens < 0, 0, r.tokens).tolist() == shown

    nest = Nests(write)
    assistance = {
        "plain": {}, "greedy": {}, "draft": {"assistant_model": model},
        "lookup": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    }[outer]  # fmt: skip
    mine = generate_kwargs(HOT, eos_token_id=NEVER) if inner != "same kwargs" else kwargs
    if outer == "greedy":
        mine = {"do_sample": False, "logits_processor": LogitsProcessorList()}
    if where == "logits_processor":
        mine["logits_processor"].insert(0, nest)
    else:
        assistance[where] = StoppingCriteriaList([nest]) if where == "stopping_criteria" else nest
    if inner == "same kwargs" and where == "logits_processor":
        return  # it would write within itself without end
    text = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), **mine, max_new_tokens=6, **assistance
    )
    assert written
    if inner != "same kwargs":
        assert all(torch.equal(one, alone) for one in written)
    if outer != "greedy":
        drawn = mine["logits_processor"][-1].generations
        draws = [
            i for i, r in enumerate(drawn) if r.tokens[:, :6].tolist() == text[:, 14:].tolist()
        ]
        assert draws == [0] or inner == "same kwargs"  # one that begins within comes first, perhaps
        for row in range(batch):
            ids = prompt[row].tolist()
            assert text[row, 14:].tolist() == by_hand(model, ids, HOT, row, 6, draws[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="POSIX")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_begins_a_generation():
    # The child waited for ever for a thread that only the parent has.
    scores, ids, holds, done = (
        torch.zeros(1, 9),
        torch.zeros(1, 2).long(),
        threading.Event(),
        threading.Event(),
    )

    def begin():
        with _sampling.BEGINNING:
            holds.set()
            done.wait()

    thread = threading.Thread(target=begin)
    thread.start()
    holds.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        SamplingLogitsProcessor(HOT)(ids, scores)
        os._exit(0)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


def test_two_threads_on_one_processor(model, monkeypatch):
    # Each is a generation; which is the first is theirs to say. Two whose first draws overlapped
    # once had the same number.
    kwargs, texts, meet = generate_kwargs(HOT), {}, threading.Barrier(2)
    sample_tokens = _core.sample_tokens

    def slowly(*given):
        time.sleep(0.02)
        return sample_tokens(*given)

    monkeypatch.setattr(_core, "sample_tokens", slowly)

    def write(row):
        ids = prompts(1, seed=row)["input_ids"]
        meet.wait()
        texts[row] = model.generate(ids, attention_mask=torch.ones_like(ids), **kwargs,
                                    max_new_tokens=12)[0, 7:].tolist()  # fmt: skip

    threads = [threading.Thread(target=write, args=(row,)) for row in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    recorded = [r.tokens[0].tolist() for r in kwargs["logits_processor"][-1].generations]
    assert sorted(recorded) == sorted(texts.values())
    for row, text in texts.items():
        ids = prompts(1, seed=row)["input_ids"][0].tolist()
        assert text == by_hand(model, ids, HOT, 0, 12, recorded.index(text))


def test_an_error_at_the_first_draw(model):
    processor, ids = SamplingLogitsProcessor(HOT), prompts(1)["input_ids"]
    with pytest.raises(ValueError, match="nan"):
        processor(ids, torch.full((1, VOCAB), math.nan))
    scores = torch.arange(float(VOCAB))[None] / 9
    token = processor(ids, scores).argmax().item()
    assert token == HOT.sample(scores[0], steps=7).tokens  # a draw that failed is none
    assert processor.samples.tokens.tolist() == [[token]]


def test_a_used_processor_is_pickled(model):
    for more in ({}, {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}):
        kwargs = generate_kwargs(HOT, eos_token_id=NEVER)
        ids = prompts(1)["input_ids"].repeat(1, 3)
        model.generate(ids, attention_mask=torch.ones_like(ids), **kwargs, **more, max_new_tokens=5)
        processor = kwargs["logits_processor"][-1]
        for copied in (pickle.loads(pickle.dumps(processor)), copy.deepcopy(processor)):
            assert copied.samples.tokens[:, :5].tolist() == processor.samples.tokens[:, :5].tolist()
            assert copied(ids, torch.zeros(1, VOCAB)).shape == (1, VOCAB)


@torch.no_grad()
def test_rows_that_end_in_a_loop_of_ones_own(model):
    # Which one has ended shows at the next call, and its padding is not of the text.
    processor, ids = SamplingLogitsProcessor(HOT), prompts(3)["input_ids"]
    buffer = torch.zeros(3, 20, dtype=torch.long)
    for length in range(7, 13):
        buffer[:, :length] = ids
        scores = processor(buffer[:, :length], model(ids).logits[:, -1].float())
        tokens = scores.argmax(-1)
        tokens[0] = tokens[0] if length < 9 else 0
        ids = torch.cat([ids, tokens[:, None]], dim=1)
    buffer.zero_()
    r = processor.samples
    assert (r.tokens >= 0).sum(axis=1).tolist() == [2, 6, 6]
    assert r.tokens[1:].tolist() == ids[1:, 7:].tolist()


@pytest.mark.parametrize("ids", [[[1, 2]], torch.zeros(2).long(), torch.zeros(1, 2, 3)], ids=str)
def test_no_rows(ids):
    with pytest.raises(TypeError, match=r"^`input_ids` have to be a 2-D tensor of ids, but are a"):
        SamplingLogitsProcessor(HOT)(ids, torch.zeros(1, VOCAB))


def test_a_draft_draws_what_is_drawn(model, monkeypatch):
    # In every generation of a processor, so that its candidates are taken.
    monkeypatch.setattr(model.generation_config, "num_assistant_tokens", 4)
    ids, kwargs = prompts(1)["input_ids"], generate_kwargs(HOT, eos_token_id=NEVER)
    calls = count(type(model), "forward", monkeypatch)
    for _ in range(3):
        calls.clear()
        model.generate(ids, attention_mask=torch.ones_like(ids), **kwargs, max_new_tokens=30,
                       assistant_model=model)  # fmt: skip
        assert len(calls) < 45  # about 5 for every 5 tokens; 5 for each where none is taken


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("buffered", [True, False])
@torch.no_grad()
def test_a_loop_of_ones_own(model, batch, listed, buffered):
    # One list of processors for all its texts.
    processor = SamplingLogitsProcessor(HOT)
    run = LogitsProcessorList([processor]) if listed else processor
    # The fourth is as long as what the text before would have been next, the last goes on from it.
    given = [prompts(batch)["input_ids"]] * 3 + [prompts(batch, 11, seed=5)["input_ids"], None]
    ids, buffer = given[0], torch.zeros(batch, 30, dtype=torch.long)
    for draw, prompt in enumerate(given):
        ids = torch.cat([ids, ids[:, :3]], dim=1) if prompt is None else prompt
        length = ids.shape[1]
        for _ in range(4):
            buffer[:, : ids.shape[1]] = ids
            rows = buffer[:, : ids.shape[1]] if buffered else ids
            scores = run(rows, model(ids).logits[:, -1].float())
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
        for row in range(batch):
            text = ids[row].tolist()
            assert text[length:] == by_hand(model, text[:length], HOT, row, 4, draw)
    assert [r.tokens.shape for r in processor.generations] == [(batch, 4)] * 5


def test_conversations_that_go_on(model):
    # On from one's own text, whole, cut, edited, or after another conversation: each a generation.
    kwargs = generate_kwargs(HOT)
    processor, draw = kwargs["logits_processor"][-1], 0

    def go_on(ids):
        nonlocal draw
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), **kwargs, max_new_tokens=4, eos_token_id=5
        )
        for row in range(len(ids)):
            new = out[row, ids.shape[1] :].tolist()
            new = new[: new.index(5) + 1] if 5 in new else new
            assert new == by_hand(model, ids[row].tolist(), HOT, row, len(new), draw)
        draw += 1
        assert len(processor.generations) == draw
        return out

    first, other = prompts(1)["input_ids"], prompts(1, seed=3)["input_ids"]
    text = go_on(first)
    edited = text.clone()
    edited[0, -1] = 9
    for ids in (text, text[:, :9], text[:, :9].clone(), edited, other, text, first, first[:, :5]):
        go_on(ids)
    batch = go_on(prompts(3)["input_ids"])
    go_on(batch)  # padding included


def test_made_up_scores_are_not_a_generation(model):
    # Prompt lookup proposes the end, cuts it off, and asks the model after all.
    ids = torch.tensor([[9, 8, NEVER - 1, 7, 9, 8]])
    more = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 2}
    ends = NEVER - 1
    for penalty in (1.0, 1.2):
        texts = []
        for lookup in ({}, more):
            kwargs = generate_kwargs(HOT, attention_mask=torch.ones(1, 6), eos_token_id=ends)
            texts.append(model.generate(
                ids, attention_mask=torch.ones_like(ids), **kwargs, max_new_tokens=9,
                repetition_penalty=penalty, **lookup,
            ).tolist())  # fmt: skip
            assert kwargs["logits_processor"][-1].samples.tokens.tolist() == [texts[-1][0][6:]]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("streams", [None, [4, 5]])
def test_another_generation_of_other_rows(model, streams):
    # With streams or a mask it cannot go on: which rows are left?
    processor = SamplingLogitsProcessor(HOT, streams=streams)
    more = {"logits_processor": LogitsProcessorList([processor]), "max_new_tokens": 2}
    model.generate(**prompts(2), **more, do_sample=False)
    if streams is None:
        model.generate(**prompts(1), **more, do_sample=False)
        return
    with pytest.raises(ValueError, match=r"^`streams` are for 2 rows, but another generation of"):
        model.generate(**prompts(1), **more, do_sample=False)


@pytest.mark.parametrize("logprobs", [0, None])
@pytest.mark.parametrize("masked", [True, False])
def test_a_draft_with_a_tokenizer_of_its_own(model, tokenizer, logprobs, masked):
    # Its rows are of other ids, and are no generation.
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    other = tiny.tokenizer(words[:8] + words[:8:-1])
    draft = tiny.llama(seed=1, hidden_size=16, vocab=VOCAB - 1)
    row = prompts(1, 6)["input_ids"].repeat(1, 3)
    mask = torch.ones_like(row)

    def run(**more):
        given = {"attention_mask": mask} if masked else {}
        kwargs = generate_kwargs(HOT, **given, logprobs=logprobs, eos_token_id=NEVER)
        out = model.generate(row, attention_mask=mask, **kwargs, max_new_tokens=NEW, **more)
        return out[0, 18:].tolist(), kwargs["logits_processor"][-1]

    plain, _ = run()
    text, processor = run(assistant_model=draft, tokenizer=tokenizer, assistant_tokenizer=other)
    assert text == plain
    if logprobs is not None:
        assert processor.samples.tokens.tolist() == [text]


def test_after_a_wrong_candidate_nothing_is_recorded(model):
    # Assisted decoding verifies all candidates, and ends at the first draw that is another token.
    row = prompts(1, 6)["input_ids"].repeat(1, 5)
    for seed in range(6):
        s = Sampler(temperature=1.5, seed=seed)
        for new in range(1, 8):
            kwargs = generate_kwargs(s, attention_mask=torch.ones_like(row), eos_token_id=NEVER)
            text = model.generate(
                row, attention_mask=torch.ones_like(row), **kwargs, max_new_tokens=new,
                prompt_lookup_num_tokens=6, max_matching_ngram_size=1,
            )[0, 30:].tolist()  # fmt: skip
            drawn = kwargs["logits_processor"][-1].samples.tokens[0].tolist()
            assert drawn[:new] == text
            assert text == by_hand(model, row[0].tolist(), s, 0, new)


# ------------------------------------------------------------------------ before the draw, seed


def test_samples_are_of_what_was_drawn_from(model, monkeypatch):
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 3.0)
    inputs = prompts(2, 9)
    out, processor = run(model, inputs, HOT)
    penalty = RepetitionPenaltyLogitsProcessor(3.0)
    logits = [penalty(out.sequences[:, : 9 + t], rows) for t, rows in enumerate(out.logits)]
    assert not torch.equal(logits[-1], out.logits[-1])
    check_equal(processor.samples, samples_by_hand(model, inputs, HOT, out, logits=logits))
    known = {
        "prompt_length": 9,
        "attention_mask": inputs["attention_mask"],
        "logprobs": 2,
        "raw": True,
    }
    r = score(model, out.sequences, HOT, **known, logits_processor=[penalty])
    same_samples(r, processor.samples)
    r = score(model, out.sequences, HOT, **known)
    assert not np.allclose(r.logprobs, processor.samples.logprobs, atol=1e-4)


def test_seed_of_a_processor(model):
    inputs, seeds = prompts(1), set()
    for _ in range(3):
        out, processor = run(model, inputs, Sampler(temperature=2.0))
        seeds.add(processor.seed)
        again, replay = run(model, inputs, Sampler(temperature=2.0, seed=processor.seed))
        assert torch.equal(again.sequences, out.sequences)
        check_equal(replay.samples, processor.samples)
    assert len(seeds) == 3


# --------------------------------------------------------------------------- an existing text


@pytest.mark.parametrize("settings", [
    {"temperature": 2.0, "top_p": 0.95}, {"top_k": 5, "ties": "all"},
    {"min_p": 0.01, "temperature": 1.5}, {"temperature": 0},
], ids=str)  # fmt: skip
def test_score(model, settings):
    s = Sampler(**settings, seed=7)
    for inputs in (prompts(), padded(3, 9, 6), padded(4)):
        out, processor = run(model, inputs, s)
        mask, length = inputs["attention_mask"], inputs["input_ids"].shape[1]
        known = {"prompt_length": length, "logprobs": 2, "raw": True}
        r = score(model, out.sequences, s, **known, attention_mask=mask)
        same_samples(r, processor.samples)
        assert [getattr(r, name).dtype for name in BLANK] == [
            getattr(processor.samples, name).dtype for name in BLANK
        ]
        whole = torch.cat([mask, torch.ones(len(mask), NEW)], dim=1)
        same_samples(score(model, out.sequences, s, **known, attention_mask=whole), r)
        if mask.all():
            same_samples(score(model, out.sequences, s, **known), r)


def test_score_of_streams(model):
    # Planted: coins of the streams 0 ... batch - 1.
    s = Sampler(xtc=(0.01, 0.5))
    inputs, streams = padded(3, 9, 6), [5, 2**63, 8]
    mask = inputs["attention_mask"]
    known = {"attention_mask": mask, "logprobs": 2, "raw": True}
    kwargs = generate_kwargs(s, streams=streams, **known)
    processor = kwargs["logits_processor"][-1]
    known["prompt_length"] = 9
    for draw in range(2):
        out = model.generate(**inputs, **kwargs, max_new_tokens=NEW)
        drawn = processor.generations[-1]
        made = processor.sampler
        same_samples(score(model, out, made, streams=streams, draws=draw, **known), drawn)
        for other in ({"draws": draw}, {"streams": streams, "draws": 7}):
            assert not torch.equal(score(model, out, made, **other, **known).ranks, drawn.ranks)


def test_score_of_rows_that_end(model):
    inputs = padded(3, 9, 6)
    text = run(model, inputs, HOT)[0].sequences[:, 9:].tolist()
    for ends in ([text[0][2], text[2][5]], [row[1] for row in text]):
        out, processor = run(model, inputs, HOT, ends=ends)
        known = {"prompt_length": 9, "logprobs": 2, "raw": True}
        known["attention_mask"] = inputs["attention_mask"]
        r = score(model, out.sequences, HOT, **known, eos_token_id=ends)
        same_samples(r, processor.samples)
        # An id of the end in the prompt ends nothing.
        ends.append(int(inputs["input_ids"][1, 4]))
        assert all(ends[-1] not in row for row in text)
        same_samples(score(model, out.sequences, HOT, **known, eos_token_id=ends), r)


def test_score_of_encoder_decoder(encoder_decoder):
    inputs = encoder_inputs()
    out, processor = run(encoder_decoder, inputs, HOT)
    r = score(encoder_decoder, out.sequences, HOT, **inputs, logprobs=2, raw=True)
    same_samples(r, processor.samples)
    without = {"input_ids": inputs["input_ids"]}
    r = score(encoder_decoder, out.sequences, HOT, **without, logprobs=2, raw=True)
    assert np.allclose(r.logprobs[0], processor.samples.logprobs[0], atol=1e-4)
    assert not np.allclose(r.logprobs[1], processor.samples.logprobs[1], atol=1e-4)


def test_score_of_a_plain_text(model):
    ids = prompts(2, 9)["input_ids"]
    with torch.no_grad():
        logits = model(ids).logits
    r = score(model, ids, HOT, logprobs=3, raw=True)
    assert r.tokens.tolist() == ids[:, 1:].tolist()
    assert r.top_ids.shape == (2, 8, 3)
    for t in range(8):
        want = HOT.score(logits[:, t], ids[:, t + 1].tolist(), logprobs=3, raw=True)
        same_samples(Samples(**{name: getattr(r, name)[:, t] for name in BLANK}), want)
    # Left padding that goes on after `prompt_length`: padding is not scored.
    left, mask = torch.zeros(2, 12).long(), torch.zeros(2, 12).long()
    left[0, 3:], mask[0, 3:] = ids[0], 1
    left[1, 6:], mask[1, 6:] = ids[1, :6], 1
    r_left = score(model, left, HOT, attention_mask=mask, logprobs=3, raw=True)
    assert np.allclose(r_left.raw_logprobs[0, 3:], r.raw_logprobs[0], atol=1e-4)
    assert np.allclose(r_left.raw_logprobs[1, 6:], r.raw_logprobs[1, :5], atol=1e-4)
    assert torch.isnan(r_left.raw_logprobs[0, :2]).all()
    assert torch.isnan(r_left.raw_logprobs[1, :5]).all()


@pytest.mark.parametrize("lengths", [(9, 6), (7, 6), (1, 9), (1, 1)], ids=str)
def test_score_of_a_text_padded_on_the_right(model, lengths):
    # Only a mask of the whole text can tell.
    ids = prompts(2, 9)["input_ids"]
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    r = score(model, ids * mask, HOT, attention_mask=mask, logprobs=3, raw=True)
    want = score(model, ids, HOT, logprobs=3, raw=True)
    for name, blank in BLANK.items():
        getattr(want, name)[mask[:, 1:].numpy() == 0] = blank
    same_samples(r, want)


def test_score_of_a_removed_token(model):
    out, _ = run(model, prompts(), HOT)
    r = score(model, out.sequences, Sampler(top_k=1), prompt_length=7, raw=True)
    argmax = torch.stack(out.logits, dim=1).argmax(dim=-1) == out.sequences[:, 7:]
    assert 0 < argmax.sum() < argmax.numel()
    assert np.array_equal(r.logprobs, np.where(argmax, 0.0, -math.inf))
    assert np.array_equal(r.ranks == 1, argmax)
    assert torch.isfinite(r.raw_logprobs).all()
    assert (r.n_kept == 1).all()


def test_score_is_one_forward_pass(model, encoder_decoder, monkeypatch):
    inputs = prompts()
    out, _ = run(model, inputs, HOT)
    calls = count(model, "forward", monkeypatch)
    score(model, out.sequences, HOT, prompt_length=7)
    assert len(calls) == 1
    # What the cache of the model, or its gradients, would be is not asked for.
    text = run(encoder_decoder, encoder_inputs(), HOT)[0].sequences
    calls = count(encoder_decoder, "forward", monkeypatch)
    score(encoder_decoder, text, HOT, **encoder_inputs())
    assert len(calls) == 1


IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


@pytest.mark.parametrize("given, error, words", [
    ({"sampler": None}, TypeError, "^`sampler` has to be a Sampler"),
    ({"sampler": 7}, TypeError, "^`sampler` has to be a Sampler"),
    ({"sequences": IDS.float()}, TypeError, "^`sequences` have to be a tensor of int64"),
    ({"sequences": IDS.int()}, TypeError, "^`sequences` have to be a tensor of int64"),
    ({"sequences": IDS.tolist()}, TypeError, "^`sequences` have to be a tensor of int64"),
    ({"sequences": IDS.numpy()}, TypeError, "^`sequences` have to be a tensor of int64"),
    ({"sequences": IDS[0]}, ValueError, r"^`sequences` have to be 2-D, but have shape \(4,\)"),
    ({"sequences": IDS[None]}, ValueError, "^`sequences` have to be 2-D"),
    ({"sequences": IDS[:, :1]}, ValueError, r"^`prompt_length` has to be an integer in \[1, 1\)"),
    ({"prompt_length": 0}, ValueError, r"^`prompt_length` has to be an integer in \[1, 4\)"),
    ({"prompt_length": 4}, ValueError, "^`prompt_length` has to be"),
    ({"prompt_length": -1}, ValueError, "^`prompt_length` has to be"),
    ({"prompt_length": 1.0}, TypeError, "^`prompt_length` has to be"),
    ({"prompt_length": True}, TypeError, "^`prompt_length` has to be"),
    ({"attention_mask": torch.ones(2, 5)}, ValueError, "^`attention_mask` has to .* 4 .* 5$"),
    ({"attention_mask": torch.ones(3, 4)}, ValueError, "^`attention_mask` has to .* 2 .* 3$"),
    ({"attention_mask": torch.ones(4)}, ValueError, "^`attention_mask` has to be 2-D"),
    ({"attention_mask": "11"}, TypeError, "^`attention_mask` has to be an array"),
    ({"logprobs": -1}, ValueError, "^`logprobs` has to be an integer >= 0"),
    ({"logprobs": 1.0}, TypeError, "^`logprobs` has to be an integer >= 0"),
    ({"eos_token_id": 5.0}, TypeError, "^`eos_token_id` has to be an integer"),
    ({"eos_token_id": [5.0]}, TypeError, "^`eos_token_id` has to be an integer"),
    ({"eos_token_id": -1}, ValueError, "^`eos_token_id` has to be an integer"),
], ids=str)  # fmt: skip
def test_score_of_bad_input(model, given, error, words):
    with pytest.raises(error, match=words):
        score(model, **{"sequences": IDS, "sampler": HOT, **given})


# ------------------------------------------------------------------------- a loop of our own


class Short:
    """A criterion: stop every row after 11 tokens."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 11)


def plain(model, inputs, **more):
    mask = None if model.config.is_encoder_decoder else inputs["attention_mask"]
    names = ("streams", "eos_token_id")
    ours = {name: more.pop(name) for name in names if name in more}
    kwargs = generate_kwargs(HOT, attention_mask=mask, **ours)
    kwargs["logits_processor"][:0] = more.pop("logits_processor", [])
    return model.generate(**inputs, **kwargs, **{"max_new_tokens": NEW, **more}).tolist()


def ours(model, inputs, **more):
    return hf.generate(model, **inputs, sampler=HOT, **{"max_new_tokens": NEW, **more})


@pytest.mark.parametrize("more", [
    {}, {"max_new_tokens": 1}, {"streams": [5, 2**64 - 1, 5]}, {"eos_token_id": [59, 60, 61, 62]},
    {"eos_token_id": list(range(0, VOCAB, 3))}, {"cache_implementation": "static"},
    {"use_cache": False}, {"repetition_penalty": 3.0}, {"min_new_tokens": 8, "eos_token_id": 60},
    {"logits_processor": [RepetitionPenaltyLogitsProcessor(3.0)]},
    {"stopping_criteria": StoppingCriteriaList([Short()])}, {"suppress_tokens": [81, 9]},
], ids=label)  # fmt: skip
def test_our_loop_is_hugging_faces(model, more):
    for inputs in (prompts(), padded(3, 9, 6)):
        assert ours(model, inputs, **more).tolist() == plain(model, inputs, **more)


@pytest.mark.parametrize("more", [{}, {"use_cache": False}, {"eos_token_id": [59, 60, 61, 62]}],
                         ids=str)  # fmt: skip
def test_our_loop_of_encoder_decoder(encoder_decoder, more):
    inputs = encoder_inputs()
    assert ours(encoder_decoder, inputs, **more).tolist() == plain(encoder_decoder, inputs, **more)


def test_our_loop_by_hand(model, encoder_decoder):
    inputs = padded(3, 9, 6)
    for row, text in enumerate(ours(model, inputs)[:, 9:].tolist()):
        ids = inputs["input_ids"][row, inputs["attention_mask"][row] == 1].tolist()
        assert text == by_hand(model, ids, HOT, row)
    inputs, start = encoder_inputs(), [encoder_decoder.config.decoder_start_token_id]
    for row, text in enumerate(ours(encoder_decoder, inputs)[:, 1:].tolist()):
        lone = {name: value[row : row + 1] for name, value in inputs.items()}
        assert text == by_hand(encoder_decoder, start, HOT, row, **lone)


def test_our_loop_from_embeddings(model):
    inputs = padded(3, 9, 6)
    embeds = model.get_input_embeddings()(inputs["input_ids"]).detach()
    given = {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}
    want = model.generate(**given, **generate_kwargs(HOT), max_new_tokens=NEW).tolist()
    assert ours(model, given).tolist() == want
    both = {**given, "input_ids": inputs["input_ids"]}
    assert ours(model, both).tolist() == plain(model, inputs)


def test_our_loop_gives_several_texts(model, encoder_decoder):
    inputs = padded(4, 6)
    many = plain(model, expand_inputs(inputs, 3))
    assert ours(model, inputs, num_return_sequences=3).tolist() == many
    assert len({tuple(text) for text in many}) == 6
    streams = [9, 8, 7, 6, 5, 4]
    want = plain(model, expand_inputs(inputs, 3), streams=streams)
    assert ours(model, inputs, num_return_sequences=3, streams=streams).tolist() == want
    inputs = encoder_inputs()
    many = plain(encoder_decoder, expand_inputs(inputs, 2))
    assert ours(encoder_decoder, inputs, num_return_sequences=2).tolist() == many


def test_our_loop_streams(model):
    streamer, inputs = Puts(), padded(3, 9)
    out = ours(model, inputs, streamer=streamer)
    prompt, *new = streamer.puts
    assert prompt == inputs["input_ids"].tolist()
    assert new == out[:, 9:].T.tolist()
    assert streamer.ended == 1


@pytest.mark.parametrize("more", [
    {"logits_processor": [lambda ids, x: x * (1.0 if ids.shape[1] < 12 else math.nan)]},
    {"sampler": None}, {"no_such_setting": 1}, {"streams": [0]}, {"logprobs": -1},
], ids=label)  # fmt: skip
def test_an_error_while_streaming_ends_the_streamer(model, more):
    # Or its reader would wait for ever.
    streamer = Puts()
    with pytest.raises((TypeError, ValueError)):
        hf.generate(model, **prompts(2), **{"sampler": HOT, "max_new_tokens": NEW, **more},
                    streamer=streamer)  # fmt: skip
    assert streamer.ended == 1


def test_an_error_reaches_who_reads_a_stream(model, tokenizer):
    streamer, errors = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60.0), []
    break_off = [lambda ids, x: x * (1.0 if ids.shape[1] < 12 else math.nan)]

    def write():
        try:
            ours(model, prompts(1), streamer=streamer, logits_processor=break_off)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    text = "".join(streamer)  # raises queue.Empty where nobody ends it
    thread.join()
    assert len(text.split()) == 5
    assert "nan" in str(errors[0])


def test_no_streamer(model):
    with pytest.raises(TypeError, match=r"^`streamer` has to be a streamer, but is an object$"):
        ours(model, prompts(1), streamer=object())


def test_our_loop_stops_at_a_string(model, tokenizer):
    inputs = prompts(1)
    text = plain(model, inputs)[0]
    stop = tokenizer.decode(text[10:12])
    more = {"stop_strings": [stop], "tokenizer": tokenizer}
    assert ours(model, inputs, **more).tolist() == plain(model, inputs, **more) == [text[:12]]
    criteria = StoppingCriteriaList([Short()])  # the first of the two counts
    assert ours(model, inputs, **more, stopping_criteria=criteria).tolist() == [text[:11]]


def test_our_loop_under_the_models_own_settings(model, monkeypatch):
    for name, value in {
        "do_sample": True, "temperature": 0.1, "top_k": 1, "num_beams": 3, "repetition_penalty": 3.0
    }.items():  # fmt: skip
        monkeypatch.setattr(model.generation_config, name, value)
    inputs = prompts()
    assert ours(model, inputs).tolist() == plain(model, inputs)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.0)
    assert ours(model, inputs).tolist() == plain(model, inputs)


@pytest.mark.parametrize("ends", [None, [59, 60, 61, 62], list(range(0, VOCAB, 3))], ids=str)
def test_our_loop_returns_everything(model, ends, monkeypatch):
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 3.0)
    inputs = prompts(3, 9)
    want, processor = run(model, inputs, HOT, ends=ends)
    more = {} if ends is None else {"eos_token_id": ends}
    out = ours(
        model, inputs, **more, logprobs=2, raw=True,
        return_dict_in_generate=True, output_scores=True, output_logits=True,
    )  # fmt: skip
    assert isinstance(out, hf.GenerateOutput)
    assert torch.equal(out.sequences, want.sequences)
    assert out.seed == 7
    check_equal(out.samples, processor.samples)
    assert all(map(torch.equal, out.logits, want.logits))
    assert len(out.scores) == len(out.logits) == len(want.logits)
    penalty = RepetitionPenaltyLogitsProcessor(3.0)
    for t, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        assert torch.equal(scores, penalty(out.sequences[:, : 9 + t], logits.clone()))


def test_the_cache_of_our_loop(model):
    inputs = prompts(2)
    out = ours(model, inputs, return_dict_in_generate=True, max_new_tokens=5)
    assert out.scores is None
    assert out.logits is None
    assert out.past_key_values.get_seq_length() == 7 + 5 - 1
    assert out.past_key_values is out.cache is out[CACHE_NAME]
    with torch.no_grad():
        last = model(out.sequences[:, -1:], **{CACHE_NAME: out.cache}).logits[:, -1]
        assert torch.allclose(last, model(out.sequences).logits[:, -1], atol=1e-4)
    # A text goes on where it was left.
    first = ours(model, inputs, return_dict_in_generate=True, max_new_tokens=5)
    rest = hf.generate(
        model, first.sequences, sampler=HOT, max_new_tokens=NEW - 5,
        attention_mask=torch.ones_like(first.sequences), **{CACHE_NAME: first.cache},
    )  # fmt: skip
    assert rest.tolist() == plain(model, inputs)


def test_our_loop_as_custom_generate(model, encoder_decoder):
    for lm, inputs in ((model, padded(3, 9, 6)), (encoder_decoder, encoder_inputs())):
        out = lm.generate(
            **inputs, custom_generate=hf.generate, sampler=HOT, max_new_tokens=NEW, do_sample=False
        )
        assert out.tolist() == plain(lm, inputs)
    more = {"custom_generate": hf.generate, "sampler": HOT, "max_new_tokens": NEW}
    out = model.generate(**prompts(), **more, logprobs=3, return_dict_in_generate=True)
    assert out.samples.top_ids.shape == (3, NEW, 3)
    for refused in ({"do_sample": True}, {"num_beams": 2}):
        with pytest.raises(ValueError, match=r"^`do_sample` has to be False and `num_beams` 1, "):
            model.generate(**prompts(), **more, **refused)


@pytest.mark.parametrize("name", ["temperature", "top_k", "do_sample", "num_beams", "top_p"])
def test_our_loop_refuses_hugging_faces_sampling(model, name):
    with pytest.raises(TypeError, match=f"^`{name}` has to be left out, because the sampler draws"):
        ours(model, prompts(), **{name: 1})


@pytest.mark.parametrize("inputs", [
    {"input_ids": IDS}, IDS.tolist(), "a text", IDS[0], IDS.numpy(),
], ids=str)  # fmt: skip
def test_our_loop_of_no_tensor(model, inputs):
    words = (
        r"^`inputs` has to be a tensor with a row for each text, but .*generate\(model, \*\*inputs"
    )
    with pytest.raises(TypeError, match=words):
        hf.generate(model, inputs, sampler=HOT, max_new_tokens=1)


def test_twice_as_many_scores_by_hand():
    with pytest.raises(ValueError, match=r"^`input_ids` has to be for 2 rows, but is for 1$"):
        SamplingLogitsProcessor(HOT)(torch.zeros(1, 3).long(), torch.zeros(2, VOCAB))


def test_our_loop_refuses_bad_input(model):
    inputs = prompts()
    for given, error, words in (
        ({"sampler": None}, TypeError, "^`sampler` has to be a Sampler"),
        ({"logprobs": -1}, ValueError, "^`logprobs` has to be"),
        ({"num_return_sequences": 0}, ValueError, "^`num_return_sequences` has to be"),
        ({"num_return_sequences": 2.0}, TypeError, "^`num_return_sequences` has to be"),
        ({"streams": [0, 1]}, ValueError, "^`streams` has to be for 3 rows, but is for 2"),
        ({"streams": [0, 1, 2.0]}, TypeError, "^`streams` has to be"),
        ({"no_such_setting": 1}, ValueError, "no_such_setting"),
    ):
        with pytest.raises(error, match=words):
            hf.generate(model, **inputs, **{"sampler": HOT, "max_new_tokens": 1, **given})


def test_fresh_seed_of_our_loop(model):
    inputs, seeds = prompts(), set()
    s = Sampler(temperature=2.0)
    for _ in range(3):
        out = hf.generate(
            model, **inputs, sampler=s, max_new_tokens=NEW, return_dict_in_generate=True
        )
        seeds.add(out.seed)
        again = hf.generate(model, **inputs, sampler=s.replace(seed=out.seed), max_new_tokens=NEW)
        assert torch.equal(again, out.sequences)
    assert len(seeds) == 3
    assert s.step == 0


# ----------------------------------------------------------------- traps, and what is refused


def test_score_of_a_compiled_model(model):
    # A wrapper hides the arguments of forward, position_ids among them.
    inputs, s = padded(3, 7, 5), Sampler(temperature=0.9, top_p=0.9, seed=7)
    kwargs = generate_kwargs(s, attention_mask=inputs["attention_mask"])
    out = model.generate(**inputs, **kwargs, max_new_tokens=8)
    compiled = torch.compile(model, backend="eager")
    try:
        for lm in (model, compiled):
            scored = score(lm, out, s, prompt_length=7, attention_mask=inputs["attention_mask"])
            drawn = kwargs["logits_processor"][-1].samples
            assert (scored.logprobs - drawn.logprobs).abs().max() < 1e-4
    finally:
        torch._dynamo.reset()


def test_score_of_a_model_that_hides_its_arguments(model):
    class Hiding(torch.nn.Module):
        config = model.config

        def forward(self, *args, **kwargs):
            return model(*args, **kwargs)

    with pytest.raises(TypeError, match=r"hides the arguments of its model's forward"):
        score(Hiding(), torch.ones(1, 5).long(), Sampler(seed=7))


def test_score_of_an_unknown_argument(model):
    with pytest.raises(TypeError, match=r"^neither `score` nor .* takes `promt_length`"):
        score(model, torch.ones(1, 5).long(), Sampler(seed=7), promt_length=3)


@pytest.mark.parametrize("token", [-100, -1, 199, 500])
def test_score_of_ids_outside_the_vocabulary(model, token):
    words = rf"^`sequences` have to hold ids in \[0, 199\), .* but row 0 has {token} at place 2$"
    with pytest.raises(ValueError, match=words):
        score(model, torch.tensor([[1, 2, token]]), Sampler(seed=7))


def test_score_of_no_rows(model):
    with pytest.raises(ValueError, match=r"^`sequences` have to hold at least one row"):
        score(model, torch.zeros(0, 5).long(), Sampler(seed=7))


def test_score_of_ids_beyond_a_narrower_head(model):
    # The configuration has a wider vocabulary than the model gives logits for.
    class Narrow(torch.nn.Module):
        config = model.config

        def forward(self, input_ids, attention_mask=None, use_cache=None, return_dict=None):
            return CausalLMOutput(logits=model(input_ids).logits[..., :50])

    ids = torch.tensor([[1, 60, 3, 4, 5], [1, 2, 3, 49, 60]])  # a prompt may have any
    words = (
        r"`sequences` have to hold ids in \[0, 50\), the width of the model's logits, but row 1 "
    )
    with pytest.raises(ValueError, match=words + "has 60 at place 4$"):
        score(Narrow(), ids, HOT, prompt_length=2)
    assert torch.isfinite(
        score(Narrow(), ids[:1], HOT, prompt_length=2, raw=True).raw_logprobs
    ).all()


def test_score_names_a_step_that_there_is(model):
    inputs = padded(3, 7)
    with pytest.raises(ValueError, match="row 0 at step 0 has nan"):
        score(
            model, inputs["input_ids"], Sampler(seed=7), attention_mask=inputs["attention_mask"],
            logits_processor=[lambda ids, x: x * float("nan")],
        )  # fmt: skip


class FirstRowStops(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.tensor([input_ids.shape[1] > 9] + [False] * (len(input_ids) - 1))


def test_rows_that_stop_without_an_end_go_on(model):
    # Only end tokens make Hugging Face pad.
    inputs, s = prompts(), Sampler(temperature=2.0, seed=7)
    stops = {"stopping_criteria": [FirstRowStops()], "max_new_tokens": 9}
    out, processor = run(model, inputs, s, **stops)
    r = hf.generate(model, **inputs, sampler=s, return_dict_in_generate=True, logprobs=2, **stops)
    assert torch.equal(r.sequences, out.sequences)
    assert (r.samples.tokens == out.sequences[:, 7:].numpy()).all()
    assert (processor.samples.tokens == r.samples.tokens).all()


@pytest.mark.parametrize(
    "setting",
    [
        {"assistant_model": object()}, {"cache_implementation": "paged"},
        {"prompt_lookup_num_tokens": 3}, {"output_attentions": True}, {"token_healing": True},
        {"output_hidden_states": True}, {"dola_layers": "low"}, {"penalty_alpha": 0.6},
        {"force_words_ids": [[5]]}, {"constraints": [object()]}, {"assistant_tokenizer": object()},
    ],
    ids=label,
)  # fmt: skip
def test_what_our_loop_does_without(model, setting):
    (name,) = setting
    with pytest.raises(ValueError, match=rf"^`{name}(='paged')?` is not supported"):
        hf.generate(model, **prompts(), sampler=Sampler(seed=7), max_new_tokens=2, **setting)


def test_stop_strings_without_a_tokenizer(model):
    with pytest.raises(ValueError, match=r"^`stop_strings` needs the tokenizer"):
        hf.generate(model, **prompts(), sampler=Sampler(seed=7), stop_strings=["w9"])
    out = hf.generate(
        model, **prompts(), sampler=Sampler(seed=7), stop_strings=None, max_new_tokens=2
    )
    assert out.shape == (3, 9)


def test_our_loop_always_counts_its_top_list(model):
    with pytest.raises(TypeError, match=r"^`logprobs` has to be an integer >= 0, but is None"):
        hf.generate(model, **prompts(), sampler=Sampler(seed=7), logprobs=None)


def forbid_even_ids(input_ids, scores):
    scores = scores.clone()
    scores[:, ::2] = -torch.inf
    return scores


REPLACED = r"^the generated text does not contain the sampled tokens: row \d+ has token \d+ where"


@pytest.mark.parametrize("logprobs", [0, None])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_processor_after_the_draw_is_found_out(model, batch, logprobs):
    # It left an argmax of equal scores, of no law, silently for one row.
    inputs, calls = prompts(batch), []
    for seed in range(20):
        s = HOT.replace(seed=seed)
        calls.clear()
        kwargs = generate_kwargs(s, attention_mask=inputs["attention_mask"], logprobs=logprobs)
        kwargs["logits_processor"].append(lambda ids, x: calls.append(0) or forbid_even_ids(ids, x))
        with pytest.raises(RuntimeError, match=REPLACED):
            model.generate(**inputs, **kwargs, max_new_tokens=60)
        if batch == 1:
            # At the first token that it changed.
            free = generate_kwargs(s, attention_mask=inputs["attention_mask"])
            text = model.generate(**inputs, **free, max_new_tokens=60)[0, 7:].numpy()
            assert len(calls) == np.argmax(text % 2 == 0) + 1


@pytest.mark.parametrize("ends", [None, NEVER, [7, 8]], ids=str)
def test_a_later_processor_that_looks_like_padding(model, ends):
    # The same token in every replaced row, to the end.
    inputs, pad = prompts(3), 0

    def force(ids, x):
        x = x.clone()
        if ids.shape[1] >= 10:
            x[1:] = torch.eye(VOCAB)[pad]
        return x

    for seed in range(5):
        s = HOT.replace(seed=seed)
        kwargs = generate_kwargs(s, attention_mask=inputs["attention_mask"], eos_token_id=ends)
        kwargs["logits_processor"].append(force)
        with pytest.raises(RuntimeError, match=r"row [12] has token 0 where \d+ was drawn"):
            model.generate(**inputs, **kwargs, max_new_tokens=8, pad_token_id=pad)


@pytest.mark.parametrize("known", [True, False])
def test_samples_end_with_their_rows(model, tokenizer, known, monkeypatch):
    # By an end token or a stop string, in the last column too, and where padding is drawn as text.
    ends, inputs, some = list(range(30, 38)), padded(6, 4, 6), 0
    more = {"stop_strings": [f"w{i}" for i in range(9, 14)], "tokenizer": tokenizer}
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    for seed in range(25):
        s = Sampler(temperature=5.0, seed=seed)
        kwargs = generate_kwargs(
            s, attention_mask=inputs["attention_mask"], eos_token_id=ends if known else None
        )
        out = model.generate(**inputs, **kwargs, max_new_tokens=3, **more)
        r = kwargs["logits_processor"][-1].samples
        ours = hf.generate(
            model, **inputs, sampler=s, max_new_tokens=3, return_dict_in_generate=True, **more
        )
        assert ours.sequences.tolist() == out.tolist()
        check_equal(r, ours.samples)
        some += (r.tokens[:, -1] == -1).any()
    assert some > 3


def test_a_later_processor_that_forces_one_token(model):
    # It looks like padding, but no row has ended before its first token.
    inputs = prompts(3)
    kwargs = generate_kwargs(HOT, attention_mask=inputs["attention_mask"])
    kwargs["logits_processor"].append(lambda ids, x: torch.eye(VOCAB)[[5] * len(x)])
    with pytest.raises(RuntimeError, match=r"row 0 has token 5 where \d+ was drawn"):
        model.generate(**inputs, **kwargs, max_new_tokens=2)


def test_a_processor_before_the_draw(model):
    inputs = prompts()
    kwargs = generate_kwargs(
        HOT, attention_mask=inputs["attention_mask"], raw=True, logits_processor=[forbid_even_ids]
    )
    out = model.generate(
        **inputs, **kwargs, max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True
    )
    logits = [forbid_even_ids(None, x) for x in out.logits]
    check_equal(
        kwargs["logits_processor"][-1].samples,
        samples_by_hand(model, inputs, HOT, out, logits=logits, logprobs=0),
    )
    assert (out.sequences[:, 7:] % 2 == 1).all()


@pytest.mark.parametrize("make", [generate_kwargs, hf.filter_kwargs])
@pytest.mark.parametrize("given", [
    RepetitionPenaltyLogitsProcessor(3.0), [None], [SamplingLogitsProcessor(HOT)], 7, None,
], ids=label)  # fmt: skip
def test_bad_processors(make, given):
    with pytest.raises(TypeError, match=r"^`logits_processor` has to (be an iterable of|hold)"):
        make(HOT, logits_processor=given)


def test_a_processor_before_the_filters(model):
    inputs = prompts()
    kwargs = hf.filter_kwargs(top_k=5, logits_processor=[forbid_even_ids])
    out = model.generate(**inputs, **kwargs, max_new_tokens=NEW)
    assert (out[:, 7:] % 2 == 1).all()


# --------------------------------------------------------------------- what is never called


@pytest.mark.parametrize("make", [generate_kwargs, hf.filter_kwargs])
def test_a_processor_that_is_never_called_warns(model, make):
    # As continuous batching, which ignores the processors of the caller.
    lost = "the sampler drew nothing" if make is generate_kwargs else "nothing was filtered"
    words = rf"never called the processor made here, so {lost}: ignore this after an error;"
    kwargs = make(HOT)
    processor = kwargs["logits_processor"][-1]
    if make is generate_kwargs:
        with pytest.raises(RuntimeError, match="never called this processor, so the sampler drew"):
            _ = processor.samples
    with pytest.warns(RuntimeWarning, match=words) as heard:  # noqa: PT031  (the last references go)
        del kwargs, processor
        gc.collect()
    assert heard[0].filename == __file__  # the line that asked for it
    for use in (lambda given: given, copy.deepcopy):
        kwargs = make(HOT)
        used = use(kwargs)
        model.generate(**prompts(), **used, max_new_tokens=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del kwargs, used
            gc.collect()


def test_a_script_that_loses_its_draw_is_warned_at_its_end(tmp_path):
    script = tmp_path / "script.py"
    lines = ["from sampler import Sampler", "from sampler.hf import generate_kwargs",
             "kwargs = generate_kwargs(Sampler(seed=7))"]  # fmt: skip
    script.write_text("\n".join(lines))
    run = [sys.executable, str(script)]
    root = Path(hf.__file__).parents[2]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    warned = subprocess.run(run, capture_output=True, text=True, env=env, check=True).stderr
    assert f"{script}:3: RuntimeWarning: generate() never called the processor made here" in warned
    script.write_text("\n".join([*lines, "raise ValueError"]))
    warned = subprocess.run(run, capture_output=True, text=True, env=env, check=False).stderr
    assert "ValueError" in warned
    assert "RuntimeWarning" not in warned
