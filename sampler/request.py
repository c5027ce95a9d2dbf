"""One text as it grows: a sampler with its place in the random numbers, history, mask and memory.

A `Request` draws the tokens of a text, and remembers what the next one needs. `next_tokens` draws
one token for each of many requests, whatever their settings, in one call of the core: the texts
are those that each would get alone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from sampler import _inputs
from sampler._checks import (
    MOST_TOKENS,
    U64_END,
    U64_TEXT,
    Ids,
    check_batch,
    check_flag,
    check_integer,
    check_logprobs,
    read_json,
)
from sampler._core import Changes, Edits
from sampler._engine import Entry, Extras, JoinedEngine
from sampler._inputs import Logits, kind_of
from sampler.api import Sampler, engine_of
from sampler.history import History
from sampler.masks import read_mask
from sampler.memory import State, initial_states
from sampler.results import Samples, moved
from sampler.schedule import Schedule, check_sampler

__all__ = ["Request", "next_samples", "next_tokens"]

_VERSION = 1
_ID = f"an integer in [0, {MOST_TOKENS})"


class Request:
    """A text as it grows.

    Parameters
    ----------
    sampler : Sampler or Schedule
        Its settings and its seed. Its own step does not move.
    prompt : sequence of int, or array or tensor of shape (n,)
        The tokens that the model was given.
    stream, draw : int, in [0, 2**64)
        The text's own random numbers: of each text of a prompt another `draw`, of each prompt
        another `stream`. The step is the number of tokens so far, `prompt` and output.
    mask : array_like, optional
        Which tokens may be drawn: what `Sampler.sample` takes for a lone row. Set the attribute
        `mask` before a token to change it.
    eos_token_id : int or sequence of int, optional
        The text is over after one of these tokens.
    max_new_tokens : int, >= 0, optional
        The text is over after so many tokens of output.

    Attributes
    ----------
    sampler : Sampler
        The one that draws the next token.
    history : History
        The tokens so far. Only to be read: `accept` and `rollback` write to it.
    stream, draw : int
    error : Exception or None
        Why `next_tokens` could not draw: the text is over then.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If one is out of its range, or the sampler has settings per row.

    See Also
    --------
    next_tokens : for a token of each of many requests.
    sampler.Sampler.sample : for calls that keep track themselves.

    Notes
    -----
    A token is that of ``s.sample(row, streams=[stream], steps=[step], draws=[draw])`` with the
    text's history, mask and state, and so the one that `sampler.hf.generate_kwargs` draws there.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.request import Request
    >>> r = Request(Sampler(temperature=0.8, frequency_penalty=0.5, seed=7), prompt=[0, 3])
    >>> row = [1.0, 3.0, 2.0, 0.0]
    >>> [r.next(row) for _ in range(4)]
    [0, 1, 1, 1]
    >>> r.rollback(2)
    >>> r.next(row)
    1
    """

    __slots__ = (
        "_draw",
        "_edits",
        "_engine",
        "_entry",
        "_eos_ids",
        "_has_extras",
        "_mask",
        "_max_new_tokens",
        "_n_prompt",
        "_ready",
        "_schedule",
        "_starts",
        "_states",
        "_stream",
        "_take_token",
        "_threads",
        "_tokens",
        "_vocab",
        "_words",
        "error",
        "history",
        "sampler",
    )

    def __init__(
        self,
        sampler: Sampler | Schedule,
        prompt: Any = (),
        *,
        stream: int = 0,
        draw: int = 0,
        mask: Any = None,
        eos_token_id: int | Iterable[int] | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        if not isinstance(sampler, Schedule):
            check_sampler(sampler)
            sampler = Schedule([(sampler, None)])
        self._schedule = sampler
        self._stream = check_integer("stream", stream, 0, U64_END, U64_TEXT)
        self._draw = check_integer("draw", draw, 0, U64_END, U64_TEXT)
        ends: Any = eos_token_id
        ends = [ends] if isinstance(ends, Integral) else ends
        self._eos_ids = frozenset(Ids().check_per_row("eos_token_id", () if ends is None else ends))
        if max_new_tokens is not None:
            most = check_integer("max_new_tokens", max_new_tokens, 0, None, "an integer >= 0")
            max_new_tokens = most
        self._max_new_tokens = max_new_tokens
        self._mask = mask
        self._words: npt.NDArray[np.int32] | None = None
        self._edits: Edits | Changes | None = None
        self._vocab = 0  # of the logits, once there were any
        self._ready = 0  # the vocabulary for which the next token may be drawn at once, else 0
        self.error: Exception | None = None
        self._hold(History(prompt))
        self._starts = [0]
        self._states: list[State | None] = []  # before each token of the output, and the next
        self._use_part()
        self._begin_part()

    def _hold(self, history: History) -> None:
        self.history = history
        self._tokens, self._n_prompt = history.text()

    # ------------------------------------------------------------------------- as it stands

    @property
    def stream(self) -> int:
        """The stream of the text's random numbers."""
        return self._stream

    @property
    def draw(self) -> int:
        """The draw index of the text's random numbers."""
        return self._draw

    @property
    def mask(self) -> Any:
        """Which tokens may be drawn next, as it was given."""
        return self._mask

    @mask.setter
    def mask(self, mask: Any) -> None:
        words = None
        if mask is not None and self._vocab:
            words = read_mask(mask, (self._vocab,))[0]
            if not self._has_extras:  # so far nothing looked for a mask
                self._ready = 0
        self._mask, self._words = mask, words

    @property
    def is_over(self) -> bool:
        """Whether the text has come to its end, or to an error."""
        n = len(self._tokens) - self._n_prompt
        return bool(
            self.error is not None
            or (self._max_new_tokens is not None and n >= self._max_new_tokens)
            or (n and self._tokens[-1] in self._eos_ids)
        )

    @property
    def output(self) -> list[int]:
        """The tokens after the prompt."""
        return self.history.output

    @property
    def state(self) -> State | None:
        """What a sampler with memory remembers; None without one."""
        return self._states[-1] if self._states else None

    # ------------------------------------------------------------------------- tokens

    def next(self, logits: Any, *, dtype: Any = None) -> int:
        """Draw the next token, and accept it.

        Parameters
        ----------
        logits : array_like of shape (vocab,)
            As for a call of `Sampler`.
        dtype : {None, "bfloat16"}
            As there.

        Returns
        -------
        int

        Raises
        ------
        TypeError, ValueError
            As a call of `Sampler`; if the text is over, or the logits are of another vocabulary
            than the last ones. The request stays as it was.

        See Also
        --------
        next_tokens : for many requests.
        """
        source = _one_row(logits, dtype)
        return int(_draw([self], source, alone=True)[0])

    def sample(
        self,
        logits: Any,
        *,
        logprobs: int | None = None,
        raw: bool = False,
        keep: bool = False,
        dtype: Any = None,
    ) -> Samples[int, float]:
        """Draw the next token, accept it, and return what `Sampler.sample` would.

        Parameters
        ----------
        logits, logprobs, raw, keep, dtype
            As for `Sampler.sample`.

        Returns
        -------
        Samples

        Raises
        ------
        TypeError, ValueError
            As `next`.

        See Also
        --------
        next_samples : for many requests.
        """
        source = _one_row(logits, dtype)
        found: Samples[int, float] = _sample([self], source, logprobs, raw, keep, alone=True)[0]
        return found

    def accept(self, token: int, logits: Any = None, *, dtype: Any = None) -> None:
        """Append a token that came from elsewhere: forced, or agreed with a draft.

        Parameters
        ----------
        token : int, in [0, vocab)
        logits : array_like of shape (vocab,), optional
            The row that it is a token of: a sampler with memory has to see it.
        dtype : {None, "bfloat16"}
            As for a call.

        Raises
        ------
        TypeError, ValueError
            If the token is no id, the text is over, or a sampler with memory gets no logits.

        See Also
        --------
        Request.rollback : takes tokens back.
        """
        end = self._vocab or MOST_TOKENS
        token = check_integer("token", token, 0, end, f"an integer in [0, {end})")
        self._check_open()
        state = self.state
        if state is not None:
            if logits is None:
                raise ValueError(
                    f"`logits` have to be given as well, since {state.stage!r} remembers the "
                    "probability of each token"
                )
            mask = self._mask
            n = len(self._tokens)
            scored = self.sampler.score(
                logits, token, history=self.history, state=state, mask=mask, dtype=dtype,
                streams=[self._stream], steps=[n], draws=[self._draw],
            )  # fmt: skip
            state = scored.state
        self._append(token, state)

    def rollback(self, n: int) -> None:
        """Take back the last n tokens of the output: the text is again as it was before them.

        Parameters
        ----------
        n : int, in [0, number of output tokens]

        Raises
        ------
        TypeError, ValueError
            If it is not such an integer.

        See Also
        --------
        Request.fork : to go on in two ways.
        """
        self.history.rollback(n)
        self.error = None
        left = len(self._tokens) - self._n_prompt
        while self._starts[-1] > left:
            self._starts.pop()
        del self._states[left + 1 :]
        self._use_part()

    def fork(self, *, stream: int | None = None, draw: int | None = None) -> Self:
        """Return a copy that goes its own way: by other random numbers if `stream` or `draw` says.

        Parameters
        ----------
        stream, draw : int, in [0, 2**64), optional
            Those of the copy: without either it draws the same tokens.

        Returns
        -------
        Request

        Raises
        ------
        TypeError, ValueError
            If one is not such an integer.

        See Also
        --------
        Request.rollback : goes back.

        Examples
        --------
        >>> from sampler import Sampler
        >>> from sampler.request import Request
        >>> r = Request(Sampler(seed=7))
        >>> [one.next([1.0, 1.0, 1.0, 1.0]) for one in [r.fork(draw=i) for i in range(4)]]
        [3, 3, 2, 1]
        """
        made = object.__new__(type(self))
        for name in Request.__slots__:
            setattr(made, name, getattr(self, name))
        made._hold(self.history.fork())
        made._starts, made._states = self._starts[:], self._states[:]
        if stream is not None:
            made._stream = check_integer("stream", stream, 0, U64_END, U64_TEXT)
        if draw is not None:
            made._draw = check_integer("draw", draw, 0, U64_END, U64_TEXT)
        made._use_part()
        return made

    # ------------------------------------------------------------------------- JSON

    def to_json(self) -> str:
        """Return the request as JSON, with the version of its form.

        Raises
        ------
        ValueError
            If a part of its `Schedule` ends by a function, or it has a mask and has seen no logits.

        See Also
        --------
        Request.from_json : reads it.
        """
        if any(callable(until) for _, until in self._schedule.parts):
            raise ValueError("a Schedule that asks a function cannot be written as JSON")
        mask = self._mask
        if mask is not None:
            if self._words is None or self._vocab == 0:
                raise ValueError("a request with a mask has to see logits before it is JSON")
            mask = base64.b64encode(self._words.astype("<i4").tobytes()).decode()
        return json.dumps({
            "version": _VERSION,
            "parts": [[one.to_dict(), until] for one, until in self._schedule.parts],
            "prompt": self.history.prompt,
            "output": self.history.output,
            "stream": self._stream,
            "draw": self._draw,
            "vocab": self._vocab,
            "mask": mask,
            "eos_token_id": sorted(self._eos_ids),
            "max_new_tokens": self._max_new_tokens,
            "error": None if self.error is None else str(self.error),
            "starts": self._starts,
            "states": [None if one is None else one.to_json() for one in self._states],
        })  # fmt: skip

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` has written.

        Raises
        ------
        TypeError, ValueError
            If it is not that, or of another version.

        See Also
        --------
        Request.to_json : writes it.
        """
        found = read_json(text, "Request", _VERSION)
        if found.keys() != set(_KEYS):
            raise ValueError(f"`text` has to have a version, {', '.join(_KEYS)}, and no more")
        parts, mask, states, starts = (
            found[name] for name in ("parts", "mask", "states", "starts")
        )
        if not isinstance(parts, list) or any(
            not isinstance(p, list) or len(p) != 2 for p in parts
        ):
            raise ValueError("`parts` of the text have to be pairs of settings and an end")
        if mask is not None:
            mask = np.frombuffer(base64.b64decode(mask, validate=True), "<i4").astype(np.int32)
        made = cls(
            Schedule([(Sampler.from_dict(settings), until) for settings, until in parts]),
            found["prompt"],
            stream=found["stream"],
            draw=found["draw"],
            eos_token_id=found["eos_token_id"],
            max_new_tokens=found["max_new_tokens"],
        )
        made._vocab = check_integer("vocab", found["vocab"], 0, MOST_TOKENS + 1, _ID)
        made.mask = mask
        made._hold(History(found["prompt"], found["output"]))
        n = len(found["output"])
        if made._vocab and any(one >= made._vocab for one in made._tokens):
            raise ValueError(f"the text has to hold ids in [0, {made._vocab}), as `vocab` says")
        if not isinstance(found["error"], (str, type(None))):
            raise ValueError("`error` of the text has to be a string or null")
        made.error = None if found["error"] is None else ValueError(found["error"])
        rises = isinstance(starts, list) and starts[:1] == [0] and starts == sorted(starts)
        if not rises or len(starts) > len(parts) or not all(0 <= one <= n for one in starts):
            raise ValueError(f"`starts` of the text have to rise from 0 to at most {n}")
        made._starts = starts
        made._states = [None if one is None else State.from_json(one) for one in states]
        if made._states and len(made._states) != n + 1:
            raise ValueError(f"`states` of the text have to be {n + 1}, but are {len(states)}")
        made._use_part()
        return made

    def __copy__(self) -> Self:
        return self.fork()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_json, (self.to_json(),)

    def __repr__(self) -> str:
        over = ", over" if self.is_over else ""
        return (
            f"<Request of stream {self._stream}, draw {self._draw}, {self._n_prompt} tokens of "
            f"prompt and {len(self._tokens) - self._n_prompt} of output{over}: {self.sampler!r}>"
        )

    # ------------------------------------------------------------------------- inside

    def _append(self, token: int, state: State | None = None) -> None:
        """Take a token in, and what is remembered after it; nothing, where a schedule raises."""
        begun = len(self._starts)
        self._tokens.append(token)
        if self._states:
            self._states.append(state)
        try:
            self._begin_part()
        except BaseException:
            self._tokens.pop()
            del self._states[-1:], self._starts[begun:]
            self._use_part()
            raise
        if len(self._tokens) - self._n_prompt == self._max_new_tokens or token in self._eos_ids:
            self._ready = 0

    def _begin_part(self) -> None:
        """Let the next parts of a schedule begin, if they do here."""
        n, starts, schedule = len(self._tokens) - self._n_prompt, self._starts, self._schedule
        before = len(starts)
        while len(starts) < len(schedule.parts) and schedule.ended(
            self.history, len(starts) - 1, starts[-1]
        ):
            starts.append(n)
        if len(starts) > before:
            self._use_part()

    def _use_part(self) -> None:
        """Draw with the sampler of the part that the text is in."""
        self.sampler = self._schedule.parts[len(self._starts) - 1][0]
        self._engine = engine_of(self.sampler)
        self._threads = self._engine.threads
        self._entry: Entry | None = None
        self._has_extras = False
        self._ready = 0
        memory = self._engine.memory
        n = len(self._tokens) - self._n_prompt
        if memory is not None or self._states:
            self._states += [None] * (n + 1 - len(self._states))
            last = self._states[-1]
            if memory is None or last is None or last.stage != memory:
                self._states[-1] = None if memory is None else initial_states(memory, None)
        # What takes a token where nothing else is to be remembered or looked at.
        is_plain = (
            self._max_new_tokens is None
            and not (self._eos_ids or self._states)
            and len(self._starts) == len(self._schedule.parts)
        )
        self._take_token = self._tokens.append if is_plain else self._append

    def _check_open(self, where: str = "") -> None:
        if self.error is not None:
            raise ValueError(f"the request{where} has failed: {self.error}") from self.error
        if self.is_over:
            raise ValueError(
                f"the request{where} is over: it has its end token, or max_new_tokens; rollback(n) "
                "goes back"
            )

    def _prepare(self, vocab: int, row: int) -> Exception | None:
        """Make ready for a row; return what is wrong with what the request asks for, if anything.

        Raises
        ------
        ValueError
            If it is over.
        """
        self._check_open(f" of row {row}" if row else "")
        if self._vocab not in (0, vocab):
            return ValueError(
                f"`logits` have to be of {self._vocab} tokens, as the last ones of this request "
                f"were, but are of {vocab}"
            )
        try:
            self._edits = self._engine.edits_for(vocab)
            if self._vocab == 0 and (outside := [one for one in self._tokens if one >= vocab]):
                raise ValueError(
                    f"the text has to hold ids in [0, {vocab}), but one is {outside[0]}"
                )
            if self._mask is not None and (self._words is None or self._vocab == 0):
                self._words = read_mask(self._mask, (vocab,))[0]
        except (TypeError, ValueError) as error:
            return error
        self._entry = self._engine.entry(
            self.history.text(), self._stream, self._draw, self._words is not None
        )
        self._has_extras = self._entry.has_extras
        self._ready = vocab
        return None


_KEYS = (
    "parts", "prompt", "output", "stream", "draw", "vocab", "mask", "eos_token_id",
    "max_new_tokens", "error", "starts", "states",
)  # fmt: skip


def next_tokens(requests: Sequence[Request], logits: Any, *, dtype: Any = None) -> Any:
    """Draw the next token of each request, in one call of the core, and accept it there.

    Parameters
    ----------
    requests : sequence of Request of length batch
        Each once; none is over.
    logits : array_like of shape (batch, vocab)
        Row i is that of request i. As for a call of `Sampler`.
    dtype : {None, "bfloat16"}
        As there.

    Returns
    -------
    ndarray or tensor of shape (batch,), int64
        A tensor if the logits are one. -1 where a request fails: its logits are invalid or of
        another vocabulary than its last ones, or what it asks for is not in the vocabulary. Its
        `error` says why, it takes no token and is over; all others get what they would without it.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above. Then no request has moved.

    See Also
    --------
    next_samples : log-probabilities as well.
    Request.next : for one.

    Notes
    -----
    The samplers may differ in everything, seed and order of stages included. Rows are shared over
    as many threads as the sampler with the most `threads` has.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.request import Request, next_tokens
    >>> s = Sampler(temperature=0.8, seed=7)
    >>> requests = [Request(s, stream=5), Request(s.replace(temperature=0)), Request(s, draw=3)]
    >>> next_tokens(requests, [[1.0, 3.0, 2.0, 0.0]] * 3)
    array([0, 1, 1])
    """
    source = _inputs.read(logits, dtype, draws=True)
    _inputs.check_rows(source, axes=(2,))
    return source.to_container(_draw(requests, source))


def next_samples(
    requests: Sequence[Request],
    logits: Any,
    *,
    logprobs: int | None = None,
    raw: bool = False,
    keep: bool = False,
    dtype: Any = None,
) -> Samples[Any, Any]:
    """Draw as `next_tokens`, and return what `Sampler.sample` would.

    Parameters
    ----------
    requests, logits, dtype
        As for `next_tokens`.
    logprobs, raw, keep
        As for `Sampler.sample`, for all requests.

    Returns
    -------
    Samples
        Of the batch. Of a request that fails, as of a row under ``on_invalid="flag"``; but where it
        is a function of its schedule that raises, only the token is -1.

    Raises
    ------
    TypeError, ValueError
        As `next_tokens`.

    See Also
    --------
    Request.sample : for one.
    """
    source = _inputs.read(logits, dtype, draws=True)
    _inputs.check_rows(source, axes=(2,))
    return _sample(requests, source, logprobs, raw, keep)


def _one_row(logits: Any, dtype: Any) -> Logits:
    source = _inputs.read(logits, dtype, draws=True)
    _inputs.check_rows(source, axes=(1,))
    return source._replace(array=source.array[None])


class _Batch:
    """The requests of a call, ready for the core; those that fail stand in it as banned rows."""

    __slots__ = ("engine", "failed", "fresh", "requests", "source")

    def __init__(self, requests: Sequence[Request], source: Logits) -> None:
        self.requests = made = list(requests)
        self.source = source
        check_batch("requests", len(made), source.batch)
        vocab = source.array.shape[1]
        self.failed: dict[int, Exception] = {}
        for row, one in enumerate(made):
            if not isinstance(one, Request):
                raise TypeError(f"`requests` have to be Requests, but one is {kind_of(one)}")
            if one._ready != vocab and (error := one._prepare(vocab, row)) is not None:
                self.failed[row] = error
        self.fresh = [row for row, one in enumerate(made) if one._vocab == 0]
        if len(set(map(id, made))) < len(made):
            raise ValueError("`requests` have to be all different, but one is there twice")
        entries: list[Any] = [one._entry for one in made]
        extras = None
        if self.failed or any(one._has_extras for one in made):
            extras = Extras(
                [one._edits for one in made],
                [one._words for one in made],
                [one._states[-1] if one._states else None for one in made],
            )
            for row in self.failed:
                entries[row] = _NO_ENTRY
                extras.edits[row], extras.masks[row], extras.states[row] = None, _NO_TOKEN, None
        threads = max((one._threads for one in made), default=1)
        self.engine = JoinedEngine(entries, extras, threads)

    def accept(self, tokens: npt.NDArray[np.int64], states: Any, alone: bool) -> None:
        """Let every request take its token, or what is wrong with it: then the token is -1."""
        drawn = tokens.tolist()
        if min(drawn, default=0) < 0:
            for row, token in enumerate(drawn):
                if token < 0 and row not in self.failed:
                    self.failed[row] = self.engine.error(self.source, row)
        if self.failed and alone:
            raise self.failed[0]
        for row, one in enumerate(self.requests):
            try:
                if drawn[row] < 0:
                    continue
                if states is None:
                    one._take_token(drawn[row])
                else:
                    one._append(drawn[row], states[row])
            except Exception as error:  # of a function of its schedule
                if alone:
                    raise
                self.failed[row], tokens[row] = error, -1
        vocab = self.source.array.shape[1]
        for row in self.fresh:
            if row not in self.failed:
                self.requests[row]._vocab = vocab
        for row, why in self.failed.items():
            self.requests[row].error = why
            self.requests[row]._ready = 0


# Of a row whose request asks for what cannot be.
_NO_ENTRY = engine_of(Sampler(seed=0)).entry(History().text(), 0, 0, has_mask=True)
_NO_TOKEN = np.zeros(1, np.int32)


def _draw(requests: Sequence[Request], source: Logits, alone: bool = False) -> Any:
    batch = _Batch(requests, source)
    given = batch.engine.given
    if given.states is None:
        tokens, states = batch.engine.draw(source, given=given), None
    else:
        found = batch.engine.sample(source, None, None, given=given)
        tokens, states = found.tokens, found.state
    batch.accept(tokens, states, alone)
    return tokens


def _sample(
    requests: Sequence[Request],
    source: Logits,
    logprobs: int | None,
    raw: bool,
    keep: bool,
    alone: bool = False,
) -> Samples[Any, Any]:
    top = None if logprobs is None else check_logprobs(logprobs)
    check_flag("raw", raw)
    check_flag("keep", keep)
    batch = _Batch(requests, source)
    found = batch.engine.sample(source, None, top, raw=raw, keep=keep, given=batch.engine.given)
    batch.accept(found.tokens, found.state, alone)
    return found if source.to_tensor is None else moved(found, source.to_tensor)
