"""What a trainer replays: the kept sets of a draw, and log-probabilities under them."""

import numpy as np
import pytest
import torch

from sampler import (
    DynamicTemperature,
    Sampler,
    Smoothing,
    Temperature,
    TopK,
    TopP,
)
from sampler.history import History
from sampler.torch import kept_log_softmax

inf = np.inf
SETTINGS = [
    {},
    {"temperature": 0},
    {"temperature": 3.0},
    {"top_k": 5, "temperature": 0.7},
    {"top_p": 0.9},
    {"min_p": 0.1, "temperature": 2.0},
    {"typical_p": 0.5},
    {"tail_free": 0.9, "top_k": 30},
    {"p_less": True},
    {"xtc": (0.05, 0.5)},
    {"xtc": (0.05, 0.9, (), True), "top_p": 0.9},
    {"dynamic_temperature": (0.5, 1.5, 1.0), "top_p": 0.9},
    {"smoothing": (0.3, 1.5), "top_k": 7},
    {"logit_bias": {3: 2.0, 5: -inf}, "top_p": 0.8},
    {"repetition_penalty": 1.3, "min_p": 0.05},
    {"mirostat": 2, "temperature": 0.8},
    {"adaptive_p": 0.4, "min_p": 0.01},
]
EVERY = pytest.mark.parametrize("settings", SETTINGS, ids=str)
FIGURES = ("logprobs", "n_kept", "entropy", "top_ids", "top_logprobs", "ranks", "log_mass")


def rows_of(vocab, batch=12, seed=0):
    return np.random.default_rng(seed).normal(0, 3, (batch, vocab)).astype(np.float32)


def given(s, batch):
    said = {"history": [History([1, 2], [3, 1])] * batch} if s.repetition_penalty else {}
    memory = s.mirostat or s.adaptive_p
    return {**said, "state": s.initial_state(batch)} if memory else said


@EVERY
@pytest.mark.parametrize("vocab", [7, 300, 9000])
def test_the_sets_are_those_of_the_law_and_give_it_back(settings, vocab):
    s, rows = Sampler(seed=3, **settings), rows_of(vocab)
    said = given(s, len(rows))
    asked = {"logprobs": 3, "raw": True, "steps": 5, **said}
    r = s.sample(rows, keep=True, **asked)
    assert r.kept_ids.dtype == np.int32 and r.kept_indptr.dtype == np.int64
    assert np.array_equal(np.diff(r.kept_indptr), r.n_kept)
    for i, row in enumerate(rows[:4]):
        own = {name: value[i] for name, value in said.items()}
        d = s.distribution(row, stream=i, step=5, **own)
        assert r.kept_ids[r.kept_indptr[i] : r.kept_indptr[i + 1]].tolist() == sorted(d.ids)
    again = s.score(rows, r.tokens, kept=(r.kept_indptr, r.kept_ids), **asked)
    for name in FIGURES:
        assert np.array_equal(getattr(r, name), getattr(again, name)), name


def test_a_thousand_tokens_of_a_model_are_recomputed_bit_for_bit(real_logits):
    """Each under a law of its own, from its logits and its set alone."""
    checked = 0
    for top_p, temperature in ((0.9, 0.8), (0.5, 1.0), (0.99, 1.3)):
        s = Sampler(top_p=top_p, temperature=temperature, seed=1)
        for step in range(12):
            r = s.sample(real_logits, keep=True, steps=step)
            plain = Sampler(temperature=temperature)  # of the scales alone
            again = plain.score(real_logits, r.tokens, kept=(r.kept_indptr, r.kept_ids))
            assert np.array_equal(again.logprobs, r.logprobs)
            checked += len(r.tokens)
    assert checked >= 1000


def test_the_sets_are_used_where_the_logits_have_changed():
    row = np.array([3.0, 2.0, 1.0, 0.0])
    s = Sampler(top_k=2, temperature=0.5)
    r = s.score(row[::-1].copy(), [0, 1, 2], kept=([0, 2], [0, 1]))  # which top-k would not keep
    z = np.array([0.0, 1.0]) / 0.5
    law = z - np.log(np.exp(z).sum())
    assert r.logprobs == pytest.approx([*law, -inf], abs=2**-32)  # whose grid the logs are on
    assert r.n_kept.tolist() == [2, 2, 2]


def test_a_text_of_n_tokens_is_a_batch_of_n_rows():
    s, rows = Sampler(top_p=0.8, seed=2), rows_of(50, batch=6)
    r = s.sample(rows, keep=True)
    parts = [r[i] for i in range(6)]
    one_by_one = [
        s.score(row, one.tokens, kept=(one.kept_indptr, one.kept_ids)).logprobs
        for row, one in zip(rows, parts, strict=True)
    ]
    assert one_by_one == r.logprobs.tolist()


def test_draws_of_a_row_have_a_list_each():
    rows = rows_of(300, batch=3)
    for settings in ({"top_p": 0.7}, {"xtc": (0.02, 0.5)}):  # a coin of each draw
        s = Sampler(seed=1, **settings)
        r = s.sample(rows, n=5, keep=True, steps=2)
        assert len(r.kept_indptr) == 16
        for row in range(3):
            for draw in range(5):
                d = s.distribution(rows[row], stream=row, step=2, draw=draw)
                assert r[row][draw].kept_ids.tolist() == sorted(d.ids)
    lone = Sampler(top_k=2, seed=1).sample([1.0, 3.0, 2.0], n=2, keep=True)
    assert lone.kept_indptr.tolist() == [0, 2, 4] and lone[1].kept_ids.tolist() == [1, 2]


def test_parts_of_samples():
    r = Sampler(top_p=0.8, seed=2).sample(rows_of(50, batch=6), keep=True)
    for index in (slice(1, 4), [4, 0], np.array([False, True, False, False, True, True])):
        part = r[index]
        rows = np.arange(6)[index]
        lists = [r[int(i)].kept_ids.tolist() for i in rows]
        found = np.split(part.kept_ids, part.kept_indptr[1:-1])
        assert [one.tolist() for one in found] == lists
    assert Sampler().sample(rows_of(5)).kept_ids is None


def test_tensors_for_a_tensor():
    rows = torch.from_numpy(rows_of(50))
    r = Sampler(top_p=0.8, seed=2).sample(rows, keep=True)
    assert r.kept_ids.dtype == torch.int32 and r.kept_indptr.dtype == torch.int64
    again = Sampler().score(rows, r.tokens, kept=(r.kept_indptr, r.kept_ids))
    assert torch.equal(again.logprobs, r.logprobs)
    assert r[2:4].kept_indptr[0] == 0 and isinstance(r[2].kept_indptr, torch.Tensor)


def test_an_invalid_row_keeps_nothing():
    rows = rows_of(5, batch=3)
    rows[1] = np.nan
    r = Sampler(top_k=2, on_invalid="flag").sample(rows, keep=True)
    assert r.kept_indptr.tolist() == [0, 2, 2, 4]
    s = Sampler(on_invalid="flag")
    again = s.score(rows_of(5, batch=3), [0, 0, 0], kept=(r.kept_indptr, r.kept_ids))
    assert np.isnan(again.logprobs).tolist() == [False, True, False]  # nothing to replay
    with pytest.raises(ValueError, match="leave no token in row 1"):
        Sampler().score(rows_of(5, batch=3), [0, 0, 0], kept=(r.kept_indptr, r.kept_ids))


def test_what_looks_at_the_row_stays_on_its_side_of_the_cuts():
    rows = rows_of(300)
    for chain in (
        [Smoothing(0.3), TopK(20), Temperature(0.5), TopP(0.8)],
        [Temperature(0.7), DynamicTemperature(0.5, 1.5), TopK(20), TopP(0.8)],
        [TopK(20), TopP(0.9), DynamicTemperature(0.5, 1.5)],
        [TopK(20), Smoothing(0.2), Temperature(1.5)],
    ):
        s = Sampler(chain, seed=4)
        r = s.sample(rows, keep=True, steps=0)
        again = s.score(rows, r.tokens, kept=(r.kept_indptr, r.kept_ids))
        assert np.array_equal(again.logprobs, r.logprobs), chain
    s = Sampler([TopK(20), Smoothing(0.2), TopP(0.9)])
    with pytest.raises(ValueError, match=r"Smoothing\(0.2, 1.0\) may not stand between two"):
        s.score(rows[0], 0, kept=([0, 1], [0]))


@pytest.mark.parametrize(
    ("kept", "error", "message"),
    [
        (5, TypeError, "kept_indptr, kept_ids"),
        (([0, 1],), TypeError, "kept_indptr, kept_ids"),
        (([0, 1], [0.5]), TypeError, "1-D integers"),
        (([0, 1], [[0]]), TypeError, "1-D integers"),
        (([0, 1, 1], [0]), ValueError, "2 numbers for 1 row"),
        (([1, 1], [0]), ValueError, "rise from 0"),
        (([0, 2], [0]), ValueError, "end with the number of ids, 1"),
        (([0, 1], [4]), ValueError, r"ids in \[0, 4\)"),
        (([0, 1], [-1]), ValueError, r"ids in \[0, 4\)"),
        (([0, 2], [1, 1]), ValueError, "row 0 has 1 before 1"),
        (([0, 2], [2, 1]), ValueError, "row 0 has 2 before 1"),
    ],
)
def test_bad_sets(kept, error, message):
    with pytest.raises(error, match=message):
        Sampler().score([1.0, 2.0, 3.0, 4.0], 0, kept=kept)


def test_keep_is_a_flag():
    with pytest.raises(TypeError, match="`keep`"):
        Sampler().sample([1.0, 2.0], keep=1)


# ------------------------------------------------------------------------------ with gradients


def test_the_log_softmax_of_what_was_kept():
    rows = torch.from_numpy(rows_of(300)).requires_grad_()
    r = Sampler(top_p=0.8, temperature=0.7, seed=2).sample(rows, keep=True)
    kept = r.kept_indptr, r.kept_ids
    logs = kept_log_softmax(rows, kept, tokens=r.tokens, temperature=0.7)
    assert logs.dtype == torch.float32
    assert torch.allclose(logs.double(), r.logprobs, rtol=0, atol=1e-6)
    # Of each row by itself, with torch's own operations.
    every = kept_log_softmax(rows.double(), kept, temperature=0.7)
    parts = [
        torch.log_softmax(rows.double()[i, r[i].kept_ids.long()] / 0.7, 0) for i in range(len(rows))
    ]
    assert torch.allclose(every, torch.cat(parts), rtol=1e-14, atol=1e-14)
    weights = torch.linspace(-1, 2, len(every), dtype=torch.float64)
    (own,) = torch.autograd.grad((every * weights).sum(), rows)
    (by_hand,) = torch.autograd.grad((torch.cat(parts) * weights).sum(), rows)
    assert torch.allclose(own, by_hand, rtol=1e-6, atol=1e-7)
    assert own.count_nonzero() <= len(every)  # nothing but what was kept has one


def test_its_gradient_is_the_derivative():
    rows = torch.from_numpy(rows_of(9, batch=3)).double().requires_grad_()
    kept = [0, 2, 5, 6], [1, 4, 0, 3, 8, 7]
    torch.autograd.gradcheck(lambda x: kept_log_softmax(x, kept, temperature=0.5), rows)
    tokens = [4, 8, 7]
    torch.autograd.gradgradcheck(lambda x: kept_log_softmax(x, kept, tokens=tokens), rows)


def test_a_token_that_was_not_kept():
    rows = torch.tensor([[1.0, 2.0, 3.0], [1e30, 2e30, 0.0]], requires_grad=True)
    logs = kept_log_softmax(rows, ([0, 2, 4], [0, 1, 0, 1]), tokens=[2, 1])
    assert logs.tolist() == [-inf, 0.0]
    logs[logs > -inf].sum().backward()
    assert torch.isfinite(rows.grad).all()
    none = kept_log_softmax(rows, ([0, 0, 1], [2]), tokens=[0, 2])  # an invalid row kept nothing
    assert none.tolist() == [-inf, 0.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0], ([0], [])), TypeError, "`input` has to be a tensor"),
        ((torch.zeros(3), ([0], [])), ValueError, "shape"),
        ((torch.zeros(1, 3), 5), TypeError, "kept_indptr, kept_ids"),
        ((torch.zeros(1, 3), ([0, 1], [0.5])), TypeError, "1-D integers"),
        ((torch.zeros(1, 3), ([0, 1, 1], [0])), ValueError, "2 numbers for 1 row"),
        ((torch.zeros(1, 3), ([0, 2], [0])), ValueError, "end with the number of ids"),
        ((torch.zeros(2, 3), ([0, 2, 1], [0])), ValueError, "has to rise"),
        ((torch.zeros(1, 3), ([0, 2], [1, 1])), ValueError, "row 0 has 1 before 1"),
        ((torch.zeros(1, 3), ([0, 1], [3])), ValueError, r"ids in \[0, 3\)"),
    ],
)
def test_bad_arguments_of_the_log_softmax(arguments, error, message):
    with pytest.raises(error, match=message):
        kept_log_softmax(*arguments)


def test_bad_temperatures_and_tokens():
    x, kept = torch.zeros(1, 3), ([0, 1], [0])
    for temperature in (0.0, inf):
        with pytest.raises(ValueError, match=r"in \(0, inf\)"):
            kept_log_softmax(x, kept, temperature=temperature)
    for tokens in ([0, 1], [3], [-1]):
        with pytest.raises(ValueError, match="one per row"):
            kept_log_softmax(x, kept, tokens=tokens)
