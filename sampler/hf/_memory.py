"""What a sampler with memory remembers of each row, where Hugging Face draws the tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sampler import _inputs
from sampler._engine import Engine, Given
from sampler.hf._transformers import Caller
from sampler.memory import State, initial_states


class Step(NamedTuple):
    """Rows of one length, their scores, and what the sampler was given with them."""

    rows: npt.NDArray[np.int64]
    scores: torch.Tensor
    given: Given


class Memory:
    """The states of the rows of one generation, by their tokens.

    The token that followed a row shows in the next call, so the state after it is found then, from
    what was kept of that row: its scores and its state. Beams change places, and assisted decoding
    comes back to shorter rows.
    """

    def __init__(self) -> None:
        self._steps: dict[int, Step] = {}  # by length
        self._latest: list[State | None] = []  # of the text, for what is proposed after it
        self._verified: int | None = None  # where the candidates lie that are being verified

    def states(
        self, engine: Engine, rows: torch.Tensor, prompt_length: int, caller: Caller
    ) -> list[State | None]:
        """Return the state of each of these rows."""
        assert engine.memory is not None
        batch, length = rows.shape
        if caller.proposes:
            known = len(self._latest) == batch
            return self._latest if known else list(initial_states(engine.memory, batch))
        before = self._steps.get(length - 1)
        if before is None:
            if length > prompt_length:
                raise RuntimeError(
                    f"the rows have {length} tokens, but were not seen with {length - 1}, so what "
                    "the sampler remembers of them is not known"
                )
            self._latest = list(initial_states(engine.memory, batch))
            return self._latest
        ids = rows.cpu().numpy()
        places = [_place(before.rows, row[:-1], i) for i, row in enumerate(ids)]
        source = _inputs.read(before.scores[places], name="scores")
        at = before.given
        assert at.states is not None
        given = Given(
            np.array(places, np.uint64),
            None if at.steps is None else at.steps[places],
            texts=None if at.texts is None else [at.texts[i] for i in places],
            states=[at.states[i] for i in places],
        )
        r = engine.score(source, ids[:, -1:], None, given=given, name="scores")
        self._latest = list(r.state)
        return self._latest

    def add(self, rows: torch.Tensor, scores: torch.Tensor, given: Given, caller: Caller) -> None:
        """Keep what the next call needs, and what one that comes back to shorter rows may need."""
        if caller.proposes:
            return
        length = rows.shape[1]
        # Candidates that are verified together are slices of one tensor.
        verified = rows.data_ptr() if caller.verifies else None
        if verified is None or verified != self._verified:
            self._steps = {n: one for n, one in self._steps.items() if n == length - 1}
        self._verified = verified
        # Copies: the caller's memory may be used again.
        self._steps[length] = Step(rows.cpu().numpy().copy(), scores.detach().clone(), given)


def _place(rows: npt.NDArray[np.int64], row: npt.NDArray[np.int64], likely: int) -> int:
    """Where a row stood one token ago: where it stands now, unless beams have moved."""
    if likely < len(rows) and np.array_equal(rows[likely], row):
        return likely
    same = np.flatnonzero((rows == row).all(axis=1))
    if not len(same):
        raise RuntimeError(
            "a row is none of those of the step before with another token, so what the sampler "
            "remembers of it is not known"
        )
    return int(same[0])
