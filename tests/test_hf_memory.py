"""Mirostat and adaptive-p inside `generate`: what they remember goes by row and length."""

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import sampler.hf
import test_hf_history
from sampler import Sampler
from sampler._engine import Given
from sampler.hf import (
    FilterLogitsProcessor,
    SamplingLogitsProcessor,
    expand_inputs,
    filter_kwargs,
    generate_kwargs,
    score,
)
from sampler.hf._memory import Memory
from sampler.history import History
from test_hf_history import assistants
from tiny import NEVER, NEW, VOCAB, encoder_inputs, generate, padded, prompts

SETTINGS = [
    {"mirostat": (2, 1.5, 0.5)},
    {"mirostat": (1, 2.0, 0.5), "frequency_penalty": 1.0},
    {"min_p": 0.02, "xtc": (0.1, 0.5), "adaptive_p": (0.4, 0.7)},
]
EVERY = pytest.mark.parametrize("settings", SETTINGS, ids=str)


def with_memory(settings):
    return Sampler(temperature=0.7, **settings, seed=7)


@torch.no_grad()
def by_hand(model, ids, s, stream, new=NEW, **encoder):
    """The loop that one would write with a state, one row."""
    rows = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    h, state = History(ids), s.initial_state()
    needs = {"history": h} if s.frequency_penalty else {}
    for _ in range(new):
        logits = model(**{rows: torch.tensor([h.prompt + h.output])}, **encoder).logits[0, -1]
        r = s.sample(logits.float(), state=state, streams=stream, steps=len(h), **needs)
        state = r.state
        h.accept(r.tokens)
    return h.output


rows_by_hand = partial(test_hf_history.rows_by_hand, write=by_hand)


@EVERY
def test_a_padded_batch_is_its_rows(model, settings):
    s, inputs = with_memory(settings), padded(4, 9)
    want = rows_by_hand(model, inputs, s)
    assert generate(model, inputs, s).tolist() == want
    assert want != rows_by_hand(model, inputs, with_memory({**settings, **other(settings)}))
    ours = sampler.hf.generate(model, **inputs, sampler=s, max_new_tokens=NEW)
    assert ours[:, 9:].tolist() == want
    # Nothing recorded, and several texts.
    kwargs = generate_kwargs(s, attention_mask=inputs["attention_mask"], logprobs=None)
    out = model.generate(**inputs, **kwargs, max_new_tokens=NEW)
    assert out[:, 9:].tolist() == want
    with pytest.raises(RuntimeError, match="nothing was recorded"):
        _ = kwargs["logits_processor"][-1].samples
    several = rows_by_hand(model, inputs, s, copies=2)
    assert generate(model, expand_inputs(inputs, 2), s).tolist() == several


def other(settings):
    """The same without what is remembered."""
    if "mirostat" in settings:
        version, tau, _ = settings["mirostat"]
        return {"mirostat": (version, tau, 0.0)}
    return {"adaptive_p": (settings["adaptive_p"][0], 0.0)}


@pytest.mark.parametrize("settings", SETTINGS[::2], ids=str)
def test_the_decoders_tokens(encoder_decoder, settings):
    s, inputs = with_memory(settings), encoder_inputs()
    one = {name: value[:1] for name, value in inputs.items()}
    begin = [encoder_decoder.config.decoder_start_token_id]
    want = by_hand(encoder_decoder, begin, s, 0, **one)
    assert generate(encoder_decoder, one, s)[0].tolist() == want


@pytest.mark.parametrize("kind", assistants())
@EVERY
def test_assisted_decoding_writes_the_same_text(model, kind, settings):
    s, inputs = with_memory(settings), prompts(1)
    inputs["input_ids"][0, 4:] = inputs["input_ids"][0, :3]  # something to look up
    want = rows_by_hand(model, inputs, s)
    assert generate(model, inputs, s, eos_token_id=NEVER, **assistants()[kind]).tolist() == want


@EVERY
def test_scores_of_a_text(model, settings):
    s, inputs = with_memory(settings), padded(4, 9)
    kwargs = generate_kwargs(s, attention_mask=inputs["attention_mask"])
    out = model.generate(**inputs, **kwargs, max_new_tokens=NEW)
    r = kwargs["logits_processor"][-1].samples
    again = score(model, out, s, prompt_length=9, attention_mask=inputs["attention_mask"])
    assert torch.allclose(r.logprobs, again.logprobs, atol=1e-3)
    assert r.n_kept.tolist() == again.n_kept.tolist()


def test_a_second_text_begins_anew(model):
    s, inputs = with_memory(SETTINGS[0]), prompts(2)
    kwargs = generate_kwargs(s, attention_mask=inputs["attention_mask"])
    (processor,) = kwargs["logits_processor"]
    first = model.generate(**inputs, **kwargs, max_new_tokens=NEW)
    model.generate(**inputs, **{**kwargs, "logits_processor": LogitsProcessorList([processor])},
                   max_new_tokens=NEW)  # fmt: skip
    a, b = processor.generations
    assert a.tokens.tolist() == first[:, 7:].tolist() != b.tokens.tolist()
    for record in processor._records:
        assert record.states(7) is None
        # The second draw of a text has the state after the first draw of the same text.
        assert all(one.values[0] != 3.0 for one in record.states(8))
    again = pickle.loads(pickle.dumps(processor))
    assert again.generations[1].tokens.tolist() == b.tokens.tolist()


# -------------------------------------------------------------------------------- the filter door


class ByHand(LogitsProcessor):
    """Filters each row by the state of its whole text, from scores that are kept for ever."""

    def __init__(self, s, prompt_length):
        self.s, self.start, self.scores = s, prompt_length, {}

    def __call__(self, input_ids, scores):
        filtered = []
        for row, one in zip(input_ids.tolist(), scores, strict=True):
            self.scores[tuple(row)] = one.clone()
            state = self.s.initial_state()
            for n in range(self.start, len(row)):
                before = self.scores[tuple(row[:n])]
                state = self.s.score(before, row[n], state=state).state
            filtered.append(self.s.filter(one, state=state))
        return torch.stack(filtered)


@pytest.mark.parametrize(
    "more",
    [{}, {"num_return_sequences": 3}, {"num_beams": 4}, {"num_beams": 3, "do_sample": False}],
    ids=str,
)
@pytest.mark.parametrize("setting", [{"mirostat": (2, 1.5, 0.5)}, {"adaptive_p": (0.4, 0.7)}],
                         ids=str)  # fmt: skip
def test_filters_remember_each_row(model, setting, more):
    inputs, more = prompts(2), {"max_new_tokens": NEW, **more}
    s = Sampler(temperature=0.5, min_p=0.02, **setting, seed=0)
    texts = []
    for processor in (FilterLogitsProcessor(s), ByHand(s, 7)):
        kwargs = {**filter_kwargs(s), "logits_processor": LogitsProcessorList([processor])}
        torch.manual_seed(3)
        texts.append(model.generate(**inputs, **{**kwargs, **more}).tolist())
    assert texts[0] == texts[1]
    torch.manual_seed(3)
    plain = Sampler(temperature=0.5, min_p=0.02, ties="all", seed=0)
    without = model.generate(**inputs, **{**filter_kwargs(plain), **more}).tolist()
    assert texts[0] != without or "do_sample" in more  # the likeliest ones may be the same


@pytest.mark.parametrize("kind", assistants())
def test_filters_under_assisted_decoding(model, kind):
    inputs, s = prompts(1), Sampler(temperature=0.5, mirostat=(2, 1.5, 0.5), seed=0)
    inputs["input_ids"][0, 4:] = inputs["input_ids"][0, :3]
    more = {"eos_token_id": NEVER, "max_new_tokens": NEW, **assistants()[kind]}
    seen, kwargs = {}, filter_kwargs(s)

    class Seen(FilterLogitsProcessor):
        def __call__(self, input_ids, scores):
            out = super().__call__(input_ids, scores)
            seen.setdefault(tuple(input_ids[0].tolist()), []).append((scores[0].clone(), out[0]))
            return out

    kwargs["logits_processor"] = LogitsProcessorList([Seen(s)])
    torch.manual_seed(0)
    (text,) = model.generate(**inputs, **kwargs, **more).tolist()
    # Every step of the text itself was filtered in the state of that text.
    state = s.initial_state()
    for n in range(7, len(text)):
        with torch.no_grad():
            logits = model(torch.tensor([text[:n]])).logits[0, -1].float()
        of_the_model = [
            one for one in seen[tuple(text[:n])] if torch.allclose(one[0], logits, atol=1e-4)
        ]
        assert of_the_model
        scores, out = of_the_model[-1]  # a draft that is the model itself came before
        assert torch.equal(out, s.filter(scores, state=state))
        state = s.score(scores, text[n], state=state).state


def test_filters_of_steps_that_are_taken_again():
    s, ids = Sampler(mirostat=(2, 2.0, 0.5), seed=0), prompts(2)["input_ids"]
    logits = torch.tensor(np.random.default_rng(0).normal(0, 2, (6, 2, VOCAB)), dtype=torch.float32)
    once, again = (FilterLogitsProcessor(s) for _ in range(2))
    rows, want = [ids], []
    for scores in logits:
        want.append(once(rows[-1], scores))
        rows.append(torch.cat([rows[-1], want[-1].argmax(-1)[:, None]], dim=1))
    for place in (0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 5):
        assert torch.equal(again(rows[place], logits[place].clone()), want[place])
    # The caller's memory may be used again.
    scores, shown = logits[0].clone(), rows[0].clone()
    alone = FilterLogitsProcessor(s)
    alone(shown, scores)
    scores.fill_(0.0)
    assert torch.equal(alone(rows[1], logits[1]), want[1])


def test_rows_from_nowhere():
    s, ids = Sampler(mirostat=2, seed=0), prompts(2)["input_ids"]
    processor = FilterLogitsProcessor(s)
    scores = torch.randn(2, VOCAB)
    processor(ids, scores)
    longer = torch.cat([ids, ids[:, :1]], dim=1)
    processor(longer, scores)
    strange = torch.cat([longer, ids[:, :1]], dim=1)
    strange[1, -2] = 5 + (strange[1, -2] == 5)
    with pytest.raises(
        RuntimeError, match=r"^a row is none of those of the step before with anoth"
    ):
        processor(strange, scores)


def test_rows_that_go_back_too_far():
    # What went before two tokens ago is not kept.
    s, ids = Sampler(mirostat=2, seed=0), prompts(2, 9)["input_ids"]
    processor, scores = FilterLogitsProcessor(s), torch.randn(2, VOCAB)
    for n in (6, 7, 8, 8, 9):
        processor(ids[:, :n], scores)
    with pytest.raises(RuntimeError, match=r"^the rows have 7 tokens, but were not seen with 6"):
        processor(ids[:, :7], scores)


def test_what_adaptive_p_keeps_is_not_removed():
    scores = torch.tensor([[1.0, -torch.inf, 0.0]])
    for setting, left in (({"adaptive_p": 0.5}, -torch.inf), ({"mirostat": 2}, -9.0)):
        processor = FilterLogitsProcessor(Sampler(**setting, seed=0), filter_value=-9.0)
        assert processor(torch.tensor([[5]]), scores)[0, 1] == left


def test_what_is_kept_of_earlier_rows():
    # Planted: scores of every candidate that was ever accepted.
    memory, scores = Memory(), torch.zeros(1, 5)
    for first in range(3, 30, 3):
        candidates = torch.zeros(1, first + 3, dtype=torch.long)
        for n in range(first, first + 3):
            caller = SimpleNamespace(proposes=False, verifies=True)
            memory.add(candidates[:, :n], scores, Given(), caller)
            assert sorted(memory._steps) == list(range(max(first - 1, 3), n + 1))
    caller = SimpleNamespace(proposes=False, verifies=False)
    for n in range(30, 40):
        memory.add(torch.zeros(1, n, dtype=torch.long), scores, Given(), caller)
        assert sorted(memory._steps) == [n - 1, n]


def test_rows_have_to_be_given():
    s = Sampler(mirostat=2, seed=0)
    for processor in (SamplingLogitsProcessor(s), FilterLogitsProcessor(s)):
        with pytest.raises(
            ValueError, match=r"^`mirostat` depends on the text so far: give the pr"
        ):
            processor(None, torch.zeros(1, 9))


def test_a_copy_goes_on_by_itself():
    s, ids = Sampler(mirostat=2, seed=0), prompts(1)["input_ids"]
    scores = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    processor = FilterLogitsProcessor(s)
    processor(ids, scores)
    assert copy.copy(processor).sampler == pickle.loads(pickle.dumps(processor)).sampler == s
