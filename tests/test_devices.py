"""Tensors on another device: through the host, and what comes out is where the input was."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import sampler
import tiny
from elsewhere import CUDA, Elsewhere, There
from elsewhere import to_device as moved
from sampler import Sampler
from sampler.hf import (
    FilterLogitsProcessor,
    SamplingLogitsProcessor,
    generate,
    generate_kwargs,
    score,
)
from sampler.request import Request, next_samples, next_tokens

LOGITS = torch.from_numpy(np.random.default_rng(3).normal(0, 2, (3, 700)).astype(np.float32))


class Stream:
    """The stream of a GPU, which counts how often it is waited for."""

    waits = 0

    def synchronize(self):
        Stream.waits += 1


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(Stream, "waits", 0)
    with There() as mode:
        yield mode


def same(there, here):
    """Assert that a result is on the device, with the numbers of the one on the host."""
    assert type(there) is Elsewhere
    assert there.dtype == here.dtype
    there = there.cpu()
    assert there.shape == here.shape
    assert torch.equal(there.nan_to_num(nan=7.0), here.nan_to_num(nan=7.0))


def same_samples(there, here):
    for name in ("tokens", "logprobs", "ranks", "n_kept", "entropy", "top_ids", "top_logprobs",
                 "raw_logprobs", "raw_ranks", "log_mass", "raw_top_ids"):  # fmt: skip
        a, b = getattr(there, name), getattr(here, name)
        if isinstance(b, torch.Tensor):
            same(a, b)
        else:
            assert a == b, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_call_of_a_sampler(dtype):
    x = LOGITS.to(dtype)
    there, before = moved(x), x.clone()
    s = Sampler(temperature=0.8, top_p=0.9, suppress_tokens=[5], seed=7, step=3)
    same(s.replace(step=3)(there), s.replace(step=3)(x))
    assert type(s(there[0])) is int
    for more in ({}, {"n": 4}, {"n": 2, "logprobs": 3, "raw": True}):
        same_samples(s.sample(there, steps=1, **more), s.sample(x, steps=1, **more))
        same_samples(s.sample(there[1], steps=1, **more), s.sample(x[1], steps=1, **more))
    tokens = torch.tensor([[1, 2], [3, 4], [5, 6]])
    same_samples(s.score(there, moved(tokens), logprobs=2), s.score(x, tokens, logprobs=2))
    same(s.filter(there), s.filter(x))
    d, e = s.distribution(there[0]), s.distribution(x[0])
    same(d.probs, e.probs)
    same(d.dense(), e.dense())
    assert d.entropy == e.entropy
    assert torch.equal(there.cpu(), before)


def test_masks_settings_and_streams():
    mask = torch.from_numpy(np.random.default_rng(1).random((3, 700)) < 0.5)
    words = torch.from_numpy(np.random.default_rng(2).integers(-9, 9, (3, 22), np.int32) & 0xFFFFFF)
    words[:, 21] &= (1 << 28) - 1
    hot = torch.tensor([0.5, 1.0, 2.0])
    s, t = (Sampler(temperature=one, seed=1) for one in (hot, moved(hot)))
    assert s == t
    streams = torch.tensor([5, 6, 7])
    for m in (mask, words):
        given = {"mask": moved(m), "streams": moved(streams), "steps": moved(streams)}
        same_samples(
            t.sample(moved(LOGITS), **given),
            s.sample(LOGITS, mask=m, streams=streams, steps=streams),
        )
        assert (
            s.sample(LOGITS.numpy(), **given).tokens.tolist()
            == t.sample(moved(LOGITS), **given).tokens.cpu().tolist()
        )


def test_invalid_rows_and_grad():
    x = LOGITS.clone()
    x[1, 5] = math.nan
    with pytest.raises(ValueError, match="row 1 has nan at token 5"):
        Sampler(seed=1)(moved(x))
    flag = Sampler(seed=1, on_invalid="flag")
    same(flag.sample(moved(x), steps=0).tokens, flag.sample(x, steps=0).tokens)
    grad = moved(LOGITS).requires_grad_()
    assert type(Sampler(seed=1)(grad)) is Elsewhere
    with pytest.raises(TypeError, match="requires grad"):
        Sampler(seed=1).filter(grad)


def test_the_softmax_family():
    there = moved(LOGITS)
    for function in (
        sampler.softmax, sampler.log_softmax, sampler.logsumexp, sampler.sigmoid,
        sampler.softmax_dtemperature, sampler.temperature.entropy, sampler.temperature.perplexity,
    ):  # fmt: skip
        same(function(there), function(LOGITS))
    labels = torch.tensor([1, 2, 3])
    same(sampler.cross_entropy(there, moved(labels)), sampler.cross_entropy(LOGITS, labels))
    assert sampler.temperature.fit_temperature(
        there, moved(labels)
    ) == sampler.temperature.fit_temperature(LOGITS, labels)


def test_out_has_to_be_on_the_host():
    for call in (
        lambda out: Sampler(seed=1).filter(LOGITS, out=out),
        lambda out: sampler.softmax(LOGITS, out=out),
    ):
        with pytest.raises(
            TypeError, match=r"^`out` has to be on the CPU, but is on cuda:0: leave it"
        ):
            call(moved(torch.empty(3, 700)))


def test_a_tensor_without_numbers():
    message = "^`logits` have to hold numbers, but are on the meta device: it has none$"
    with pytest.raises(TypeError, match=message):
        Sampler(seed=1)(LOGITS.to("meta"))


# ------------------------------------------------------------------------------- Hugging Face


def test_processors():
    ids = torch.tensor([[1, 2], [3, 4], [5, 6]])
    s = Sampler(temperature=0.8, top_p=0.9, seed=7)
    mask = torch.ones(3, 2, dtype=torch.int64)
    here = SamplingLogitsProcessor(s, attention_mask=mask, logprobs=2, raw=True)
    there = SamplingLogitsProcessor(s, attention_mask=moved(mask), logprobs=2, raw=True)
    same(there(moved(ids), moved(LOGITS)), here(ids, LOGITS))
    same_samples(there.samples, here.samples)
    for value in (-math.inf, -1e9):
        f = FilterLogitsProcessor(temperature=0.7, top_k=9, filter_value=value)
        same(f(moved(ids), moved(LOGITS)), f(ids, LOGITS))


def llama():
    """A tiny model on the device."""
    model = tiny.llama()
    model.set_attn_implementation("eager")
    for part in model.modules():
        for held in (part._parameters, part._buffers):
            held.update({name: moved(x.detach()) for name, x in held.items() if x is not None})
    assert model.device == CUDA
    return model


def inputs_there():
    return {name: moved(x) for name, x in tiny.prompts().items()}


def test_generate_the_loop_and_score():
    s = Sampler(temperature=1.5, top_p=0.95, seed=7)
    model, inputs = llama(), inputs_there()
    more = {"max_new_tokens": 6, "return_dict_in_generate": True}
    want = generate(tiny.llama(), **tiny.prompts(), sampler=s, **more)
    got = generate(model, **inputs, sampler=s, **more)
    same(got.sequences, want.sequences)
    mask, length = inputs["attention_mask"], tiny.prompts()["input_ids"].shape[1]
    kwargs = generate_kwargs(s, attention_mask=mask)
    same(model.generate(**inputs, **kwargs, **more).sequences, want.sequences)
    scored = score(model, got.sequences, s, prompt_length=length, attention_mask=mask)
    for r in (got.samples, kwargs["logits_processor"][-1].samples, scored):
        assert r.logprobs.device == r.tokens.device == CUDA
        assert torch.allclose(r.logprobs.cpu(), want.samples.logprobs, atol=1e-4)


def test_rows_that_end_and_a_streamer():
    s = Sampler(temperature=1.5, seed=7)
    length = tiny.prompts()["input_ids"].shape[1]
    text = generate(tiny.llama(), **tiny.prompts(), sampler=s, max_new_tokens=6)
    more = {"sampler": s, "max_new_tokens": 6, "eos_token_id": text[0, length + 2].item()}
    want = generate(tiny.llama(), **tiny.prompts(), **more)
    assert (want[0, length + 3 :] == 0).all()
    same(generate(llama(), **inputs_there(), **more), want)
    here, there = tiny.Puts(), tiny.Puts()
    one, same_one = ({k: x[:1] for k, x in i.items()} for i in (tiny.prompts(), inputs_there()))
    generate(tiny.llama(), **one, **more, streamer=here)
    generate(llama(), **same_one, **more, streamer=there)
    assert there.puts == here.puts


def test_a_model_spread_over_devices():
    # Its logits are on another device than the text, which a penalty reads.
    model, more = llama(), {"max_new_tokens": 4, "repetition_penalty": 1.5}
    forward = model.forward

    def spread(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits.cpu()
        return output

    model.forward = spread
    s = Sampler(seed=7)
    want = generate(tiny.llama(), **tiny.prompts(), sampler=s, **more)
    same(generate(model, **inputs_there(), sampler=s, **more), want)


# --------------------------------------------------------------------------------- the copies


def test_one_copy_into_pinned_memory_and_one_wait(gpu):
    Sampler(seed=7)(moved(LOGITS))
    assert (gpu.pinned, Stream.waits) == ([LOGITS.nbytes], 1)


def test_mps_has_no_float64_and_no_pinned_memory():
    mps = torch.device("mps", 0)
    with There(mps) as mode:
        x, s = moved(LOGITS, mps), Sampler(seed=7)
        r, want = s.sample(x, steps=0, logprobs=2), s.sample(LOGITS, steps=0, logprobs=2)
        assert r.tokens.tolist() == want.tokens.tolist()
        for got, exact in ((r.logprobs, want.logprobs), (r.top_logprobs, want.top_logprobs)):
            assert (got.device, got.dtype) == (mps, torch.float32)
            assert torch.equal(got.cpu(), exact.float())
        assert s.distribution(x[0]).probs.dtype is torch.float32
        assert sampler.temperature.entropy(x).device == mps
        assert mode.pinned == []
    assert Stream.waits == 0


def test_a_list_of_tensors():
    message = "^`logits` have to be one tensor, .*, of which one is on a device: make one with"
    with pytest.raises(TypeError, match=message):
        Sampler(seed=7)([moved(LOGITS[0]), moved(LOGITS[1])])


def test_a_distribution_is_pickled():
    d = Sampler(top_k=4, seed=7).distribution(moved(LOGITS[0]))
    same(pickle.loads(pickle.dumps(d)).dense(), d.dense().cpu())


# -------------------------------------------------------------------------------- the setting


def test_the_device_setting():
    s = Sampler(top_k=3, seed=7)
    t = s.replace(device="host")
    assert (s.device, t.device) == ("auto", "host")
    assert "device" not in repr(s)
    assert repr(t) == "Sampler(top_k=3, seed=7, device='host')"
    assert s != t
    for again in (pickle.loads(pickle.dumps(t)), copy.copy(t), eval(repr(t), vars(sampler))):
        assert again == t
    same(t(moved(LOGITS)), s(LOGITS))
    with pytest.raises(ValueError, match=r"^`device` has to be 'auto' or 'host', but is 'cuda': "):
        Sampler(device="cuda")


def test_kept_sets_and_requests():
    s = Sampler(top_p=0.8, seed=1)
    there, here = (s.sample(x, keep=True, steps=0) for x in (moved(LOGITS), LOGITS))
    for name in ("kept_ids", "kept_indptr"):
        same(getattr(there, name), getattr(here, name))
        same(getattr(there[1:], name), getattr(here[1:], name))
    kept = there.kept_indptr, there.kept_ids
    same(s.score(moved(LOGITS), there.tokens, kept=kept).logprobs, here.logprobs)
    one, other = ([Request(s, stream=i) for i in range(3)] for _ in range(2))
    same(next_tokens(one, moved(LOGITS)), next_tokens(other, LOGITS))
    a, b = next_samples(one, moved(LOGITS), raw=True), next_samples(other, LOGITS, raw=True)
    same_samples(a, b)
    assert [r.output for r in one] == [r.output for r in other]
