"""The Hugging Face layer, on a tiny random Llama: the draw inside `generate` is our draw."""

import math
import pickle

import numpy as np
import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
)

from sampler import Sampler, Temperature, TopK, TopP
from sampler.hf import SamplingLogitsProcessor, generate_kwargs
from tiny import NEVER, NEW, VOCAB, Records, by_hand, generate, padded, prompts

LAST = 2**64 - 1
SETTINGS = (
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 2.0},
    {"top_k": 5, "ties": "all"},
    {"min_p": 0.1, "temperature": 1.5},
    {"stages": [TopK(40), TopP(0.95), Temperature(0.8)]},
)


# ------------------------------------------------------------------------------- whole texts


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_generate_is_the_loop_by_hand(model, settings):
    s, inputs = Sampler(**settings, seed=7), prompts()
    texts = generate(model, inputs, s).tolist()
    assert texts == [
        by_hand(model, row.tolist(), s, i) for i, row in enumerate(inputs["input_ids"])
    ]
    assert s.step == 0
    assert generate(model, inputs, s).tolist() == texts
    if settings.get("temperature") == 2.0:
        assert len({tuple(text) for text in texts}) == 3
        assert generate(model, inputs, s.replace(seed=8)).tolist() != texts


def test_equal_prompts_differ_by_stream(model):
    s, one = Sampler(temperature=2.0, seed=7), prompts(1)
    inputs = {name: value.repeat(3, 1) for name, value in one.items()}
    texts = generate(model, inputs, s).tolist()
    assert len({tuple(text) for text in texts}) == 3
    streams = [5, LAST, 5]
    texts = generate(model, inputs, s, streams=streams).tolist()
    assert texts[0] == texts[2] != texts[1]
    row = one["input_ids"][0].tolist()
    assert texts == [by_hand(model, row, s, stream) for stream in streams]


def test_padding_and_the_rest_of_the_batch_do_not_matter(model):
    s = Sampler(temperature=2.0, top_p=0.95, seed=7)
    lengths = (3, 9, 6)
    inputs = padded(*lengths)
    texts = generate(model, inputs, s).tolist()
    for i, length in enumerate(lengths):
        lone = prompts(1, length, length)
        assert inputs["input_ids"][i, -length:].tolist() == lone["input_ids"][0].tolist()
        assert generate(model, lone, s, streams=[i]).tolist() == [texts[i]]
        assert by_hand(model, lone["input_ids"][0].tolist(), s, i) == texts[i]
    order = [2, 0, 1]
    turned = {name: value[order] for name, value in inputs.items()}
    again = generate(model, turned, s, streams=order).tolist()
    assert again == [texts[i] for i in order]


def test_without_a_mask_padding_counts():
    logits = torch.zeros(1, VOCAB)
    s = Sampler(seed=7)
    ids = torch.tensor([[0, 0, 5, 6]])
    for mask, step in (
        (None, 4),
        ([[0, 0, 1, 1]], 2),
        ([[1, 1, 1, 1]], 4),
        ([[0, 1, 0, 1]], 3),  # a hole is no left padding
        (torch.tensor([[False, False, True, True]]), 2),
    ):
        out = SamplingLogitsProcessor(s, attention_mask=mask)(ids, logits)
        assert out.argmax() == s.sample(logits[0], steps=step).tokens


def test_assisted_decoding_agrees_with_plain(model):
    # A prompt that repeats itself gives prompt lookup something to propose.
    s = Sampler(temperature=0.3, top_k=3, seed=7)
    row = prompts(1, 6)["input_ids"].repeat(1, 5)
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    plain = generate(model, inputs, s, max_new_tokens=30)
    lookup = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1, "eos_token_id": NEVER}
    assisted = generate(model, inputs, s, max_new_tokens=30, **lookup)
    assert assisted.tolist() == plain.tolist()
    assert plain[0].tolist() == by_hand(model, row[0].tolist(), s, 0, 30)


def test_greedy_is_the_models_own(model):
    inputs = prompts()
    want = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)[:, 7:]
    assert generate(model, inputs, Sampler(temperature=0)).tolist() == want.tolist()
    assert generate(model, inputs, Sampler(top_k=1)).tolist() == want.tolist()


def test_half_precision_model(model):
    half = LlamaForCausalLM(model.config).to(torch.bfloat16).eval()
    half.load_state_dict(model.state_dict())
    s, inputs = Sampler(temperature=0.8, seed=7), prompts(2)
    a = generate(half, inputs, s).tolist()
    assert a == generate(half, inputs, s).tolist()


def test_end_of_text_stops_a_row(model):
    s, inputs = Sampler(temperature=2.0, seed=7), prompts(2)
    free = generate(model, inputs, s).tolist()
    stop = free[0][4]
    out = generate(model, inputs, s, eos_token_id=stop, pad_token_id=0).tolist()
    end = free[0].index(stop)
    assert out[0][: end + 1] == free[0][: end + 1]
    assert not any(out[0][end + 1 :])
    assert out[1][: len(free[1])] == free[1][: len(out[1])] or stop in free[1]


# ------------------------------------------------------------------------------------- seeds


def test_seed(model):
    s, inputs = Sampler(temperature=2.0), prompts(1)
    taken = []
    for _ in range(3):
        kwargs = generate_kwargs(s, attention_mask=inputs["attention_mask"])
        seed = kwargs["logits_processor"][-1].seed
        text = model.generate(**inputs, **kwargs, max_new_tokens=NEW)[:, 7:].tolist()
        taken.append(seed)
        assert generate(model, inputs, s.replace(seed=seed)).tolist() == text
    assert len(set(taken)) == 3
    assert generate_kwargs(Sampler(seed=7))["logits_processor"][-1].seed == 7
    rng = Sampler(rng=np.random.default_rng(3))
    assert generate_kwargs(rng)["logits_processor"][-1].seed == rng.seed
    unseeded = Sampler(top_k=3)
    for fresh in (unseeded.replace(top_k=4), pickle.loads(pickle.dumps(unseeded))):
        seeds = {generate_kwargs(fresh)["logits_processor"][-1].seed for _ in range(2)}
        assert len(seeds) == 2


# ----------------------------------------------------------------------- with other settings


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 0.7}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9},
        {"epsilon_cutoff": 0.1}, {"eta_cutoff": 0.1}, {"do_sample": True}, {"num_beams": 2},
        {"logits_processor": LogitsProcessorList()}, {"top_h": 0.5}, {"renormalize_logits": True},
        {"num_return_sequences": 2}, {"watermarking_config": {}}, {"penalty_alpha": 0.6},
        {"dola_layers": "low"},
    ],
    ids=str,
)  # fmt: skip
def test_a_setting_given_twice(model, setting):
    inputs, (name,) = prompts(1), setting
    with pytest.raises(TypeError, match=f"multiple values for keyword argument '{name}'"):
        model.generate(**inputs, **generate_kwargs(Sampler(seed=7)), **setting)


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1},
        {"min_p": 0.9, "typical_p": 0.1, "epsilon_cutoff": 0.1, "eta_cutoff": 0.1, "top_h": 0.1},
        {"num_beams": 3},
    ],
    ids=str,
)
def test_the_models_own_settings_do_not_interfere(model, own, monkeypatch):
    s, inputs = Sampler(temperature=2.0, seed=7), prompts(2)
    want = generate(model, inputs, s).tolist()
    for name, value in own.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert generate(model, inputs, s).tolist() == want


def test_the_models_penalty_runs_before_the_draw(model, monkeypatch):
    s, inputs = Sampler(temperature=2.0, seed=7), prompts(1)
    free = generate(model, inputs, s).tolist()
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 3.0)
    penalty = RepetitionPenaltyLogitsProcessor(3.0)
    ids = inputs["input_ids"]
    with torch.no_grad():
        for _ in range(NEW):
            scores = penalty(ids, model(ids).logits[:, -1].float())
            token = s.sample(scores, steps=ids.shape[1]).tokens
            ids = torch.cat([ids, token[None]], dim=1)
    text = generate(model, inputs, s).tolist()
    assert text == ids[:, -NEW:].tolist()
    assert text != free


def test_generate_is_silent(model):
    with Records() as heard:
        generate(model, prompts(), Sampler(temperature=0.8, seed=7))
        assert heard.records == []
        # The handler would have heard: a setting that do_sample=False ignores is warned of.
        model.generate(**prompts(), do_sample=False, temperature=0.5, max_new_tokens=1)
        assert heard.records


def test_beams_are_refused(model):
    inputs = prompts(2)
    kwargs = generate_kwargs(Sampler(seed=7), attention_mask=inputs["attention_mask"])
    del kwargs["num_beams"]
    with pytest.raises(ValueError, match="attention_mask"):
        model.generate(**inputs, **kwargs, num_beams=3, max_new_tokens=NEW)
    kwargs = generate_kwargs(Sampler(seed=7), streams=[0, 1])
    del kwargs["num_beams"]
    with pytest.raises(ValueError, match="streams"):
        model.generate(**inputs, **kwargs, num_beams=3, max_new_tokens=NEW)


def no_rival(scores):
    """Whether each row's token is at 0 and all others at half the lowest finite score, or -inf."""
    low = torch.finfo(scores.dtype).min / 2
    return bool(((scores == 0).sum(dim=-1) == 1).all() and ((scores == 0) | (scores <= low)).all())


def test_scores_of_generate(model):
    s, inputs = Sampler(temperature=2.0, top_k=4, seed=7), prompts(2)
    out = model.generate(
        **inputs, **generate_kwargs(s), max_new_tokens=5, return_dict_in_generate=True,
        output_scores=True, output_logits=True,
    )  # fmt: skip
    for step, (scores, logits) in enumerate(zip(out.scores, out.logits, strict=True)):
        assert no_rival(scores)
        tokens = s.sample(logits, steps=7 + step).tokens
        assert out.sequences[:, 7 + step].tolist() == tokens.tolist()
        assert scores.argmax(dim=-1).tolist() == tokens.tolist()


# ------------------------------------------------------------------------------ one call of it

IDS = torch.tensor([[3, 4, 5], [6, 7, 8]])


def test_forbidden_tokens_stay_forbidden():
    # Prompt lookup asks with made-up scores which tokens the processors forbid: -inf, or the
    # lowest finite score. It crops its candidates there.
    scores = torch.ones(2, VOCAB)
    scores[:, 5] = -math.inf
    out = SamplingLogitsProcessor(Sampler(seed=7))(IDS, scores)
    assert torch.equal(out == -math.inf, scores == -math.inf)
    assert (out[:, :5] != torch.finfo(out.dtype).min).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_score_without_a_rival_a_row(dtype):
    scores = torch.tensor(np.random.default_rng(0).normal(0, 3, (2, VOCAB)), dtype=dtype)
    before = scores.clone()
    s = Sampler(temperature=2.0, seed=7)
    out = SamplingLogitsProcessor(s)(IDS, scores)
    assert torch.equal(scores, before)
    assert out.data_ptr() != scores.data_ptr()
    assert out.dtype == dtype
    assert out.shape == scores.shape
    assert no_rival(out)
    assert out.max(dim=1).values.tolist() == [0.0, 0.0]
    assert out.argmax(dim=1).tolist() == s.sample(scores, steps=3).tokens.tolist()


def test_scores_that_cannot_be_written():
    # Every row is the same memory: writing to it would show, or raise.
    row = torch.tensor(np.random.default_rng(0).normal(0, 3, VOCAB)).float()
    scores = row.expand(2, VOCAB)
    out = SamplingLogitsProcessor(Sampler(temperature=9.0, seed=7))(IDS, scores)
    assert no_rival(out)
    with torch.inference_mode():
        frozen = row[None].clone()
    SamplingLogitsProcessor(Sampler(seed=7))(IDS[:1], frozen)
    assert torch.equal(frozen[0], row)


def test_without_input_ids():
    s = Sampler(temperature=2.0, seed=7)
    scores = torch.tensor(np.random.default_rng(0).normal(0, 3, (2, VOCAB))).float()
    processor = SamplingLogitsProcessor(s)
    own = processor.sampler
    for step in range(4):
        assert own.step == step
        out = processor(None, scores)
        assert out.argmax(dim=1).tolist() == s.sample(scores, steps=step).tokens.tolist()
    with_streams = SamplingLogitsProcessor(s.replace(step=0), streams=[4, 9])(None, scores)
    want = s.sample(scores, steps=0, streams=[4, 9]).tokens.tolist()
    assert with_streams.argmax(dim=1).tolist() == want


def test_the_step_is_the_length_of_the_row():
    s = Sampler(temperature=9.0, seed=7)
    scores = torch.zeros(2, VOCAB)
    processor = SamplingLogitsProcessor(s, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    ids = torch.zeros(2, 3, dtype=torch.long)
    for length in range(3, 9):
        want = s.sample(scores, steps=[length - 1, length]).tokens
        assert processor(ids, scores).argmax(dim=1).tolist() == want.tolist()
        ids = torch.cat([ids, want[:, None]], dim=1)
    assert s.step == 0


@pytest.mark.parametrize("sampler", [None, 7, {"temperature": 0.8}, Sampler, "sampler"])
def test_no_sampler(sampler):
    for make in (SamplingLogitsProcessor, generate_kwargs):
        with pytest.raises(TypeError, match=r"^`sampler` has to be a Sampler, but is "):
            make(sampler)


@pytest.mark.parametrize(
    ("streams", "error"),
    [
        ([-1, 0], ValueError),
        ([0, 2**64], ValueError),
        ([0, 1.0], TypeError),
        ([0, True], TypeError),
        ([0, None], TypeError),
        ("01", TypeError),
        (np.array([0.0, 1.0]), TypeError),
        (7, (TypeError, ValueError)),
        (np.array(7), (TypeError, ValueError)),
        ([[0], [1]], TypeError),
    ],
)
def test_bad_streams(streams, error):
    for make in (SamplingLogitsProcessor, generate_kwargs):
        with pytest.raises(error, match=r"^`streams` has to "):
            make(Sampler(seed=7), streams=streams)


@pytest.mark.parametrize("streams", [(3, 5), np.array([3, 5], np.uint64), torch.tensor([3, 5])])
def test_containers_of_streams(streams):
    s = Sampler(temperature=9.0, seed=7)
    scores = torch.zeros(2, VOCAB)
    out = SamplingLogitsProcessor(s, streams=streams)(IDS, scores)
    want = s.sample(scores, steps=3, streams=[3, 5]).tokens.tolist()
    assert out.argmax(dim=1).tolist() == want


def test_streams_of_the_wrong_length(model):
    for streams in ([], [0], [0, 1, 2]):
        with pytest.raises(ValueError, match=rf"^`streams` has to .* 2\b.* {len(streams)}$"):
            SamplingLogitsProcessor(Sampler(seed=7), streams=streams)(IDS, torch.zeros(2, VOCAB))
    with pytest.raises(ValueError, match="`streams`"):
        generate(model, prompts(3), Sampler(seed=7), streams=[0, 1])


@pytest.mark.parametrize("mask", [[1, 1, 1], torch.ones(3), torch.ones(2, 1, 3), 1, np.array(1.0)])
def test_mask_of_the_wrong_shape(mask):
    for make in (SamplingLogitsProcessor, generate_kwargs):
        with pytest.raises(ValueError, match=r"^`attention_mask` has to be 2-D, but has shape"):
            make(Sampler(seed=7), attention_mask=mask)


@pytest.mark.parametrize("mask", ["1", {"mask": 1}, object(), [["1", "1"]], [[1, 1], [1]]])
def test_mask_that_is_none(mask):
    with pytest.raises((TypeError, ValueError), match=r"^`attention_mask` has to "):
        SamplingLogitsProcessor(Sampler(seed=7), attention_mask=mask)


def test_mask_of_another_batch_or_prompt():
    scores = torch.zeros(2, VOCAB)
    for batch in (1, 3):
        mask = torch.ones(batch, 3)
        with pytest.raises(ValueError, match=rf"^`attention_mask` has to .* 2\b.* {batch}$"):
            SamplingLogitsProcessor(Sampler(seed=7), attention_mask=mask)(IDS, scores)
    # A mask of another length than the first rows belongs to some other prompt.
    for length in (2, 5):
        mask = torch.ones(2, length)
        with pytest.raises(ValueError, match=rf"that of the prompt, but has {length} tokens .* 3;"):
            SamplingLogitsProcessor(Sampler(seed=7), attention_mask=mask)(IDS, scores)
    processor = SamplingLogitsProcessor(Sampler(seed=7), attention_mask=torch.ones(2, 3))
    processor(IDS, scores)
    processor(torch.cat([IDS, IDS], dim=1), scores)
    with pytest.raises(ValueError, match=r"that of the prompt, but has 3 tokens .* 2;"):
        processor(IDS[:, :2], scores)


@pytest.mark.parametrize(
    ("scores", "error", "words"),
    [
        (torch.zeros(2, VOCAB, device="meta"), TypeError, "hold numbers.*meta"),
        (torch.zeros(2, VOCAB).long(), TypeError, "torch.int64"),
        (torch.zeros(2, VOCAB).to_sparse(), TypeError, "dense"),
        (torch.zeros(VOCAB), ValueError, r"2-D, but have shape \(199,\)"),
        (torch.zeros(2, 3, VOCAB), ValueError, "2-D"),
        (torch.zeros(2, 0), ValueError, "at least one token"),
    ],
)
def test_bad_scores(scores, error, words):
    with pytest.raises(error, match=f"^`scores` have to .*{words}"):
        SamplingLogitsProcessor(Sampler(seed=7))(IDS, scores)


@pytest.mark.parametrize("on_invalid", ["raise", "flag"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.nan, "row 1 at step 3 has nan at token 9"),
        (math.inf, "row 1 at step 3 has inf at token 9"),
    ],
)
def test_invalid_scores_always_raise(value, words, on_invalid):
    scores = torch.zeros(2, VOCAB)
    scores[1, 9] = value
    processor = SamplingLogitsProcessor(Sampler(seed=7, on_invalid=on_invalid))
    with pytest.raises(ValueError, match=words):
        processor(IDS, scores)
    scores[1] = -math.inf
    with pytest.raises(ValueError, match="row 1 at step 3 is -inf throughout"):
        processor(IDS, scores)


def test_what_generate_kwargs_gives():
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    kwargs = generate_kwargs(Sampler(seed=7), attention_mask=mask, streams=[3, 4])
    assert kwargs["do_sample"] is False
    assert isinstance(kwargs["logits_processor"], LogitsProcessorList)
    (processor,) = kwargs["logits_processor"]
    assert isinstance(processor, SamplingLogitsProcessor)
    assert "attention_mask" not in kwargs  # it comes with the inputs
    mask[0, 0] = 1  # the caller's mask grows as generate goes on: ours does not
    scores = torch.zeros(2, VOCAB)
    want = Sampler(seed=7).sample(scores, steps=[2, 3], streams=[3, 4]).tokens.tolist()
    assert processor(IDS, scores).argmax(dim=1).tolist() == want


def test_the_callers_step_stays_where_it_is():
    s = Sampler(seed=7)
    processor = SamplingLogitsProcessor(s)
    processor(None, torch.zeros(2, VOCAB))
    assert (s.step, processor.sampler.step) == (0, 1)


def test_rows_and_scores_of_different_batches():
    with pytest.raises(ValueError, match=r"^`input_ids` has to be for 2 rows, but is for 3"):
        SamplingLogitsProcessor(Sampler(seed=7))(torch.ones(3, 4).long(), torch.zeros(2, VOCAB))


# ----------------------------------------------------------------------- masks and prompts


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 1, 0], [1, 1, 1]], "on the left, but row 0 ends with padding: .*padding_side='left'"),
        ([[1, 1, 1], [0, 0, 0]], "on the left, but row 1 ends with padding"),
        ([[1, 1, 0.5], [1, 1, 1]], "an array of 0 and 1, but has 0.5"),
        ([[3, 4, 5], [6, 7, 8]], "an array of 0 and 1, but has 3"),
    ],
)
def test_a_mask_that_is_not_one(mask, words):
    with pytest.raises(ValueError, match=f"^`attention_mask` has to .*{words}"):
        generate_kwargs(Sampler(seed=7), attention_mask=torch.tensor(mask))


def test_a_mask_without_numbers():
    with pytest.raises(TypeError, match=r"^`attention_mask` have to hold numbers.* meta"):
        generate_kwargs(Sampler(seed=7), attention_mask=torch.ones(1, 5, device="meta"))


def test_one_prompt_a_processor(model):
    kwargs = generate_kwargs(Sampler(seed=7), attention_mask=prompts()["attention_mask"])
    model.generate(**prompts(), **kwargs, max_new_tokens=2)
    model.generate(**prompts(), **kwargs, max_new_tokens=2)
    with pytest.raises(
        ValueError, match=r"^the rows begin with a different prompt .*make a processor"
    ):
        model.generate(**prompts(seed=1), **kwargs, max_new_tokens=2)


def test_scores_that_are_no_tensor():
    with pytest.raises(TypeError, match=r"^`scores` have to be a torch tensor, but are a numpy"):
        SamplingLogitsProcessor(Sampler(seed=7))(IDS, np.zeros((2, VOCAB), np.float32))


def test_repr():
    assert repr(SamplingLogitsProcessor(Sampler(top_k=3, seed=7))) == (
        "SamplingLogitsProcessor(Sampler(top_k=3, seed=7))"
    )
