"""The tokens of a text so far: what penalties, DRY and bans of sequences look at.

A `History` is one text, with its prompt apart from its output; a batch has a list of them. Calls of
a `Sampler` take it as `history=` and only read it: your loop accepts the tokens.
"""

from __future__ import annotations

import json
import numbers
import reprlib
from array import array
from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from sampler import _tensors
from sampler._checks import MOST_TOKENS, as_array, check_batch, check_integer, check_mask, read_json
from sampler._inputs import kind_of

__all__ = ["History"]

_MOST = 2**31  # tokens of a text
_VERSION = 1
_ID = f"an integer in [0, {MOST_TOKENS})"
_IDS = f"integers in [0, {MOST_TOKENS})"


class History:
    """The tokens of one text.

    Parameters
    ----------
    prompt : sequence of int, each in [0, 2**27), or array or tensor of shape (n,)
        The tokens that the model was given.
    output : sequence of int, or array or tensor of shape (n,)
        The tokens that followed.

    Raises
    ------
    TypeError
        If either is not a sequence of integers.
    ValueError
        If an id is out of its range, or there are 2**31 tokens or more.

    See Also
    --------
    sampler.RepetitionPenalty : looks at one, as do all settings that say so.

    Notes
    -----
    A token takes 4 bytes. `accept` is amortised O(1). One thread may write to a history while any
    number read it; on a Python without a GIL, not at the same time.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.history import History
    >>> s = Sampler(temperature=0, frequency_penalty=1.5)
    >>> h = History(prompt=[0, 1])
    >>> for _ in range(4):
    ...     h.accept(s([1.0, 3.0, 2.0, 0.0], history=h))
    >>> h.output
    [1, 2, 1, 0]
    """

    __slots__ = ("_n_prompt", "_tokens")

    def __init__(self, prompt: Any = (), output: Any = ()) -> None:
        self._tokens = _read("prompt", prompt)
        self._n_prompt = len(self._tokens)
        self._tokens.extend(_read("output", output))
        _check_length(len(self._tokens))

    @classmethod
    def from_batch(
        cls, input_ids: Any, attention_mask: Any = None, prompt_length: int | None = None
    ) -> list[Self]:
        """Make one history of each row of a padded batch.

        Parameters
        ----------
        input_ids : array_like of shape (batch, length), integers
        attention_mask : array_like of shape (batch, length), optional
            0 where there is padding; without it every token counts.
        prompt_length : int, in [0, length], optional
            How many columns, padding included, are the prompts; all of them by default.

        Returns
        -------
        list of History

        Raises
        ------
        TypeError, ValueError
            If an argument is not as above.

        See Also
        --------
        History : of one text.

        Examples
        --------
        >>> from sampler.history import History
        >>> History.from_batch([[0, 5, 6], [7, 8, 9]], [[0, 1, 1], [1, 1, 1]], prompt_length=2)
        [History([5], [6]), History([7, 8], [9])]
        """
        ids = as_array("input_ids", input_ids)
        if ids.ndim != 2 or (ids.size and ids.dtype.kind not in "iu"):
            raise TypeError(
                "`input_ids` have to be integers of shape (batch, length), but are "
                f"{kind_of(input_ids)} of shape {ids.shape}"
            )
        batch, length = ids.shape
        mask = np.ones(ids.shape, bool)
        if attention_mask is not None:
            mask = check_mask(attention_mask)
            if mask.shape != ids.shape:
                raise ValueError(
                    f"`attention_mask` has to have the shape of the ids, {ids.shape}, but has "
                    f"shape {mask.shape}"
                )
        end = length
        if prompt_length is not None:
            wanted = f"an integer in [0, {length}]"
            end = check_integer("prompt_length", prompt_length, 0, length + 1, wanted)
        return [
            cls(ids[row, :end][mask[row, :end]], ids[row, end:][mask[row, end:]])
            for row in range(batch)
        ]

    @property
    def prompt(self) -> list[int]:
        """The tokens of the prompt."""
        return self._tokens[: self._n_prompt].tolist()

    @property
    def output(self) -> list[int]:
        """The tokens that were accepted."""
        return self._tokens[self._n_prompt :].tolist()

    def accept(self, token: Any) -> None:
        """Append a token to the output.

        Parameters
        ----------
        token : int, in [0, 2**27)

        Raises
        ------
        TypeError, ValueError
            If it is not such an integer, or the text is full.

        See Also
        --------
        History.rollback : takes tokens back.
        """
        if type(token) is not int or not 0 <= token < MOST_TOKENS:  # quicker than to ask
            token = check_integer("token", token, 0, MOST_TOKENS, _ID)
        _check_length(len(self._tokens) + 1)
        self._tokens.append(token)

    def rollback(self, n: int) -> None:
        """Take back the last tokens of the output.

        Parameters
        ----------
        n : int, in [0, number of output tokens]

        Raises
        ------
        TypeError, ValueError
            If it is not such an integer.

        See Also
        --------
        History.fork : to go on in two ways.
        """
        most = len(self._tokens) - self._n_prompt
        n = check_integer(
            "n", n, 0, most + 1, f"an integer in [0, {most}], the tokens of the output"
        )
        del self._tokens[len(self._tokens) - n :]

    def text(self) -> tuple[array[int], int]:
        """Return the tokens themselves, for the core to read, and how many are the prompt."""
        return self._tokens, self._n_prompt

    def fork(self) -> Self:
        """Return a copy, which goes its own way.

        See Also
        --------
        History.rollback : goes back.
        """
        made = object.__new__(type(self))
        made._tokens, made._n_prompt = self._tokens[:], self._n_prompt
        return made

    def to_json(self) -> str:
        """Return the history as JSON, with the version of its form.

        See Also
        --------
        History.from_json : reads it.
        """
        return json.dumps({"version": _VERSION, "prompt": self.prompt, "output": self.output})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` has written.

        Raises
        ------
        TypeError, ValueError
            If it is not that, or of another version.

        See Also
        --------
        History.to_json : writes it.
        """
        found = read_json(text, "History", _VERSION)
        if found.keys() != {"prompt", "output"}:
            raise ValueError("`text` has to have a version, a prompt and an output, and no more")
        return cls(found["prompt"], found["output"])

    def __len__(self) -> int:
        return len(self._tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, History):
            return NotImplemented
        return self._n_prompt == other._n_prompt and self._tokens == other._tokens

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self._tokens.tobytes(), self._n_prompt)

    def __repr__(self) -> str:
        shown = [
            repr(tokens) if len(tokens) <= 8 else f"[{', '.join(map(str, tokens[:6]))}, ...]"
            for tokens in (self.prompt, self.output)
        ]
        return f"History({', '.join(shown)})"


def _restore(kind: type[History], tokens: bytes, n_prompt: int) -> History:
    made = object.__new__(kind)
    made._tokens, made._n_prompt = array("i", tokens), n_prompt
    return made


def _read(name: str, ids: Any) -> array[int]:
    """Ids of tokens as int32."""
    if isinstance(ids, (list, tuple, range)):
        found = list(ids)
        if any(isinstance(one, bool) or not isinstance(one, numbers.Integral) for one in found):
            raise TypeError(f"`{name}` has to be a sequence of {_IDS}, but is {reprlib.repr(ids)}")
    else:
        values = np.asarray(_tensors.readable(ids, name))
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            rows = values.ndim == 2
            raise TypeError(
                f"`{name}` has to be a sequence of {_IDS}, but is {kind_of(ids)}"
                + f" of shape {values.shape}: one row of it, or History.from_batch" * rows
            )
        found = values.tolist()
    for one in found:
        if not 0 <= one < MOST_TOKENS:
            raise ValueError(f"`{name}` has to hold {_IDS}, but one is {one}")
    return array("i", found)


def _check_length(n: int) -> None:
    if n >= _MOST:
        raise ValueError(f"a text has to have fewer than {_MOST} tokens, but would have {n}")


def read_histories(history: Any, batch: int | None) -> list[tuple[array[int], int]]:
    """Return the tokens of each row, and how many are its prompt; `batch` is None for one row."""
    if batch is None:
        if isinstance(history, History):
            return [history.text()]
        hint = ": write History(prompt, output)" if isinstance(history, (list, tuple)) else ""
        raise TypeError(
            f"`history` has to be a History for a lone row, but is {kind_of(history)}{hint}"
        )
    if isinstance(history, (History, str)) or not isinstance(history, Iterable):
        raise TypeError(
            f"`history` has to be a list of one History per row, but is {kind_of(history)}"
        )
    histories = list(history)
    for one in histories:
        if not isinstance(one, History):
            raise TypeError(f"`history` has to hold one History per row, but holds {kind_of(one)}")
    check_batch("history", len(histories), batch)
    return [one.text() for one in histories]
