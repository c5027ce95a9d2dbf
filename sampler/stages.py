"""The vocabulary of stages: what each keeps, its setting, its range, its source.

A stage is a small frozen dataclass of one field, the setting, named as Hugging Face names it. It
says which value is off, and the number under which the core knows it; `STAGES` lists them in the
order in which keyword settings apply.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from sampler import _core
from sampler._checks import check_integer, check_real


def show(value: object) -> str:
    """`repr`, save that infinity can be typed back."""
    return "float('inf')" if value == math.inf else repr(value)


class Stage:
    """One step of a chain. Not for direct use: see its subclasses."""

    __slots__ = ()
    setting: ClassVar[str]
    off: ClassVar[float]
    code: ClassVar[int]

    def __init__(self, value: Any = None) -> None:
        raise NotImplementedError("use one of its subclasses, such as TopK(40)")

    @staticmethod
    def check(value: Any) -> float:
        """Return the setting's value, checked."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        value = getattr(self, self.setting)
        checked = self.off if value is None else self.check(value)
        object.__setattr__(self, self.setting, checked)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({show(self.value)})"

    @property
    def value(self) -> float:
        """The setting's value."""
        value: float = getattr(self, self.setting)
        return value

    @property
    def is_off(self) -> bool:
        """Whether the stage changes nothing."""
        return self.value == self.off


@dataclass(frozen=True, slots=True, repr=False)
class Temperature(Stage):
    """Keep everything; divide the logits by `temperature`.

    Parameters
    ----------
    temperature : float, in [0, inf], off at 1 or None
        Below 1 sharpens, above 1 flattens. 0 keeps the first token in rank alone, which is greedy
        decoding; inf makes every kept token equally likely. Nothing is clamped: 1e-30 is its
        exact limit.

    Raises
    ------
    TypeError
        If `temperature` is not a real number.
    ValueError
        If it is negative or NaN.

    Notes
    -----
    z = (x - max x) / temperature. Rank is by x before temperature, so no temperature changes it.
    Several temperatures in one chain multiply.

    References
    ----------
    D. H. Ackley, G. E. Hinton, T. J. Sejnowski, "A learning algorithm for Boltzmann machines",
    Cognitive Science 9, 1985.
    """

    temperature: float | None = 1.0
    setting: ClassVar[str] = "temperature"
    off: ClassVar[float] = 1.0
    code: ClassVar[int] = _core.STAGES["temperature"]

    @staticmethod
    def check(value: Any) -> float:
        """Return the setting's value, checked."""
        return check_real("temperature", value, 0.0, math.inf, "a float in [0, inf]")


@dataclass(frozen=True, slots=True, repr=False)
class TopK(Stage):
    """Keep the `top_k` tokens of highest rank.

    Parameters
    ----------
    top_k : int, >= 0, off at 0 or None
        How many tokens; more than there are is all of them.

    Raises
    ------
    TypeError
        If `top_k` is not an integer.
    ValueError
        If it is negative.

    Notes
    -----
    Tokens of equal logit rank by id, so exactly `top_k` are kept; under the sampler's
    ``ties="all"`` everything equal to the last of them is kept as well, as Hugging Face does.
    Costs one read of the row.

    References
    ----------
    A. Fan, M. Lewis, Y. Dauphin, "Hierarchical Neural Story Generation", 2018, arXiv:1805.04833.
    """

    top_k: int | None = 0
    setting: ClassVar[str] = "top_k"
    off: ClassVar[float] = 0
    code: ClassVar[int] = _core.STAGES["top_k"]

    @staticmethod
    def check(value: Any) -> int:
        """Return the setting's value, checked."""
        return check_integer("top_k", value, 0, None, "an integer >= 0 (0 or None is off)")


@dataclass(frozen=True, slots=True, repr=False)
class TopP(Stage):
    """Keep the smallest set of tokens whose probability reaches `top_p`.

    Parameters
    ----------
    top_p : float, in [0, 1], off at 1 or None
        The mass to reach. 0 keeps one token.

    Raises
    ------
    TypeError
        If `top_p` is not a real number.
    ValueError
        If it is outside [0, 1] or NaN.

    Notes
    -----
    The shortest prefix in rank whose mass, among what the stages before have kept, is at least
    `top_p`: the token that crosses it stays. Exact to 1e-12. Costs one read of the row and one
    pass of exponentials, unless a stage before has left few tokens.

    References
    ----------
    A. Holtzman, J. Buys, L. Du, M. Forbes, Y. Choi, "The Curious Case of Neural Text
    Degeneration", 2019, arXiv:1904.09751.
    """

    top_p: float | None = 1.0
    setting: ClassVar[str] = "top_p"
    off: ClassVar[float] = 1.0
    code: ClassVar[int] = _core.STAGES["top_p"]

    @staticmethod
    def check(value: Any) -> float:
        """Return the setting's value, checked."""
        return check_real("top_p", value, 0.0, 1.0, "a float in [0, 1]")


@dataclass(frozen=True, slots=True, repr=False)
class MinP(Stage):
    """Keep the tokens at least `min_p` times as likely as the likeliest.

    Parameters
    ----------
    min_p : float, in [0, 1], off at 0 or None
        The share of the largest probability. 1 keeps the likeliest, with its ties.

    Raises
    ------
    TypeError
        If `min_p` is not a real number.
    ValueError
        If it is outside [0, 1] or NaN.

    Notes
    -----
    In terms of logits: x >= max x + temperature * ln(min_p), so no exponential is needed. Costs
    one read of the row.

    References
    ----------
    N. N. Minh et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM
    Outputs", 2024, arXiv:2407.01082.
    """

    min_p: float | None = 0.0
    setting: ClassVar[str] = "min_p"
    off: ClassVar[float] = 0.0
    code: ClassVar[int] = _core.STAGES["min_p"]

    @staticmethod
    def check(value: Any) -> float:
        """Return the setting's value, checked."""
        return check_real("min_p", value, 0.0, 1.0, "a float in [0, 1]")


# The order of keyword settings: Hugging Face's.
STAGES: tuple[type[Stage], ...] = (Temperature, TopK, TopP, MinP)
