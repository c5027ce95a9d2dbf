"""A tensor on a GPU that this machine does not have: it says so, and hides its memory.

While `There` is on, torch has that GPU: what is asked for on it, or made of tensors on it, is on
it. It is as strict as one: its tensors never become NumPy arrays, and do not mix with the CPU's.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")

# What takes tensors of the CPU next to its own.
_MIXES = {"_to_copy", "copy_", "__getitem__", "__setitem__"}
# What is about the tensor, and not its numbers.
_OWN = {"__get__", "__set__", "detach", "requires_grad_", "numpy", "__array__", "__dlpack__"}


class Elsewhere(torch.Tensor):
    @staticmethod
    def __new__(cls, inner, device=CUDA):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=device, requires_grad=inner.requires_grad,
        )  # fmt: skip

    def __init__(self, inner, device=CUDA):
        self.inner = inner

    def _refuse(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    numpy = __array__ = __dlpack__ = _refuse

    # Results are of the class that `run` gives them.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.inner.tolist()

    def __reduce_ex__(self, protocol):
        return Elsewhere, (self.inner, self.device)

    def __repr__(self, **kwargs):
        return f"Elsewhere({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return run(function, function.overloadpacket.__name__, args, kwargs or {})


def to_device(tensor, device=CUDA):
    """A copy on the device."""
    return Elsewhere(tensor.detach().clone(), device).requires_grad_(tensor.requires_grad)


def run(function, name, args, kwargs):
    """Call a function of torch with the tensors inside; what it returns is on the device."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in given if isinstance(x, Elsewhere)]
    mixed = any(x.ndim and not isinstance(x, Elsewhere) for x in given)
    assert not (there and mixed) or name in _MIXES, f"{name} mixes tensors of two devices"
    device = kwargs.get("device", there[0].device if there else CUDA)
    bare = tree_map(lambda x: x.inner if isinstance(x, Elsewhere) else x, (args, kwargs))
    if "device" in kwargs:
        bare[1]["device"] = CPU
    result = function(*bare[0], **bare[1])

    def put(x):
        if type(x) is not torch.Tensor or torch.device(device) == CPU:
            return x
        assert device.type != "mps" or x.dtype is not torch.float64, "MPS has no float64"
        # What an operation in place returns is what it was given.
        same = [one for one in there if one.inner is x]
        return same[0] if same else Elsewhere(x, device)

    return args[0] if name == "copy_" else tree_map(put, result)


class There(TorchFunctionMode):
    """Makes a device one that torch has.

    Attributes
    ----------
    pinned : list of int
        How many bytes the tensors in pinned memory have.
    """

    def __init__(self, device=CUDA):
        super().__init__()
        self.device, self.pinned = device, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        if name in ("to", "cpu") and isinstance(args[0], torch.Tensor):
            return self._move(name, *args, **kwargs)
        if kwargs.pop("pin_memory", False):
            result = function(*args, **kwargs)
            self.pinned.append(result.nbytes)
            return result
        asked = kwargs.get("device")
        if isinstance(asked, (str, int)):
            asked = kwargs["device"] = torch.device(asked)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Elsewhere)]
        if name in _OWN or any(x.requires_grad for x in given):
            return function(*args, **kwargs)
        if given or (asked is not None and asked.type == self.device.type):
            with torch._C.DisableTorchFunction():
                return run(function, name, args, kwargs)
        return function(*args, **kwargs)

    def _move(self, name, tensor, *args, **kwargs):
        """Copy a tensor to a device, to a dtype, or both."""
        device, dtype, copies = tensor.device, tensor.dtype, kwargs.get("copy", False)
        for one in (*args, *kwargs.values(), *(["cpu"] if name == "cpu" else [])):
            if isinstance(one, (str, torch.device)):
                device = torch.device(one)
            elif isinstance(one, torch.dtype):
                dtype = one
            elif isinstance(one, torch.Tensor):
                device, dtype = one.device, one.dtype
        if device.type == tensor.device.type and dtype is tensor.dtype and not copies:
            return tensor
        bare = tensor.inner if isinstance(tensor, Elsewhere) else tensor
        with torch._C.DisableTorchFunction():
            bare = bare.detach().to(dtype, copy=True)
            if device.type != self.device.type:
                return bare.to(device)
        assert device.type != "mps" or dtype is not torch.float64, "MPS has no float64"
        return Elsewhere(bare, self.device)
