"""Settings that look at the text so far, inside `generate`: the text is read from the rows."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

import sampler.hf
from sampler import Sampler
from sampler.hf import (
    FilterLogitsProcessor,
    SamplingLogitsProcessor,
    _filtering,
    _sampling,
    expand_inputs,
    filter_kwargs,
    generate_kwargs,
    score,
)
from sampler.hf._texts import Generations
from sampler.history import History
from tiny import NEVER, NEW, VOCAB, encoder_inputs, generate, llama, padded, prompts

# Colder than the tiny models, so that their texts repeat themselves.
COLD = {"temperature": 0.4, "seed": 7}
# Settings that Hugging Face does not have, and windows, which tell prompt and output apart.
SETTINGS = [
    {"frequency_penalty": 2.0},
    {"presence_penalty": 1.5},
    {"presence_penalty": (3.0, 5, True)},
    {"frequency_penalty": (2.0, 2, True, 3)},
    {"repetition_penalty": (1.5, None, False)},
    {"presence_penalty": -2.0, "dry": (2.0, 1.5, 1, None, True)},
    {"min_new_tokens": (4, range(100)), "forced_tokens": {5: 17}},
    {"begin_suppress_tokens": range(100, VOCAB), "bad_words": [[17], [18, 19]]},
]


def with_history(settings):
    return Sampler(**COLD, **settings)


@torch.no_grad()
def by_hand(model, ids, s, stream, new=NEW, **encoder):
    """The loop that one would write with a History, one row: what `ids` are is the prompt."""
    rows = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
    h = History(ids)
    for _ in range(new):
        logits = model(**{rows: torch.tensor([h.prompt + h.output])}, **encoder).logits[0, -1]
        h.accept(s.sample(logits.float(), history=h, streams=stream, steps=len(h)).tokens)
    return h.output


def rows_by_hand(model, inputs, s, copies=1, write=by_hand):
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    return [
        write(model, ids[row // copies][mask[row // copies] == 1].tolist(), s, row)
        for row in range(copies * len(ids))
    ]


# ------------------------------------------------------------------------------ a loop by hand


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_padded_batch_is_its_rows(model, settings):
    s, inputs = with_history(settings), padded(4, 9)
    want = rows_by_hand(model, inputs, s)
    assert generate(model, inputs, s).tolist() == want
    assert want != rows_by_hand(model, inputs, Sampler(**COLD))
    ours = sampler.hf.generate(model, **inputs, sampler=s, max_new_tokens=NEW)
    assert ours[:, 9:].tolist() == want


@pytest.mark.parametrize("settings", SETTINGS[::2], ids=str)
def test_several_texts_of_a_prompt(model, settings):
    s, inputs = with_history(settings), padded(4, 9)
    want = rows_by_hand(model, inputs, s, copies=2)
    assert generate(model, expand_inputs(inputs, 2), s).tolist() == want
    ours = sampler.hf.generate(
        model, **inputs, sampler=s, max_new_tokens=NEW, num_return_sequences=2
    )
    assert ours[:, 9:].tolist() == want


@pytest.mark.parametrize("settings", SETTINGS[::3], ids=str)
def test_the_decoders_tokens_are_the_text(encoder_decoder, settings):
    # Its prompt is what the decoder begins with.
    s, inputs = with_history(settings), encoder_inputs()
    begin = [encoder_decoder.config.decoder_start_token_id]
    one = {name: value[:1] for name, value in inputs.items()}
    want = by_hand(encoder_decoder, begin, s, 0, **one)
    assert generate(encoder_decoder, one, s)[0].tolist() == want
    ours = sampler.hf.generate(encoder_decoder, **inputs, sampler=s, max_new_tokens=NEW)
    assert ours[:, 1:].tolist() == generate(encoder_decoder, inputs, s).tolist()
    begin = torch.tensor([[*begin, 17, 17]])
    out = encoder_decoder.generate(
        **one, decoder_input_ids=begin, **generate_kwargs(s), max_new_tokens=NEW
    )
    assert out[0, 3:].tolist() == by_hand(encoder_decoder, begin[0].tolist(), s, 0, **one)


def test_embeddings_have_no_prompt(model):
    # Their ids are not known: the text is what is drawn.
    s, ids = with_history({"presence_penalty": (5.0, None, True)}), prompts(1)["input_ids"]
    embedded = {"inputs_embeds": model.get_input_embeddings()(ids)}
    out = model.generate(**embedded, **generate_kwargs(s), max_new_tokens=NEW)
    alone, steps = [], 0
    with torch.no_grad():
        for _ in range(NEW):
            logits = model(torch.tensor([ids[0].tolist() + alone])).logits[0, -1].float()
            alone.append(
                s.sample(logits, history=History((), alone), streams=0, steps=steps).tokens
            )
            steps += 1
    assert out[0].tolist() == alone


# -------------------------------------------------------------------- steps that are taken again


def assistants():
    drafts = [llama(), llama(seed=1)]
    for draft in drafts:  # several tokens at once, however unsure
        draft.generation_config.num_assistant_tokens = 3
        draft.generation_config.assistant_confidence_threshold = 0.0
    return {
        "lookup": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2},
        "itself": {"assistant_model": drafts[0]},
        "another": {"assistant_model": drafts[1]},
    }


@pytest.mark.parametrize("kind", assistants())
@pytest.mark.parametrize("settings", [SETTINGS[i] for i in (0, 5, 6)], ids=str)
def test_assisted_decoding_writes_the_same_text(model, kind, settings):
    s, inputs = with_history(settings), prompts(1)
    inputs["input_ids"][0, 4:] = inputs["input_ids"][0, :3]  # something to look up
    want = rows_by_hand(model, inputs, s)
    assert generate(model, inputs, s, eos_token_id=NEVER, **assistants()[kind]).tolist() == want


@pytest.mark.parametrize("kind", assistants())
def test_the_prompt_of_what_is_proposed_is_that_of_the_text(model, kind, monkeypatch):
    # Found: a draft model that takes the text for its prompt agrees less often.
    seen, texts_of = [], _sampling.texts_of
    monkeypatch.setattr(
        _sampling, "texts_of", lambda *args: seen.append(args[2]) or texts_of(*args)
    )
    monkeypatch.setattr(
        _filtering, "texts_of", lambda *args: seen.append(args[2]) or texts_of(*args)
    )
    inputs, more = prompts(1), {"eos_token_id": NEVER, "max_new_tokens": NEW} | assistants()[kind]
    s = with_history({"frequency_penalty": 2.0})
    model.generate(**inputs, **generate_kwargs(s), **more)
    model.generate(**inputs, **filter_kwargs(frequency_penalty=2.0), **more)
    assert len(seen) >= 2 * NEW
    assert set(seen) == {7}


def test_a_draft_of_another_tokenizer_is_not_taken_for_the_text():
    caller = SimpleNamespace(processors=None, key=0, proposes=True, text_length=5)
    rows, known = torch.arange(24).reshape(2, 12), Generations()

    def prompt_length(ids):
        return known.find(ids, caller).prompt_length

    assert prompt_length(rows[:, 1:9]) == 5
    caller.proposes = False
    assert [prompt_length(rows[:, :n]) for n in (5, 6, 7)] == [5, 5, 5]
    caller.proposes, caller.text_length = True, 8
    assert prompt_length(rows[:, 3:9]) == 5
    caller.proposes = False
    assert [prompt_length(rows[:, :n]) for n in (8, 6, 9, 11)] == [5, 5, 5, 11]


def test_steps_that_are_taken_again_change_nothing(model):
    s, ids = with_history({"frequency_penalty": 2.0}), prompts(2)["input_ids"]
    logits = torch.tensor(np.random.default_rng(0).normal(0, 2, (6, 2, VOCAB)), dtype=torch.float32)
    once, again = (LogitsProcessorList([FilterLogitsProcessor(s)]) for _ in range(2))
    rows, want = [ids], []
    for scores in logits:
        want.append(once(rows[-1], scores))
        rows.append(torch.cat([rows[-1], want[-1].argmax(-1)[:, None]], dim=1))
    for place in (0, 0, 1, 2, 1, 2, 3, 3, 4, 5, 2, 3, 0):
        assert torch.equal(again(rows[place], logits[place]), want[place])
    # Another text may follow, of the same list.
    longer = torch.cat([rows[-1], ids], dim=1)
    alone = LogitsProcessorList([FilterLogitsProcessor(s)])
    assert torch.equal(again(longer, logits[0]), alone(longer, logits[0]))


# ----------------------------------------------------------- against Hugging Face's own processors


def like_theirs(model, inputs, fields, **more):
    """The text under Hugging Face's processors before our draw, and that of the card's sampler."""
    encoder_decoder = model.config.is_encoder_decoder
    start = 1 if encoder_decoder else inputs["input_ids"].shape[1]
    mask = None if encoder_decoder else inputs["attention_mask"]
    drawn = {"do_sample": True, "temperature": 0.5, "top_k": 20, "top_p": 0.9}
    eos = {name: fields[name] for name in ("eos_token_id",) if name in fields}
    ours = Sampler.from_generation_config(GenerationConfig(**drawn, **fields), seed=7)
    plain = Sampler.from_generation_config(GenerationConfig(**drawn), seed=7)
    want = model.generate(
        **inputs, **generate_kwargs(plain, attention_mask=mask), **fields, **more
    )[:, start:]
    without = model.generate(
        **inputs, **generate_kwargs(plain, attention_mask=mask), **eos, **more
    )[:, start:]
    # On the model's own configuration they would be applied before ours, if that did not prevent.
    model = copy.copy(model)
    model.generation_config = copy.deepcopy(model.generation_config)
    model.generation_config.update(**fields)
    got = model.generate(**inputs, **generate_kwargs(ours, attention_mask=mask), **more)[:, start:]
    if not encoder_decoder:
        loop = sampler.hf.generate(model, **inputs, sampler=ours, **more)[:, start:]
        assert loop.tolist() == got.tolist()
    return got.tolist(), want.tolist(), without.tolist()


FIELDS = {
    "repetition_penalty": [1.3, 0.8],
    "no_repeat_ngram_size": [1, 2],
    "sequence_bias": [[[[11], 4.0], [[11, 12], -2.5], [[12], 3.0]]],
    "suppress_tokens": [list(range(0, VOCAB, 2))],
    "begin_suppress_tokens": [list(range(0, VOCAB, 2))],
}


def fields_of(model, inputs):
    """Each field with values that matter to the text."""
    plain = like_theirs(model, inputs, {}, max_new_tokens=4)[1]
    first, second, third = plain[0][:3]
    yield {"bad_words_ids": [[second], [first, third]], "eos_token_id": third}
    yield {"bad_words_ids": [[first, second], [second, third], [second]], "eos_token_id": second}
    yield {"min_new_tokens": 5, "eos_token_id": [first, third]}
    for name, values in FIELDS.items():
        for value in values:
            yield {name: value}
    yield {
        "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 4,
        "bad_words_ids": [[first]], "sequence_bias": [[[second], 2.0]], "suppress_tokens": [third],
        "begin_suppress_tokens": [second], "eos_token_id": [3, 5],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_ours_are_hugging_faces_own_before_our_draw(kind):
    import tiny

    model = getattr(tiny, kind)()
    inputs = padded(5, 9) if kind == "llama" else encoder_inputs()
    changed = 0
    for fields in fields_of(model, inputs):
        got, want, without = like_theirs(model, inputs, fields, max_new_tokens=8)
        assert got == want, fields
        changed += got != without
    assert changed >= 8


def test_what_is_switched_off_is_what_the_sampler_has():
    every = {
        "repetition_penalty": (1.1, 1.0), "no_repeat_ngram_size": (3, 0),
        "bad_words": ([[5]], None), "sequence_bias": ({(5, 6): 1.0}, None),
        "min_new_tokens": ((3, [2]), None), "suppress_tokens": ([5], None),
        "begin_suppress_tokens": ([5], None),
    }  # fmt: skip
    names = {"bad_words": "bad_words_ids"}
    plain = generate_kwargs(Sampler(seed=7)).keys() | filter_kwargs().keys()
    for setting, (value, off) in every.items():
        name = names.get(setting, setting)
        assert name not in plain
        for kwargs in (
            generate_kwargs(Sampler(**{setting: value})),
            filter_kwargs(**{setting: value}),
            filter_kwargs(Sampler(**{setting: value})),
        ):
            assert {**kwargs, name: off} == kwargs
            assert len(kwargs.keys() - plain) == 1
            for other in kwargs["logits_processor"]:
                other._use.called = True
    for kwargs in (generate_kwargs(Sampler(repetition_penalty=1)), filter_kwargs(dry=0.0)):
        assert kwargs.keys() <= plain


def test_nothing_is_applied_twice(model):
    s, inputs = with_history({"repetition_penalty": 1.3}), prompts(1)
    with pytest.raises(TypeError, match="multiple values for keyword argument 'repetition_penalt"):
        model.generate(**inputs, **generate_kwargs(s), repetition_penalty=1.2)
    with pytest.raises(TypeError, match=r"^`repetition_penalty` has to be left out, because the s"):
        sampler.hf.generate(model, **inputs, sampler=s, repetition_penalty=1.2)
    more = {"custom_generate": sampler.hf.generate, "do_sample": False, "max_new_tokens": NEW}
    with pytest.raises(ValueError, match=r"twice, .* give that repetition_penalty=1\.0$"):
        model.generate(**inputs, **more, sampler=s, repetition_penalty=1.2)
    got = model.generate(**inputs, **more, sampler=s, repetition_penalty=1.0)
    assert got[:, 7:].tolist() == rows_by_hand(model, inputs, s)


# -------------------------------------------------------------------------------- the filter door


class Penalises(LogitsProcessor):
    """A frequency penalty of the output, as one would write it for a known prompt."""

    def __init__(self, prompt_length, penalty):
        self.prompt_length, self.penalty = prompt_length, penalty

    def __call__(self, input_ids, scores):
        counts = torch.zeros_like(scores)
        new = input_ids[:, self.prompt_length :]
        return scores - self.penalty * counts.scatter_add(1, new, torch.ones(new.shape))


@pytest.mark.parametrize(
    "more",
    [
        {}, {"num_return_sequences": 3}, {"num_beams": 3},
        {"num_beams": 3, "num_return_sequences": 2},
    ],
    ids=str,
)  # fmt: skip
def test_filters_look_at_the_text(model, more):
    inputs, more = padded(5, 9), {"max_new_tokens": NEW, **more}
    hot = {"temperature": 0.5, "top_k": 0, "top_p": 0.9}
    own = LogitsProcessorList([Penalises(9, 1.5)])
    for ours, theirs in (
        # Penalties that are float32 themselves: the same bits in any arithmetic.
        ({"repetition_penalty": 1.25}, {"repetition_penalty": 1.25}),
        ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
        ({"frequency_penalty": 1.5}, {"logits_processor": own}),
    ):  # fmt: skip
        kwargs = filter_kwargs(**hot, **ours, attention_mask=inputs["attention_mask"])
        texts = []
        for arguments in (kwargs, {"do_sample": True, **hot, **theirs}):
            torch.manual_seed(0)
            texts.append(model.generate(**inputs, **arguments, **more).tolist())
        assert texts[0] == texts[1]


def test_filters_of_assisted_decoding(model):
    inputs = prompts(1)
    for settings in SETTINGS[1:5:3]:
        s = Sampler(**settings, temperature=0, seed=7)
        want = rows_by_hand(model, inputs, s)
        for kind in ({}, *assistants().values()):
            kwargs = filter_kwargs(s) | {"eos_token_id": NEVER, "max_new_tokens": NEW}
            assert model.generate(**inputs, **kwargs, **kind)[:, 7:].tolist() == want


def test_a_filter_for_several_generations(model):
    # Each has its own prompt, though the second one's begins with the first one's.
    processor = FilterLogitsProcessor(frequency_penalty=3.0, temperature=0)
    kwargs = filter_kwargs(logits_processor=[processor]) | {"max_new_tokens": 4}
    ids = prompts(1)["input_ids"]
    s = Sampler(frequency_penalty=3.0, temperature=0, seed=7)
    for _ in range(3):
        ids = model.generate(ids, attention_mask=torch.ones_like(ids), **kwargs)
        assert ids[0, -4:].tolist() == by_hand(model, ids[0, :-4].tolist(), s, 0, new=4)


def test_filters_with_a_value_keep_what_was_never_there():
    # Only what a stage removes has the value: a penalty removes nothing.
    ids, scores = torch.tensor([[1, 2]]), torch.tensor([[1.0, -torch.inf, 2.0, 0.5]])
    processor = FilterLogitsProcessor(repetition_penalty=2.0, filter_value=-9.0)
    assert processor(ids, scores).tolist() == [[1.0, -torch.inf, 1.0, 0.5]]
    processor = FilterLogitsProcessor(bad_words=[[2, 0]], filter_value=-9.0)
    assert processor(ids, scores).tolist() == [[-9.0, -torch.inf, 2.0, 0.5]]
    processor = pickle.loads(pickle.dumps(processor))
    assert processor(ids, scores).tolist() == [[-9.0, -torch.inf, 2.0, 0.5]]
    assert copy.deepcopy(processor)(ids, scores).tolist() == [[-9.0, -torch.inf, 2.0, 0.5]]


# ----------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("settings", SETTINGS[::2], ids=str)
def test_scores_of_a_text(model, settings):
    s, inputs = with_history(settings), padded(4, 9)
    kwargs = generate_kwargs(s, attention_mask=inputs["attention_mask"], raw=True)
    out = model.generate(**inputs, **kwargs, max_new_tokens=NEW)
    drawn = kwargs["logits_processor"][-1].samples
    got = score(model, out, s, prompt_length=9, attention_mask=inputs["attention_mask"], raw=True)
    assert got.tokens.tolist() == drawn.tokens.tolist()
    assert torch.isfinite(got.logprobs).all()
    for name in ("logprobs", "raw_logprobs", "log_mass"):
        assert torch.allclose(getattr(got, name), getattr(drawn, name), rtol=0, atol=1e-4)


def test_scores_of_a_decoder(encoder_decoder):
    s, inputs = with_history({"frequency_penalty": 2.0}), encoder_inputs()
    kwargs = generate_kwargs(s)
    out = encoder_decoder.generate(**inputs, **kwargs, max_new_tokens=NEW)
    drawn = kwargs["logits_processor"][-1].samples
    got = score(encoder_decoder, out, s, **inputs)
    assert torch.allclose(got.logprobs, drawn.logprobs, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------- bad input, costs


def test_rows_have_to_be_there():
    scores = torch.zeros(1, VOCAB)
    for kind in (SamplingLogitsProcessor, FilterLogitsProcessor):
        with pytest.raises(ValueError, match=r"^`dry` depends on the text so far: give the p"):
            kind(Sampler(dry=0.8))(None, scores)
        with pytest.raises(ValueError, match=r"^`input_ids` ha.* for 2 rows, but .* for 1"):
            kind(Sampler(dry=0.8))(torch.tensor([[5, 6]]), torch.zeros(2, VOCAB))


def test_padding_is_no_part_of_the_text(model):
    ids, mask = torch.tensor([[0, 0, 3], [4, 5, 6]]), torch.tensor([[0, 0, 1], [1, 1, 1]])
    scores = torch.zeros(2, 8)
    scores[:, 0] = scores[:, 3] = 1.0
    kept = FilterLogitsProcessor(presence_penalty=(2.0, None, True), attention_mask=mask)
    assert kept(ids, scores)[0].tolist() == [1.0, 0, 0, -1.0, 0, 0, 0, 0]
    s = Sampler(presence_penalty=(2.0, None, True), temperature=0, seed=7)
    for known, token in ((mask, 0), (None, 1)):  # without a mask it counts
        drawn = SamplingLogitsProcessor(s, attention_mask=known)(ids, scores)
        assert drawn[0].argmax() == token
    padding, bare = padded(2, 5), padded(2)
    long = [torch.cat([one["input_ids"][:1], torch.tensor([[0, 9]])], 1) for one in (padding, bare)]
    a, b = (
        score(model, text, s, prompt_length=n, attention_mask=one["attention_mask"][:1])
        for text, n, one in zip(long, (5, 2), (padding, bare), strict=True)
    )
    assert torch.allclose(a.logprobs, b.logprobs, rtol=0, atol=1e-4)


def test_ids_without_a_logit_are_no_part_of_the_text():
    # Placeholders of images, which Hugging Face's penalty leaves out as well.
    rows = torch.tensor([[0, 3, VOCAB, 5, VOCAB + 2**40], [3, -100, VOCAB, VOCAB, 9]])
    scores = torch.tensor(np.random.default_rng(0).normal(0, 2, (2, VOCAB)), dtype=torch.float32)
    got = FilterLogitsProcessor(repetition_penalty=1.25)(rows.clamp(min=0), scores)
    for i, row in enumerate(rows.clamp(min=0)):  # older processors fail on such an id
        known = row[row < VOCAB][None]
        theirs = RepetitionPenaltyLogitsProcessor(1.25)(known, scores[i : i + 1].clone())
        assert torch.equal(got[i : i + 1], theirs)
    s = Sampler(frequency_penalty=3.0, temperature=0, seed=7)
    texts = [History([0, 3, 5]), History([3, 9])]
    for processor in (SamplingLogitsProcessor(s), FilterLogitsProcessor(s)):
        assert processor(rows, scores).argmax(-1).tolist() == s(scores, history=texts).tolist()


def test_a_filters_mask_has_to_be_that_of_the_prompts():
    ids, mask = torch.tensor([[5, 6], [7, 8]]), torch.tensor([[0, 1], [1, 1]])
    for wrong in (torch.ones(2, 1), torch.ones(3, 2), torch.ones(2, 3)):
        with pytest.raises(ValueError, match=r"^`attention_mask` has to be"):
            FilterLogitsProcessor(dry=0.8, attention_mask=wrong)(ids, torch.zeros(2, VOCAB))
    with pytest.raises(ValueError, match=r"padding on the left"):
        filter_kwargs(dry=0.8, attention_mask=mask.flip(1))
    # Where nothing looks at the text it is not asked for.
    scores = torch.zeros(2, VOCAB)
    assert torch.equal(FilterLogitsProcessor(attention_mask=torch.ones(3, 9))(ids, scores), scores)


def test_other_settings_cost_nothing(model, monkeypatch):
    for module in (_sampling, _filtering):
        monkeypatch.setattr(module, "texts_of", None)
    monkeypatch.setattr(_filtering, "Caller", None)
    s = Sampler(**COLD, top_p=0.9, logit_bias={5: 1.0}, suppress_tokens=[6], repetition_penalty=1)
    assert generate(model, prompts(2), s).shape == (2, NEW)
    model.generate(**prompts(2), **filter_kwargs(s), max_new_tokens=NEW)
