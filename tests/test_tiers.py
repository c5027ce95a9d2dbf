"""Certified answers: what the cheaper masses prove, and what is left to the exact one.

Rows are made so that each tier has its turn, which the core's counts of settled questions show; and
the first tier to ask may be named, so that every path answers every question. All have to agree.
"""

from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from law import check_chain, prefix_mass, rank, sums
from sampler import (
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    PLess,
    Sampler,
    Temperature,
    TopA,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    _core,
    _inputs,
)
from sampler._engine import make_chain
from test_law import make_row
from test_odds import draw

TIERS = tuple(_core.TIERS.values())


def kept(row, stages, tier=TIERS[0]):
    """The ids that the core keeps, ascending, asking a tier first."""
    chain = make_chain(stages, tier=tier)
    rows = _inputs.read(row).rows()
    ids, floats = np.empty(rows.vocab, np.int64), np.empty((4, rows.vocab))
    count, _, invalid = _core.distribution_row(chain, rows, ids, *floats)
    assert invalid is None
    return ids[:count].copy()


def agreed(row, stages):
    """What all tiers keep."""
    first, *others = (kept(row, stages, tier) for tier in TIERS)
    for other in others:
        assert np.array_equal(first, other)
    return first


@contextmanager
def settled(question, *ways):
    """Expect a question, "draws" or "top_p", to be settled once each in these ways alone."""
    before = _core.counts()[question]
    yield
    after = _core.counts()[question]
    assert {way: n - before[way] for way, n in after.items() if n > before[way]} == dict.fromkeys(
        ways, 1
    )


def test_ordinary_rows_are_settled_by_the_fast_mass(real_logits):
    row = real_logits[0].astype(np.float32)
    with settled("top_p", "fast"):
        kept(row, [Temperature(0.8), TopP(0.9)])
    with settled("draws", "fast"):
        draw([Temperature(0.8)], row[None], np.full((1, 1), 0.4))
    with settled("top_p", "fine"):  # its error is relative to the logits' float32
        kept(row.astype(np.float64), [Temperature(0.8), TopP(0.9)])


def test_few_tokens_need_no_tier(real_logits):
    row = real_logits[0].astype(np.float32)
    with settled("top_p", "candidates"), settled("draws"):
        kept(row, [TopK(50), TopP(0.9)])
    with settled("draws", "candidates"):
        draw([TopK(50)], row[None], np.full((1, 1), 0.4))


# ----------------------------------------------------------------- prefixes whose mass is exactly p


@pytest.mark.parametrize("n", [256, 4096, 8192, 65_536, 131_072])
@pytest.mark.parametrize("share", [1 / 256, 1 / 2, 3 / 4, 255 / 256])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_tokens_at_one_ulp_around_a_prefix(n, share, dtype):
    # n is a power of two, so shares of prefixes are doubles, and nothing rounds.
    row = np.full(n, 3.25, dtype)
    few = int(n * share)
    for p, count in (
        (np.nextafter(share, 0.0), few),
        (share, few),
        (np.nextafter(share, 1.0), few + 1),
    ):
        assert np.array_equal(agreed(row, [TopP(float(p))]), np.arange(count))


@pytest.mark.parametrize("ulps", [-1, 0, 1])
@pytest.mark.parametrize("far", [12.0, 17.3])
def test_equal_tokens_far_below_the_maximum(far, ulps):
    # Every token rounds alike in float32, and the errors add up to 4e-6 of the mass.
    row = np.full(131_072, -far, np.float32)
    row[777] = 0.0
    mass = prefix_mass(row[rank(row)].astype(np.float64))
    for place in (0, 1, 2, 99, 5000, 100_000):
        p = float(mass[place])
        p = p if ulps == 0 else float(np.nextafter(p, p + ulps))
        check_chain(row, [TopP(p)])
        agreed(row, [TopP(p)])


@pytest.mark.parametrize("vocab", [300, 5000, 50_000, 131_072])
@pytest.mark.parametrize("spread", [0.3, 2.5])
def test_p_in_the_band_around_a_prefix(vocab, spread):
    rng = np.random.default_rng(vocab)
    row = rng.normal(0.0, spread, vocab).astype(np.float32)
    mass = prefix_mass(row[rank(row)].astype(np.float64))
    for place in (0, 1, 30, 250, vocab // 2, vocab - 3):
        for gap in (-2e-12, -1e-13, -1e-15, 0.0, 1e-15, 1e-13, 2e-12):
            p = min(max(float(mass[place]) + gap, 0.0), 1.0)
            ids = agreed(row, [TopP(p)])
            if abs(gap) > 1e-12:
                assert len(ids) == place + 1 + (gap > 0)
            else:
                assert len(ids) - place in (0, 1, 2)


def test_what_the_fast_and_the_fine_mass_leave_open():
    rng = np.random.default_rng(3)
    row = rng.normal(0.0, 3.0, 50_000).astype(np.float32)
    mass = prefix_mass(row[rank(row)].astype(np.float64))
    for gap, way in ((1e-3, "fast"), (1e-8, "fine"), (1e-14, "exact")):
        p = float(mass[40]) + gap * float(mass[41] - mass[40] if gap == 1e-3 else 1.0)
        with settled("top_p", way):
            kept(row, [TopP(p)])


@pytest.mark.parametrize(("size", "high"), [(8192, 70), (32_768, 270), (131_072, 1100)])
def test_prefixes_that_end_where_the_candidates_do(size, high):
    # The bound on the k-th logit falls into the gap below the high ones: these are the candidates.
    row = np.full(size, -12.0, np.float32)
    row[np.arange(high) * (size // high) + 5] = np.linspace(0.0, -5.0, high)
    mass = prefix_mass(row[rank(row)].astype(np.float64))
    for gap in (-1e-8, -1e-9, -2e-12, 2e-12, 1e-9, 1e-8):
        ids = agreed(row, [TopP(float(mass[high - 1]) + gap)])
        assert len(ids) == high + (gap > 0)


# ------------------------------------------------------------------------- draws at a boundary


@pytest.mark.parametrize("stages", [[], [Temperature(5.0)], [Temperature(2.0), TopP(0.97)]])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_at_boundaries(stages, dtype):
    row = np.random.default_rng(8).normal(0.0, 2.0, 20_000).astype(dtype)
    ids = kept(row, stages)
    temperature = stages[0].value if stages else 1.0
    z = (row[ids].astype(np.float64) - row.max()) / temperature
    cumulative = np.cumsum(np.exp(z).astype(np.longdouble))
    cumulative = (cumulative / cumulative[-1]).astype(np.float64)
    places = np.arange(0, len(ids) - 1, 61)
    for gap in (-1e-6, -1e-9, -2e-12, 2e-12, 1e-9, 1e-6):
        u = np.clip(cumulative[places] + gap, 0.0, 1 - 2**-53)[:, None]
        rows = np.broadcast_to(row, (len(u), len(row)))
        found = [draw(stages, rows, u, tier)[:, 0] for tier in TIERS]
        assert np.array_equal(found[0], found[1])
        assert np.array_equal(found[0], found[2])
        wanted = ids[np.searchsorted(cumulative, u[:, 0], side="right")]
        assert np.array_equal(found[0], wanted)


def test_each_tier_settles_draws_of_its_own():
    row = np.random.default_rng(8).normal(0.0, 2.0, 20_000).astype(np.float32)
    cumulative = np.cumsum(np.exp(row.astype(np.longdouble)))
    cumulative = (cumulative / cumulative[-1]).astype(np.float64)
    middle = (cumulative[9000] + cumulative[9001]) / 2
    for u, way in (
        (middle, "fast"),
        (cumulative[9000] + 1e-8, "fine"),
        (cumulative[9000] + 1e-15, "exact"),
        (0.0, "exact"),
    ):
        with settled("draws", way):
            draw([], row[None], np.full((1, 1), u))


def test_deep_tokens_before_the_first_heavy_one_are_drawn():
    # Below 2**-45 the fast mass leaves weights out: nothing may be concluded from its zeros.
    row = np.full(8192, -33.0, np.float32)
    row[-1] = 0.0
    weight = np.exp(-33.0)
    for place in (0, 1, 700, 8190):
        u = np.full((1, 1), (place + 0.5) * weight / (1.0 + 8191 * weight))
        for tier in TIERS:
            assert draw([], row[None], u, tier)[0, 0] == place


# ---------------------------------------------------------- boundaries that no candidates hold


def exponents(rng, size):
    """Values of all magnitudes, so that halving a range of values hardly narrows it."""
    return (rng.choice([-1, 1], size) * 2.0 ** rng.uniform(-120, 100, size)).astype(np.float32)


def steps(rng, size):
    """Three values, each of more tokens than there is room for as candidates."""
    return rng.choice(np.float32([-1.0, 0.5, 2.0]), size)


def outliers(rng, size):
    """A flat row with a few values far above and below."""
    row = rng.normal(0.0, 1e-3, size).astype(np.float32)
    row[rng.integers(0, size, 5)] = [-1e30, -50.0, 3.0, 4.0, 5.0]
    return row


def halves(rng, size):
    """The larger half first: a sample at regular steps is no worse for it."""
    return np.sort(rng.normal(0.0, 2.0, size).astype(np.float32))[::-1].copy()


def striped(rng, size):
    """Large at every 20th place: a sample at regular steps misleads."""
    row = rng.normal(-1.0, 0.5, size).astype(np.float32)
    row[::20] += 3.0
    return row


MAKERS = (exponents, steps, outliers, halves, striped)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("temperature", [1.0, 7.0])
@pytest.mark.parametrize("size", [5000, 40_000, 131_072])
def test_broad_nuclei(make, temperature, size):
    row = make(np.random.default_rng(size), size)
    for p in (0.2, 0.5, 0.95, 1 - 1e-9):
        stages = [Temperature(temperature), TopP(p)]
        check_chain(row, stages)
        agreed(row, stages)
    stages = [Temperature(temperature), TopP(0.9), TopP(0.8), MinP(1e-9), TopP(0.7)]
    check_chain(row, stages)
    agreed(row, stages)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_counts(make, dtype):
    size = 60_000
    row = make(np.random.default_rng(1), size).astype(dtype)
    row[::7] = -np.inf
    order = rank(row)
    for k in (3, 2000, 4097, 20_000, 45_000, len(order) - 1, len(order), len(order) + 1):
        assert np.array_equal(kept(row, [TopK(k)]), np.sort(order[:k]))
        check_chain(row, [TopK(k)], ties="all")


def test_a_large_count_after_a_cut_among_ties():
    row = np.zeros(50_000, np.float32)
    assert np.array_equal(kept(row, [TopP(0.5), TopK(20_000)]), np.arange(20_000))
    assert np.array_equal(kept(row, [TopP(0.5), TopK(30_000)]), np.arange(25_000))
    assert np.array_equal(kept(row, [TopK(40_000), TopP(0.5)]), np.arange(20_000))
    assert np.array_equal(kept(row, [TopK(40_000), TopK(30_000), TopP(0.5)]), np.arange(15_000))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ties_at_the_lowest_finite_number(dtype):
    row = np.full(6000, np.finfo(dtype).min, dtype)
    row[::9] = -np.inf
    order = rank(row)
    for k in (1, 700, 2000, 5000, len(order) - 1):
        ids = np.sort(order[:k])
        assert np.array_equal(kept(row, [TopK(k)]), ids)
        finite = np.isfinite(Sampler(top_k=k, seed=0).filter(row))
        assert np.array_equal(np.flatnonzero(finite), ids)
        assert Sampler(top_k=k, seed=0).sample(row).n_kept == k


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [float("inf"), 1e-31, 1e31, 1e-300])
def test_temperatures_that_no_bound_covers(temperature, dtype):
    rng = np.random.default_rng(2)
    for row in (rng.normal(0.0, 3.0, 20_000), rng.normal(0.0, 1e-31, 20_000)):
        for p in (0.1, 0.9):
            check_chain(row.astype(dtype), [Temperature(temperature), TopP(p)])
            agreed(row.astype(dtype), [Temperature(temperature), TopP(p)])


def test_candidates_are_forgotten_before_their_memory_serves_for_something_else():
    # Ties in an eighth to three thirty-seconds of the row, at a boundary that no candidates hold.
    rng = np.random.default_rng(0)
    vocab = 131_072
    for ties in range(12_300, 16_300, 400):
        row = (-80 - 10 * rng.random(vocab)).astype(np.float32)
        row[rng.permutation(60_000)[:ties]] = -6
        row[100_000] = 0
        ids = agreed(row, [TopP(1 - 1e-7)])
        assert np.array_equal(ids, np.flatnonzero(row >= -6)), ties
        s = Sampler(top_p=1 - 1e-7, seed=1)
        assert s.sample(row, n=1).n_kept == ties + 1
        assert row[s(row)] >= -6


def test_top_lists_after_a_boundary_that_no_list_holds():
    rng = np.random.default_rng(0)
    vocab = 100_001
    row = (np.round(rng.normal(0, 0.08, vocab) * 8) / 8).astype(np.float32)
    s = Sampler(top_k=5, top_p=0.9, min_tokens_to_keep=vocab, seed=1)
    first = rank(row)
    for n in (1, 4, 300):
        r = s.sample(row, logprobs=n, raw=True)
        assert r.n_kept == vocab
        assert np.array_equal(r.raw_top_ids, first[:n])
        assert np.array_equal(r.top_ids, first[:n])


@pytest.mark.parametrize("top", [2.0**969 * 1.2345, 2.0**1000 / 3, np.finfo(np.float64).max])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 30.0])
def test_rows_near_the_largest_double_are_settled_alike(temperature, top):
    # All but the largest weigh nothing, but they are there.
    row = np.random.default_rng(6).uniform(-1.0, 0.9, 8000) * top
    row[5::90] = top
    stages, few = [Temperature(temperature)], np.arange(5, 8000, 90)
    for p in (0.01, 0.5, 0.99):
        assert np.array_equal(agreed(row, [*stages, TopP(p)]), few[: int(np.ceil(p * len(few)))])
    u = (np.arange(len(few))[:, None] + 0.5) / len(few)
    rows = np.broadcast_to(row, (len(few), len(row)))
    for tier in TIERS:
        assert np.array_equal(draw(stages, rows, u, tier)[:, 0], few)


@pytest.mark.parametrize("temperature", [0.7, 3.0])
@pytest.mark.parametrize("stage", [
    EpsilonCutoff(1e-3), EtaCutoff(1e-2), EtaCutoff(1e-7), TopA(0.01), PLess(True), TopNSigma(1.5),
], ids=repr)  # fmt: skip
def test_a_token_at_the_threshold_is_settled_alike(stage, temperature, isas):
    rng = np.random.default_rng(11)
    stages = [Temperature(temperature), stage]
    for token in rng.integers(0, 6000, 12):
        row = rng.normal(0.0, 2.0, 6000).astype(np.float32)
        for _ in range(4):  # what it weighs moves the threshold
            x = np.sort(row)[::-1].astype(float)
            row[token] = x[0] + lowest(stage, x, temperature)
        rows = np.array([row] * 9)
        rows[:, token] += np.arange(-4, 5) * np.spacing(row[token])
        answers = []
        for isa in isas:
            _core.choose_isa(isa)
            answers.append([agreed(moved, stages).tolist() for moved in rows])
        assert all(answer == answers[0] for answer in answers)
        assert len({len(ids) for ids in answers[0]}) > 1  # in some the token is kept, in some not
        for moved in rows:
            check_chain(moved, stages)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_two_tokens_at_the_last_distance_are_settled_alike(temperature, isas):
    # One above the mean and one below, of which typical-p needs the nearer one alone.
    rng = np.random.default_rng(12)
    for above in (5, 20, 60):
        row = rng.normal(0.0, 2.0, 6000).astype(np.float32)
        upper, lower = np.argsort(-row)[[above, 4000]]
        for turn in range(12):  # what it weighs moves the mean
            if turn == 6:
                row -= row[lower]  # near 0, float32 is finer than the bound of a fast sum
            x = np.sort(row)[::-1].astype(float)
            mean = float(sums(x, temperature)[1])
            z = (float(row[upper]) - x[0]) / temperature
            row[lower] = x[0] + temperature * (2 * mean - z)
        nearer = np.abs((x - x[0]) / temperature - mean) < abs(z - mean) - 1e-5
        weights = np.exp((x - x[0]) / temperature)
        stages = [
            Temperature(temperature), TypicalP(weights[nearer].sum() / weights.sum() + 1e-9)
        ]  # fmt: skip
        rows = np.array([row] * 9)
        rows[:, lower] += np.arange(-4, 5) * 3e-9
        answers = []
        for isa in isas:
            _core.choose_isa(isa)
            answers.append([agreed(moved, stages).tolist() for moved in rows])
        assert all(answer == answers[0] for answer in answers)
        assert len({upper in ids for ids in answers[0]}) > 1  # in some this one, in some the other
        for moved in rows:
            check_chain(moved, stages)


def lowest(stage, x, temperature):
    """How far below the largest of the logits x, which are sorted, the threshold of a stage is."""
    log_mass, mean, log_squares = sums(x, temperature)
    if isinstance(stage, TopNSigma):
        return -stage.value * float(x.std())
    log = float(np.log(stage.value))
    logs = {
        EpsilonCutoff: log + log_mass, EtaCutoff: min(log + log_mass, log / 2 + mean),
        TopA: log - log_mass, PLess: log_squares - log_mass,
    }  # fmt: skip
    return temperature * float(logs[type(stage)])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 5.0]),
    size=st.sampled_from([512, 3001, 40_000]),
)
def test_bounds_of_the_fast_moments(isas, seed, temperature, size):
    # Planted: FAST_MOMENT_ERROR = 2e-12.
    rng = np.random.default_rng(seed)
    row = make_row(rng, rng.choice(["flat", "peaked", "sparse", "sorted", "far"]), size, np.float32)
    rows = _inputs.read(row).rows()
    for isa in isas:
        _core.choose_isa(isa)
        for name, ((found, error), exact) in _core.moments(rows, temperature).items():
            assert abs(found - exact) <= error, (isa, name)
