"""Do the draws follow the law? Counts at evenly spaced uniforms, and chi-square with keyed ones."""

import numpy as np
import pytest
from scipy import stats

from sampler import MinP, Sampler, Temperature, TopK, TopP, _core, _inputs, reference
from sampler._engine import make_chain

FAST, FINE, EXACT = _core.TIERS.values()


def draw(stages, rows, u, tier=FAST, threads=1):
    """Tokens at uniforms of shape (batch, n), from the core itself."""
    chain = make_chain(stages, tier=tier)
    tokens = np.empty(u.shape, np.int64)
    source = _inputs.read(rows).rows()
    assert _core.draw_tokens(chain, source, None, tokens, False, threads, u=u) is None
    return tokens


CHAINS = [
    [],
    [Temperature(0.8)],
    [Temperature(0.8), TopP(0.9)],
    [TopK(50)],
    [MinP(0.02), Temperature(2.0)],
    [Temperature(5.0), TopP(0.95)],
    [Temperature(float("inf")), TopK(700)],
]


@pytest.mark.parametrize("stages", CHAINS, ids=str)
def test_evenly_spaced_uniforms_give_each_token_its_share(real_logits, stages):
    """u = (i + 1/2)/N: every count within 1 of N p. No false alarms: a biased, shifted or
    truncated inverse CDF fails for some token with p > 2/N."""
    n = 20_000
    row = real_logits[4].astype(np.float32)
    expected = n * Sampler(stages, seed=0).distribution(row).dense()
    u = (np.arange(n) + 0.5) / n
    many = draw(stages, row, u[None, :])[0]
    counts = np.bincount(many, minlength=len(row))
    assert np.max(np.abs(counts - expected)) <= 1.0
    # One draw per row goes another way, through the fast mass: the same tokens.
    some = np.arange(0, n, 20)
    rows = np.broadcast_to(row, (len(some), len(row)))
    assert np.array_equal(draw(stages, rows, u[some][:, None])[:, 0], many[some])
    assert np.array_equal(draw(stages, rows[:100], u[some[:100]][:, None], tier=EXACT)[:, 0],
                          many[some[:100]])  # fmt: skip


@pytest.mark.parametrize("stages", CHAINS, ids=str)
@pytest.mark.parametrize("size", [1, 50, 3000, 5000])
def test_draws_are_the_inverse_cdf(stages, size):
    rng = np.random.default_rng(size)
    row = rng.normal(0.0, 2.0, size).astype(np.float32)
    row[rng.random(size) < 0.3] = -np.inf
    row[0] = 1.0
    state = reference.kept(row, stages)
    cumulative = np.cumsum(reference.probabilities(state, size))
    u = np.concatenate([[0.0, 1 - 2**-53], rng.random(300), cumulative[:-1].astype(float) % 1.0])
    u = u[u < 1.0]
    tokens = draw(stages, row, u[None, :])[0]
    alone = draw(stages, np.broadcast_to(row, (len(u), size)), u[:, None])[:, 0]
    assert np.array_equal(tokens, alone)
    assert np.array_equal(tokens, Sampler(stages, seed=0).distribution(row).draw(u))
    assert set(tokens.tolist()) <= set(state.ids.tolist())
    away = np.min(np.abs(u[:, None] - cumulative[None, :].astype(float)), axis=1) > 1e-12
    expected = np.array([reference.draw(state, size, v) for v in u])
    assert np.array_equal(tokens[away], expected[away])


def test_the_ends_of_the_unit_interval():
    row = np.full(10_000, -np.inf, np.float32)
    row[[17, 4000, 9000]] = [-5.0, 0.0, -20.0]
    u = np.array([[0.0], [1 - 2**-53]])
    for dtype in (np.float32, np.float64):
        tokens = draw([], np.broadcast_to(row.astype(dtype), (2, len(row))), u)
        assert tokens[:, 0].tolist() == [17, 9000]


def test_the_far_tail_is_reachable():
    # p = e**-34 = 1.7e-15 at the end of the row: 15 of the 2**53 uniforms, and float32 noise
    # could never produce it.
    row = np.zeros(5000)
    row[:] = -np.inf
    row[0], row[-1] = 0.0, -34.0
    u = np.array([[1 - 2**-53, 1 - 2e-15, 1 - 1e-15, 0.999999]])
    assert draw([], row, u)[0].tolist() == [4999, 0, 4999, 0]
    assert [draw([], row.astype(np.float32), v[None, None])[0, 0] for v in u[0]] == [
        4999, 0, 4999, 0]  # fmt: skip


@pytest.mark.parametrize("stages", CHAINS[:5], ids=str)
def test_keyed_draws_pass_chi_square(real_logits, stages):
    """Pearson's chi-square over bins pooled to an expected 25 or more. The seed is fixed, so the
    test either always passes or always fails; over seeds it would alarm once in 10,000. With
    n = 40,000 it has a power of 0.99 against a shift of 5 % of the mass onto one bin of 0.1."""
    n = 40_000
    row = real_logits[4]
    s = Sampler(stages, seed=12345)
    tokens = s.sample(row, n=n, steps=0).tokens
    expected = n * s.distribution(row).dense()
    order = np.argsort(-expected)
    counts = np.bincount(tokens, minlength=len(row))[order]
    bins = np.minimum(np.cumsum(expected[order]) // 25, n // 25)
    edges = np.flatnonzero(np.diff(bins, prepend=-1))
    observed, wanted = np.add.reduceat(counts, edges), np.add.reduceat(expected[order], edges)
    large = wanted >= 25
    observed = np.append(observed[large], observed[~large].sum())
    wanted = np.append(wanted[large], wanted[~large].sum())
    if wanted[-1] < 25:
        observed = np.append(observed[:-2], observed[-2:].sum())
        wanted = np.append(wanted[:-2], wanted[-2:].sum())
    assert stats.chisquare(observed, wanted * n / wanted.sum()).pvalue > 1e-4


def test_steps_and_streams_are_independent():
    """Chi-square of 8 x 8 joint bins of neighbouring steps, and of neighbouring streams; fixed
    seed, alarm rate 1e-4 over seeds, power 0.99 against a correlation of 0.03."""
    s = Sampler(seed=99)
    row = np.zeros(8)
    n = 30_000
    steps = np.array([s.sample(np.broadcast_to(row, (n, 8)), steps=i).tokens for i in range(2)])
    streams = steps[0].reshape(2, -1)
    for pair in (steps, streams):
        table = np.bincount(pair[0] * 8 + pair[1], minlength=64)
        assert stats.chisquare(table).pvalue > 1e-4
