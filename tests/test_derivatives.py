"""Derivatives of the softmax, sigmoid and cross-entropy: against finite differences, torch's
autograd and mpmath."""

import math
import re
from functools import partial

import mpmath
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given
from hypothesis import strategies as st

from sampler import (
    cross_entropy,
    cross_entropy_grad,
    log_softmax,
    sigmoid,
    softmax,
    softmax_dtemperature,
    softmax_jacobian,
    softmax_jvp,
    softmax_vjp,
)

inf, nan = math.inf, math.nan
mpmath.mp.prec = 200
EXTREME = (
    np.array([0.0, -1.0, 2.0, 0.5]),
    np.array([1e4, 1e4 - 3, 1e4 + 2, -1e4]),
    np.array([-800.0, 0.0, -20.0, -21.0]),
    np.array([5.0, -inf, 4.0, -inf]),
    np.array([1e300, 1e300, -1e300]),
    np.full(5, -3.0),
)


def differences(f, x, step=1e-6):
    """The derivatives of f at x by central differences, [..., j] with respect to x[j]."""
    columns = []
    for j in range(x.size):
        to = np.zeros_like(x)
        to[j] = step
        columns.append((f(x + to) - f(x - to)) / (2 * step))
    return np.stack(columns, axis=-1)


def exact(x, temperature):
    top = max(x)
    weights = [mpmath.exp((mpmath.mpf(v) - top) / temperature) for v in map(float, x)]
    total = mpmath.fsum(weights)
    return [w / total for w in weights]


# -------------------------------------------------------------------------------------- jacobian


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_jacobian_is_the_derivative(temperature):
    x = np.random.default_rng(0).normal(0, 2, 6)
    p = softmax(x, temperature=temperature)
    J = softmax_jacobian(p, temperature=temperature)
    assert np.allclose(J, differences(lambda y: softmax(y, temperature=temperature), x), atol=1e-8)
    assert np.array_equal(J, J.T)
    assert np.allclose(J.sum(axis=-1), 0, atol=1e-15)
    tensor = torch.tensor(x, requires_grad=True)
    theirs = torch.autograd.functional.jacobian(
        lambda t: torch.softmax(t / temperature, -1), tensor
    )
    assert np.allclose(J, theirs, atol=1e-15)
    v = np.random.default_rng(1).normal(0, 1, 6)
    assert np.allclose(softmax_jvp(p, v, temperature=temperature), J @ v, atol=1e-15)
    assert np.allclose(softmax_vjp(p, v, temperature=temperature), v @ J, atol=1e-15)


@pytest.mark.parametrize("x", EXTREME)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 100.0])
def test_derivatives_of_extreme_logits(x, temperature):
    p = softmax(x, temperature=temperature)
    q = exact(x, temperature)
    v = np.random.default_rng(2).normal(0, 1, x.size)
    J = softmax_jacobian(p, temperature=temperature)
    inner = mpmath.fsum(a * mpmath.mpf(float(b)) for a, b in zip(q, v, strict=True))
    jvp = softmax_jvp(p, v, temperature=temperature)
    for i in range(x.size):
        want = q[i] * (mpmath.mpf(float(v[i])) - inner) / temperature
        assert abs(jvp[i] - want) <= 1e-15 / temperature
        for j in range(x.size):
            want = q[i] * ((i == j) - q[j]) / temperature
            assert abs(J[i, j] - want) <= 4e-13 * abs(want) + 3e-16 / temperature


@pytest.mark.parametrize("x", EXTREME)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 100.0])
def test_derivative_with_respect_to_the_temperature(x, temperature):
    q = exact(x, temperature)
    finite = [i for i in range(x.size) if x[i] > -inf]
    mean = mpmath.fsum(q[i] * mpmath.mpf(float(x[i])) for i in finite)
    got = softmax_dtemperature(x, temperature=temperature)
    for i in range(x.size):
        want = q[i] * (mean - mpmath.mpf(float(x[i]))) / temperature**2 if i in finite else 0
        assert abs(got[i] - want) <= 1e-12 * max(abs(want), 1e-3)
    if np.abs(x).max() < 1e3:
        h = 1e-6 * temperature
        moved = (
            softmax(x, temperature=temperature + h) - softmax(x, temperature=temperature - h)
        ) / (2 * h)
        assert np.allclose(got, moved, atol=1e-7)


def test_derivatives_along_any_axis_and_with_a_temperature_each():
    rng = np.random.default_rng(3)
    x, v = rng.normal(0, 2, (3, 4, 5)), rng.normal(0, 1, (3, 4, 5))
    for axis in (0, 1, -1):
        moved_x, moved_v = np.moveaxis(x, axis, -1), np.moveaxis(v, axis, -1)
        t = rng.uniform(0.5, 2, moved_x.shape[:-1])
        p = softmax(x, temperature=t, axis=axis)
        for function in (softmax_jvp, softmax_vjp):
            got = np.moveaxis(function(p, v, temperature=t, axis=axis), axis, -1)
            for place in np.ndindex(t.shape):
                J = softmax_jacobian(
                    softmax(moved_x[place], temperature=t[place]), temperature=t[place]
                )
                assert np.allclose(got[place], J @ moved_v[place], atol=1e-14)
        got = np.moveaxis(softmax_dtemperature(x, temperature=t, axis=axis), axis, -1)
        for place in np.ndindex(t.shape):
            assert np.allclose(
                got[place], softmax_dtemperature(moved_x[place], temperature=t[place]), atol=1e-15
            )
    # A vector for all slices; a batch of matrices.
    p = softmax(x)
    assert np.array_equal(
        softmax_jvp(p, v[0, 0]), softmax_jvp(p, np.broadcast_to(v[0, 0], p.shape))
    )
    assert softmax_jacobian(p).shape == (3, 4, 5, 5)
    assert np.array_equal(softmax_jacobian(p)[1, 2], softmax_jacobian(p[1, 2]))


def test_derivatives_keep_container_and_precision():
    for dtype, wide in (("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        x = np.array([[1.0, 2.0, 0.0]], dtype)
        for got in (softmax_jacobian(softmax(x)), softmax_jvp(softmax(x), x),
                    softmax_dtemperature(x), sigmoid(x), cross_entropy_grad(x, [1])):  # fmt: skip
            assert got.dtype == wide
        assert cross_entropy(x, [1]).dtype == wide
        tensor = torch.tensor(x)
        for got in (softmax_jacobian(tensor), softmax_vjp(tensor, tensor), sigmoid(tensor),
                    softmax_dtemperature(tensor), cross_entropy(tensor, torch.tensor([1])),
                    cross_entropy_grad(tensor, torch.tensor([1]))):  # fmt: skip
            assert isinstance(got, torch.Tensor)
            assert got.dtype == getattr(torch, wide)
    words = torch.tensor([1.0, 2.0, -3.0]).to(torch.bfloat16)
    assert np.array_equal(
        softmax_dtemperature(words).numpy(), softmax_dtemperature(np.float32([1, 2, -3]))
    )


def test_what_all_entries_have_in_common_moves_nothing():
    for size in (4095, 77):
        p = softmax(np.zeros(size, np.float32))
        assert np.abs(softmax_jvp(p, np.full(size, 1e6))).max() <= 1e-12
        assert np.abs(softmax_vjp(p, np.full(size, -1e30))).max() <= 1e14


def test_derivatives_near_the_largest_double():
    slope = softmax_dtemperature([1e308, -1e308], temperature=1e308)
    want = 2 * math.exp(-2) / (1 + math.exp(-2)) ** 2 * 1e-308
    assert slope == pytest.approx([-want, want], rel=1e-12)
    assert np.all(softmax_dtemperature([1e308, -1e308], temperature=5e-324) == 0)


def test_parameters_that_are_tensors():
    p = torch.softmax(torch.arange(6.0).reshape(2, 3), -1)
    for kind in (torch.bfloat16, torch.float32, torch.float64):
        targets = p.to(kind)
        assert cross_entropy(torch.zeros(2, 3), targets) == pytest.approx(math.log(3), rel=1e-3)
        t = torch.tensor([1.0, 2.0], dtype=kind)
        assert np.array_equal(
            softmax(np.eye(2), temperature=t), softmax(np.eye(2), temperature=[1.0, 2.0])
        )


def test_derivatives_where_the_softmax_is_flat():
    assert softmax_dtemperature([1.0, 2.0], temperature=inf).tolist() == [0, 0]
    assert softmax_jvp([0.5, 0.5], [1.0, 0.0], temperature=inf).tolist() == [0, 0]
    assert np.all(np.isnan(softmax_dtemperature([1.0, nan])))
    assert np.all(np.isnan(softmax_dtemperature([1.0, inf])))
    assert np.all(np.isnan(softmax_dtemperature([-inf, -inf])))
    assert np.all(np.isnan(softmax_jvp([0.5, nan], [1.0, 0.0])))
    assert softmax_jacobian([1.0, 0.0]).tolist() == [[0, 0], [0, 0]]


# --------------------------------------------------------------------------------------- sigmoid


@given(st.floats(-800, 800), st.floats(-800, 800), st.sampled_from([0.5, 1.0, 3.0]))
def test_two_entries_are_a_sigmoid(a, b, temperature):
    pair = softmax([a, b], temperature=temperature)
    want = 1 / (1 + mpmath.exp(-(mpmath.mpf(a) - mpmath.mpf(b)) / temperature))
    assert abs(pair[0] - want) <= 2e-13 * want + mpmath.ldexp(1, -1074)
    scale = max(1.0, abs(a - b) / temperature)  # of the rounding of a - b
    assert abs(sigmoid(a - b, temperature=temperature) - want) <= 1e-15 * scale * want + 1e-323


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_sigmoid_is_within_4_ulp(dtype):
    x = np.concatenate([np.linspace(-745, 40, 3000), np.linspace(-1, 1, 500)]).astype(dtype)
    got = sigmoid(x)
    for value, result in zip(x, got, strict=True):
        want = 1 / (1 + mpmath.exp(-mpmath.mpf(float(value))))
        assert abs(mpmath.mpf(float(result)) - want) <= 4 * float(np.spacing(got.dtype.type(want)))


def test_sigmoid_of_limits():
    x = np.array([-inf, -2.0, -0.0, 0.0, 2.0, inf, nan])
    assert np.array_equal(sigmoid(x, temperature=0), [0, 0, 0.5, 0.5, 1, 1, nan], equal_nan=True)
    assert np.array_equal(
        sigmoid(x, temperature=inf), [0, 0.5, 0.5, 0.5, 0.5, 1, nan], equal_nan=True
    )
    assert np.array_equal(sigmoid(x)[[0, 2, 3, 5, 6]], [0, 0.5, 0.5, 1, nan], equal_nan=True)
    assert sigmoid(3.5e38) == 1
    assert isinstance(sigmoid(1.0), np.float64)
    assert sigmoid(1) == sigmoid(np.array(1)) == sigmoid(True) == sigmoid(1.0)
    with pytest.raises(TypeError, match=r"^`x` have to be an array of floats"):
        sigmoid("1")
    assert sigmoid(np.zeros((2, 0, 3))).shape == (2, 0, 3)
    assert np.allclose(
        sigmoid([-3.0, 0.1, 700.0], temperature=None), scipy.special.expit([-3.0, 0.1, 700.0])
    )


def test_a_temperature_of_minus_0_is_0():
    for x in ([1.0, -1.0, 0.0], [3.0, 3.0, 1.0]):
        for function in (sigmoid, softmax, log_softmax):
            assert function(x, temperature=-0.0).tolist() == function(x, temperature=0.0).tolist()
        assert softmax([x], temperature=[-0.0]).tolist() == softmax([x], temperature=0.0).tolist()


def test_sigmoid_at_a_temperature():
    for temperature in (0.001, 0.3, 40.0):
        for value in (-212.31449036551132 * temperature, -0.7, 0.1):
            want = 1 / (1 + mpmath.exp(-mpmath.mpf(value) / mpmath.mpf(temperature)))
            assert abs(sigmoid(value, temperature=temperature) - want) <= 2e-13 * want + 1e-323


# --------------------------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_torchs(soft, temperature, smoothing, reduction):
    rng = np.random.default_rng(4)
    x = rng.normal(0, 3, (6, 9))
    y = softmax(rng.normal(0, 1, (6, 9))) if soft else rng.integers(0, 9, 6)
    tensor = torch.tensor(x, requires_grad=True)
    want = torch.nn.functional.cross_entropy(
        tensor / temperature, torch.tensor(y), label_smoothing=smoothing, reduction=reduction
    )
    got = cross_entropy(
        x, y, temperature=temperature, label_smoothing=smoothing, reduction=reduction
    )
    assert np.allclose(got, want.detach(), rtol=1e-13)
    want.sum().backward()
    grad = cross_entropy_grad(
        x, y, temperature=temperature, label_smoothing=smoothing, reduction=reduction
    )
    assert np.allclose(grad, tensor.grad, atol=1e-14)
    assert np.allclose(grad.sum(axis=-1), 0, atol=1e-14)


def test_cross_entropy_gradient_is_the_derivative():
    rng = np.random.default_rng(5)
    x, y = rng.normal(0, 2, 7), softmax(rng.normal(0, 1, 7))
    for targets in (y, 3):
        slope = differences(
            partial(cross_entropy, targets=targets, temperature=0.7, label_smoothing=0.2), x
        )
        assert np.allclose(
            cross_entropy_grad(x, targets, temperature=0.7, label_smoothing=0.2), slope, atol=1e-8
        )


@pytest.mark.parametrize("x", EXTREME[:4])
def test_cross_entropy_of_extreme_logits(x):
    q = exact(x, 1)
    for label in range(x.size):
        got = cross_entropy(x, label)
        if q[label] == 0:
            assert got == inf
        else:
            want = -mpmath.log(q[label])
            assert abs(got - want) <= 1e-15 * max(1, want)
    y = np.where(x > -inf, 1.0, 0.0) / np.isfinite(x).sum()
    assert np.isfinite(cross_entropy(x, y))  # 0 * -inf counts 0
    assert np.all(np.isfinite(cross_entropy_grad(x, y)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rows", [0, 12])
def test_ignored_targets_do_not_count(rows, share, ignore_index, smoothing, reduction):
    rng = np.random.default_rng(8)
    x, y = rng.normal(0, 3, (rows, 5)), rng.integers(0, 5, rows)
    y[rng.random(rows) < share] = ignore_index
    tensor = torch.tensor(x, requires_grad=True)
    want = torch.nn.functional.cross_entropy(
        tensor, torch.tensor(y), label_smoothing=smoothing, reduction=reduction,
        ignore_index=ignore_index,
    )  # fmt: skip
    options = {"label_smoothing": smoothing, "reduction": reduction, "ignore_index": ignore_index}
    got = cross_entropy(x, y, **options)
    np.testing.assert_allclose(got, want.detach(), rtol=1e-13)
    want.sum().backward()
    np.testing.assert_allclose(cross_entropy_grad(x, y, **options), tensor.grad, atol=1e-14)
    folded = cross_entropy(x.reshape(-1, 3, 5), y.reshape(-1, 3), **options)
    np.testing.assert_array_equal(np.ravel(folded), np.ravel(got))


def test_what_an_ignored_row_holds_does_not_matter():
    x = np.array([[1.0, 2.0], [nan, inf], [-inf, -inf]])
    for smoothing in (0.0, 0.5):
        options = {"label_smoothing": smoothing}
        want = cross_entropy(x[:1], [0], **options)
        assert cross_entropy(x, [0, -100, -100], **options) == want
        assert not np.signbit(cross_entropy(x, [0, -100, -100], reduction="none", **options)).any()
        grad = cross_entropy_grad(x, np.array([0, -100, -100], np.int16), **options)
        assert np.array_equal(grad[:1], cross_entropy_grad(x[:1], [0], **options))
        assert not grad[1:].any()
    assert cross_entropy(x[:1], np.array([1], np.uint8)) == cross_entropy(x[:1], [1])


def test_bad_ignore_index():
    for value, error in (
        (1.0, TypeError),
        (True, TypeError),
        (None, TypeError),
        (2**63, ValueError),
    ):
        with pytest.raises(error, match=r"^`ignore_index` has to be an integer in \[-2\*\*63, "):
            cross_entropy(np.zeros((1, 2)), [0], ignore_index=value)
    with pytest.raises(ValueError, match=r"^`ignore_index` has to be negative for targets of floa"):
        cross_entropy(np.zeros((1, 2)), [[0.5, 0.5]], ignore_index=0)
    assert cross_entropy(np.zeros((1, 2)), [[0.5, 0.5]], ignore_index=-1) == math.log(2)


def test_bool_targets_are_the_classes_0_and_1():
    x = np.arange(6.0).reshape(3, 2) ** 2
    for kind in (list, np.array, torch.tensor):
        for function in (cross_entropy, cross_entropy_grad):
            got = function(x, kind([True, False, True]))
            assert np.array_equal(got, function(x, [1, 0, 1]))


def test_cross_entropy_of_no_rows():
    for targets in ([], np.zeros(0, int), np.zeros((0, 3))):
        assert np.isnan(cross_entropy(np.zeros((0, 3)), targets))
        assert cross_entropy(np.zeros((0, 3)), targets, reduction="sum") == 0
        assert cross_entropy(np.zeros((0, 3)), targets, reduction="none").shape == (0,)
        assert cross_entropy_grad(np.zeros((0, 3)), targets).shape == (0, 3)


@pytest.mark.parametrize("axis", [None, (0, 2), (-1, 1), (), (0, 1, 2)])
def test_derivatives_along_several_axes(axis):
    rng = np.random.default_rng(9)
    x, v = rng.normal(0, 2, (2, 3, 4)), rng.normal(0, 1, (2, 3, 4))
    axes = range(3) if axis is None else sorted(a % 3 for a in axis)
    rest = [a for a in range(3) if a not in axes]
    t = rng.uniform(0.5, 2, [x.shape[a] for a in rest])

    def rows(y):
        return np.transpose(y, (*rest, *axes)).reshape(t.size, -1)

    p = softmax(x, temperature=t, axis=axis)
    for got, want in (
        (p, softmax(rows(x), temperature=t.ravel())),
        (softmax_jvp(p, v, temperature=t, axis=axis),
         softmax_jvp(rows(p), rows(v), temperature=t.ravel())),
        (softmax_dtemperature(x, temperature=t, axis=axis),
         softmax_dtemperature(rows(x), temperature=t.ravel())),
    ):  # fmt: skip
        np.testing.assert_allclose(rows(got), want, atol=1e-15)
    assert softmax_jvp(1.0, 2.0) == softmax_dtemperature(3) == 0


def test_cross_entropy_of_any_number_of_axes():
    rng = np.random.default_rng(6)
    x, y = rng.normal(0, 2, (2, 3, 5)), rng.integers(0, 5, (2, 3))
    losses = cross_entropy(x, y, reduction="none")
    assert losses.shape == (2, 3)
    assert losses[1, 2] == cross_entropy(x[1, 2], y[1, 2])
    assert cross_entropy(x, y) == pytest.approx(losses.mean(), rel=1e-15)
    assert losses[0, 0] == -log_softmax(x[0, 0])[y[0, 0]]
    assert np.isnan(cross_entropy(np.array([[nan, 0.0]]), [1]))
    assert np.isnan(cross_entropy(np.array([[inf, 0.0]]), [1]))


# --------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ([0, 3], ValueError, "`targets` have to be integers in [0, 3), but one is 3"),
        ([0, -1], ValueError, ("`targets` have to be integers in [0, 3), but one is -1, at index 1:"
         " if it is padding, pass ignore_index=-1")),
        ([0], ValueError, ("`targets` have to be integers of shape (2,) or floats of shape (2, 3), "
         "but are int64 of shape (1,)")),
        ([1.0, 2.0], ValueError, ("`targets` have to be integers of shape (2,) or floats of shape "
         "(2, 3), but are float64 of shape (2,)")),
        ([[0.5, 0.5, 0.5]] * 2, ValueError, "`targets` have to be probabilities"),
        ([[1.5, -0.5, 0.0]] * 2, ValueError, "`targets` have to be probabilities"),
        ([[nan, 0.5, 0.5]] * 2, ValueError, "`targets` have to be probabilities"),
        (["a", "b"], TypeError, "`targets` have to be numbers"),
    ],
)  # fmt: skip
def test_bad_targets(targets, error, message):
    for function in (cross_entropy, cross_entropy_grad):
        with pytest.raises(error, match="^" + re.escape(message)):
            function(np.zeros((2, 3)), targets)


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "`temperature` has to be in (0, inf], but is 0"),
        ({"temperature": -1.0}, ValueError, "`temperature` has to be a float in [0, inf]"),
        ({"temperature": nan}, ValueError, "`temperature` has to be a float in [0, inf]"),
        ({"temperature": [1.0, 2.0]}, TypeError, "`temperature` has to be a float in (0, inf]"),
        ({"label_smoothing": 1.1}, ValueError, "`label_smoothing` has to be a float in [0, 1]"),
        ({"label_smoothing": nan}, ValueError, "`label_smoothing` has to be a float in [0, 1]"),
        ({"reduction": "avg"}, ValueError, "`reduction` has to be 'mean' or 'sum' or 'none'"),
    ],
)
def test_bad_settings_of_cross_entropy(more, error, message):
    for function in (cross_entropy, cross_entropy_grad):
        with pytest.raises(error, match="^" + re.escape(message)):
            function(np.zeros((2, 3)), [0, 1], **more)


def test_bad_arrays():
    with pytest.raises(ValueError, match="has to have at least one axis, but is a scalar"):
        softmax_jacobian(np.float64(1.0))
    for function in (softmax_jacobian, softmax_dtemperature, lambda p: softmax_jvp(p, 1.0)):
        with pytest.raises(TypeError, match="have to be float16, bfloat16, float32 or float64"):
            function(np.ones(3) + 0j)
    with pytest.raises(ValueError, match=r"^`v` has to broadcast to shape \(3,\), but has shape"):
        softmax_jvp(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"^`g` has to broadcast to shape \(3,\), but has shape"):
        softmax_vjp(np.zeros(3), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"^`temperature` has to be in \(0, inf\], but is 0"):
        softmax_jvp(np.zeros(3), np.zeros(3), temperature=0)
    with pytest.raises(ValueError, match=r"^`temperature` has to be in \(0, inf\], but is 0"):
        softmax_dtemperature(np.zeros((2, 3)), temperature=[1.0, 0.0])
    with pytest.raises(ValueError, match=r"^`logits` have to hold at least one class, but have "):
        cross_entropy(np.zeros((3, 0)), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"^`logits` has to have at least one axis"):
        cross_entropy(np.float64(1.0), 0)
    with pytest.raises(TypeError, match=r"^`x` have to be float16"):
        sigmoid(np.ones(3) + 0j)
