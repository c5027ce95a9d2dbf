"""Entropy, the temperature for it, calibration and distillation, against slower ways to say so."""

import builtins
import math
import pickle
import re

import ml_dtypes
import mpmath
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from sampler._build import install
from sampler.temperature import (
    Reliability,
    _fit,
    _inverse,
    _rows,
    distillation_loss,
    distillation_loss_grad,
    entropy,
    expected_calibration_error,
    fit_temperature,
    perplexity,
    reliability,
    temperature_for_entropy,
    temperature_for_perplexity,
)

inf, nan = math.inf, math.nan


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workprec(1500):
        yield


def exact_entropy(row, temperature):
    values = [mpmath.mpf(float(v)) for v in row if v > -inf]
    top, t = max(values), mpmath.mpf(float(temperature))
    w = [(v - top) / t for v in values]
    e = [mpmath.exp(v) for v in w]
    total = mpmath.fsum(e)
    return mpmath.log(total) - mpmath.fsum(a * b for a, b in zip(w, e, strict=True)) / total


def assert_close(got, exact, rel):
    assert abs(mpmath.mpf(float(got)) - exact) <= rel * abs(exact) + mpmath.mpf(2) ** -1070


rng = np.random.default_rng(1)
ROWS = {
    "normal": rng.normal(0, 3, 300),
    "steep": rng.normal(0, 30, 300),
    "sure": np.array([0.0, -40.0, -41.0, -300.0]),
    "surer": np.array([0.0, -600.0, -610.0]),
    "far from zero": rng.normal(0, 3, 100) + 1e6,
    "ties": np.array([2.0, 2.0, 2.0, 1.0, -50.0]),
    "nearly ties": np.array([1.0, 1.0 - 2**-50, 0.0]),
    "two": np.array([-3.0, 3.0]),
    "with -inf": np.where(np.arange(300) % 3, rng.normal(0, 5, 300), -inf),
    "masked by the lowest number": np.append(rng.normal(0, 3, 50), [np.finfo(float).min] * 50),
    "huge": rng.normal(0, 3, 100) * 1e300,
    "tiny": rng.normal(0, 3, 100) * 1e-300,
    "mixed": np.array([1.0, 0.0, -1e-3, -1e200]),
}
SCALES = {"huge": 1e300, "tiny": 1e-300}


# ------------------------------------------------------------------------------------- entropy


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0, 100.0, 1e9])
@pytest.mark.parametrize("name", ROWS)
def test_entropy_is_exact(name, temperature):
    t = temperature * SCALES.get(name, 1.0)
    exact = exact_entropy(ROWS[name], t)
    got = entropy(ROWS[name], temperature=t)
    assert isinstance(got, np.float64)
    assert_close(got, exact, 3e-13)
    assert_close(perplexity(ROWS[name], temperature=t), mpmath.exp(exact), 1e-12)


def test_entropy_of_a_sure_row_is_not_rounded_away():
    # log(1 + 1e-30) is 0 to who adds before taking the logarithm.
    got = entropy([0.0, -70.0])
    assert got == pytest.approx(71 * math.exp(-70), rel=1e-13)
    assert got > 0


@given(st.lists(st.floats(-200, 200, width=32), min_size=1, max_size=30), st.floats(0.01, 100))
def test_entropy_is_scipys(x, temperature):
    p = scipy.special.softmax(np.array(x) / temperature)
    assert entropy(x, temperature=temperature) == pytest.approx(
        scipy.stats.entropy(p), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", ">f4", ">f8"])
def test_dtypes_give_what_their_values_do(dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    x = rng.normal(0, 3, (3, 50)).astype(kind)
    same = x.astype(np.float64)
    assert entropy(x, temperature=0.7).dtype == np.float64
    assert np.array_equal(entropy(x, temperature=0.7), entropy(same, temperature=0.7))
    assert np.array_equal(temperature_for_entropy(x, 1.0), temperature_for_entropy(same, 1.0))
    labels = [1, 2, 3]
    assert fit_temperature(x, labels) == pytest.approx(fit_temperature(same, labels), rel=1e-5)
    loss = distillation_loss(x, same[::-1], temperature=2.0)
    assert loss == pytest.approx(distillation_loss(same, same[::-1], temperature=2.0), rel=1e-14)
    grad = distillation_loss_grad(x, same[::-1], temperature=2.0)
    assert grad.dtype == (np.float64 if dtype.endswith(("64", "f8")) else np.float32)
    assert np.allclose(grad, distillation_loss_grad(same, same[::-1], temperature=2.0), rtol=1e-6)


def test_tensors_give_tensors():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.linspace(-3, 3, 12).reshape(3, 4).to(dtype)
        plain = x.double().numpy()
        for got, want in (
            (entropy(x), entropy(plain)),
            (perplexity(x), perplexity(plain)),
            (temperature_for_entropy(x, 1.0), temperature_for_entropy(plain, 1.0)),
            (temperature_for_perplexity(x, 2.0), temperature_for_perplexity(plain, 2.0)),
            (distillation_loss(x, plain[::-1], reduction="none"),
             distillation_loss(plain, plain[::-1], reduction="none")),
        ):  # fmt: skip
            assert isinstance(got, torch.Tensor)
            assert got.dtype == torch.float64
            assert np.array_equal(got.numpy(), want)
        assert entropy(x[0]).shape == ()
        assert isinstance(distillation_loss_grad(x, x), torch.Tensor)
        assert fit_temperature(x, torch.tensor([0, 1, 2])) == pytest.approx(
            fit_temperature(plain, [0, 1, 2]), rel=1e-5
        )


def test_axes_and_temperatures_a_row():
    x = rng.normal(0, 2, (4, 5, 6))
    t = rng.uniform(0.1, 3, (4, 6))
    got = entropy(x, temperature=t, axis=1)
    assert got.shape == (4, 6)
    for i, j in np.ndindex(4, 6):
        assert got[i, j] == entropy(x[i, :, j], temperature=t[i, j])
    assert np.array_equal(entropy(x, temperature=None), entropy(x, temperature=1.0))
    assert np.array_equal(
        perplexity(x, temperature=0.5, axis=0), np.exp(entropy(x, temperature=0.5, axis=0))
    )
    assert entropy(np.empty((0, 3))).shape == (0,)


@pytest.mark.parametrize("function", [entropy, perplexity])
def test_several_axes_and_keepdims(function):
    x = rng.normal(0, 2, (2, 3, 4))
    for axis in (None, (0, 2), (-1, 0), 1, (2,), ()):
        kept = function(x, axis=axis, keepdims=True)
        p = scipy.special.softmax(x, axis=axis) if axis != () else np.ones_like(x)
        want = -np.sum(p * np.log(p), axis=axis, keepdims=True)
        np.testing.assert_allclose(kept, want if function is entropy else np.exp(want), atol=1e-12)
        gone = function(x, axis=axis)
        assert np.array_equal(gone, np.sum(kept, axis=axis if axis is not None else (0, 1, 2)))
        np.testing.assert_allclose(function(torch.tensor(x), axis=axis), gone, rtol=1e-15)
    t = np.array([0.5, 1.0, 2.0])
    got = function(x, temperature=t, axis=(0, 2))
    assert got.tolist() == [function(x[:, i], temperature=t[i], axis=None) for i in range(3)]
    assert function(5) == function(np.array(5)) == function(torch.tensor(5)) == function([1.0])
    assert function(np.arange(3)) == function([0.0, 1.0, 2.0])
    assert function(np.array([True, False])) == function([1.0, 0.0])


def test_chunks_do_not_matter(monkeypatch):
    x, y = rng.normal(0, 3, (2, 37, 11))
    labels = rng.integers(0, 11, 37)
    probs = scipy.special.softmax(x, axis=1)

    def all_of_it():
        return [
            entropy(x), temperature_for_entropy(x, 1.5), distillation_loss(x, y, temperature=2.0),
            distillation_loss_grad(x, y, temperature=2.0), reliability(probs, labels).error,
        ]  # fmt: skip

    want, fitted = all_of_it(), fit_temperature(x, labels)
    for size in (1, 11, 50):
        monkeypatch.setattr(_rows, "_CHUNK", size)
        for got, expected in zip(all_of_it(), want, strict=True):
            assert np.array_equal(got, expected)
        assert fit_temperature(x, labels) == pytest.approx(fitted, rel=1e-12)


@pytest.mark.parametrize("x", [[1.0, 3.0, -inf, 3.0, -2.0], [1e300, 3e300, -inf, 3e300, -1e300]])
def test_entropy_at_0_and_inf(x):
    assert entropy(x, temperature=0) == pytest.approx(math.log(2), rel=1e-15)
    assert entropy(x, temperature=inf) == pytest.approx(math.log(4), rel=1e-15)
    assert perplexity(x, temperature=0) == pytest.approx(2, rel=1e-15)
    assert perplexity(np.array([x, x]), temperature=[0.0, inf]) == pytest.approx([2, 4], rel=1e-15)
    assert entropy(x, temperature=5e-324) == pytest.approx(math.log(2), rel=1e-15)
    assert (
        entropy([5.0], temperature=0)
        == entropy([5.0])
        == entropy([-inf, 5.0], temperature=inf)
        == 0
    )


@pytest.mark.parametrize("temperature", [0, 1e-300, 1.0, inf])
@pytest.mark.parametrize("bad", [[nan, 0.0], [inf, 0.0], [inf, inf], [-inf, -inf], [0.0, -nan]])
def test_entropy_of_an_invalid_row_is_nan_and_alone(bad, temperature):
    got = entropy([[0.0, 1.0], bad, [0.0, 1.0]], temperature=temperature)
    assert np.isnan(got[1])
    assert got[0] == got[2] == entropy([0.0, 1.0], temperature=temperature)
    assert np.isnan(perplexity(bad, temperature=temperature))


@pytest.mark.parametrize(
    ("logits", "options", "error", "text"),
    [
        ([1.0], {"temperature": -1}, ValueError,
         "`temperature` has to be a float in [0, inf], but is -1"),
        ([1.0], {"temperature": nan}, ValueError,
         "`temperature` has to be a float in [0, inf], but is nan"),
        ([1.0], {"temperature": "1"}, TypeError,
         "`temperature` has to be a float in [0, inf], but is '1'"),
        ([[1.0]], {"temperature": [nan]}, ValueError,
         "`temperature` has to be a float in [0, inf], or one per row, but one is nan"),
        ([[1.0]], {"temperature": [True]}, TypeError,
         "`temperature` has to be a float in [0, inf], or one per row, but is [True]"),
        ([[1.0]], {"temperature": [1.0, 2.0]}, ValueError,
         "`temperature` has to broadcast to shape (1,), but has shape (2,)"),
        ([[1.0]], {"axis": 2}, ValueError,
         "`axis` has to be an integer in [-2, 2), a tuple of them, or None, but is 2"),
        ([[1.0]], {"keepdims": 1}, TypeError, "`keepdims` has to be True or False, but is 1"),
        (np.empty((2, 0)), {}, ValueError,
         "`logits` have to hold at least one token per row, but have shape (2, 0)"),
        ("words", {}, TypeError, "`logits` have to be an array of floats, but are a str"),
    ],
)  # fmt: skip
def test_errors_of_entropy(logits, options, error, text):
    for function in (entropy, perplexity):
        with pytest.raises(error, match=f"^{re.escape(text)}$"):
            function(logits, **options)


# ------------------------------------------------------------------ the temperature for an entropy


@pytest.mark.parametrize("share", [1e-12, 1e-6, 0.01, 0.3, 0.5, 0.9, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("name", ROWS)
def test_the_temperature_gives_the_entropy(name, share):
    x = ROWS[name]
    low, high = entropy(x, temperature=0), entropy(x, temperature=inf)
    if name == "masked by the lowest number":
        high = math.log(50)  # beyond lie temperatures that no one divides by
    wanted = low + share * (high - low)
    t = temperature_for_entropy(x, wanted)
    assert isinstance(t, np.float64)
    assert 0 < t < inf
    assert_close(exact_entropy(x, t), mpmath.mpf(float(wanted)), 1e-12)
    # It is the answer, not an answer: the entropy rises at it.
    assert entropy(x, temperature=t * 0.9) <= wanted <= entropy(x, temperature=t * 1.1)


def test_the_temperature_for_an_entropy_far_below_what_a_row_has():
    # Relative, not absolute: entropies of 1e-200 are distinguished.
    x = np.array([0.0, -1.0, -2.0])
    for wanted in (1e-10, 1e-50, 1e-200, 1e-300):
        assert_close(
            exact_entropy(x, temperature_for_entropy(x, wanted)), mpmath.mpf(wanted), 1e-12
        )


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=20, unique=True),
    st.floats(-5, 5),
)
def test_there_and_back(x, logarithm):
    x = np.array(x)
    spread = x.max() - x.min()
    t = spread * math.exp(logarithm) / 10
    h = entropy(x, temperature=t)
    assume(1e-290 < h < math.log(len(x)) * (1 - 1e-14))
    back = temperature_for_entropy(x, h)
    assert entropy(x, temperature=back) == pytest.approx(h, rel=1e-12)


def test_real_rows(real_logits):
    wanted = np.linspace(0.01, 9.0, len(real_logits))
    t = temperature_for_entropy(real_logits, wanted)
    p = scipy.special.softmax(real_logits.astype(np.float64) / t[:, None], axis=1)
    assert scipy.stats.entropy(p, axis=1) == pytest.approx(wanted, rel=1e-11)
    assert np.array_equal(
        t, [temperature_for_entropy(x, h) for x, h in zip(real_logits, wanted, strict=True)]
    )


def test_it_does_not_take_many_steps(monkeypatch, real_logits):
    steps, excess = [], _inverse.excess_entropy
    monkeypatch.setattr(_inverse, "excess_entropy", lambda *a: steps.append(1) or excess(*a))
    for row in real_logits[:8]:
        for wanted in (0.01, 1.0, 5.0, 10.0):
            steps.clear()
            temperature_for_entropy(row, wanted)
            assert 0 < len(steps) <= 15
    for row in ROWS.values():
        low, high = entropy(row, temperature=0), entropy(row, temperature=inf)
        for share in (1e-12, 0.1, 0.5, 0.9, 1 - 1e-9):
            steps.clear()
            temperature_for_entropy(row, low + share * (high - low))
            assert len(steps) <= 40


def test_temperatures_that_no_float_can_hold():
    largest = np.finfo(float).max
    assert temperature_for_entropy([0.0, -largest, 0.0], math.log(3) - 1e-3) == inf
    assert temperature_for_entropy([0.0, -5e-324], 0.01) == 0


def test_rows_at_several_scales():
    r = np.random.default_rng(0)
    for _ in range(60):
        x = np.append(0.0, -(10.0 ** r.uniform(-12, 12, r.integers(1, 6))))
        for share in (1e-9, 0.1, 0.5, 0.9, 1 - 1e-6):
            wanted = share * math.log(len(x))
            t = temperature_for_entropy(x, wanted)
            assert_close(exact_entropy(x, t), mpmath.mpf(float(wanted)), 1e-12)


def test_the_two_ends():
    x = np.array([1.0, 3.0, -inf, 3.0, -2.0])
    assert temperature_for_entropy(x, math.log(2)) == 0
    assert temperature_for_entropy(x, math.log(4)) == inf
    assert temperature_for_perplexity(x, 2) == 0
    assert temperature_for_perplexity(x, 4.0) == inf
    assert temperature_for_entropy([1.0, 0.0], 0.0) == 0
    for n in range(2, 200):
        row = np.arange(n, dtype=float)
        assert temperature_for_entropy(row, math.log(n)) == inf
        assert temperature_for_perplexity(row, 1) == 0
        assert temperature_for_perplexity(row, n) == inf
        # Logarithms taken elsewhere may be off by a bit or two.
        for side in (0, inf):
            assert temperature_for_entropy(row, np.nextafter(math.log(n), side)) == inf
            assert temperature_for_entropy(np.zeros(n), np.nextafter(math.log(n), side)) == 1
            ties = np.append(np.zeros(n), -1.0)
            assert temperature_for_entropy(ties, np.nextafter(math.log(n), side)) == 0


def test_equal_logits_have_one_entropy():
    for row, n in (([7.0] * 5, 5), ([7.0, -inf, 7.0], 2), ([7.0, -inf], 1), ([0.0], 1)):
        assert temperature_for_entropy(row, math.log(n)) == 1
        assert temperature_for_perplexity(row, n) == 1
        with pytest.raises(ValueError, match="the range of row 0"):
            temperature_for_entropy(row, math.log(n) + 0.1)


@pytest.mark.parametrize(
    ("function", "logits", "value", "error", "text"),
    [
        (temperature_for_entropy, [[0.0, 1.0], [0.0, 0.0]], [0.5, 0.5], ValueError,
         "`entropy` has to be in [0.693147, 0.693147], the range of row 1, but is 0.5"),
        (temperature_for_entropy, [0.0, 1.0, -inf], 0.7, ValueError,
         "`entropy` has to be in [0, 0.693147], the range of row 0, but is 0.7"),
        (temperature_for_perplexity, [1.0, 1.0, 0.0], 1.5, ValueError,
         "`perplexity` has to be in [2, 3], the range of row 0, but is 1.5"),
        (temperature_for_perplexity, [[[1.0, 0.0]] * 3] * 2, [[1.5] * 3, [1.5, 3, 1.5]], ValueError,
         "`perplexity` has to be in [1, 2], the range of row (1, 1), but is 3.0"),
        (temperature_for_perplexity, [1.0, 0.0], 0.5, ValueError,
         "`perplexity` has to be a float >= 1, but is 0.5"),
        (temperature_for_entropy, [1.0, 0.0], -1e-300, ValueError,
         "`entropy` has to be a float >= 0, but is -1e-300"),
        (temperature_for_entropy, [1.0, 0.0], nan, ValueError,
         "`entropy` has to be a float >= 0, but is nan"),
        (temperature_for_entropy, [1.0, 0.0], "1", TypeError,
         "`entropy` has to be a float >= 0, but is '1'"),
        (temperature_for_entropy, [[1.0, 0.0]], [0.1, 0.1], ValueError,
         "`entropy` has to broadcast to shape (1,), but has shape (2,)"),
        (temperature_for_entropy, [[1.0, 0.0], [0.0, nan]], 0.1, ValueError,
         "`logits` have to be finite or -inf, but row 1 has nan at token 1"),
        (temperature_for_entropy, [[inf, 0.0]], 0.1, ValueError,
         "`logits` have to be finite or -inf, but row 0 has inf at token 0"),
        (temperature_for_entropy, [[0.0, 0.0], [-inf, 1.0]], math.log(2), ValueError,
         f"`entropy` has to be in [0, 0], the range of row 1, but is {math.log(2)}"),
        (temperature_for_entropy, [[0.0, 1.0], [-inf, -inf]], 0.1, ValueError,
         "`logits` have to hold a finite value in every row, but row 1 is -inf throughout"),
    ],
)  # fmt: skip
def test_errors_of_temperature_for(function, logits, value, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        function(logits, value)


# ---------------------------------------------------------------------------------- calibration


def loss_at(x, labels, t):
    z = scipy.special.log_softmax(np.asarray(x, np.float64) / t, axis=1)
    return -np.mean(z[np.arange(len(z)), labels])


def brute(x, labels, low=1e-3, high=1e3):
    """Where the derivative changes sign, in float64, by bisection."""
    x = np.asarray(x, np.float64)
    own = x[np.arange(len(x)), labels]

    def slope(logarithm):
        p = scipy.special.softmax(x * math.exp(-logarithm), axis=1)
        return np.mean(np.sum(p * np.where(x > -inf, x, 0.0), axis=1) - own)

    return math.exp(scipy.optimize.brentq(slope, math.log(low), math.log(high), xtol=1e-15))


def labelled(batch, vocab, true, scale=3.0, seed=0):
    r = np.random.default_rng(seed)
    x = r.normal(0, scale, (batch, vocab))
    return x, np.argmax(x / true + r.gumbel(size=x.shape), axis=1)


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 20.0])
@pytest.mark.parametrize(("batch", "vocab"), [(40, 3), (500, 10), (3000, 20)])
def test_fit_is_the_minimum(batch, vocab, true):
    x, labels = labelled(batch, vocab, true)
    want = brute(x, labels)
    got = fit_temperature(x, labels)
    assert type(got) is float
    assert got == pytest.approx(want, rel=1e-11)
    assert fit_temperature(x.astype(np.float32), labels) == pytest.approx(want, rel=2e-6)
    best = scipy.optimize.minimize_scalar(
        lambda u: loss_at(x, labels, math.exp(u)), bracket=(-1, 1), method="brent"
    )
    assert loss_at(x, labels, got) <= best.fun + 1e-15


def test_fit_recovers_what_made_the_labels():
    x, labels = labelled(30_000, 10, 1.7)
    assert fit_temperature(x, labels) == pytest.approx(1.7, abs=0.05)


@pytest.mark.parametrize("exponent", [-300, -100, -37, 0, 10, 37, 100, 300])
def test_fit_scales_with_the_logits(exponent):
    x, labels = labelled(300, 5, 2.0)
    scale = 10.0**exponent
    want = fit_temperature(x, labels) * scale
    assert fit_temperature(x * scale, labels) == pytest.approx(want, rel=1e-10)
    if abs(exponent) <= 37:
        got = fit_temperature((x * scale).astype(np.float32), labels)
        assert got == pytest.approx(want, rel=1e-5)


def test_fit_with_classes_ruled_out():
    x, labels = labelled(400, 10, 2.0)
    for mask in (-inf, -1e30, np.finfo(np.float32).min):
        y = x.copy()
        hidden = np.random.default_rng(1).random(x.shape) < 0.3
        hidden[np.arange(400), labels] = False
        y[hidden] = -inf
        want = brute(y, labels)
        y[hidden] = mask
        assert fit_temperature(y, labels) == pytest.approx(want, rel=1e-11)
        assert fit_temperature(y.astype(np.float32), labels) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fit_of_rows_at_two_scales(dtype):
    # At the temperature of the small ones, the others overflow float32 when divided by it.
    x = np.zeros((5, 2), dtype)
    x[:3, 0], x[3:, 0] = 1e-20, 1e25
    want = 1e-20 / math.log(2)
    assert fit_temperature(x, [0, 0, 1, 0, 0]) == pytest.approx(want, rel=1e-6)


def test_fit_from_a_misleading_sample():
    # Every sixteenth row, which leads the way, is of another kind: it may cost time only.
    x, labels = labelled(3200, 5, 2.0)
    x[::16] *= 1e-3
    assert fit_temperature(x, labels) == pytest.approx(brute(x, labels), rel=1e-11)
    x, labels = labelled(3200, 5, 2.0)
    labels[::16] = x[::16].argmax(axis=1)
    assert fit_temperature(x, labels) == pytest.approx(brute(x, labels), rel=1e-11)
    labels[::16] = x[::16].argmin(axis=1)
    labels[1::16] = x[1::16].argmax(axis=1)
    labels[2::16] = x[2::16].argmax(axis=1)
    assert fit_temperature(x, labels) == pytest.approx(brute(x, labels), rel=1e-11)


@pytest.fixture
def passes(monkeypatch):
    """How many rows each pass of a fit was over."""
    made, moments = [], _fit._Calibration._moments

    def counted(self, beta):
        made.append(len(self.labels))
        return moments(self, beta)

    monkeypatch.setattr(_fit._Calibration, "_moments", counted)
    return made


@pytest.mark.parametrize("gap", [0.01, 1.5, 30.0, 100.0, 1000.0])
@pytest.mark.parametrize("right", [1, 20, 39])
def test_fit_where_newton_jumps_too_far(right, gap, passes):
    # One class above many: the derivative is flat on both sides of a step.
    x = np.zeros((40, 1000))
    x[:, 0] = gap
    labels = np.where(np.arange(40) < right, 0, 1)
    want = gap / math.log(999 * right / (40 - right))
    assert fit_temperature(x, labels) == pytest.approx(want, rel=1e-11)
    assert len(passes) <= 25


def test_fit_takes_few_passes(passes):
    for true in (0.5, 1.0, 3.0):
        passes.clear()
        x, labels = labelled(20_000, 10, true)
        fit_temperature(x.astype(np.float32), labels)
        assert passes.count(20_000) <= 3
        assert len(passes) <= 20
    for scale in (1e-300, 1e300):
        passes.clear()
        x, labels = labelled(300, 5, 2.0)
        fit_temperature(x * scale, labels)
        assert len(passes) <= 30


def test_fit_of_one_wrong_label_in_many():
    # Nearly separable: the answer is a small temperature, not 0.
    x = np.tile([10.0, 0.0], (1000, 1))
    labels = np.zeros(1000, int)
    labels[3] = 1
    assert fit_temperature(x, labels) == pytest.approx(10 / math.log(999), rel=1e-12)
    x[3] = [1e-6, 0.0]
    # 999 * 10 / (1 + exp(10 b)) = 1e-6 / (1 + exp(-1e-6 b)), in logarithms.
    beta = scipy.optimize.brentq(
        lambda b: math.log(9990 / 1e-6) - np.logaddexp(0, 10 * b) + np.logaddexp(0, -1e-6 * b),
        1e-3,
        1e3,
        xtol=1e-15,
    )
    assert fit_temperature(x, labels) == pytest.approx(1 / beta, rel=1e-11)


def test_fit_at_its_limits():
    x = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 2.0]])
    assert fit_temperature(x, [0, 1]) == 0  # the largest
    assert fit_temperature(x, [0, 2]) == 0  # or as large
    assert fit_temperature(x, [2, 0]) == inf
    assert fit_temperature([[2.0, 0.0], [2.0, 0.0]], [0, 1]) == inf  # as chance
    assert fit_temperature([[2.0, 0.0]] * 1001, [0] * 501 + [1] * 500) < 1e4  # a little better
    assert fit_temperature([[5.0, 5.0], [7.0, -inf]], [1, 0]) == 1
    assert fit_temperature([[5.0, 5.0], [7.0, -1.0]], [1, 0]) == 0
    many = np.tile([2.0, 0.0, -inf], (2000, 1))
    assert fit_temperature(many, np.zeros(2000, int)) == 0
    assert fit_temperature(many, np.ones(2000, int)) == inf


@pytest.mark.parametrize(
    ("logits", "labels", "error", "text"),
    [
        ([[0.0, 1.0]], [2], ValueError,
         "`labels` have to be integers in [0, 2), of shape (1,), but one is 2, at index 0"),
        ([[0.0, 1.0], [0.0, 1.0]], [1, -1], ValueError,
         ("`labels` have to be integers in [0, 2), of shape (2,), but one is -1, at index 1: if it "
         "is padding, pass ignore_index=-1")),
        ([0.5, -3.0, 2.0], [0, 1, 1], ValueError,
         ("`logits` of a binary classifier have to be of shape (3, 1), but have shape (3,): pass "
         "logits[:, None]")),
        ([[0.0, 1.0]], [1, 1], ValueError,
         "`labels` have to be integers in [0, 2), of shape (1,), but have shape (2,)"),
        ([[0.0, 1.0]], 1, ValueError,
         "`labels` have to be integers in [0, 2), of shape (1,), but have shape ()"),
        ([[0.0, 1.0]], [1.0], TypeError,
         "`labels` have to be integers in [0, 2), of shape (1,), but are [1.0]"),
        ([[0.0, 1.0]], [[1], [1, 2]], TypeError,
         "`labels` have to be integers in [0, 2), of shape (1,), but are [[1], [1, 2]]"),
        ([0.0, 1.0], [1], ValueError,
         "`labels` have to be integers in [0, 2), of shape (), but have shape (1,)"),
        (1.0, 0, ValueError,
         "`logits` have to hold at least one row and one class, but have shape ()"),
        ([[0.0, 1.0]], [-100], ValueError,
         "every label is -100, the `ignore_index`, so no row counts"),
        (np.empty((0, 2)), np.empty(0, int), ValueError,
         "`logits` have to hold at least one row and one class, but have shape (0, 2)"),
        (np.empty((2, 0)), [0, 0], ValueError,
         "`logits` have to hold at least one row and one class, but have shape (2, 0)"),
        ([[0.0, 1.0], [nan, 0.0]], [1, 1], ValueError,
         "`logits` have to be finite or -inf, but row 1 has nan at token 0"),
        ([[0.0, 1.0], [0.0, inf]], [1, 1], ValueError,
         "`logits` have to be finite or -inf, but row 1 has inf at token 1"),
        ([[0.0, 1.0], [-inf, -inf]], [1, 1], ValueError,
         "`logits` have to hold a finite value in every row, but row 1 is -inf throughout"),
        ([[0.0, 1.0], [0.0, -inf]], [1, 1], ValueError,
         "`logits` have to be finite at the labels, but row 1 has -inf at its label 1"),
        (np.zeros((1, 2), complex), [0], TypeError,
         "`logits` have to be float16, bfloat16, float32 or float64, but are complex128"),
    ],
)  # fmt: skip
def test_errors_of_fit(logits, labels, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        fit_temperature(logits, labels)


def test_fit_of_any_number_of_axes():
    x, labels = labelled(60, 4, 2.0)
    want = fit_temperature(x, labels)
    for kind in (x, torch.tensor(x)):
        assert fit_temperature(kind.reshape(5, 12, 4), labels.reshape(5, 12)) == want
    assert fit_temperature(x[0] * 1e300, 0) in (0, inf)
    whole = np.round(x * 100).astype(int)
    assert fit_temperature(whole, labels) == fit_temperature(whole.astype(float), labels)


def test_fit_without_ignored_labels():
    x, labels = labelled(2000, 4, 2.0)
    want = fit_temperature(x[::2], labels[::2])
    for index in (-100, 7, 1):
        ignored = labels.copy()
        ignored[1::2] = index
        holes = x.copy()
        holes[1::2] = nan
        got = fit_temperature(holes, ignored, ignore_index=index)
        keep = ignored != index
        assert got == fit_temperature(x[keep], labels[keep])
        if index != 1:
            assert got == want
    holes = holes.reshape(20, 100, 4)
    ignored[1::2] = 2  # of which nothing is ignored
    with pytest.raises(ValueError, match=r"row \(0, 1\) has nan at token 0$"):
        fit_temperature(holes, ignored.reshape(20, 100))
    ignored[:1001] = -100
    with pytest.raises(ValueError, match=r"row \(10, 1\) has nan at token 0$"):
        fit_temperature(holes, ignored.reshape(20, 100))


def test_fit_of_a_binary_classifier():
    # Logits of class 1 alone were one class, which every label had: 1, or an error.
    r = np.random.default_rng(2)
    z = r.normal(0, 4, (3000, 1))
    labels = r.random(3000) < scipy.special.expit(z[:, 0] / 2)
    want = fit_temperature(np.concatenate([np.zeros_like(z), z], axis=1), labels.astype(int))
    assert want == pytest.approx(2, abs=0.2)
    assert fit_temperature(z, labels) == fit_temperature(z, labels.tolist()) == want
    assert fit_temperature(torch.tensor(z), torch.tensor(labels)) == want
    assert fit_temperature(z.astype(np.float32), labels) == pytest.approx(want, rel=1e-5)
    with pytest.raises(ValueError, match=r"^`labels` have to be integers in \[0, 2\), of shape "):
        fit_temperature(z, labels * 2)


def test_labels_that_are_bools():
    x, labels = labelled(50, 2, 2.0)
    yes = labels.astype(bool)
    assert fit_temperature(x, yes) == fit_temperature(x, labels)
    probs = scipy.special.softmax(x, axis=1)
    assert expected_calibration_error(probs, yes) == expected_calibration_error(probs, labels)


def test_fit_warns_of_probabilities():
    x, labels = labelled(100, 4, 2.0)
    probs = scipy.special.softmax(x, axis=1)
    for p in (probs, probs.astype(np.float16), np.eye(4)[labels], torch.tensor(probs)):
        with pytest.warns(UserWarning, match=r"like probabilities: pass their logarithms, np\.log"):
            fit_temperature(p, labels)
    for other in (np.log(probs), probs * 1.01, np.append(probs[1:], x[:1], axis=0)):
        fit_temperature(other, labels)  # warnings are errors
    probs[-1] = [-1e-4, 1.0001, 0.0, 0.0]
    fit_temperature(probs, labels)
    for p in (probs[:, :1].clip(0, 1), torch.ones(3, 1), np.zeros((3, 1), np.float32)):
        with pytest.warns(UserWarning, match=r"^`logits` are all .* np\.log\(p / \(1 - p\)\)$"):
            fit_temperature(p, np.arange(len(p)) % 2)
    fit_temperature([[0.5], [1.001]], [0, 1])
    fit_temperature([[0.5], [-0.001]], [0, 1])


def test_an_invalid_row_is_named_by_its_place_in_all(monkeypatch):
    monkeypatch.setattr(_rows, "_CHUNK", 4)
    x = np.zeros((9, 2))
    x[7, 1] = nan
    with pytest.raises(ValueError, match="row 7 has nan at token 1"):
        fit_temperature(x, [0] * 9)
    with pytest.raises(ValueError, match="row 7 has nan at token 1"):
        temperature_for_entropy(x, math.log(2))
    x[7] = [0.0, 1.0]
    with pytest.raises(ValueError, match="the range of row 7, but is 5"):
        temperature_for_entropy(x, np.where(np.arange(9) == 7, 5.0, math.log(2)))
    x[7] = [0.0, -inf]
    with pytest.raises(ValueError, match="row 7 has -inf at its label 1"):
        fit_temperature(x, [1] * 9)
    x[7] = [0.4, 0.4]
    x[:7] = x[8] = 0.5
    with pytest.raises(ValueError, match=r"row 7 sums to 0\.8"):
        reliability(x, [0] * 9)
    x[7] = [1.5, -0.5]
    with pytest.raises(ValueError, match=r"row 7 has 1\.5 at class 0"):
        reliability(x, [0] * 9)


def slow_reliability(probs, labels, bins):
    """As one would write it on a page."""
    rows = []
    for m in range(bins):
        low, high = m / bins, (m + 1) / bins
        inside = [
            (max(p), int(np.argmax(p) == y))
            for p, y in zip(probs.tolist(), labels, strict=True)
            if low < max(p) <= high
        ]
        rows.append((len(inside), *np.mean(inside or [(nan, nan)], axis=0)))
    return np.array(rows).T


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
def test_reliability_is_its_definition(bins):
    x, labels = labelled(500, 4, 3.0)
    probs = scipy.special.softmax(x, axis=1)
    count, confidence, accuracy = slow_reliability(probs, labels, bins)
    r = reliability(probs, labels, bins=bins)
    assert np.array_equal(r.edges, np.linspace(0, 1, bins + 1))
    assert np.array_equal(r.count, count)
    assert r.count.sum() == 500
    np.testing.assert_allclose(r.confidence, confidence, rtol=1e-12)
    np.testing.assert_allclose(r.accuracy, accuracy, rtol=1e-12)
    want = np.nansum(count / 500 * np.abs(accuracy - confidence))
    assert r.error == pytest.approx(want, rel=1e-12)
    assert expected_calibration_error(probs, labels, bins=bins) == r.error
    assert 0.05 < r.error < 1


def test_reliability_of_any_number_of_axes_without_ignored_labels():
    # It took one axis of rows and no labels of -100, unlike `fit_temperature`.
    x, labels = labelled(60, 4, 3.0)
    probs = scipy.special.softmax(x, axis=1)
    for index in (-100, 7):
        holes, ignored = probs.copy(), labels.copy()
        holes[1::2], ignored[1::2] = nan, index
        got = reliability(
            torch.tensor(holes).reshape(5, 12, 4), ignored.reshape(5, 12), ignore_index=index
        )
        want = reliability(probs[::2], labels[::2])
        assert np.array_equal(got.count, want.count)
        np.testing.assert_array_equal(got.accuracy, want.accuracy)
        error = expected_calibration_error(holes, ignored, ignore_index=index)
        assert error == got.error == want.error
    assert reliability(probs[0], labels[0]).count.sum() == 1


def test_ece_by_hand():
    # Bins of a half: 0.5 is in the lower, 0.6 and 1 in the upper one.
    probs = np.array([[0.5, 0.5], [0.6, 0.4], [0.0, 1.0], [0.0, 1.0]])
    r = reliability(probs, [1, 0, 1, 0], bins=2)
    assert r.count.tolist() == [1, 3]
    assert r.confidence == pytest.approx([0.5, 2.6 / 3])
    assert r.accuracy == pytest.approx([0.0, 2 / 3])
    assert r.error == pytest.approx(0.25 * 0.5 + 0.75 * 0.2)
    assert expected_calibration_error([[1.0, 0.0]] * 4, [0, 0, 0, 1]) == 0.25
    assert expected_calibration_error([[1.0, 0.0]] * 4, [0] * 4) == 0


def test_fitting_the_temperature_lowers_the_error():
    x, labels = labelled(5000, 10, 4.0)
    t = fit_temperature(x[:2500], labels[:2500])
    before, after = (
        expected_calibration_error(scipy.special.softmax(x[2500:] / u, axis=1), labels[2500:])
        for u in (1.0, t)
    )
    assert after < 0.05 < 0.2 < before


@pytest.mark.parametrize(
    ("probs", "labels", "bins", "error", "text"),
    [
        ([[0.5, 0.5]], [0], 0, ValueError, "`bins` has to be an integer >= 1, but is 0"),
        ([[0.5, 0.5]], [0], 1.5, TypeError, "`bins` has to be an integer >= 1, but is 1.5"),
        ([[0.5, 0.5]], [2], 15, ValueError,
         "`labels` have to be integers in [0, 2), of shape (1,), but one is 2, at index 0"),
        ([[0.5, 0.498]], [0], 15, ValueError,
         "`probs` have to sum to 1 in each row, but row 0 sums to 0.998"),
        ([[0.5, 0.5], [1.2, -0.2]], [0, 0], 15, ValueError,
         "`probs` have to be in [0, 1], but row 1 has 1.2 at class 0"),
        ([[1.0, -0.0001]], [0], 15, ValueError,
         "`probs` have to be in [0, 1], but row 0 has -0.0001 at class 1"),
        ([[nan, 1.0]], [0], 15, ValueError,
         "`probs` have to be in [0, 1], but row 0 has nan at class 0"),
        ([0.5, 0.5], [0], 15, ValueError,
         "`labels` have to be integers in [0, 2), of shape (), but have shape (1,)"),
        ([0.5, 0.7], [0, 1], 15, ValueError,
         ("`probs` of a binary classifier have to be of shape (2, 2), but have shape (2,): pass "
         "np.stack([1 - probs, probs], axis=1)")),
        ([[[1.0, 0.0], [0.5, 0.4]]], [[0, 1]], 15, ValueError,
         "`probs` have to sum to 1 in each row, but row (0, 1) sums to 0.9"),
        ([[[1.0, 0.0], [9.0, 9.0], [2.0, -1.0]]], [[0, -100, 1]], 15, ValueError,
         "`probs` have to be in [0, 1], but row (0, 2) has 2.0 at class 0"),
        ([[0.5, 0.5]], [-100], 15, ValueError,
         "every label is -100, the `ignore_index`, so no row counts"),
        ([[0.5, 0.5]], [-1], 15, ValueError,
         ("`labels` have to be integers in [0, 2), of shape (1,), but one is -1, at index 0: if it "
         "is padding, pass ignore_index=-1")),
        (np.empty((0, 2)), np.empty(0, int), 15, ValueError,
         "`probs` have to hold at least one row and one class, but have shape (0, 2)"),
        ("probs", [0], 15, TypeError, "`probs` have to be an array of floats, but are a str"),
    ],
)  # fmt: skip
def test_errors_of_reliability(probs, labels, bins, error, text):
    for function in (reliability, expected_calibration_error):
        with pytest.raises(error, match=f"^{re.escape(text)}$"):
            function(probs, labels, bins=bins)
    reliability([[0.5, 0.4995]], [0])  # within 1e-3


def test_plot():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    ax = figure.subplots()
    r = reliability([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55]], [0, 1, 1], bins=5)
    assert r.plot(ax) is ax
    accuracy, gap = ax.containers
    assert [bar.get_height() for bar in accuracy] == pytest.approx([1.0, 0.0, 1.0])
    assert [bar.get_x() for bar in accuracy] == pytest.approx([0.4, 0.6, 0.8])
    tops = [bar.get_y() + bar.get_height() for bar in gap]
    assert tops == pytest.approx([0.55, 0.8, 0.9])
    assert f"ECE {r.error:.3f}" in [text.get_text() for text in ax.texts]


def test_plot_makes_axes():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    ax = reliability([[0.9, 0.1]], [0]).plot()
    assert ax.get_xlabel() == "confidence"
    plt.close(ax.figure)


def test_plot_without_matplotlib(monkeypatch):
    found = builtins.__import__

    def missing(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    r = Reliability(np.array([0.0, 1.0]), np.ones(1), np.ones(1), np.ones(1, int))
    with pytest.raises(ImportError, match=re.escape(install("temperature")) + "$"):
        r.plot()


def test_a_pickle_names_the_public_path():
    # So that it can be read wherever the class moves within the package.
    data = pickle.dumps(reliability([[0.9, 0.1]], [0], bins=2))
    assert b"sampler.temperature" in data
    assert b"sampler.temperature._" not in data
    assert pickle.loads(data).count.tolist() == [0, 1]


# ---------------------------------------------------------------------------------- distillation

TEMPERATURES = [0.1, 0.5, 1.0, 2.0, 5.0, 100.0]


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_distillation_is_torchs(reduction, temperature):
    s, t = (torch.from_numpy(rng.normal(0, 3, (6, 9))) for _ in range(2))
    s.requires_grad_()
    each = temperature**2 * torch.nn.functional.kl_div(
        torch.log_softmax(s / temperature, -1),
        torch.log_softmax(t / temperature, -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    want = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    (slope,) = torch.autograd.grad(want.sum(), s)
    s = s.detach()
    got = distillation_loss(s, t, temperature=temperature, reduction=reduction)
    np.testing.assert_allclose(got.numpy(), want.detach().numpy(), rtol=1e-9)
    grad = distillation_loss_grad(s, t, temperature=temperature, reduction=reduction)
    np.testing.assert_allclose(grad.numpy(), slope.numpy(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_by_finite_differences(temperature):
    s, t = rng.normal(0, 2, (2, 3, 5))
    s[:, 2] = t[:, 2] = -inf
    grad = distillation_loss_grad(s, t, temperature=temperature)
    h = 1e-5
    for place in np.ndindex(3, 5):
        if place[1] == 2:
            assert grad[place] == 0
            continue
        up, down = s.copy(), s.copy()
        up[place] += h
        down[place] -= h
        slope = (
            distillation_loss(up, t, temperature=temperature)
            - distillation_loss(down, t, temperature=temperature)
        ) / (2 * h)
        assert grad[place] == pytest.approx(slope, abs=1e-8)


def exact_distillation(student, teacher, temperature):
    t = mpmath.mpf(temperature)
    z, v = ([mpmath.mpf(float(x)) / t for x in row] for row in (student, teacher))
    lz, lv = (mpmath.log(mpmath.fsum(map(mpmath.exp, row))) for row in (z, v))
    log_q, log_p = [x - lz for x in z], [x - lv for x in v]
    p, q = [mpmath.exp(x) for x in log_p], [mpmath.exp(x) for x in log_q]
    kl = mpmath.fsum(a * (b - c) for a, b, c in zip(p, log_p, log_q, strict=True))
    return t * t * kl, [t * (a - b) for a, b in zip(q, p, strict=True)]


@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 10.0, 1e3, 1e6, 1e10, 1e50, 1e150])
@pytest.mark.parametrize("distance", [1e-9, 1e-3, 1.0, 30.0])
def test_distillation_is_exact(distance, temperature):
    teacher = np.round(rng.normal(0, 3, 40), 2)
    student = teacher + distance * rng.normal(0, 1, 40)
    loss, grad = exact_distillation(student, teacher, temperature)
    # What rounding the student's own logits costs, and no more.
    rel = 1e-11 + 1e-14 / distance
    assert_close(distillation_loss(student, teacher, temperature=temperature), loss, rel)
    got = distillation_loss_grad(student, teacher, temperature=temperature)
    # A probability near 1 is good to 1e-15, and so is what it differs by.
    scale = rel * max(map(abs, grad)) + mpmath.mpf(1e-15) * min(temperature, 1.0)
    for g, e in zip(got, grad, strict=True):
        assert abs(mpmath.mpf(float(g)) - e) <= scale


def test_high_temperatures_match_logits():
    s, t = rng.normal(0, 3, (2, 7))
    difference = (s - s.mean()) - (t - t.mean())
    assert distillation_loss(s, t, temperature=1e8) == pytest.approx(
        np.mean(difference**2) / 2, rel=1e-6
    )
    assert distillation_loss_grad(s, t, temperature=1e8) == pytest.approx(difference / 7, rel=1e-6)


def test_tokens_that_neither_has_change_nothing():
    s, t = rng.normal(0, 3, (2, 4, 7))
    masked = [np.insert(x, [0, 3, 7], -inf, axis=1) for x in (s, t)]
    for temperature in (0.1, 1.0, 1e8, 1e12):
        want = distillation_loss(s, t, temperature=temperature)
        assert distillation_loss(*masked, temperature=temperature) == pytest.approx(want, rel=1e-13)
        grad = distillation_loss_grad(*masked, temperature=temperature)
        assert not grad[:, [0, 4, 9]].any()
        want = distillation_loss_grad(s, t, temperature=temperature)
        np.testing.assert_allclose(np.delete(grad, [0, 4, 9], axis=1), want, rtol=1e-12)


def test_distillation_of_the_same():
    x = rng.normal(0, 3, (4, 6))
    x[:, 1] = -inf
    for temperature in (1e-3, 1.0, 1e6):
        assert distillation_loss(x, x, temperature=temperature) == 0
        assert not distillation_loss_grad(x, x, temperature=temperature).any()
        # A constant changes no distribution.
        assert distillation_loss(x + 8.0, x, temperature=temperature) == pytest.approx(0, abs=1e-25)


def test_distillation_without_mass():
    # 0 log 0 is 0: what the teacher rules out costs only what the student puts there.
    two, three = np.array([1.0, 0.0]), np.array([1.0, 0.0, 2.0])
    for temperature in (0.5, 1.0, 3.0):
        masked = np.array([1.0, 0.0, -inf])
        q = scipy.special.softmax(three / temperature)
        assert distillation_loss(three, masked, temperature=temperature) == pytest.approx(
            -(temperature**2) * math.log1p(-q[2]), rel=1e-13
        )
        other = np.append(two[::-1], -inf)
        assert distillation_loss(other, masked, temperature=temperature) == pytest.approx(
            distillation_loss(two[::-1], two, temperature=temperature), rel=1e-13
        )
        p = scipy.special.softmax(masked / temperature)
        assert distillation_loss_grad(three, masked, temperature=temperature) == pytest.approx(
            temperature * (q - p), rel=1e-12
        )
        assert distillation_loss(masked, three, temperature=temperature) == inf
        # However little mass it is.
        assert distillation_loss([0.0, -inf], [0.0, -5000.0], temperature=temperature) == inf
    each = distillation_loss([masked, three], [three, three], temperature=1.0, reduction="none")
    assert each.tolist() == [inf, 0]


@pytest.mark.parametrize("bad", [[nan, 0.0, 0.0], [inf, 0.0, 0.0], [-inf] * 3])
@pytest.mark.parametrize("temperature", [0.5, 1e9])
def test_distillation_of_an_invalid_row_is_nan_and_alone(bad, temperature):
    x = np.array([[0.0, 1.0, 2.0], bad, [0.0, 1.0, 2.0]])
    y = np.array([[0.0, 1.0, 3.0]] * 3)
    for s, t in ((x, y), (y, x), (x, x)):
        each = distillation_loss(s, t, temperature=temperature, reduction="none")
        grad = distillation_loss_grad(s, t, temperature=temperature)
        assert np.isnan(each).tolist() == [False, True, False]
        assert np.isnan(grad).all(axis=1).tolist() == [False, True, False]
        assert not np.isnan(grad[[0, 2]]).any()
        assert np.isnan(distillation_loss(s, t, temperature=temperature))


def test_distillation_of_no_rows():
    none = np.zeros((0, 3))
    assert np.isnan(distillation_loss(none, none))
    assert distillation_loss(none, none, reduction="sum") == 0
    assert distillation_loss(none, none, reduction="none").shape == (0,)
    assert distillation_loss_grad(none, none).shape == (0, 3)


def test_distillation_of_any_shape():
    s, t = rng.normal(0, 3, (2, 3, 4, 5))
    each = distillation_loss(s, t, temperature=2.0, reduction="none")
    assert each.shape == (3, 4)
    assert each[1, 2] == distillation_loss(s[1, 2], t[1, 2], temperature=2.0)
    assert distillation_loss(s, t, temperature=2.0) == pytest.approx(each.mean())
    assert distillation_loss(s, t, temperature=2.0, reduction="sum") == pytest.approx(each.sum())
    grad = distillation_loss_grad(s, t, temperature=2.0)
    assert grad.shape == s.shape
    np.testing.assert_allclose(
        grad * 12, distillation_loss_grad(s, t, temperature=2.0, reduction="none")
    )
    np.testing.assert_allclose(
        grad * 12, distillation_loss_grad(s, t, temperature=2.0, reduction="sum")
    )


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (([0.0], [0.0]), {"temperature": 0}, ValueError,
         "`temperature` has to be a float in (0, inf), but is 0"),
        (([0.0], [0.0]), {"temperature": inf}, ValueError,
         "`temperature` has to be a float in (0, inf), but is inf"),
        (([0.0], [0.0]), {"temperature": nan}, ValueError,
         "`temperature` has to be a float in (0, inf), but is nan"),
        (([0.0], [0.0]), {"temperature": [1.0]}, TypeError,
         "`temperature` has to be a float in (0, inf), but is [1.0]"),
        (([0.0], [0.0]), {"reduction": "batchmean"}, ValueError,
         "`reduction` has to be 'mean' or 'sum' or 'none', but is 'batchmean'"),
        (([0.0], [0.0]), {"reduction": None}, TypeError,
         "`reduction` has to be 'mean' or 'sum' or 'none', but is None"),
        (([0.0], [0.0, 1.0]), {}, ValueError,
         "`teacher` has to have the shape of `student`, (1,), but has (2,)"),
        ((np.array(1.0), np.array(1.0)), {}, ValueError,
         "`student` has to hold at least one token per row, but has shape ()"),
        ((np.empty((3, 0)), np.empty((3, 0))), {}, ValueError,
         "`student` has to hold at least one token per row, but has shape (3, 0)"),
        (("s", [0.0]), {}, TypeError, "`student` have to be an array of floats, but are a str"),
        (([0.0], "t"), {}, TypeError, "`teacher` have to be an array of floats, but are a str"),
    ],
)  # fmt: skip
def test_errors_of_distillation(arguments, options, error, text):
    for function in (distillation_loss, distillation_loss_grad):
        with pytest.raises(error, match=f"^{re.escape(text)}$"):
            function(*arguments, **options)


# ------------------------------------------------------------------------ near the largest double


def test_near_the_largest_double():
    x = [1e308, -1e308]
    near = [1.0, -1.0]
    assert entropy(x, temperature=1e308) == pytest.approx(entropy(near), rel=1e-12)
    assert entropy(x, temperature=5e-324) == 0
    want = temperature_for_entropy(near, 0.5) * 1e308
    assert temperature_for_entropy(x, 0.5) == pytest.approx(want, rel=1e-12)
    labels = [0, 0, 1]
    small = fit_temperature(np.array([near] * 3), labels)
    assert fit_temperature(np.array([x] * 3) * 0.5, labels) == pytest.approx(small * 5e307)
    for dtype, size in ((np.float32, 2e38), (np.float64, 2e38)):
        logits = np.array([near] * 3, dtype) * dtype(size)
        assert fit_temperature(logits, labels) == pytest.approx(small * size, rel=1e-6)


def test_distillation_at_temperatures_whose_squares_are_no_doubles():
    for temperature in (1e10, 1e150, 1e160, 1e200, 1e300):
        loss = distillation_loss([1.0, 2.0], [2.0, 1.0], temperature=temperature)
        assert loss == pytest.approx(0.5, rel=1e-9)
