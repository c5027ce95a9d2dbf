"""Any array in, the caller's container out.

`read` turns whatever holds logits into a NumPy array without copying where that is possible, and
`Logits` knows how to hand it to the core as words and how to give results back in kind. What a
tensor is, `_tensors` knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import _core, _tensors
from sampler._tensors import read_logits, wrong_dtype

_CPU = 1  # DLPack's device type
_BFLOAT16_MAX = 3.3895313892515355e38
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)

# dtype -> (name, number in the core, whether the bytes are swapped)
_KINDS: dict[np.dtype[Any], tuple[str, int, bool]] = {
    np.dtype(order + code): (
        np.dtype(code).name,
        _core.KINDS[np.dtype(code).name],
        not np.dtype(order + code).isnative,
    )
    for code in ("f2", "f4", "f8")
    for order in "<>"
}
_BFLOAT16 = ("bfloat16", _core.KINDS["bfloat16"], False)


class Logits(NamedTuple):
    """Logits as a NumPy array of floats, or of raw words where NumPy has no such float.

    Attributes
    ----------
    array : ndarray
        Never written to.
    kind : str
        "float16", "bfloat16", "float32" or "float64".
    code, swapped
        The kind's number in the core, and whether the bytes are swapped.
    to_tensor : callable or None
        Makes a tensor of an array, if the caller's container is a tensor.
    tensor_is_bfloat16 : bool
        Whether that tensor is bfloat16, and not raw words.

    Notes
    -----
    Results go back to the caller in one of three ways. New numbers, such as tokens, keep the dtype
    that the core wrote: `to_container`. Logits that have been changed keep the caller's dtype:
    `to_dtype` rounds them, which is all that an `out` needs, and `to_original` puts what was
    rounded into the caller's container.
    """

    array: npt.NDArray[Any]
    kind: str
    code: int
    swapped: bool
    to_tensor: Callable[[npt.NDArray[Any]], Any] | None = None
    tensor_is_bfloat16: bool = False

    @property
    def batch(self) -> int:
        """How many rows the 1-D or 2-D array holds."""
        return self.array.shape[0] if self.array.ndim == 2 else 1

    @property
    def limit(self) -> float:
        """The largest finite number of the dtype."""
        return _BFLOAT16_MAX if self.kind == "bfloat16" else float(np.finfo(self.kind).max)

    @property
    def result_dtype(self) -> np.dtype[Any]:
        """The dtype the core writes for this kind: float64 for float64, else float32."""
        return _DOUBLE if self.kind == "float64" else _SINGLE

    def rows(self) -> _core.Rows:
        """Hand the core its view of the 1-D or 2-D array."""
        array = self.array
        if array.dtype.kind == "V":  # a bfloat16 of ml_dtypes, which does not export its memory
            array = array.view(np.uint16)
        return _core.Rows(array, self.code, self.swapped)

    def widened(self) -> npt.NDArray[Any]:
        """The values as float32, or float64 for float64, in native order."""
        return widen(self.array, self.kind).astype(self.result_dtype, copy=False)

    def masked(self, removed: npt.NDArray[np.bool_]) -> Logits:
        """The same with -inf in some places."""
        array = np.where(removed, self.result_dtype.type(-np.inf), self.widened())
        return self._replace(
            array=array, kind=array.dtype.name, code=_core.KINDS[array.dtype.name], swapped=False
        )

    def to_container(self, result: npt.NDArray[Any]) -> Any:
        """Return new numbers as a tensor for a tensor; else as they are, a scalar for no axes."""
        if self.to_tensor is not None:
            return self.to_tensor(result)
        return result if result.ndim else result[()]

    def to_dtype(self, result: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Round a result of the core to the caller's dtype, in the array's own representation."""
        if self.kind == "bfloat16" and self.array.dtype.kind in "ui":
            return _round_to_bfloat16(result).view(self.array.dtype)
        return result.astype(self.array.dtype, copy=False)

    def to_original(self, array: npt.NDArray[Any]) -> Any:
        """Put an array of this representation into the caller's container."""
        if self.to_tensor is None:
            return array
        tensor = self.to_tensor(array)
        return _tensors.as_bfloat16(tensor) if self.tensor_is_bfloat16 else tensor


def widen(array: npt.NDArray[Any], kind: str) -> npt.NDArray[Any]:
    """The values as NumPy calculates with them: bfloat16 as float32, others as they are."""
    if kind != "bfloat16":
        return array
    return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _round_to_bfloat16(x: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    # Round to nearest, ties to even, on the bits; there are no NaNs among the core's results.
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def read(
    logits: Any,
    dtype: object = None,
    name: str = "logits",
    *,
    numbers: bool = False,
    draws: bool = False,
) -> Logits:
    """Take logits of any number of axes from any supported container.

    Parameters
    ----------
    logits : array_like
        float16, bfloat16, float32 or float64: NumPy or ml_dtypes arrays, torch tensors on any
        device, anything with ``__array__`` or DLPack on the CPU, lists of numbers (float64).
    dtype : {None, "bfloat16"}
        "bfloat16" reads 16-bit integers as raw bfloat16 words.
    name : str
        How error messages call it.
    numbers : bool
        Whether integers, bools and single numbers become float64 as well.
    draws : bool
        Whether the result is tokens, which have no gradient: only then a tensor may require one.

    Raises
    ------
    TypeError
        If the container or its dtype is not one of these; it is named. If a graph would be cut.
    """
    if not (dtype is None or (isinstance(dtype, str) and dtype == "bfloat16")):
        raise ValueError(f"`dtype` has to be None or 'bfloat16', but is {dtype!r}")
    to_tensor = None
    if type(logits) is np.ndarray:
        array = logits
    elif (found := read_logits(logits, name, numbers, draws)) is not None:
        array, to_tensor, is_bfloat16 = found
        if is_bfloat16:
            if dtype is not None:
                raise _bad_words(name, "torch.bfloat16")
            return _raw_bfloat16(array, to_tensor, True)
    else:
        array = _from_other(logits, name, numbers)
    if dtype is not None:
        if array.dtype.kind not in "ui" or array.dtype.itemsize != 2:
            raise _bad_words(name, str(array.dtype))
        if not array.dtype.isnative:
            raise _bad_words(name, f"{array.dtype} in the other byte order")
        return _raw_bfloat16(array, to_tensor)
    kind = _KINDS.get(array.dtype)
    if kind is not None:
        return Logits._make((array, *kind, to_tensor, False))  # quicker than by keyword
    if array.dtype.name == "bfloat16":  # ml_dtypes
        return _raw_bfloat16(array, to_tensor)
    if numbers and array.dtype.kind in "biu":
        return Logits._make((array.astype(np.float64), *_KINDS[_DOUBLE], to_tensor, False))
    raise wrong_dtype(name, array.dtype)


def _raw_bfloat16(
    array: npt.NDArray[Any], to_tensor: Any, tensor_is_bfloat16: bool = False
) -> Logits:
    return Logits._make((array, *_BFLOAT16, to_tensor, tensor_is_bfloat16))


def _bad_words(name: str, found: str) -> TypeError:
    return TypeError(f"`{name}` have to be 16-bit integers under dtype='bfloat16', but are {found}")


def _from_other(value: Any, name: str, numbers: bool) -> npt.NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"`{name}` have to be an array without a mask, but are a masked array: fill it with "
            "-inf where a token is not allowed"
        )
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    if isinstance(value, (list, tuple)) or (numbers and isinstance(value, (bool, int, float))):
        return _from_list(value, name, numbers)
    device = getattr(value, "__dlpack_device__", None)
    if device is not None and device()[0] != _CPU:
        raise TypeError(f"`{name}` have to be on the CPU, but are {kind_of(value)} elsewhere")
    if hasattr(value, "__array__"):
        return np.asarray(value).view(np.ndarray)
    if device is not None:
        return np.from_dlpack(value)
    try:
        return np.asarray(memoryview(value))
    except TypeError:
        pass
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _from_list(value, name, numbers)
    hint = ": take the last position of its logits, .logits[:, -1]" * hasattr(value, "logits")
    raise TypeError(f"`{name}` have to be an array of floats, but are {kind_of(value)}{hint}")


def _from_list(value: Any, name: str, numbers: bool) -> npt.NDArray[Any]:
    try:
        array = _tensors.list_as_array(value, name)
    except ValueError as error:
        raise ValueError(f"`{name}` have to be rows of equal length: {error}") from None
    if array.dtype.kind not in ("biuf" if numbers else "iuf"):
        raise TypeError(f"`{name}` have to be numbers, but the list holds {array.dtype}")
    return array.astype(np.float64, copy=False)


def kind_of(value: Any) -> str:
    """Name the type of a value, for an error message: "a str", "an int", "a torch.Tensor"."""
    kind = type(value)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def check_rows(logits: Logits, name: str = "logits", axes: Sequence[int] = (1, 2)) -> None:
    """Refuse logits that are not one row, or not a batch of rows, of at least one token."""
    shape = logits.array.shape
    if len(shape) not in axes:
        if axes == (1,):
            hint = f": give one of its rows, such as {name}[0]" if len(shape) == 2 else ""
            raise ValueError(f"`{name}` has to be 1-D, but has shape {shape}{hint}")
        wanted = " or ".join(f"{n}-D" for n in axes)
        hint = f": take one position, such as {name}[:, -1]" if len(shape) == 3 else ""
        raise ValueError(f"`{name}` have to be {wanted}, but have shape {shape}{hint}")
    if shape[-1] == 0:
        raise ValueError(
            f"`{name}` have to hold at least one token per row, but have shape {shape}"
        )


def check_out(
    out: Any, shape: tuple[int, ...], wanted: np.dtype[Any], dtype: object = None
) -> npt.NDArray[Any]:
    """Return the memory of `out`, an array or a tensor to write a result into."""
    if _tensors.is_negated(out):
        raise ValueError(
            "`out` is a view that shows its memory negated, so nothing can be written to it: pass "
            "another array"
        )
    if not _tensors.is_on_the_host(out):
        raise TypeError(
            f"`out` has to be on the CPU, but is on {out.device}: leave it out, and the result is "
            "on the device of the input"
        )
    target = read(out, dtype, name="out")
    if not isinstance(out, np.ndarray) and target.to_tensor is None:
        raise TypeError(f"`out` has to be an array or a tensor, but is {kind_of(out)}")
    array = target.array
    if array.shape != shape or array.dtype != wanted:
        raise ValueError(
            f"`out` has to be {wanted} of shape {shape}, but is {array.dtype} of shape "
            f"{array.shape}"
        )
    if not array.flags.writeable:
        raise ValueError("`out` has to be writeable, but is read-only")
    return array
