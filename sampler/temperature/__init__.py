"""What people use the softmax's temperature for.

- `entropy` and `perplexity`: how spread out softmax(logits / temperature) is.
- `temperature_for_entropy` and `temperature_for_perplexity`: the temperature that spreads it so.
- `fit_temperature`: the temperature that calibrates a classifier, with `reliability` and
  `expected_calibration_error` to see whether it did.
- `distillation_loss` and `distillation_loss_grad`: a small model learns the softened probabilities
  of a large one.

NumPy is all they need; only `Reliability.plot` needs matplotlib.
"""

from sampler.temperature._distillation import distillation_loss, distillation_loss_grad
from sampler.temperature._entropy import entropy, perplexity
from sampler.temperature._fit import fit_temperature
from sampler.temperature._inverse import temperature_for_entropy, temperature_for_perplexity
from sampler.temperature._reliability import Reliability, expected_calibration_error, reliability

__all__ = [
    "Reliability",
    "distillation_loss",
    "distillation_loss_grad",
    "entropy",
    "expected_calibration_error",
    "fit_temperature",
    "perplexity",
    "reliability",
    "temperature_for_entropy",
    "temperature_for_perplexity",
]
