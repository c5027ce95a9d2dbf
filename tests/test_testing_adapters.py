"""What stands between the checks and their users: adapters, assertions, fixtures, packages."""

import subprocess
import sys

import numpy as np
import pytest

from right_samplers import LAW, ROW, drawn, gumbel
from sampler import Sampler
from sampler.testing import (
    assert_sampler,
    check_draws,
    check_sampler,
    from_generate,
    from_processors,
)
from sampler.testing._laws import softmax_law

pytest_plugins = ["sampler.testing.fixtures"]


def test_processors_are_a_sampler():
    from transformers import LogitsProcessorList, TopKLogitsWarper

    processors = LogitsProcessorList([TopKLogitsWarper(5)])
    law = Sampler(top_k=5, ties="all")
    settings = {"draws": 5000, "tail": False}
    assert_sampler(from_processors(processors, seed=1), ROW, law, **settings)
    assert_sampler(
        lambda seed: from_processors(processors, seed=seed), ROW, law, seeded=True, **settings
    )
    wrong = check_sampler(from_processors([], seed=1), ROW, law, **settings)
    assert "its probability is 0" in wrong.findings[0]
    with pytest.raises(TypeError, match="`processors` have to be callables"):
        from_processors([3])


def test_generate_is_a_sampler(model):
    from sampler.hf import generate_kwargs

    row = np.random.default_rng(1).normal(0, 2, 199).astype(np.float32)
    rows = np.tile(row, (4000, 1))
    law = Sampler(top_p=0.9).distribution(row)
    theirs = from_generate(model, {"do_sample": True, "top_k": 0, "top_p": 0.9}, seed=1)
    assert check_draws(theirs(rows), law).ok is True
    # Ours takes a fresh seed with each call of generate_kwargs.
    ours = from_generate(model, lambda: generate_kwargs(Sampler(top_p=0.9), streams=range(4000)))
    assert check_draws(ours(rows), law).ok is True
    # top_k=50 is on unless it is switched off.
    hidden = check_draws(from_generate(model, {"do_sample": True})(rows), softmax_law(row))
    assert hidden.ok is False
    assert any("least likely tokens" in f and "never drawn" in f for f in hidden.findings)


def test_generate_is_checked_with_its_penalties(model):
    """Also what `generate` does ahead of the caller's own processors."""
    row = np.random.default_rng(1).normal(0, 2, 199).astype(np.float32)
    from transformers import GenerationConfig

    *seen, a, b = np.argsort(row)[-4:].tolist()
    penalized = row.copy()
    penalized[seen] /= 2  # the logits are above 0
    penalized[[a, b]] = -np.inf
    settings = {
        "do_sample": True, "top_k": 0, "repetition_penalty": 2.0, "suppress_tokens": [a, b],
        "max_new_tokens": 9, "min_new_tokens": 3,
    }  # fmt: skip
    draw = from_generate(model, settings, seed=1, input_ids=seen)
    tokens = draw(np.tile(row, (4000, 1)))
    assert check_draws(tokens, softmax_law(penalized)).ok is True
    assert check_draws(tokens, softmax_law(row)).ok is False
    assert not model._forward_hooks
    config = GenerationConfig(**settings)
    kept = config.to_dict()
    draw = from_generate(model, {"generation_config": config}, seed=1, input_ids=seen)
    assert np.array_equal(draw(np.tile(row, (4000, 1))), tokens)
    assert config.to_dict() == kept
    for call, message in (
        (lambda: from_generate(3, {}), "`model` has to be a model that can generate, but is 3"),
        (lambda: from_generate(model, None), "`kwargs` has to be a mapping, or a function"),
        (lambda: from_generate(model, {}, input_ids=[0.5]), r"`input_ids` have to be .* \[0.5\]"),
        (lambda: from_generate(model, {}, input_ids=[[1]]), r"`input_ids` .* shape \(1, 1\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    for name in ("num_beams", "num_return_sequences"):
        with pytest.raises(ValueError, match=f"`{name}` has to be 1, to draw one token per row"):
            from_generate(model, {"do_sample": True, name: 2})(row[None])


@pytest.mark.slow
def test_all_of_generate_is_a_sampler(model):
    row = np.random.default_rng(1).normal(0, 2, 199).astype(np.float32)
    theirs = from_generate(model, {"do_sample": True, "top_k": 0, "top_p": 0.9}, seed=1)
    settings = {"draws": 5000, "ties": False, "tail": False}
    assert_sampler(theirs, row, Sampler(top_p=0.9), **settings)


def test_assertions_read_well(assert_draws, assert_sampler):
    assert assert_draws(drawn(LAW, 5000), LAW).ok
    with pytest.raises(AssertionError) as caught:
        assert_draws([3, 3, 1], LAW, seeds={"seed": 7})
    text = str(caught.value)
    assert text.startswith("check_draws: NOT ok\n- token 3 was drawn 2 times; its probability is 0")
    assert "repeat it with seed=7" in text
    assert_sampler(gumbel(5), ROW, draws=2000, tail=False)


def test_only_its_adapters_know_torch():
    code = """
import sys, sampler.testing, sampler.testing._selftest
sampler.testing.check_sampler(sampler.Sampler(seed=1), [[0.0, 1.0]], draws=2, tail=False)
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["scipy", "matplotlib", "tqdm"])
def test_a_missing_package_is_named(package):
    code = f"""
import sys
sys.modules[{package!r}] = None
from sampler import testing
result = testing.check_draws([0, 1] * 500, [0.5, 0.5])
result.plot()
testing.check_sequentially(lambda n: [0] * n, [0.5, 0.5], progress=True)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert package in last
    assert last.endswith('pip install ".[testing]" in a clone of token-sampler')
