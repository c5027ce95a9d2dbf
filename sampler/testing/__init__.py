"""Does a sampler follow its law? Checks for any sampler, not only ours.

`check_draws` holds recorded tokens against their probabilities. `check_sampler` draws itself and
looks at everything else: neighbouring rows and calls, seeds, the far tail, shifted and permuted
logits, dtypes, strides. `check_sequentially` stops as soon as a fault shows. `check_uniform`,
`check_same`, `check_independent` and `check_streams` are for the uniforms below. Each gives a
`Result`, which prints as a short report; `assert_draws` and `assert_sampler` raise it, and
`sampler.testing.fixtures` has both as pytest fixtures.

Two error rates are designed and in every result. A correct sampler fails with probability at most
`alpha`; a fault of `detectable_bias` is seen with probability `power`. Too few draws to tell give
``ok=None``, which no test takes for a pass.

    pip install ".[testing]"    # in a clone: scipy, matplotlib, tqdm; click and rich
"""

# Where things are. A public `check_...` checks its arguments (_arguments), calls a `judge_...` that
# returns an `Outcome` with its `Finding`s (_outcome, _findings), and reports it as a `Result`. All
# counts end in `judge_counts` (_draws), on _statistics. The parts of `check_sampler` are in _parts;
# they use the sampler (_source), changed rows (_rows), laws (_laws) and pairs of tokens (_pairs).

from sampler._build import install

try:
    import scipy  # noqa: F401  (said here once, whichever module would miss it first)
except ImportError as error:
    raise ImportError(
        f"sampler.testing needs scipy ({error}); it comes with {install('testing')}"
    ) from error

from sampler.testing._adapters import from_generate, from_processors
from sampler.testing._asserts import assert_draws, assert_sampler
from sampler.testing._draws import check_draws, required_draws
from sampler.testing._result import Result
from sampler.testing._same import check_same
from sampler.testing._sampler import check_sampler
from sampler.testing._sequential import check_sequentially
from sampler.testing._streams import check_streams
from sampler.testing._uniforms import check_independent, check_uniform

__all__ = [
    "Result",
    "assert_draws",
    "assert_sampler",
    "check_draws",
    "check_independent",
    "check_same",
    "check_sampler",
    "check_sequentially",
    "check_streams",
    "check_uniform",
    "from_generate",
    "from_processors",
    "required_draws",
]
