"""sampler.torch: the core's values, torch's gradients."""

import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jacrev, jvp, vmap

import sampler
import sampler.torch as st
from sampler import temperature as temperature_module
from sampler.torch import _cross_entropy, _operators, _softmax

F = torch.nn.functional

inf, nan = math.inf, math.nan
PAIR = (st.softmax, st.log_softmax)
TORCHS = {st.softmax: torch.softmax, st.log_softmax: torch.log_softmax}
CORES = {st.softmax: sampler.softmax, st.log_softmax: sampler.log_softmax}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


def normal(*shape, dtype=torch.float64, seed=0, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def leaf(*shape, **options):
    return normal(*shape, **options).requires_grad_()


def gradient(function, x):
    """Of a weighted sum of the results, the weights all different."""
    x = x.detach().requires_grad_()
    y = function(x)
    return torch.autograd.grad(y, x, weights(y))[0]


def weights(y):
    """The same numbers whatever the dtype."""
    return normal(*y.shape, dtype=torch.bfloat16, seed=9).to(y.dtype)


class Elsewhere(torch.Tensor):
    """On the meta device there are no values: a CPU tensor that goes the way of other devices."""

    is_cpu = False


def views(x):
    """The same values under other strides."""
    wide = torch.full((*x.shape, 2), 99.0, dtype=x.dtype)
    wide[..., 0] = x
    yield wide[..., 0]
    yield x.movedim(0, -1).contiguous().movedim(-1, 0)
    yield x[:1].expand(x.shape) if x[:1].expand(x.shape).equal(x) else x


def close(got, want, ulp=8):
    epsilon = torch.finfo(want.dtype).eps
    torch.testing.assert_close(got, want, rtol=ulp * epsilon, atol=ulp * epsilon)


# ---------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("temperature", [0, 1e-3, 0.7, 1, 30.0, inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_those_of_the_core(dtype, temperature):
    x = normal(3, 4, 5, dtype=dtype)
    x[0, 1, 2] = -inf
    for function in PAIR:
        for dim in range(-3, 3):
            got = function(x, temperature=temperature, dim=dim)
            want = CORES[function](x, temperature=temperature, axis=dim)
            assert got.dtype == dtype
            assert torch.equal(got, want.to(dtype))
            for view in views(x):
                assert torch.equal(function(view, temperature=temperature, dim=dim), got)


@pytest.mark.parametrize("shape", [(6,), (3, 4), (2, 3, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_values_and_gradients_are_those_of_torch(shape, temperature):
    x = normal(*shape)
    for function in PAIR:
        for dim in range(-len(shape), len(shape)):

            def peer(z, function=function, dim=dim):
                return TORCHS[function](z / temperature, dim)

            def ours(z, function=function, dim=dim):
                return function(z, temperature=temperature, dim=dim)

            close(ours(x), peer(x), 32)
            for view in (x, *views(x)):
                close(gradient(ours, view), gradient(peer, x), 64)


def test_defaults():
    x = normal(3, 4)
    assert torch.equal(st.softmax(x), st.softmax(x, temperature=1.0, dim=-1))
    assert torch.equal(st.log_softmax(x), st.log_softmax(x, temperature=1, dim=1))
    target = torch.tensor([0, 3, 1])
    want = st.cross_entropy(x, target, temperature=1, label_smoothing=0, reduction="mean")
    assert torch.equal(st.cross_entropy(x, target), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow_gradients_are_rounded_once(dtype):
    x = normal(5, 300, dtype=dtype)
    wide = x.double() if dtype == torch.float64 else x.float()
    for function in PAIR:

        def ours(z, function=function):
            return function(z, temperature=0.7)

        got = gradient(ours, x)
        assert got.dtype == dtype
        assert torch.equal(got, gradient(ours, wide).to(dtype))
    loss = st.cross_entropy(x, torch.arange(5), temperature=0.7, label_smoothing=0.1)
    assert loss.dtype == dtype
    assert torch.equal(
        loss,
        st.cross_entropy(wide, torch.arange(5), temperature=0.7, label_smoothing=0.1).to(dtype),
    )


def test_float32_gradients_are_as_near_as_those_of_torch():
    x = normal(20, 1000, dtype=torch.float32, scale=4.0)
    for function in PAIR:

        def peer(z, function=function):
            return TORCHS[function](z / 0.7, -1)

        def ours(z, function=function):
            return function(z, temperature=0.7)

        exact = gradient(peer, x.double())
        error, theirs = ((gradient(f, x) - exact).abs().max() for f in (ours, peer))
        assert error <= 1.5 * theirs


def test_the_input_is_left_alone():
    x = normal(4, 5)
    before = x.clone()
    gradient(st.softmax, x)
    gradient(st.log_softmax, x)
    assert torch.equal(x, before)


# ------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("temperature", [0.5, 3.0])
@pytest.mark.parametrize("shape, dim", [((5,), 0), ((2, 3), 0), ((2, 3, 2), 1), ((2, 3, 2), -1)])
def test_gradcheck(shape, dim, temperature):
    x = leaf(*shape)
    for function in PAIR:

        def ours(z, function=function):
            return function(z, temperature=temperature, dim=dim)

        assert gradcheck(ours, x, check_batched_grad=len(shape) == 2)
        assert gradgradcheck(ours, x, check_batched_grad=len(shape) == 2)
        assert gradcheck(lambda z, f=ours: f(z.transpose(0, -1).flip(0)), leaf(*shape[::-1]))


@pytest.mark.parametrize("target", [torch.tensor([2, 0]), normal(2, 3, seed=3).softmax(1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_of_cross_entropy(reduction, smoothing, target):
    x = leaf(2, 3)

    def ours(z, y=target):
        return st.cross_entropy(
            z, y, temperature=0.7, label_smoothing=smoothing, reduction=reduction
        )

    assert gradcheck(ours, x)
    assert gradgradcheck(ours, x)
    if target.is_floating_point():
        y = target.clone().requires_grad_()
        assert gradcheck(ours, (x, y))
        assert gradgradcheck(ours, (x, y))


def test_double_backward_is_that_of_torch():
    x = normal(3, 5)
    for function in PAIR:

        def penalty(f):
            z = x.clone().requires_grad_()
            (g,) = torch.autograd.grad((f(z) * x).square().sum(), z, create_graph=True)
            return torch.autograd.grad(g.pow(3).sum(), z)[0]

        got = penalty(lambda z, f=function: f(z, temperature=0.7))
        want = penalty(lambda z, f=function: TORCHS[f](z / 0.7, -1))
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11 * want.abs().max().item())
        assert want.abs().min() > 0


def test_entries_at_minus_inf_have_gradient_0():
    # As without these entries; and finite differences agree.
    keep = torch.tensor([True, False, True, True])
    x = normal(2, 4)
    for function in PAIR:
        masked = x.masked_fill(~keep, -inf).requires_grad_()
        y = function(masked, temperature=0.7)
        (got,) = torch.autograd.grad(y, masked, weights(y))
        short = x[:, keep].requires_grad_()
        (want,) = torch.autograd.grad(function(short, temperature=0.7), short, weights(y)[:, keep])
        assert torch.all(got[:, ~keep] == 0)
        close(got[:, keep], want)

        def kept(z, function=function):
            return function(torch.where(keep, z, -inf), temperature=0.7)[:, keep]

        assert gradcheck(kept, x.clone().requires_grad_())
        assert gradgradcheck(kept, x.clone().requires_grad_())


def test_cross_entropy_at_minus_inf():
    x = torch.tensor([[1.0, -inf, 0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    soft = torch.tensor([[0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    keep = [0, 2, 3]
    for target, short in ((torch.tensor([2]), torch.tensor([1])), (soft, soft[:, keep])):
        loss = st.cross_entropy(x, target, temperature=0.5)
        close(loss, F.cross_entropy(x[:, keep] / 0.5, short))
        (g,) = torch.autograd.grad(loss, x)
        y = soft if target is soft else F.one_hot(target, 4)
        close(g, (st.softmax(x, temperature=0.5) - y).detach() / 0.5)
        assert g[0, 1] == 0
    for arguments in (
        {"target": torch.tensor([1])},
        {"target": torch.full((1, 4), 0.25)},
        {"target": torch.tensor([0]), "label_smoothing": 0.1},
    ):
        loss = st.cross_entropy(x, **arguments)
        assert loss == inf
        (g,) = torch.autograd.grad(loss, x)
        assert g[0, 1] == 0
        assert torch.all(g.isfinite())
    # A target that is learnt: the class that is not there is no part of the loss.
    soft.requires_grad_()
    (g,) = torch.autograd.grad(st.cross_entropy(x, soft, temperature=0.5), soft)
    assert torch.equal(g[0, keep], -st.log_softmax(x, temperature=0.5)[0, keep])
    assert g[0, 1] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [0.0, inf])
def test_gradients_at_the_limits_are_0(temperature, dtype):
    x = torch.tensor([[1.0, -2.0, 3.0, 3.0, -inf]]).to(dtype)
    for function in PAIR:
        assert gradient(lambda z, f=function: f(z, temperature=temperature), x).tolist() == [
            [0.0] * 5
        ]
    for target in (torch.tensor([2]), torch.tensor([0]), torch.full((1, 5), 0.2)):
        ours = lambda z, y=target: st.cross_entropy(z, y, temperature=temperature)  # noqa: E731
        assert gradient(ours, x).tolist() == [[0.0] * 5]
    x.requires_grad_()
    (g,) = torch.autograd.grad(st.softmax(x, temperature=temperature)[0, 2], x, create_graph=True)
    assert torch.autograd.grad(g.sum(), x)[0].tolist() == [[0.0] * 5]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1e-300, 1e-46, 5e-324])
def test_gradients_at_tiny_temperatures(temperature, dtype):
    # The temperature may be 0 in the dtype; the gradient is 0 all the same, not 0 / 0.
    x = torch.tensor([[1.0, -2.0, 3.0, -inf]]).to(dtype)
    assert gradient(lambda z: st.softmax(z, temperature=temperature), x).tolist() == [[0.0] * 4]
    ours = lambda z: st.cross_entropy(z, torch.tensor([2]), temperature=temperature)  # noqa: E731
    assert gradient(ours, x).tolist() == [[0.0] * 4]


def test_bad_values_stay_in_their_row():
    for bad in (nan, inf):
        x = normal(3, 4)
        x[1, 2] = bad
        for function in PAIR:
            assert torch.all(function(x)[1].isnan())
            g = gradient(function, x)
            assert torch.all(g[1].isnan())
            assert torch.equal(g[[0, 2]].isfinite(), torch.ones(2, 4, dtype=torch.bool))
        losses = st.cross_entropy(x, torch.tensor([0, 1, 2]), reduction="none")
        assert losses.isnan().tolist() == [False, True, False]


def test_a_learnt_temperature_divides_the_input():
    x, target = normal(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    t = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    (got,) = torch.autograd.grad(st.cross_entropy(x / t, target), t)
    p = st.softmax(x, temperature=0.8)
    want = ((x.gather(1, target[:, None])[:, 0] - (p * x).sum(1)) / 0.8**2).mean()
    close(got, want, 64)
    for function in PAIR:
        with pytest.raises(TypeError, match=r"but is a tensor: divide `input` by it$"):
            function(x, temperature=t)


def test_without_gradients():
    x = leaf(3, 4)
    with torch.no_grad():
        assert not st.softmax(x).requires_grad
    with torch.inference_mode():
        assert torch.equal(st.softmax(x), sampler.softmax(x))
    assert not st.softmax(x.detach()).requires_grad
    assert st.softmax(x).requires_grad


# ------------------------------------------------------------ logsumexp, entropy, distillation


def distil(x, **options):
    """The loss of a student against a teacher, x being both."""
    return st.distillation_loss(*x.unbind(0), reduction="none", **options)


DROPPING = (st.logsumexp, st.entropy, distil)


def core_of(function, x, **options):
    """What the functions for arrays say."""
    if function is distil:
        return temperature_module.distillation_loss(*x.unbind(0), reduction="none", **options)
    core = {st.logsumexp: sampler.logsumexp, st.entropy: temperature_module.entropy}[function]
    return core(x, **options)


@pytest.mark.parametrize("temperature", [1e-3, 0.7, 1.0, 30.0, 1e4, 1e8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_as_accurate_as_those_for_arrays(dtype, temperature):
    x = normal(2, 5, 70, dtype=dtype)
    x[:, 1, 3] = -inf
    x[1, 2] = x[0, 2]
    for function in DROPPING:
        got = function(x, temperature=temperature)
        want = core_of(function, x, temperature=temperature).to(dtype)
        assert got.dtype == dtype
        # Rounded once, of float64 results that may differ in their last bits.
        rtol = 1e-13 if dtype == torch.float64 else torch.finfo(dtype).eps
        torch.testing.assert_close(got, want, rtol=rtol, atol=1e-300)
        if function is not distil:
            for dim in (0, (0, 2), (-1, 1), (0, 1, 2)):
                want = core_of(function, x, temperature=temperature, axis=dim, keepdims=True)
                got = function(x, temperature=temperature, dim=dim, keepdim=True)
                torch.testing.assert_close(
                    got, want.to(dtype), rtol=rtol, atol=1e-300, equal_nan=True
                )
                gone = function(x, temperature=temperature, dim=dim)
                assert np.array_equal(gone.double().ravel(), got.double().ravel(), equal_nan=True)
                assert gone.ndim == 3 - (1 if dim == 0 else len(dim))


def test_a_sure_row_keeps_its_entropy():
    # log(1 + 1e-30) is 0 to one who adds before taking the logarithm.
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([0.0, -70.0], dtype=dtype, requires_grad=True)
        h = st.entropy(x)
        assert h.item() == pytest.approx(71 * math.exp(-70), rel=1e-6)
        (g,) = torch.autograd.grad(h, x)
        assert g.tolist() == pytest.approx([-70 * math.exp(-70), 70 * math.exp(-70)], rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 100.0])
def test_gradcheck_of_logsumexp_entropy_and_distillation(temperature):
    x = leaf(2, 2, 3)
    for function in DROPPING:

        def ours(z, function=function):
            return function(z, temperature=temperature)

        assert gradcheck(ours, x, check_batched_grad=True)
        assert gradgradcheck(ours, x, check_batched_grad=True)
    for function in (st.logsumexp, st.entropy):
        assert gradcheck(lambda z, f=function: f(z, dim=(0, 2), keepdim=True), x)
    keep = torch.tensor([True, False, True])
    for function in DROPPING:  # entries of -inf

        def kept(z, function=function):
            return function(torch.where(keep, z, -inf), temperature=temperature)

        assert gradcheck(kept, x)
        assert gradgradcheck(kept, x)
        (g,) = torch.autograd.grad(kept(x).sum(), x)
        short = x[..., keep].detach().requires_grad_()
        (want,) = torch.autograd.grad(function(short, temperature=temperature).sum(), short)
        close(g[..., keep], want, 64)


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1.0, 100.0, 1e6, 1e10, 1e150])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_a_distillation(dtype, temperature):
    student, teacher = (x.requires_grad_() for x in normal(2, 4, 30, dtype=dtype).unbind(0))
    for reduction in REDUCTIONS:
        loss = st.distillation_loss(student, teacher, temperature=temperature, reduction=reduction)
        assert loss.dtype == dtype
        got, other = torch.autograd.grad(loss.sum(), (student, teacher))
        with torch.no_grad():
            want = temperature_module.distillation_loss_grad(
                student, teacher, temperature=temperature, reduction=reduction
            )
        size = want.abs().max().item()
        eps = 1e-13 if dtype == torch.float64 else torch.finfo(dtype).eps
        torch.testing.assert_close(got, want.to(dtype), rtol=eps, atol=eps * size)
        assert other.dtype == dtype
        assert other.isfinite().all()
    # The teacher's: what it says is moved to the student, so the loss falls where the gradient is.
    if dtype == torch.float64 and 0.5 <= temperature <= 1e6:
        step = 1e-3 * other / other.abs().max()
        with torch.no_grad():
            up, down = (
                st.distillation_loss(student, teacher + sign * step, temperature=temperature)
                for sign in (1, -1)
            )
        got = torch.autograd.grad(
            st.distillation_loss(student, teacher, temperature=temperature), teacher
        )[0]
        assert (up - down).item() / 2 == pytest.approx((got * step).sum().item(), rel=1e-4)


def test_gradient_of_an_entropy_at_a_high_temperature():
    # -p (log p + H) / T cancels; with p = 1 / K, it is -(x - mean) / (K T**2).
    x = leaf(3, 50)
    (g,) = torch.autograd.grad(st.entropy(x, temperature=1e9).sum(), x)
    want = -(x - x.mean(-1, keepdim=True)).detach() / 50 / 1e18
    torch.testing.assert_close(g, want, rtol=1e-6, atol=1e-8 * want.abs().max().item())


def test_logsumexp_of_inf_and_its_gradient_are_those_of_torch():
    for row in ([inf, 0.0], [inf, inf, 0.0], [nan, 0.0], [inf, nan], [inf, -inf], [-inf, 0.0]):
        for dtype in (torch.float16, torch.float32, torch.float64):
            ours, theirs = (torch.tensor(row, dtype=dtype, requires_grad=True) for _ in range(2))
            got, want = st.logsumexp(ours), torch.logsumexp(theirs, 0)
            torch.testing.assert_close(got, want, equal_nan=True)
            got.backward()
            want.backward()
            torch.testing.assert_close(ours.grad, theirs.grad, equal_nan=True)


def test_nothing_at_all():
    # Rows of -inf throughout: the gradient of their sum, which is a number, is 0 and not NaN.
    x = torch.full((2, 3), -inf)
    x[1] = 0.0
    x.requires_grad_()
    (g,) = torch.autograd.grad(st.logsumexp(x).sum(), x, create_graph=True)
    assert g[0].tolist() == [0.0, 0.0, 0.0]
    (g,) = torch.autograd.grad(g.sum(), x)
    assert torch.all(g == 0)
    assert st.entropy(x).isnan().tolist() == [True, False]
    assert st.distillation_loss(x, x, reduction="none").isnan().tolist() == [True, False]
    assert st.logsumexp(torch.zeros(2, 0)).tolist() == [-inf, -inf]
    for function in (st.entropy, lambda x: st.distillation_loss(x, x)):
        with pytest.raises(
            ValueError, match=r"has to hold at least one (entry|token) per row, but"
        ):
            function(torch.zeros(2, 0))
        assert function(torch.zeros(0, 3)).numel() in (0, 1)
    none = torch.zeros(0, 3)
    assert st.distillation_loss(none, none).isnan()
    assert st.distillation_loss(none, none, reduction="sum") == 0


def test_distillation_without_mass():
    student = torch.tensor([1.0, -inf, 0.5, -inf], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([0.0, 1.0, -inf, -inf], dtype=torch.float64, requires_grad=True)
    full = torch.tensor([1.0, 0.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    same = student.detach().clone().requires_grad_()
    near = torch.tensor([0.1, 1.0, -5.0, 0.0], dtype=torch.float64, requires_grad=True)
    for pair in (
        (student, teacher), (full, teacher), (near, teacher), (student, full), (student, same),
    ):  # fmt: skip
        loss = st.distillation_loss(*pair)
        with torch.no_grad():
            close(loss, temperature_module.distillation_loss(*pair))
        for x, g in zip(pair, torch.autograd.grad(loss, pair), strict=True):
            assert g.isfinite().all()
            assert torch.all(g[x == -inf] == 0)
    for bad in (nan, inf):
        x = torch.zeros(3, 2)
        x[1, 0] = bad
        y = torch.zeros(3, 2)
        for pair in ((x, y), (y, x)):
            losses = st.distillation_loss(*pair, reduction="none")
            assert losses.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("temperature", [0, inf])
def test_the_limits_of_logsumexp_and_entropy(temperature):
    x = torch.tensor([[1.0, 3.0, -inf, 3.0], [5e-324, 0.0, -1.0, -inf]], dtype=torch.float64)
    for function in (st.logsumexp, st.entropy):
        got = function(x, temperature=temperature)
        assert torch.equal(got, core_of(function, x, temperature=temperature))
        assert torch.all(gradient(lambda z, f=function: f(z, temperature=temperature), x) == 0)


def test_near_the_largest_double():
    x = torch.tensor([1e308, -1e308], dtype=torch.float64)
    near = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for pair, scale in ((x, 1e308), (near, 1.0)):
        assert st.entropy(pair, temperature=scale).item() == pytest.approx(0.365334, rel=1e-5)
    assert st.entropy(x, temperature=5e-324) == 0
    loss = st.distillation_loss(near, -near, temperature=1e200)
    assert loss.item() == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        ((X := torch.zeros(2, 3), [[0.0]]), {}, TypeError,
         "`teacher` has to be a tensor, but is a list"),
        ((X, X.long()), {}, TypeError,
         "`teacher` has to be float16, bfloat16, float32 or float64, but is torch.int64"),
        ((X, X[0]), {}, ValueError,
         "`teacher` has to have the shape of `student`, (2, 3), but has (3,)"),
        ((X, X.to("meta")), {}, ValueError,
         "`teacher` has to be on cpu, as `student`, but is on meta"),
        ((X, X), {"temperature": 0}, ValueError,
         "`temperature` has to be a float in (0, inf), but is 0"),
        ((X, X), {"temperature": inf}, ValueError,
         "`temperature` has to be a float in (0, inf), but is inf"),
        ((X, X), {"temperature": X[0, 0]}, TypeError,
         ("`temperature` has to be a float in (0, inf), but is a tensor: divide both by it, and "
          "multiply the loss by its square")),
        ((X, X), {"reduction": "batchmean"}, ValueError,
         "`reduction` has to be 'mean' or 'sum' or 'none', but is 'batchmean'"),
    ],
)  # fmt: skip
def test_errors_of_distillation(arguments, options, error, text):
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        st.distillation_loss(*arguments, **options)


def test_bad_dims():
    for function in (st.logsumexp, st.entropy):
        for dim in ((), (0, 0), (1, -1)):
            with pytest.raises(ValueError, match=r"^`dim` has to name one dimension or some, each"):
                function(X, dim=dim)
        for dim, error in ((2, ValueError), ((0, 2), ValueError), (None, TypeError)):
            with pytest.raises(error, match=r"^`dim` has to be an integer in \[-2, 2\), but is "):
                function(X, dim=dim)


# --------------------------------------------------------------------------------- cross entropy


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_ignored_targets_do_not_count(ignore_index, reduction, smoothing, share):
    generator = torch.Generator().manual_seed(1)
    x = normal(4, 5, 6)
    target = torch.randint(5, (4, 6), generator=generator)
    target[torch.rand(4, 6, generator=generator) < share] = ignore_index
    options = {
        "label_smoothing": smoothing, "reduction": reduction, "ignore_index": ignore_index,
    }  # fmt: skip

    def ours(z):
        return st.cross_entropy(z, target, **options)

    def peer(z):
        return F.cross_entropy(z, target, **options)

    torch.testing.assert_close(ours(x), peer(x), rtol=1e-13, atol=1e-14, equal_nan=True)
    close(gradient(ours, x), gradient(peer, x), 64)
    last = st.cross_entropy(x.movedim(1, -1), target, dim=-1, **options)
    torch.testing.assert_close(last, ours(x), rtol=1e-13, atol=1e-14, equal_nan=True)
    with torch.no_grad():
        arrays = sampler.cross_entropy(x.movedim(1, -1), target, **options)
    torch.testing.assert_close(arrays, last, rtol=1e-13, atol=1e-14, equal_nan=True)


def test_classes_in_any_dimension():
    x = normal(2, 3, 4)
    for dim in range(-3, 3):
        first = x.movedim(dim, 1)
        index = torch.arange(first[:, 0].numel()).reshape(first[:, 0].shape) % first.shape[1]
        soft = normal(2, 3, 4, seed=3).softmax(dim)
        for there in (x, x.as_subclass(Elsewhere)):
            for given, other in ((index, index), (soft, soft.movedim(dim, 1))):
                got = st.cross_entropy(there, given, dim=dim, reduction="none")
                want = F.cross_entropy(first, other, reduction="none")
                close(got.as_subclass(torch.Tensor), want, 32)
    assert st.cross_entropy(x[0, 0], torch.tensor(2)) == st.cross_entropy(
        x[0, 0], torch.tensor(2), dim=0
    )
    text = r"has shape \(2, 3\): pass dim=-1 for classes in the last dimension$"
    with pytest.raises(ValueError, match=text):
        st.cross_entropy(x, torch.zeros(2, 3, dtype=torch.int64))
    for dim, error in ((3, ValueError), (None, TypeError)):
        with pytest.raises(error, match=r"^`dim` has to be an integer in \[-3, 3\), but is "):
            st.cross_entropy(x, torch.zeros(2, 4, dtype=torch.int64), dim=dim)


def test_bad_ignore_index():
    for value, error in ((1.0, TypeError), (True, TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"^`ignore_index` has to be an integer in \["):
            st.cross_entropy(X, torch.zeros(2, dtype=torch.int64), ignore_index=value)
    with pytest.raises(ValueError, match=r"^`ignore_index` has to be negative for targets of floa"):
        st.cross_entropy(X, X, ignore_index=0)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 3), (2, 4, 3, 2), (0, 4), (2, 4, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cross_entropy_is_that_of_torch(dtype, smoothing, reduction, shape):
    x = normal(*shape, dtype=dtype)
    dim = 0 if len(shape) == 1 else 1
    places = shape[:dim] + shape[dim + 1 :]
    index = torch.arange(math.prod(places)).reshape(places) * 7 % 4
    soft = normal(*shape, seed=3, dtype=dtype).softmax(dim)
    for target in (index, soft):
        for temperature in (0.5, 1.0, 4.0):

            def ours(z, target=target, temperature=temperature):
                return st.cross_entropy(
                    z,
                    target,
                    temperature=temperature,
                    label_smoothing=smoothing,
                    reduction=reduction,
                )

            def peer(z, target=target, temperature=temperature):
                return F.cross_entropy(
                    z / temperature, target, label_smoothing=smoothing, reduction=reduction
                )

            got, want = ours(x), peer(x.clone())
            assert got.dtype == dtype
            torch.testing.assert_close(
                got, want, rtol=8 * torch.finfo(dtype).eps, atol=32 * torch.finfo(dtype).eps,
                equal_nan=True,
            )  # fmt: skip
            close(gradient(ours, x), gradient(peer, x), 64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gradient_of_cross_entropy_is_p_less_y(temperature):
    x, index = normal(5, 7), torch.tensor([0, 6, 3, 3, 1])
    z = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(
        st.cross_entropy(z, index, temperature=temperature, label_smoothing=0.2, reduction="sum"), z
    )
    y = 0.8 * F.one_hot(index, 7).double() + 0.2 / 7
    close(got, (sampler.softmax(x, temperature=temperature) - y) / temperature)


def test_cross_entropy_at_temperature_0():
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
    losses = st.cross_entropy(x, torch.tensor([1, 1]), temperature=0, reduction="none")
    assert losses.tolist() == [pytest.approx(math.log(2)), inf]
    soft = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    losses = st.cross_entropy(x, soft, temperature=0, reduction="none")
    assert losses.tolist() == [pytest.approx(math.log(2)), 0]


def test_targets_of_another_float():
    x = normal(3, 4, dtype=torch.float32)
    soft = normal(3, 4, seed=3).softmax(1)
    for dtype in DTYPES:
        loss = st.cross_entropy(x, soft.to(dtype))
        assert loss.dtype == torch.float32
        close(loss, F.cross_entropy(x.double(), soft.to(dtype).double()).float())


def test_a_big_vocabulary_of_real_logits(real_logits):
    x = torch.from_numpy(real_logits[:4].copy())
    target = torch.tensor([11, 0, 49151, 28])
    got = st.cross_entropy(x, target, temperature=0.7, reduction="none")
    want = F.cross_entropy(x.double() / 0.7, target, reduction="none").half()
    assert torch.equal(got, want)


# ---------------------------------------------------------------------------------- other devices


def test_tensors_elsewhere_go_through_torch(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("the core was called")

    for module in (_softmax, _cross_entropy):
        monkeypatch.setattr(module, "softmax_through_core", refuse)
    for dtype in DTYPES:
        x = torch.zeros(2, 3, dtype=dtype, device="meta", requires_grad=True)
        for function in PAIR:
            y = function(x, temperature=0.5, dim=0)
            assert (y.device.type, y.dtype, y.shape) == ("meta", dtype, x.shape)
            (g,) = torch.autograd.grad(y.sum(), x)
            assert g.device.type == "meta"
            with pytest.raises(AssertionError, match="the core was called"):
                function(torch.zeros(3))
        index = torch.zeros(2, dtype=torch.int64, device="meta")
        for target in (index, torch.zeros(2, 3, dtype=dtype, device="meta")):
            loss = st.cross_entropy(
                x, target, temperature=0.5, label_smoothing=0.1, reduction="none"
            )
            assert (loss.device.type, loss.dtype, loss.shape) == ("meta", dtype, (2,))


def test_the_formula_elsewhere():
    x = normal(3, 4)
    there = x.as_subclass(Elsewhere)
    for function in PAIR:
        for dim in (0, 1):
            got = function(there, temperature=0.5, dim=dim).as_subclass(torch.Tensor)
            close(got, function(x, temperature=0.5, dim=dim), 32)
    for target in (torch.tensor([0, 3, 1]), normal(3, 4, seed=3).softmax(1)):
        for reduction in REDUCTIONS:
            got = st.cross_entropy(
                there, target, temperature=0.5, label_smoothing=0.1, reduction=reduction
            )
            want = st.cross_entropy(
                x, target, temperature=0.5, label_smoothing=0.1, reduction=reduction
            )
            close(got.as_subclass(torch.Tensor), want, 32)
    target = torch.tensor([0, -100, 1])
    got = st.cross_entropy(there, target, temperature=0.5).as_subclass(torch.Tensor)
    close(got, st.cross_entropy(x, target, temperature=0.5), 32)
    for function in (st.logsumexp, st.entropy):
        for dim in (0, (0, 1)):
            got = function(there, temperature=0.5, dim=dim, keepdim=True).as_subclass(torch.Tensor)
            close(got, function(x, temperature=0.5, dim=dim, keepdim=True), 32)
    got = st.distillation_loss(there, there.flip(0), temperature=5.0).as_subclass(torch.Tensor)
    close(got, st.distillation_loss(x, x.flip(0), temperature=5.0), 64)


@pytest.mark.parametrize("temperature", [0, inf])
def test_the_limits_are_refused_elsewhere(temperature):
    x = torch.zeros(2, 3, device="meta")
    text = r"^`temperature` has to be a float in \(0, inf\) for a tensor on meta, but is "
    for function in PAIR:
        with pytest.raises(ValueError, match=text):
            function(x, temperature=temperature)
    with pytest.raises(ValueError, match=text):
        st.cross_entropy(
            x, torch.zeros(2, dtype=torch.int64, device="meta"), temperature=temperature
        )


# ------------------------------------------------------------------------- compile and torch.func


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype, log):
    for x in (normal(3, 4, dtype=dtype), normal(4, 3, dtype=dtype).T, normal(0, 4, dtype=dtype)):
        torch.library.opcheck(_operators._softmax_operator, (x, 0.7, 0, log))
        torch.library.opcheck(_operators._logsumexp_operator, (x, 0.7))


def compiled(function, backend):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True)


def losses(x, index, soft, temperature):
    return (
        st.softmax(x, temperature=temperature, dim=0).square().sum()
        + st.log_softmax(x, temperature=temperature).square().sum()
        + st.cross_entropy(x, index, temperature=temperature, label_smoothing=0.1)
        + st.cross_entropy(x, soft, temperature=temperature)
    )


def other_losses(x, index, soft, temperature):
    return (
        st.logsumexp(x, temperature=temperature, dim=(0, 1))
        + st.entropy(x, temperature=temperature).square().sum()
        + st.distillation_loss(x, soft, temperature=temperature)
    )


def check_compiled(backend, losses=losses, sizes=((3, 1.0), (5, 0.7), (6, 2))):
    function = compiled(losses, backend)
    # Other shapes and temperatures: compiled again, or with what varies left open.
    for rows, temperature in sizes:
        x, index = normal(rows, 4), torch.arange(rows) % 4
        soft = normal(rows, 4, seed=3).softmax(1)
        got, want = (
            torch.autograd.grad(f(z, index, soft, temperature), z)[0]
            for f, z in (
                (function, x.clone().requires_grad_()),
                (losses, x.clone().requires_grad_()),
            )
        )
        close(got, want, 64)
        close(
            function(x, index, soft, temperature),
            losses(x, index, soft, temperature),
            64,
        )


# torch.compile makes an instance of every Function.
of_dynamo = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")

# torch imports its own scripted functions where inductor or forward mode are first used; the
# category of the warning depends on its version.
of_torch_jit = pytest.mark.filterwarnings("ignore:`torch.jit")


@of_dynamo
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile(backend):
    check_compiled(backend)


@of_dynamo
def test_compile_of_the_others():
    check_compiled("aot_eager", other_losses, sizes=[(3, 0.7)])


@of_dynamo
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor compiles C++")
@of_torch_jit
def test_compile_with_inductor():
    check_compiled("inductor")
    check_compiled("inductor", other_losses)


@of_dynamo
def test_compile_of_narrow_dtypes():
    def both(x):
        return st.softmax(x, temperature=0.7), st.log_softmax(x, temperature=0.7)

    function = compiled(both, "aot_eager")
    for dtype in DTYPES:
        x = normal(3, 4, dtype=dtype)
        for got, want in zip(function(x), both(x), strict=True):
            assert got.dtype == dtype
            assert torch.equal(got, want)


@of_dynamo
def test_errors_inside_compile():
    function = compiled(st.cross_entropy, "eager")
    with pytest.raises((RuntimeError, IndexError), match=r"out of bounds"):
        function(torch.zeros(2, 3), torch.tensor([0, 3]))


def test_torch_func():
    x = normal(3, 4, 5)
    for function in PAIR:

        def ours(z, dim=-1, function=function):
            return function(z, temperature=0.7, dim=dim)

        def peer(z, dim=-1, function=function):
            return TORCHS[function](z / 0.7, dim)

        for dim in (0, 1, -1):
            for where in (0, 1, 2):
                got = vmap(lambda z, d=dim, f=ours: f(z, min(d, 1)), where, where)(x)
                want = vmap(lambda z, d=dim, f=peer: f(z, min(d, 1)), where, where)(x)
                close(got, want, 32)
        for f in (
            grad(lambda z, f=ours: f(z, 0).square().sum()),
            jacrev(ours),
            jacrev(jacrev(ours)),
        ):
            row = f(x[0, 0])
            assert row.shape[-1] == 5
            torch.testing.assert_close(vmap(vmap(f))(x)[0, 0], row)
        close(jacrev(ours)(x[0, 0]), jacrev(peer)(x[0, 0]), 64)
        close(jacrev(jacrev(ours))(x[0, 0]), jacrev(jacrev(peer))(x[0, 0]), 64)
    for ours in (st.logsumexp, st.entropy, lambda z: st.distillation_loss(z, z.flip(-1) / 2)):
        whole = leaf(3, 4, 5)
        each = [[ours(row) for row in rows] for rows in whole.unbind()]
        want = torch.autograd.grad(sum(map(sum, each)), whole)[0]
        x = whole.detach()
        close(vmap(vmap(grad(ours)))(x), want, 64)
        close(vmap(vmap(ours, 1), 2)(x), vmap(vmap(ours))(x.permute(2, 1, 0)), 64)
        hessians = vmap(jacrev(jacrev(ours)))(x[0])
        close(hessians[1], jacrev(jacrev(ours))(x[0, 1]), 64)
    for dims in ((0, None), (None, 0)):
        pair = [x[0] if d == 0 else x[0, 0] for d in dims]
        want = [st.distillation_loss(*(a[i] if a.ndim == 2 else a for a in pair)) for i in range(4)]
        close(vmap(st.distillation_loss, dims)(*pair), torch.stack(want))
        slopes = grad(st.distillation_loss, argnums=(0, 1))
        last = slopes(*(a[3] if a.ndim == 2 else a for a in pair))
        for got, want in zip(vmap(slopes, dims)(*pair), last, strict=True):
            close(got[3], want, 64)
        # What all share has the sum of the gradients.
        each = vmap(slopes, dims)(*pair)
        whole = grad(lambda *a, d=dims: vmap(st.distillation_loss, d)(*a).sum(), argnums=(0, 1))
        for got, want, d in zip(whole(*pair), each, dims, strict=True):
            close(got, want if d == 0 else want.sum(0), 64)
    got = vmap(vmap(st.distillation_loss, (None, 0)))(x[:, 0], x)
    close(got, torch.stack([vmap(st.distillation_loss, (None, 0))(a[0], a) for a in x]))
    x = normal(3, 4, 5)
    index = torch.tensor([0, 3, 1])
    per_row = vmap(grad(lambda z, i: st.cross_entropy(z, i, temperature=0.7)))(
        x[0, :, :].T[:3], index
    )
    assert per_row.shape == (3, 4)
    close(per_row, vmap(grad(lambda z, i: F.cross_entropy(z / 0.7, i)))(x[0].T[:3], index), 64)


@of_torch_jit
def test_forward_mode_is_refused():
    x = normal(3, 4)
    for function in (
        *PAIR,
        st.logsumexp,
        st.entropy,
        lambda z: st.cross_entropy(z, torch.tensor([0, 1, 2])),
        lambda z: st.distillation_loss(z, x.flip(0)),
    ):
        with pytest.raises(NotImplementedError, match="jvp"):
            jvp(function, (x,), (x,))


def test_torch_in_the_package_is_torch():
    assert st.torch is torch
    code = (
        "import sys, sampler; assert 'torch' not in sys.modules, 'imported'; import sampler.torch"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ------------------------------------------------------------------------------- shapes, refusals


@pytest.mark.parametrize("shape, dim", [((0,), 0), ((0, 3), 1), ((3, 0), -1), ((2, 0, 3), 0)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty(dtype, shape, dim):
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    for function in PAIR:
        y = function(x, temperature=0.7, dim=dim)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        (g,) = torch.autograd.grad(y.sum(), x)
        assert (g.shape, g.dtype) == (x.shape, dtype)


X = torch.zeros(2, 3)
INDEX = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (np.zeros((2, 3)), TypeError, "a tensor, but is a numpy.ndarray"),
        ([[0.0]], TypeError, "a tensor, but is a list"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "float64, but is torch.int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), TypeError, "float64, but is torch.complex64"),
        (torch.zeros(2, 3, dtype=torch.bool), TypeError, "float64, but is torch.bool"),
        (X.to_sparse(), TypeError, "a dense tensor, but has layout torch.sparse_coo"),
        (torch.tensor(1.0), ValueError, "at least one dimension, but is a scalar"),
    ],
)
def test_bad_input(x, error, text):
    for function in (*PAIR, st.logsumexp, st.entropy, lambda x: st.cross_entropy(x, INDEX)):
        with pytest.raises(error, match=rf"^`input` has to .*{text}$"):
            function(x)


@pytest.mark.parametrize(
    ("value", "error"),
    [(-0.1, ValueError), (nan, ValueError), (-inf, ValueError), (True, TypeError), ("1", TypeError),
     (None, TypeError), (torch.tensor(1.0), TypeError), (np.array(1.0), TypeError)],
)  # fmt: skip
def test_bad_temperature(value, error):
    for function in (
        *PAIR,
        lambda x, temperature: st.cross_entropy(x, INDEX, temperature=temperature),
    ):
        for x in (X, X.to("meta")):
            if x.is_cpu or function in PAIR:
                with pytest.raises(
                    error, match=r"^`temperature` has to be a float in \[0, inf\], but is "
                ):
                    function(x, temperature=value)


@pytest.mark.parametrize(
    ("value", "error"),
    [(2, ValueError), (-3, ValueError), (0.0, TypeError), (None, TypeError), (True, TypeError)],
)
def test_bad_dim(value, error):
    for function in PAIR:
        for x in (X, X.to("meta")):
            with pytest.raises(error, match=r"^`dim` has to be an integer in \[-2, 2\), but is "):
                function(x, dim=value)


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        ([0, 1], TypeError, "be a tensor of int64 class indices or floats, but is a list"),
        (INDEX.int(), TypeError, "be int64 class indices or floats, but is torch.int32"),
        (INDEX.bool(), TypeError, "be int64 class indices or floats, but is torch.bool"),
        (INDEX[:1], ValueError, r"have shape \(2,\) for class indices, but has shape \(1,\)"),
        (
            INDEX[:, None],
            ValueError,
            r"have shape \(2,\) for class indices, but has shape \(2, 1\)",
        ),
        (X[0], ValueError, r"have shape \(2, 3\) for probabilities, but has shape \(3,\)"),
        (INDEX.to("meta"), ValueError, "be on cpu, as `input`, but is on meta"),
        (INDEX + 3, ValueError, r"hold class indices in \[0, 3\), but one is 3, at index 0"),
        (
            INDEX - 1,
            ValueError,
            (
                r"hold class indices in \[0, 3\), but one is -1, at index 0: if it is padding, "
                "pass ignore_index=-1"
            ),
        ),
        (
            torch.tensor([0, -99]),
            ValueError,
            r"hold class indices in \[0, 3\), but one is -99, at index 1: .*ignore_index=-99",
        ),
    ],
)
def test_bad_target(target, error, text):
    for x in (X, X.clone().requires_grad_()):
        with pytest.raises(error, match=rf"^`target` has to {text}$"):
            st.cross_entropy(x, target)


@of_dynamo
def test_soft_targets_of_another_axis_are_refused():
    # Probabilities along the last dimension were taken along dimension 1, and gave a number.
    x = normal(2, 3, 4)
    soft = normal(2, 3, 4, seed=1).softmax(-1)
    text = r"^`target` has to sum to 1 along dimension 1, .* pass dim=-1 for classes"
    for dtype in DTYPES:
        with pytest.raises(ValueError, match=text):
            st.cross_entropy(x.to(dtype), soft.to(dtype).requires_grad_())
    st.cross_entropy(x, soft, dim=-1)
    st.cross_entropy(x, soft * 2)  # of no axis
    st.cross_entropy(normal(2, 4, 4), torch.full((2, 4, 4), 0.25))  # of both
    # Where no value may be looked at, nothing is.
    want = F.cross_entropy(x, soft)
    close(compiled(st.cross_entropy, "eager")(x, soft), want, 64)
    close(vmap(st.cross_entropy)(x[None], soft[None])[0], want, 64)


def test_place_of_a_bad_index():
    with pytest.raises(ValueError, match=r"but one is 9, at index \(0, 1\)$"):
        st.cross_entropy(X[None], torch.tensor([[0, 9]]), dim=-1)
    with pytest.raises(ValueError, match=r"but one is 9$"):
        st.cross_entropy(X[0], torch.tensor(9))


def test_bad_options_of_cross_entropy():
    for value, error in (
        (-0.1, ValueError),
        (1.1, ValueError),
        (nan, ValueError),
        ("0", TypeError),
    ):
        text = r"^`label_smoothing` has to be a float in \[0, 1\], but is "
        with pytest.raises(error, match=text):
            st.cross_entropy(X, INDEX, label_smoothing=value)
    for value, error in (("max", ValueError), (None, TypeError)):
        with pytest.raises(error, match=r"^`reduction` has to be 'mean' or 'sum' or 'none', but "):
            st.cross_entropy(X, INDEX, reduction=value)
    with pytest.raises(ValueError, match=r"^`target` has to hold class indices in \[0, 0\), but "):
        st.cross_entropy(torch.zeros(2, 0), INDEX)


def test_smoothing_of_all_at_minus_inf_is_inf():
    logits = torch.tensor([[0.0, -torch.inf, 1.0]])
    for label in (0, 1):
        loss = st.cross_entropy(logits, torch.tensor([label]), label_smoothing=1.0)
        assert loss == torch.inf


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="has to hold at least one class"):
        st.cross_entropy(torch.zeros(2, 0), torch.zeros(2, 0), label_smoothing=0.1)
