"""Turn a language model's logits into tokens: exactly, fast, reproducibly.

`Sampler` is where to start; `help(sampler.Sampler)` lists the settings. The modules `sampler.hf`,
`sampler.torch`, `sampler.temperature`, `sampler.testing` and `sampler.reference` are imported when
they are first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from typing import TYPE_CHECKING

try:
    from sampler import _core as _core
except ImportError as error:
    raise ImportError(
        "sampler's compiled core is missing: "
        + (
            "another project, which the package index has as `sampler`, is installed over this "
            "one. Uninstall both, then install this one from its clone."
            if any(one.name == "sampler" for one in distributions())
            else "you may be importing the source tree, where `pip install -e .` builds it; an "
            "installed sampler is found from any other directory."
        )
    ) from error

from sampler import _names as _names
from sampler import stages as _stages
from sampler._build import build_info
from sampler._cross_entropy import cross_entropy, cross_entropy_grad
from sampler.api import Distribution, Sampler, Samples
from sampler.softmax import (
    log_softmax,
    logsumexp,
    sigmoid,
    softmax,
    softmax_dtemperature,
    softmax_jacobian,
    softmax_jvp,
    softmax_vjp,
)
from sampler.stages.cuts import *  # noqa: F403 -- every stage; each __all__ lists them
from sampler.stages.edits import *  # noqa: F403
from sampler.stages.memories import *  # noqa: F403
from sampler.stages.scales import *  # noqa: F403

if TYPE_CHECKING:
    from sampler import hf as hf
    from sampler import reference as reference
    from sampler import temperature as temperature
    from sampler import testing as testing
    from sampler import torch as torch

try:
    __version__ = version("token-sampler")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = [
    "Distribution",
    "Sampler",
    "Samples",
    "__version__",
    "build_info",
    "cross_entropy",
    "cross_entropy_grad",
    "log_softmax",
    "logsumexp",
    "sigmoid",
    "softmax",
    "softmax_dtemperature",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
]
__all__ += _stages.__all__

_MODULES = ("hf", "reference", "temperature", "testing", "torch")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"sampler.{name}")
    hint = f": write sampler.hf.{name}" if name in _names.IN_HF else ""
    raise AttributeError(f"module 'sampler' has no attribute '{name}'{hint}")


def __dir__() -> list[str]:
    # Modules only once they are imported: tools that read what is listed would import them all.
    return sorted([*__all__, *(name for name in _MODULES if name in globals())])
