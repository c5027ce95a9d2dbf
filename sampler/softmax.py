"""The softmax family: softmax, log_softmax, logsumexp, with a temperature."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sampler import _core, _inputs
from sampler._checks import check_integer, check_real


def softmax(x: Any, temperature: float | None = 1.0, axis: int = -1, out: Any = None) -> Any:
    """Return exp(x / temperature) over its sum along an axis.

    Parameters
    ----------
    x : array_like
        float16, bfloat16, float32 or float64, of one or more axes; lists become float64.
    temperature : float, in [0, inf], off at 1 or None
        0 is the limit: the largest entries share equally (a sampler at temperature 0 takes the
        first of them). inf gives every entry but -inf the same share.
    axis : int
        The axis that sums to 1.
    out : array or tensor, optional
        Where to write, of the shape and dtype of the result; may be `x` itself.

    Returns
    -------
    array or tensor
        float64 for float64, else float32; a tensor for a tensor.

    Raises
    ------
    TypeError
        If `x` is no array of floats on the CPU, or a parameter has the wrong type.
    ValueError
        If a parameter is out of its range, or `out` does not fit.

    Notes
    -----
    float32 results are within 4 ULP of the exact value, down through the subnormals, and sum to
    1 within 3e-7; float64 results are within a relative 2e-13. Larger entries never get less. An
    entry of -inf gets exactly 0. Values never raise: a slice with NaN or +inf, or -inf
    throughout, is NaN.

    Under ``torch.set_flush_denormal(True)`` the processor flushes subnormal results to zero.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler import softmax
    >>> softmax(np.array([1.0, 3.0, 2.0, -np.inf])).round(3)
    array([0.09 , 0.665, 0.245, 0.   ])
    """
    return _apply(x, temperature, axis, out, _core.SOFTMAX)


def log_softmax(x: Any, temperature: float | None = 1.0, axis: int = -1, out: Any = None) -> Any:
    """Return x / temperature less its logsumexp along an axis.

    Parameters and errors are those of `softmax`.

    Returns
    -------
    array or tensor
        float64 for float64, else float32; a tensor for a tensor. Within 4 ULP of
        max(1, |value|); -inf where `x` is.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler import log_softmax
    >>> log_softmax(np.array([1.0, 3.0, 2.0, -np.inf])).round(3)
    array([-2.408, -0.408, -1.408,   -inf])
    """
    return _apply(x, temperature, axis, out, _core.LOG_SOFTMAX)


def logsumexp(x: Any, temperature: float | None = 1.0, axis: int = -1, out: Any = None) -> Any:
    """Return log(sum(exp(x / temperature))) along an axis, which the result lacks.

    Parameters and errors are those of `softmax`; a slice of -inf throughout gives -inf.

    Returns
    -------
    array, tensor or scalar
        float64 for float64, else float32; a tensor for a tensor.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler import logsumexp
    >>> logsumexp(np.array([0.0, 0.0])).round(6)
    np.float64(0.693147)
    """
    return _apply(x, temperature, axis, out, _core.LOGSUMEXP)


def _apply(x: Any, temperature: Any, axis: Any, out: Any, what: int) -> Any:
    if temperature is None:
        temperature = 1.0
    temperature = check_real("temperature", temperature, 0.0, math.inf, "a float in [0, inf]")
    source = _inputs.read(x, name="x")
    array = source.array
    if array.ndim == 0:
        raise ValueError("`x` has to have at least one axis, but is a scalar")
    axis = check_integer(
        "axis", axis, -array.ndim, array.ndim, f"an integer in [{-array.ndim}, {array.ndim})"
    )
    last = np.moveaxis(array, axis, -1)
    shape = last.shape[:-1] if what == _core.LOGSUMEXP else array.shape
    target = None if out is None else _inputs.check_out(out, shape, source.result_dtype)

    rows = _inputs.Logits(
        last.reshape(-1, last.shape[-1]) if last.size else np.empty((0, 1), array.dtype),
        source.kind,
        source.code,
        source.swapped,
    ).rows()
    width = 1 if what == _core.LOGSUMEXP else rows.vocab
    result = np.empty((rows.batch, width), source.result_dtype)
    _core.softmax_rows(rows, temperature, what, result)
    if what == _core.LOGSUMEXP:
        # The sum over nothing is exp(-inf).
        result = result.reshape(shape) if last.size else np.full(shape, -np.inf, result.dtype)
    else:
        result = np.moveaxis(result.reshape(last.shape), -1, axis)
    if target is not None:
        target[...] = result
        return out
    result = np.ascontiguousarray(result) if result.ndim else result
    if source.torch is not None:
        return source.torch.from_numpy(result)
    return result if result.ndim else result[()]
