"""Rows that a stage rebases: every result is that of the new row, and the raw ones of the old."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from law import random_stage
from sampler import MinP, Sampler, Smoothing, Temperature, TopK, TopP, _core, reference
from test_law import KINDS, make_row

inf = math.inf
CHAINS = [
    [Smoothing(0.3)],
    [Temperature(0.7), TopK(300), Smoothing(0.2, 1.5), TopP(0.9)],
    [TopP(0.95), Smoothing(0.05, 4.0), Temperature(1.5), MinP(0.05)],  # the first in rank changes
    [Smoothing(0.4), TopK(40), Smoothing(0.1, 2.0), Temperature(0.5)],
    [Temperature(inf), Smoothing(0.5), TopK(9)],
    [Smoothing(0.2), Temperature(0.0)],
]


def rebased(row, stages):
    """The row that comes out as float64, and what is left to do at which temperature."""
    state = reference.kept(row, stages)
    x = np.full(len(row), -inf)
    x[state.ids] = state.logits
    return x, Temperature(0.0 if state.greedy else state.temperature)


@pytest.mark.parametrize("stages", CHAINS, ids=str)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_result_is_that_of_the_new_row(stages, dtype, real_logits):
    for number, row in enumerate(real_logits[:, :9000].astype(dtype)):
        x, temperature = rebased(row, stages)
        s, plain = Sampler(stages, seed=3), Sampler([temperature], seed=3)
        a, b = (one.sample(y, steps=number, n=5, logprobs=7) for one, y in ((s, row), (plain, x)))
        for name in ("tokens", "ranks", "n_kept", "logprobs", "entropy", "top_ids", "top_logprobs"):
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), name
        assert s.distribution(row).ids.tolist() == plain.distribution(x).ids.tolist()
        assert s.distribution(row).dense().tobytes() == plain.distribution(x).dense().tobytes()


@pytest.mark.parametrize("stages", CHAINS, ids=str)
def test_raw_figures_are_of_the_row_as_it_came_in(stages, real_logits):
    rows = real_logits[:, :5000].astype(np.float32)
    s, plain = Sampler(stages, seed=3), Sampler(seed=0)
    r = s.sample(rows, n=4, logprobs=3, raw=True)
    raw = plain.score(rows, r.tokens, logprobs=3, raw=True)
    for name in ("raw_logprobs", "raw_ranks", "raw_top_ids", "raw_top_logprobs"):
        assert getattr(r, name).tobytes() == getattr(raw, name).tobytes(), name
    assert s.score(rows, r.tokens, raw=True).log_mass.tobytes() == r.log_mass.tobytes()


@pytest.mark.parametrize("stages", CHAINS[:-1], ids=str)
def test_log_mass_leads_to_the_sampler_without_cuts(stages, real_logits):
    rows = real_logits[:, :5000].astype(np.float32)
    r = Sampler(stages, seed=3).sample(rows, raw=True)
    scales = Sampler([stage for stage in stages if stage.kind == "scale"], seed=3)
    assert np.allclose(r.logprobs + r.log_mass, scales.score(rows, r.tokens).logprobs, atol=1e-9)


@pytest.mark.parametrize("stages", CHAINS, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_filter_writes_the_law_in_the_dtype_of_the_row(stages, dtype, real_logits):
    rows = torch.from_numpy(real_logits[:, :3000].copy()).to(getattr(torch, dtype))
    s = Sampler(stages, seed=3)
    filtered = s.filter(rows)
    assert filtered.dtype == rows.dtype
    for row, out in zip(rows, filtered.double().numpy(), strict=True):
        d = s.distribution(row)
        assert set(np.flatnonzero(out > -inf)) == set(d.ids.tolist())
        if all(stage.curve <= 3 for stage in stages if isinstance(stage, Smoothing)):
            assert out.max() == 0.0
        wanted = d.logprobs - d.logprobs[0]
        assert np.allclose(
            out[d.ids] - out.max(), wanted, rtol=2e-2 if "16" in dtype else 1e-6, atol=1e-5
        )


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([2, 255, 257, 513, 3000]))
def test_batches_strides_threads_and_masks(seed, size):
    rng = np.random.default_rng(seed)
    dtype = rng.choice([np.float32, np.float64])
    rows = np.stack([make_row(rng, rng.choice(KINDS), size, dtype) for _ in range(3)])
    stages = [random_stage(rng), Smoothing(rng.uniform(0.01, 1), rng.uniform(1, 5))]
    stages += [random_stage(rng) for _ in range(rng.integers(0, 3))]
    s = Sampler(stages, seed=int(seed), threads=int(rng.choice([1, 3])))
    mask = rng.random(rows.shape) < 0.8
    mask[:, 0], rows[:, 0] = True, 0.0
    step = {"steps": 4, "logprobs": 3, "raw": True}
    whole = s.sample(np.repeat(rows, 2, axis=1)[:, ::2], mask=mask, streams=[5, 6, 7], **step)
    for i, row in enumerate(rows):
        alone = s.sample(row, mask=mask[i], streams=5 + i, **step)
        copied = s.sample(np.where(mask[i], row, -inf), streams=5 + i, **step)
        for name in ("tokens", "n_kept", "ranks", "logprobs", "entropy", "log_mass", "top_ids"):
            one, *others = (np.asarray(x) for x in (getattr(whole, name)[i], getattr(alone, name),
                                                    getattr(copied, name)))  # fmt: skip
            assert all(one.tobytes() == other.tobytes() for other in others), name


def test_what_is_kept_stays_kept():
    big = np.finfo(np.float64).max
    for x, f, c in itertools.product(
        ([0.0, -big], [big, -big], [0.0, -1e200, -1.0], [0.0, -5e-324, -1e-200]),
        (1e-300, 1.0, 1e308), (1.0, 3.0, 1e308),
    ):  # fmt: skip
        d = Sampler(smoothing=(f, c), seed=0).distribution(x)
        assert len(d) == len(x)
        assert np.isfinite(d.logprobs).all()


def test_log_mass_of_steep_curves():
    # Found: NaN, and an error of 1e-6, where the likeliest is far above the largest logit.
    s = Sampler([Smoothing(1e308, 5), Temperature(0.1)], seed=0)
    assert s.sample([-1, -0.5, 0], raw=True).log_mass == 0.0
    s = Sampler([Smoothing(1e9, 5), Temperature(1e-3), TopK(2)], seed=0)
    log_mass = s.sample(np.array([0] + [-1 / 3] * 4), raw=True).log_mass
    assert abs(log_mass - math.log(0.5)) < 2.4e-10


@pytest.mark.parametrize("value", [(), (1, 2, 3)])
def test_a_tuple_has_the_parameters_of_the_step(value):
    message = rf"^`smoothing` has to be \(factor, curve\), but is {re.escape(repr(value))}$"
    with pytest.raises(TypeError, match=message):
        Sampler(smoothing=value)


def test_the_distance_that_smoothing_keeps():
    # 1 / factor below the likeliest, at a curve of 1.
    logs = Sampler([Smoothing(0.2)]).distribution([7.0, 5.0, 2.0, -3.0]).logprobs
    assert np.allclose(logs - logs[0], [0.0, -0.2 * 2.0**2, -5.0, -0.2 * 10.0**2])


def test_a_curve_above_three_ranks_others_first():
    d = Sampler(smoothing=(1.0, 5.0)).distribution([0.0, -0.25, -2.0])
    assert d.ids.tolist() == [1, 0, 2]
    assert np.allclose(np.log(d.probs / d.probs[0]), [0, -0.03125, -12 - 0.03125])


def test_some_rows_of_a_batch_are_rebased(real_logits):
    # Planted: room for the new row only if the last row needs it.
    rows = real_logits[:3, :5000].astype(np.float32)
    for factors in ([0.3, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.1]):
        _core.idle_scratch(give_back=True)
        s = Sampler(smoothing=(factors, 1.5), seed=2)
        r = s.sample(rows, steps=0, raw=True)
        for i, row in enumerate(rows):
            alone = Sampler(smoothing=(factors[i], 1.5), seed=2)
            want = alone.sample(row, streams=i, steps=0, raw=True)
            assert (r.tokens[i], r.logprobs[i], r.log_mass[i]) == (
                want.tokens, want.logprobs, want.log_mass,
            )  # fmt: skip
