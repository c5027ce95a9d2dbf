"""The entropy: what it is, that its rounding is proven, and that it is the same everywhere."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from law import coins_of, random_stage
from sampler import MinP, Sampler, Temperature, TopK, TopP, _core, _inputs, build_info, reference
from sampler._engine import make_chain
from test_law import KINDS, make_row
from test_log_mass import everything

inf, INFO = math.inf, build_info()
GRID = 2.0**-30
P = [0.1, 0.2, 0.3, 0.4]
TABLE = [
    # probabilities, stages, sampler settings, the probabilities that are left
    (P, [], {}, P),
    (P, [TopK(2)], {}, [0.4, 0.3]),
    (P, [TopP(0.65)], {}, [0.4, 0.3]),
    (P, [MinP(0.6)], {}, [0.4, 0.3]),
    (P, [TopK(1)], {}, [1]),
    (P, [TopK(1)], {"min_tokens_to_keep": 3}, [0.4, 0.3, 0.2]),
    (P, [Temperature(0.5)], {}, [1, 4, 9, 16]),
    (P, [Temperature(0.5), TopK(2)], {}, [9, 16]),
    (P, [TopK(2), Temperature(0.5)], {}, [9, 16]),
    (P, [Temperature(inf), TopK(3)], {}, [1, 1, 1]),
    (P, [TopK(3), Temperature(0.0)], {}, [1]),
    ([0.0, 0.5, 0.0, 0.5], [], {}, [1, 1]),
    ([0.25] * 4, [TopK(2)], {"ties": "all"}, [1, 1, 1, 1]),
    ([0.25] * 4, [TopK(2)], {}, [1, 1]),
]


def on_grid(x):
    """The nearest multiple of 2**-30."""
    return float(np.rint(x / GRID) * GRID)


@pytest.mark.parametrize(("probabilities", "stages", "more", "left"), TABLE)
@pytest.mark.parametrize("repeats", [1, 100, 3000])
def test_table(probabilities, stages, more, left, repeats):
    # Tokens that underflow make the rows long without changing the entropy.
    with np.errstate(divide="ignore"):
        row = np.log(probabilities)
    row = np.concatenate([row, np.full(4 * repeats - 4, -inf)])
    s = Sampler(stages, seed=0, **more)
    found = s.sample(row, n=3).entropy.tolist()
    share = np.array(left) / sum(left)
    assert abs(found[0] + (share * np.log(share)).sum()) <= GRID
    assert found == [s.distribution(row).entropy] * 3
    assert found == [reference.entropy(reference.kept(row, stages, **more))] * 3
    assert not np.any(np.signbit(found))
    assert s.score(row, 0).entropy == found[0]


def exact(logits, temperature):
    """The entropy of some tokens, to 100 bits."""
    with mpmath.workprec(100):
        most = max(logits)
        z = [(mpmath.mpf(x) - mpmath.mpf(most)) / temperature for x in logits]
        weights = [mpmath.exp(one) for one in z]
        mass = mpmath.fsum(weights)
        return mpmath.log(mass) - mpmath.fsum(map(mpmath.fmul, weights, z)) / mass


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([2, 17, 255, 257, 511, 512, 700]))
def test_half_a_step_from_the_exact_value(seed, size):
    rng = np.random.default_rng(seed)
    row = make_row(rng, rng.choice(KINDS), size, rng.choice([np.float16, np.float32, np.float64]))
    stages = [random_stage(rng) for _ in range(rng.integers(0, 5))]
    floor = int(rng.choice([1, 3]))
    s = Sampler(stages, min_tokens_to_keep=floor, seed=0)
    state = reference.kept(row, stages, min_tokens_to_keep=floor, coins=coins_of(stages))
    d = s.distribution(row)
    assert d.entropy == s.sample(row).entropy == on_grid(d.entropy)
    if state.greedy:
        assert d.entropy == 0.0
    elif state.temperature == inf:
        assert abs(d.entropy - math.log(len(d))) <= GRID / 2 + 1e-15
    elif len(d) == len(state.ids):  # else within the band of promise 1
        wanted = exact(state.logits.tolist(), state.temperature)
        assert abs(d.entropy - wanted) <= GRID / 2 + 1e-13


def unrounded(row, temperature):
    z = (row - row.max()).astype(np.longdouble) / temperature
    weights = np.exp(z)
    return np.log(weights.sum()) - (weights @ z) / weights.sum()


def put_near_a_tie(row, token, temperature, gap):
    """Move a logit so that the row's entropy is `gap` above the middle of two multiples."""
    wanted = (np.floor(unrounded(row, temperature) / GRID) + np.longdouble(0.5)) * GRID + gap
    for _ in range(12):
        entropy = unrounded(row, temperature)
        log_p = (row[token] - row.max()) / temperature - np.log(
            np.exp((row - row.max()).astype(np.longdouble) / temperature).sum()
        )
        row[token] -= float((wanted - entropy) * temperature / (np.exp(log_p) * (log_p + entropy)))


def report(row, stages, tier):
    """The entropy, `tier` the first to be asked."""
    figures, logs = np.zeros((3, 1, 1), np.int64), np.empty((2, 1, 1))
    lists = np.empty((1, 1, 0), np.int64), np.empty((1, 1, 0))
    rows = _inputs.read(row).rows()
    _core.sample_tokens(make_chain(stages, tier=tier), rows, None, figures, logs, *lists, False)
    return float(logs[1, 0, 0])


@pytest.mark.usefixtures("isas")
@pytest.mark.parametrize("gap", [0.0, 1e-15, 1e-13, 1e-12, 1e-11, 1e-10])
@pytest.mark.parametrize("stages", [[], [Temperature(0.8)], [Temperature(3.0)]], ids=str)
def test_rows_whose_entropy_lies_between_two_multiples(stages, gap):
    temperature = stages[0].value if stages else 1.0
    rng = np.random.default_rng(1)
    for sign in (-1, 1):
        for _ in range(4):
            row = rng.normal(0.0, 2.0, 3000)
            row[100] = -1.0
            put_near_a_tie(row, 100, temperature, sign * gap)
            assert abs(float(unrounded(row, temperature) / GRID % 1) - 0.5) < 0.12
            wanted = Sampler(stages, seed=0).distribution(row).entropy
            assert abs(wanted - float(unrounded(row, temperature))) <= GRID / 2 + 1e-14
            for isa in INFO["isas"]:
                _core.choose_isa(isa)
                for tier in _core.TIERS.values():
                    assert report(row, stages, tier) == wanted, (isa, tier)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "stages", [[], [Temperature(0.8)], [Temperature(5.0), TopP(0.95)], [TopK(2000)]], ids=str
)
def test_the_fine_depth_changes_no_bit(kind, stages):
    rng = np.random.default_rng(5)
    for size in (513, 4000, 9000):
        for dtype in (np.float32, np.float64):
            row = make_row(rng, kind, size, dtype)
            found = {report(row, stages, tier) for tier in _core.TIERS.values()}
            assert found == {Sampler(stages, seed=0).distribution(row).entropy}
            wanted = reference.entropy(reference.kept(row, stages))
            assert abs(found.pop() - wanted) <= GRID
            # All that is reported, and with several threads.
            assert everything(row, stages, 0, False, 3, 3) == everything(row, stages, 2, False, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.02, 0.8, 1.0, 5.0, 1e4])
def test_the_error_of_the_fine_depth(kind, temperature):
    rng = np.random.default_rng(7)
    for size in (512, 5000, 60_000):
        for dtype in (np.float32, np.float64):
            rows = _inputs.read(make_row(rng, kind, size, dtype)).rows()
            (fine, error), depth = _core.depths(rows, temperature)
            assert abs(fine - depth) <= error <= 2e-12 * depth + 2.0**-63 * size


def test_the_exact_depth_is_rarely_asked(real_logits):
    rng = np.random.default_rng(0)
    for stages, way in (([Temperature(0.8)], "fine"), ([TopK(50)], "candidates")):
        s, before = Sampler(stages, seed=0), _core.counts()["entropy"]
        for row in real_logits:
            for _ in range(12):
                s.sample((row + rng.normal(0.0, 1e-3, len(row))).astype(np.float32))
        by = {name: n - before[name] for name, n in _core.counts()["entropy"].items()}
        asked = 12 * len(real_logits)
        assert by["exact"] <= 0.05 * asked
        assert by[way] == asked - by["exact"]
