"""Coins, and what XTC and typical-p remove from the top."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sampler import (
    XTC,
    DynamicTemperature,
    MinP,
    Sampler,
    Smoothing,
    Temperature,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    reference,
)
from sampler.hf import FilterLogitsProcessor
from sampler.testing import check_sampler

inf = math.inf

P = [0.1, 0.2, 0.3, 0.4]


def logs(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


def removals(s, shape, **address):
    """Whether XTC removed something from P: 4 tokens are kept where it did not."""
    rows = np.broadcast_to(logs(P), (*shape, 4))
    return s.sample(rows, **address).n_kept < 4


def test_the_coin_is_the_uniform_of_its_lane():
    # The i-th stage that throws one, those that are off included, has lane 1 + i.
    chain = [XTC(0.05, 0.0), TopK(9), XTC(0.15, 0.5), XTC(0.29, 0.5)]
    s = Sampler(chain, seed=2**63 + 5)
    kept = set()
    far = [(0, 0, 0), (1, 2, 3), (2**64 - 1, 7, 2**40), (5, 2**64 - 1, 1)]
    for stream, step, draw in far + [(0, step, 0) for step in range(30)]:
        coins = [reference.uniform(s.seed, stream, step, draw, lane) for lane in range(1, 4)]
        state = reference.kept(logs(P), chain, coins=coins)
        d = s.distribution(logs(P), stream=stream, step=step, draw=draw)
        assert d.ids.tolist() == state.ids.tolist()
        kept.add(len(d))
    assert kept == {4, 3, 2, 1}  # where neither coin fell, the second, the first, and both
    two = Sampler([XTC(0.15, 0.5)], seed=1)
    for step in range(300):
        coin = reference.uniform(1, step=step, lane=1)
        assert len(two.distribution(logs(P), step=step)) == (2 if coin < 0.5 else 4)


def test_the_coin_falls_as_often_as_it_is_set():
    # Of 40,000 with chance 0.3, a deviation of 6 standard ones (false alarm 2e-9) is 0.014.
    s = Sampler([XTC(0.15, 0.3)], seed=11)
    share = np.mean([removals(s, (2000,), steps=step) for step in range(20)])
    assert abs(share - 0.3) < 6 * math.sqrt(0.3 * 0.7 / 40_000)


def test_the_coin_and_the_uniform_of_the_token_are_independent():
    # 40,000 rows by quarter of the token's uniform (four equal tokens) and coin; by two coins; by
    # the coins of the next step, stream and draw. Each false alarm 1e-6; of 40,000, a correlation
    # of 0.03 would be found.
    batch, steps = 2000, range(20)
    s = Sampler([XTC(0.15, 0.5)], seed=12)
    even = np.zeros((batch, 4))
    coin = np.stack([removals(s, (batch,), steps=step) for step in steps])
    token = np.stack([Sampler(seed=12).sample(even, steps=step).tokens for step in steps])
    # The first removes nothing, but takes a lane.
    second = Sampler([XTC(0.9, 0.5), XTC(0.15, 0.5)], seed=12)
    other = np.stack([removals(second, (batch,), steps=step) for step in steps])
    draw = np.stack([removals(s, (batch,), steps=step, draws=1) for step in steps])
    for a, b in (
        (coin, token), (coin, other), (token, other), (coin, draw), (coin[1:], coin[:-1]),
        (coin[:, 1:], coin[:, :-1]), (coin[1:], token[:-1]),
    ):  # fmt: skip
        table = np.zeros((2, 4) if b.max() > 1 else (2, 2))
        np.add.at(table, (a.astype(int).ravel() % 2, b.astype(int).ravel()), 1)
        assert table.min() > 3000
        assert stats.chi2_contingency(table, correction=False).pvalue > 1e-6
    # And the token that is drawn under XTC is a token of the branch, by the same uniform.
    for step in range(40):
        d = s.distribution(logs(P), step=step)
        u = reference.uniform(12, step=step)
        assert s.sample(logs(P), steps=step).tokens == d.draw([u])[0]


def test_every_call_shows_the_branch_of_its_address():
    s = Sampler([XTC(0.15, 0.5), Temperature(0.9)], seed=4, step=6)
    rng = np.random.default_rng(0)
    rows = logs(rng.dirichlet([2.0] * 6, 40))
    streams, steps, draws = (rng.integers(0, 2**62, 40).tolist() for _ in range(3))
    address = {"streams": streams, "steps": steps, "draws": draws}
    r = s.sample(rows, raw=True, **address)
    scored = s.score(rows, r.tokens, raw=True, **address)
    filtered = s.filter(rows, **address)
    for i, row in enumerate(rows):
        d = s.distribution(row, stream=streams[i], step=steps[i], draw=draws[i])
        assert np.flatnonzero(filtered[i] > -inf).tolist() == sorted(d.ids.tolist())
        assert len(d) == r.n_kept[i]
        assert d.logprobs[d.ids.tolist().index(r.tokens[i])] == r.logprobs[i]
    for name in ("logprobs", "ranks", "n_kept", "entropy", "log_mass", "raw_logprobs"):
        assert getattr(scored, name).tolist() == getattr(r, name).tolist(), name
    assert 5 < np.sum(r.n_kept == 6) < 35  # some of each
    # Without a step they show the sampler's next one, and only a call and `sample` take it.
    assert s.distribution(rows[0]).ids.tolist() == s.distribution(rows[0], step=6).ids.tolist()
    assert s.filter(rows).tolist() == s.filter(rows, steps=6).tolist()
    assert s.score(rows, [0] * 40).logprobs.tolist() == (
        s.score(rows, [0] * 40, steps=6).logprobs.tolist())  # fmt: skip
    assert s.step == 6
    assert s(rows).tolist() == s.sample(rows, steps=6).tokens.tolist()
    assert s.step == 7


@pytest.mark.parametrize("more", [[], [TopP(0.8)], [DynamicTemperature(0.5, 1.5)]])
def test_every_draw_has_a_coin_of_its_own(more):
    s = Sampler([XTC(0.12, 0.5), *more], seed=5)
    rows = logs(np.random.default_rng(1).dirichlet([2.0] * 6, 7))
    many = s.sample(rows, n=30, steps=2, logprobs=3, raw=True)
    each = [s.sample(rows, draws=i, steps=2, logprobs=3, raw=True) for i in range(30)]
    for name in ("tokens", "logprobs", "ranks", "n_kept", "entropy", "log_mass"):
        found = np.stack([getattr(one, name) for one in each], axis=1)
        assert np.array_equal(getattr(many, name), found), name
    assert all(len(set(kept)) > 1 for kept in many.n_kept.tolist())
    # The top lists are those of draw 0.
    assert np.array_equal(many.top_ids, each[0].top_ids)
    assert np.array_equal(many.top_logprobs, each[0].top_logprobs)
    alone = s.sample(rows[3], n=30, streams=3, steps=2)
    assert alone.tokens.tolist() == many.tokens[3].tolist()


def test_coins_are_reproducible():
    s = Sampler(xtc=(0.15, 0.5), top_p=0.9, seed=6)
    row = logs(P)
    first = [s(row) for _ in range(50)]
    assert [s.replace(step=0).sample(row, steps=step).tokens for step in range(50)] == first
    assert [
        Sampler(xtc=(0.15, 0.5), top_p=0.9, seed=6, step=step)(row) for step in range(50)
    ] == first
    assert set(first) == {1, 2, 3}  # the first three, or of these the last
    batch = np.broadcast_to(row, (8, 4))
    assert s.sample(batch, steps=3).tokens.tolist() == [
        s.sample(row, streams=i, steps=3).tokens for i in range(8)
    ]
    # Other settings leave the coin alone, and so do stages that throw none.
    same = Sampler([TopH(0.999), TypicalP(0.99999), XTC(0.15, 0.5)], seed=6)
    for step in range(50):
        there = Sampler([XTC(0.15, 0.5)], seed=6).distribution(row, step=step).ids
        assert (3 in same.distribution(row, step=step).ids) == (3 in there)


# ------------------------------------------------------------------- what is removed from the top


@pytest.mark.parametrize("stages", [[XTC(0.01, 1.0)], [TypicalP(0.3)]], ids=str)
def test_what_is_removed_from_the_top_is_forbidden(stages, real_logits):
    # Ranks, top lists, logits and every later stage are those of the row with -inf there.
    for row in real_logits[::7].astype(np.float32):
        kept = Sampler(stages, seed=0).distribution(row).ids
        top = np.setdiff1d(np.flatnonzero(row >= row[kept].max()), kept)
        least = row[kept].min()
        forbidden = np.where((row < least) | np.isin(np.arange(len(row)), top), -inf, row)
        for after in ([], [TopP(0.7)], [MinP(0.2)], [TopK(3)], [Smoothing(0.2)], [TopNSigma(1.0)]):
            a = Sampler([*stages, *after], seed=3)
            # What is below the last stays for XTC, which keeps a tail that typical-p does not.
            b = Sampler(after, seed=3)
            for name in ("tokens", "ranks", "n_kept", "logprobs", "entropy", "top_ids"):
                one = getattr(a.sample(row, n=5, logprobs=4, steps=1), name)
                other = getattr(b.sample(forbidden, n=5, logprobs=4, steps=1), name)
                assert np.array_equal(one, other), (after, name)
            one, other = a.filter(row), b.filter(forbidden)
            assert np.array_equal(one > -inf, other > -inf)
            there = one > -inf
            np.testing.assert_allclose(
                one[there] - one.max(), other[there] - other.max(), rtol=1e-5, atol=1e-5
            )


def test_a_removed_token_keeps_its_rank_in_the_row_as_it_came_in():
    r = Sampler([XTC(0.15, 1.0)], seed=0).score(logs(P), [3, 1], raw=True)
    assert r.logprobs.tolist()[0] == -inf
    assert r.raw_ranks.tolist() == [1, 3]
    assert r.ranks.tolist()[1] == 1
    assert r.log_mass.tolist() == pytest.approx([math.log(0.3)] * 2)


def test_top_lists_are_those_of_draw_0():
    r = Sampler(xtc=(0.15, 0.5), seed=7).sample(logs(P), n=6, logprobs=4, steps=0)
    assert len(set(r.n_kept.tolist())) > 1
    assert (r.top_ids >= 0).sum() == r.n_kept[0]


# Half a minute each, of draws from a tail of many tokens.
_slow = pytest.mark.slow


@pytest.mark.parametrize("chain", [
    pytest.param([XTC(0.15, 0.5)], marks=_slow),
    [XTC(0.15, 0.3), TopP(0.8)],
    pytest.param([XTC(0.15, 0.5), XTC(0.29, 0.2)], marks=_slow),
    pytest.param([XTC(0.15, 0.5, (), True)], marks=_slow),
], ids=str)  # fmt: skip
def test_a_sampler_with_coins_is_a_law(chain):
    # Its law is the mean over the coins.
    s = Sampler(chain, seed=7)
    assert check_sampler(s, logs(P), draws=20_000, progress=False).ok
    wrong = Sampler([XTC(0.15, 0.5), TopK(3)], seed=7)
    assert not check_sampler(s, logs(P), wrong, draws=20_000, progress=False).ok


def test_the_coin_in_front_of_a_filter_value():
    scores = torch.tensor([[1.0, 2.0, 3.0, -inf]])
    made = FilterLogitsProcessor(dynamic_temperature=(0.0, 0.0), filter_value=-1e4)
    assert made(None, scores).tolist() == [[-1e4, -1e4, 3.0, -inf]]
