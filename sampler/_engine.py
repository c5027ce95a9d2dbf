"""The one door from Python to the core's draw: `Sampler` and every adapter go through an `Engine`.

An engine holds a chain in the core's form and the key of its uniforms. It takes logits that
`_inputs.read` has read and `_inputs.check_rows` has checked, and numbers that are checked. Results
have the axes of the core: the caller drops those that its user did not ask for.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler import _core
from sampler._inputs import Logits
from sampler.results import Distribution, Samples
from sampler.stages import Edit, Stage

_IntArray = npt.NDArray[np.int64]
_WordArray = npt.NDArray[np.uint64]
_MaskWords = npt.NDArray[np.int32]  # as `masks.read_mask` gives them


class InvalidLogit(NamedTuple):
    """The first logit, or the first row of -inf, for which no law is defined."""

    row: int
    token: int  # -1 where the whole row is -inf; -2 where the edits make it so
    value: float

    def error(self, name: str, row_name: str = "") -> ValueError:
        """Return the ValueError that names the row and the token."""
        where = f"row {row_name or self.row}"
        if self.token == -2:
            return ValueError(f"the mask and the bans leave no token in {where}")
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
            return ValueError(f"the mask and the bans leave no token in `{name}`")
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
    min_tokens_to_keep: int = 1,
    tier: int = _core.TIERS["fast"],
) -> _core.Chain:
    """Put the scales and cuts that are on into the core's form; `tier`, for tests, is the first."""
    return _core.Chain(
        [
            (_core.STAGES[stage.setting], stage.value)
            for stage in stages
            if not (stage.is_off or isinstance(stage, Edit))
        ],
        ties == "all",
        min_tokens_to_keep,
        tier,
    )


def _edits_of(edits: Iterable[Edit], vocab: int) -> _core.Edits:
    """Put edits into the core's form."""
    # Every edit is a ban so far: their order is of no account.
    ids = [edit.pairs(vocab)[0] for edit in edits]
    banned = np.unique(np.concatenate(ids)) if ids else np.empty(0, np.int64)
    return _core.Edits(vocab, banned, np.full(len(banned), -np.inf))


class Engine:
    """What a `Sampler` runs on.

    Attributes
    ----------
    seed_is_fresh : bool
        Whether the operating system gave the seed, so that nobody counts on it.
    """

    __slots__ = (
        "_chain",
        "_edits",
        "_flag_invalid",
        "_keys",
        "_prepared",
        "_threads",
        "seed_is_fresh",
    )

    def __init__(
        self,
        chain: _core.Chain,
        edits: Iterable[Stage],
        *,
        seed: int,
        step: int,
        seed_is_fresh: bool,
        flag_invalid: bool,
        threads: int | str,
    ) -> None:
        self._chain = chain
        self._edits = [one for one in edits if isinstance(one, Edit) and not one.is_off]
        self._prepared: tuple[int, _core.Edits] | None = None  # for the last vocabulary
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

    def draw_token(self, source: Logits, mask: _MaskWords | None = None) -> int:
        """Draw the token of the only row, and take a step: `draw` without an array for it."""
        rows = source.rows()
        if mask is not None or self._edits:
            self._edit(rows, mask)
        found = _core.draw_token(self._chain, rows, self._keys, self._flag_invalid)
        if isinstance(found, tuple):
            raise InvalidLogit(*found).error("logits")
        return found

    def draw(
        self,
        source: Logits,
        *,
        streams: _WordArray | None = None,
        steps: _WordArray | None = None,
        first_draw: int = 0,
        mask: _MaskWords | None = None,
        name: str = "logits",
    ) -> _IntArray:
        """Draw one token per row, shape (batch,); take a step unless `steps` are given.

        `first_draw` is the draw index, and `name` what error messages call the logits.
        """
        rows = source.rows()
        if mask is not None or self._edits:
            self._edit(rows, mask)
        tokens = np.empty((rows.batch, 1), np.int64)
        invalid = _core.draw_tokens(
            self._chain, rows, self._keys, tokens, self._flag_invalid, self._workers(),
            streams, steps, first_draw=first_draw,
        )  # fmt: skip
        if invalid is not None:
            raise _error(invalid, name, steps)
        return tokens[:, 0]

    def sample(
        self,
        source: Logits,
        n: int,
        top: int,
        *,
        streams: _WordArray | None = None,
        steps: _WordArray | None = None,
        first_draw: int = 0,
        mask: _MaskWords | None = None,
        name: str = "logits",
    ) -> Samples:
        """Draw `n` tokens per row, from draw index `first_draw` on; list the first `top` in rank.

        The arrays have shape (batch, n), the top lists (batch, top).
        """
        tokens = np.empty((3, source.batch, n), np.int64)
        return self._report(source, self._keys, tokens, top, streams, steps, first_draw, mask, name)

    def score(
        self,
        source: Logits,
        tokens: _IntArray,
        top: int,
        *,
        steps: _WordArray | None = None,
        mask: _MaskWords | None = None,
        name: str = "logits",
    ) -> Samples:
        """Return for given tokens, (batch, n), each in [0, vocab), what `sample` returns.

        `steps` are for error messages alone.
        """
        figures = np.empty((3, *tokens.shape), np.int64)
        figures[0] = tokens
        return self._report(source, None, figures, top, None, steps, 0, mask, name)

    def _report(
        self,
        source: Logits,
        keys: _core.KeyedUniforms | None,
        tokens: _IntArray,
        top: int,
        streams: _WordArray | None,
        steps: _WordArray | None,
        first_draw: int,
        mask: _MaskWords | None,
        name: str,
    ) -> Samples:
        """Fill `tokens`, (3, batch, n), and the rest; without keys `tokens[0]` is given."""
        rows = source.rows()
        if mask is not None or self._edits:
            self._edit(rows, mask)
        logs = np.empty(tokens.shape)
        top_ids = np.empty((2, rows.batch, top), np.int64)
        top_logs = np.empty((2, rows.batch, top))
        invalid = _core.sample_tokens(
            self._chain, rows, keys, tokens, logs, top_ids, top_logs, self._flag_invalid,
            self._workers(), streams, steps, first_draw,
        )  # fmt: skip
        if invalid is not None:
            raise _error(invalid, name, steps)
        lists = (top_ids[0], top_logs[0], top_ids[1], top_logs[1])
        return Samples(tokens[0], logs[0], logs[1], tokens[1], tokens[2], logs[2], *lists)

    def filter(
        self, source: Logits, *, mask: _MaskWords | None = None, name: str = "logits"
    ) -> npt.NDArray[Any]:
        """Return the tempered logits, removed ones at -inf, in the representation of `source`."""
        rows = source.rows()
        if mask is not None or self._edits:
            self._edit(rows, mask)
        result = np.empty((rows.batch, rows.vocab), source.result_dtype)
        invalid = _core.filter_rows(
            self._chain, rows, result, source.limit, self._flag_invalid, self._workers()
        )
        if invalid is not None:
            raise InvalidLogit(*invalid).error(name)
        return source.to_dtype(result.reshape(source.array.shape))

    def distribution(
        self, source: Logits, *, mask: _MaskWords | None = None, name: str = "row"
    ) -> Distribution:
        """Return what the chain makes of the only row; an invalid one raises in any case."""
        rows = source.rows()
        if mask is not None or self._edits:
            self._edit(rows, mask)
        ids = np.empty(rows.vocab, np.int64)
        floats = np.empty((4, rows.vocab))
        kept, invalid = _core.distribution_row(self._chain, rows, ids, *floats)
        if invalid is not None:
            raise InvalidLogit(*invalid).error_of_one_row(name)
        return Distribution(rows.vocab, ids[:kept].copy(), *floats[:, :kept].copy())

    def _edit(self, rows: _core.Rows, mask: _MaskWords | None) -> None:
        """Let the rows be read with the sampler's edits, and with a mask of `read_mask`."""
        prepared = self._prepared
        if prepared is None or prepared[0] != rows.vocab:
            prepared = self._prepared = (rows.vocab, _edits_of(self._edits, rows.vocab))
        rows.edit(prepared[1], mask)

    def _workers(self) -> int:
        """How many threads a call may use, as a number."""
        return self._threads if isinstance(self._threads, int) else _processors()


def _processors() -> int:
    """How many processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1
