"""Stages with memory: what they do to a row depends on the tokens drawn before it.

One comes last in a chain. What it remembers is a `sampler.memory.State`: every call takes one, and
returns the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from sampler._checks import MOST_FLOAT, Range, Reals, finite, reals
from sampler.stages.base import Stage, setting, stage

__all__ = ["AdaptiveP", "Mirostat"]


_ANY = Range(float, -math.inf, None, ends="(]")
_ABOVE_0 = reals(0.0, MOST_FLOAT, "(]")


class Memory(Stage):
    """A stage that remembers, as numbers. Not for direct use: see its subclasses."""

    __slots__ = ()
    kind = "memory"
    remembers: ClassVar[Mapping[str, Range]]  # the numbers, and what they may be

    def initial(self) -> tuple[float, ...]:
        """Return the numbers before the first token; of a stage for one row."""
        raise NotImplementedError

    def parameter(self, values: tuple[float, ...]) -> float:
        """Return what the numbers mean for the next row: the parameter that the core takes."""
        raise NotImplementedError

    def after(self, values: tuple[float, ...], observed: float) -> tuple[float, ...]:
        """Return the numbers after a token, of which the core has observed this.

        Of Mirostat it is the log-probability, of adaptive-p the probability before that stage.
        """
        raise NotImplementedError


@stage
class Mirostat(Memory):
    """Keep the likely tokens, so many that the surprise of a text stays near `tau`.

    Parameters
    ----------
    version : int, in [0, 2], off at 0
        2 keeps the tokens of a surprise up to mu; 1 keeps the first k, with k from mu and an
        estimate of how steep the row is.
    tau : float, >= 0
        The surprise to hold, in bits per token.
    eta : float, >= 0
        The share of the error by which mu moves after each token.

    Raises
    ------
    TypeError
        If a parameter is not a number.
    ValueError
        If one is out of its range, infinite or NaN.

    See Also
    --------
    AdaptiveP : holds the probability of the tokens.
    sampler.memory.State : what it remembers: mu.

    Notes
    -----
    The surprise of a token is -log2 p. mu starts at 2 tau; after each token, mu becomes mu - eta
    (surprise - tau), with p over what was kept. Last in a chain, and without other cuts as a rule,
    which take part of the control. Version 2 costs as much as `EpsilonCutoff`, version 1 as `TopK`.

    References
    ----------
    S. Basu, G. S. Ramachandran, N. S. Keskar, L. R. Varshney, "Mirostat: a neural text decoding
    algorithm that directly controls perplexity", ICLR 2021, arXiv:2007.14966; as in llama.cpp.
    """

    remembers = MappingProxyType({"mu": _ANY})
    version: Reals | None = setting(default=0, range_=Range(int, 0, 2))
    tau: Reals | None = setting(default=5.0, range_=finite(0.0))
    eta: Reals | None = setting(default=0.1, range_=finite(0.0))

    def initial(self) -> tuple[float, ...]:
        """Return mu = 2 tau."""
        return (min(2.0 * self.values[1], _MOST),)

    def parameter(self, values: tuple[float, ...]) -> float:
        """Return mu."""
        return values[0]

    def after(self, values: tuple[float, ...], observed: float) -> tuple[float, ...]:
        """Move mu against the error, after a log-probability."""
        _, tau, eta = self.values
        surprise = -observed / _LN_2
        return (min(max(values[0] - eta * (surprise - tau), -_MOST), _MOST),)


@stage
class AdaptiveP(Memory):
    """Keep everything; prefer tokens whose probability is near a target that the text moves.

    Parameters
    ----------
    target : float, in [0, 1], off at None
        The probability that the tokens of a text should have on average.
    decay : float, in [0, 0.99]
        The weight of each probability in the average, as a share of the next one's: 0 remembers the
        last token alone, 0.9 about ten.

    Raises
    ------
    TypeError
        If a parameter is not a number.
    ValueError
        If one is out of its range.

    See Also
    --------
    Mirostat : holds the surprise of the tokens.
    sampler.memory.State : what it remembers: a sum of probabilities, and its weight.

    Notes
    -----
    With p the probability of a token so far, t = 2 target - sum / weight, cut to [0, 1], and d =
    abs(p - t) / 0.3, the new logit is 5 - 10 d^2 / (1 + d), and the row is rebased. The sum starts
    at target / (1 - decay), the weight at 1 / (1 - decay); after each token, the sum becomes p +
    decay sum, the weight 1 + decay weight. Last in a chain, after a cut such as `MinP`: without
    one, thousands of unlikely tokens together outweigh the rest. Costs a copy of the row.

    References
    ----------
    MrJackSpade, "Adaptive-P", 2025; as in llama.cpp.
    """

    replaces = "mirostat"
    looks_at_row = True
    remembers = MappingProxyType({"sum": _ANY, "weight": _ABOVE_0})
    target: Reals | None = setting(default=None, range_=reals(0.0, 1.0, optional=True))
    decay: Reals | None = setting(default=0.9, range_=reals(0.0, 0.99))

    @property
    def scales(self) -> bool:
        """It does: it keeps everything."""
        return True

    def initial(self) -> tuple[float, ...]:
        """Return the sum and the weight of a text that has been at the target for long."""
        target, decay = self.values
        return target / (1.0 - decay), 1.0 / (1.0 - decay)

    def parameter(self, values: tuple[float, ...]) -> float:
        """Return the target of the next token."""
        target: float = 2.0 * self.values[0] - values[0] / values[1]
        return min(max(target, 0.0), 1.0)

    def after(self, values: tuple[float, ...], observed: float) -> tuple[float, ...]:
        """Take in a probability, and forget a part of the others."""
        decay = self.values[1]
        return observed + decay * values[0], 1.0 + decay * values[1]


_LN_2 = math.log(2.0)
_MOST = 1e300  # of mu, which a wild `eta` could otherwise move beyond all numbers
