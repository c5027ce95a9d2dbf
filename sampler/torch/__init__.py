"""The softmax family as torch's autograd sees it, with gradients.

`softmax`, `log_softmax`, `logsumexp`, `cross_entropy`, `entropy`, `distillation_loss`, and
`kept_log_softmax`, for trainers. CPU tensors go through the core (the last apart), under a
`torch.library` operator that `torch.compile` takes as it is; tensors elsewhere through torch's own
operations. Without a gradient, `sampler.softmax` and
`sampler.temperature` do the same for arrays too.
"""

from sampler._build import install

try:
    import torch  # noqa: F401  (torch itself: imports are absolute)
except ImportError as error:
    raise ImportError(
        f"sampler.torch needs torch 2.4 or newer ({error}); it comes with {install('hf')}"
    ) from error

from sampler.torch._cross_entropy import cross_entropy
from sampler.torch._distillation import distillation_loss
from sampler.torch._entropy import entropy
from sampler.torch._kept import kept_log_softmax
from sampler.torch._softmax import log_softmax, logsumexp, softmax

__all__ = [
    "cross_entropy",
    "distillation_loss",
    "entropy",
    "kept_log_softmax",
    "log_softmax",
    "logsumexp",
    "softmax",
]
