"""What a sampler with memory remembers of a text: a small value; each draw makes the next one.

`Sampler.initial_state` makes the first; `Sampler.sample` and `Sampler.score` take one, and the next
is their `Samples.state`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Self

import numpy as np

from sampler._checks import FloatArray, check_batch, check_integer, read_json, rows_text
from sampler._inputs import kind_of
from sampler.results import Distribution, observed_of
from sampler.stages.memories import Memory
from sampler.stages.settings import STAGES

__all__ = ["State"]

_VERSION = 1


class State:
    """What a stage with memory remembers after some tokens of a text.

    It never changes: keep an earlier one to go back.

    Parameters
    ----------
    stage : Mirostat or AdaptiveP, on, of numbers
        The last stage of the sampler.
    values : sequence of finite floats, optional
        The numbers that it remembers: `mu`, or `sum` and `weight`. Those before the first token by
        default.

    Attributes
    ----------
    stage : Mirostat or AdaptiveP
    values : tuple of float

    Raises
    ------
    TypeError
        If `stage` has no memory, or the values are not numbers.
    ValueError
        If the stage is off or one per row, or the values are not as many as it remembers.

    See Also
    --------
    sampler.Sampler.initial_state : makes the first one.

    Examples
    --------
    >>> from sampler import Sampler
    >>> s = Sampler(mirostat=(2, 1.0, 0.1), seed=7)
    >>> state, row = s.initial_state(), [1.0, 3.0, 2.0, 0.0]
    >>> for _ in range(2):
    ...     r = s.sample(row, state=state)
    ...     state = r.state
    >>> state
    State(Mirostat(2, 1.0, 0.1), mu=2.1548058916910415)
    """

    __slots__ = ("stage", "values")
    stage: Memory
    values: tuple[float, ...]

    def __init__(self, stage: Memory, values: Iterable[float] | None = None) -> None:
        if not isinstance(stage, Memory):
            raise TypeError(f"`stage` has to be one with memory, but is {kind_of(stage)}")
        if any(isinstance(value, np.ndarray) for value in stage.values) or stage.is_off:
            raise ValueError(f"`stage` has to be on, and for one row, but is {stage!r}")
        numbers = stage.initial() if values is None else tuple(values)
        if len(numbers) != len(stage.remembers):
            raise ValueError(
                f"`values` have to be {' and '.join(stage.remembers)}, but are {numbers}"
            )
        checked = [
            one.check(name, number)
            for (name, one), number in zip(stage.remembers.items(), numbers, strict=True)
        ]
        object.__setattr__(self, "stage", stage)
        object.__setattr__(self, "values", tuple(checked))

    def after(self, token: int, distribution: Distribution) -> State:
        """Return the state after a token.

        Parameters
        ----------
        token : int
        distribution : Distribution
            What the sampler makes of the row in this state: ``s.distribution(row, state=state)``.

        Returns
        -------
        State
            This one, where the distribution is greedy or does not keep the token.

        Raises
        ------
        TypeError, ValueError
            If the token is not an integer in [0, vocab), or the distribution another sampler's.

        See Also
        --------
        sampler.Sampler.score : the same, for a row, as `Samples.state`.
        """
        token = check_integer("token", token, 0, None, "an integer >= 0")
        given: Any = distribution
        if not isinstance(given, Distribution):
            raise TypeError(f"`distribution` has to be a Distribution, but is {kind_of(given)}")
        stage, observed = observed_of(distribution, token)
        if stage != self.stage:
            raise ValueError(
                f"`distribution` has to be of a sampler with {self.stage!r}, but is of one with "
                f"{'no memory' if stage is None else repr(stage)}"
            )
        return self.observing(observed)

    def observing(self, observed: float) -> State:
        """Return the state after a token of which the core has observed this; NaN changes none."""
        if math.isnan(observed):
            return self
        made = object.__new__(State)
        object.__setattr__(made, "stage", self.stage)
        object.__setattr__(made, "values", self.stage.after(self.values, observed))
        return made

    def to_json(self) -> str:
        """Return the state as JSON, with the version of its form.

        See Also
        --------
        State.from_json : reads it.
        """
        return json.dumps(
            {
                "version": _VERSION,
                self.stage.setting: self.stage.value,
                **dict(zip(self.stage.remembers, self.values, strict=True)),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` has written.

        Raises
        ------
        TypeError, ValueError
            If it is not that, or of another version.

        See Also
        --------
        State.to_json : writes it.
        """
        found = read_json(text, "State", _VERSION)
        for setting, kind in STAGES.items():
            if issubclass(kind, Memory) and found.keys() == {setting, *kind.remembers}:
                parameters = found[setting]
                if not isinstance(parameters, list) or len(parameters) != len(kind.parameters):
                    break
                return cls(kind(*parameters), [found[name] for name in kind.remembers])
        raise ValueError("`text` has to have a stage with memory, and what it remembers, no more")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a State does not change: Samples.state is the next one")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self.values == other.values and self.stage == other.stage

    def __hash__(self) -> int:
        return hash((self.stage, self.values))

    def __reduce__(self) -> tuple[Any, ...]:
        return State, (self.stage, self.values)

    def __repr__(self) -> str:
        named = zip(self.stage.remembers, self.values, strict=True)
        shown = ", ".join(f"{name}={value!r}" for name, value in named)
        return f"State({self.stage!r}, {shown})"


def initial_states(stage: Memory | None, batch: int | None) -> Any:
    """Return the first state of each row, None where the stage is off; `batch` is None for one."""
    if stage is None:
        raise ValueError(
            "`initial_state` is for a sampler with memory, such as Sampler(mirostat=2), but this "
            "one has none"
        )
    rows = _rows_of(stage)
    if batch is None:
        if rows:
            raise ValueError(
                f"`{stage.setting}` is for {rows_text(len(rows))}: give `batch` as well"
            )
        return State(stage)
    states = np.empty(batch, object)
    if not rows:
        states[:] = State(stage)
        return states
    check_batch(stage.setting, len(rows), batch)
    states[:] = [None if one.is_off else State(one) for one in rows]
    return states


@lru_cache(maxsize=16)  # of the samplers that are in use
def _rows_of(stage: Memory) -> tuple[Memory, ...]:
    """Return the stage of each row, none where it is one for all."""
    length = next((len(value) for value in stage.values if isinstance(value, np.ndarray)), 0)
    return tuple(stage.at(row) for row in range(length))


def read_states(state: Any, batch: int | None) -> list[State | None]:
    """Return the states of the rows of a call; `batch` is None for one row."""
    if batch is None:
        if isinstance(state, State):
            return [state]
        raise TypeError(
            f"`state` has to be a State for a lone row, but is {kind_of(state)}: the first is "
            "s.initial_state(), the next r.state"
        )
    if isinstance(state, (State, str)) or not isinstance(state, Iterable):
        raise TypeError(
            f"`state` has to be an array of one State per row, but is {kind_of(state)}: the first "
            "is s.initial_state(batch), the next r.state"
        )
    states = list(state)
    for one in states:
        if one is not None and not isinstance(one, State):
            raise TypeError(f"`state` has to hold one State per row, but holds {kind_of(one)}")
    check_batch("state", len(states), batch)
    return states


def parameters_of(stage: Memory, states: list[State | None]) -> FloatArray:
    """Return what the core is to know of the state of each row; another sampler's is an error."""
    parameters = np.zeros(len(states))
    rows = _rows_of(stage)
    for row, state in enumerate(states):
        wanted = rows[row] if rows else stage
        if state is not None and (state.stage is wanted or state.stage == wanted):
            parameters[row] = wanted.parameter(state.values)
        elif state is not None or not wanted.is_off:
            had = "none" if state is None else repr(state)
            raise ValueError(
                f"`state` has to be of {wanted!r}, as `initial_state` makes it, but row {row} has "
                f"{had}"
            )
    return parameters


def states_after(states: list[State | None], observed: FloatArray, lone: bool) -> Any:
    """Return the states after tokens of which the core has observed these."""
    after = np.empty(len(states), object)
    for row, (state, one) in enumerate(zip(states, observed.tolist(), strict=True)):
        after[row] = None if state is None else state.observing(one)
    return after[0] if lone else after
