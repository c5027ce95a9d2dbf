"""The sampler that is checked: opened at a seed, called, and watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sampler._checks import U64_END
from sampler.testing._arguments import check_drawn
from sampler.testing._rows import Row
from sampler.testing._statistics import Ints

Draw = Callable[[Row], Any]


class Source:
    """A function of logits; if `seeded`, a function of a seed that makes one.

    `writes` says whether it has written into its logits.
    """

    def __init__(self, sampler: Any, seeded: bool, seed: int) -> None:
        self.sampler, self.seeded, self.seed = sampler, seeded, seed
        self.writes = False

    def open(self, offset: int = 0) -> Draw:
        """Return the function of logits, of so many seeds after the first."""
        if not self.seeded:
            return self.sampler  # type: ignore[no-any-return]
        draw = self.sampler((self.seed + offset) % U64_END)
        if not callable(draw):
            raise TypeError(f"`sampler` has to return a function of logits, but returned {draw!r}")
        return draw  # type: ignore[no-any-return]

    def collect(self, draw: Draw, batch: Row, calls: int) -> Ints:
        """Draw tokens of shape (calls, batch), always from the same logits."""
        before = batch.copy()
        first = self._call(draw, batch)
        if not np.array_equal(before, batch, equal_nan=True):
            self.writes = True
            batch[...] = before
        rest = []
        for _ in range(calls - 1):
            rest.append(self._call(draw, batch))
            if self.writes:
                batch[...] = before
        return np.stack([first, *rest])

    def _call(self, draw: Draw, batch: Row) -> Ints:
        return check_drawn("sampler", draw(batch), *batch.shape)

    def seeds(self) -> dict[str, Any]:
        """What it takes to repeat what comes now."""
        if self.seeded:
            return {"seed": self.seed}
        seed = getattr(self.sampler, "seed", None)
        if not isinstance(seed, int):
            return {}
        step = getattr(self.sampler, "step", None)
        steps = {"sampler.step": step} if isinstance(step, int) else {}
        return {"seed": self.seed, "sampler.seed": seed, **steps}
