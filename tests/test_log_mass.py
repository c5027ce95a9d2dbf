"""The kept mass: what it is, that its rounding is proven, and that it is the same everywhere."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from law import check_chain, coins_of, random_stage
from sampler import (
    XTC,
    DynamicTemperature,
    MinP,
    Sampler,
    Smoothing,
    Temperature,
    TopK,
    TopP,
    TypicalP,
    _core,
    _inputs,
    build_info,
    reference,
)
from sampler._engine import make_chain
from test_law import KINDS, make_row

inf, INFO = math.inf, build_info()
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
    found = Sampler(stages, seed=0, **more).sample(row, n=3, raw=True).log_mass.tolist()
    assert found == [reference.log_mass(row, stages, **more)] * 3
    assert found[0] == on_grid(found[0])
    assert abs(found[0] - math.log(share)) <= GRID
    assert not np.any(np.signbit(found)) or share < 1


def exact(logits, temperature):
    """The log of the mass of some tokens, to 100 bits; their weights are at most 1."""
    if temperature == inf:
        return math.log(len(logits))
    with mpmath.workprec(100):
        most = mpmath.mpf(float(max(logits)))
        z = [(mpmath.mpf(x) - most) / temperature for x in logits.tolist()]
        return mpmath.log(mpmath.fsum(map(mpmath.exp, z)))


def is_rounded(found, log):
    """Whether `found` is the multiple of the grid nearest to `log`, or, near a tie, a neighbour."""
    return found == on_grid(found) and abs(found - log) <= GRID / 2 + 1e-12


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([2, 17, 255, 257, 511, 512, 700]))
def test_half_a_step_from_the_exact_value(seed, size):
    rng = np.random.default_rng(seed)
    dtype = rng.choice([np.float16, np.float32, np.float64])
    row = make_row(rng, rng.choice(KINDS), size, dtype)
    stages = [random_stage(rng) for _ in range(rng.integers(0, 5))]
    more = {"min_tokens_to_keep": int(rng.choice([1, 3])), "ties": str(rng.choice(["id", "all"]))}
    s = Sampler(stages, seed=0, **more)
    coins = coins_of(stages)
    state = reference.kept(row, stages, coins=coins, **more)
    whole = reference.kept(row, [stage for stage in stages if stage.kind != "cut"])
    # Minus the logs of the masses: the first in rank weighs 1.
    r = s.score(row, int(state.ids[0]), raw=True, steps=[0])
    every = row[row > -inf].astype(np.float64)
    raw = s.score(row, int(np.argmax(row)), raw=True).raw_logprobs
    assert is_rounded(float(-raw), exact(every, 1.0))
    if r.n_kept != len(state.ids) or r.logprobs == -inf:
        check_chain(row, stages, **more)  # within the band of promise 1
        return
    if state.greedy:
        assert r.log_mass == r.logprobs == 0.0
    else:
        assert is_rounded(float(-r.logprobs), exact(state.logits, state.temperature))
        # Unless a scale depends on the cuts before it, or the first in rank is gone.
        apart = any(isinstance(stage, (DynamicTemperature, XTC)) for stage in stages)
        # Smoothing measures from the largest, which typical-p may have removed, and which another
        # smoothing, with a curve above 3, may have made of a token that a cut removes.
        kinds = [type(stage) for stage in stages]
        apart |= {TypicalP, Smoothing} <= set(kinds) or kinds.count(Smoothing) > 1
        if state.logits[0] == whole.logits[0] and not apart:
            wanted = exact(whole.logits, state.temperature)
            assert is_rounded(float(-r.logprobs - r.log_mass), wanted)
        assert r.log_mass <= 0.0
    assert abs(r.log_mass - reference.log_mass(row, stages, coins=coins, **more)) <= GRID


CHAINS = [
    [TopP(0.9), Temperature(0.5)],  # top-p begins with the mass of another temperature
    [Temperature(0.9), TopP(0.9), Temperature(0.5), TopP(0.8)],
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
    r = s.sample(row, n=20, raw=True)
    want = alone.score(row, r.tokens, raw=True)
    assert np.all(want.log_mass == 0.0)
    # Both are the tempered logit less one log of a mass on the grid.
    assert np.allclose(r.logprobs + r.log_mass, want.logprobs, rtol=1e-15, atol=2e-15)
    assert s.score(row, r.tokens, raw=True).log_mass.tobytes() == r.log_mass.tobytes()


# ------------------------------------------------------------------------------- proven or exact


def mass_of(row, temperature):
    return _core.masses(_inputs.read(row).rows(), temperature)[_core.TIERS["exact"]][0]


def rounded_log(row, temperature):
    """The log of a mass on the grid, from the exact mass."""
    return on_grid(_core.canonical("log", mass_of(row, temperature)))


def check_exact(row, s):
    """Assert that the three logs of masses are those that the exact masses give."""
    t = product(s.stages)
    first, kept = int(np.argmax(row)), row[np.sort(s.distribution(row).ids)]
    log, whole = rounded_log(kept, t), rounded_log(row, t)
    for tier in _core.TIERS.values():
        found = report(row, s.stages, tier, first)
        assert found == (0.0 - log, 0.0 - rounded_log(row, 1.0), log - whole), tier
    assert -log == s.distribution(row).logprobs[0] == s.score(row, first).logprobs


def report(row, stages, tier, token):
    """logprobs, raw_logprobs and log_mass of a token, `tier` the first to be asked."""
    figures, logs = np.full((4, 1, 1), token), np.empty((4, 1, 1))
    lists = np.empty((2, 1, 0), np.int64), np.empty((2, 1, 0))
    rows = _inputs.read(row).rows()
    _core.sample_tokens(make_chain(stages, tier=tier), rows, None, figures, logs, *lists, False)
    return tuple(logs[[0, 2, 3], 0, 0].tolist())


@pytest.mark.parametrize("stages", [*CHAINS, [], [Temperature(0.8)], [Temperature(5.0)]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_fine_mass_changes_no_bit(kind, stages):
    rng = np.random.default_rng(5)
    s = Sampler(stages, seed=0)
    for size in (513, 4000, 9000):
        for dtype in (np.float32, np.float64):
            check_exact(make_row(rng, kind, size, dtype), s)


def everything(row, stages, tier, raw, given, threads=1):
    """What is reported of a row as the last of three, as bytes: without the raw figures, and all.

    Of the tokens given, or drawn.
    """
    batch = np.stack([np.zeros_like(row), row[::-1], row])
    figures, logs = np.zeros((3 + raw, 3, 1), np.int64), np.empty((2 + 2 * raw, 3, 1))
    lists = np.empty((1 + raw, 3, 5), np.int64), np.empty((1 + raw, 3, 5))
    figures[0] = 0 if given is None else given
    keys = _core.KeyedUniforms(7, 0)
    chain, rows = make_chain(stages, tier=tier), _inputs.read(batch).rows()
    _core.sample_tokens(
        chain, rows, keys, figures, logs, *lists, False, threads, given=given is not None
    )
    found = [figures[:, 2], logs[:, 2], *(array[:, 2] for array in lists)]
    counts = (3, 2, 1, 1)
    bare = [array[:n].tobytes() for array, n in zip(found, counts, strict=True)]
    return bare, [array.tobytes() for array in found]


@pytest.mark.usefixtures("isas")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([300, 513, 3000, 20_000]),
    gap=st.sampled_from([None, 0.0, 1e-13, 1e-12, -2e-12]),
)
def test_the_same_bits_by_every_way(seed, size, gap):
    # Tiers, instruction sets, threads, raw or not; drawn or given; near a tie of the grid or not.
    rng = np.random.default_rng(seed)
    dtype = rng.choice([np.float32, np.float64])
    row = make_row(rng, rng.choice(KINDS), size, dtype)
    stages = [random_stage(rng) for _ in range(rng.integers(0, 4))]
    temperature = product(stages)
    if gap is not None and dtype == np.float64 and 0.1 < temperature < 10:
        put_near_a_tie(row, int(np.argsort(row)[size // 2]), temperature, gap)
    want, every = everything(row, stages, _core.TIERS["exact"], True, None)
    token = np.frombuffer(want[0], np.int64)[0]
    for isa in INFO["isas"]:
        _core.choose_isa(isa)
        for tier in _core.TIERS.values():
            for given_token, threads in ((None, 1), (None, 3), (token, 1)):
                how = (isa, tier, given_token, threads)
                assert everything(row, stages, tier, True, given_token, threads)[1] == every, how
                assert everything(row, stages, tier, False, given_token, threads)[0] == want, how


def put_near_a_tie(row, token, temperature, gap):
    """Move a logit so that the log of the row's mass is `gap` above the middle of two multiples."""
    for _ in range(6):
        whole = mass_of(row, temperature)
        log = math.log(whole)
        want = (math.floor(log / GRID) + 0.5) * GRID + gap
        weight = math.exp((row[token] - row.max()) / temperature)
        more = whole * math.expm1(want - log)
        if not weight > 4.0 * abs(more):
            return
        row[token] += temperature * math.log1p(more / weight)


@pytest.mark.parametrize(
    ("stages", "raw", "masses"),
    # What is kept at 0.8; the whole row at 0.8; the whole row at 1.
    [([TopK(50)], True, 2), ([TopK(50)], False, 0), ([], True, 2), ([], False, 1)],
)
def test_the_exact_mass_is_rarely_asked(stages, raw, masses, real_logits):
    s = Sampler([Temperature(0.8), *stages], seed=0)
    before = _core.counts()["log_mass"]
    rng = np.random.default_rng(0)
    for row in real_logits:
        for _ in range(12):
            x = (row + rng.normal(0.0, 1e-3, len(row))).astype(np.float32)
            s.sample(x, raw=raw)
    after = _core.counts()["log_mass"]
    by = {way: after[way] - before[way] for way in after}
    rows = 12 * len(real_logits)
    assert by["candidates"] == (rows if stages else 0)
    # 3e-12 of the grid's 2.3e-10 are open: one or two rows in a hundred.
    assert by["fine"] + by["exact"] == masses * rows
    assert by["exact"] < 0.04 * rows * masses or masses == 0
    assert by["exact"] > 0 or masses < 2


@pytest.mark.parametrize("gap", [0.0, 1e-14, 1e-13, 1e-12, 4e-12, 1e-11])
@pytest.mark.parametrize("temperature", [0.8, 1.0, 5.0])
def test_rows_whose_mass_lies_between_two_multiples(temperature, gap):
    s = Sampler([Temperature(temperature)], seed=0)
    some = Sampler([Temperature(temperature), TopK(50)], seed=0)
    rng = np.random.default_rng(1)
    for sign in (-1, 1):
        for _ in range(20):
            row = rng.normal(0.0, 2.0, 3000)
            row[100] = -1.0
            put_near_a_tie(row, 100, temperature, sign * gap)
            log = math.log(mass_of(row, temperature))
            assert abs((log / GRID) % 1 - 0.5) < 0.06
            check_exact(row, s)
            check_exact(row, some)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.02, 0.8, 1.0, 1.25, 5.0, 1e4])
def test_both_masses_of_one_pass(kind, temperature, dtype):
    rng = np.random.default_rng(7)
    for size in (512, 4096, 5000, 60_000):
        row = make_row(rng, kind, size, dtype)
        found = _core.whole_masses(_inputs.read(row).rows(), temperature)
        for (fine, error), t in zip(found, (1.0, temperature), strict=True):
            whole = mass_of(row, t)
            assert abs(fine - whole) <= error <= 2e-12 * whole


def test_rows_without_a_fine_mass():
    for row, t in ((np.zeros(511), 0.8), (np.full(600, 1e308), 0.8), (np.zeros(600), 1e31)):
        assert _core.whole_masses(_inputs.read(row).rows(), t)[1][1] == inf
        r = Sampler(temperature=t, top_k=2).sample(row, raw=True)
        assert r.log_mass == on_grid(math.log(2)) - on_grid(math.log(len(row)))
        assert r.raw_logprobs == -on_grid(math.log(len(row)))


def test_a_chain_whose_cut_keeps_all_after_another_temperature():
    # The masses of the blocks were those of top-p, at temperature 1.
    rng = np.random.default_rng(3)
    row = rng.normal(0.0, 2.0, 4000).astype(np.float32)
    s = Sampler([TopP(0.5), Temperature(0.5)], min_tokens_to_keep=4000, seed=0)
    d = s.distribution(row)
    for step in range(50):
        token = s.sample(row, steps=step, raw=True).tokens
        assert token == d.draw(reference.uniform(0, 0, step, 0))


@pytest.mark.parametrize("stages", CHAINS, ids=str)
def test_raw_changes_no_other_field(stages, real_logits):
    # Planted: top-p began with the mass of the chain's temperature, where it saw another.
    rows = real_logits[:, :9000].astype(np.float32)
    for mask in (None, np.arange(9000) % 7 > 0):
        given = None if mask is None else np.broadcast_to(mask, rows.shape)
        bare, raw = (
            Sampler(stages, seed=5).sample(rows, mask=given, n=2, logprobs=4, raw=raw)
            for raw in (False, True)
        )
        for name in ("tokens", "logprobs", "ranks", "n_kept", "entropy", "top_ids", "top_logprobs"):
            assert getattr(bare, name).tobytes() == getattr(raw, name).tobytes(), name
