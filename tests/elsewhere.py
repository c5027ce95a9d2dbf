"""A tensor on a device that this machine does not have: it says so, and hides its memory.

`Elsewhere` runs torch's operations on the CPU, and is as strict as a device: it never becomes a
NumPy array, and does not go with tensors of the CPU. `to_device` makes one; while `there` is on, so
does everything of torch that is asked for a tensor on the device.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)

# What takes tensors of the CPU next to its own.
_MIXES = {"_to_copy", "copy_", "index", "index_put_"}


class Elsewhere(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE, requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner):
        self.inner = inner

    def _refuse(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    numpy = __array__ = __dlpack__ = _refuse

    # Results are of the class that `__torch_dispatch__` gives them.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.inner.tolist()

    # torch looks for the device before it dispatches these.
    def __getitem__(self, index):
        return Elsewhere(self.inner[_bare(index)])

    def __setitem__(self, index, value):
        self.inner[_bare(index)] = _bare(value)

    def __deepcopy__(self, memo):
        return to_device(self.inner.clone())

    def __repr__(self, **kwargs):
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), function.overloadpacket.__name__
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, torch.Tensor) and not isinstance(value, cls) and value.ndim:
                assert name in _MIXES, f"{name} mixes tensors of two devices"
        to_cpu = kwargs.get("device") == torch.device("cpu")
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        result = function(*_bare(args), **_bare(kwargs))
        if name.endswith("_"):
            return args[0]
        return result if to_cpu else tree_map(_put, result)


def _bare(tree):
    return tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, tree)


def _put(value):
    return Elsewhere(value) if type(value) is torch.Tensor else value


def to_device(tensor):
    """A copy on the device."""
    copy = Elsewhere(tensor.detach().clone())
    return copy.requires_grad_(tensor.requires_grad)


def _is_device(value):
    named = isinstance(value, (str, torch.device)) and str(value).startswith(DEVICE.type)
    return named or type(value) is int


class There(TorchFunctionMode):
    """Makes the device one that torch has."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        moves = getattr(function, "__name__", "") == "to" and isinstance(args[0], torch.Tensor)
        if moves and any(_is_device(value) for value in args[1:2]):
            args, kwargs = (args[0], *args[2:]), {**kwargs, "device": DEVICE}
        if _is_device(kwargs.get("device")):
            if moves:
                given = (
                    args[0] if isinstance(args[0], Elsewhere) else _put(args[0].detach().clone())
                )
                kwargs = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking")}
                return function(given, *args[1:], **kwargs) if args[1:] or kwargs else given
            return _put(function(*args, **{**kwargs, "device": "cpu"}))
        return function(*args, **kwargs)
