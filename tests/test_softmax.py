"""softmax, log_softmax, logsumexp: promise 4, measured against mpmath."""

import math

import ml_dtypes
import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

import sampler
from sampler import log_softmax, logsumexp, softmax

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
    p = softmax(x, temperature)
    assert p.dtype == np.float32
    assert error_in_ulp(p, exact.softmax) <= 4
    assert abs(math.fsum(p.tolist()) - 1) <= 3e-7
    q = log_softmax(x, temperature)
    assert q.dtype == np.float32
    finite = np.isfinite(x.astype(np.float64))
    assert np.array_equal(np.isfinite(q), finite)
    assert error_in_ulp(q[finite], np.array(exact.log_softmax)[finite], 1) <= 4
    total = logsumexp(x, temperature)
    assert total.dtype == np.float32
    assert error_in_ulp(total[None], [exact.logsumexp], 1) <= 4


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("name", ROWS)
def test_float64_is_within_2e_13(name, temperature):
    x = ROWS[name]
    exact = Exact(x, temperature)
    p = softmax(x, temperature)
    assert p.dtype == np.float64
    for got, want in zip(p, exact.softmax, strict=True):
        assert abs(mpmath.mpf(float(got)) - want) <= want * 2e-13 + mpmath.ldexp(1, -1074)
    assert abs(math.fsum(p) - 1) <= 1e-14 * max(1, len(x) / 100)
    q = log_softmax(x, temperature)
    finite = np.isfinite(x)
    assert np.array_equal(np.isfinite(q), finite)
    assert error_in_ulp(q[finite], np.array(exact.log_softmax)[finite], 1) <= 4
    assert error_in_ulp(logsumexp(x, temperature)[None], [exact.logsumexp], 1) <= 4


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
        p = softmax(x, temperature)
        if dtype == "float32":
            assert error_in_ulp(p, exact.softmax) <= 4
        else:
            for got, want in zip(p, exact.softmax, strict=True):
                assert abs(mpmath.mpf(float(got)) - want) <= want * 2e-13 + mpmath.ldexp(1, -1074)
        q = log_softmax(x, temperature)
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
    for got, want in zip(softmax(x, temperature), exact.softmax, strict=True):
        assert abs(mpmath.mpf(float(got)) - want) <= want * 2e-13 + mpmath.ldexp(1, -1074)
    q = log_softmax(x, temperature)
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
    p = softmax(x, temperature)
    if dtype == "float32":
        assert error_in_ulp(p, exact.softmax) <= 4
    else:
        for got, want in zip(p, exact.softmax, strict=True):
            assert abs(mpmath.mpf(float(got)) - want) <= want * 2e-13 + mpmath.ldexp(1, -1074)
    assert error_in_ulp(log_softmax(x, temperature), exact.log_softmax, 1) <= 4


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
        p = softmax(x)
        q = log_softmax(x)
        assert np.all(np.diff(p) >= 0), z
        assert np.all(np.diff(q) >= 0), z


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.0, 1.3, 7.0, 1e5])
@pytest.mark.parametrize("dtype", FLOATS)
def test_order(dtype, temperature):
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(0, 4, 40_000), -rng.exponential(1e-3, 10_000)])
    x = np.sort(x.astype(dtype_of(dtype)).astype(np.float64)).astype(dtype_of(dtype))
    for function in (softmax, log_softmax):
        assert np.all(np.diff(function(x, temperature)) >= 0)
        backwards = function(x[::-1], temperature)
        assert np.array_equal(backwards[::-1], function(x, temperature))


# ------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize("dtype", FLOATS)
def test_temperature_0_and_inf(dtype):
    x = np.array([1.0, 3.0, -inf, 3.0, -2.0]).astype(dtype_of(dtype))
    assert softmax(x, 0).tolist() == [0, 0.5, 0, 0.5, 0]
    assert softmax(x, inf).tolist() == [0.25, 0.25, 0, 0.25, 0.25]
    half, quarter = (softmax(x).dtype.type(math.log(v)) for v in (0.5, 0.25))
    assert log_softmax(x, 0).tolist() == [-inf, half, -inf, half, -inf]
    assert log_softmax(x, inf).tolist() == [quarter, quarter, -inf, quarter, quarter]
    assert logsumexp(x, inf) == -quarter
    for top, limit in ((3.0, inf), (-3.0, -inf), (0.0, math.log(2))):
        y = np.array([top, top, top - 1]).astype(dtype_of(dtype))
        assert logsumexp(y, 0) == pytest.approx(limit, rel=1e-7)
    assert softmax(x, -0.0).tolist() == softmax(x, 0).tolist()
    assert softmax(np.array([0.0, -0.0, -1.0]), 0).tolist() == [0.5, 0.5, 0]


def test_temperature_0_tells_adjacent_floats_apart():
    for dtype in ("float32", "float64"):
        tiny = np.finfo(dtype).smallest_subnormal
        for pair in ([0, tiny], [1, np.nextafter(1, 2, dtype=dtype)], [-tiny, 0], [1e30, 1.1e30]):
            assert softmax(np.array(pair, dtype), 0).tolist() == [0, 1]
            assert log_softmax(np.array(pair, dtype), 0).tolist() == [-inf, 0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0, 0.7, 1, inf])
@pytest.mark.parametrize("bad", [nan, inf, -nan])
def test_an_invalid_row_is_nan_and_alone(bad, temperature, dtype):
    x = np.zeros((3, 1500)).astype(dtype_of(dtype))
    clean = [function(x, temperature) for function in FAMILY]
    for token in (0, 63, 700, 1499):
        y = x.copy()
        y[1, token] = bad
        for function, want in zip(FAMILY, clean, strict=True):
            got = function(y, temperature)
            assert np.all(np.isnan(got[1]))
            assert np.array_equal(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("temperature", [0, 0.7, 1, inf])
def test_a_row_of_minus_inf(temperature, dtype):
    x = np.full((2, 1500), -inf).astype(dtype_of(dtype))
    x[1] = 0
    assert np.all(np.isnan(softmax(x, temperature)[0]))
    assert np.all(np.isnan(log_softmax(x, temperature)[0]))
    assert logsumexp(x, temperature)[0] == -inf
    assert np.all(softmax(x, temperature)[1] > 0)


def test_minus_inf_has_weight_0():
    x = np.where(np.arange(2000) % 7, 0.0, -inf)
    for dtype in FLOATS:
        for temperature in (1e-30, 1.0, 1e30, inf, 0):
            p = softmax(x.astype(dtype_of(dtype)), temperature)
            assert np.all((p == 0) == (x == -inf))
            q = log_softmax(x.astype(dtype_of(dtype)), temperature)
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


def test_axis_of_any_integer_kind():
    x = np.zeros((2, 3))
    assert softmax(x, axis=np.int64(0))[0, 0] == 0.5
    assert softmax(x, 1.0, 0)[0, 0] == 0.5
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


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_torch_in_torch_out(dtype, grad):
    x = np.round(np.random.default_rng(0).normal(0, 3, (3, 4, 5)) * 8) / 8
    tensor = torch.tensor(x, dtype=getattr(torch, dtype), requires_grad=grad)
    result = torch.float64 if dtype == "float64" else torch.float32
    for function in FAMILY:
        for axis in (0, 1, -1):
            got = function(tensor, 0.7, axis)
            assert isinstance(got, torch.Tensor)
            assert got.dtype == result
            assert not got.requires_grad
            want = function(x.astype(dtype_of(dtype)), 0.7, axis)
            assert np.array_equal(got.numpy(), want)
            out = torch.empty_like(got)
            assert function(tensor, 0.7, axis, out=out) is out
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
        whole = function(x, 0.7)
        for row, got in zip(x, whole, strict=True):
            assert np.array_equal(function(row, 0.7), got)


# ----------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("value", "error"),
    [(-0.1, ValueError), (nan, ValueError), (-inf, ValueError), (True, TypeError), ("1", TypeError),
     ([1.0], TypeError), (np.array(1.0), TypeError), (np.ones(2), TypeError),
     (1j, TypeError), (torch.tensor(1.0), TypeError)],
)  # fmt: skip
def test_bad_temperature(value, error):
    for function in FAMILY:
        with pytest.raises(error, match=r"^`temperature` has to be a float in \[0, inf\], but is "):
            function(np.zeros(3), temperature=value)


@pytest.mark.parametrize(
    ("value", "error"),
    [(2, ValueError), (-3, ValueError), (2**70, ValueError), (0.0, TypeError), (None, TypeError),
     (True, TypeError), ("0", TypeError), ((0,), TypeError), (np.array(0), TypeError)],
)  # fmt: skip
def test_bad_axis(value, error):
    for function in FAMILY:
        with pytest.raises(error, match=r"^`axis` has to be an integer in \[-2, 2\), but is "):
            function(np.zeros((2, 3)), axis=value)


@pytest.mark.parametrize(
    ("x", "error"),
    [(np.arange(3), TypeError), (np.ones(3, bool), TypeError), (np.ones(3) + 0j, TypeError),
     (np.ones(3, np.longdouble), TypeError), (np.ma.masked_array([1.0, 2.0], [0, 1]), TypeError),
     (["a"], TypeError), ("text", TypeError), (None, TypeError), ([[1.0], [1.0, 2.0]], ValueError),
     (np.array(1.0), ValueError), (np.float64(1), ValueError), (torch.tensor(1.0), ValueError),
     (1.5, TypeError), (torch.zeros(3, device="meta"), TypeError), (torch.arange(3), TypeError),
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
    torch.testing.assert_close(log_softmax(x, 0.5, 0), want, rtol=tolerance, atol=tolerance)
    want = torch.logsumexp(x, 1)
    torch.testing.assert_close(logsumexp(x), want, rtol=tolerance, atol=tolerance)


def test_the_sampler_agrees():
    x = np.random.default_rng(0).normal(0, 5, 3000)
    d = sampler.Sampler(temperature=0.7).distribution(x)
    assert np.allclose(d.dense(), softmax(x, 0.7), 1e-14, 0)
    logs = np.empty(3000)
    logs[d.ids] = d.logprobs
    assert np.allclose(logs, log_softmax(x, 0.7), 1e-14, 1e-14)


def test_temperature_none_is_off():
    x = np.array([0.5, -1.0, 2.0])
    for function in FAMILY:
        assert np.array_equal(function(x, temperature=None), function(x))
