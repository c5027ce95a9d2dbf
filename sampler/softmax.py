"""The softmax with a temperature: values and derivatives.

docs/softmax.md has the mathematics.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import _core, _inputs
from sampler._checks import (
    as_array,
    check_axes,
    check_broadcast,
    check_reals,
)
from sampler._keywords import helps
from sampler.stages import Temperature

__all__ = [
    "log_softmax",
    "logsumexp",
    "sigmoid",
    "softmax",
    "softmax_dtemperature",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
]

AnyAxis = int | tuple[int, ...] | None  # one, some, or all


@helps
def softmax(
    x: Any, *, temperature: Any = 1.0, axis: AnyAxis = -1, out: Any = None, where: Any = None
) -> Any:
    """Return exp(x / temperature) over its sum along an axis.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of any shape; integers, bools and lists become
        float64.
    temperature : float or array_like of them, in [0, inf], off at 1 or None
        One for all, or one for each slice: an array that broadcasts to the shape of `x` without
        `axis`. 0 is the limit: the largest entries share equally (a sampler at temperature 0 takes
        the first of them). inf gives every entry but -inf the same share.
    axis : int, tuple of int, or None
        The axis that sums to 1, the axes that do together, or all.
    out : array or tensor, optional
        Where to write, of the shape and dtype of the result; may be `x` itself.
    where : array_like of bool, optional
        Which entries take part, broadcast to the shape of `x`; the others count as -inf.

    Returns
    -------
    array or tensor
        float64 for float64, else float32; a tensor for a tensor.

    Raises
    ------
    TypeError
        If `x` is not an array of numbers, or a parameter has the wrong type; if a tensor
        requires grad, unless grad is disabled: `sampler.torch` has the family with gradients.
    ValueError
        If a parameter is out of its range or does not broadcast, or `out` does not fit.

    See Also
    --------
    log_softmax : its logarithm.
    sampler.torch.softmax : with gradients.
    sampler.temperature.entropy : how uncertain it is.

    Notes
    -----
    float32 results are within 4 ULP of the exact value, down through the subnormals, and sum to
    1 within 3e-7; float64 results are within a relative 2e-13, plus 2**-1074. Larger entries never
    get less. An entry of -inf gets exactly 0. Values never raise: a slice with NaN or +inf, or
    -inf throughout, is NaN.

    Under ``torch.set_flush_denormal(True)`` the processor flushes subnormal results to zero.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler import softmax
    >>> softmax(np.array([1.0, 3.0, 2.0, -np.inf])).round(3)
    array([0.09 , 0.665, 0.245, 0.   ])
    >>> softmax(np.array([[1.0, 2.0], [1.0, 2.0]]), temperature=[1.0, 0.1]).round(3)
    array([[0.269, 0.731],
           [0.   , 1.   ]])
    """
    return _apply(x, temperature, axis, out, where, "softmax")


@helps
def log_softmax(
    x: Any, *, temperature: Any = 1.0, axis: AnyAxis = -1, out: Any = None, where: Any = None
) -> Any:
    """Return x / temperature less its logsumexp along an axis.

    Parameters and errors are those of `softmax`.

    Returns
    -------
    array or tensor
        float64 for float64, else float32; a tensor for a tensor. Within 4 ULP of
        max(1, |value|); -inf where `x` is, or where it does not take part.

    See Also
    --------
    softmax : the probabilities.
    sampler.torch.log_softmax : with gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler import log_softmax
    >>> log_softmax(np.array([1.0, 3.0, 2.0, -np.inf])).round(3)
    array([-2.408, -0.408, -1.408,   -inf])
    """
    return _apply(x, temperature, axis, out, where, "log_softmax")


@helps
def logsumexp(
    x: Any,
    *,
    temperature: Any = 1.0,
    axis: AnyAxis = -1,
    out: Any = None,
    where: Any = None,
    keepdims: bool = False,
) -> Any:
    """Return log(sum(exp(x / temperature))) along an axis, which the result lacks.

    Parameters and errors are those of `softmax`. With `keepdims`, the axis stays, of length 1. A
    slice of -inf throughout, or of no entries, gives -inf; one with +inf and no NaN gives inf, at
    any temperature.

    Returns
    -------
    array, tensor or scalar
        float64 for float64, else float32; a tensor for a tensor. Within 4 ULP of
        max(1, |value|).

    See Also
    --------
    log_softmax : the logits less this.
    sampler.torch.logsumexp : with gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler import logsumexp
    >>> logsumexp(np.array([0.0, 0.0])).round(6)
    np.float64(0.693147)
    """
    return _apply(x, temperature, axis, out, where, "logsumexp", keepdims)


def _apply(
    x: Any, temperature: Any, axis: Any, out: Any, where: Any, what: str, keepdims: Any = False
) -> Any:
    source = _inputs.read(x, name="x", numbers=True)
    shape = source.array.shape
    axes: tuple[int, ...]
    if type(axis) is int and axis == -1 and shape:  # quicker
        axes, rest = (len(shape) - 1,), shape[:-1]
    else:
        axes = check_axes(axis, len(shape))
        rest = shape_without(shape, axes)
    t, temperatures = _check_temperature(temperature, rest)
    if where is not None:
        source = source.masked(~_check_where(where, shape))
    is_sum = what == "logsumexp"
    target = kept_shape(shape, axes, keepdims) if is_sum else shape
    dtype = source.result_dtype
    result = np.empty(target, dtype) if out is None else _inputs.check_out(out, target, dtype)
    if source.array.size == 0:
        result[...] = -np.inf  # the sum over nothing is exp(-inf)
    else:
        rows = rows_along(source.array, axes)
        into = result.reshape(-1, 1) if is_sum else rows_along(result, axes)
        moves = out is not None or axis != -1
        indirect = moves and _is_in_the_way(into, rows, result)
        if indirect:
            into = np.empty(into.shape, dtype)
        words = source if rows is source.array else source._replace(array=rows)
        _core.softmax_rows(words.rows(), t, temperatures, _core.FAMILY[what], into)
        if indirect:
            moved = result if is_sum else _last(result, axes)
            moved[...] = into.reshape(moved.shape)
    if out is not None:
        return out
    return source.to_container(result)


def shape_without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """A shape less some axes."""
    return tuple(n for axis, n in enumerate(shape) if axis not in axes)


def kept_shape(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: Any) -> tuple[int, ...]:
    """The shape of a sum over some axes, which it keeps, of length 1, or not."""
    if not isinstance(keepdims, (bool, np.bool_)):
        raise TypeError(f"`keepdims` has to be True or False, but is {keepdims!r}")
    if not keepdims:
        return shape_without(shape, axes)
    return tuple(1 if axis in axes else n for axis, n in enumerate(shape))


def rows_along(array: npt.NDArray[Any], axes: tuple[int, ...]) -> npt.NDArray[Any]:
    """The slices along some axes as rows: a view where there can be one."""
    if axes == (array.ndim - 1,):  # quicker
        return array if array.ndim == 2 else array.reshape(-1, array.shape[-1])
    moved = _last(array, axes)
    if moved.ndim == 2 and len(axes) == 1:
        return moved
    return moved.reshape(-1, math.prod(moved.shape[moved.ndim - len(axes) :]))


def _last(array: npt.NDArray[Any], axes: tuple[int, ...]) -> npt.NDArray[Any]:
    """A view with these axes at the end."""
    return np.moveaxis(array, axes, range(-len(axes), 0))


def _is_in_the_way(
    into: npt.NDArray[Any], rows: npt.NDArray[Any], result: npt.NDArray[Any]
) -> bool:
    """Whether rows cannot be written there: into a copy, with gaps, or over some yet to be read."""
    if into is not result and not np.may_share_memory(into, result):
        return True
    if not into.flags.aligned or (into.shape[1] > 1 and into.strides[1] != into.itemsize):
        return True
    if into is rows or not np.may_share_memory(into, rows):
        return False
    in_place = (
        into.__array_interface__["data"] == rows.__array_interface__["data"]
        and into.shape == rows.shape
        and into.strides == rows.strides
        and into.dtype == rows.dtype
    )
    return not in_place


def _check_temperature(
    temperature: Any, shape: tuple[int, ...]
) -> tuple[float, npt.NDArray[np.float64] | None]:
    """The temperature of all slices, or those of each, as many as `shape` holds."""
    if temperature is None:
        return 1.0, None
    if type(temperature) is float and temperature >= 0.0:  # quicker
        return temperature + 0.0, None  # -0.0 is 0.0
    low, text = Temperature.range.low, str(Temperature.range)
    t = check_reals("temperature", temperature, low, text, shape)
    return (t, None) if isinstance(t, float) else (1.0, np.ascontiguousarray(t).reshape(-1))


def _check_where(where: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    array = as_array("where", where)
    if array.dtype.kind != "b":
        raise TypeError(f"`where` has to be an array of bool, but is {where!r}")
    return check_broadcast("where", array, shape)


# -------------------------------------------------------------------------------------- sigmoid


@helps
def sigmoid(x: Any, *, temperature: float | None = 1.0) -> Any:
    """Return 1 / (1 + exp(-x / temperature)), the softmax of two entries whose difference is x.

    ``softmax([a, b])[0]`` is ``sigmoid(a - b)``.

    Parameters
    ----------
    x : array_like or float
        float16, bfloat16, float32 or float64, of any shape; integers, bools and lists become
        float64.
    temperature : float, in [0, inf], off at 1 or None
        0 is the limit: 0 below 0, 1 above, 1/2 at 0. inf gives 1/2 everywhere.

    Returns
    -------
    array, tensor or scalar
        float64 for float64, within a relative 2e-13, else float32, within 4 ULP; a tensor for a
        tensor. -inf gives 0, +inf gives 1, NaN gives NaN.

    Raises
    ------
    TypeError
        If `x` is not an array of numbers or requires grad, or the temperature is not a
        number.
    ValueError
        If the temperature is out of its range.

    See Also
    --------
    softmax : for more than two outcomes.

    Examples
    --------
    >>> from sampler import sigmoid, softmax
    >>> sigmoid([0.0, 2.0]).round(3)
    array([0.5  , 0.881])
    >>> softmax([5.0, 3.0]).round(3)
    array([0.881, 0.119])
    """
    source = _inputs.read(x, name="x", numbers=True)
    t = np.float64(_check_temperature(temperature, ())[0])
    values = source.widened().astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        z = values / t
    z = np.where(values == 0.0, 0.0, z)  # also at temperature 0
    z = np.where(np.isinf(values), values, z)  # also at temperature inf
    # exp(-|z|) never overflows, and 1 + it is never far from 1.
    small = np.exp(-np.abs(z))
    return to_container(np.where(z >= 0.0, 1.0, small) / (1.0 + small), source)


# ---------------------------------------------------------------------------------- derivatives


@helps
def softmax_jacobian(p: Any, *, temperature: float | None = 1.0) -> Any:
    """Return the derivatives of a softmax with respect to its input: (diag(p) - p p') / T.

    Entry [..., i, j] is the derivative of p[i] with respect to x[j]. It takes K * K numbers; to
    multiply by the matrix there are `softmax_vjp` and `softmax_jvp`, which never form it.

    Parameters
    ----------
    p : array_like, shape (..., K)
        What `softmax` returned, along its last axis.
    temperature : float, in (0, inf], off at 1 or None
        What it was given.

    Returns
    -------
    array or tensor, shape (..., K, K)
        float64 for float64, else float32; a tensor for a tensor. Symmetric; rows sum to 0 as
        exactly as `p` sums to 1.

    Raises
    ------
    TypeError
        If `p` is not an array of numbers or requires grad, or the temperature is not a
        number.
    ValueError
        If `p` is a scalar, or the temperature out of its range.

    See Also
    --------
    softmax_jvp : its product with a vector, without the matrix.
    softmax_vjp : its product with a vector from the left.

    Examples
    --------
    >>> from sampler import softmax, softmax_jacobian
    >>> softmax_jacobian(softmax([0.0, 0.0], temperature=2.0), temperature=2.0)
    array([[ 0.125, -0.125],
           [-0.125,  0.125]])
    """
    source = read_classes(p, "p")
    t = check_positive(temperature, ())
    q = source.widened().astype(np.float64)
    result = -q[..., :, None] * q[..., None, :]
    diagonal = np.arange(q.shape[-1])
    result[..., diagonal, diagonal] += q
    with np.errstate(over="ignore", invalid="ignore"):
        return to_container(result / t, source)


@helps
def softmax_jvp(p: Any, v: Any, *, temperature: Any = 1.0, axis: AnyAxis = -1) -> Any:
    """Return J v, J being the `softmax_jacobian` of each slice: p * (v - sum(p * v)) / T.

    How the probabilities change when their input moves along v.

    Parameters
    ----------
    p : array_like
        What `softmax` returned.
    v : array_like
        Broadcasts to the shape of `p`.
    temperature : float or array_like of them, in (0, inf], off at 1 or None
        What `softmax` was given: one for all, or an array that broadcasts to the shape of `p`
        without `axis`.
    axis : int, tuple of int, or None
        The axis or axes along which `p` sums to 1.

    Returns
    -------
    array or tensor, of the shape of `p`
        float64 for float64, else float32; a tensor for a tensor. It sums to 0 along the axis.

    Raises
    ------
    TypeError
        If `p` or `v` is not an array of numbers or requires grad, or a parameter has the
        wrong type.
    ValueError
        If a parameter is out of its range or does not broadcast.

    See Also
    --------
    softmax_vjp : from the other side.
    softmax_jacobian : the whole matrix.

    Examples
    --------
    >>> from sampler import softmax, softmax_jvp
    >>> softmax_jvp(softmax([0.0, 0.0]), [1.0, 0.0])
    array([ 0.25, -0.25])
    """
    return _jacobian_times(p, v, "v", temperature, axis)


@helps
def softmax_vjp(p: Any, g: Any, *, temperature: Any = 1.0, axis: AnyAxis = -1) -> Any:
    """Return g J, J being the `softmax_jacobian` of each slice: p * (g - sum(p * g)) / T.

    The backward pass: if g is the gradient of a loss with respect to the softmax's output, this is
    its gradient with respect to the input. J is symmetric, so this is `softmax_jvp` with g in place
    of v, whose parameters, results and errors it has.

    See Also
    --------
    softmax_jvp : from the other side.
    softmax_jacobian : the whole matrix.

    Examples
    --------
    >>> from sampler import softmax, softmax_vjp
    >>> softmax_vjp(softmax([0.0, 0.0]), [1.0, 0.0])
    array([ 0.25, -0.25])
    """
    return _jacobian_times(p, g, "g", temperature, axis)


def _jacobian_times(p: Any, vector: Any, name: str, temperature: Any, axis: Any) -> Any:
    source = _inputs.read(p, name="p", numbers=True)
    q = source.widened().astype(np.float64)
    axes = check_axes(axis, q.ndim)
    t = check_positive(temperature, shape_without(q.shape, axes))
    v = _inputs.read(vector, name=name, numbers=True).widened()
    v = check_broadcast(name, v, q.shape)
    # Over the sum of p, which float32 leaves a little off 1, so that what all have in common goes.
    with np.errstate(invalid="ignore"):
        mean = np.sum(q * v, axis=axes, keepdims=True) / np.sum(q, axis=axes, keepdims=True)
        result = q * (v - mean)
    return to_container(result / (np.expand_dims(t, axes) if t.ndim else t), source)


@helps
def softmax_dtemperature(x: Any, *, temperature: Any = 1.0, axis: AnyAxis = -1) -> Any:
    """Return the derivative of `softmax` with respect to its temperature.

    It is p * (sum(p * x) - x) / T**2: tokens above the mean lose probability as the temperature
    rises.

    Parameters
    ----------
    x, axis
        As for `softmax`.
    temperature : float or array_like of them, in (0, inf], off at 1 or None
        As for `softmax`, except that at 0 there is no derivative.

    Returns
    -------
    array or tensor, of the shape of `x`
        float64 for float64, else float32; a tensor for a tensor. It sums to 0 along the axis; 0 for
        entries at -inf; NaN for slices whose softmax is.

    Raises
    ------
    TypeError, ValueError
        As `softmax`.

    See Also
    --------
    sampler.temperature.fit_temperature : finds a temperature by it.

    Examples
    --------
    >>> from sampler import softmax_dtemperature
    >>> softmax_dtemperature([1.0, 0.0]).round(4)
    array([-0.1966,  0.1966])
    """
    source = _inputs.read(x, name="x", numbers=True)
    values = source.widened().astype(np.float64)
    axes = check_axes(axis, values.ndim)
    t = check_positive(temperature, shape_without(values.shape, axes))
    p = softmax(values, temperature=t, axis=axes)
    # At half the size where differences might overflow: p is the same, and so is dp / d(T / 2) / 2.
    scale = 0.5 if np.max(values, initial=0.0, where=values < np.inf) >= 2.0**969 else 1.0
    values, t = values * scale, np.maximum(t * scale, 5e-324)
    if values.size:
        with np.errstate(invalid="ignore"):  # of slices that are NaN already
            values = values - np.max(values, axis=axes, keepdims=True)
    values = np.where(p == 0.0, 0.0, values)  # no 0 * inf
    t = np.expand_dims(t, axes) if t.ndim else t
    mean = np.sum(p * values, axis=axes, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        return to_container(p * (mean - values) / t / t * scale, source)


def read_classes(x: Any, name: str) -> _inputs.Logits:
    source = _inputs.read(x, name=name, numbers=True)
    if source.array.ndim == 0:
        raise ValueError(f"`{name}` has to have at least one axis, but is a scalar")
    return source


def check_positive(temperature: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """The temperatures as an array of shape () or `shape`; 0 is refused."""
    number, array = _check_temperature(temperature, shape)
    t = np.array(number) if array is None else array.reshape(shape)
    if not t.all():
        raise ValueError(
            "`temperature` has to be in (0, inf], but is 0, where nothing has a derivative"
        )
    return t


def to_container(result: npt.NDArray[np.float64], source: _inputs.Logits) -> Any:
    """A result in the caller's kind of container, in the precision of its values."""
    return source.to_container(np.asarray(result, source.result_dtype))
