"""The one door from Python to the core's draw: `Sampler` and every adapter go through an `Engine`.

An engine holds a chain in the core's form and the key of its uniforms. It takes logits that
`_inputs.read` has read and `_inputs.check_rows` has checked, and numbers that are checked.
"""

from __future__ import annotations

import itertools
import os
from array import array
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from sampler import _core
from sampler._checks import FloatArray, check_batch, rows_text
from sampler._inputs import Logits
from sampler.memory import State, parameters_of, states_after
from sampler.results import Distribution, Samples
from sampler.stages.base import NO_IDS, Edit, Stage
from sampler.stages.memories import Memory

_IntArray = npt.NDArray[np.int64]
_WordArray = npt.NDArray[np.uint64]
_Contain = Callable[[npt.NDArray[Any]], Any]
_MaskWords = npt.NDArray[np.int32]
_Texts: TypeAlias = "list[tuple[array[int], int]]"


class Given(NamedTuple):
    """What a call says of each row.

    Where its uniforms are, without which it has its number, the sampler's step, and 0; what may be
    drawn, as `masks.read_mask` gives it; what came before, as `history.read_histories` does; what
    a sampler with memory remembers, as `memory.read_states` does; what alone may be kept, as
    `read_kept` does.
    """

    streams: _WordArray | None = None
    steps: _WordArray | None = None
    draws: _WordArray | None = None
    mask: _MaskWords | None = None
    texts: _Texts | None = None
    states: list[State | None] | None = None
    kept: tuple[_IntArray, _IntArray] | None = None


NOTHING = Given()


class NoTokenLeftError(ValueError):
    """Raised where the mask and the edits forbid every token of a row."""


class InvalidLogit(NamedTuple):
    """The first logit, or the first row of -inf, for which no law is defined."""

    row: int
    token: int  # -1 where the whole row is -inf; -2 where the edits make it so
    value: float

    def error(self, name: str, row_name: str = "") -> ValueError:
        """Return the ValueError that names the row and the token."""
        where = f"row {row_name or self.row}"
        if self.token == -2:
            return NoTokenLeftError(f"the mask and the bans leave no token in {where}")
        if self.token < 0:
            return ValueError(
                f"`{name}` have to hold a finite value in every row, but {where} is -inf throughout"
            )
        return ValueError(
            f"`{name}` have to be finite or -inf, but {where} has {self.value} at token "
            f"{self.token}"
        )

    def error_of_one_row(self, name: str) -> ValueError:
        """Return that of the only row."""
        if self.token == -2:
            return NoTokenLeftError(f"the mask and the bans leave no token in `{name}`")
        if self.token < 0:
            return ValueError(f"`{name}` has to hold a finite value, but is -inf throughout")
        return ValueError(
            f"`{name}` has to be finite or -inf, but has {self.value} at token {self.token}"
        )


def _error(invalid: tuple[int, int, float], name: str, steps: _WordArray | None) -> ValueError:
    row = invalid[0]
    return InvalidLogit(*invalid).error(
        name, "" if steps is None else f"{row} at step {steps[row]}"
    )


def make_chain(
    stages: Iterable[Stage],
    *,
    ties: str = "id",
    min_tokens_to_keep: float | FloatArray = 1,
    tier: int = _core.TIERS["fast"],
    only_after: int | None = None,
) -> _core.Chain:
    """Put the scales and cuts that are on into the core's form; `tier`, for tests, is the first.

    After so many of them, if a number is given, only what `Rows.keep_only` names is kept.
    """
    stages = tuple(stages)
    named = [(s.label(name), getattr(s, name)) for s in stages for name in s.parameters]
    named.append(("min_tokens_to_keep", min_tokens_to_keep))
    per_row = [(name, len(value)) for name, value in named if isinstance(value, np.ndarray)]
    for name, length in per_row:
        first, batch = per_row[0]
        if length != batch:
            raise ValueError(
                f"`{first}` and `{name}` have to be for the same rows, but are for {batch} and "
                f"{length}"
            )
    coins = itertools.count(1)  # lane 0 is the token's
    lanes = [next(coins) if stage.has_coin else 0 for stage in stages]
    steps = [
        (_core.STAGES[stage.setting], lane, *_for_core(stage))
        for stage, lane in zip(stages, lanes, strict=True)
        if not (stage.is_off or isinstance(stage, Edit))
    ]
    if only_after is not None:
        steps.insert(only_after, (_core.STAGES["only"], 0, NO_IDS, 1.0))
    return _core.Chain(
        steps,
        ties == "all",
        min_tokens_to_keep,
        tier,
        per_row[0] if per_row else None,
    )


def scales_around(stages: Iterable[Stage]) -> tuple[list[Stage], int]:
    """Return the scales that are on, and after how many of them a set takes the place of the cuts.

    A scale that looks at the row has to see what it saw there, so it stays on its side.

    Raises
    ------
    ValueError
        If such a scale stands between two cuts.
    """
    scales: list[Stage] = []
    place, cut, late = 0, None, None
    for stage in stages:
        if stage.is_off or isinstance(stage, Edit):
            continue
        if not stage.scales:
            cut = stage
            if late is not None:
                raise ValueError(
                    f"`kept` takes the place of all cuts, so {late!r} may not stand between two, "
                    f"but {cut!r} comes after it"
                )
            continue
        scales.append(stage)
        if stage.looks_at_row and cut is None:
            place = len(scales)
        elif stage.looks_at_row:
            late = stage
    return scales, place


def _compiled(
    edits: Iterable[Edit], vocab: int, per_row: tuple[str, int] | None
) -> _core.Edits | _core.Changes:
    """Put edits into the core's form: bans alone, the same in every call, need no look at a row."""
    edits = list(edits)
    compiled = [edit.compiled(vocab) for edit in edits]
    if all(edit.bans for edit in edits):
        banned = np.unique(np.concatenate([NO_IDS, *(one.ids for one in compiled)]))
        return _core.Edits(vocab, banned, np.full(len(banned), -np.inf))
    return _core.Changes(
        vocab,
        [(_core.EDITS[kind], *others) for kind, *others in compiled],
        0 if per_row is None else per_row[1],
    )


def _for_core(stage: Stage) -> list[Any]:
    """Token ids, and the numbers, the first NaN in rows where the stage is off."""
    ids = [value for value in stage.values if isinstance(value, tuple)]
    first, *others = (value for value in stage.values if not isinstance(value, tuple))
    return [np.array(ids[0] if ids else (), np.int64), stage.nan_where_off(first), *others]


def _fields(
    arrays: npt.NDArray[Any], lone: bool, drop_last: bool, contain: _Contain | None
) -> list[Any]:
    """Split (fields, batch, n) by fields; drop the axes that are not wanted."""
    if lone:
        arrays = arrays[:, 0]
    if drop_last:
        arrays = arrays[..., 0]
    if arrays.ndim == 1:
        numbers: list[Any] = arrays.tolist()
        return numbers
    return list(arrays) if contain is None else [contain(one) for one in arrays]


def _lists_of(kept: _core.Kept, n_kept: _IntArray, contain: _Contain | None) -> tuple[Any, Any]:
    """Return the ids that are kept, one draw after another, and where each draw's begin."""
    n = n_kept.shape[1]
    bounds = np.empty(n_kept.size + 1, np.int64)
    kept.bounds(n, n_kept, bounds)
    ids = np.empty(bounds[-1], np.int32)
    kept.copy(n, bounds, ids)
    return (ids, bounds) if contain is None else (contain(ids), contain(bounds))


class _Draws:
    """What draws from rows, however they come by their chain and their edits: see `_rows_of`."""

    __slots__ = ("_chain", "_flag_invalid", "_keys", "_threads", "memory")
    _chain: _core.Chain
    _flag_invalid: bool
    _keys: _core.KeyedUniforms
    _threads: int | str
    memory: Memory | None

    def draw(
        self,
        source: Logits,
        *,
        given: Given = NOTHING,
        name: str = "logits",
    ) -> _IntArray:
        """Draw one token per row, shape (batch,); take a step unless steps are given.

        `name` is what error messages call the logits.
        """
        rows = self._rows_of(source, given)
        tokens = np.empty((rows.batch, 1), np.int64)
        invalid = _core.draw_tokens(
            self._chain, rows, self._keys, tokens, self._flag_invalid, self._workers(),
            given.streams, given.steps, draws=given.draws,
        )  # fmt: skip
        if invalid is not None:
            raise _error(invalid, name, given.steps)
        return tokens[:, 0]

    def sample(
        self,
        source: Logits,
        n: int | None,
        top: int | None,
        *,
        raw: bool = False,
        keep: bool = False,
        given: Given = NOTHING,
        name: str = "logits",
        contain: _Contain | None = None,
    ) -> Samples:
        """Draw `n` tokens per row, from its draw index on, 0 by default; list the first `top`.

        The arrays have shape (batch, n), the top lists (batch, top): without batch for a lone row,
        without n where that is None; what has no axis left is a number. The lists are None without
        any, and so are the raw fields unless asked for, and what is kept unless `keep`. `contain`
        makes of each array what the caller wants.
        """
        figures = np.empty((4 if raw else 3, source.batch, 1 if n is None else n), np.int64)
        return self._report(source, False, figures, n is None, top, given, name, contain, keep)

    def _report(
        self,
        source: Logits,
        is_given: bool,
        figures: _IntArray,
        drop_n: bool,
        top: int | None,
        given: Given,
        name: str,
        contain: _Contain | None,
        keep: bool = False,
    ) -> Samples:
        """Fill `figures`, (3, batch, n), or 4 for the raw ones too, and the rest.

        `figures[0]` may be given.
        """
        rows = self._rows_of(source, given)
        raw = len(figures) == 4
        logs = np.empty((4 if raw else 2, rows.batch, figures.shape[2]))
        top_ids = np.empty((1 + raw, rows.batch, top or 0), np.int64)
        top_logs = np.empty((1 + raw, rows.batch, top or 0))
        acts = given.states is not None and self._remembers(given)
        observed = np.empty(rows.batch) if acts else None
        kept = _core.Kept(rows.batch) if keep else None
        invalid = _core.sample_tokens(
            self._chain_for(given), rows, self._keys, figures, logs, top_ids, top_logs,
            self._flag_invalid, self._workers(), *given[:3], is_given, observed, kept,
        )  # fmt: skip
        if invalid is not None:
            raise _error(invalid, name, given.steps)
        lone = source.array.ndim == 1
        state = None
        if observed is not None and given.states is not None:
            state = states_after(given.states, observed, lone)
        numbers = _fields(figures, lone, drop_n, contain)
        log_numbers = _fields(logs, lone, drop_n, contain)
        ids = top_log_lists = [None, None]
        if top:
            ids = _fields(top_ids, lone, False, contain)
            top_log_lists = _fields(top_logs, lone, False, contain)
        tokens, ranks, n_kept, *raw_ranks = numbers
        logprobs, entropy, *raw_logs = log_numbers
        shown = [tokens, logprobs, ranks, n_kept, entropy, ids[0], top_log_lists[0]]
        raw_shown = [None] * 5
        if raw:
            raw_shown = [raw_logs[0], raw_ranks[0], raw_logs[1], ids[1], top_log_lists[1]]
        lists = (None, None) if kept is None else _lists_of(kept, figures[2], contain)
        values: list[Any] = [*shown, *raw_shown, state, *lists]
        return Samples(*values)

    def _rows_of(self, source: Logits, given: Given) -> _core.Rows:
        """Hand the core its view of the rows, with their edits and what is remembered."""
        raise NotImplementedError

    def _chain_for(self, given: Given) -> _core.Chain:
        """Return the chain of a call."""
        return self._chain

    def _remembers(self, given: Given) -> bool:
        """Whether a stage with memory acts in a call."""
        return self.memory is not None

    def _workers(self) -> int:
        """How many threads a call may use, as a number."""
        return self._threads if isinstance(self._threads, int) else _processors()


class Engine(_Draws):
    """What a `Sampler` runs on.

    Attributes
    ----------
    seed_is_fresh : bool
        Whether the operating system gave the seed, so that nobody counts on it.
    needs_history : str or None
        The first setting that looks at the text so far, if there is one.
    memory : Memory or None
        The stage with memory, if there is one that is on.
    per_row : (str, int) or None
        A setting that is one per row, and for how many rows all such settings are.
    """

    __slots__ = (
        "_chain_of_kept",
        "_edits",
        "_is_plain",
        "_largest_ids",
        "_prepared",
        "_stages",
        "needs_history",
        "per_row",
        "seed_is_fresh",
    )

    def __init__(
        self,
        chain: _core.Chain,
        stages: Iterable[Stage],
        *,
        seed: int,
        step: int,
        seed_is_fresh: bool,
        flag_invalid: bool,
        threads: int | str,
    ) -> None:
        stages = tuple(stages)
        self._chain, self._stages = chain, stages
        self._chain_of_kept: _core.Chain | None = None
        self._edits = [one for one in stages if isinstance(one, Edit) and not one.is_off]
        self.needs_history = next((e.setting for e in self._edits if e.needs_history), None)
        self.memory = next((s for s in stages if isinstance(s, Memory) and not s.is_off), None)
        # For the last vocabulary.
        self._prepared: tuple[int, _core.Edits | _core.Changes] | None = None
        self._largest_ids = [
            (stage.label(name), max(value))
            for stage in stages
            if not (stage.is_off or isinstance(stage, Edit))
            for name, value in zip(stage.parameters, stage.values, strict=True)
            if isinstance(value, tuple) and value
        ]
        self.per_row = chain.per_row
        self._is_plain = chain.per_row is None and not (
            self._edits or self._largest_ids or self.memory
        )
        self._keys = _core.KeyedUniforms(seed, step)
        self._flag_invalid = flag_invalid
        self._threads = threads
        self.seed_is_fresh = seed_is_fresh

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self._keys.seed

    @property
    def step(self) -> int:
        """The step that the next draw without `steps` takes."""
        return self._keys.step

    def draw_token(self, source: Logits, given: Given = NOTHING) -> int:
        """Draw the token of the only row, and take a step: `draw` without an array for it."""
        is_plain = self._is_plain and given is NOTHING  # saves a call
        rows = source.rows() if is_plain else self._rows_of(source, given)
        found = _core.draw_token(self._chain, rows, self._keys, self._flag_invalid)
        if isinstance(found, tuple):
            raise InvalidLogit(*found).error("logits")
        return found

    def score(
        self,
        source: Logits,
        tokens: _IntArray,
        top: int | None,
        *,
        drop_n: bool = False,
        raw: bool = False,
        given: Given = NOTHING,
        name: str = "logits",
        contain: _Contain | None = None,
    ) -> Samples:
        """Return for given tokens, (batch, n), each in [0, vocab), what `sample` returns.

        With `drop_n`, which needs n = 1, without that axis. The address decides coins alone, and no
        step is taken.
        """
        figures = np.empty((4 if raw else 3, *tokens.shape), np.int64)
        figures[0] = tokens
        return self._report(source, True, figures, drop_n, top, given, name, contain)

    def filter(
        self,
        source: Logits,
        *,
        given: Given = NOTHING,
        name: str = "logits",
    ) -> npt.NDArray[Any]:
        """Return the tempered logits, removed ones at -inf, in the representation of `source`."""
        rows = self._rows_of(source, given)
        result = np.empty((rows.batch, rows.vocab), source.result_dtype)
        invalid = _core.filter_rows(
            self._chain, rows, result, source.limit, self._flag_invalid, self._workers(),
            self._keys, *given[:3],
        )  # fmt: skip
        if invalid is not None:
            raise InvalidLogit(*invalid).error(name)
        return source.to_dtype(result.reshape(source.array.shape))

    def distribution(
        self,
        source: Logits,
        *,
        given: Given = NOTHING,
        name: str = "row",
    ) -> Distribution:
        """Return what the chain makes of the only row; an invalid one raises in any case."""
        rows = self._rows_of(source, given)
        ids = np.empty(rows.vocab, np.int64)
        floats = np.empty((4 if self.memory is None else 5, rows.vocab))
        logits, probs, logprobs, cumulative, *observed = floats
        n_kept, entropy, invalid = _core.distribution_row(
            self._chain, rows, ids, logits, probs, logprobs, cumulative,
            self._keys, *given[:3], *observed,
        )  # fmt: skip
        if invalid is not None:
            raise InvalidLogit(*invalid).error_of_one_row(name)
        logits, probs, logprobs, cumulative, *observed = floats[:, :n_kept].copy()
        return Distribution(
            rows.vocab, entropy, ids[:n_kept].copy(), logits, probs, logprobs, cumulative,
            source.to_tensor, self.memory, *observed,
        )  # fmt: skip

    def _rows_of(self, source: Logits, given: Given) -> _core.Rows:
        """Hand the core its view of the rows, with their edits, if the settings are for as many."""
        if self.per_row is not None:
            name, length = self.per_row
            if source.array.ndim == 1:
                raise ValueError(
                    f"`{name}` has to be a number for a lone row, but is for {rows_text(length)}"
                )
            check_batch(name, length, source.batch)
        rows = source.rows()
        self._check_ids(rows.vocab)
        if given.kept is not None:
            rows.keep_only(*given.kept)
        if given.states is not None or self._remembers(given):
            rows.remember(self._parameters(given.states))
        if given.mask is None and not self._edits:
            return rows
        if self.needs_history is not None and given.texts is None:
            raise ValueError(
                f"`{self.needs_history}` looks at the text so far: give it as history="
                "History(prompt, output)"
            )
        edits = self._edits_of(rows.vocab)
        if isinstance(edits, _core.Edits):
            rows.edit(edits, given.mask)
        elif bad := rows.change(edits, given.texts, given.mask):
            row, token = bad
            where = "" if source.array.ndim == 1 else f" in row {row}"
            raise ValueError(
                f"`history` has to hold ids in [0, {rows.vocab}), but one is {token}{where}"
            )
        return rows

    def _check_ids(self, vocab: int) -> None:
        for name, largest in self._largest_ids:
            if largest >= vocab:
                raise ValueError(f"`{name}` has to hold ids in [0, {vocab}), but one is {largest}")

    def edits_for(self, vocab: int) -> _core.Edits | _core.Changes | None:
        """Return the edits in the core's form; ValueError if a setting has an id beyond."""
        self._check_ids(vocab)
        return self._edits_of(vocab) if self._edits else None

    def entry(self, text: tuple[array[int], int], stream: int, draw: int, has_mask: bool) -> Entry:
        """Return what a `JoinedEngine` takes for a row."""
        more = has_mask or bool(self._edits) or self.memory is not None
        return Entry(self._chain, self.seed, stream, draw, text, more)

    @property
    def threads(self) -> int:
        """How many threads a call may use, as a number."""
        return self._workers()

    def _remembers(self, given: Given) -> bool:
        """Whether a stage with memory acts: where the kept set is given, only one that scales."""
        return self.memory is not None and (given.kept is None or self.memory.scales)

    def _chain_for(self, given: Given) -> _core.Chain:
        """Return the chain of a call: where the kept sets are given, they replace the cuts."""
        if given.kept is None:
            return self._chain
        if self._chain_of_kept is None:
            scales, place = scales_around(self._stages)
            self._chain_of_kept = make_chain(scales, only_after=place)
        return self._chain_of_kept

    def _parameters(self, states: list[State | None] | None) -> FloatArray:
        """Return what the core is to know of the states of a call."""
        if self.memory is None:
            raise ValueError(
                "`state` is for a sampler with memory, such as Sampler(mirostat=2), but this one "
                "has none: leave it out"
            )
        if states is None:
            raise self.no_state()
        return parameters_of(self.memory, states)

    def no_state(self) -> ValueError:
        """Return the error of a call without a state, where there is a stage with memory."""
        assert self.memory is not None
        return ValueError(
            f"`{self.memory.setting}` goes on from what it remembers: write r = s.sample(logits, "
            "state=s.initial_state()), and give the next call state=r.state"
        )

    def _edits_of(self, vocab: int) -> _core.Edits | _core.Changes:
        """Put the edits into the core's form, for the vocabulary of a call."""
        prepared = self._prepared  # once: another thread may have rows of another vocabulary
        if prepared is None or prepared[0] != vocab:
            prepared = self._prepared = vocab, _compiled(self._edits, vocab, self.per_row)
        return prepared[1]


def _processors() -> int:
    """How many processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


class Entry(NamedTuple):
    """What a `JoinedEngine` takes for a row: see `_core.join`."""

    chain: _core.Chain
    seed: int
    stream: int
    draw: int
    text: tuple[array[int], int]
    has_extras: bool  # whether it has edits, a mask or memory


class Extras(NamedTuple):
    """What the rows of a `JoinedEngine` have that need more than an entry; None where one has not.

    The edits are as `Engine.edits_for` makes them.
    """

    edits: list[_core.Edits | _core.Changes | None]
    masks: list[_MaskWords | None]
    states: list[State | None]


class JoinedEngine(_Draws):
    """What draws for several samplers in one call, a row for each.

    An invalid row is flagged, whatever its sampler says.

    Attributes
    ----------
    given : Given
        For its calls: where the uniforms of each row are, and its state.
    """

    __slots__ = ("_entries", "_extras", "given")

    def __init__(
        self, entries: list[Entry], extras: Extras | None = None, threads: int = 1
    ) -> None:
        numbers = np.empty((4, len(entries)), np.uint64)
        self._entries, self._extras = entries, extras
        self._chain = _core.join(entries, numbers)
        self._keys = _core.KeyedUniforms(0, 0, numbers[0])
        self._flag_invalid = True
        self._threads = threads
        self.memory = None
        self.given = Given(numbers[1], numbers[2], numbers[3])
        if extras is not None:
            self.memory = next((one.stage for one in extras.states if one is not None), None)
            if self.memory is not None:
                self.given = self.given._replace(states=extras.states)

    def _rows_of(self, source: Logits, given: Given) -> _core.Rows:
        rows = source.rows()
        if given.states is not None:
            parameters = [
                0.0 if state is None else state.stage.parameter(state.values)
                for state in given.states
            ]
            rows.remember(np.array(parameters))
        if self._extras is not None:
            texts = [entry.text for entry in self._entries]
            if bad := rows.change(self._extras.edits, texts, self._extras.masks):
                row, token = bad
                raise ValueError(f"the text of row {row} has the id {token}, which no row has")
        return rows

    def error(self, source: Logits, row: int) -> ValueError:
        """Return the error of a row that is invalid."""
        one = slice(row, row + 1)
        extras = None
        if self._extras is not None:
            edits, masks, states = self._extras
            extras = Extras(edits[one], masks[one], states[one])
        alone = JoinedEngine(self._entries[one], extras)
        rows = alone._rows_of(source._replace(array=source.array[one]), alone.given)
        drawn, (streams, steps, *_) = np.empty((1, 1), np.int64), alone.given
        found = _core.draw_tokens(
            alone._chain, rows, alone._keys, drawn, False, 1, streams, steps
        )  # fmt: skip
        assert found is not None and steps is not None
        return InvalidLogit(row, *found[1:]).error("logits", f"{row} at step {steps[0]}")
