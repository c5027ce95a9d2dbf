"""`Sampler.score`: for given tokens, what `sample` returns for drawn ones."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from law import check_chain, rank
from sampler import MinP, Sampler, Temperature, TopK, TopP, reference

inf, nan = math.inf, math.nan
ROW = np.array([1.0, 3.0, 2.0, 0.0])
FIGURES = (
    "tokens",
    "logprobs",
    "ranks",
    "n_kept",
    "entropy",
    "raw_logprobs",
    "raw_ranks",
    "log_mass",
)
LISTS = ("top_ids", "top_logprobs", "raw_top_ids", "raw_top_logprobs")
CHAINS = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.0},
    {"temperature": inf},
    {"temperature": 1e-30},
    {"top_k": 5},
    {"top_k": 5, "ties": "all"},
    {"top_p": 0.7},
    {"min_p": 0.1},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "min_tokens_to_keep": 3},
    {"stages": [TopK(8), TopP(0.8), Temperature(0.5)]},
    {"stages": [MinP(0.05), Temperature(2.0), TopP(0.5), Temperature(0.25), TopK(3)]},
]


def rows(vocab=300):
    """One ordinary row, one of few distinct logits, one mostly -inf, one of large ones."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, vocab)
    few = np.where(np.arange(vocab) % 7, -inf, x)
    return np.array([x, rng.integers(-2, 3, vocab), few, 1e3 * x])


def check_equal(a, b):
    """Assert that two Samples are the same, bit for bit."""
    for name in (*FIGURES, *LISTS):
        x, y = getattr(a, name), getattr(b, name)
        if x is None or y is None:
            assert x is y, name
            continue
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape, name
        assert x.tobytes() == y.tobytes(), name


# ------------------------------------------------------------------------------- what was drawn


@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize(
    "kind", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, torch.bfloat16, "words"]
)
def test_drawn_tokens(chain, kind):
    s, dtype, logits = Sampler(**chain, seed=7), None, rows()
    if kind == "words":
        logits, dtype = logits.astype(ml_dtypes.bfloat16).view(np.uint16), "bfloat16"
    elif isinstance(kind, torch.dtype):
        logits = torch.tensor(logits, dtype=kind)
    else:
        logits = logits.astype(kind)
    for n in (None, 1, 6):
        for logprobs, raw in itertools.product((None, 0, 4, 999), (False, True)):
            how = {"logprobs": logprobs, "raw": raw, "dtype": dtype}
            r = s.sample(logits, n=n, steps=3, **how)
            check_equal(s.score(logits, r.tokens, **how), r)
            r = s.sample(logits[2], n=n, steps=3, **how)
            check_equal(s.score(logits[2], r.tokens, **how), r)


LOGITS = st.one_of(st.integers(-3, 3).map(float), st.floats(-40, 40, width=16), st.just(-inf))
BATCHES = st.integers(1, 30).flatmap(
    lambda vocab: st.lists(
        st.lists(LOGITS, min_size=vocab, max_size=vocab).filter(lambda row: max(row) > -inf),
        min_size=1,
        max_size=3,
    )
)
SETTINGS = st.fixed_dictionaries(
    {"ties": st.sampled_from(("id", "all")), "min_tokens_to_keep": st.integers(1, 3)},
    optional={
        "temperature": st.one_of(st.floats(0.05, 20), st.sampled_from((0.0, 1e-30, 1e30, inf))),
        "top_k": st.integers(1, 40),
        "top_p": st.floats(0, 1),
        "min_p": st.floats(0, 1),
    },
)


@settings(max_examples=300)
@given(
    batch=BATCHES,
    setting=SETTINGS,
    dtype=st.sampled_from((np.float16, np.float32, np.float64)),
    seed=st.integers(0, 2**64 - 1),
)
def test_drawn_and_every_token_of_small_rows(batch, setting, dtype, seed):
    s, logits = Sampler(**setting, seed=seed), np.array(batch, dtype)
    r = s.sample(logits, n=3, logprobs=2, raw=True)
    check_equal(s.score(logits, r.tokens, logprobs=2, raw=True), r)
    for row in logits:
        check_all_tokens(s, row)


# ------------------------------------------------------------------------------ what every token is


def check_all_tokens(s, row):
    """Score every token of a row, and compare with float64 sums over what the law keeps."""
    x = row.astype(np.float64)
    law = check_chain(row, s.stages, s.min_tokens_to_keep, s.ties)
    order = rank(x)
    r = s.score(row, np.arange(len(row)), raw=True)
    assert np.array_equal(r.tokens, np.arange(len(row)))
    assert (r.n_kept == len(law)).all()

    # -inf logits rank after all others, also by id.
    everything = np.concatenate([order, np.flatnonzero(x == -inf)])
    assert np.array_equal(r.ranks[everything], np.arange(1, len(row) + 1))

    raw = np.full(len(row), -inf)
    raw[order] = log_softmax(x[order])
    assert_close(r.raw_logprobs, raw)
    assert np.array_equal(r.logprobs > -inf, np.isin(np.arange(len(row)), law.ids))
    temperature = math.prod(t.value for t in s.stages if isinstance(t, Temperature))
    z = np.zeros(len(law))
    if 0 < temperature < inf:
        with np.errstate(over="ignore"):
            z = np.maximum((x[law.ids] - x.max()) / temperature, -np.finfo(np.float64).max)
    assert_close(r.logprobs[law.ids], log_softmax(z))


def log_softmax(z):
    z = z - z.max()
    return z - math.log(math.fsum(np.exp(z)))


def assert_close(a, b):
    """Up to the rounding of a log mass to a multiple of 2**-32."""
    assert np.allclose(a, b, rtol=1e-13, atol=2.0**-33 + 1e-12)


@pytest.mark.parametrize("chain", CHAINS, ids=str)
@pytest.mark.parametrize("vocab", [1, 2, 64, 65, 300, 5000])
def test_every_token(chain, vocab):
    s = Sampler(**chain, seed=7)
    for row in rows(vocab):
        check_all_tokens(s, row)


def test_a_table():
    # Shares 1, 2, 3, 4 of 10; top_k keeps the tokens 3 and 2.
    row = np.log([1.0, 2.0, 3.0, 4.0])
    r = Sampler(top_k=2, seed=7).score(row, [0, 1, 2, 3], raw=True)
    assert r.ranks.tolist() == [4, 3, 2, 1]
    assert r.n_kept.tolist() == [2, 2, 2, 2]
    assert_close(np.exp(r.raw_logprobs), [0.1, 0.2, 0.3, 0.4])
    assert_close(np.exp(r.logprobs), [0, 0, 3 / 7, 4 / 7])
    assert r.logprobs.tolist()[:2] == [-inf, -inf]


def test_ties():
    row = [2.0, 5.0, 2.0, 5.0, 2.0]
    tokens = [0, 1, 2, 3, 4]
    by_id = Sampler(top_k=3, seed=7).score(row, tokens)
    assert by_id.ranks.tolist() == [3, 1, 4, 2, 5]
    assert (by_id.logprobs > -inf).tolist() == [True, True, False, True, False]
    every = Sampler(top_k=3, ties="all", seed=7).score(row, tokens)
    assert every.ranks.tolist() == [3, 1, 4, 2, 5]
    assert (every.logprobs > -inf).all()
    assert every.n_kept.tolist() == [5] * 5


def test_minus_infinity():
    r = Sampler(seed=7).score([-inf, 0.0, -inf, 1.0], [0, 1, 2, 3], raw=True)
    assert r.logprobs[[0, 2]].tolist() == r.raw_logprobs[[0, 2]].tolist() == [-inf, -inf]
    assert r.ranks.tolist() == [3, 2, 4, 1]
    assert r.n_kept.tolist() == [2] * 4


def test_the_top_lists_do_not_depend_on_the_tokens():
    s, x = Sampler(temperature=0.7, top_k=3, seed=7), rows()
    lists = [s.score(x, [token] * len(x), logprobs=5, raw=True) for token in (0, 7, 299)]
    r = s.sample(x, logprobs=5, raw=True)
    for name in LISTS:
        for scored in lists:
            assert getattr(scored, name).tobytes() == getattr(r, name).tobytes()
    assert lists[0].top_ids.shape == (len(x), 5)
    assert lists[0].top_ids[0, 3:].tolist() == [-1, -1]


def test_real_rows(real_logits):
    s = Sampler(temperature=0.8, top_p=0.95, seed=7)
    r = s.sample(real_logits, n=4, steps=0, logprobs=5, raw=True)
    check_equal(s.score(real_logits, r.tokens, logprobs=5, raw=True), r)
    for row in real_logits[:3]:
        state = reference.kept(row, s.stages)
        order = rank(row.astype(np.float64))
        places = [0, 1, len(state.ids) - 1, len(state.ids), 20000, len(order) - 1]
        scored = s.score(row, order[places], raw=True)
        assert scored.ranks.tolist() == [place + 1 for place in places]
        assert scored.n_kept.tolist() == [len(state.ids)] * 6
        want = np.full(len(order), -inf)
        want[: len(state.ids)] = reference.logprobs(state)
        assert_close(scored.logprobs, want[places])
        assert_close(scored.raw_logprobs, log_softmax(row[order].astype(np.float64))[places])


# ------------------------------------------------------------------------------ shapes and steps


def test_shapes():
    s, x = Sampler(top_k=9, seed=7), rows()
    for logits, tokens, shape in (
        (x[0], 5, ()),
        (x[0], np.int64(5), ()),
        (x[0], np.array(5, np.uint8), ()),
        (x[0], torch.tensor(5), ()),
        (x[0], [5], (1,)),
        (x[0], (5, 6, 5), (3,)),
        (x[0], np.array([5, 6], np.uint64), (2,)),
        (x[0], torch.tensor([5, 6]), (2,)),
        (x, [5, 6, 7, 8], (4,)),
        (x[:1], [5], (1,)),
        (x, [[5], [6], [7], [8]], (4, 1)),
        (x, np.array([[5, 6], [7, 8], [9, 0], [1, 2]], np.int8), (4, 2)),
        (x, torch.tensor([[5, 6], [7, 8], [9, 0], [1, 2]]), (4, 2)),
        (x, np.empty((4, 0), np.int64), (4, 0)),
    ):
        r = s.score(logits, tokens, logprobs=3, raw=True)
        for name in FIGURES:
            assert np.shape(getattr(r, name)) == shape, name
        for name in LISTS:
            assert getattr(r, name).shape == (*logits.shape[:-1], 3), name
        assert np.array_equal(r.tokens, tokens)
        if shape == ():
            assert type(r.tokens) is type(r.ranks) is type(r.n_kept) is int
            assert type(r.logprobs) is type(r.raw_logprobs) is float
            continue
        assert r.tokens.dtype == r.ranks.dtype == r.n_kept.dtype == np.int64
        assert r.logprobs.dtype == r.raw_logprobs.dtype == np.float64
    assert s.score(x, [5, 6, 7, 8]).top_ids is None
    tokens = np.array([5, 6, 7, 8])
    r = s.score(x, tokens)
    tokens[:] = 0  # the result is nobody's view
    assert r.tokens.tolist() == [5, 6, 7, 8]


def test_a_batch_is_its_rows():
    s, x = Sampler(temperature=0.7, top_p=0.8, seed=7), rows()
    tokens = np.random.default_rng(0).integers(0, 300, (4, 5))
    together = s.score(x, tokens, raw=True)
    for i, row in enumerate(x):
        alone = s.score(row, tokens[i], raw=True)
        for name in FIGURES:
            assert getattr(together, name)[i].tobytes() == getattr(alone, name).tobytes()


def test_strides_and_containers():
    s, x = Sampler(temperature=0.7, top_p=0.8, seed=7), rows().astype(np.float32)
    tokens = [5, 6, 7, 8]
    want = s.score(x, tokens, logprobs=3)
    wide = np.full((4, 900), nan, np.float32)
    wide[:, ::3] = x
    for logits in (wide[:, ::3], np.asfortranarray(x), torch.from_numpy(x), x.tolist(),
                   x.astype(np.float64), x.astype(">f4")):  # fmt: skip
        check_equal(s.score(logits, tokens, logprobs=3), want)
    before = x.copy()
    s.score(x, tokens)
    assert x.tobytes() == before.tobytes()


def test_the_step_never_moves_and_the_seed_has_no_part():
    s = Sampler(top_k=9, seed=7, step=5)
    want = s.score(rows(), [5, 6, 7, 8], logprobs=2)
    for other in (s, s.replace(seed=8), s.replace(step=2**64), Sampler(top_k=9)):
        check_equal(other.score(rows(), [5, 6, 7, 8], logprobs=2), want)
    with pytest.raises(ValueError, match="`tokens`"):
        s.score(rows(), [5, 6, 7, 300])
    with pytest.raises(ValueError, match="nan"):
        s.score([0.0, nan], 0)
    assert s.step == 5


# -------------------------------------------------------------------------------------- bad input

BAD_FOR_A_ROW = [
    (-1, ValueError, "one is -1"),
    (4, ValueError, "one is 4"),
    (np.uint64(2**64 - 1), ValueError, f"one is {2**64 - 1}"),
    ([0, 4], ValueError, "one is 4"),
    ([0, -(2**63)], ValueError, f"one is {-(2**63)}"),
    (torch.tensor([1, 4]), ValueError, "one is 4"),
    (1.0, TypeError, r"are 1\.0"),
    ([0.0], TypeError, "are "),
    (np.array([1.0]), TypeError, "are "),
    (torch.tensor([1.0]), TypeError, "are "),
    (nan, TypeError, "are nan"),
    (True, TypeError, "are True"),
    ([True, False], TypeError, "are "),
    (np.array([True]), TypeError, "are "),
    (torch.tensor([True]), TypeError, "are "),
    ("1", TypeError, "are '1'"),
    (["1"], TypeError, "are "),
    (None, TypeError, "are None"),
    ([None], TypeError, "are "),
    ({0}, TypeError, "are "),
    ([[], [0]], TypeError, "are "),
    (np.array([], object), TypeError, "are "),
    (2**70, TypeError, "are "),
    ([[0], [1]], ValueError, r"have shape \(2, 1\)"),
    ([[0, 1]], ValueError, r"have shape \(1, 2\)"),
    ([[0], [1, 2]], TypeError, "are "),
]
BAD_FOR_TWO_ROWS = [
    (0, ValueError, r"have shape \(\)"),
    ([0], ValueError, r"have shape \(1,\)"),
    ([0, 1, 2], ValueError, r"have shape \(3,\)"),
    ([[0, 1]], ValueError, r"have shape \(1, 2\)"),
    ([[0], [1], [2]], ValueError, r"have shape \(3, 1\)"),
    ([[[0]], [[1]]], ValueError, r"have shape \(2, 1, 1\)"),
    ([[0], [1, 2]], TypeError, "are "),
    ([[0, 1], [2, 4]], ValueError, "one is 4"),
    ([[0, 1], [-2, 3]], ValueError, "one is -2"),
]


@pytest.mark.parametrize(
    ("logits", "tokens", "error", "words"),
    [
        *((ROW, *bad) for bad in BAD_FOR_A_ROW),
        *((np.array([ROW, ROW]), *bad) for bad in BAD_FOR_TWO_ROWS),
    ],
)
def test_bad_tokens(logits, tokens, error, words):
    wanted = r"integers in \[0, 4\), of shape \(2?,?\) or \((2, )?n,?\)"
    form = rf"^`tokens` have to be {wanted}, but .*{words}"
    with pytest.raises(error, match=form):
        Sampler(seed=7).score(logits, tokens)
    # Before any work: the row's own fault would be reported otherwise.
    with pytest.raises(error, match=form):
        Sampler(seed=7).score(logits * nan, tokens)


@pytest.mark.parametrize(
    ("logits", "more", "error", "words"),
    [
        (np.zeros((2, 2, 4)), {}, ValueError, "`logits` have to be 1-D or 2-D"),
        (np.zeros(0), {}, ValueError, "`logits` have to hold at least one token"),
        (np.zeros(4, int), {}, TypeError, "`logits` have to be float16"),
        (torch.zeros(4, device="meta"), {}, TypeError, "`logits` have to hold numbers"),
        (ROW, {"logprobs": -1}, ValueError, "`logprobs` has to be an integer >= 0"),
        (ROW, {"logprobs": 1.0}, TypeError, "`logprobs` has to be an integer >= 0"),
        (ROW, {"dtype": "float16"}, ValueError, "`dtype` has to be None or 'bfloat16'"),
        ([0.0, nan, 0.0], {}, ValueError, "`logits` have to be .*, but row 0 has nan at token 1"),
        ([0.0, inf, 0.0], {}, ValueError, "`logits` have to be .*, but row 0 has inf at token 1"),
        ([-inf, -inf], {}, ValueError, "`logits` have to .*, but row 0 is -inf throughout"),
    ],
)
def test_bad_logits_and_options(logits, more, error, words):
    with pytest.raises(error, match=f"^{words}"):
        Sampler(seed=7).score(logits, 0, **more)


@pytest.mark.parametrize("top", [None, 0, 3])
@pytest.mark.parametrize("n", [None, 0, 1, 3])
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("kind", [np.array, np.ndarray.tolist, torch.tensor])
def test_score_of_no_rows_or_no_tokens(batch, n, top, kind):
    # Of no rows it was NumPy's "cannot reshape array of size 0".
    s = Sampler(top_k=2, seed=7, threads=2)
    tokens = kind(np.zeros(batch if n is None else (batch, n), int))
    if kind is np.ndarray.tolist and batch == 0:
        n = None  # [] has one axis
    r = s.score(np.zeros((batch, 4)), tokens, logprobs=top, raw=True)
    like = s.sample(np.zeros((batch, 4)), logprobs=top, raw=True)
    for name in FIGURES:
        assert getattr(r, name).shape == ((batch,) if n is None else (batch, n)), name
        assert getattr(r, name).dtype == getattr(like, name).dtype, name
    for name in LISTS:
        assert getattr(r, name).shape == (batch, top) if top else getattr(r, name) is None, name


def test_score_of_one_row_and_no_tokens():
    r = Sampler(top_k=2, seed=7).score(ROW, [], logprobs=2)
    assert r.tokens.shape == r.logprobs.shape == (0,)
    assert r.top_ids.tolist() == [1, 2]


@pytest.mark.parametrize("n", [None, 3])
@pytest.mark.parametrize("value", [nan, inf, None])
def test_flagged_rows(value, n):
    s, x = Sampler(temperature=0.7, top_k=9, seed=7, on_invalid="flag"), rows()
    tokens = np.full(4 if n is None else (4, n), 7)
    want = s.score(x, tokens, logprobs=2, raw=True)
    if value is None:
        x[1] = -inf
    else:
        x[1, 299] = value
    r = s.score(x, tokens, logprobs=2, raw=True)
    blanks = (-1, nan, 0, 0, nan, nan, 0, nan, -1, nan, -1, nan)
    for name, blank in zip((*FIGURES, *LISTS), blanks, strict=True):
        figure = getattr(r, name)
        assert np.array_equal(figure[1], np.full_like(figure[1], blank), equal_nan=True), name
        others = [0, 2, 3]
        assert figure[others].tobytes() == getattr(want, name)[others].tobytes(), name
    with pytest.raises(ValueError, match="row 1"):
        s.replace(on_invalid="raise").score(x, tokens)


def test_raw_logprobs_are_finite_where_the_difference_overflows():
    big = np.finfo(np.float64).max
    r = Sampler(seed=0).score(np.array([big, -big]), 1, raw=True)
    assert r.logprobs == r.raw_logprobs == -big


def test_negative_zero_is_zero():
    # Found: the log-probability of a certain token was -0.0 where its logit was.
    for s in (Sampler(seed=0), Sampler(seed=0, temperature=0.5), Sampler(seed=0, top_k=1)):
        a, b = (s.score([zero, -inf], 0, logprobs=1, raw=True) for zero in (0.0, -0.0))
        for name in (*FIGURES, *LISTS):
            x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
            assert x.tobytes() == y.tobytes(), name
