"""The instruction sets: each gives the same bits, and the environment chooses one."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

import sampler
from law import FIGURES
from sampler import Sampler, _core

INFO = sampler.build_info()
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
SETTINGS = (
    {}, {"temperature": 0.7}, {"temperature": 30.0}, {"top_k": 40}, {"top_k": 700},
    {"top_p": 0.9}, {"temperature": 5.0, "top_p": 0.95}, {"min_p": 0.05},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "ties": "all"}, {"temperature": 0.0},
    {"temperature": float("inf"), "top_p": 0.3}, {"top_p": 0.5, "min_tokens_to_keep": 30},
)  # fmt: skip


def rows(vocab, real_logits):
    rng = np.random.default_rng(vocab)
    batch = rng.normal(0.0, 3.0, (6, vocab))
    batch[1] = np.round(batch[1])
    batch[2, 1::3] = -np.inf
    batch[3] = -12.0
    batch[3, -1] = 0.0
    batch[4] *= 1e3
    batch[5] = np.resize(real_logits[vocab % len(real_logits)], vocab)
    return batch


def everything(batch):
    """All that the core computes of a batch, as bytes."""
    for settings in SETTINGS:
        s = Sampler(**settings, seed=7, on_invalid="flag")
        yield s(batch).tobytes()
        for n in (None, 5):
            r = s.sample(batch, n=n, logprobs=7, raw=True, steps=3)
            yield from (getattr(r, name).tobytes() for name in FIGURES)
        yield s.filter(batch).tobytes()
        d = s.distribution(batch[0])
        yield d.ids.tobytes() + d.probs.tobytes() + d.logprobs.tobytes()
    for function in (sampler.softmax, sampler.log_softmax, sampler.logsumexp):
        yield function(batch, temperature=0.8).tobytes()


@pytest.mark.usefixtures("isas")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 511, 513, 1025, 4097, 20_000])
def test_every_isa_gives_the_same_bits(vocab, dtype, real_logits):
    batch = rows(vocab, real_logits).astype(dtype)
    batch[4, vocab // 2] = np.nan
    batch[3, vocab // 3] = np.inf
    _core.choose_isa("baseline")
    want = list(everything(batch))
    for isa in INFO["isas"][1:]:
        assert _core.choose_isa(isa) == (isa, INFO["isas"])
        assert list(everything(batch)) == want, isa


@pytest.mark.usefixtures("isas")
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_isa_finds_invalid_logits(dtype):
    for isa in INFO["isas"]:
        _core.choose_isa(isa)
        for vocab in (1, 64, 100, 1024, 3000):
            for place in {0, vocab // 2, vocab - 1}:
                for bad in (np.nan, np.copysign(np.nan, -1.0), np.inf):
                    row = np.full(vocab, -np.inf if vocab == 100 else 0.0).astype(dtype)
                    row[place] = bad
                    with pytest.raises(ValueError, match=f"has {bad} at token {place}"):
                        Sampler(seed=7)(row)


def run(isa):
    code = "import sampler; print(sampler.build_info()['isa'])"
    env = {**os.environ, "SAMPLER_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("isa", INFO["isas"])
def test_the_environment_chooses(isa):
    assert run(isa).stdout.strip() == isa


def test_the_best_is_the_default():
    assert run("").stdout.strip() == INFO["isas"][-1]


@pytest.mark.parametrize("isa", ["v5", "V3", "avx2"])
def test_an_isa_that_the_machine_lacks(isa):
    result = run(isa)
    assert result.returncode != 0
    wanted = ", ".join(INFO["isas"])
    assert f"ValueError: `SAMPLER_ISA` has to be one of {wanted} on this machine" in result.stderr


def test_build_info():
    assert INFO["isa"] == (os.environ.get("SAMPLER_ISA") or INFO["isas"][-1])
    assert INFO["isas"][0] == "baseline"
    assert INFO["compiler"]
