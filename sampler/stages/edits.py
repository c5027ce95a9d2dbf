"""Edits: they forbid single tokens of the row, before anything else looks at it."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from sampler._checks import Ids
from sampler.stages.base import Edit, setting, stage

__all__ = [
    "SuppressTokens",
]


@stage
class SuppressTokens(Edit):
    """Never draw the tokens `suppress_tokens`.

    Parameters
    ----------
    suppress_tokens : sequence of int, each >= 0, off at () or None
        Ids of tokens. Kept as a tuple: ascending, each once.

    Raises
    ------
    TypeError
        If `suppress_tokens` is not a sequence of integers.
    ValueError
        If one is negative. A call raises it if one is not in the vocabulary.

    See Also
    --------
    sampler.Sampler : takes a `mask` per call, to allow or forbid many tokens.

    Notes
    -----
    A token that is suppressed has the logit -inf, whatever it was, NaN included. So it has no rank,
    no stage counts it, and `min_tokens_to_keep` does not bring it back. Costs nothing where no
    token is suppressed: the other blocks of 512 logits are read in place.

    References
    ----------
    A. Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022,
    arXiv:2212.04356, whose decoder suppresses the tokens that are not speech.
    """

    suppress_tokens: Collection[int] | None = setting(default=(), range_=Ids())

    def banned(self, vocab: int) -> npt.NDArray[np.int64]:
        """Return the ids."""
        ids = np.array(self.value, np.int64)
        if ids.size and ids[-1] >= vocab:
            raise ValueError(
                f"`suppress_tokens` has to hold ids in [0, {vocab}), but one is {ids[-1]}"
            )
        return ids
