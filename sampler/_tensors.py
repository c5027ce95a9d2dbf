"""What a tensor is: what NumPy can read of it, its gradient, how to make one of an array.

No other file looks into a tensor, except those of `sampler.torch` and `sampler.hf`, and
testing/_adapters.py, which import torch. Here it is looked up among the modules already imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor as Tensor  # noqa: PLC0414 -- for others to import
else:
    Tensor: TypeAlias = Any

_INTEGERS = ("torch.int", "torch.uint", "torch.bool")  # how the names of such dtypes begin

# What sampler.torch has, with gradients: error messages name it.
WITH_GRADIENTS = (
    "cross_entropy", "distillation_loss", "entropy", "log_softmax", "logsumexp", "softmax",
)  # fmt: skip
_LOGITS = ("logits", "scores", "student", "teacher", "x")  # arguments that may be padded with -inf


def _torch_of(value: Any) -> Any:
    """Return torch if a value is one of its tensors, else None."""
    torch = sys.modules.get("torch")
    return torch if isinstance(value, getattr(torch, "Tensor", ())) else None


def container_of(value: Any) -> Any:
    """Return what makes an array the caller's container again: a tensor for a tensor, else None."""
    torch = _torch_of(value)
    return None if torch is None else _maker(torch, value)


def _maker(torch: Any, tensor: Any) -> Callable[[npt.NDArray[Any]], Any]:
    # The one place that remembers what came in, and makes what goes out: on the same device.
    if tensor.is_cpu:
        return torch.from_numpy  # type: ignore[no-any-return]
    # An empty one does not keep the tensor's memory alive.
    return partial(_on_the_device, tensor.detach().new_empty(0))


def _on_the_device(like: Any, array: npt.NDArray[Any]) -> Any:
    if like.device.type == "mps" and array.dtype == np.float64:  # which MPS does not have
        array = array.astype(np.float32)
    host = sys.modules["torch"].from_numpy(array)
    return like.new_empty(host.shape, dtype=host.dtype).copy_(host)


def is_on_the_host(value: Any) -> bool:
    """Whether a value is no tensor on another device."""
    return _torch_of(value) is None or value.is_cpu


def is_negated(value: Any) -> bool:
    """Whether a value is a tensor whose memory holds the negatives of what it shows."""
    return _torch_of(value) is not None and value.is_neg()


def readable(value: Any, name: str) -> Any:
    """Make a tensor one that NumPy can read; leave other values as they are."""
    torch = _torch_of(value)
    return value if torch is None else _readable(torch, value, name, False)


def _readable(torch: Any, tensor: Any, name: str, draws: bool) -> Any:
    # NumPy can read what is dense, on the host, without a graph, and not negated.
    if tensor.layout is not torch.strided or tensor.is_nested:
        found = "are nested" if tensor.is_nested else f"have layout {tensor.layout}"
        hint = how_to_pad(name) if tensor.is_nested and name in _LOGITS else ""
        raise TypeError(f"`{name}` have to be a dense tensor, but {found}{hint}")
    # Asking first is quicker than undoing what is not there.
    if tensor.requires_grad:
        if not draws and torch.is_grad_enabled():
            raise _cut_graph(name, tensor.ndim)
        tensor = tensor.detach()
    if not tensor.is_cpu:
        tensor = _on_the_host(torch, tensor, name)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def _on_the_host(torch: Any, tensor: Any, name: str) -> Any:
    # The only place where logits leave a device.
    if tensor.device.type == "meta":
        raise TypeError(f"`{name}` have to hold numbers, but are on the meta device: it has none")
    if tensor.device.type != "cuda":
        return tensor.cpu()
    # Into memory that the card writes to by itself; then wait for what this stream has to do alone.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return host


def how_to_pad(name: str) -> str:
    """Say, at the end of an error message, how a nested tensor becomes dense."""
    return f": pass torch.nested.to_padded_tensor({name}, -torch.inf)"


def _cut_graph(name: str, ndim: int) -> TypeError:
    # The function the caller knows: the outermost of this package.
    frame: FrameType | None = sys._getframe(1)
    function = ""
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "sampler":
        if "<locals>" not in frame.f_code.co_qualname:  # as of what `helps`
            function = frame.f_code.co_qualname
        frame = frame.f_back
    use = ""
    if function in WITH_GRADIENTS and name in (*_LOGITS, "targets", "temperature"):
        first = "divide the logits by it and " if name == "temperature" else ""
        # The classes of that one are along dimension 1 by default.
        last = " with dim=-1" if function == "cross_entropy" and ndim > 2 else ""
        use = f"{first}use sampler.torch.{function}{last}, or "
    return TypeError(
        f"`{name}` requires grad, and {function} would silently cut its graph: {use}pass "
        f"{name}.detach()"
    )


def read_logits(
    value: Any, name: str, numbers: bool, draws: bool
) -> tuple[npt.NDArray[Any], Callable[[npt.NDArray[Any]], Any], bool] | None:
    """Return a tensor's memory as an array, what makes tensors of arrays, and if it is bfloat16.

    The array of a bfloat16 tensor holds its words. `numbers` allows all integers and bools; 16-bit
    integers are always allowed, since they may be such words. `draws` says that the result is
    tokens, which have no gradient: else it is a TypeError to cut a graph. What is not a tensor
    gives None.
    """
    torch: Any = sys.modules.get("torch")
    if not isinstance(value, getattr(torch, "Tensor", ())):  # quicker than `_torch_of`
        return None
    tensor = _readable(torch, value, name, draws)
    dtype = tensor.dtype
    if dtype is torch.bfloat16:
        # bfloat16 tensors refuse __array__ and DLPack; their words do not.
        return tensor.view(torch.uint16).numpy(), _maker(torch, value), True
    if dtype is not torch.float32 and dtype not in (
        torch.float16, torch.float64, torch.int16, torch.uint16,
    ) and not (numbers and str(dtype).startswith(_INTEGERS)):  # fmt: skip
        raise wrong_dtype(name, dtype)
    return tensor.numpy(), _maker(torch, value), False


def wrong_dtype(name: str, found: object) -> TypeError:
    """Name the dtype, of NumPy or of torch, that logits do not have."""
    hint = ": convert them to float32" if "int" in str(found) else ""
    return TypeError(
        f"`{name}` have to be float16, bfloat16, float32 or float64, but are {found}{hint}"
    )


def as_bfloat16(tensor: Any) -> Any:
    """Return 16-bit integers as the bfloat16 tensor that has these words."""
    return tensor.view(sys.modules["torch"].bfloat16)


def to_array(value: Any, name: str) -> npt.NDArray[Any]:
    """Return NumPy's array of a tensor, bfloat16 as float32, or of what `list_as_array` takes."""
    torch = _torch_of(value)
    if torch is None:
        return list_as_array(value, name)
    tensor = _readable(torch, value, name, False)
    return np.asarray(tensor.float() if tensor.dtype is torch.bfloat16 else tensor)


def list_as_array(value: Any, name: str) -> npt.NDArray[Any]:
    """Return NumPy's array of a list that may hold tensors, each of which NumPy can read."""
    try:
        return np.asarray(value)
    except (RuntimeError, TypeError) as error:  # in torch's words
        reasons = {"requires grad": "requires grad", "device type tensor": "is on a device"}
        found = [reason for words, reason in reasons.items() if words in str(error)]
        if not found:
            raise
        raise TypeError(
            f"`{name}` have to be one tensor, but are a list of tensors, of which one {found[0]}: "
            "make one with torch.stack"
        ) from None


def exp(value: Any) -> Any:
    """Return e to the power of an array or a tensor."""
    return np.exp(value) if _torch_of(value) is None else value.exp()
