"""softmax, log_softmax, logsumexp: promise 4, measured against mpmath."""

import math
import re

import ml_dtypes
import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

import sampler
from sampler import log_softmax, logsumexp, sigmoid, softmax, softmax_dtemperature

inf, nan = math.inf, math.nan
FAMILY = (softmax, log_softmax, logsumexp)
FLOATS = ("float16", "bfloat16", "float32", "float64")
DIGITS = {"float32": (24, -149), "float64": (53, -1074)}  # of precision; lowest exponent
mpmath.mp.prec = 200


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


class Exact:
    """The family over one row, with 200 bits."""

    def __init__(self, row, temperature=1.0):
        values = [mpmath.mpf(float(v)) for v in row]
        self.top = max(values)
        t = mpmath.mpf(temperature)
        self.z = [(v - self.top) / t for v in values]
        weights = [mpmath.exp(z) for z in self.z]
        total = mpmath.fsum(weights)
        self.log_total = mpmath.log(total)
        self.softmax = [w / total for w in weights]
        self.log_softmax = [z - self.log_total for z in self.z]
        self.logsumexp = self.top / t + self.log_total


def ulp(value, dtype, floor=None):
    """The distance between floats of the dtype at an exact value, subnormals included."""
    digits, lowest = DIGITS[dtype]
    value = abs(value) if floor is None else max(abs(value), mpmath.mpf(floor))
    exponent = mpmath.frexp(value)[1] if value else lowest
    return mpmath.ldexp(1, max(exponent - digits, lowest))


def error_in_ulp(got, exact, floor=None):
    dtype = got.dtype.name
    return max(
        float(abs(mpmath.mpf(float(g)) - e) / ulp(e, dtype, floor))
        for g, e in zip(got, exact, strict=True)
    )


# ---------------------------------------------------------------------------------- accuracy


def rows():
    """Named rows of the shapes that break softmaxes."""
    rng = np.random.default_rng(1)
    yield "normal", rng.normal(0, 3, 500)
    yield "steep", rng.normal(0, 30, 500)
    yield "down through the subnormals", np.linspace(-110, 0, 500)
    yield "down through the subnormals of float64", np.linspace(-750, 0, 500)
    yield "equal", np.full(500, -12.0)
    yield "equal, one above", np.array([0.0] + [-12.0] * 500)
    yield "far from zero", rng.normal(0, 3, 300) + 1000
    yield "far below zero", rng.normal(0, 3, 300) - 1000
    yield "a step off a big number", 1e4 + np.arange(200) / 32
    yield "near zero", rng.normal(0, 1e-6, 300)
    yield "subnormal", rng.normal(0, 1, 300) * 1e-310
    yield "powers", np.ldexp(1.0, np.arange(-100, 7)) * np.where(np.arange(107) % 2, 1, -1)
    yield "one", np.array([3.0])
    yield "two", np.array([-3.0, 3.0])
    yield "with -inf", np.where(np.arange(300) % 3, rng.normal(0, 5, 300), -inf)
    yield "one finite", np.array([-inf, 5.0, -inf])
    yield "long", np.round(rng.normal(0, 4, 3000), 2)


ROWS = dict(rows())


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ROWS)
def test_float32_is_within_4_ulp(name, dtype, temperature):
    x = ROWS[name].astype(dtype_of(dtype))
    exact = Exact(x, temperature)
    p = softmax(x, temperature=temperature)
    assert p.dtype == np.float32
    assert error_in_ulp(p, exact.softmax) <= 4
    assert abs(math.fsum(p.tolist()) - 1) <= 3e-7
    q = log_softmax(x, temperature=temperature)
    assert q.dtype == np.float32
    finite = np.isfinite(x.astype(np.float64))
    assert np.array_equal(np.isfinite(q), finite)
    assert error_in_ulp(q[finite], np.array(exact.log_softmax)[finite], 1) <= 4
    total = logsumexp(x, temperature=temperature)
    assert total.dtype == np.float32
    assert error_in_ulp(total[None], [exact.logsumexp], 1) <= 4


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("name", ROWS)
def test_float32_is_well_within_4_ulp(name, temperature):
    # What is usual, so that a loss of half a unit shows.
    x = ROWS[name].astype(np.float32)
    exact = Exact(x, temperature)
    assert error_in_ulp(softmax(x, temperature=temperature), exact.softmax) <= 1.9
    q = log_softmax(x, temperature=temperature)
    finite = np.isfinite(q)
    assert error_in_ulp(q[finite], np.array(exact.log_softmax)[finite], 1) <= 1.4
    assert error_in_ulp(logsumexp(x, temperature=temperature)[None], [exact.logsumexp], 1) <= 0.9


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("name", ROWS)
def test_float64_is_within_2e_13(name, temperature):
    x = ROWS[name]
    exact = Exact(x, temperature)
    p = softmax(x, temperature=temperature)
    assert p.dtype == np.float64
    for got, want in zip(p, exact.softmax, strict=True):
        assert abs(mpmath.mpf(float(got)) - want) <= want * 2e-13 + mpmath.ldexp(1, -1074)
    assert abs(math.fsum(p) - 1) <= 1e-14 * max(1, len(x) / 100)
    q = log_softmax(x, temperature=temperature)
    finite = np.isfinite(x)
    assert np.array_equal(np.isfinite(q), finite)
    assert error_in_ulp(q[finite], np.array(exact.log_softmax)[finite], 1) <= 4
    assert error_in_ulp(logsumexp(x, temperature=temperature)[None], [exact.logsumexp], 1) <= 4


@pytest.mark.parametrize("temperature", [1e-300, 1e-30, 1e-6, 0.01, 40.0, 1e6, 1e30, 1e300, 5e-324])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_temperature(dtype, temperature):
    for x in (
        np.random.default_rng(2).normal(0, 3, 200),
        np.array([1.0, 1.0, 1 + 2**-20]),
        np.random.default_rng(3).normal(0, 1, 200) * min(temperature, 1e37),
    ):
        x = x.astype(dtype)
        exact = Exact(x, temperature)
        p = softmax(x, temperature=temperature)
        if dtype == "float32":
            assert error_in_ulp(p, exact.softmax) <= 4
        else:
            for got, want in zip(p, exact.softmax, strict=True):
                assert abs(mpmath.mpf(float(got)) - want) <= want * 2e-13 + mpmath.ldexp(1, -1074)
        q = log_softmax(x, temperature=temperature)
        assert not np.any(np.isnan(q))
        fits = np.isfinite(q)
        assert error_in_ulp(q[fits], np.array(exact.log_softmax)[fits], 1) <= 4
        limit = np.finfo(dtype).max
        assert all(abs(want) > limit * 0.999 for want in np.array(exact.log_softmax)[~fits])


@pytest.mark.parametrize(
    ("dtype", "x", "want"),
    [
        ("float32", [1e30, 1e30, -1e30], [0.5, 0.5, 0]),
        ("float32", [1e30, 9e29, -1e30], [1, 0, 0]),
        ("float32", [3.4e38, -3.4e38], [1, 0]),
        ("float32", [-3.4e38, -3.4e38], [0.5, 0.5]),
        ("bfloat16", [3e38, -3e38, 3e38], [0.5, 0, 0.5]),
        ("float16", [65504, -65504, 65504], [0.5, 0, 0.5]),
        ("float64", [1.79e308, -1.79e308, 1.79e308], [0.5, 0, 0.5]),
        ("float64", [np.finfo(float).max, -np.finfo(float).max], [1, 0]),
        ("float64", [-np.finfo(float).max] * 4, [0.25] * 4),
        ("float64", [1e308, 9.9e307], [1, 0]),
    ],
)
def test_huge_logits(dtype, x, want):
    x = np.array(x).astype(dtype_of(dtype))
    assert softmax(x).tolist() == want
    q = log_softmax(x)
    assert not np.any(np.isnan(q))
    assert np.array_equal(np.exp(q[np.isfinite(q)]) > 0, np.array(want)[np.isfinite(q)] > 0)
    ordered = q[np.argsort(x.astype(float), kind="stable")]
    assert np.all(ordered[1:] >= ordered[:-1])
    total = Exact(x).logsumexp
    assert error_in_ulp(logsumexp(x)[None], [total]) <= 1


@pytest.mark.parametrize("temperature", [1.0, 2.0, 1e10, 1e300, 1e308, 1.79e308])
def test_float64_near_the_largest_double(temperature):
    top = np.finfo(float).max
    x = np.array([top, np.nextafter(top, 0), top / 2, 0.0, -1.0, -top / 3, -top])
    exact = Exact(x, temperature)
    for got, want in zip(softmax(x, temperature=temperature), exact.softmax, strict=True):
        assert abs(mpmath.mpf(float(got)) - want) <= want * 2e-13 + mpmath.ldexp(1, -1074)
    q = log_softmax(x, temperature=temperature)
    assert np.all(q[1:] <= q[:-1])
    fits = np.isfinite(q)
    assert error_in_ulp(q[fits], np.array(exact.log_softmax)[fits], 1) <= 4
    assert all(abs(want) > top * 0.999 for want in np.array(exact.log_softmax)[~fits])


@given(
    st.lists(st.floats(-700, 700, width=32), min_size=1, max_size=40),
    st.floats(2**-10, 1024),
    st.sampled_from(["float32", "float64"]),
)
def test_any_row(x, temperature, dtype):
    x = np.array(x, dtype)
    exact = Exact(x, temperature)
    p = softmax(x, temperature=temperature)
    if dtype == "float32":
        assert error_in_ulp(p, exact.softmax) <= 4
    else:
        for got, want in zip(p, exact.softmax, strict=True):
            assert abs(mpmath.mpf(float(got)) - want) <= want * 2e-13 + mpmath.ldexp(1, -1074)
    assert error_in_ulp(log_softmax(x, temperature=temperature), exact.log_softmax, 1) <= 4


def test_real_rows(real_logits):
    for dtype in ("float16", "float32"):
        x = real_logits.astype(dtype)
        p = softmax(x)
        exact = scipy.special.softmax(x.astype(np.longdouble), axis=-1)
        spacing = np.spacing(exact.astype(np.float32))
        # The long doubles of NumPy are exact enough to tell 4 from 5 here.
        assert np.max(np.abs(p - exact) / spacing) <= 4
        assert np.max(np.abs(p.astype(float).sum(axis=1) - 1)) <= 3e-7


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 1023, 1025, 2**17 + 3])
def test_sums_of_flat_rows(vocab):
    x = np.full(vocab, -12.0)
    p, single = softmax(x), softmax(x.astype(np.float32))
    assert np.all(p == 1 / vocab)
    assert np.all(single == np.float32(1 / vocab))
    assert abs(math.fsum(single.tolist()) - 1) <= 3e-7
    assert logsumexp(x) == pytest.approx(math.log(vocab) - 12, abs=1e-14)


# What the float32 path rests on: every power of two that it can make, against the exact one. At
# this temperature a logit is the exponent itself, so a row of them goes through the fractions.
LOG2_E = 1.4426950408889634


def fractions():
    """All multiples of 2**-24 in (-1, 0], descending."""
    return -(np.arange(2**24, dtype=np.int32) * 2.0**-24).astype(np.float32)


@pytest.mark.slow
def test_every_power_of_two():
    x = fractions()
    p = softmax(x, temperature=LOG2_E)
    assert np.all(np.diff(p) <= 0)
    exact = np.exp2(x.astype(np.float64))
    exact /= exact.sum()
    assert np.max(np.abs(p - exact) / np.spacing(exact.astype(np.float32))) <= 2.5


def test_powers_whose_errors_add_up():
    # The powers as softmax.h makes them, for every 16th fraction; a long double stands in for what
    # a fused multiply-add does not round.
    f = np.arange(-(2**23), 2**23 + 1, 16) * 2.0**-24
    power = np.float32(float.fromhex("0x1.416b5ep-13"))
    for text in ("0x1.5f082ep-10", "0x1.3b2de0p-7", "0x1.c6af7cp-5", "0x1.ebfbdcp-3",
                 "0x1.62e430p-1", "0x1p0"):  # fmt: skip
        power = (np.longdouble(power) * f + float.fromhex(text)).astype(np.float32)
    error = power.astype(np.float64) / np.exp2(f) - 1
    assert -6.5e-8 < error.min() < error.max() < 6.7e-8
    # The largest error upward next to a mass whose error is the largest downward, and the reverse.
    for one, all_else in ((error.argmax(), error.argmin()), (error.argmin(), error.argmax())):
        for count in (*range(1, 70), 1000, 131_071):
            for octave in (0, 1, 5):
                row = np.full(count + 1, f[all_else]).astype(np.float32)
                row[0] = f[one] - octave
                weights = [mpmath.power(2, mpmath.mpf(float(v))) for v in (row[0], row[1])]
                want = weights[0] / (weights[0] + count * weights[1])
                assert error_in_ulp(softmax(row, temperature=LOG2_E)[:1], [want]) <= 3.4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("temperature", [2.0**-60, 2.0**-61, 1e-3, 1.0, 2.0**60, 2.0**61, 1e30])
def test_where_powers_give_way_to_canonical_arithmetic(dtype, temperature):
    rng = np.random.default_rng(7)
    for scale in (1.0, 2.0**19, 2.0**20, 2.0**21, 2.0**30, 2.0**40):
        for shift in (0.0, 1.0, -1.0):
            if scale * temperature > 1e37:
                continue
            x = (rng.normal(shift, 0.1, 60) * scale * temperature).astype(dtype_of(dtype))
            exact = Exact(x, temperature)
            p = softmax(x, temperature=temperature)
            assert error_in_ulp(p, exact.softmax) <= 4
            order = np.argsort(x.astype(np.float32), kind="stable")
            assert np.all(np.diff(p[order]) >= 0)
            q = log_softmax(x, temperature=temperature)
            fits = np.isfinite(q)
            assert error_in_ulp(q[fits], np.array(exact.log_softmax)[fits], 1) <= 4


def test_probabilities_that_underflow():
    for temperature in (1.0, LOG2_E):
        x = np.linspace(-160, 0, 4001).astype(np.float32)
        exact = Exact(x, temperature)
        p = softmax(x, temperature=temperature)
        assert error_in_ulp(p, exact.softmax) <= 4
        assert p[0] == 0
        tiny = np.finfo(np.float32).smallest_subnormal
        assert tiny in p


def test_equal_shares_are_rounded_once():
    for vocab in range(1, 700):
        for x in (0.0, -3.7, 1000.1):
            p = softmax(np.full(vocab, x, np.float32))
            assert np.all(p == np.float32(1 / vocab)), vocab


# ------------------------------------------------------------------------------------- order


def neighbours(z, count, dtype):
    """`count` adjacent floats on either side of z, ascending."""
    word = {"float32": np.int32, "float64": np.int64}[dtype]
    middle = np.array(z, dtype).view(word)
    return (middle + np.arange(-count, count + 1, dtype=word)).view(dtype)[::-1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adjacent_floats_keep_their_order(dtype):
    # Around the multiples of ln(2)/2, where argument reductions change over, and elsewhere.
    places = [-(n + half) * math.log(2) for n in range(40) for half in (0.5, 1.0)]
    places += [-(2.0**-n) for n in range(40)] + [-0.1, -0.3, -0.7, -5.5, -20.0]
    for z in places:
        run = neighbours(z, 3000, dtype)
        x = np.append(run[run <= 0], np.array(0, dtype))
        for temperature in (1.0, 0.7, 1.1, 3.0):
            assert np.all(np.diff(softmax(x, temperature=temperature)) >= 0), z
            assert np.all(np.diff(log_softmax(x, temperature=temperature)) >= 0), z


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.3, 7.0, 1e5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_order(dtype, temperature):
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(0, 4, 40_000), -rng.exponential(1e-3, 10_000)])
    x = np.sort(x.astype(dtype_of(dtype)).astype(np.float64)).astype(dtype_of(dtype))
    for function in (softmax, log_softmax):
        assert np.all(np.diff(function(x, temperature=temperature)) >= 0)
        backwards = function(x[::-1], temperature=temperature)
        assert np.array_equal(backwards[::-1], function(x, temperature=temperature))


# ------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize("dtype", FLOATS)
def test_temperature_0_and_inf(dtype):
    x = np.array([1.0, 3.0, -inf, 3.0, -2.0]).astype(dtype_of(dtype))
    assert softmax(x, temperature=0).tolist() == [0, 0.5, 0, 0.5, 0]
    assert softmax(x, temperature=inf).tolist() == [0.25, 0.25, 0, 0.25, 0.25]
    half, quarter = (softmax(x).dtype.type(math.log(v)) for v in (0.5, 0.25))
    assert log_softmax(x, temperature=0).tolist() == [-inf, half, -inf, half, -inf]
    assert log_softmax(x, temperature=inf).tolist() == [quarter, quarter, -inf, quarter, quarter]
    assert logsumexp(x, temperature=inf) == -quarter
    for top, limit in ((3.0, inf), (-3.0, -inf), (0.0, math.log(2))):
        y = np.array([top, top, top - 1]).astype(dtype_of(dtype))
        assert logsumexp(y, temperature=0) == pytest.approx(limit, rel=1e-7)
    assert softmax(x, temperature=-0.0).tolist() == softmax(x, temperature=0).tolist()
    assert softmax(np.array([0.0, -0.0, -1.0]), temperature=0).tolist() == [0.5, 0.5, 0]


def test_temperature_0_tells_adjacent_floats_apart():
    for dtype in ("float32", "float64"):
        tiny = np.finfo(dtype).smallest_subnormal
        for pair in ([0, tiny], [1, np.nextafter(1, 2, dtype=dtype)], [-tiny, 0], [1e30, 1.1e30]):
            assert softmax(np.array(pair, dtype), temperature=0).tolist() == [0, 1]
            assert log_softmax(np.array(pair, dtype), temperature=0).tolist() == [-inf, 0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0, 0.7, 1, inf])
@pytest.mark.parametrize("bad", [nan, inf, -nan])
def test_an_invalid_row_is_nan_and_alone(bad, temperature, dtype):
    x = np.zeros((3, 1500)).astype(dtype_of(dtype))
    clean = [function(x, temperature=temperature) for function in FAMILY]
    for token in (0, 63, 700, 1499):
        y = x.copy()
        y[1, token] = bad
        for function, want in zip(FAMILY, clean, strict=True):
            got = function(y, temperature=temperature)
            if function is logsumexp and bad == inf:
                assert got[1] == inf
            else:
                assert np.all(np.isnan(got[1]))
            assert np.array_equal(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0, 1e-300, 0.7, 1, inf])
def test_logsumexp_of_inf_is_inf(temperature, dtype):
    # It was NaN; SciPy, torch, JAX and NumPy's logaddexp say inf, as do the limits at 0 and inf.
    for n in (1, 2, 16, 1500):
        x = np.zeros((4, n)).astype(dtype_of(dtype))
        x[0, n // 2] = x[1, :] = inf
        x[2, :] = -inf
        x[2, -1] = x[3, -1] = inf
        x[3, 0] = nan
        for view in (x, np.repeat(x, 2, axis=1)[:, ::2], torch.tensor(x.astype(float))):
            got = np.asarray(logsumexp(view, temperature=temperature))
            assert got[:3].tolist() == [inf, inf, inf]
            assert np.isnan(got[3])
            got = np.asarray(log_softmax(view, temperature=temperature))
            assert np.isnan(got).all()  # as in torch; SciPy has -inf at finite entries
    assert logsumexp(np.array([inf, 0.0]), where=[False, True]) == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0, 0.7, 1, inf])
def test_a_row_of_minus_inf(temperature, dtype):
    x = np.full((2, 1500), -inf).astype(dtype_of(dtype))
    x[1] = 0
    assert np.all(np.isnan(softmax(x, temperature=temperature)[0]))
    assert np.all(np.isnan(log_softmax(x, temperature=temperature)[0]))
    assert logsumexp(x, temperature=temperature)[0] == -inf
    assert np.all(softmax(x, temperature=temperature)[1] > 0)


def test_minus_inf_has_weight_0():
    x = np.where(np.arange(2000) % 7, 0.0, -inf)
    for dtype in FLOATS:
        for temperature in (1e-30, 1.0, 1e30, inf, 0):
            p = softmax(x.astype(dtype_of(dtype)), temperature=temperature)
            assert np.all((p == 0) == (x == -inf))
            q = log_softmax(x.astype(dtype_of(dtype)), temperature=temperature)
            assert np.all((q == -inf) == (x == -inf))


# ------------------------------------------------------------------------- axes, out, tensors


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (2, 1, 3, 4), (1, 1), (1100, 3)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_axes(dtype, shape):
    x = np.random.default_rng(0).normal(0, 3, shape).astype(dtype_of(dtype))
    before = x.tobytes()
    for axis in range(-len(shape), len(shape)):
        for view in (x, np.asfortranarray(x), x[::-1]):
            moved = np.moveaxis(view, axis, -1)
            rows = np.ascontiguousarray(moved).reshape(-1, moved.shape[-1])
            for function in (softmax, log_softmax):
                got = function(view, axis=axis)
                assert got.shape == view.shape
                assert got.flags.c_contiguous
                flat = np.moveaxis(got, axis, -1).reshape(rows.shape)
                assert np.array_equal(flat, np.stack([function(row) for row in rows]))
            got = logsumexp(view, axis=axis)
            assert got.shape == moved.shape[:-1]
            assert np.array_equal(got.ravel(), [logsumexp(row) for row in rows])
    assert x.tobytes() == before


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("axis", [None, 0, (0, 2), (2, 0), (-1, -2), (0, 1, 2), (1,), ()])
def test_several_axes_are_those_of_scipy(axis, dtype):
    x = np.random.default_rng(0).normal(0, 3, (2, 3, 4)).astype(dtype_of(dtype))
    wide = np.float64 if dtype == "float64" else np.float32
    tolerance = 1e-13 if dtype == "float64" else 2e-5
    for function in FAMILY:
        for kept in (False, True) if function is logsumexp else (None,):
            options = {} if kept is None else {"keepdims": kept}
            if axis == ():  # as if each entry were its own slice
                want = {softmax: x * 0 + 1, log_softmax: x * 0, logsumexp: x}[function]
            else:
                want = getattr(scipy.special, function.__name__)(x.astype(wide), axis, **options)
            got = function(x, axis=axis, **options)
            assert np.shape(got) == np.shape(want)
            np.testing.assert_allclose(got, np.asarray(want, wide), tolerance, tolerance)
            for view in (x[::-1], np.asfortranarray(x)):
                moved = function(view, axis=axis, **options)
                np.testing.assert_allclose(
                    moved, function(view.copy(), axis=axis, **options), tolerance, tolerance
                )
            out = np.zeros((*np.shape(want), 2), wide)[..., 0]
            assert function(x, axis=axis, out=out, **options) is out
            assert np.array_equal(out, got)
            tensor = torch.tensor(x.astype(np.float64), dtype=getattr(torch, dtype))
            assert np.array_equal(function(tensor, axis=axis, **options).numpy(), got)


def test_temperatures_and_masks_along_several_axes():
    rng = np.random.default_rng(1)
    x, where = rng.normal(0, 3, (2, 3, 4)), rng.random((2, 3, 4)) < 0.7
    t = np.array([0.5, 1.0, 3.0])
    for function in FAMILY:
        got = function(x, temperature=t, axis=(0, 2), where=where)
        for i in range(3):
            want = function(x[:, i], temperature=t[i], axis=None, where=where[:, i])
            assert np.array_equal(got[i] if function is logsumexp else got[:, i], want)
    y = x.copy()
    assert softmax(y, axis=(0, 2), out=y) is y
    assert np.array_equal(y, softmax(x, axis=(0, 2)))


def test_bad_axes():
    for axis in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match=r"^`axis` has to name each axis once, but is \("):
            softmax(np.zeros((2, 2)), axis=axis)
    for value in (1, None, "no"):
        with pytest.raises(TypeError, match=r"^`keepdims` has to be True or False, but is "):
            logsumexp(np.zeros(2), keepdims=value)


@pytest.mark.parametrize("one", [2.5, 2, True, np.float32(2.5), np.array(2.5), torch.tensor(2.5)])
def test_one_number(one):
    for axis in (-1, 0, None, ()):
        assert softmax(one, axis=axis) == 1
        assert log_softmax(one, axis=axis) == pytest.approx(0, abs=1e-7)
        assert logsumexp(one, axis=axis, temperature=0.5) == 2 * float(one)
        assert np.shape(logsumexp(one, axis=axis, keepdims=True)) == ()
    assert isinstance(softmax(one), torch.Tensor if isinstance(one, torch.Tensor) else np.floating)
    with pytest.raises(ValueError, match=r"^`axis` has to be an integer in \[-1, 1\), a tuple "):
        softmax(one, axis=1)


@pytest.mark.parametrize("kind", ["bool", "int8", "uint8", "int32", "int64", "uint16", "uint64"])
def test_integers_become_float64(kind):
    x = np.array([[1, 0, 1], [0, 0, 1]]).astype(kind)
    for same in (x, torch.tensor(x), x.tolist(), x.astype(np.dtype(kind).newbyteorder())):
        for function in FAMILY:
            got = function(same)
            assert got.dtype == (torch.float64 if isinstance(same, torch.Tensor) else np.float64)
            assert np.array_equal(np.asarray(got), function(x.astype(np.float64)))


def test_axis_of_any_integer_kind():
    x = np.zeros((2, 3))
    assert softmax(x, axis=np.int64(0))[0, 0] == 0.5
    assert softmax(x, temperature=1.0, axis=0)[0, 0] == 0.5
    assert isinstance(logsumexp(x[0]), np.float64)
    assert isinstance(logsumexp(x[0].astype(np.float32)), np.float32)


@pytest.mark.parametrize("function", FAMILY)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out(dtype, function):
    x = np.random.default_rng(0).normal(0, 3, (4, 5, 6)).astype(dtype)
    for axis in (0, 1, 2, -1):
        want = function(x, axis=axis)
        for out in (np.empty_like(want), np.zeros((*want.shape, 2), dtype)[..., 0],
                    np.empty_like(want)[::-1], np.asfortranarray(np.empty_like(want))):  # fmt: skip
            assert function(x, axis=axis, out=out) is out
            assert np.array_equal(out, want)
        if function is not logsumexp:
            for view in (slice(None), slice(None, None, -1)):
                y = x.copy()
                function(y, axis=axis, out=y[view])
                assert np.array_equal(y[view], want)


def test_out_of_a_narrow_input_is_float32():
    for dtype in ("float16", "bfloat16", ">f2", ">f4"):
        x = np.zeros(4).astype(dtype_of(dtype))
        out = np.empty(4, np.float32)
        assert softmax(x, out=out) is out
        assert out.tolist() == [0.25] * 4
        assert softmax(x).dtype == np.float32
    assert softmax(np.zeros(4, ">f8")).dtype == np.float64
    assert softmax([0, 0]).dtype == np.float64


def locked(x):
    x.flags.writeable = False
    return x


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.zeros(4, np.float32), ValueError),
        (np.zeros(3), ValueError),
        (np.zeros((1, 4)), ValueError),
        (np.zeros(()), ValueError),
        (np.zeros(4, np.int64), TypeError),
        (np.zeros(4, ">f8"), ValueError),
        (locked(np.zeros(4)), ValueError),
        (np.ma.zeros(4), TypeError),
        ([0.0] * 4, TypeError),
        (torch.zeros(4), ValueError),
        ("out", TypeError),
        (True, TypeError),
    ],
)
def test_bad_out(out, error):
    for function in (softmax, log_softmax):
        with pytest.raises(error, match=r"^`out` ha(?:s|ve) to be "):
            function(np.zeros(4), out=out)
    with pytest.raises((ValueError, TypeError), match=r"^`out` ha(?:s|ve) to be "):
        logsumexp(np.zeros((4, 4)), out=out if np.shape(out) != (4,) else np.zeros((4, 1)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_torch_in_torch_out(dtype):
    x = np.round(np.random.default_rng(0).normal(0, 3, (3, 4, 5)) * 8) / 8
    tensor = torch.tensor(x, dtype=getattr(torch, dtype))
    result = torch.float64 if dtype == "float64" else torch.float32
    for function in FAMILY:
        for axis in (0, 1, -1):
            got = function(tensor, temperature=0.7, axis=axis)
            assert isinstance(got, torch.Tensor)
            assert got.dtype == result
            assert not got.requires_grad
            want = function(x.astype(dtype_of(dtype)), temperature=0.7, axis=axis)
            assert np.array_equal(got.numpy(), want)
            out = torch.empty_like(got)
            assert function(tensor, temperature=0.7, axis=axis, out=out) is out
            assert torch.equal(out, got)
    lone = logsumexp(tensor[0, 0])
    assert isinstance(lone, torch.Tensor)
    assert lone.shape == ()
    own = torch.tensor(x, dtype=result)
    want = softmax(own)
    assert softmax(own, out=own) is own
    assert torch.equal(own, want)


# ------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((0, 3), -1), ((3, 0), -1), ((0,), 0), ((2, 0, 3), 1), ((2, 0, 3), 0), ((0, 0), 0)],
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_empty(dtype, shape, axis):
    x = np.zeros(shape, dtype_of(dtype))
    result = np.float64 if dtype == "float64" else np.float32
    for empty in (x, torch.zeros(shape, dtype=getattr(torch, dtype))):
        for function in (softmax, log_softmax):
            got = function(empty, axis=axis)
            assert tuple(got.shape) == shape
            assert type(got) is type(empty)
        want = [size for i, size in enumerate(shape) if i != axis % len(shape)]
        got = logsumexp(empty, axis=axis)
        assert list(got.shape) == want
        # The sum over nothing is 0.
        assert np.all(np.asarray(got) == -inf)
    assert softmax(x, axis=axis).dtype == result
    assert logsumexp(x, axis=axis).dtype == result


@pytest.mark.parametrize("vocab", [1, 2, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_lengths_and_strides(dtype, vocab):
    x = np.random.default_rng(vocab).normal(0, 3, vocab).astype(dtype_of(dtype))
    wide = np.full((vocab, 3), 99).astype(x.dtype)
    wide[:, 1] = x
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype)
    for function in FAMILY:
        want = function(x)
        for view in (wide[:, 1], unaligned, x[::-1][::-1]):
            assert np.array_equal(function(view), want)


def test_a_batch_of_any_size_is_its_rows():
    x = np.random.default_rng(0).normal(0, 3, (300, 1000)).astype(np.float32)
    for function in FAMILY:
        whole = function(x, temperature=0.7)
        for row, got in zip(x, whole, strict=True):
            assert np.array_equal(function(row, temperature=0.7), got)


# ------------------------------------------------------------------- temperatures, masks, in place


@pytest.mark.parametrize("function", FAMILY)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_temperature_for_each_slice(dtype, function):
    x = np.random.default_rng(0).normal(0, 3, (3, 4, 70)).astype(dtype_of(dtype))
    temperatures = np.array([[0.5, 1.0, 0.0, inf], [2.0, 1e-3, 1e30, 0.7], [1.0, 3.0, 0.1, 5.0]])
    got = function(x, temperature=temperatures)
    for i in range(3):
        for j in range(4):
            assert np.array_equal(got[i, j], function(x[i, j], temperature=temperatures[i, j]))
    for some, whole in ((temperatures[0], np.tile(temperatures[0], (3, 1))),
                         (temperatures[:, :1], np.tile(temperatures[:, :1], (1, 4))),
                         ([[2], [1], [3]], [[2.0] * 4, [1.0] * 4, [3.0] * 4])):  # fmt: skip
        assert np.array_equal(
            function(x, temperature=some), function(x, temperature=np.array(whole))
        )
    moved = np.moveaxis(x, -1, 0)
    want = got if function is logsumexp else np.moveaxis(got, -1, 0)
    assert np.array_equal(function(moved, temperature=temperatures, axis=0), want)
    for number in (np.float32(0.5), np.array(0.5), torch.tensor(0.5), np.int64(2), 2):
        assert np.array_equal(
            function(x, temperature=number), function(x, temperature=float(number))
        )
    assert np.array_equal(
        function(x, temperature=torch.tensor(temperatures)), function(x, temperature=temperatures)
    )


@pytest.mark.parametrize("function", FAMILY)
@pytest.mark.parametrize("dtype", [*FLOATS, ">f4", "torch.bfloat16"])
def test_masks(dtype, function):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 3, (5, 90)).astype(dtype_of("bfloat16" if "bf" in dtype else dtype))
    given = x
    if dtype == "torch.bfloat16":
        given = torch.tensor(x.astype(np.float32)).to(torch.bfloat16)
    before = np.array(x)
    where = rng.random((5, 90)) < 0.6
    where[2] = False
    filled = np.where(where, x.astype(np.float64 if dtype == "float64" else np.float32), -inf)
    want = function(filled, temperature=0.8)
    for mask in (where, where.tolist(), torch.tensor(where)):
        got = function(given, temperature=0.8, where=mask)
        assert np.array_equal(np.asarray(got), want, equal_nan=True)
    assert np.array_equal(x, before)
    assert np.array_equal(
        np.asarray(function(given, where=where[0])),
        function(np.where(where[0], x.astype(filled.dtype), -inf)),
    )
    # A mask that removes all of a slice leaves what a slice of -inf does.
    empty = np.asarray(function(given, where=where))[2]
    assert np.all(empty == -inf) if function is logsumexp else np.all(np.isnan(empty))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_place(dtype):
    rng = np.random.default_rng(1)
    for shape in ((100,), (3, 64), (4, 65), (3, 1000), (2, 3, 513), (1, 4097)):
        x = rng.normal(0, 3, shape).astype(dtype)
        for function in (softmax, log_softmax):
            want = function(x, temperature=0.9)
            y = x.copy()
            assert function(y, temperature=0.9, out=y) is y
            assert np.array_equal(y, want)
            tensor = torch.tensor(x)
            function(tensor, temperature=0.9, out=tensor)
            assert np.array_equal(tensor.numpy(), want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_out_that_overlaps(dtype):
    memory = np.random.default_rng(2).normal(0, 3, 3000).astype(dtype)
    for function in (softmax, log_softmax):
        for shift in (-700, -64, -16, -1, 1, 3, 16, 64, 700):
            y = memory.copy()
            x = y[1000:2000]
            want = function(x)
            function(x, out=y[1000 + shift : 2000 + shift])
            assert np.array_equal(y[1000 + shift : 2000 + shift], want)
            rows = memory.copy()
            want = function(rows[:2000].reshape(20, 100))
            function(rows[:2000].reshape(20, 100), out=rows[800:2800].reshape(20, 100))
            assert np.array_equal(rows[800:2800].reshape(20, 100), want)


def test_the_address_changes_no_bit():
    # The order of a sum moves a rounding of a probability once in some 10**9 times.
    n = 131_072
    memory = np.empty(n + 32, np.float32)
    rng = np.random.default_rng(0)
    for _ in range(40):
        x = rng.normal(0, 1, n).astype(np.float32)
        sums = set()
        for offset in range(16):
            row = memory[offset : offset + n]
            row[:] = x
            sums.add(softmax(row).tobytes())
            sums.add(softmax(row, out=row).tobytes())
        assert len(sums) == 1


def test_out_at_an_odd_address():
    x = np.random.default_rng(3).normal(0, 3, (5, 40)).astype(np.float32)
    memory = np.zeros(5 * 161 + 8, np.uint8)
    out = np.ndarray((5, 40), np.float32, memory.data, 1, (161, 4))
    assert softmax(x, out=out) is out
    assert np.array_equal(out, softmax(x))


def test_out_that_negates_is_refused():
    view = torch.zeros(4, dtype=torch.complex64).conj().imag
    with pytest.raises(ValueError, match=r"^`out` is a view that shows its memory negated, so"):
        softmax(torch.arange(4.0), out=view)


def test_rows_that_start_anywhere():
    for dtype in ("float32", "float64"):
        size = np.dtype(dtype).itemsize
        x = np.random.default_rng(3).normal(0, 3, (5, 200)).astype(dtype)
        memory = np.zeros(5 * (200 * size + 1) + 8, np.uint8)
        for offset in (0, 1, 3):
            rows = np.ndarray((5, 200), dtype, memory.data, offset, (200 * size + 1, size))
            rows[...] = x
            for function in FAMILY:
                assert np.array_equal(function(rows), function(x))


# ----------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("value", "error"),
    [(-0.1, ValueError), (nan, ValueError), (-inf, ValueError), (True, TypeError), ("1", TypeError),
     ([1.0], ValueError), (np.array(-1.0), ValueError), (np.ones(2), ValueError),
     (np.array("1"), TypeError), (np.array([True]), TypeError), ([1.0, [2.0]], TypeError),
     (1j, TypeError), (torch.tensor(nan), ValueError)],
)  # fmt: skip
def test_bad_temperature(value, error):
    for function in FAMILY:
        with pytest.raises(error, match=r"^`temperature` has to (be|broadcast) "):
            function(np.zeros(3), temperature=value)
    with pytest.raises(error, match=r"^`temperature` has to (be|broadcast) "):
        sigmoid(np.zeros(3), temperature=value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones((4, 5)), "has to broadcast to shape (4,), but has shape (4, 5)"),
        ([1.0, 2.0], "has to broadcast to shape (4,), but has shape (2,)"),
        ([1.0, -1.0, 2.0, 3.0], "has to be a float in [0, inf], or one per row, but one is -1.0"),
        ([1.0, nan, 2.0, 3.0], "has to be a float in [0, inf], or one per row, but one is nan"),
    ],
)
def test_bad_temperatures(value, message):
    for function in (*FAMILY, softmax_dtemperature):
        with pytest.raises(ValueError, match=re.escape(f"`temperature` {message}")):
            function(np.zeros((4, 5)), temperature=value)


@pytest.mark.parametrize(
    ("value", "error"),
    [([1, 0, 1], TypeError), (np.ones(3), TypeError), ("yes", TypeError), (1, TypeError),
     ([[True], [False]], ValueError), ([True, False], ValueError)],
)  # fmt: skip
def test_bad_where(value, error):
    for function in FAMILY:
        with pytest.raises(error, match=r"^`where` has to (be an array of bool|broadcast)"):
            function(np.zeros(3), where=value)


@pytest.mark.parametrize(
    ("value", "error"),
    [(2, ValueError), (-3, ValueError), (2**70, ValueError), (0.0, TypeError), (-1.0, TypeError),
     (True, TypeError), ("0", TypeError), ((0, 2), ValueError), ((0, None), TypeError),
     ([0, 1], TypeError), (np.array(0), TypeError)],
)  # fmt: skip
def test_bad_axis(value, error):
    for function in FAMILY:
        with pytest.raises(error, match=r"^`axis` has to be an integer in \[-2, 2\), a tuple "):
            function(np.zeros((2, 3)), axis=value)


@pytest.mark.parametrize(
    ("x", "error"),
    [(np.ones(3) + 0j, TypeError), (2**70, TypeError), (1j, TypeError),
     (np.ones(3, np.longdouble), TypeError), (np.ma.masked_array([1.0, 2.0], [0, 1]), TypeError),
     (["a"], TypeError), ("text", TypeError), (None, TypeError), ([[1.0], [1.0, 2.0]], ValueError),
     (torch.zeros(3, device="meta"), TypeError), (torch.ones(3) + 0j, TypeError),
     (torch.ones(3).to_sparse(), TypeError)],
)  # fmt: skip
def test_bad_input(x, error):
    for function in FAMILY:
        with pytest.raises(error, match=r"^`x` ha(?:s|ve) to "):
            function(x)


# ------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_scipy_agrees(dtype):
    x = np.random.default_rng(0).normal(0, 5, (7, 8, 9)).astype(dtype)
    tolerance = {"float32": 2e-5, "float64": 1e-13}[dtype]
    for axis in (0, 1, 2):
        assert np.allclose(softmax(x, axis=axis), scipy.special.softmax(x, axis), tolerance, 0)
        got, want = log_softmax(x, axis=axis), scipy.special.log_softmax(x, axis)
        assert np.allclose(got, want, tolerance, tolerance)
        got, want = logsumexp(x, axis=axis), scipy.special.logsumexp(x, axis)
        assert np.allclose(got, want, tolerance, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_agrees(dtype):
    x = torch.tensor(np.random.default_rng(0).normal(0, 5, (7, 300)), dtype=dtype)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(softmax(x), torch.softmax(x, -1), rtol=tolerance, atol=0)
    want = torch.log_softmax(x / 0.5, 0)
    torch.testing.assert_close(
        log_softmax(x, temperature=0.5, axis=0), want, rtol=tolerance, atol=tolerance
    )
    want = torch.logsumexp(x, 1)
    torch.testing.assert_close(logsumexp(x), want, rtol=tolerance, atol=tolerance)


def test_the_sampler_agrees():
    x = np.random.default_rng(0).normal(0, 5, 3000)
    d = sampler.Sampler(temperature=0.7).distribution(x)
    assert np.allclose(d.dense(), softmax(x, temperature=0.7), 1e-14, 0)
    logs = np.empty(3000)
    logs[d.ids] = d.logprobs
    # The sampler's log of the mass is rounded to a multiple of 2**-32.
    assert np.allclose(logs, log_softmax(x, temperature=0.7), 1e-14, 2.0**-33)


def test_temperature_none_is_off():
    x = np.array([0.5, -1.0, 2.0])
    for function in FAMILY:
        assert np.array_equal(function(x, temperature=None), function(x))
