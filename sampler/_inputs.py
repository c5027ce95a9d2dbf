"""Any array in, the caller's container out.

`read` turns whatever holds logits into a NumPy array without copying where that is possible, and
`Logits` knows how to hand it to the core as words and how to give results back in kind. torch is
looked up among the modules already imported, never imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import _core

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

_INTEGERS = ("torch.int", "torch.uint", "torch.bool")  # how the names of such dtypes begin

# What sampler.torch has, with gradients: error messages name it.
WITH_GRADIENTS = (
    "cross_entropy", "distillation_loss", "entropy", "log_softmax", "logsumexp", "softmax",
)  # fmt: skip
_LOGITS = ("logits", "scores", "student", "teacher", "x")  # arguments that may be padded with -inf


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
    torch : module or None
        torch, if the caller's container is a tensor.
    tensor_is_bfloat16 : bool
        Whether that tensor is bfloat16, and not raw words.

    Notes
    -----
    Results go back to the caller in one of three ways. New floats, such as probabilities, keep the
    dtype that the core wrote: `to_container`. Logits that have been changed keep the caller's
    dtype: `to_dtype` rounds them, which is all that an `out` needs, and `to_original` puts what was
    rounded into the caller's container.
    """

    array: npt.NDArray[Any]
    kind: str
    code: int
    swapped: bool
    torch: Any = None
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
        """Return new floats as a tensor for a tensor; else as they are, a scalar for no axes."""
        if self.torch is not None:
            return self.torch.from_numpy(result)
        return result if result.ndim else result[()]

    def to_dtype(self, result: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Round a result of the core to the caller's dtype, in the array's own representation."""
        if self.kind == "bfloat16" and self.array.dtype.kind in "ui":
            return _round_to_bfloat16(result).view(self.array.dtype)
        return result.astype(self.array.dtype, copy=False)

    def to_original(self, array: npt.NDArray[Any]) -> Any:
        """Put an array of this representation into the caller's container."""
        if self.torch is None:
            return array
        tensor = self.torch.from_numpy(array)
        return tensor.view(self.torch.bfloat16) if self.tensor_is_bfloat16 else tensor

    def wrap(self, array: npt.NDArray[Any]) -> Any:
        """`to_original`, as `sampler.hf` calls it."""
        return self.to_original(array)


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
        float16, bfloat16, float32 or float64: NumPy or ml_dtypes arrays, CPU torch tensors,
        anything with ``__array__`` or DLPack on the CPU, lists of numbers (float64).
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
    torch = None
    if type(logits) is np.ndarray:
        array = logits
    elif is_tensor(logits):
        torch = sys.modules["torch"]
        array, is_bfloat16 = _from_torch(plain(logits, name, draws), torch, name, numbers)
        if is_bfloat16:
            if dtype is not None:
                raise _bad_words(name, "torch.bfloat16")
            return _raw_bfloat16(array, torch, True)
    else:
        array = _from_other(logits, name, numbers)
    if dtype is not None:
        if array.dtype.kind not in "ui" or array.dtype.itemsize != 2:
            raise _bad_words(name, str(array.dtype))
        if not array.dtype.isnative:
            raise _bad_words(name, f"{array.dtype} in the other byte order")
        return _raw_bfloat16(array, torch)
    found = _KINDS.get(array.dtype)
    if found is not None:
        return Logits._make((array, *found, torch, False))  # quicker than by keyword
    if array.dtype.name == "bfloat16":  # ml_dtypes
        return _raw_bfloat16(array, torch)
    if numbers and array.dtype.kind in "biu":
        return Logits._make((array.astype(np.float64), *_KINDS[_DOUBLE], torch, False))
    raise _bad_dtype(name, array.dtype)


def _raw_bfloat16(array: npt.NDArray[Any], torch: Any, tensor_is_bfloat16: bool = False) -> Logits:
    return Logits._make((array, *_BFLOAT16, torch, tensor_is_bfloat16))


def _bad_dtype(name: str, found: object) -> TypeError:
    hint = ": convert them to float32" if "int" in str(found) else ""
    return TypeError(
        f"`{name}` have to be float16, bfloat16, float32 or float64, but are {found}{hint}"
    )


def _bad_words(name: str, found: str) -> TypeError:
    return TypeError(f"`{name}` have to be 16-bit integers under dtype='bfloat16', but are {found}")


def is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def plain(tensor: Any, name: str, draws: bool = False) -> Any:
    """Return a tensor that NumPy can read: dense, on the CPU, without a graph, not negated."""
    torch = sys.modules["torch"]
    if tensor.layout is not torch.strided or tensor.is_nested:
        found = "are nested" if tensor.is_nested else f"have layout {tensor.layout}"
        hint = how_to_pad(name) if tensor.is_nested and name in _LOGITS else ""
        raise TypeError(f"`{name}` have to be a dense tensor, but {found}{hint}")
    if not tensor.is_cpu:
        raise TypeError(
            f"`{name}` have to be a tensor on the CPU, but are on {tensor.device}: move them "
            "there with `.cpu()`"
        )
    # Asking first is quicker than undoing what is not there.
    if tensor.requires_grad:
        if not draws and torch.is_grad_enabled():
            raise _cut_graph(name, tensor.ndim)
        tensor = tensor.detach()
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def how_to_pad(name: str) -> str:
    return f": pass torch.nested.to_padded_tensor({name}, -torch.inf)"


def _cut_graph(name: str, ndim: int) -> TypeError:
    # The function the caller knows: the outermost of this package.
    frame: FrameType | None = sys._getframe(1)
    function = ""
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "sampler":
        function, frame = frame.f_code.co_qualname, frame.f_back
    use = ""
    if function in WITH_GRADIENTS and name in (*_LOGITS, "targets", "temperature"):
        first = "divide the logits by it and " if name == "temperature" else ""
        # The classes of that one are along dimension 1 by default.
        last = " with dim=-1" if function == "cross_entropy" and ndim > 2 else ""
        use = f"{first}use sampler.torch.{function}{last}, or "
    return TypeError(
        f"`{name}` requires grad, and {function} would cut its graph without a word: {use}pass "
        f"{name}.detach()"
    )


def _from_torch(tensor: Any, torch: Any, name: str, numbers: bool) -> tuple[npt.NDArray[Any], bool]:
    dtype = tensor.dtype
    if dtype is torch.bfloat16:
        # bfloat16 tensors refuse __array__ and DLPack; their words do not. No copy.
        return tensor.view(torch.uint16).numpy(), True
    if dtype is not torch.float32 and dtype not in (
        torch.float16, torch.float64, torch.int16, torch.uint16,
    ) and not (numbers and str(dtype).startswith(_INTEGERS)):  # fmt: skip
        raise _bad_dtype(name, dtype)
    array: npt.NDArray[Any] = tensor.numpy()
    return array, False


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
        raise TypeError(f"`{name}` have to be on the CPU, but are a {kind_of(value)} elsewhere")
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
    raise TypeError(f"`{name}` have to be an array of floats, but are a {kind_of(value)}")


def as_array(value: Any, name: str) -> npt.NDArray[Any]:
    """NumPy's array of a list; a TypeError if tensors in it would lose their graph."""
    try:
        return np.asarray(value)
    except RuntimeError as error:
        if "requires grad" not in str(error):
            raise
        raise TypeError(
            f"`{name}` have to be one tensor, but are a list of tensors, of which one requires "
            "grad: make one with torch.stack"
        ) from None


def _from_list(value: Any, name: str, numbers: bool) -> npt.NDArray[Any]:
    try:
        array = as_array(value, name)
    except ValueError as error:
        raise ValueError(f"`{name}` have to be rows of equal length: {error}") from None
    if array.dtype.kind not in ("biuf" if numbers else "iuf"):
        raise TypeError(f"`{name}` have to be numbers, but the list holds {array.dtype}")
    return array.astype(np.float64, copy=False)


def kind_of(value: Any) -> str:
    """Name the type of a value, for an error message."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


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
        raise ValueError(f"`{name}` have to hold at least one token a row, but have shape {shape}")


def check_out(
    out: Any, shape: tuple[int, ...], wanted: np.dtype[Any], dtype: object = None
) -> npt.NDArray[Any]:
    """Return the memory of `out`, an array or a tensor to write a result into."""
    if is_tensor(out) and out.is_neg():
        raise ValueError(
            "`out` has to be plain memory, but is a view that negates what it shows: pass another"
        )
    target = read(out, dtype, name="out")
    if not isinstance(out, np.ndarray) and target.torch is None:
        raise TypeError(f"`out` has to be an array or a tensor, but is a {kind_of(out)}")
    array = target.array
    if array.shape != shape or array.dtype != wanted:
        raise ValueError(
            f"`out` has to be {wanted} of shape {shape}, but is {array.dtype} of shape "
            f"{array.shape}"
        )
    if not array.flags.writeable:
        raise ValueError("`out` has to be writeable, but is read-only")
    return array
