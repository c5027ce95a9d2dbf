"""What a stage is: a small frozen dataclass whose fields state their ranges.

A stage has a kind: an edit, a scale, a cut, or one with memory. Its fields are its parameters: each
a number, or an array of one per row. The keyword of a stage with one parameter is that parameter's
name, as Hugging Face spells it; a stage with several has one keyword for all of them. One
parameter, the switch, says whether a stage is off: the first, unless the class names another. The
fields state the ranges and the values that are off, and all else reads them there: checks, error
messages, signatures, tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, Self, TypeVar, dataclass_transform

import numpy as np
import numpy.typing as npt

from sampler._checks import Several

__all__ = ["NO_IDS", "Compiled", "Edit", "Parameter", "Stage", "setting", "stage"]

_Class = TypeVar("_Class", bound="type[Stage]")


def setting(*, default: Any, range_: Any) -> Any:
    """Make a field of a stage: off by default, and checked."""
    return field(default=default, metadata={"range": range_})


class Parameter(NamedTuple):
    """What a field of a stage states."""

    off: Any  # the default
    range: Any  # one of `sampler._checks`: Range, Flag, Ids, Sequences or Biases


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
def stage(cls: _Class) -> _Class:
    """Make a stage's class a dataclass, and keep what its fields state where all can read it."""
    made: Any = dataclass(frozen=True, slots=True, repr=False, eq=False)(cls)
    own = fields(made)
    made.parameters = {one.name: Parameter(one.default, one.metadata["range"]) for one in own}
    made.switch = cls.switch or own[0].name
    made.has_several = len(own) > 1
    if made.has_several:
        made.setting = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", made.__name__).lower()
        made.off = None
        ranges = tuple(one.range for one in made.parameters.values())
        made.range = Several(made.__name__, ranges, 1 + list(made.parameters).index(made.switch))
    else:
        ((made.setting, (made.off, made.range)),) = made.parameters.items()
    return made  # type: ignore[no-any-return]


class Stage:
    """One stage of a chain. Not for direct use: see its subclasses."""

    __slots__ = ()
    kind: ClassVar[str] = "cut"  # or "edit", "scale" or "memory": see docs/law.md
    has_coin: ClassVar[bool] = False  # whether a second uniform decides what it does
    looks_at_row: ClassVar[bool] = False  # whether what a scale does depends on the row
    replaces: ClassVar[str] = ""  # the keyword that is not for use together with this one
    setting: ClassVar[str]
    off: ClassVar[Any]
    range: ClassVar[Any]  # a Range, a Flag, Ids, or Several
    parameters: ClassVar[Mapping[str, Parameter]]
    switch: ClassVar[str] = ""
    has_several: ClassVar[bool]

    def __init__(self, value: Any = None) -> None:
        raise NotImplementedError("use one of its subclasses, such as TopK(40)")

    def __post_init__(self) -> None:
        for name, one in self.parameters.items():
            value = getattr(self, name)
            checked = one.off if value is None else one.range.check_per_row(self.label(name), value)
            object.__setattr__(self, name, checked)
        lengths = [
            (n, len(v)) for n, v in zip(self.parameters, self.values, strict=True) if _is_array(v)
        ]
        for name, length in lengths:
            first, batch = lengths[0]
            if length != batch:
                raise ValueError(
                    f"`{self.label(first)}` and `{self.label(name)}` have to be for the same rows, "
                    f"but are for {batch} and {length}"
                )

    def __repr__(self) -> str:
        shown = [
            one.range.show(value)
            for one, value in zip(self.parameters.values(), self.values, strict=True)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(map(_are_equal, self.values, other.values))

    def __hash__(self) -> int:
        return hash((type(self), *(v.tobytes() if _is_array(v) else v for v in self.values)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.given()  # which makes arrays read-only again

    @classmethod
    def of(cls, value: Any) -> Self:
        """Make the stage of what its keyword may be: a value, or the stage itself."""
        if isinstance(value, cls):
            return value
        if not cls.has_several or value is None:
            return cls(value)
        values = value if isinstance(value, tuple) else (value,)
        if not cls.range.least <= len(values) <= len(cls.parameters):
            names = ", ".join(cls.parameters)
            raise TypeError(f"`{cls.setting}` has to be ({names}), but is {value!r}")
        return cls(*values)

    @classmethod
    def label(cls, parameter: str) -> str:
        """Name a parameter, as error messages do."""
        return parameter if parameter == cls.setting else f"{cls.setting}.{parameter}"

    @classmethod
    def described(cls) -> str:
        """Say what the setting may be, as the parameter lines of docstrings do."""
        interval = "" if cls.has_several else cls.range.interval
        stated = [f"{cls.setting} : {cls.range.noun}", interval, f"off at {cls.off_text()}"]
        return ", ".join(filter(None, stated))

    @classmethod
    def off_text(cls) -> str:
        """Show the value that is off, as the documents write it."""
        return f"{cls.off:g}" if type(cls.off) in (int, float) else str(cls.off)

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of the parameters: numbers, or read-only float64 arrays of one per row."""
        return tuple(getattr(self, name) for name in self.parameters)

    @property
    def value(self) -> Any:
        """What the keyword would be: the one parameter, or all of several; None for the default."""
        if self.has_several:
            return None if self.is_default else self.given()
        return self.given()[0]

    def given(self) -> tuple[Any, ...]:
        """The values as they may be given: NaN, which is off in an array, is None in a list."""
        return tuple(
            [one.range.at(value, row) for row in range(len(value))]
            if _is_array(value) and np.isnan(value).any()
            else value
            for one, value in zip(self.parameters.values(), self.values, strict=True)
        )

    @property
    def is_default(self) -> bool:
        """Whether every parameter is what it is when nothing is given."""
        return self == type(self)()

    @property
    def is_off(self) -> bool:
        """Whether the stage changes nothing, in any row."""
        return bool(np.all(self.off_rows))

    @property
    def scales(self) -> bool:
        """Whether the stage changes logits, and removes no token."""
        return self.kind == "scale"

    @property
    def off_rows(self) -> Any:
        """`is_off`, or an array of it, one per row, if the switch is one per row."""
        value, off = getattr(self, self.switch), self.parameters[self.switch].off
        return np.isnan(value) if off is None and _is_array(value) else value == off

    def nan_where_off(self, value: Any) -> Any:
        """Return a parameter of a stage that is on: NaN in the rows where it is off."""
        off = self.off_rows
        return np.where(off, np.nan, value) if _is_array(off) else value

    def branches(self) -> list[tuple[float, Stage]]:
        """What the stage's coin decides between: stages without one, and how likely each is."""
        return [(1.0, self)]

    def at(self, row: int) -> Self:
        """Return the stage as it is for one row of a batch."""
        return type(self)(
            *(
                one.range.at(value, row) if _is_array(value) else value
                for one, value in zip(self.parameters.values(), self.values, strict=True)
            )
        )


NO_IDS, _NO_BIASES = np.empty(0, np.int64), np.empty(0, np.float64)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _are_equal(a: Any, b: Any) -> bool:
    if _is_array(a) and _is_array(b):
        return np.array_equal(a, b, equal_nan=True)
    return bool(not _is_array(a) and not _is_array(b) and a == b)


class Compiled(NamedTuple):
    """An edit as the core takes it: see `_core.Changes`."""

    kind: str  # of _core.EDITS
    parameters: Sequence[Any] = (0.0,)
    ids: npt.NDArray[np.int64] = NO_IDS
    ends: npt.NDArray[np.int64] = NO_IDS
    biases: npt.NDArray[np.float64] = _NO_BIASES


class Edit(Stage):
    """A stage that changes single logits of the row, before anything else looks at it."""

    __slots__ = ()
    kind = "edit"
    needs_history: ClassVar[bool] = True  # whether it looks at the text so far
    bans: ClassVar[bool] = False  # whether it forbids the same tokens in every call

    def compiled(self, vocab: int) -> Compiled:
        """Return the edit for rows of a vocabulary, in the core's form.

        Raises
        ------
        ValueError
            If an id is not in the vocabulary.
        """
        raise NotImplementedError

    def _sequences(
        self,
        vocab: int,
        kind: str,
        name: str,
        pairs: Iterable[tuple[Sequence[int], float]],
        parameters: Sequence[Any] = (0.0,),
    ) -> Compiled:
        """Compile sequences of ids, of the parameter of that name, each with a number."""
        sequences, biases = [], []
        for ids, bias in pairs:
            for one in ids:
                if one >= vocab:
                    raise ValueError(
                        f"`{self.label(name)}` has to hold ids in [0, {vocab}), but one is {one}"
                    )
            sequences.append(ids)
            biases.append(bias)
        ends = np.cumsum([len(ids) for ids in sequences], dtype=np.int64)
        flat = np.array([one for ids in sequences for one in ids], np.int64)
        return Compiled(kind, parameters, flat, ends, np.array(biases, np.float64))
