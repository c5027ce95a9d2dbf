"""Checks of arguments: each returns the value as it is used, or raises in one sentence."""

from __future__ import annotations

import json
import math
import numbers
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from sampler import _tensors

U64_END = 2**64  # seeds, streams, steps and draws are in [0, 2**64)
U64_TEXT = "an integer in [0, 2**64)"
MOST_TOKENS = 2**27  # of a row
MOST_FLOAT = sys.float_info.max
MOST_EXACT = 2**53  # the largest count that an array of floats holds; no row is longer


_Choice = TypeVar("_Choice", bound=str)


class HasArray(Protocol):
    """What NumPy makes an array of: an array, a tensor."""

    def __array__(self) -> Any: ...


# A setting: one number for every row, or one per row.
Reals: TypeAlias = float | Sequence[float] | HasArray
Integers: TypeAlias = int | Sequence[int] | HasArray
# What a loss of many rows is made one number by, or not.
Reduction: TypeAlias = Literal["mean", "sum", "none"]
FloatArray: TypeAlias = npt.NDArray[np.float64]


def check_real(
    name: str,
    value: object,
    low: float,
    high: float,
    range_text: str,
    where: str = "",
    unit: float = 0.01,
) -> float:
    """`value` as a float in [low, high]; TypeError or ValueError in one form, that ends `where`.

    `unit` is what those who write larger numbers count in: per cent, by default.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _wrong_type(name, value, range_text, where)
    try:
        number = float(value)
    except OverflowError:
        number = math.nan
    if not low <= number <= high:
        counts = 2 <= number <= 100 and low <= number * unit <= high <= 1
        hint = f" ({number * unit:g}?)" if counts else ""
        raise ValueError(f"`{name}` has to be {range_text}, but is {value}{hint}{where}")
    return number


def check_integer(
    name: str, value: object, low: int, high: int | None, range_text: str, where: str = ""
) -> int:
    """`value` as an int in [low, high); TypeError or ValueError in one form, that ends `where`."""
    if type(value) is not int:  # quicker than to ask
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise _wrong_type(name, value, range_text, where)
        value = int(value)
    number = value
    if number < low or (high is not None and number >= high):
        raise ValueError(f"`{name}` has to be {range_text}, but is {number}{where}")
    return number


def _wrong_type(name: str, value: object, range_text: str, where: str) -> TypeError:
    hint = ": in an array write the default, which is off" if where and value is None else ""
    return TypeError(f"`{name}` has to be {range_text}, but is {value!r}{where}{hint}")


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, from `low` to `high`; None is any finite one."""

    kind: type[float | int]
    low: float
    high: float | None
    note: str = ""  # for error messages
    ends: str = "[]"  # as in an interval: a round bracket leaves that end out
    optional: bool = False  # whether None is off: in an array, NaN
    unit: float = 0.01  # in which others may count: see `check_real`

    @property
    def noun(self) -> str:
        """What the setting is, as parameter lines of docstrings write it."""
        return self.kind.__name__

    @property
    def interval(self) -> str:
        """Its ends, as the documents write them."""
        if self.high is None:
            return f">= {self.low:g}" if self.low > -math.inf else ""
        return f"in {self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"

    @property
    def least(self) -> float:
        """The smallest of them."""
        return self.low if self.ends[0] == "[" else math.nextafter(self.low, math.inf)

    @property
    def most(self) -> float:
        """The largest of them."""
        if self.high is None:
            return MOST_FLOAT
        return self.high if self.ends[1] == "]" else math.nextafter(self.high, -math.inf)

    def __str__(self) -> str:
        number = "an integer" if self.kind is int else "a float" if self.high else "a finite float"
        return f"{number} {self.interval}".rstrip() + self.note

    def check(self, name: str, value: object, where: str = "") -> float:
        """`value` as one of these numbers; TypeError or ValueError in one form."""
        if self.kind is float:
            return check_real(name, value, self.least, self.most, str(self), where, self.unit)
        end = None if self.high is None else int(self.high) + 1
        return check_integer(name, value, int(self.low), end, str(self), where)

    def check_per_row(self, name: str, value: Any) -> float | FloatArray:
        """`value` as one of these numbers, or as a read-only array of them, one per row.

        TypeError or ValueError in one form, which names the row.
        """
        is_list = isinstance(value, (list, tuple))
        if not is_list and (not hasattr(value, "__array__") or isinstance(value, np.generic)):
            return self.check(name, value)
        array = as_array(name, value)
        if array.ndim == 0:
            return self.check(name, array.item())
        if array.ndim > 1:
            raise ValueError(
                f"`{name}` has to be {self}, or one per row, but has shape {array.shape}"
            )
        off = None
        if has_bools(value) or array.dtype.kind not in "iuf":
            entries = value if is_list else array.tolist()
            if self.optional:
                off = np.array([one is None for one in entries], bool)
            checked = [
                math.nan
                if one is None and self.optional
                else self.check(name, one, f" in row {row}")
                for row, one in enumerate(entries)
            ]
            most = MOST_EXACT if self.kind is int else math.inf
            array = np.array([min(one, most) for one in checked])
        floats = self._check_floats(name, array, off)
        floats.flags.writeable = False
        return floats

    def show(self, value: float | FloatArray) -> str:
        """`value`, as it can be typed back: `repr` of infinity cannot."""
        if isinstance(value, np.ndarray):
            return f"[{', '.join(self.show(self.at(value, row)) for row in range(len(value)))}]"
        return f"float('{value}')" if value in (math.inf, -math.inf) else repr(value)

    def at(self, value: FloatArray, row: int) -> Any:
        """Return the number for one row, None where it is off by that."""
        return None if math.isnan(value[row]) else self.kind(value[row])

    def _check_floats(
        self, name: str, array: npt.NDArray[Any], off: npt.NDArray[np.bool_] | None
    ) -> FloatArray:
        with np.errstate(over="ignore"):
            floats: FloatArray = array.astype(np.float64) + 0.0  # -0.0 is 0.0
        good = floats >= self.least
        good &= np.isfinite(floats) if self.high is None else floats <= self.most
        if self.kind is int:
            good &= floats == np.floor(floats)
            floats = np.minimum(floats, MOST_EXACT)
        if off is not None:
            good |= off
        if not good.all():
            row = int(good.argmin())
            self.check(name, array[row].item(), f" in row {row}")
        return floats


@dataclass(frozen=True)
class Flag:
    """True or False: what a setting may be that is on or off."""

    kind = bool
    noun = "bool"
    interval = ""

    def __str__(self) -> str:
        return "True or False"

    def show(self, value: bool | FloatArray) -> str:
        """`value`, as it can be typed back."""
        return repr([bool(one) for one in value] if isinstance(value, np.ndarray) else value)

    def at(self, value: FloatArray, row: int) -> bool:
        """Return the flag for one row."""
        return bool(value[row])

    def check_per_row(self, name: str, value: Any) -> bool | FloatArray:
        """`value` as a bool, or as a read-only array of 0 and 1, one per row.

        TypeError or ValueError in one form.
        """
        if isinstance(value, (bool, np.bool_)):
            return bool(value)
        array = as_array(name, value)
        if array.dtype.kind != "b" and not (array.dtype == np.float64 and _are_flags(array)):
            raise TypeError(f"`{name}` has to be {self}, but is {reprlib.repr(value)}")
        if array.ndim == 0:
            return bool(array)
        if array.ndim > 1:
            raise ValueError(
                f"`{name}` has to be {self}, or one per row, but has shape {array.shape}"
            )
        floats = array.astype(np.float64)
        floats.flags.writeable = False
        return floats


def _are_flags(array: npt.NDArray[Any]) -> bool:
    """Test whether these are what `Flag` makes of an array: so that it may be given again."""
    return array.ndim == 1 and bool(np.isin(array, (0.0, 1.0)).all())


@dataclass(frozen=True)
class Ids:
    """Any token ids: what a setting may be that names tokens."""

    noun = "sequence of int"
    interval = "each >= 0"

    def __str__(self) -> str:
        return "a sequence of integers >= 0"

    def show(self, value: tuple[int, ...]) -> str:
        """`value`, as it can be typed back."""
        return repr(value)

    def check_per_row(self, name: str, value: Any) -> tuple[int, ...]:
        """`value` as a tuple, ascending, each id once, for every row.

        TypeError or ValueError in one form.
        """
        if isinstance(value, (set, frozenset, range)):
            value = list(value)
        array = as_array(name, value)
        # A list may hold integers beyond int64; NumPy makes floats of an empty one, and `as_array`
        # objects of a ragged one.
        fits = array.dtype.kind in "iu" or (array.dtype.kind == ("O" if array.size else "f"))
        fits &= array.ndim == 1 and not has_bools(value)
        ids: list[Any] = array.tolist() if fits else [None]
        if not all(isinstance(token, int) for token in ids):
            raise TypeError(f"`{name}` has to be {self}, but is {reprlib.repr(value)}")
        for token in ids:
            if not 0 <= token < MOST_TOKENS:
                raise ValueError(f"`{name}` has to be {self}, but one is {token}")
        return tuple(sorted(set(ids)))


@dataclass(frozen=True)
class Sequences:
    """Sequences of token ids: what a setting may be that names words of several tokens."""

    noun = "sequence of sequences of int"
    interval = ""

    def __str__(self) -> str:
        return "a sequence of sequences of token ids, each of at least one"

    def show(self, value: tuple[tuple[int, ...], ...]) -> str:
        """`value`, as it can be typed back."""
        return repr([list(one) for one in value])

    def check_per_row(self, name: str, value: Any) -> tuple[tuple[int, ...], ...]:
        """`value` as tuples of ids, each once, for every row; an id is a sequence of one."""
        if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise TypeError(f"`{name}` has to be {self}, but is {reprlib.repr(value)}")
        return tuple(dict.fromkeys(self.read(name, one) for one in value))

    def read(self, name: str, value: Any) -> tuple[int, ...]:
        """One sequence."""
        ids = (value,) if isinstance(value, numbers.Integral) else value
        if (
            isinstance(ids, (str, bytes))
            or not isinstance(ids, Iterable)
            or not (ids := tuple(ids))
            or any(isinstance(one, bool) or not isinstance(one, numbers.Integral) for one in ids)
        ):
            words = isinstance(value, (str, bytes))
            raise TypeError(
                f"`{name}` has to be {self}, but has {reprlib.repr(value)}"
                + ": of a text, tokenizer(text, add_special_tokens=False).input_ids" * words
            )
        for one in ids:
            if not 0 <= one < MOST_TOKENS:
                raise ValueError(f"`{name}` has to be {self}, but one is {one}")
        return tuple(int(one) for one in ids)


@dataclass(frozen=True)
class Biases:
    """A number for each of some tokens, or of some sequences of tokens."""

    sequences: bool = False
    integers: bool = False  # whether the keys are numbers of tokens, and the values ids

    interval = ""

    @property
    def noun(self) -> str:
        """What the setting is, as parameter lines of docstrings write it."""
        key = "tuple of int" if self.sequences else "int"
        return f"mapping of {key} to {'int' if self.integers else 'float'}"

    def __str__(self) -> str:
        return f"a {self.noun}"

    def show(self, value: tuple[tuple[Any, float], ...]) -> str:
        """`value`, as it can be typed back."""
        shown = (f"{key!r}: {Range(float, 0, 0).show(bias)}" for key, bias in value)
        return f"{{{', '.join(shown)}}}"

    def check_per_row(self, name: str, value: Any) -> tuple[tuple[Any, float], ...]:
        """`value` as pairs, by their keys, each key once, for every row."""
        pairs = value.items() if isinstance(value, Mapping) else value
        if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Iterable):
            raise TypeError(f"`{name}` has to be {self}, but is {reprlib.repr(value)}")
        found: dict[Any, float] = {}
        for pair in pairs:
            try:
                key, bias = pair
            except (TypeError, ValueError):
                raise TypeError(
                    f"`{name}` has to be {self}, but is {reprlib.repr(value)}"
                ) from None
            is_id = isinstance(key, numbers.Integral) and not isinstance(key, bool)
            if not self.sequences and not is_id:
                raise TypeError(f"`{name}` has to be {self}, but has the key {reprlib.repr(key)}")
            ids = Sequences().read(name, key)
            if self.integers:
                bias = check_integer(name, bias, 0, MOST_TOKENS, "a mapping to ids >= 0")
            else:
                wanted = "a mapping to finite floats, or -inf to forbid"
                bias = check_real(name, bias, -math.inf, MOST_FLOAT, wanted)
            found[ids if self.sequences else ids[0]] = bias
        return tuple(sorted(found.items()))


@dataclass(frozen=True)
class Several:
    """What the setting of a stage with several parameters may be: the first, all, or the stage."""

    stage: str
    ranges: tuple[Any, ...]
    least: int  # how many have to be given

    @property
    def noun(self) -> str:
        """What the setting is, as parameter lines of docstrings write it."""
        nouns = [one.noun for one in self.ranges]
        alone = f"{nouns[0]}, " if self.least == 1 else ""
        return f"{alone}({', '.join(nouns)}) or {self.stage}"

    def show(self, value: tuple[Any, ...] | None) -> str:
        """`value`, as it can be typed back."""
        if value is None:
            return "None"
        shown = [kind.show(one) for kind, one in zip(self.ranges, value, strict=True)]
        return f"({', '.join(shown)})"


def reals(
    low: float,
    high: float,
    ends: str = "[]",
    *,
    note: str = "",
    optional: bool = False,
    unit: float = 0.01,
) -> Range:
    return Range(float, low, high, note, ends, optional, unit)


def finite(low: float, *, optional: bool = False) -> Range:
    return Range(float, low, None, optional=optional)


def integers(low: int, *, note: str = "") -> Range:
    return Range(int, low, None, note)


def check_mask(attention_mask: Any) -> npt.NDArray[np.bool_]:
    mask = as_array("attention_mask", attention_mask)
    if mask.dtype.kind not in "biuf":
        raise TypeError(
            f"`attention_mask` has to be an array of 0 and 1, but is {attention_mask!r}"
        )
    if mask.ndim != 2:
        raise ValueError(f"`attention_mask` has to be 2-D, but has shape {mask.shape}")
    held: npt.NDArray[np.bool_] = mask == 1
    other = mask[~held & (mask != 0)]
    if len(other):
        raise ValueError(f"`attention_mask` has to be an array of 0 and 1, but has {other[0]}")
    return held


def check_axes(axis: object, ndim: int) -> tuple[int, ...]:
    """Return the axes that are meant, ascending, each in [0, ndim)."""
    if axis is None:
        return tuple(range(ndim))
    count = max(ndim, 1)  # a scalar's one value lies along axis 0, as NumPy has it
    range_text = f"an integer in [{-count}, {count}), a tuple of them, or None"
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = sorted(check_integer("axis", one, -count, count, range_text) % count for one in given)
    if len(set(axes)) != len(axes):
        raise ValueError(f"`axis` has to name each axis once, but is {axis}")
    return tuple(axes) if ndim else ()


def check_choice(name: str, value: Any, choices: tuple[_Choice, ...], hint: str = "") -> _Choice:
    if not isinstance(value, str) or value not in choices:
        wanted = " or ".join(map(repr, choices))
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"`{name}` has to be {wanted}, but is {value!r}{': ' * bool(hint)}{hint}"
        )
    return choices[choices.index(value)]  # a subclass of str has a repr of its own


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` has to be True or False, but is {value!r}")


def check_logprobs(value: int | None) -> int:
    return 0 if value is None else check_integer("logprobs", value, 0, 2**40, "an integer >= 0")


def check_numbers(name: str, values: Any, batch: int | None) -> npt.NDArray[np.uint64] | None:
    """One integer in [0, 2**64) per row, from one for all or a sequence of one each.

    Without `batch` the values have to be a sequence, of any length.
    """
    if values is None:
        return None
    wanted = "integers in [0, 2**64), one per row"
    values = _tensors.readable(values, name)
    if hasattr(values, "tolist"):
        values = values.tolist()  # exact, where a mixed list would pass through float64
    if isinstance(values, numbers.Number):  # of draws and steps, one does for all rows
        number = check_integer(name, values, 0, U64_END, U64_TEXT)
        if batch is None or (name == "streams" and batch != 1):
            raise ValueError(f"`{name}` has to be {wanted}, but is {number}")
        return np.full(batch, number, np.uint64)
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"`{name}` has to be {wanted}, but is {values!r}")
    checked = [check_integer(name, value, 0, U64_END, U64_TEXT) for value in values]
    if batch is not None:
        check_batch(name, len(checked), batch)
    return np.array(checked, dtype=np.uint64)


def has_bools(value: Any) -> bool:
    """Test whether a list of numbers has bools among them, which NumPy takes for numbers."""
    return isinstance(value, (list, tuple)) and any(isinstance(v, (bool, np.bool_)) for v in value)


def as_array(name: str, value: Any) -> npt.NDArray[Any]:
    """Make an array of what a caller gave; of objects, which no check accepts, if it is ragged."""
    try:
        return _tensors.to_array(value, name)
    except ValueError:
        return np.empty(0, object)


def read_json(text: Any, kind: str, version: int) -> dict[str, Any]:
    """Return what a kind of value has been written as, with the version of its form."""
    try:
        found = json.loads(text)
    except (RecursionError, json.JSONDecodeError):
        found = None
    given = found.pop("version", None) if isinstance(found, dict) else None
    if type(given) is not int or given != version:
        raise ValueError(f"`text` has to be a {kind} of version {version} as JSON")
    return found  # type: ignore[no-any-return]


def check_batch(name: str, given: int, batch: int) -> None:
    """Refuse what is not for as many rows as there are."""
    if given != batch:
        raise ValueError(f"`{name}` has to be for {rows_text(batch)}, but is for {given}")


def rows_text(count: int) -> str:
    """Say how many rows."""
    return "1 row" if count == 1 else f"{count} rows"


def check_tokens(name: str, tokens: Any, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Ids in [0, vocab), of the shape of the batch or with one axis more."""
    *batch, vocab = shape
    shapes = f"({batch[0]},) or ({batch[0]}, n)" if batch else "() or (n,)"
    wanted = f"integers in [0, {vocab}), of shape {shapes}"
    array = check_ids(name, tokens, vocab, wanted)
    if array.ndim not in (len(batch), len(batch) + 1) or array.shape[: len(batch)] != (*batch,):
        raise ValueError(f"`{name}` have to be {wanted}, but have shape {array.shape}")
    return array


def check_ids(
    name: str,
    ids: Any,
    vocab: int,
    wanted: str,
    *,
    may_be_padded: bool = False,
    where: str = "",
    holds: bool = False,
) -> npt.NDArray[np.int64]:
    """Integers in [0, vocab), of any shape; `wanted` is what the message says they have to be.

    `may_be_padded` says that the caller's function has an `ignore_index`; `where` ends a message,
    and `holds` says that `wanted` is what they have to hold.
    """
    must, are = ("has to hold", "holds") if holds else ("have to be", "are")
    array = as_array(name, ids)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)  # NumPy makes floats of an empty list
    if array.dtype.kind not in "iu" or has_bools(ids):
        # Show the dtype, not the values, of a long array. A ragged list has become an empty one.
        is_long = array.size > 1 and not has_bools(ids)
        found = array.dtype if is_long else reprlib.repr(ids)
        raise TypeError(f"`{name}` {must} {wanted}, but {are} {found}{where}")
    outside = (array < 0) | (array >= vocab)
    if outside.any():
        place = tuple(np.argwhere(outside)[0].tolist())
        found = describe_outside(int(array[place]), place, may_be_padded)
        raise ValueError(f"`{name}` {must} {wanted}, but one is {found}{where}")
    return array.astype(np.int64)


def describe_outside(value: int, place: tuple[int, ...], may_be_padded: bool) -> str:
    """Describe a value that is not a class: its place, and what to do if it is padding."""
    at = f", at index {place[0] if len(place) == 1 else place}" if place else ""
    hint = f": if it is padding, pass ignore_index={value}" if may_be_padded and value < 0 else ""
    return f"{value}{at}{hint}"


def check_reals(
    name: str, value: Any, low: float, range_text: str, shape: tuple[int, ...]
) -> float | npt.NDArray[np.float64]:
    """Floats of at least `low`: one for all, or an array that is broadcast to `shape`."""
    if not isinstance(value, (list, tuple)) and (
        not hasattr(value, "__array__") or isinstance(value, np.generic)
    ):
        return check_real(name, value, low, math.inf, range_text) + 0.0  # -0.0 is 0.0
    wanted = f"{range_text}, or one per row"
    array = as_array(name, value)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"`{name}` has to be {wanted}, but is {value!r}")
    array = array.astype(np.float64) + 0.0
    good = array >= low
    if not good.all():
        raise ValueError(f"`{name}` has to be {wanted}, but one is {array[~good].flat[0]}")
    return float(array) if array.ndim == 0 else check_broadcast(name, array, shape)


def check_broadcast(name: str, array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """A view of the array in that shape."""
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"`{name}` has to broadcast to shape {shape}, but has shape {array.shape}"
        ) from None
