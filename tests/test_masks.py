"""Edits of the row: a mask or a ban gives what -inf in a copy of the row gives, to the bit.

`copied` is the oracle. Each mutant that has been planted is named where it was seen.
"""

import pickle
from contextlib import nullcontext

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sampler
from law import random_stage
from sampler import Sampler, SuppressTokens, Temperature, TopK, TopP, _core, _inputs
from sampler._engine import make_chain
from sampler.masks import read_mask
from test_law import KINDS, make_row

INFO = sampler.build_info()
BLOCK, WORD = 512, 64
SIZES = [1, 2, 31, 32, 33, 63, 64, 65, 256, 257, 300, 511, 512, 513, 1000, 1025, 2047, 2560, 2561,
         3000, 4097, 5000, 9000]  # fmt: skip
DTYPES = ["float16", "bfloat16", "float32", "float64"]
RAW = ("raw_logprobs", "raw_ranks", "raw_top_ids", "raw_top_logprobs")


def words_of(allowed):
    """The layout, bit by bit."""
    rows, vocab = allowed.shape
    words = np.zeros((rows, -(-vocab // 32)), np.uint32)
    for row, token in np.argwhere(allowed):
        words[row, token >> 5] |= np.uint32(1 << (token & 31))
    return words.view(np.int32)


def copied(rows, allowed, banned=()):
    """The rows with -inf written in."""
    rows = np.where(allowed, rows, np.array(-np.inf).astype(rows.dtype))
    rows[:, list(banned)] = -np.inf
    return rows


def random_allowed(rng, batch, vocab):
    """Masks of every density; stretches too, so that whole blocks are forbidden, or untouched."""
    share = rng.choice([0.0, 0.002, 0.02, 0.3, 0.75, 0.99, 1.0])
    allowed = rng.random((batch, vocab)) < share
    for _ in range(rng.integers(0, 4)):
        first, width = rng.integers(vocab), rng.choice([1, 40, BLOCK, 3 * BLOCK])
        allowed[:, first : first + width] = rng.random() < 0.5
    allowed[np.arange(batch), rng.integers(0, vocab, batch)] = True
    return allowed


def as_dtype(x, dtype):
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return x.astype(dtype)
    return x.astype(np.float32).astype(ml_dtypes.bfloat16)


def laid_out(rng, rows):
    """The same values at any offset in memory, with any strides, in either byte order."""
    batch, vocab = rows.shape
    way = rng.integers(5 if rows.dtype.name != "bfloat16" else 4)
    if way == 0:
        lead = int(rng.integers(0, 64))
        view = np.zeros((batch, vocab + lead + 7), rows.dtype)[:, lead : lead + vocab]
    elif way == 1:
        view = np.zeros((batch, 3 * vocab), rows.dtype)[:, ::3]
    elif way == 2:
        view = np.zeros((batch, vocab), rows.dtype)[:, ::-1]
    elif way == 3:
        view = np.zeros(batch * vocab * rows.itemsize + 1, np.uint8)[1:].view(rows.dtype)
        view = view.reshape(batch, vocab)
    else:
        return rows.astype(rows.dtype.newbyteorder())
    view[:] = rows
    return view


def random_mask(rng, allowed):
    """A mask in one of its forms, and what it allows."""
    vocab = allowed.shape[1]
    form = rng.choice(["words", "narrow", "wide", "strided", "tensor", "bools", "ids"])
    if form == "bools":
        return allowed if rng.random() < 0.5 else torch.from_numpy(allowed), allowed
    if form == "ids":
        return [np.flatnonzero(row).tolist() for row in allowed], allowed
    words = words_of(allowed)
    if form == "narrow" and words.shape[1] > 1:  # by half at most
        width = int(rng.integers((words.shape[1] + 1) // 2, words.shape[1]))
        allowed = allowed & (np.arange(vocab) < 32 * width)
        words = words[:, :width]
    elif form == "wide":
        words = np.pad(words, ((0, 0), (0, 3)))
    elif form == "strided":
        words = np.repeat(words, 2, axis=1)[:, ::2]
    elif form == "tensor":
        words = torch.from_numpy(words)
    if form in ("words", "strided", "tensor") and vocab % 32:
        words = words.clone() if form == "tensor" else words.copy()
        words[:, -1] |= -1 << (vocab % 32)  # spare bits, as xgrammar sets them
    return words, allowed


def everything(s, rows, mask, tokens, n, top):
    """All that a sampler says of rows, by name."""
    more = {} if mask is None else {"mask": mask}
    words = {"dtype": "bfloat16"} if rows.dtype.name == "bfloat16" else {}
    if words:
        rows = rows.view(np.uint16) if rows.dtype.isnative else rows
    found = {"call": s(rows, **more, **words)}
    for name, r in (
        ("sample", s.sample(rows, **more, **words, steps=3, n=n, logprobs=top, raw=True)),
        ("score", s.score(rows, tokens, **more, **words, logprobs=top, raw=True)),
    ):
        shown = {f"{name}.{field}": getattr(r, field) for field in r.__slots__}
        found |= {field: value for field, value in shown.items() if value is not None}
    found["filter"] = s.filter(rows, **more, **words)
    return found


def same(a, b):
    a, b = (np.asarray(x).astype(np.asarray(x).dtype.newbyteorder("=")) for x in (a, b))
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def check_equal(rng, vocab, *, dtype=None, stages=None, isa=None, batch=None):
    """An edited batch of random rows, under a random chain, against a copied one."""
    if isa is not None:
        _core.choose_isa(isa)
    batch = int(rng.choice([1, 2, 5])) if batch is None else batch
    dtype = rng.choice(DTYPES) if dtype is None else dtype
    base = np.float16 if dtype == "float16" else np.float32 if dtype != "float64" else np.float64
    rows = as_dtype(np.stack([make_row(rng, rng.choice(KINDS), vocab, base) for _ in range(batch)]),
                    dtype)  # fmt: skip
    if rng.random() < 0.15:
        rows[rng.integers(batch), rng.integers(vocab)] = rng.choice([np.nan, np.inf])
    allowed = random_allowed(rng, batch, vocab)
    mask, allowed = random_mask(rng, allowed)
    banned = np.unique(rng.integers(0, vocab, rng.choice([0, 0, 1, 20])))
    expected = copied(rows, allowed, banned)
    numbers = expected.astype(np.float64)
    visible = np.all(numbers < np.inf, axis=1) & np.any(numbers > -np.inf, axis=1)
    edited = rows.copy()
    if rng.random() < 0.3:  # what is forbidden is never looked at
        bad = rng.choice(np.array([np.nan, np.inf]), rows.shape).astype(rows.dtype)
        forbidden = ~allowed
        forbidden[:, banned] = True
        edited = np.where(forbidden & (rng.random(rows.shape) < 0.5), bad, rows)
    edited = laid_out(rng, edited)
    before = edited.tobytes()
    if stages is None:
        stages = [random_stage(rng) for _ in range(rng.integers(0, 4))]
    more = {
        "seed": int(rng.integers(2**32)), "threads": int(rng.choice([1, 3])), "on_invalid": "flag",
        "ties": str(rng.choice(["id", "all"])), "min_tokens_to_keep": int(rng.choice([1, 1, 4])),
    }  # fmt: skip
    n, top = int(rng.choice([1, 7])), int(rng.choice([0, 3, 40]))
    tokens = rng.integers(0, vocab, (batch, 2))
    s = Sampler([SuppressTokens(banned), *stages], **more)
    plain = Sampler(stages, **more)
    found = everything(s, edited, mask, tokens, n, top)
    wanted = everything(plain, expected, None, tokens, n, top)
    raw = everything(plain, edited, None, tokens, n, top)
    assert edited.tobytes() == before
    assert np.array_equal(found["call"] >= 0, visible)
    for name, value in found.items():
        field = name.split(".")[-1]
        if field not in RAW:
            assert same(value, wanted[name]), (name, stages, more)
        elif name.startswith("score"):  # the same tokens: those of the row as it came in
            assert same(value[visible], raw[name][visible]), (name, stages, more)
    if batch == 1 and visible[0] and rows.dtype.name != "bfloat16":
        a = s.distribution(edited[0], mask=mask[0], step=3)
        b = plain.distribution(expected[0], step=3)
        for field in ("ids", "probs", "logprobs"):
            assert same(getattr(a, field), getattr(b, field))


@settings(max_examples=400)
@given(seed=st.integers(0, 2**32 - 1), vocab=st.sampled_from(SIZES))
def test_edited_rows_equal_copied_rows(seed, vocab):
    # Planted, each seen red: a mask that allows beyond its width; a ban that lands in the padded
    # tail; maxima of the row before its edits; a first block that is one token longer; the bfloat16
    # shortcut without edits; `at` without them; NaN looked at under the mask.
    check_equal(np.random.default_rng(seed), vocab)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [257, 2561, 9000])
def test_on_every_isa(dtype, vocab, isas):
    for isa in isas:
        rng = np.random.default_rng(vocab)
        for _ in range(25):
            check_equal(rng, vocab, dtype=dtype, isa=isa)


@pytest.mark.parametrize("stages", [
    [Temperature(0.8), TopK(50)], [Temperature(0.8), TopP(0.9)], [Temperature(5.0), TopP(0.95)],
    [Temperature(0.8)], [Temperature(0.0)],
], ids=str)  # fmt: skip
def test_long_rows(stages):
    rng = np.random.default_rng(7)
    for _ in range(6):
        check_equal(rng, 70_000, stages=stages, batch=2)


@pytest.mark.slow
def test_a_hundred_thousand_triples():
    rng = np.random.default_rng(20261128)
    for number in range(100_000):
        check_equal(rng, int(rng.choice(SIZES[: 18 if number % 10 else None])), batch=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", [0, 5])
def test_invalid_logits_are_seen_where_they_are_allowed(dtype, lead, isas):
    # Planted: the limit and the logit of a masked comparison changed round, which loses NaN.
    vocab = 5 * BLOCK + 70
    rng = np.random.default_rng(lead)
    allowed = rng.random(vocab) < 0.75
    few = rng.random(vocab) < 0.004
    few[0] = True
    rows = as_dtype(np.zeros(vocab + lead), dtype)[lead:]
    words = {"dtype": "bfloat16"} if dtype == "bfloat16" else {}
    for isa in isas:
        _core.choose_isa(isa)
        for mask in (allowed, few, np.ones(vocab, bool)):
            s = Sampler(seed=1, on_invalid="flag")
            packed = read_mask(mask, mask.shape)[0]
            tokens = np.unique([*rng.integers(0, vocab, 60), *np.flatnonzero(few)[:9], vocab - 1])
            for token in tokens:
                for bad in (np.nan, -np.nan, np.inf):
                    rows[token] = bad
                    view = rows.view(np.uint16) if words else rows
                    assert (s(view, mask=packed, **words) < 0) == mask[token], (isa, token, bad)
                rows[token] = 0.0


# ---------------------------------------------------------------------------- what a mask may be

X = np.array([1.0, 3.0, 2.0, 0.0])


@pytest.mark.parametrize("mask", [
    np.array([0b0101], np.int32), np.array([[0b0101]], np.int32), torch.tensor([0b0101]).int(),
    np.array([0b0101], ">i4"), np.array([0b0101, 0, 0], np.int32), [0, 2], (2, 0), {0, 2},
    [np.int64(0), np.int64(2)], np.array([True, False, True, False]), [True, False, True, False],
    torch.tensor([True, False, True, False]),
])  # fmt: skip
def test_forms_of_one_mask(mask):
    s = Sampler(seed=3)
    assert s.filter(X, mask=mask).tolist() == [1.0, -np.inf, 2.0, -np.inf]
    assert s.distribution(X, mask=mask).ids.tolist() == [2, 0]
    assert s.score(X, [0, 1], mask=mask).ranks.tolist() == [2, 3]
    assert s.sample(X, mask=mask, n=5).n_kept.tolist() == [2] * 5
    assert s(X, mask=mask) in (0, 2)


def test_forms_of_a_batch():
    allowed = np.arange(6).reshape(2, 3) % 2 == 0
    words = np.array([[0b101], [0b010]], np.int32)
    for mask in (words, allowed, allowed.tolist(), [[0, 2], [1]], [np.array([2, 0]), (1,)]):
        assert read_mask(mask, (2, 3)).tolist() == words.tolist()
    assert read_mask([[], [1]], (2, 3)).tolist() == [[0], [2]]
    assert read_mask([], (3,)).tolist() == [[0]]
    for lone in ({2, 0}, frozenset({0, 2}), range(0, 3, 2)):
        assert read_mask(lone, (3,)).tolist() == [[0b101]]
        assert read_mask([lone, {1}], (2, 3)).tolist() == words.tolist()
    assert Sampler(seed=1)(np.zeros((0, 3)), mask=np.zeros((0, 1), np.int32)).tolist() == []


@given(seed=st.integers(0, 2**32 - 1), vocab=st.integers(1, 200), batch=st.integers(1, 4))
def test_packing(seed, vocab, batch):
    rng = np.random.default_rng(seed)
    allowed = rng.random((batch, vocab)) < rng.random()
    wanted = words_of(allowed)
    assert same(read_mask(allowed, allowed.shape), wanted)
    assert same(read_mask([np.flatnonzero(row).tolist() for row in allowed], allowed.shape), wanted)


@pytest.mark.parametrize(("mask", "error", "message"), [
    (np.ones(4), TypeError, "has to be int32 words, bools, or lists of allowed ids, but is float"),
    *((mask, TypeError, f"{dtype}: for ids pass mask.tolist.* words cast to int32, for flags to")
      for dtype in ("int64", "uint8", "uint32")
      for mask in [np.ones(4, dtype), torch.ones(4, dtype=getattr(torch, dtype))]),
    ([0.5, 1.0], TypeError, "`mask` has to hold ids in \\[0, 4\\), but holds float64$"),
    ({0.5}, TypeError, "`mask` has to hold ids in \\[0, 4\\), but holds \\[0.5\\]$"),
    ("0101", TypeError, "lists of allowed ids, but is a str$"),
    ([[0, 2]], TypeError, "but a row is \\[\\[0, 2\\]\\]$"),
    ([True, 3], TypeError, "has to hold ids in \\[0, 4\\), but holds \\[True, 3\\]$"),
    ([0, 4], ValueError, "`mask` has to hold ids in \\[0, 4\\), but one is 4, at index 1$"),
    ([-1], ValueError, "`mask` has to hold ids in \\[0, 4\\), but one is -1, at index 0$"),
    ([0, 0, 0, 1], ValueError, "each id once, but holds 0 more than once: flags have to be bools$"),
    ((1, 1, 0, 0), ValueError, "each id once, but holds 0 more than once: flags have to be bools$"),
    (np.ones((2, 1), np.int32), ValueError, "shape \\(1,\\) for .* \\(4,\\).* shape \\(2, 1\\)"),
    (np.ones((1, 4), bool), ValueError, "shape of the logits, \\(4,\\), but has shape \\(1, 4\\)$"),
    (np.ones(5, bool), ValueError, "shape of the logits, \\(4,\\), but has shape \\(5,\\)$"),
    (np.array([1, 0, 2], np.int32), ValueError, "after the word of token 3, .* row 0 has bits set"),
])  # fmt: skip
def test_bad_masks(mask, error, message):
    s = Sampler(seed=3)
    for call in (s, s.sample, s.filter, s.distribution, lambda x, mask: s.score(x, 0, mask=mask)):
        with pytest.raises(error, match=message):
            call(X, mask=mask)
    assert s.step == 0


@pytest.mark.parametrize("mask", [
    np.ones((1, 1), np.int32), np.ones(1, np.int32), np.ones((3, 1), np.int32),
    np.ones(4, bool), np.ones((3, 4), bool), [[0]], [[0], [0], [0]], [0, 1],
])  # fmt: skip
def test_a_mask_of_another_batch(mask):
    with pytest.raises((ValueError, TypeError), match=r"`mask`( of \w+)? ha(s|ve) to (be|have)"):
        Sampler(seed=3)(np.zeros((2, 4)), mask=mask)


def test_a_bad_id_of_a_batch_names_its_row():
    with pytest.raises(ValueError, match=r"but one is 4, at index 1 in row 1$"):
        Sampler(seed=3)(np.zeros((2, 4)), mask=[[0], [0, 4]])


@pytest.mark.parametrize("make", [np.int32, lambda ids: torch.tensor(ids, dtype=torch.int32)])
def test_ids_in_an_int32_array_are_not_words(make):
    # Found: they were drawn as bits, from tokens that nobody had named.
    for rows, mask in ((np.zeros(1000), [5, 900]), (np.zeros((2, 1000)), [[5, 900], [5, 900]])):
        with pytest.raises(
            ValueError, match=r"about 32 of .* has 2: for ids, pass lists \(mask\.to"
        ):
            Sampler(seed=3)(rows, mask=make(mask))
        assert np.isin(Sampler(seed=3)(rows, mask=make(mask).tolist()), [5, 900]).all()
    for width, refused in ((0, True), (15, True), (16, False)):  # a padded vocabulary has less
        ones = np.ones((1, width), np.int32)
        with pytest.raises(ValueError, match="but has") if refused else nullcontext():
            assert read_mask(ones, (1, 1000)).tolist() == ones.tolist()


def test_an_id_that_is_named_twice_in_a_batch_names_its_row():
    with pytest.raises(ValueError, match=r"but holds 2 more than once in row 1: flags have to be"):
        Sampler(seed=3)(np.zeros((2, 4)), mask=[[0], [2, 1, 2]])
    with pytest.raises(TypeError, match=r"but is a set$"):  # whose rows have no order
        Sampler(seed=3)(np.zeros((2, 4)), mask={(0,), (1,)})


def test_raw_figures_with_bans_alone():
    banned, plain = Sampler(suppress_tokens=[1], seed=2), Sampler(seed=2)
    found, wanted = banned.score(X, [2, 1], raw=True), plain.score(X, [2, 1], raw=True)
    for field in RAW[:2]:
        assert same(getattr(found, field), getattr(wanted, field))
    listed = banned.sample(X, logprobs=2, raw=True)
    assert listed.raw_top_ids.tolist() == [1, 2]
    assert listed.top_ids.tolist() == [2, 0]


@pytest.mark.parametrize(
    "stages", [[Temperature(50.0), TopP(0.9)], [TopK(20_000), Temperature(50.0)]], ids=str
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_long_rows_with_blocks_of_many_allowed_tokens_and_of_few(stages, dtype, isas):
    # Planted: the limit from above forgotten where few tokens of a block are allowed; a block in
    # which a cut ends read as if it did not, where many of equal logits are kept.
    vocab = 160_000
    rng = np.random.default_rng(5)
    rows = np.round(rng.normal(0.0, 2.0, (1, vocab)) * 4).astype(dtype)
    allowed = rng.random((1, vocab)) < 0.75
    few = np.arange(vocab) // BLOCK % 3 > 0
    one_per_word = np.arange(vocab) % 64 == rng.integers(0, 64, vocab // 64).repeat(64)
    allowed[0, few] = one_per_word[few]
    mask, bare = read_mask(allowed, rows.shape), copied(rows, allowed, [])
    tokens = rng.integers(0, vocab, (1, 2))
    for isa in isas:
        _core.choose_isa(isa)
        found = everything(Sampler(stages, seed=4), rows, mask, tokens, 1, 3)
        wanted = everything(Sampler(stages, seed=4), bare, None, tokens, 1, 3)
        for name, value in found.items():
            if name.split(".")[-1] not in RAW:
                assert same(value, wanted[name]), (name, isa)
        s, other = Sampler(stages, seed=4), Sampler(stages, seed=4)
        assert [s(rows, mask=mask)[0] for _ in range(100)] == [other(bare)[0] for _ in range(100)]


def test_no_token_left():
    rows = np.zeros((4, 40))
    mask = np.full((4, 2), -1, np.int32)
    mask[3] = 0
    mask[3, 0] = 1 << 7
    s = Sampler(suppress_tokens=[7], seed=1)
    message = "^the mask and the bans leave no token in row 3$"
    for call in (s, s.sample, s.filter, lambda x, mask: s.score(x, [0] * 4, mask=mask)):
        with pytest.raises(ValueError, match=message):
            call(rows, mask=mask)
    with pytest.raises(ValueError, match=r"^the mask and the bans leave no token in `row`$"):
        s.distribution(rows[3], mask=[7])
    flagged = s.replace(on_invalid="flag").sample(rows, mask=mask)
    assert (flagged.tokens >= 0).tolist() == [True, True, True, False]
    assert flagged.n_kept.tolist() == [39, 39, 39, 0]
    rows[3] = -np.inf  # which is the row's own fault
    with pytest.raises(ValueError, match=r"row 3 is -inf throughout$"):
        s(rows, mask=mask)
    rows[3, 7:9] = np.nan
    with pytest.raises(ValueError, match=r"row 3 has nan at token 8$"):
        s(rows, mask=[[0]] * 3 + [[6, 7, 8]])


def test_raw_fields_are_of_the_row_as_it_came_in():
    x = np.array([1.0, 3.0, np.nan, 0.0])
    s = Sampler(top_k=2, seed=1)
    r = s.sample(X, mask=[0, 3], logprobs=4, n=6, raw=True)
    assert r.raw_top_ids.tolist() == [1, 2, 0, 3]
    assert same(r.raw_logprobs, s.score(X, r.tokens, raw=True).raw_logprobs)
    r = s.sample(x, mask=[0, 3], logprobs=2, raw=True)
    assert r.tokens in (0, 3) and np.isfinite(r.logprobs) and np.isnan(r.raw_logprobs)
    assert r.raw_top_ids.tolist() == [-1, -1] and np.all(np.isnan(r.raw_top_logprobs))


def test_masks_are_not_written_to():
    mask = np.full((2, 2), 5, np.int32)
    mask.flags.writeable = False
    Sampler(seed=1)(np.zeros((2, 40), np.float32), mask=mask)
    assert np.all(mask == 5)


# --------------------------------------------------------------------------------- suppress_tokens


@pytest.mark.parametrize("ids", [[5, 1, 1], (1, 5), {5, 1}, np.array([5, 1]), torch.tensor([1, 5])])
def test_ids_are_kept_in_order(ids):
    s = Sampler(suppress_tokens=ids, temperature=0.5, seed=3)
    (on,) = (stage for stage in s.stages if stage.kind == "edit" and not stage.is_off)
    assert on == SuppressTokens([1, 5])
    assert hash(on) == hash(SuppressTokens([1, 5]))
    assert repr(s) == "Sampler(suppress_tokens=(1, 5), temperature=0.5, seed=3)"
    for other in (pickle.loads(pickle.dumps(s)), s.replace(top_k=None), eval(repr(s))):
        assert repr(other) == repr(s) and other.stages == s.stages
    assert s.replace(suppress_tokens=None).suppress_tokens == ()
    assert Sampler([SuppressTokens(ids), Temperature(0.5)], seed=3)(np.zeros(6)) == s(np.zeros(6))


@pytest.mark.parametrize(("value", "error", "message"), [
    (5, TypeError, "a sequence of integers >= 0, but is 5$"),
    ("5", TypeError, "a sequence of integers >= 0, but is '5'$"),
    ([0.5], TypeError, "a sequence of integers >= 0, but is \\[0.5\\]$"),
    ([True], TypeError, "a sequence of integers >= 0, but is \\[True\\]$"),
    ([[1]], TypeError, "a sequence of integers >= 0, but is \\[\\[1\\]\\]$"),
    ([3, -1], ValueError, "a sequence of integers >= 0, but one is -1$"),
    ([2**40], ValueError, "a sequence of integers >= 0, but one is 1099511627776$"),
])  # fmt: skip
def test_bad_ids(value, error, message):
    for make in (SuppressTokens, lambda ids: Sampler(suppress_tokens=ids)):
        with pytest.raises(error, match=f"^`suppress_tokens` has to be {message}"):
            make(value)


def test_ids_outside_the_vocabulary_are_found_by_the_call():
    s = Sampler(suppress_tokens=[3, 4], seed=1)
    with pytest.raises(
        ValueError, match=r"^`suppress_tokens` has to hold ids in \[0, 4\), but one is 4$"
    ):
        s(X)
    assert s.step == 0
    assert s(np.zeros(5)) < 3  # another vocabulary
    assert s(np.zeros(9)) not in (3, 4)


@pytest.mark.parametrize("before", [Temperature(0.8), TopK(2), Temperature(1.0)])
def test_edits_come_first(before):
    message = f"{SuppressTokens([2])!r} edits .* has to come before {before!r}".replace("(", r"\(")
    with pytest.raises(TypeError, match=message.replace(")", r"\)")):
        Sampler([SuppressTokens([1]), before, SuppressTokens([2])])
    two = Sampler([SuppressTokens([1]), SuppressTokens([2, 1]), before], seed=1)
    assert two.distribution(X).ids.tolist() in ([0, 3], [0])


def test_every_tier_weighs_what_the_mask_allows() -> None:
    rng = np.random.default_rng(0)
    row = rng.normal(0.0, 2.0, 5000).astype(np.float32)
    allowed = rng.random(5000) < 0.5
    rows = _inputs.read(row).rows()
    nothing = np.empty(0, np.int64), np.empty(0)
    rows.edit(_core.Edits(5000, *nothing), read_mask(allowed, (5000,)))
    copied = _inputs.read(np.where(allowed, row, np.float32(-np.inf))).rows()
    exact, error = _core.masses(copied, 1.5)[_core.TIERS["exact"]]
    assert error == 0.0
    for mass, error in _core.masses(rows, 1.5).values():
        assert abs(mass - exact) <= error


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_logits_with_another_value(dtype):
    # No stage gives finite values yet; what the core does with them is that of a copied row.
    rng = np.random.default_rng(9)
    for size in (1, 64, 511, 513, 3000):
        for chain in ([], [TopK(9)], [Temperature(0.7), TopP(0.9)]):
            row = rng.normal(0, 2, size).astype(dtype)
            ids = np.unique(rng.integers(0, size, 9))
            values = rng.normal(0, 4, len(ids)).astype(dtype).astype(np.float64)
            values[rng.random(len(ids)) < 0.3] = -np.inf
            copied = row.copy()
            copied[ids] = values
            if not np.isfinite(copied).any():
                continue
            rows = _inputs.read(row).rows()
            rows.edit(_core.Edits(size, ids, values))
            figures, logs = np.empty((3, 1, 20), np.int64), np.empty((2, 1, 20))
            lists = np.empty((1, 1, 3), np.int64), np.empty((1, 1, 3))
            keys = _core.KeyedUniforms(5, 0)
            _core.sample_tokens(make_chain(chain), rows, keys, figures, logs, *lists, False)
            r = Sampler(chain, seed=5).sample(copied, n=20, logprobs=3, steps=0)
            for found, wanted in zip(
                (*figures[:, 0], *logs[:, 0], lists[0][0, 0], lists[1][0, 0]),
                (r.tokens, r.ranks, r.n_kept, r.logprobs, r.entropy, r.top_ids, r.top_logprobs),
                strict=True,
            ):
                assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("lead", [0, 3, 12])
def test_bans_at_every_edge_of_a_block(lead):
    # Planted: the last logit of a copied block lost; edits of the next 512 ids not seen.
    rng = np.random.default_rng(lead)
    for size in (512, 700, 1500):
        memory = np.zeros(size + 16, np.float32)
        row = memory[lead : lead + size]
        edges = {e + d for e in (0, 512, 1024, size) for d in (-18, -17, -3, -2, -1, 0, 1, 2, 12)}
        for top in sorted(e for e in edges if 0 <= e < size):
            row[:] = rng.normal(-9, 1, size)
            row[top] = 9.0
            for ban in {max(top - 1, 0), min(top + 1, size - 1), (top + 500) % size} - {top}:
                kept, row[ban] = row[ban], 20.0
                mask = np.ones(size, bool)
                mask[ban] = False
                for x in (row, np.repeat(row, 2)[::2]):
                    assert Sampler(temperature=0.1, suppress_tokens=[ban], seed=0)(x) == top
                    r = Sampler(temperature=0.1, top_k=2, seed=0).sample(x, mask=mask, logprobs=2)
                    assert r.top_ids[0] == top
                row[ban] = kept


def test_words_of_a_wider_mask():
    # Planted: only the first word beyond the vocabulary looked at; rows next to each other.
    words = np.zeros((4, 9), np.int32)
    words[:, 0] = [1, 2, 4, 8]
    rows = np.zeros((2, 64))
    assert Sampler(seed=0)(rows, mask=words[::2]).tolist() == [0, 2]
    assert Sampler(seed=0)(rows, mask=words[1::2, :2]).tolist() == [1, 3]
    for beyond in range(2, 9):
        words[3, beyond] = 1
        with pytest.raises(ValueError, match=r"0 after the word of token 63, .* row 1 has"):
            Sampler(seed=0)(rows, mask=words[1::2])
        words[3, beyond] = 0


@pytest.mark.parametrize("size", [4608, 5000, 8192, 12_000, 16_000, 30_000, 65_536])
@pytest.mark.parametrize("spread", ["even", "random", "front"])
def test_few_tokens_that_are_all_over_a_row(size, spread):
    # Found: where nearly every 32nd part of the row had an allowed token, the core believed that
    # they do not fit among the candidates, and went on as if they were there.
    rng = np.random.default_rng(size)
    row = rng.normal(0, 2, size).astype(np.float32)
    for count in (1500, 2040, 2048, 2049):
        ids = {
            "even": np.linspace(0, size - 1, count).astype(int),
            "random": rng.choice(size, count, replace=False),
            "front": np.arange(count),
        }[spread]
        mask = np.zeros(size, bool)
        mask[ids] = True
        copied = np.where(mask, row, -np.inf).astype(np.float32)
        for more in ({}, {"top_k": 5}, {"temperature": 0.0}, {"top_p": 0.9}, {"min_p": 0.1}):
            s = Sampler(**more, seed=7)
            a, b = (
                s.sample(row, mask=mask, n=9, logprobs=3, steps=0),
                s.sample(copied, n=9, logprobs=3, steps=0),
            )
            for name in ("tokens", "n_kept", "logprobs", "ranks", "entropy", "top_ids"):
                assert getattr(a, name).tobytes() == getattr(b, name).tobytes(), (name, count, more)
            assert mask[a.tokens].all()
