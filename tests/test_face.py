"""The public face: containers, names and their old ones, messages that lead somewhere."""

import copy
import inspect
import os
import pickle
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import sampler
from sampler import MinP, Sampler, Samples, SuppressTokens, Temperature, TopK, TopP
from sampler._keywords import unknown_keyword
from sampler._names import (
    ALGORITHMS,
    IGNORED_FIELDS,
    IN_HF,
    OF_OTHERS,
    PARTS,
    PROCESSORS,
    SAME,
    SAME_IN_GENERATE,
    SAMPLER_ONLY,
)
from sampler.stages.settings import STAGES, HasSettings

ROOT = Path(__file__).parents[1]
ROW = [1.0, 3.0, 2.0, 0.0]
COUNTS = ("tokens", "ranks", "n_kept", "raw_ranks", "top_ids", "raw_top_ids")
FIGURES = (
    *("tokens", "logprobs", "ranks", "n_kept", "entropy"),
    *("raw_logprobs", "raw_ranks", "log_mass"),
)
LISTS = ("top_ids", "top_logprobs", "raw_top_ids", "raw_top_logprobs")

CONTAINERS = {
    "list": lambda x: x.tolist(),
    "NumPy": np.float32,
    "float16": np.float16,
    "ml_dtypes": lambda x: x.astype(ml_dtypes.bfloat16),
    "words": lambda x: (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
    "tensor": lambda x: torch.tensor(x, dtype=torch.float32),
    "bfloat16": lambda x: torch.tensor(x, dtype=torch.bfloat16),
    "requires_grad": lambda x: torch.tensor(x, requires_grad=True),
}
ARRAYS = {"tensor": torch.Tensor, "bfloat16": torch.Tensor, "requires_grad": torch.Tensor}
DTYPES = {np.ndarray: (np.int64, np.float64), torch.Tensor: (torch.int64, torch.float64)}


# --------------------------------------------------------------------------- what comes in goes out


@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers(kind, n):
    s, wanted = Sampler(top_k=3, seed=7), ARRAYS.get(kind, np.ndarray)
    integers, floats = DTYPES[wanted]
    how = {"dtype": "bfloat16"} if kind == "words" else {}
    batch = CONTAINERS[kind](np.array([ROW, ROW[::-1]]))
    plain = batch.detach() if kind == "requires_grad" else batch
    called = s(batch, **how)
    assert type(called) is wanted and called.dtype == integers
    assert type(s(batch[0], **how)) is int
    more = {"logprobs": 2, "raw": True, **how}
    tokens = [1, 2] if n is None else [[1, 2, 0]] * 2
    for r in (s.sample(batch, n=n, **more), s.score(plain, tokens, **more)):
        for name in (*FIGURES, *LISTS):
            value = getattr(r, name)
            assert type(value) is wanted, name
            assert value.dtype == (integers if name in COUNTS else floats), name
    for r in (s.sample(batch[0], n=n, **more), s.score(plain[0], tokens[0], **more)):
        for name in FIGURES:
            value = getattr(r, name)
            number = int if name in COUNTS else float
            assert type(value) is (number if n is None else wanted), name
        assert all(type(getattr(r, name)) is wanted for name in LISTS)
    if kind != "words":
        d = s.distribution(plain[0])
        assert all(type(x) is wanted for x in (d.ids, d.probs, d.logprobs, d.dense()))
        assert type(s.filter(plain)) is (wanted if kind != "ml_dtypes" else np.ndarray)


def test_a_distribution_draws_into_the_container_of_u():
    d = Sampler(top_k=2).distribution(torch.tensor(ROW))
    assert type(d.draw(0.9)) is int
    assert type(d.draw([0.1, 0.9])) is np.ndarray
    assert d.draw(torch.tensor([0.1, 0.9])).equal(torch.tensor([1, 2]))
    again = pickle.loads(pickle.dumps(d))
    assert again.probs.equal(d.probs)


@pytest.mark.parametrize("logprobs", [None, 0, 2])
def test_lists_are_none_where_they_would_be_empty(model, logprobs):
    listed = set(LISTS) if logprobs else set()
    ids = torch.tensor([[1, 2, 3]])
    s, zeros = Sampler(seed=7), np.zeros((2, 4))
    top = logprobs or 0
    how = {"max_new_tokens": 2, "return_dict_in_generate": True}
    kwargs = sampler.hf.generate_kwargs(s, logprobs=top, raw=True)
    out = model.generate(ids, **kwargs, **how)
    for r in (
        s.sample(zeros, logprobs=logprobs, raw=True),
        s.score(zeros, [0, 1], logprobs=logprobs, raw=True),
        kwargs["logits_processor"][-1].samples,
        sampler.hf.generate(model, ids, sampler=s, logprobs=top, raw=True, **how).samples,
        sampler.hf.score(model, out.sequences, s, prompt_length=3, logprobs=top, raw=True),
    ):
        assert {name for name in LISTS if getattr(r, name) is not None} == listed
        assert all(getattr(r, name) is not None for name in FIGURES)
    for r in (out, kwargs["logits_processor"][-1].samples):
        assert type(getattr(r, "tokens", out.sequences)) is torch.Tensor


# ---------------------------------------------------------------------------------------- a Samples


def test_the_parts_of_samples():
    s = Sampler(temperature=2.0, seed=7)
    rows = np.array([ROW, ROW[::-1], [0.0] * 4])
    r = s.sample(rows, n=5, logprobs=2, raw=True)
    assert len(r) == 3
    for i, part in enumerate(r):
        assert len(part) == 5 and isinstance(part, Samples)
        for name in (*FIGURES, *LISTS):
            assert np.array_equal(getattr(part, name), getattr(r, name)[i]), name
        for j, one in enumerate(part):  # all draws of a row have its lists
            assert (one.tokens, one.logprobs) == (r.tokens[i, j], r.logprobs[i, j])
            assert type(one.tokens) is int and type(one.log_mass) is float
            assert np.array_equal(one.top_ids, r.top_ids[i])
    assert r[1:].tokens.tolist() == r.tokens[1:].tolist()
    assert r[r.tokens[:, 0] >= 0].top_ids.tolist() == r.top_ids.tolist()
    assert r[-1].tokens.tolist() == r.tokens[2].tolist()
    bare = s.sample(rows)
    assert bare[2].tokens == bare.tokens[2] and bare[2].top_ids is None
    lone = s.sample(torch.tensor(ROW), n=4, logprobs=3)
    assert type(lone[0].tokens) is int and lone[0].top_ids.equal(lone.top_ids)
    assert lone[1:3].top_ids.equal(lone.top_ids)
    with pytest.raises(IndexError):
        r[3]
    with pytest.raises(
        TypeError, match=r"^Samples takes one index at a time: write samples\[row\]"
    ):
        r[0, 1]
    for call in (len, list, lambda one: one[0]):
        with pytest.raises(TypeError, match=r"^the Samples of a lone row holds one token"):
            call(s.sample(ROW))


def test_the_repr_of_samples_is_short():
    s = Sampler(top_k=2, seed=7)
    lone = "Samples(tokens=2, logprobs=-1.3133, ranks=2, n_kept=2, entropy=0.5822)"
    assert repr(s.sample(ROW, steps=0)) == lone
    rows = [ROW, ROW]
    text = "Samples(tokens=[2, 2], logprobs=[-1.3133, -1.3133], ranks=[2, 2], n_kept=[2, 2]"
    text += ", entropy=[0.5822, 0.5822]"
    assert repr(s.sample(rows, steps=0, logprobs=1)) == f"{text}, top_ids=..., top_logprobs=...)"
    assert repr(s.sample(torch.tensor(rows), steps=0)) == f"{text})"
    large = s.sample(np.zeros((1000, 8)), n=50, logprobs=8, raw=True)
    assert len(repr(large)) < 500 and "\n" not in repr(large)


def test_kept_is_the_old_name_of_n_kept():
    r = Sampler(top_k=2).sample([ROW])
    with pytest.warns(DeprecationWarning, match=r"write samples\.n_kept$") as caught:
        assert r.kept is r.n_kept
    assert caught[0].filename == __file__


# ---------------------------------------------------------------------------- streams, steps, draws


def test_draws_names_the_draw_of_each_row():
    s, rows = Sampler(temperature=3.0, seed=7), np.array([ROW * 8] * 5)
    every = s.sample(rows, steps=4, n=6, raw=True)
    each = [3, 0, 5, 1, 5]
    for r, draws in (
        (s.sample(rows, steps=4, draws=each, raw=True), each),
        (s.sample(rows, steps=4, draws=np.array(each), raw=True), each),
        (s.sample(rows, steps=4, draws=2, raw=True), [2] * 5),
    ):
        for name in FIGURES:
            value = getattr(every, name)
            assert getattr(r, name).tolist() == [value[i, d] for i, d in enumerate(draws)], name
    assert len({tuple(s.sample(rows, steps=4, draws=d).tokens) for d in range(4)}) == 4
    last = 2**64 - 1
    u = sampler.reference.uniform(7, stream=2, step=4, draw=last)
    lone = s.sample(rows[2], streams=2, steps=4, draws=last)
    assert lone.tokens == s.distribution(rows[2]).draw(u)
    before = s.step
    s.sample(rows, draws=1)
    assert s.step == before + 1  # without steps, a call takes one
    with pytest.raises(
        TypeError, match=r"^give either `n` or `draws`, not both: n=3 takes the draws 0,"
    ):
        s.sample(rows, n=1, draws=0)


@pytest.mark.parametrize("steps", [9, [3, 4]])
def test_step_is_the_old_name_of_steps(steps):
    s, rows = Sampler(seed=7), [ROW, ROW]
    for call in (s.sample, s.filter):
        name = call.__name__
        with pytest.warns(DeprecationWarning, match=rf"write {name}\(\.\.\., steps=\.\.\.\)$") as c:
            old = call(rows, step=steps)
        assert c[0].filename == __file__
        new = call(rows, steps=steps)
        assert np.array_equal(getattr(old, "tokens", old), getattr(new, "tokens", new))
        with pytest.raises(TypeError, match="unexpected keyword argument 'step': did you mean"):
            call(rows, step=1, steps=1)
    assert s.step == 0
    for method in (s.sample, s.score, s.filter):
        parameters = inspect.signature(method).parameters
        assert {"streams", "steps", "draws"} <= parameters.keys()
        assert not {"step", "unknown"} & parameters.keys()


def test_score_names_the_step_of_an_invalid_row():
    with pytest.raises(ValueError, match="row 1 at step 9 has nan at token 0"):
        Sampler().score([ROW, [np.nan] * 4], [0, 0], steps=[8, 9])


# ------------------------------------------------------------------------------- samplers as values


def test_equal_settings_and_seeds_are_equal_samplers():
    chain = [TopK(3), Temperature([0.5, 1.0])]
    for make in (
        lambda: Sampler(temperature=0.8, top_p=0.9, seed=7),
        lambda: Sampler(chain, min_tokens_to_keep=[1, 2], seed=7, threads=2),
        lambda: Sampler(
            suppress_tokens=[3, 1], smoothing=0.3, ties="all", on_invalid="flag", seed=7
        ),
    ):
        s = make()
        moved = s.replace(step=5)
        for other in (make(), moved, copy.copy(s), pickle.loads(pickle.dumps(s)), s.replace()):
            assert s == other and hash(s) == hash(other)
        assert {s: 1}[moved] == 1
        for change in ({"seed": 8}, {"threads": "auto"}, {"min_tokens_to_keep": 3}):
            assert s != s.replace(**change)
        assert s != s.replace(ties="id" if s.ties == "all" else "all")
        assert s != s.replace(on_invalid="raise" if s.on_invalid == "flag" else "flag")
    assert Sampler(top_k=3, seed=7) != Sampler(top_k=4, seed=7)
    assert Sampler(temperature=[0.5, 1], seed=7) != Sampler(temperature=[0.5, 2], seed=7)
    assert Sampler([TopK(3), TopP(0.9)], seed=7) != Sampler([TopP(0.9), TopK(3)], seed=7)
    one = Sampler()  # a seed of the operating system is a seed
    assert one != Sampler() and one == Sampler(seed=one.seed)
    assert Sampler(seed=7) != 7 and Sampler(seed=7) != "Sampler(seed=7)"


def test_each_setting_is_an_attribute():
    s = Sampler(temperature=0.8, top_k=[3, 0], suppress_tokens=[2], seed=7)
    assert (s.temperature, s.top_p, s.min_p, s.suppress_tokens) == (0.8, 1.0, 0.0, (2,))
    assert s.smoothing is None and s.replace(smoothing=(0.3, 2)).smoothing == (0.3, 2.0)
    assert type(s.temperature) is float and s.top_k.tolist() == [3.0, 0.0]
    chain = Sampler([TopP(0.5), MinP(0.1), TopP(0.9), Temperature(2)], seed=7)
    assert (chain.temperature, chain.min_p, chain.top_k, chain.suppress_tokens) == (2.0, 0.1, 0, ())
    with pytest.raises(
        AttributeError, match=r"'top_p': its chain has several TopP stages: read `stages`"
    ):
        chain.top_p  # noqa: B018
    for name in STAGES:
        assert isinstance(inspect.getattr_static(Sampler, name), type(vars(HasSettings)["top_p"]))
        assert name in dir(s)
        with pytest.raises(AttributeError):
            setattr(s, name, 1)


def test_unknown_attributes_lead_somewhere():
    s = Sampler(seed=7)
    for name, words in (
        ("temp", "write temperature$"),
        ("random_seed", "write seed$"),
        ("max_length", r"in model\.generate\(\), write \*\*sampler\.hf\.generate_kwargs\(s\)$"),
        ("nothing", r"dir\(s\) lists what it has$"),
    ):
        with pytest.raises(AttributeError, match=f"no attribute '{name}': {words}"):
            getattr(s, name)
        assert not hasattr(s, name)
    assert not hasattr(Sampler.__new__(Sampler), "_stages")  # and no endless recursion


# ----------------------------------------------------------------------------------------- messages

S = "s = Sampler(seed=7)"
X = "[1.0, 3.0, 2.0, 0.0]"
WAYS_OUT = {
    "Sampler(temp=0.8)": "write temperature=0.8",
    "Sampler(Temp=0.8)": "write temperature=0.8",
    "Sampler(random_seed=3)": "write seed=3",
    "Sampler(n_threads=4)": "write threads=4",
    "Sampler(smoothing_factor=0.3)": "write smoothing=0.3",
    "Sampler(smoothing_curve=1.5)": "write smoothing=(factor, 1.5)",
    "Sampler(typ_p=0.9)": "write typical_p=0.9",
    "Sampler(typical=0.9)": "write typical_p=0.9",
    "Sampler(epsilon=3e-4)": "write epsilon_cutoff=0.0003",
    "Sampler(eta=3e-4)": "write eta_cutoff=0.0003",
    "Sampler(tfs=0.9)": "write tail_free=0.9",
    "Sampler(tfs_z=0.9)": "write tail_free=0.9",
    "Sampler(top_nsigma=1)": "write top_n_sigma=1",
    "Sampler(top_n_sigma=-1)": "`top_n_sigma` has to be a float in [0, inf] (0 or None is off), "
    "but is -1",
    "Sampler(xtc_threshold=0.1)": "write xtc=(0.1, probability)",
    "Sampler(xtc_probability=0.5)": "write xtc=(threshold, 0.5)",
    "Sampler(xtc_special_tokens=[2])": "write xtc=(threshold, probability, [2])",
    "Sampler(dynatemp_low=0.5)": "write dynamic_temperature=(0.5, high)",
    "Sampler(dynatemp_high=1.5)": "write dynamic_temperature=(low, 1.5)",
    "Sampler(dynatemp_exponent=2)": "write dynamic_temperature=(low, high, 2)",
    "Sampler(dynatemp_range=0.5)": "write dynamic_temperature=(temperature - 0.5, "
    "temperature + 0.5)",
    "Sampler(dynamic_temperature=True)": "`dynamic_temperature` has to be (low, high, exponent), "
    "but is True",
    "Sampler(temprature=0.8)": "did you mean temperature?",
    "Sampler(top_q=0.8)": "did you mean top_p or top_k or top_h?",
    "Sampler(seeed=1)": "did you mean seed?",
    "Sampler(anything=1)": "help(sampler.Sampler) lists the settings",
    "Sampler(rep_pen=1.1)": "write repetition_penalty=1.1",
    "Sampler(dry_multiplier=0.8, dry_base=2)": "write dry=(0.8, 2)",
    "Sampler(guidance_scale=2)": "generate() applies it before the draw: model.generate("
    "**inputs, **sampler.hf.generate_kwargs(s), guidance_scale=2)",
    f"Sampler(repetition_penalty=1.1)({X})": "`repetition_penalty` looks at the text so far: give "
    "it as history=History(prompt, output)",
    "Sampler(num_beams=4)": "it replaces the draw, so use it without a Sampler: "
    "model.generate(**inputs, num_beams=4)",
    "Sampler(max_new_tokens=50)": "it goes to generate(): model.generate(**inputs, "
    "**sampler.hf.generate_kwargs(s), max_new_tokens=50)",
    "Sampler(num_return_sequences=2)": "write sampler.hf.generate(model, **inputs, sampler=s, "
    "num_return_sequences=2)",
    "Sampler(do_sample=True)": "a Sampler always draws; greedy is temperature=0",
    "Sampler(mirostat_mode=2, mirostat_tau=3)": "write mirostat=(2, 3)",
    "Sampler(adaptive_target=0.5)": "write adaptive_p=0.5",
    "Sampler(min_tokens=5)": "write min_new_tokens=5",
    "Sampler(dry_sequence_breakers=['a'])": "breakers=sampler.hf.dry_breakers(tokenizer, strings))",
    "Sampler(penalty_last_n=64)": "of a penalty, as in repetition_penalty=(1.1, 64)",
    "Sampler(guided_json={})": "on arrays, give the call a mask=",
    "Sampler(banned_phrases=['a'])": "tokenizer=tokenizer, banned_phrases=[...])",
    "Sampler(best_of=2)": "no stage of a Sampler does this",
    "Sampler(temperature_last=True)": "last in a chain, as in Sampler([TopP(0.95), "
    "Temperature(0.8)])",
    "Sampler(sampler_priority='x')": "the order is a chain, as in Sampler([TopK(40), TopP(0.95), "
    "Temperature(0.8)])",
    "Sampler(smoothing_factor=0.3, smoothing_curve=4.3)": "write smoothing=(0.3, 4.3)",
    "Sampler(min_temp=0.5, max_temp=2, temp_exponent=1.5)": "write dynamic_temperature="
    "(0.5, 2, 1.5)",
    "Sampler(temperature=0.3, dynatemp_range=0.5)": "write dynamic_temperature=(0, 0.8) without "
    "`temperature`",
    "Sampler(tfs=0.9, mirostat_mode=0, rep_pen=1)": "write tail_free=0.9; leave out "
    "mirostat_mode, rep_pen: off",
    "Sampler(tfs=1, mirostat_mode=0)": "off, so leave them out",
    "Sampler(xtc_probability=0)": "off, so leave it out",
    "Sampler(epsilon_cutoff=3)": "has to be a float in [0, 1), but is 3 (0.0003?)",
    "Sampler(typical_p=2)": "has to be a float in (0, 1] (1 or None is off), but is 2 (0.02?)",
    "Sampler(TopK(40), TopK(3))": "of stages: write Sampler([TopK(40), TopK(3)])",
    "Sampler(temperature=1.5, dynamic_temperature=(0.5, 2))": "in a chain they multiply",
    "Sampler(logprobs=5)": "it goes with the logits, as in s.sample(logits, logprobs=5)",
    "Sampler(allowed_token_ids=[1])": "it goes with the logits, as in s(logits, mask=[1])",
    "Sampler(0.8)": "`stages` has to be a sequence of stages, but is 0.8: write Sampler("
    "temperature=0.8)",
    "Sampler(TopK(4))": "but is TopK(4): write Sampler([TopK(4)])",
    "Sampler({'top_k': 4})": "but is {'top_k': 4}: write Sampler(**settings)",
    "Sampler(GenerationConfig())": ": write Sampler.from_generation_config(config)",
    "Sampler(top_k=-1)": "`top_k` has to be an integer >= 0 (0 or None is off), but is -1",
    "Sampler(seed=7).replace(temp=1)": "write temperature=1",
    "Sampler.from_generation_config({}, temp=1)": "write temperature=1",
    f"s({X}, temperature=0.5)": "it is a setting of a Sampler, as in Sampler(temperature=0.5)",
    f"s({X}, xtc_threshold=0.1)": "it is a setting of a Sampler, as in "
    "Sampler(xtc=(0.1, probability))",
    f"s({X}, n=5)": "write s.sample(logits, n=5)",
    f"s({X}, logprobs=True)": "write s.sample(logits, logprobs=5)",
    f"s({X}, step=3)": "write s.sample(logits, steps=3)",
    f"s({X}, stream=3)": "write s.sample(logits, streams=[...])",
    f"s({X}, streams=[3])": "write s.sample(logits, streams=[3])",
    f"s({X}, masks=5)": "did you mean mask?",
    f"s({X}, foo=5)": "it takes dtype, history, mask",
    f"s([[1]], {X})": "a Sampler takes logits alone, but got 2 arguments. It is not a logits "
    "processor: write model.generate(**inputs, **sampler.hf.generate_kwargs(s))",
    f"s.sample({X}, num_samples=5)": "write n=5",
    f"s.sample({X}, top_logprobs=5)": "write logprobs=5",
    f"s.sample({X}, stream=5)": "did you mean streams?",
    f"s.score({X}, 0, n=5)": "write s.sample(logits, n=5)",
    f"s.filter({X}, logprobs=5)": "write s.sample(logits, logprobs=5)",
    f"s.distribution({X}, steps=5)": "did you mean step?",
    "model.generate(ids, s)": "in model.generate(), write **sampler.hf.generate_kwargs(s)",
    "model.generate(ids, logits_processor=[s], max_new_tokens=1)": "a Sampler takes logits alone",
    "generate_kwargs(s, max_new_tokens=5)": "it goes to generate(): model.generate(**inputs, "
    "**sampler.hf.generate_kwargs(s), max_new_tokens=5)",
    "generate_kwargs(s, top_k=5)": "write generate_kwargs(Sampler(top_k=5))",
    "generate_kwargs(temperature=0.8)": "write generate_kwargs(Sampler(temperature=0.8))",
    "generate_kwargs(s, mask=ids)": "write attention_mask=... for a prompt's padding; to allow "
    "only some tokens, give a processor as logits_processor=[mine]",
    "generate_kwargs(s, logits_processor=[s])": "but holds a sampler.api.Sampler",
    "filter_kwargs(temp=0.8)": "write temperature=0.8",
    "filter_kwargs(temperature=0.8, seed=7)": "Hugging Face draws there, so write "
    "torch.manual_seed(7)",
    "FilterLogitsProcessor(temp=0.8)": "write temperature=0.8",
    # By position.
    "Sampler(0.8, 50, 0.95)": "Sampler() takes from 1 to 2 positional arguments but 4 were given: "
    "write temperature=0.8, top_k=50, top_p=0.95",
    "Sampler([], 7)": "were given: write temperature=7",
    f"s.sample({X}, 3)": "takes 2 positional arguments but 3 were given: write n=3",
    f"s.score({X}, 1, 3)": "were given: give mask, history, state, streams ... by name",
    f"s.distribution({X}, 3)": "were given: give mask, history, state, stream ... by name",
    f"softmax({X}, 0)": "takes 1 positional argument but 2 were given: give temperature, axis, "
    "out, where by name",
    "generate_kwargs(s, 1)": "were given: write attention_mask=1",
    "score(model, ids, s, 2)": "3 positional arguments but 4 were given: write prompt_length=2",
    "filter_kwargs(s, 0.5)": "give filter_value, min_tokens_to_keep, attention_mask, logits_p",
    "generate(model, ids, s)": "were given: write sampler=Sampler(seed=7)",
    "generate(model, s, input_ids=ids)": "keyword-only argument: 'sampler': write sampler=...",
    # What other libraries have.
    f"s.sample({X}, return_logprobs=True)": "write logprobs=5",
    "Sampler(generator=torch.Generator())": "write seed=generator.initial_seed()",
    "Sampler(generator=np.random.default_rng(0))": "write rng=...",
    "Sampler(seed=torch.Generator())": "is a generator: write seed=generator.initial_seed()",
    "Sampler(seed=np.random.default_rng(0))": "is a generator: write rng=rng",
    "Sampler(stop='x')": "it goes to generate(): model.generate(**inputs, "
    "**sampler.hf.generate_kwargs(s), stop_strings='x')",
    "Sampler(max_tokens=3)": "it goes to generate(): model.generate(**inputs, "
    "**sampler.hf.generate_kwargs(s), max_new_tokens=3)",
    "Sampler(beams=2)": "so use it without a Sampler: model.generate(**inputs, num_beams=2)",
    "Sampler(greedy=True)": "a Sampler always draws; greedy is temperature=0",
    "Sampler(top_p=95)": "has to be a float in [0, 1], but is 95 (0.95?)",
    "Sampler(device='cuda')": "but is 'cuda': leave it out, tensors of any device work",
    "Sampler.from_generation_config(model)": "LlamaForCausalLM: write model.generation_config",
    "Sampler.from_generation_config(model.config)": "LlamaConfig: write model.generation_config",
    f"softmax({X}, dim=0)": "write axis=0",
    f"softmax({X}, temp=0.5)": "write temperature=0.5",
    f"softmax({X}, dtype=1)": "the result is float64 for float64, else float32: convert what goes "
    "in or comes out",
    f"sampler.logsumexp({X}, keepdim=True)": "write keepdims=True",
    # In sampler.hf.
    "generate(model, ids, sampler=s, seed=3)": "as in Sampler(seed=3)",
    "generate(model, ids, sampler=s, max_tokens=3)": "write max_new_tokens=3",
    "generate(model, ids, sampler=s, do_sample=True)": "draws: greedy is Sampler(temperature=0)",
    "generate(model, ids, sampler=s, top_k=3)": "as in Sampler(top_k=3)",
    "s(model(ids))": "WithPast: take the last position of its logits, .logits[:, -1]",
    "generate_kwargs(3)": "`sampler` has to be a Sampler, but is an int",
    "expand_inputs(ids, 3)": 'are a torch.Tensor: write {"input_ids": ids} for a tensor of ids',
    "sampler.generate_kwargs": "no attribute 'generate_kwargs': write sampler.hf.generate_kwargs",
}


@pytest.mark.parametrize("call", WAYS_OUT)
def test_mistakes_lead_somewhere(call, model):
    from transformers import GenerationConfig

    names = {
        "Sampler": Sampler, "TopK": TopK, "s": Sampler(seed=7), "model": model,
        "ids": torch.tensor([[1, 2]]), "GenerationConfig": GenerationConfig,
        "sampler": sampler, "softmax": sampler.softmax, "torch": torch, "np": np,
        **{name: getattr(sampler.hf, name) for name in sampler.hf.__all__},
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError, AttributeError)) as caught:
        eval(call, names)
    message = str(caught.value)
    assert WAYS_OUT[call] in message
    if "unexpected" in message:
        assert "() got an unexpected keyword argument '" in message or (
            "() got unexpected keyword arguments '" in message)  # fmt: skip
        assert message.endswith(WAYS_OUT[call])
    assert len(message) < 250 and "\n" not in message


def test_an_error_from_inside_a_call_stays_as_it_is():
    # Planted: every TypeError taken for one of a call that does not fit.
    error, cause = TypeError("mine"), KeyError()

    class Rows:
        def __array__(self, dtype=None, copy=None):
            raise error from cause

    for call in (Sampler(seed=7).sample, sampler.softmax):
        with pytest.raises(TypeError, match=r"^mine$") as caught:
            call(Rows())
        assert caught.value is error and error.__cause__ is cause
        assert caught.traceback[-1].name == "__array__"
    with pytest.raises(TypeError, match=r"^score\(\) missing .* argument: 'sampler'$"):
        sampler.hf.score(None, None)
    with pytest.raises(TypeError, match=r"^generate\(\) got multiple values .* 'inputs'$"):
        sampler.hf.generate(None, None, inputs=None, sampler=None)


def test_the_table_of_names_leads_to_what_there_is():
    ours = {*STAGES, *SAMPLER_ONLY}
    calls, family = (
        {name for one in functions for name in inspect.signature(one).parameters}
        for functions in ((Sampler.sample, Sampler.filter), (sampler.logsumexp,))
    )
    assert not SAME.keys() & (ours | calls | family)
    assert set(SAME.values()) <= ours | calls | family
    assert all(STAGES[SAME[name]].has_several for name in PARTS)
    known = list(inspect.signature(Sampler).parameters)
    assert set(SAME_IN_GENERATE.values()) <= {*IGNORED_FIELDS, *ALGORITHMS, "do_sample"}
    assert set(IN_HF) == set(sampler.hf.__all__)
    names = {*SAME, *SAME_IN_GENERATE, *PROCESSORS, *ALGORITHMS, *IGNORED_FIELDS, *OF_OTHERS} - ours
    for name in names - {name for name in SAME if SAME[name] in family - ours - calls}:
        message = str(unknown_keyword("Sampler", {name: 3}, known))
        assert not message.endswith("lists the settings"), message


def test_a_long_value_is_not_shown():
    for value in (np.zeros(1000), [0.5] * 100):
        message = str(unknown_keyword("Sampler", {"temp": value}, ["temperature"]))
        assert message.endswith("write temperature=...")


# --------------------------------------------------------------------------------------- the module


def python(code, path, *paths, options=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (path, *paths)))}
    return subprocess.run(
        [sys.executable, *options, "-W", "error", "-c", code],
        env=environment, cwd=path, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_modules_come_when_they_are_asked_for(tmp_path):
    code = (
        "import sys, sampler\n"
        "assert 'torch' not in sys.modules and 'hf' not in dir(sampler)\n"
        "print(sampler.hf.generate_kwargs.__name__, sampler.reference.kept.__name__)\n"
        "print(sampler.torch.softmax.__module__, sampler.testing.Result.__name__)\n"
        "assert 'hf' in dir(sampler)\n"
    )
    run = python(code, tmp_path, ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[:2] == ["generate_kwargs", "kept"]
    with pytest.raises(AttributeError, match=r"^module 'sampler' has no attribute 'nothing'$"):
        sampler.nothing  # noqa: B018
    run = python("import sys; sys.modules['torch'] = None\nimport sampler\nsampler.hf", ROOT)
    assert "ImportError: sampler.hf needs torch" in run.stderr


def test_dir_is_clean(tmp_path):
    run = python("import sampler; print(*dir(sampler))", tmp_path, ROOT)
    assert set(run.stdout.split()) == set(sampler.__all__)


def public_modules():
    yield "sampler"
    for one in pkgutil.walk_packages(sampler.__path__, "sampler."):
        if not any(part.startswith("_") for part in one.name.split(".")):
            yield one.name


@pytest.mark.parametrize("name", [*public_modules()])
def test_public_modules_say_what_is_public(name):
    module = import_module(name)
    assert module.__all__ and len(set(module.__all__)) == len(module.__all__)
    for one in module.__all__:
        assert hasattr(module, one)
        assert not one.startswith("_") or one == "__version__"


def test_the_other_project_of_our_name_is_named(tmp_path):
    # Its files came over ours: our package without its core.
    (tmp_path / "sampler").mkdir()
    for file in (ROOT / "sampler").glob("*.py"):
        (tmp_path / "sampler" / file.name).write_text(file.read_text())
    (tmp_path / "sampler-1.2.1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: sampler\nVersion: 1.2.1\n"
    (tmp_path / "sampler-1.2.1.dist-info" / "METADATA").write_text(metadata)
    for code in ("import sampler", "import sampler.hf"):
        # -S: without site-packages, where an editable install would find the core after all.
        run = python(code, tmp_path, options=["-S"])
        last = run.stderr.strip().splitlines()[-1]
        assert "another project, which the package index has as `sampler`" in last
        assert last.endswith("Uninstall both, then install this one from its clone.")


def test_the_demos_name_the_other_project(tmp_path):
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "__init__.py").write_text("class Other: pass\n")
    code = f"import sys; sys.path.insert(1, {str(ROOT / 'demos')!r}); import _model"
    packages = Path(np.__file__).parents[1]  # without what an editable install adds
    run = python(code, tmp_path, packages, options=["-S"])
    assert run.returncode == 1
    assert "the other project that the package index has under this name" in run.stderr
    assert "Traceback" not in run.stderr


def test_suppressed_tokens_are_settings_too():
    assert Sampler([SuppressTokens([2])], seed=1).suppress_tokens == (2,)


def test_a_call_without_logits_names_the_call():
    with pytest.raises(TypeError, match=r"^Sampler\.__call__\(\) missing .* 'logits'$"):
        Sampler(seed=0)()
