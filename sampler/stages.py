"""The vocabulary of stages: what each keeps, its setting, its range, its source.

A stage is a small frozen dataclass, of one of three kinds: edits, which come first, scales and
cuts. Its one field is the setting, named as Hugging Face names it: a number, or an array of one per
row. The field states the range and the value that is off, and all else reads them there: checks,
error messages, signatures, tests. `Settings` lists the stages in the order in which keywords apply.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Self,
    TypedDict,
    TypeVar,
    dataclass_transform,
    get_args,
    get_type_hints,
    overload,
)

import numpy as np
import numpy.typing as npt

from sampler._checks import FloatArray, Ids, Integers, Range, Reals, integers, reals

__all__ = ["MinP", "SuppressTokens", "Temperature", "TopK", "TopP"]

_Class = TypeVar("_Class", bound="type[Stage]")
_Value = TypeVar("_Value")
_Target = TypeVar("_Target", bound=Callable[..., Any])


def setting(*, default: Any, range_: Range | Ids) -> Any:
    """Make the field of a stage: off by default, and checked."""
    return field(default=default, metadata={"range": range_})


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
def stage(cls: _Class) -> _Class:
    """Make a stage's class a dataclass, and keep what its field states where all can read it."""
    made: Any = dataclass(frozen=True, slots=True, repr=False, eq=False)(cls)
    (own,) = fields(made)
    made.setting, made.off, made.range = own.name, own.default, own.metadata["range"]
    return made  # type: ignore[no-any-return]


class Stage:
    """One step of a chain. Not for direct use: see its subclasses."""

    __slots__ = ()
    kind: ClassVar[str] = "cut"  # or "scale" or "edit": see docs/law.md
    setting: ClassVar[str]
    off: ClassVar[Any]
    range: ClassVar[Any]  # a Range, or Ids

    def __init__(self, value: Any = None) -> None:
        raise NotImplementedError("use one of its subclasses, such as TopK(40)")

    def __post_init__(self) -> None:
        value = getattr(self, self.setting)
        checked = self.off if value is None else self.range.check_per_row(self.setting, value)
        object.__setattr__(self, self.setting, checked)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.range.show(self.value)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return np.array_equal(self.value, other.value)

    def __hash__(self) -> int:
        return hash((type(self), self.value.tobytes() if self.is_per_row else self.value))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.value,)  # which makes arrays read-only again

    @classmethod
    def described(cls) -> str:
        """Say what the setting may be, as the parameter lines of docstrings do."""
        return f"{cls.setting} : {cls.range.noun}, {cls.range.interval}, off at {cls.off_text()}"

    @classmethod
    def off_text(cls) -> str:
        """Show the value that is off, as the documents write it."""
        return "()" if cls.off == () else f"{cls.off:g}"

    @property
    def value(self) -> Any:
        """The setting's value: a number, or a read-only float64 array of one per row."""
        return getattr(self, self.setting)

    @property
    def is_per_row(self) -> bool:
        """Whether the setting is an array, so that each row of a batch has its own."""
        return isinstance(self.value, np.ndarray)

    @property
    def is_off(self) -> bool:
        """Whether the stage changes nothing, in any row."""
        return bool(np.all(self.value == self.off))

    def at(self, row: int) -> Self:
        """Return the stage as it is for one row of a batch."""
        return type(self)(self.range.kind(self.value[row])) if self.is_per_row else self


class Edit(Stage):
    """A step that changes single logits of the row, before anything else looks at it."""

    __slots__ = ()
    kind = "edit"

    def pairs(self, vocab: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the ids of the logits that change, ascending, and what they become."""
        raise NotImplementedError


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

    Notes
    -----
    A token that is suppressed has the logit -inf, whatever it was, NaN included. So it has no rank,
    no step counts it, and `min_tokens_to_keep` does not bring it back. Costs nothing where no token
    is suppressed: the other blocks of 512 logits are read in place.

    References
    ----------
    A. Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022,
    arXiv:2212.04356, whose decoder suppresses the tokens that are not speech.
    """

    suppress_tokens: Collection[int] | None = setting(default=(), range_=Ids())

    def pairs(self, vocab: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return the ids, each with -inf."""
        ids = np.array(self.value, np.int64)
        if ids.size and ids[-1] >= vocab:
            raise ValueError(
                f"`suppress_tokens` has to hold ids in [0, {vocab}), but one is {ids[-1]}"
            )
        return ids, np.full(ids.size, -np.inf)


@stage
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

    kind = "scale"
    temperature: Reals | None = setting(default=1.0, range_=reals(0.0, math.inf))


@stage
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

    top_k: Integers | None = setting(default=0, range_=integers(0, note=" (0 or None is off)"))


@stage
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

    top_p: Reals | None = setting(default=1.0, range_=reals(0.0, 1.0))


@stage
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

    min_p: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0))


class Settings(TypedDict, total=False):
    """Every stage by its keyword, in the order in which keywords apply: Hugging Face's."""

    suppress_tokens: Annotated[Collection[int] | None, SuppressTokens]
    temperature: Annotated[Reals | None, Temperature]
    top_k: Annotated[Integers | None, TopK]
    top_p: Annotated[Reals | None, TopP]
    min_p: Annotated[Reals | None, MinP]


class _Setting(Generic[_Value]):
    """A setting as an attribute: that of the chain's one step of its kind, off without one."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.__doc__ = f"The setting of the chain's `{STAGES[name].__name__}`; off without one."

    @overload
    def __get__(self, chain: None, owner: type) -> Self: ...
    @overload
    def __get__(self, chain: HasSettings, owner: type) -> _Value: ...
    def __get__(self, chain: HasSettings | None, owner: type) -> Any:
        if chain is None:
            return self
        kind = STAGES[self._name]
        values = [one.value for one in chain.stages if isinstance(one, kind)]
        if len(values) > 1:
            raise AttributeError  # and Python asks `Sampler.__getattr__`
        return values[0] if values else kind.off


STAGES: Mapping[str, type[Stage]] = {
    name: get_args(hint)[1] for name, hint in get_type_hints(Settings, include_extras=True).items()
}


class HasSettings:
    """What `Sampler` inherits: each of `Settings` as an attribute."""

    __slots__ = ()
    stages: Any  # the chain

    suppress_tokens = _Setting[tuple[int, ...]]()
    temperature = _Setting[float | FloatArray]()
    top_k = _Setting[int | FloatArray]()
    top_p = _Setting[float | FloatArray]()
    min_p = _Setting[float | FloatArray]()


def lists_settings(target: _Target) -> _Target:
    """Show each of `Settings` in place of ``**settings``: in the signature and in the docstring.

    For a function, or a class by its ``__init__``. In the docstring they go where it has the word
    ``{settings}``.
    """
    function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    signature, types = inspect.signature(function), get_type_hints(Settings)
    settings = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=one.off, annotation=types[name]
        )
        for name, one in STAGES.items()
    ]
    *others, _ = signature.parameters.values()
    first = [p for p in others if p.kind is not p.KEYWORD_ONLY]
    parameters = [*first, *settings, *others[len(first) :]]
    function.__signature__ = signature.replace(parameters=parameters)
    if target.__doc__:  # python -OO has none
        lines = [f"{one.described()}\n        See `{one.__name__}`." for one in STAGES.values()]
        target.__doc__ = target.__doc__.replace("{settings}", "\n    ".join(lines))
    return target
