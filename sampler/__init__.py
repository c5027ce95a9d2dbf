"""Turn a language model's logits into tokens: exactly, fast, reproducibly."""

from importlib.metadata import PackageNotFoundError, version

try:
    from sampler import _core as _core
except ImportError as error:
    raise ImportError(
        "sampler's compiled core is missing: you may be importing the source tree, where "
        "`pip install -e .` builds it; an installed sampler is found from any other directory."
    ) from error

from sampler import stages as _stages
from sampler._build import build_info
from sampler.api import Distribution, Sampler, Samples
from sampler.softmax import (
    cross_entropy,
    cross_entropy_grad,
    log_softmax,
    logsumexp,
    sigmoid,
    softmax,
    softmax_dtemperature,
    softmax_jacobian,
    softmax_jvp,
    softmax_vjp,
)
from sampler.stages import *  # noqa: F403 -- every stage; its __all__ lists them

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
