"""The parts of `check_sampler`: each draws from a row, or a changed one, and judges the tokens.

A part that draws from a changed row knows how to map the tokens back, so that one law, the plain
row's, judges them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from sampler.testing._draws import impossible_tokens, judge_counts, required_draws
from sampler.testing._findings import FarTail, Finding, Kind
from sampler.testing._laws import laws_of
from sampler.testing._outcome import Outcome, combined, exact
from sampler.testing._pairs import judge_rows_and_steps, judge_seeds
from sampler.testing._progress import bar
from sampler.testing._rows import (
    SHIFT,
    TAIL_DEPTH,
    TAIL_TOKENS,
    Row,
    layouts,
    on_grid,
    order_of,
    padded,
    shifted,
    tail_row,
)
from sampler.testing._source import Source
from sampler.testing._statistics import MIN_EXPECTED, WIDE, Floats, Ints, count_ids, two_samples

EFFECT = 0.05  # what the default number of draws is planned for

Part = Callable[[], Outcome]


class _Plain(NamedTuple):
    """What the plain row shows: the other parts are compared with it."""

    tokens: Ints
    pairs: dict[str, Outcome]
    dependent: bool


class SamplerCheck:
    """One run of `check_sampler`, of checked arguments; `parts` are what it will look at.

    They are all known before anything is drawn, since each runs at `alpha`, its share of the whole.
    """

    def __init__(
        self,
        sampler: Any,
        rows: Row,
        law: Any,
        *,
        alpha: float,
        power: float,
        draws: int | None,
        batch: int | None,
        seeded: bool,
        seed: int,
        ties: bool,
        relations: bool,
        tail: bool,
    ) -> None:
        self.source = Source(sampler, seeded, seed)
        self.rows, self.row = rows, rows[0]
        self.laws, self.law_of = laws_of(law, rows)
        self.law, self.vocab = self.laws[0], rows.shape[1]
        self.batch = min(256, max(2, 2**24 // self.vocab)) if batch is None else batch
        self.power, self.whole_alpha = power, alpha
        self.notes: list[str] = []
        self.rng = np.random.default_rng(seed)
        self.parts = dict(self._plan(ties, relations, tail))
        self.alpha = alpha / len(self.parts)
        if draws is None:
            bins = min(max(int(np.count_nonzero(self.law)), 2), WIDE)
            draws = required_draws(EFFECT, bins, alpha=self.alpha, power=power)
        self.calls = -(-draws // self.batch)

    # --- what is planned ------------------------------------------------------------------------

    def _plan(self, ties: bool, relations: bool, tail: bool) -> Iterator[tuple[str, Part]]:
        """Name the parts, and note what is left out."""
        yield "draws", lambda: self._draws
        for i in range(1, len(self.rows)):
            yield f"draws[{i}]", partial(self._row, i)
        yield "rows", lambda: self._plain.pairs["rows"]
        yield "steps", lambda: self._plain.pairs["steps"]
        if self.source.seeded:
            yield "repeat", self._repeat
            yield "seeds", self._seeds
        yield "neighbours", self._neighbours
        if relations:
            yield from self._plan_shifts()
            yield "permutation", self._permutation
            yield "padding", self._padding
        else:
            self.notes.append("shifts, permutation and padding, by relations=False")
        yield "layout", self._layout
        yield from self._plan_dtypes()
        if self.law_of is None:
            self.notes.append("ties and tail, since the law of other rows is not known")
            return
        if ties:
            yield "ties", partial(self._ties, self.law_of)
        else:
            self.notes.append("ties, by ties=False")
        if tail:
            yield "tail", partial(self._tail, self.law_of)
        else:
            self.notes.append("tail, by tail=False")

    def _plan_shifts(self) -> Iterator[tuple[str, Part]]:
        """Plan to shift a row on so coarse a grid that it can be shifted without rounding."""
        row = on_grid(self.row)
        if row is None:
            why = f"logits + {SHIFT:g} and - {SHIFT:g} are not exact in {self.row.dtype}"
            self.notes.append(f"shifts, since {why}")
            return
        law = None
        if not np.array_equal(row, self.row):
            if self.law_of is None:
                self.notes.append("shifts, since the law of logits that can be moved is not known")
                return
            law = self.law_of(row)
            if np.allclose(law, self.law, rtol=1e-3, atol=1e-12):
                law = None  # as far as any check could see
        yield "shift up", partial(self._changed, "shift up", shifted(row, SHIFT), 2, law=law)
        yield "shift down", partial(self._changed, "shift down", shifted(row, -SHIFT), 2, law=law)

    def _plan_dtypes(self) -> Iterator[tuple[str, Part]]:
        largest = float(np.abs(self.row[np.isfinite(self.row)]).max())
        for dtype in ("float64", "float32", "float16"):
            if largest > float(np.finfo(dtype).max):
                self.notes.append(f"{dtype}, since these logits do not fit into it")
            elif self.row.dtype != dtype:
                row = self.row.astype(dtype)
                if np.array_equal(row.astype(np.float64), self.row):
                    yield dtype, partial(self._dtype, dtype, row, None)
                elif self.law_of is not None:
                    yield dtype, partial(self._dtype, dtype, row, self.law_of)
                else:
                    self.notes.append(f"{dtype}, since these logits are not exact in it")

    def run(self, progress: bool | None) -> Outcome:
        """All parts, and what they amount to."""
        seeds = self.source.seeds()
        parts: dict[str, Outcome] = {}
        with bar(len(self.parts), "parts", progress) as shown:
            for name, part in self.parts.items():
                shown.set_description(name)
                parts[name] = part()
                shown.update(1)
        writes = self.source.writes
        # A dependence explains odd counts, so it comes first.
        first = [name for name in ("rows", "steps", "repeat", "seeds") if name in parts]
        faults = [Finding(Kind.WRITES)] if writes else []
        too_few: list[Finding] = []
        for name in [*first, *(name for name in parts if name not in first)]:
            found = [finding.within(name) for finding in parts[name].findings]
            (too_few if parts[name].ok is None else faults).extend(found)
        if self._plain.dependent:
            self.notes.append("the odds of the counts, since the draws are not independent")
        outcome = combined(
            parts, alpha=self.whole_alpha, power=self.power, notes=self.notes, seeds=seeds,
            # Too few draws are too few for every part: one finding, unless there is a fault.
            findings=faults or too_few[:1],
        )  # fmt: skip
        return replace(outcome, ok=False, pvalue=0.0) if writes else outcome

    # --- counts ---------------------------------------------------------------------------------

    def _copies(self, row: Row) -> Row:
        return np.tile(row, (self.batch, 1))

    def _draw_row(self, row: Row, offset: int = 0) -> Ints:
        return self.source.collect(self.source.open(offset), self._copies(row), self.calls)

    def _judge(self, tokens: Ints, law: Floats) -> Outcome:
        counts = count_ids(tokens, len(law))
        outcome = judge_counts(law, counts, self.alpha, self.power)
        if self._plain.dependent and not outcome.ok:
            # What cannot happen is a fault all the same; the odds mean nothing.
            return replace(outcome, findings=impossible_tokens(law, counts))
        return outcome

    @cached_property
    def _plain(self) -> _Plain:
        """The plain row's tokens; before their counts are judged, whether they are independent."""
        tokens = self._draw_row(self.row)
        pairs = judge_rows_and_steps(tokens, self.vocab, self.alpha, self.power)
        return _Plain(tokens, pairs, any(part.ok is False for part in pairs.values()))

    @cached_property
    def _draws(self) -> Outcome:
        return self._judge(self._plain.tokens, self.law)

    def _row(self, i: int) -> Outcome:
        return self._judge(self._draw_row(self.rows[i], i), self.laws[i])

    def _changed(
        self,
        name: str,
        row: Row,
        offset: int,
        *,
        ids: Ints | None = None,
        law: Floats | None = None,
        batches: list[Row] | None = None,
        used: slice = slice(None),
    ) -> Outcome:
        """Draw from a changed row, and put a fault down to the change if it is.

        Judged by the plain row's law, once `ids` has mapped the tokens back (to vocab, where the
        plain row has no such token); or by `law`, the changed row's own, where that is given.
        `batches` hold the row in the rows `used`.
        """
        plain_is_wrong = self._draws.ok is False
        batches = [self._copies(row)] if batches is None else batches
        # As many draws in all as of the plain row.
        calls = -(-self.calls * self.batch // (len(batches) * len(range(self.batch)[used])))
        draw = self.source.open(offset)
        tokens = np.concatenate(
            [self.source.collect(draw, batch, calls)[:, used].ravel() for batch in batches]
        )
        if ids is not None:
            tokens = ids[tokens]
        possible = tokens[tokens < self.vocab]
        n_padding = len(tokens) - len(possible)
        outcome = self._judge(possible, self.law if law is None else law)
        if outcome.ok is False:
            if not plain_is_wrong:
                findings = [replace(finding, change=name) for finding in outcome.findings[:2]]
            elif law is None:
                findings = self._difference(name, tokens)
            else:
                findings = []  # the plain row has them already
            outcome = replace(outcome, findings=findings)
        if n_padding:
            padding = Finding(Kind.PADDING, observed=n_padding, size=len(tokens))
            findings = [padding, *(outcome.findings if outcome.ok is False else [])]
            outcome = replace(outcome, ok=False, pvalue=0.0, findings=findings)
        return outcome

    def _difference(self, name: str, tokens: Ints) -> list[Finding]:
        """What differs from the plain row's tokens, which are wrong already."""
        counts, plain = (count_ids(t, self.vocab + 1) for t in (tokens, self._plain.tokens))
        statistic, pvalue, table = two_samples(counts, plain)
        if pvalue >= self.alpha or self._plain.dependent:
            return []
        size = table.shape[1]
        return [
            Finding(
                Kind.CHANGED, observed=statistic, expected=size - 1, size=size, pvalue=pvalue,
                change=name,
            )
        ]  # fmt: skip

    # --- changed rows ---------------------------------------------------------------------------

    def _neighbours(self) -> Outcome:
        batch = self._copies(self.row)
        # Others, and larger and smaller ones: a maximum or a sum over the batch would show.
        other = self.row[self.rng.permutation(self.vocab)]
        batch[1::2] = shifted(other, 32)
        batch[3::4] = shifted(other, -32)
        return self._changed("neighbours", self.row, 1, batches=[batch], used=slice(0, None, 2))

    def _permutation(self) -> Outcome:
        order = order_of(self.row, self.rng)
        return self._changed("permutation", self.row[order], 3, ids=order)

    def _padding(self) -> Outcome:
        row, ids = padded(self.row, self.rng)
        return self._changed("padding", row, 4, ids=ids)

    def _layout(self) -> Outcome:
        batches = layouts(self._copies(self.row))
        return self._changed("layout", self.row, 5, batches=batches)

    def _dtype(self, dtype: str, row: Row, law_of: Callable[[Row], Floats] | None) -> Outcome:
        try:
            self.source.open(6)(self._copies(row))
        except (TypeError, RuntimeError) as error:  # as torch says it, too; not a ValueError
            refused = isinstance(error, (TypeError, NotImplementedError))
            if not refused and "not implemented" not in str(error):
                raise
            self.notes.append(f"{dtype}, which the sampler refuses ({error})")
            return exact(0, [], self.alpha, self.power)
        return self._changed(dtype, row, 6, law=None if law_of is None else law_of(row))

    def _ties(self, law_of: Callable[[Row], Floats]) -> Outcome:
        row = np.round(self.row)
        return self._changed("ties", row, 7, law=law_of(row))

    def _tail(self, law_of: Callable[[Row], Floats]) -> Outcome:
        depth, row, law = self._far_tail(law_of)
        mass = math.fsum(law[1:].tolist())
        # It has to make a bin, and no draw at all has to be odd enough for the share of alpha that
        # the tails have: about a dozen of them, two-sided, of a quarter. The least mass judged is
        # nine tenths of it all.
        calls = self.calls
        batch = min(self.batch, 64)
        if mass > 0.5 * _TAIL_MASS:
            expected = max(MIN_EXPECTED, math.log(2 * 4 * 16 / self.alpha) / 0.9)
            calls = math.ceil(expected / mass / batch)
        tokens = self.source.collect(self.source.open(8), np.tile(row, (batch, 1)), calls)
        outcome = self._judge(tokens, law)
        if outcome.ok is False and not np.any(tokens) and not self._plain.dependent:
            tail = FarTail(TAIL_TOKENS, depth)
            finding = Finding(Kind.UNREACHABLE, tail, size=tokens.size, probability=mass)
            return replace(outcome, findings=[finding])
        return outcome

    def _far_tail(self, law_of: Callable[[Row], Floats]) -> tuple[float, Row, Floats]:
        """The depth of the tail, its row, and its law.

        If the law has another temperature, the depth that gives the tail the same mass: in
        sixteenths, which every dtype has.
        """

        def at(depth: float) -> tuple[float, Row, Floats]:
            row = tail_row(depth, self.row.dtype)
            return depth, row, law_of(row)

        def mass(depth: float) -> float:
            return 1.0 - float(at(depth)[2][0])

        usual = at(TAIL_DEPTH)
        law = usual[2]
        if law[1] > 0 or float(law[0]) == 1.0:
            low, high = 0, 16 * 400
            while high - low > 1:
                middle = (low + high) // 2
                enough = mass(middle / 16) > 0.99 * _TAIL_MASS
                low, high = (middle, high) if enough else (low, middle)
            # A cut-off ends the tail abruptly. What lies at the cut is not a matter of depth.
            if mass(low / 16) < 1.2 * _TAIL_MASS:
                return at(low / 16)
        return usual

    # --- seeds ----------------------------------------------------------------------------------

    def _seeds(self) -> Outcome:
        a, b = (self._draw_row(self.row, offset) for offset in (10, 11))
        return judge_seeds(a, b, self._plain.pairs, self.vocab, self.alpha, self.power)

    def _repeat(self) -> Outcome:
        """Exact: the same seed twice, and with other neighbours."""
        batch = self._copies(self.row)
        calls = min(self.calls, 8)
        once, again = (self.source.collect(self.source.open(9), batch, calls) for _ in range(2))
        findings = []
        if not np.array_equal(once, again):
            call = int(np.argmax((once != again).any(axis=1)))
            findings.append(Finding(Kind.NOT_REPEATED, observed=call))
        else:
            batch[1::2] = self.row[self.rng.permutation(self.vocab)]
            kept = self.source.collect(self.source.open(9), batch, calls)[:, ::2]
            changed = int(np.count_nonzero(kept != once[:, ::2]))
            if changed:
                findings.append(Finding(Kind.NEIGHBOURS, observed=changed, size=kept.size))
        return exact(once.size, findings, self.alpha, self.power)


_TAIL_MASS = TAIL_TOKENS * math.exp(-TAIL_DEPTH)
