"""Tensors on another device: through the host, and what comes out is where the input was.

No device is needed. `Elsewhere` is a tensor that says it is on one: it refuses NumPy, and only
`cpu` gives its numbers.
"""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

import sampler
import tiny
from sampler import Sampler
from sampler.hf import FilterLogitsProcessor, SamplingLogitsProcessor, generate, score

DEVICE = torch.device("mps")
LOGITS = torch.from_numpy(np.random.default_rng(3).normal(0, 2, (3, 700)).astype(np.float32))


class Elsewhere(torch.Tensor):
    """A tensor on a device that is not there."""

    is_cpu = False
    device = DEVICE

    def cpu(self):
        return self.as_subclass(torch.Tensor).clone()

    def numpy(self, **_):
        raise TypeError("can't convert mps device type tensor to numpy")

    def __array__(self, *_):
        raise TypeError("can't convert mps device type tensor to numpy")

    def __dlpack__(self, **_):
        raise TypeError("no DLPack from this device")


def moved(x):
    return x.clone().as_subclass(Elsewhere)


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
            TypeError, match=r"^`out` has to be on the CPU, but is on mps: leave it"
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


def test_the_loop_and_score(monkeypatch):
    # A model elsewhere: what it takes and gives says that it is.
    # Not where, or transformers would make tensors there.
    monkeypatch.setattr(Elsewhere, "device", torch.device("cpu"))
    model = tiny.llama()
    inputs = tiny.prompts()
    s = Sampler(temperature=1.5, top_p=0.95, seed=7)
    more = {"max_new_tokens": 6, "return_dict_in_generate": True, "sampler": s}
    here = generate(model, **inputs, **more)
    there = generate(model, **{name: moved(x) for name, x in inputs.items()}, **more)
    same(there.sequences, here.sequences)
    same_samples(there.samples, here.samples)
    length = inputs["input_ids"].shape[1]
    same_samples(
        score(model, moved(here.sequences), s, prompt_length=length),
        score(model, here.sequences, s, prompt_length=length),
    )


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
    with pytest.raises(ValueError, match=r"^`device` has to be 'auto' or 'host', but is 'cuda'$"):
        Sampler(device="cuda")
