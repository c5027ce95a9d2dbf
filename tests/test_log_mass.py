"""The kept mass: what it is, that its rounding is proven, and that it is the same everywhere."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from law import random_stage
from sampler import MinP, Sampler, Temperature, TopK, TopP, _core, _inputs, reference
from test_law import KINDS, make_row

inf = math.inf
GRID = 2.0**-32
P = [0.1, 0.2, 0.3, 0.4]
TABLE = [
    # probabilities, stages, sampler settings, the share of the mass that is kept
    (P, [], {}, 1),
    (P, [TopK(2)], {}, 7 / 10),
    (P, [TopP(0.65)], {}, 7 / 10),
    (P, [MinP(0.6)], {}, 7 / 10),
    (P, [TopK(1)], {"min_tokens_to_keep": 3}, 9 / 10),
    (P, [TopK(4)], {}, 1),
    # shares at temperature 0.5 are 1, 4, 9, 16 of 30, wherever in the chain the temperature stands
    (P, [Temperature(0.5)], {}, 1),
    (P, [Temperature(0.5), TopK(2)], {}, 25 / 30),
    (P, [TopK(2), Temperature(0.5)], {}, 25 / 30),
    (P, [Temperature(2.0), TopK(3), Temperature(0.25), TopK(2)], {}, 25 / 30),
    (P, [Temperature(2.0), TopK(3), Temperature(0.5), TopK(2)], {}, 7 / 10),
    (P, [Temperature(inf), TopK(3)], {}, 3 / 4),
    (P, [TopK(3), Temperature(inf)], {}, 3 / 4),
    # greedy is greedy: the one token is certain, whatever was removed
    (P, [Temperature(0.0)], {}, 1),
    (P, [TopK(3), Temperature(0.0)], {}, 1),
    (P, [Temperature(0.0), TopK(3), Temperature(inf)], {}, 1),
    # what has no probability is not missed
    ([0.0, 0.5, 0.0, 0.5], [TopK(2)], {}, 1),
    ([0.0, 0.5, 0.0, 0.5], [Temperature(inf), TopK(1)], {}, 1 / 2),
    ([0.25] * 4, [TopK(2)], {"ties": "all"}, 1),
    ([0.25] * 4, [TopK(2)], {}, 1 / 2),
]


def on_grid(x):
    """The nearest multiple of 2**-32."""
    return float(np.rint(x / GRID) * GRID)


def product(stages):
    t = 1.0
    for stage in stages:
        if isinstance(stage, Temperature):
            t = max(t * stage.value, 5e-324)
    return t


@pytest.mark.parametrize(("probabilities", "stages", "more", "share"), TABLE)
@pytest.mark.parametrize("repeats", [1, 100, 3000])
def test_table(probabilities, stages, more, share, repeats):
    # Tokens that underflow make the rows long without changing a mass.
    with np.errstate(divide="ignore"):
        row = np.log(probabilities)
    row = np.concatenate([row, np.full(4 * repeats - 4, -inf)])
    r = Sampler(stages, seed=0, **more).sample(row, n=3)
    assert r.log_mass.tolist() == [on_grid(math.log(share))] * 3
    assert not np.any(np.signbit(r.log_mass)) or share < 1
    assert reference.log_mass(row, stages, **more) == on_grid(math.log(share))


def exact(row, ids, temperature):
    """The log of the share of the mass, to 100 bits."""
    with mpmath.workprec(100):
        z = [(mpmath.mpf(x) - mpmath.mpf(float(row.max()))) / temperature for x in row.tolist()]
        weights = [mpmath.exp(v) if math.isfinite(v) else mpmath.mpf(0) for v in z]
        return mpmath.log(mpmath.fsum(weights[i] for i in ids) / mpmath.fsum(weights))


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([2, 17, 255, 257, 511, 512, 700]))
def test_half_a_step_from_the_exact_value(seed, size):
    rng = np.random.default_rng(seed)
    dtype = rng.choice([np.float16, np.float32, np.float64])
    row = make_row(rng, rng.choice(KINDS), size, dtype)
    stages = [random_stage(rng) for _ in range(rng.integers(0, 5))]
    more = {"min_tokens_to_keep": int(rng.choice([1, 3])), "ties": str(rng.choice(["id", "all"]))}
    s = Sampler(stages, seed=0, **more)
    found = float(s.sample(row).log_mass)
    assert found <= 0.0 and found / GRID == round(found / GRID)
    ids = s.distribution(row).ids.tolist()
    temperature = 0.0 if any(t == Temperature(0.0) for t in stages) else product(stages)
    if temperature == 0.0:
        assert found == 0.0
    elif temperature == inf:
        assert found == on_grid(math.log(len(ids) / np.sum(row > -inf)))
    else:
        assert abs(found - exact(row, ids, temperature)) <= GRID / 2 + 1e-12
    if len(ids) == len(reference.kept(row, stages, **more).ids):
        assert abs(found - reference.log_mass(row, stages, **more)) <= GRID


CHAINS = [
    [Temperature(0.8), TopK(50)],
    [Temperature(0.8), TopP(0.9)],
    [Temperature(5.0), TopP(0.95)],
    [MinP(0.05), Temperature(1.5)],
    [TopK(2000), Temperature(0.7), TopP(0.5)],
    [TopK(9)],
    [Temperature(1e-3), TopK(2)],
    [Temperature(inf), TopK(700)],
]


@pytest.mark.parametrize("stages", CHAINS, ids=str)
@pytest.mark.parametrize("size", [600, 5000, 70_000])
def test_it_completes_the_logprobs(stages, size, real_logits):
    row = np.resize(real_logits[3], size).astype(np.float32)
    s, alone = (Sampler(chain, seed=5) for chain in (stages, [Temperature(product(stages))]))
    r = s.sample(row, n=20)
    want = alone.score(row, r.tokens)
    assert np.all(want.log_mass == 0.0)
    assert np.allclose(r.logprobs + r.log_mass, want.logprobs, rtol=0, atol=GRID)
    assert s.score(row, r.tokens).log_mass.tobytes() == r.log_mass.tobytes()


# ------------------------------------------------------------------------------- proven or exact


def mass_of(row, temperature):
    return _core.masses(_inputs.read(row).rows(), temperature)[_core.TIERS["exact"]][0]


def rounded_exact(row, s):
    """What the exact masses of what is kept and of the row say."""
    temperature = product(s.stages)
    kept = row[np.sort(s.distribution(row).ids)]
    log = [_core.canonical("log", mass_of(x, temperature)) for x in (kept, row)]
    return on_grid(log[0] - log[1])


@pytest.mark.parametrize("stages", CHAINS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_fine_mass_changes_no_bit(kind, stages):
    rng = np.random.default_rng(5)
    s = Sampler(stages, seed=0)
    for size in (513, 4000, 9000):
        for dtype in (np.float32, np.float64):
            row = make_row(rng, kind, size, dtype)
            assert s.sample(row).log_mass == rounded_exact(row, s)


def test_both_ways_are_taken(real_logits):
    s = Sampler(temperature=0.8, top_k=50, seed=0)
    before = _core.counts()["log_mass"]
    rng = np.random.default_rng(0)
    for row in real_logits:
        for _ in range(12):
            x = (row + rng.normal(0.0, 1e-3, len(row))).astype(np.float32)
            s.sample(x)
    after = _core.counts()["log_mass"]
    fine, by_exact = (after[way] - before[way] for way in ("fine", "exact"))
    # 4e-12 of the grid's 2.3e-10 are open: one or two rows in a hundred.
    assert fine + by_exact == 12 * len(real_logits) and 0 < by_exact < 0.06 * fine


@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-13, 1e-12, 4e-12, 1e-11])
@pytest.mark.parametrize("stages", CHAINS[:2], ids=str)
def test_rows_whose_mass_lies_between_two_multiples(stages, gap):
    s = Sampler(stages, seed=0)
    rng = np.random.default_rng(1)
    temperature = product(stages)
    for sign in (-1, 1):
        for _ in range(20):
            # All other kept: then a tail token is moved until the log is where it is wanted.
            row = rng.normal(0.0, 2.0, 3000)
            row[100] = -1.0
            for _ in range(6):
                ids = np.sort(s.distribution(row).ids)
                assert 100 not in ids
                kept, whole = mass_of(row[ids], temperature), mass_of(row, temperature)
                log = math.log(kept) - math.log(whole)
                want = (math.floor(log / GRID) + 0.5) * GRID + sign * gap
                weight = math.exp((row[100] - row.max()) / temperature)
                more = whole * math.expm1(log - want)
                row[100] += temperature * math.log1p(more / weight)
            assert abs((log / GRID) % 1 - 0.5) < 0.06
            assert s.sample(row).log_mass == rounded_exact(row, s)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.02, 0.8, 1.25, 5.0, 1e4])
def test_both_masses_of_one_pass(kind, temperature, dtype):
    rng = np.random.default_rng(7)
    for size in (512, 4096, 5000, 60_000):
        row = make_row(rng, kind, size, dtype)
        log_raw, fine, error = _core.whole_masses(_inputs.read(row).rows(), temperature)
        assert log_raw == _core.canonical("log", mass_of(row, 1.0))
        whole = mass_of(row, temperature)
        assert abs(fine - whole) <= error <= 1e-11 * whole


def test_rows_without_a_fine_mass():
    for row, t in ((np.zeros(511), 0.8), (np.full(600, 1e308), 0.8), (np.zeros(600), 1e31)):
        assert _core.whole_masses(_inputs.read(row).rows(), t)[2] == inf
        assert Sampler(temperature=t, top_k=2).sample(row).log_mass == on_grid(
            math.log(2 / len(row))
        )
