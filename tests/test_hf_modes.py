"""Every way people generate, against the loop by hand or plain decoding, on tiny random models."""

import copy
import threading
from functools import wraps

import numpy as np
import pytest
import torch
from transformers import (
    BatchEncoding,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    WatermarkingConfig,
    cache_utils,
    pipeline,
)

import sampler.hf
from sampler import Sampler
from sampler.hf import SamplingLogitsProcessor, expand_inputs, generate_kwargs, score
from tiny import (
    NEVER,
    NEW,
    Puts,
    by_hand,
    count,
    encoder_inputs,
    generate,
    llama,
    padded,
    prompts,
    same_samples,
)

HOT = Sampler(temperature=2.0, top_p=0.95, seed=7)


# ----------------------------------------------------------------------------------- greedy


@pytest.mark.parametrize(
    "greedy", [Sampler(temperature=0, seed=7), Sampler(top_k=1, seed=7)], ids=str
)
def test_greedy_is_hugging_faces(model, encoder_decoder, greedy):
    for lm, inputs in (
        (model, prompts()),
        (model, padded(3, 9, 6)),
        (encoder_decoder, encoder_inputs()),
    ):
        want = lm.generate(**inputs, do_sample=False, max_new_tokens=NEW)[:, -NEW:].tolist()
        assert generate(lm, inputs, greedy).tolist() == want
        assert generate(lm, inputs, HOT).tolist() != want


# ------------------------------------------------------------------------- encoder-decoder


def test_encoder_decoder(encoder_decoder):
    inputs, start = encoder_inputs(), [encoder_decoder.config.decoder_start_token_id]
    texts = generate(encoder_decoder, inputs, HOT).tolist()
    assert texts[0] != texts[1]
    for row, length in enumerate((7, 4)):
        lone = {name: value[row : row + 1, :length] for name, value in inputs.items()}
        # The step is the length of the decoder's row, its start token included.
        assert by_hand(encoder_decoder, start, HOT, row, **lone) == texts[row]
        assert generate(encoder_decoder, lone, HOT, streams=[row]).tolist() == [texts[row]]


def test_the_encoders_mask_is_not_that_of_the_rows(encoder_decoder):
    inputs = encoder_inputs()
    with pytest.raises(ValueError, match=r"on the left, .* for an encoder-decoder"):
        generate_kwargs(HOT, attention_mask=inputs["attention_mask"])
    kwargs = generate_kwargs(HOT, attention_mask=torch.ones(2, 7))
    with pytest.raises(
        ValueError,
        match=r"^`attention_mask` has to be that of the prompt, but has 7 tokens where the rows "
        r"have 1; for an encoder-decoder model, or inputs_embeds, leave it out$",
    ):
        encoder_decoder.generate(**inputs, **kwargs, max_new_tokens=NEW)


def test_decoder_prompt(encoder_decoder):
    inputs, start = encoder_inputs(), encoder_decoder.config.decoder_start_token_id
    prompt = torch.tensor([[start, 5, 6], [start, 8, 9]])
    out = encoder_decoder.generate(
        **inputs, decoder_input_ids=prompt, **generate_kwargs(HOT), max_new_tokens=NEW
    )
    for row in range(2):
        lone = {name: value[row : row + 1] for name, value in inputs.items()}
        ids = prompt[row].tolist()
        assert out[row, 3:].tolist() == by_hand(encoder_decoder, ids, HOT, row, **lone)


# ---------------------------------------------------------------------------- inputs_embeds


def test_inputs_embeds(model):
    # Hugging Face gives no ids of the prompt: the rows are the new tokens alone, from length 0.
    inputs = prompts()
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    out = model.generate(
        inputs_embeds=embeds, attention_mask=inputs["attention_mask"], **generate_kwargs(HOT),
        max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    assert out.sequences.shape == (3, NEW)
    for t, logits in enumerate(out.logits):
        assert out.sequences[:, t].tolist() == HOT.sample(logits, steps=t).tokens.tolist()
    first = model(**inputs).logits[:, -1]
    assert torch.allclose(out.logits[0], first, atol=1e-4)
    kwargs = generate_kwargs(HOT, attention_mask=inputs["attention_mask"])
    with pytest.raises(ValueError, match=r"where the rows have 0; .* inputs_embeds, leave it out$"):
        model.generate(
            inputs_embeds=embeds,
            attention_mask=inputs["attention_mask"],
            **kwargs,
            max_new_tokens=1,
        )
    # With the ids as well, they are the rows.
    both = model.generate(
        **inputs, inputs_embeds=embeds, max_new_tokens=NEW,
        **generate_kwargs(HOT, attention_mask=inputs["attention_mask"]),
    )  # fmt: skip
    assert both[:, 7:].tolist() == generate(model, inputs, HOT).tolist()


# ------------------------------------------------------------------------ assisted decoding


@pytest.fixture(scope="module")
def draft():
    return llama(seed=1, hidden_size=16)


def test_prompt_lookup_saves_forward_passes(model, monkeypatch):
    # Hugging Face once took every candidate for forbidden, and each token cost a pass.
    row = prompts(1, 6)["input_ids"].repeat(1, 5)
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    more = {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1, "max_new_tokens": 60}
    more["eos_token_id"] = NEVER
    calls = count(type(model), "forward", monkeypatch)
    theirs = model.generate(**inputs, do_sample=False, **more)
    wanted = len(calls)
    calls.clear()
    assert torch.equal(generate(model, inputs, Sampler(temperature=0), **more), theirs[:, 30:])
    assert len(calls) == wanted < 60


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.3, "top_k": 3}, {"top_p": 0.9}, {"temperature": 2.0}], ids=str
)
@pytest.mark.parametrize("how", ["lookup", "draft", "itself"])
def test_assisted_decoding_is_plain_decoding(model, draft, how, settings, monkeypatch):
    # A prompt that repeats itself gives prompt lookup something to propose.
    row = prompts(1, 6)["input_ids"].repeat(1, 5)
    assistance = {
        "lookup": {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 1},
        "draft": {"assistant_model": draft},
        "itself": {"assistant_model": model},
    }[how]
    for lm in (model, draft):
        monkeypatch.setattr(lm.generation_config, "num_assistant_tokens", 4)
    calls = count(SamplingLogitsProcessor, "__call__", monkeypatch)

    def run(s, stop=NEVER, **more):
        mask = torch.ones_like(row)
        kwargs = generate_kwargs(s, attention_mask=mask, logprobs=2, eos_token_id=stop, raw=True)
        out = model.generate(row, attention_mask=mask, **kwargs, max_new_tokens=30, **more)
        recorded = kwargs["logits_processor"][-1].samples
        assert recorded.tokens.tolist() == out[:, 30:].tolist()
        return out[0, 30:].tolist(), recorded

    for seed in range(4):
        s = Sampler(**settings, seed=seed)
        text, plain = run(s)
        assert text == by_hand(model, row[0].tolist(), s, 0, 30)
        calls.clear()
        again, assisted = run(s, **assistance)
        assert again == text
        same_samples(assisted, plain)
        assert len(calls) > 30  # some proposals were drawn as well, or for nothing

        stop = text[9]
        short, plain = run(s, stop)
        assert short == text[: text.index(stop) + 1]
        again, assisted = run(s, stop, **assistance)
        assert again == short
        same_samples(assisted, plain)


# ----------------------------------------------------------------------------------- caches


@pytest.mark.parametrize(
    "cache", [{"use_cache": False}, {"cache_implementation": "static"}], ids=str
)
def test_caches(model, cache):
    for inputs in (prompts(), padded(3, 9, 6)):
        text = generate(model, inputs, HOT).tolist()
        assert generate(model, inputs, HOT, **cache).tolist() == text


@pytest.mark.skipif(
    not hasattr(cache_utils, "Fp8QuantizedLayer"),
    reason="this version's quantised caches need a package of their own",
)
def test_quantized_cache(model):
    # Quantised keys and values give other logits: the draw has to be that of those.
    inputs = padded(3, 9, 6)
    lengths = inputs["attention_mask"].sum(dim=1).numpy()
    out = model.generate(
        **inputs, **generate_kwargs(HOT, attention_mask=inputs["attention_mask"]),
        max_new_tokens=NEW, return_dict_in_generate=True, output_logits=True,
        cache_implementation="quantized", cache_config={"backend": "fp8"},
    )  # fmt: skip
    assert isinstance(out.past_key_values.layers[0], cache_utils.Fp8QuantizedLayer)
    for t, logits in enumerate(out.logits):
        assert (
            out.sequences[:, 9 + t].tolist()
            == HOT.sample(logits, steps=lengths + t).tokens.tolist()
        )


# ------------------------------------------------------------------------ several sequences


def test_expand_inputs(model):
    inputs = BatchEncoding({**padded(4, 6), "text": "kept", "scale": torch.tensor(2.0)})
    many = expand_inputs(inputs, 3)
    assert type(many) is dict
    assert many.pop("text") == "kept"
    assert many.pop("scale") == 2.0
    assert many["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1]] * 3 + [[1] * 6] * 3
    texts = generate(model, many, HOT).tolist()
    assert len({tuple(text) for text in texts}) == 6
    for stream, text in enumerate(texts):
        length = (4, 6)[stream // 3]
        ids = inputs["input_ids"][stream // 3, -length:].tolist()
        assert text == by_hand(model, ids, HOT, stream)


def test_expand_inputs_once_and_badly():
    inputs = prompts(2)
    once = expand_inputs(inputs, 1)
    assert {name: value.tolist() for name, value in once.items()} == {
        name: value.tolist() for name, value in inputs.items()
    }
    assert expand_inputs(inputs, np.int64(2))["input_ids"].shape == (4, 7)
    for n, error in ((0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError),
                     ("2", TypeError), (None, TypeError)):  # fmt: skip
        with pytest.raises(error, match=r"^`num_return_sequences` has to be an integer >= 1, but"):
            expand_inputs(inputs, n)


# -------------------------------------------------------------------------------- streamers


def test_streamer_gets_what_is_returned(model):
    streamer, inputs = Puts(), prompts(1)
    text = generate(model, inputs, HOT, streamer=streamer).tolist()
    prompt, *new = streamer.puts
    assert prompt == inputs["input_ids"].tolist()
    assert new == [[token] for token in text[0]]
    assert streamer.ended == 1
    assert text[0] == by_hand(model, inputs["input_ids"][0].tolist(), HOT, 0)


def test_text_streamers(model, tokenizer, capsys):
    inputs = prompts(1)
    text = tokenizer.decode(generate(model, inputs, HOT)[0])
    assert len(text.split()) == NEW
    generate(model, inputs, HOT, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr() == (text + "\n", "")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60.0)
    thread = threading.Thread(
        target=generate, args=(model, inputs, HOT), kwargs={"streamer": streamer}
    )
    thread.start()
    assert "".join(streamer) == text
    thread.join()


# --------------------------------------------------------------------------------- stopping


def test_stop_strings(model, tokenizer):
    inputs = prompts(1)
    text = generate(model, inputs, HOT).tolist()[0]
    stop = tokenizer.decode(text[3:5])
    assert stop not in tokenizer.decode(text[:4])
    short = generate(model, inputs, HOT, stop_strings=[stop], tokenizer=tokenizer).tolist()[0]
    assert short == text[:5]


class After(StoppingCriteria):
    """Stop row i after `lengths[i]` tokens."""

    def __init__(self, *lengths):
        self.lengths = torch.tensor(lengths)

    def __call__(self, input_ids, scores, **kwargs):
        return self.lengths <= input_ids.shape[1]


def test_stopping_criteria(model):
    inputs = prompts(3)
    texts = generate(model, inputs, HOT).tolist()
    criteria = StoppingCriteriaList([After(9, 99, 11)])
    out = generate(model, inputs, HOT, stopping_criteria=criteria, max_new_tokens=6).tolist()
    # Hugging Face pads a stopped row only where there is an eos_token_id.
    assert out == [text[:6] for text in texts]
    out = generate(
        model, inputs, HOT, stopping_criteria=criteria, max_new_tokens=6, eos_token_id=198
    ).tolist()
    assert all(198 not in text for text in texts)
    assert out == [texts[0][:2] + [0] * 4, texts[1][:6], texts[2][:4] + [0] * 2]
    all_stop = StoppingCriteriaList([After(8, 9, 10)])
    assert generate(model, inputs, HOT, stopping_criteria=all_stop).shape == (3, 3)


def test_end_of_text(model):
    inputs = padded(3, 9, 6)
    texts = generate(model, inputs, HOT).tolist()
    ends = [texts[0][2], texts[2][5]]
    out = generate(model, inputs, HOT, eos_token_id=ends).tolist()
    for text, short in zip(texts, out, strict=True):
        stop = min((text.index(end) for end in ends if end in text), default=NEW)
        assert short == text[: stop + 1] + [0] * (NEW - stop - 1)


# ------------------------------------------------------------------------ all that is returned


def test_everything_returned(model):
    model, inputs = copy.deepcopy(model), padded(3, 9, 6)
    model.set_attn_implementation("eager")  # the others give no attentions
    out = model.generate(
        **inputs, **generate_kwargs(HOT, attention_mask=inputs["attention_mask"]),
        max_new_tokens=NEW, return_dict_in_generate=True, output_scores=True, output_logits=True,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    assert out.sequences[:, 9:].tolist() == generate(model, inputs, HOT).tolist()
    mask = torch.cat([inputs["attention_mask"], torch.ones(3, NEW).long()], dim=1)
    with torch.no_grad():
        want = model(
            out.sequences, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).logits[:, 8:-1]
    assert torch.allclose(torch.stack(out.logits, dim=1), want, atol=1e-4)
    scores = torch.stack(out.scores, dim=1)
    assert torch.equal((scores > -1e38).sum(dim=-1), torch.ones(3, NEW).long())
    assert torch.equal(scores.argmax(dim=-1), out.sequences[:, 9:])
    assert scores.max() == 0.0
    assert len(out.hidden_states) == len(out.attentions) == NEW
    assert out.hidden_states[-1][-1].shape == (3, 1, 32)
    assert out.attentions[-1][-1].shape == (3, 2, 1, 9 + NEW - 1)


def test_everything_returned_by_encoder_decoder(encoder_decoder):
    inputs = encoder_inputs()
    out = encoder_decoder.generate(
        **inputs, **generate_kwargs(HOT), max_new_tokens=NEW, return_dict_in_generate=True,
        output_scores=True, output_logits=True, output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    assert out.sequences[:, 1:].tolist() == generate(encoder_decoder, inputs, HOT).tolist()
    with torch.no_grad():
        want = encoder_decoder(**inputs, decoder_input_ids=out.sequences).logits[:, :-1]
    assert torch.allclose(torch.stack(out.logits, dim=1), want, atol=1e-4)
    scores = torch.stack(out.scores, dim=1)
    assert torch.equal((scores > -1e38).sum(dim=-1), torch.ones(2, NEW).long())
    assert len(out.cross_attentions) == len(out.decoder_hidden_states) == NEW


# -------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize("cache", [None, "static"])
def test_compiled_model(model, cache, monkeypatch):
    compiled, inputs = copy.deepcopy(model), prompts()
    want = generate(model, inputs, HOT).tolist()
    compiled.forward = torch.compile(compiled.forward, backend="eager")
    torch._dynamo.utils.counters.clear()
    calls = count(SamplingLogitsProcessor, "__call__", monkeypatch)
    try:
        assert generate(compiled, inputs, HOT, cache_implementation=cache).tolist() == want
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    finally:
        torch._dynamo.reset()
    assert len(calls) == NEW  # outside the graph, at every token


# ------------------------------------------------------------------------ text in, text out


def test_pipeline(model, tokenizer):
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    inputs = tokenizer("w8 w9 w10", return_tensors="pt")
    words = tokenizer.decode(generate(model, inputs, HOT)[0]).split()
    assert len(words) == NEW
    kwargs = {"return_full_text": False, "max_new_tokens": NEW}
    # Whether the text begins with a space depends on the version.
    [got] = pipe("w8 w9 w10", **kwargs, **generate_kwargs(HOT))
    assert got["generated_text"].split() == words
    [got] = pipe("w8 w9 w10", stop_sequence=words[2], **kwargs, **generate_kwargs(HOT))
    assert got["generated_text"].split() == words[:3]
    # Each prompt of a list is a generation.
    both = pipe(["w8 w9 w10"] * 2, **kwargs, **generate_kwargs(HOT))
    texts = [got["generated_text"].split() for [got] in both]
    assert texts[0] == words != texts[1]


def test_chat(model, tokenizer):
    chat = [{"role": "user", "content": "w10 w11"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    text = generate(model, inputs, HOT)[0]
    assert text.tolist() == by_hand(model, inputs["input_ids"][0].tolist(), HOT, 0)
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    [got] = pipe(chat, max_new_tokens=NEW, **generate_kwargs(HOT))
    *asked, answer = got["generated_text"]
    assert asked == chat
    assert answer["role"] == "assistant"
    assert answer["content"].split() == tokenizer.decode(text).split()


# ------------------------------------------------------- beams, servers, watermarks, bad logits


def test_beams_by_hand(model):
    # A processor without mask or streams takes a beam for a row; of the beams, the first is left.
    inputs = prompts(2)
    out = model.generate(
        **inputs, logits_processor=LogitsProcessorList([SamplingLogitsProcessor(HOT)]),
        do_sample=False, num_beams=3, max_new_tokens=NEW,
    )  # fmt: skip
    for row in range(2):
        ids = inputs["input_ids"][row].tolist()
        assert out[row, 7:].tolist() == by_hand(model, ids, HOT, 3 * row)
    for known in ({"attention_mask": inputs["attention_mask"]}, {"streams": [0, 1]}):
        processor = SamplingLogitsProcessor(HOT, **known)
        (name,) = known
        with pytest.raises(ValueError, match=f"^`{name}` has to be for 6 rows, but is for 2$"):
            model.generate(
                **inputs, logits_processor=LogitsProcessorList([processor]), do_sample=False,
                num_beams=3, max_new_tokens=NEW,
            )  # fmt: skip


def test_continuous_batching_drops_it(caplog):
    assert SamplingLogitsProcessor.supports_continuous_batching is False
    module = pytest.importorskip(
        "transformers.generation.continuous_batching.cb_logits_processors",
        reason="this version has no list of processors for continuous batching",
    )
    processors = LogitsProcessorList([SamplingLogitsProcessor(HOT)])
    left = module.ContinuousBatchingLogitsProcessorList(processors)
    assert len(left.logits_processor) == 0
    assert "SamplingLogitsProcessor isn't supported by CB" in caplog.text


MARK = WatermarkingConfig(bias=50.0, seeding_scheme="lefthash")


def test_watermark(model, monkeypatch):
    inputs = prompts(2)
    with pytest.raises(TypeError, match=r"multiple values for keyword .* 'watermarking_config'"):
        model.generate(**inputs, **generate_kwargs(HOT), watermarking_config=MARK)
    want = generate(model, inputs, HOT).tolist()
    # In a loop of our own it runs before the draw.
    marked = sampler.hf.generate(
        model, **inputs, sampler=HOT, max_new_tokens=NEW, watermarking_config=MARK
    )
    assert marked[:, 7:].tolist() != want
    # On the model it would run after the draw of Hugging Face's loop: it is off.
    monkeypatch.setattr(model.generation_config, "watermarking_config", MARK)
    assert generate(model, inputs, HOT).tolist() == want


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_breaks(model, value, monkeypatch):
    inputs = padded(3, 5)
    output = sampler.hf.generate(model, **inputs, sampler=HOT, max_new_tokens=NEW)
    forward = model.forward

    @wraps(forward)
    def broken(*args, **kwargs):
        out = forward(*args, **kwargs)
        # Of the row of 3, what follows its sixth token; score() asks for the last places only.
        sixth = kwargs["position_ids"][0, -out.logits.shape[1] :] == 5
        out.logits[0, sixth, 9] = value
        return out

    monkeypatch.setattr(model, "forward", broken)
    message = rf"^`scores` have to be finite or -inf, but row 0 at step 6 has {value} at token 9$"
    with pytest.raises(ValueError, match=message):
        generate(model, inputs, HOT)
    with pytest.raises(ValueError, match=message):
        sampler.hf.generate(model, **inputs, sampler=HOT, max_new_tokens=NEW)
    with pytest.raises(ValueError, match=message):
        score(model, output, HOT, prompt_length=5, attention_mask=inputs["attention_mask"])
