"""Settings that change along a text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from sampler._checks import MOST_TOKENS, check_integer
from sampler._inputs import kind_of
from sampler.api import Sampler, engine_of
from sampler.history import History

__all__ = ["Schedule"]

_Until: TypeAlias = "int | tuple[int, ...] | Callable[[History], bool]"
_ID = f"an integer in [0, {MOST_TOKENS})"


class Schedule:
    """Samplers that take turns along a text: for its thinking and its answer, or its first tokens.

    Parameters
    ----------
    parts : sequence of (Sampler, until)
        In order. `until` says when the next part begins: after so many tokens of the part, an int;
        after these tokens, a sequence of int, such as the ids of ``</think>``; or where a function
        of the text so far, a `History`, is true. That of the last part is None.

    Raises
    ------
    TypeError, ValueError
        If `parts` are not as above, or a sampler has settings per row.

    See Also
    --------
    Request : takes one in place of a sampler.

    Notes
    -----
    When a part ends depends on the tokens of the output alone, so it is the same after
    `Request.rollback`, and in every batch. A function is asked at the beginning of a text and once
    after each token.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.request import Request
    >>> from sampler.schedule import Schedule
    >>> s = Sampler(temperature=1.5, seed=7)
    >>> r = Request(Schedule([(s, [3]), (s.replace(temperature=0), None)]))
    >>> [r.next([1.0, 3.0, 2.0, 2.0]) for _ in range(6)]
    [3, 1, 1, 1, 1, 1]
    """

    __slots__ = ("parts",)
    parts: tuple[tuple[Sampler, _Until | None], ...]

    def __init__(self, parts: Iterable[tuple[Sampler, Any]]) -> None:
        whatever: Any = parts
        given: list[Any] = list(parts) if isinstance(whatever, Iterable) else []
        if not given or any(not isinstance(one, (tuple, list)) or len(one) != 2 for one in given):
            raise TypeError(f"`parts` have to be pairs of a Sampler and its end, but are {parts!r}")
        checked: list[tuple[Sampler, _Until | None]] = []
        for place, (sampler, until) in enumerate(given):
            check_sampler(sampler)
            if (until is None) != (place == len(given) - 1):
                raise ValueError(
                    "of `parts` the last has to have None, and each other its end, but part "
                    f"{place} of {len(given)} has {until!r}"
                )
            if isinstance(until, int) and not isinstance(until, bool):
                check_integer("until", until, 0, None, "an integer >= 0")
            elif isinstance(until, (list, tuple, range)):
                until = tuple(check_integer("until", one, 0, MOST_TOKENS, _ID) for one in until)
                if not until:
                    raise ValueError("`until` has to hold at least one id, but is empty")
            elif until is not None and not callable(until):
                raise TypeError(
                    f"`until` has to be an int, a sequence of int or a function, but is {until!r}"
                )
            checked.append((sampler, until))
        self.parts = tuple(checked)

    def __repr__(self) -> str:
        return f"Schedule({list(self.parts)!r})"

    def ended(self, history: History, part: int, begun: int) -> bool:
        """Whether a part that began after so many tokens of output ends here."""
        until = self.parts[part][1]
        tokens, n_prompt = history.text()
        n = len(tokens) - n_prompt - begun
        if isinstance(until, tuple):
            return n >= len(until) and (*tokens[-len(until) :],) == until
        if isinstance(until, int):
            return n >= until
        return bool(until is not None and until(history))


def check_sampler(sampler: Any) -> None:
    if not isinstance(sampler, Sampler):
        raise TypeError(f"`sampler` has to be a Sampler, but is {kind_of(sampler)}")
    if engine_of(sampler).per_row is not None:
        raise ValueError(
            "`sampler` has to be for one text, but has settings per row: make a request of each"
        )
