"""`check_sampler`: everything a sampler has to get right beside the probabilities of one row.

Each part is a method of `_Check` that gives one `Result` at alpha / parts. Parts that draw from a
changed row know how to map the tokens back, so that one law, the plain row's, judges them all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler._checks import U64_END, U64_TEXT, array_of, check_integer
from sampler.api import Distribution, Sampler
from sampler.testing._draws import (
    bar,
    check_drawn,
    check_probs,
    check_rates,
    counted,
    impossible,
    judge,
    required_draws,
)
from sampler.testing._result import Result, combined, show_share
from sampler.testing._statistics import (
    LEAST,
    WIDE,
    Floats,
    Ints,
    contingency,
    noncentrality,
    two_samples,
)

Draw = Callable[[npt.NDArray[Any]], Any]

EFFECT = 0.05  # what the default number of draws is planned for
TAIL_TOKENS, TAIL_DEPTH = 2**18, 20.5  # deeper than float32 noise reaches: 16.6 above, 2.8 below
SHIFT = 128.0  # beyond the range of a float32 exp, exact on a grid of 2**-10
JOINT_BINS = 8  # a side of a table of pairs


def check_sampler(
    sampler: Any,
    logits: Any,
    law: Any = None,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    draws: int | None = None,
    batch: int | None = None,
    seeded: bool = False,
    seed: int = 0,
    ties: bool = True,
    relations: bool = True,
    tail: bool = True,
    progress: bool | None = None,
) -> Result:
    """Tell whether a sampler draws by its law, from every row, in every batch, at every step.

    Parameters
    ----------
    sampler : callable, or Sampler
        ``sampler(logits)`` draws one token for each row of a NumPy array of shape (batch, vocab).
        With ``seeded=True`` a function of a seed that makes such a callable.
    logits : array_like of shape (vocab,) or (rows, vocab), float16, float32 or float64
        What to draw from. All rows are drawn from; the first one is also changed in many ways.
    law : Sampler, callable, Distribution, or array_like of the shape of logits, optional
        What the probabilities should be. A callable gives those of any row of any vocabulary: the
        row of the tail is 2**18 + 1 long. Without a law, a `Sampler` is its own, and for others it
        is the softmax.
    alpha, power : float, in (0, 1)
        The two error rates of the whole: the parts share alpha equally (Bonferroni), each finds its
        `detectable_bias` with this power.
    draws : int, >= 1, optional
        Draws of each part. By default what `required_draws` says for an effect of 0.05. A row
        where nearly all probability is on one token takes more, and the result says how many.
    batch : int, >= 2, optional
        Rows of a batch: up to 256 copies of one row, fewer of a large vocabulary. Copies are what
        shows a leak from row to row.
    seeded : bool
        Whether `sampler` takes a seed. Only then can be checked that seeds repeat, and that
        neighbouring seeds have nothing in common.
    seed : int, in [0, 2**64)
        The first seed; the next parts take the next ones. It also chooses the permutation.
    ties : bool
        Whether the law says which of equal logits a cut keeps. Hugging Face's top-p leaves it to
        the sort: check it with ``ties=False``.
    relations : bool
        Whether shifted, permuted and padded logits have the same law. Not where it goes by token
        ids or by the size of logits, as with penalties and biases.
    tail : bool
        Whether to draw from a row of 2**18 tokens that lie 20.5 nats below the first: some 70,000
        draws, seconds for a fast sampler, minutes for one that makes noise for every token.
    progress : bool, optional
        Show a bar; by default only on a terminal.

    Returns
    -------
    Result
        With a `Result` for each part in ``parts``:

        - draws (draws[1] ... for further rows): the plain row, as `check_draws`;
        - rows, steps: tokens of neighbouring rows and calls are independent;
        - repeat, seeds (with ``seeded=True``): the same seed gives the same tokens, whatever is in
          the other rows; neighbouring seeds give independent ones;
        - neighbours: the law of a row is its own beside other rows;
        - shift up, shift down: adding 128, or taking it away, changes nothing;
        - permutation: permuted logits give permuted tokens;
        - padding: tokens of -inf, put in anywhere, change nothing and are never drawn;
        - layout: strides change nothing; float64, float32, float16: neither do dtypes;
        - ties: logits rounded to whole numbers, so that a cut falls between equals;
        - tail: the far tail is drawn as often as it should be.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or the sampler returns anything but one id in [0, vocab) a
        row. What the sampler itself raises comes through, save where it refuses a dtype by a
        TypeError, a NotImplementedError, or an error that says "not implemented".

    Notes
    -----
    Where neighbours are not independent, p-values of counts mean nothing, and only what is
    impossible is reported of the counts. A changed row that misses the law is reported where it
    also differs from the plain row: so each fault is named once.

    Shifted, permuted and padded rows are judged by the law of the row as it was, mapped: a law that
    shares the sampler's code would share its faults.

    ``repeat`` asks that what one row draws does not depend on the values of the others. A sampler
    that draws by rejection from one common sequence is correct without that: check it unseeded.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler import Sampler
    >>> from sampler.testing import check_sampler
    >>> logits = np.array([1.0, 3.0, 2.0, 0.0], dtype=np.float32)
    >>> check_sampler(Sampler(top_p=0.9, seed=7), logits, tail=False).ok
    True
    >>> def greedy(logits):
    ...     return logits.argmax(axis=1)
    >>> check_sampler(greedy, logits, draws=1000, tail=False).findings[0]
    'draws: token 1 was drawn 1,024 times; of probability 0.6439, it is expected 659 times'
    """
    alpha, power = check_rates(alpha, power)
    if not callable(sampler):
        raise TypeError(f"`sampler` has to be a function of logits, but is {sampler!r}")
    if seeded and isinstance(sampler, Sampler):
        raise TypeError(
            "`sampler` has to be a function of a seed with `seeded=True`, such as "
            f"lambda seed: sampler.replace(seed=seed), but is {sampler!r}"
        )
    rows = _check_logits(logits)
    if draws is not None:
        draws = check_integer("draws", draws, 1, 2**40, "an integer >= 1")
    if batch is None:
        batch = min(256, max(2, 2**24 // rows.shape[1]))
    batch = check_integer("batch", batch, 2, 2**31, "an integer >= 2")
    seed = check_integer("seed", seed, 0, U64_END, U64_TEXT)
    if law is None:
        law = sampler if isinstance(sampler, Sampler) else softmax_law
    check = _Check(sampler, rows, law, alpha, power, draws, batch, seeded, seed)
    check.plan_parts(ties, relations, tail)
    return check.run(progress)


def softmax_law(row: npt.NDArray[Any]) -> Floats:
    """Return the softmax in float64."""
    x = row.astype(np.float64)
    weights = np.exp(x - x.max())
    result: Floats = weights / math.fsum(weights.tolist())
    return result


def _check_logits(logits: Any) -> npt.NDArray[Any]:
    array = array_of("logits", logits)
    wanted = "floats of shape (vocab,) or (rows, vocab)"
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise TypeError(f"`logits` have to be {wanted}, but are {array.dtype}")
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"`logits` have to be {wanted}, but have shape {array.shape}")
    rows = np.array(array, ndmin=2)
    wrong = ~(rows < np.inf)
    if wrong.any():
        row, token = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"`logits` have to be finite or -inf, but row {row} has {rows[row, token]} at token "
            f"{token}"
        )
    empty = np.isneginf(rows).all(axis=1)
    if empty.any():
        raise ValueError(
            f"`logits` have to hold a finite value in every row, but row {int(np.argmax(empty))} "
            "is -inf throughout"
        )
    return rows


def _moved(row: npt.NDArray[Any], by: float) -> npt.NDArray[Any]:
    """All logits moved, as far as the dtype goes; -inf stays where it is."""
    limit = float(np.finfo(row.dtype).max)
    x = np.clip(row.astype(np.float64) + by, -limit, limit)
    return np.where(np.isneginf(row), row, x).astype(row.dtype)


class _Check:
    def __init__(
        self,
        sampler: Any,
        rows: npt.NDArray[Any],
        law: Any,
        alpha: float,
        power: float,
        draws: int | None,
        batch: int,
        seeded: bool,
        seed: int,
    ) -> None:
        self.sampler, self.rows, self.row = sampler, rows, rows[0]
        self.alpha, self.power, self.batch = alpha, power, batch
        self.seeded, self.seed = seeded, seed
        self.notes: list[str] = []
        self.rng = np.random.default_rng(seed)
        self.vocab = rows.shape[1]
        self.law_of = self._law_function(law)
        self.laws = self._laws(law)
        self.law = self.laws[0]
        self.draws = draws
        self.base: Result | None = None
        self.dependent = False
        self.writes = False

    # --- what is planned ------------------------------------------------------------------------

    def _law_function(self, law: Any) -> Callable[[npt.NDArray[Any]], Floats] | None:
        if isinstance(law, Sampler):
            return lambda row: check_probs("law", law.distribution(row))
        if callable(law):
            return lambda row: check_probs("law", law(row), len(row))
        return None

    def _laws(self, law: Any) -> list[Floats]:
        if self.law_of is not None:
            return [self.law_of(row) for row in self.rows]
        if len(self.rows) == 1:
            array = law if isinstance(law, Distribution) else array_of("law", law)
            if not isinstance(array, Distribution) and array.shape == (1, self.vocab):
                array = array[0]
            return [check_probs("law", array, self.vocab)]
        array = array_of("law", law)
        if array.shape != self.rows.shape:
            raise ValueError(
                f"`law` has to be of the shape of logits, {self.rows.shape}, but has {array.shape}"
            )
        return [check_probs("law", probs, self.vocab) for probs in array]

    def plan_parts(self, ties: bool, relations: bool, tail: bool) -> None:
        """Choose the parts before anything is drawn: their number shares alpha."""
        self.plan = self._plan(ties, relations, tail)
        self.level = self.alpha / len(self.plan)
        draws = self.draws
        if draws is None:
            bins = min(max(int(np.count_nonzero(self.law)), 2), WIDE)
            draws = required_draws(EFFECT, bins, alpha=self.level, power=self.power)
        self.calls = -(-draws // self.batch)

    def _plan(self, ties: bool, relations: bool, tail: bool) -> dict[str, Callable[[], Result]]:
        plan: dict[str, Callable[[], Result]] = {"draws": self._draws}
        for i in range(1, len(self.rows)):
            plan[f"draws[{i}]"] = partial(self._row, i)
        plan["rows"], plan["steps"] = self._rows, self._steps
        if self.seeded:
            plan["repeat"], plan["seeds"] = self._repeat, self._seeds
        plan["neighbours"] = self._neighbours
        if relations:
            self._plan_shifts(plan)
            plan["permutation"], plan["padding"] = self._permutation, self._padding
        else:
            self.notes.append("shifts, permutation and padding, by relations=False")
        plan["layout"] = self._layout
        largest = float(np.abs(self.row[np.isfinite(self.row)]).max())
        for dtype in ("float64", "float32", "float16"):
            if largest > float(np.finfo(dtype).max):
                self.notes.append(f"{dtype}, since these logits do not fit into it")
            elif self.row.dtype != dtype:
                exact = np.array_equal(self.row.astype(dtype).astype(np.float64), self.row)
                if exact or self.law_of is not None:
                    plan[dtype] = partial(self._dtype, dtype)
                else:
                    self.notes.append(f"{dtype}, since these logits are not exact in it")
        if self.law_of is None:
            self.notes.append("ties and tail, since the law of other rows is not known")
            return plan
        if ties:
            plan["ties"] = self._ties
        else:
            self.notes.append("ties, by ties=False")
        if tail:
            plan["tail"] = self._tail
        else:
            self.notes.append("tail, by tail=False")
        return plan

    def _plan_shifts(self, plan: dict[str, Callable[[], Result]]) -> None:
        """Plan to move a row on so coarse a grid that it can be moved without rounding.

        Rounding afterwards would make equals of neighbours, between which a cut may fall.
        """
        row = self._on_grid()
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
        plan["shift up"] = partial(self._shift, row, SHIFT, law)
        plan["shift down"] = partial(self._shift, row, -SHIFT, law)

    def _on_grid(self) -> npt.NDArray[Any] | None:
        """The row, rounded to what is exact also when moved; None if there is no such row."""
        row = self.row.astype(np.float64)
        near = row > row.max() - 5000.0  # what is lower has no probability at all
        largest = np.abs(row[near]).max() + SHIFT
        if largest > float(np.finfo(self.row.dtype).max):
            return None
        step = float(np.spacing(self.row.dtype.type(largest)))
        row[near] = np.round(row[near] / step) * step
        rounded = row.astype(self.row.dtype)
        moved = (_moved(rounded, by)[near].astype(np.float64) - by for by in (SHIFT, -SHIFT))
        return rounded if all(np.array_equal(x, row[near]) for x in moved) else None

    def run(self, progress: bool | None) -> Result:
        """All parts, and what they amount to."""
        started = {"seed": self.seed} if self.seeded else {}
        own = getattr(self.sampler, "seed", None)
        if not self.seeded and isinstance(own, int):
            started |= {"seed": self.seed, "sampler.seed": own}
            step = getattr(self.sampler, "step", None)
            if isinstance(step, int):
                started["sampler.step"] = step
        parts: dict[str, Result] = {}
        with bar(len(self.plan), "parts", progress) as shown:
            for name, part in self.plan.items():
                shown.set_description(name)
                parts[name] = replace(part(), check=name)
                shown.update(1)
        # A dependence explains odd counts, so it comes first.
        first = [name for name in ("rows", "steps", "repeat", "seeds") if name in parts]
        findings = ["it writes into its logits"] if self.writes else []
        short: list[str] = []
        for name in [*first, *(name for name in parts if name not in first)]:
            told = [f"{name}: {finding}" for finding in parts[name].findings]
            (short if parts[name].ok is None else findings).extend(told)
        # Too few draws are too few for every part. It is said once, unless there is worse to say.
        findings = findings or short[:1]
        if self.dependent:
            self.notes.append("the odds of the counts, since the draws are not independent")
        result = combined(
            "check_sampler", parts, alpha=self.alpha, power=self.power, findings=findings,
            notes=self.notes, seeds=started,
        )  # fmt: skip
        if self.writes:
            result = replace(result, ok=False, pvalue=0.0)
        return result

    # --- drawing --------------------------------------------------------------------------------

    def _open(self, offset: int = 0) -> Draw:
        if not self.seeded:
            return self.sampler  # type: ignore[no-any-return]
        draw = self.sampler((self.seed + offset) % U64_END)
        if not callable(draw):
            raise TypeError(f"`sampler` has to make a function of logits, but made {draw!r}")
        return draw  # type: ignore[no-any-return]

    def _call(self, draw: Draw, batch: npt.NDArray[Any]) -> Ints:
        return check_drawn("sampler", draw(batch), *batch.shape)

    def _collect(self, draw: Draw, batch: npt.NDArray[Any], calls: int) -> Ints:
        """Tokens of shape (calls, batch), and a look at whether the logits were written to."""
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

    def _copies(self, row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.tile(row, (self.batch, 1))

    # --- counts ---------------------------------------------------------------------------------

    def _judge(self, tokens: Ints, law: Floats) -> Result:
        counts = counted(tokens, len(law))
        result = judge("", law, counts, self.level, self.power)
        if self.dependent and not result.ok:
            # What cannot happen is a fault all the same; the odds mean nothing.
            return replace(result, findings=impossible(law, counts))
        return result

    def _draws(self) -> Result:
        draw = self._open()
        tokens = self._collect(draw, self._copies(self.row), self.calls)
        self.plain_tokens = tokens
        plain = self._joint_bins(tokens)
        # Before anything is said of counts, whether they are counts of independent draws.
        self.pairs = {"rows": self._row_pairs(plain), "steps": self._step_pairs(plain)}
        if all(part.ok is False for part in self.pairs.values()):
            # Repeated pairs look like dependence of the other kind too. What repeats more is the
            # cause, and the other is judged once more where there are no repeats.
            rows = float(np.mean(tokens[:, 1:] == tokens[:, :-1]))
            steps = float(np.mean(tokens[1:] == tokens[:-1]))
            if steps < 0.5 * rows:
                self.pairs["steps"] = self._step_pairs(plain[:, :2])
            elif rows < 0.5 * steps:
                self.pairs["rows"] = self._row_pairs(plain[:1])
        self.dependent = any(part.ok is False for part in self.pairs.values())
        self.base = self._judge(tokens, self.law)
        return self.base

    def _row(self, i: int) -> Result:
        tokens = self._collect(self._open(i), self._copies(self.rows[i]), self.calls)
        return self._judge(tokens, self.laws[i])

    def _changed(
        self,
        lead: str,
        row: npt.NDArray[Any],
        offset: int,
        *,
        ids: Ints | None = None,
        law: Floats | None = None,
        batches: list[npt.NDArray[Any]] | None = None,
        used: slice = slice(None),
    ) -> Result:
        """Draw from a changed row, and put a fault down to the change if it is.

        Judged by the plain row's law, once `ids` has mapped the tokens back (to vocab, where the
        plain row has no such token); or by `law`, the changed row's own, where that is given.
        `batches` hold the row in the rows `used`.
        """
        assert self.base is not None
        batches = [self._copies(row)] if batches is None else batches
        # As many draws in all as of the plain row.
        calls = -(-self.calls * self.batch // (len(batches) * len(range(self.batch)[used])))
        draw = self._open(offset)
        tokens = np.concatenate([self._collect(draw, x, calls)[:, used].ravel() for x in batches])
        if law is not None:
            result = self._judge(tokens, law)
            # Silent where the plain row is at fault already.
            told = [] if self.base.ok is False else [f"{lead}: {f}" for f in result.findings[:2]]
            return replace(result, findings=told) if result.ok is False else result
        if ids is not None:
            tokens = ids[tokens]
        strays = int(np.count_nonzero(tokens == self.vocab))
        result = self._judge(tokens[tokens < self.vocab], self.law)
        if result.ok is False and self.base.ok is False:
            now, plain = (counted(t, self.vocab + 1) for t in (tokens, self.plain_tokens))
            statistic, pvalue, table = two_samples(now, plain)
            other = pvalue < self.level and not self.dependent
            said = f"chi-square {statistic:,.0f} over {table.shape[1]:,} bins (p = {pvalue:.2g})"
            result = replace(result, findings=[f"{lead}: {said}"] if other else [])
        elif result.ok is False:
            result = replace(result, findings=[f"{lead}: {f}" for f in result.findings[:2]])
        if strays:
            told = [f"tokens put in at -inf were drawn {strays:,} times in {len(tokens):,}"]
            told += result.findings if result.ok is False else []
            result = replace(result, ok=False, pvalue=0.0, findings=told)
        return result

    def _neighbours(self) -> Result:
        batch = self._copies(self.row)
        # Others, and larger and smaller ones: a maximum or a sum over the batch would show.
        other = self.row[self.rng.permutation(self.vocab)]
        batch[1::2] = _moved(other, 32)
        batch[3::4] = _moved(other, -32)
        lead = "a row's law changes with the rows beside it"
        return self._changed(lead, self.row, 1, batches=[batch], used=slice(0, None, 2))

    def _shift(self, row: npt.NDArray[Any], by: float, law: Floats | None) -> Result:
        lead = f"logits {'-' if by < 0 else '+'} {abs(by):g} have another law"
        return self._changed(lead, _moved(row, by), 2, law=law)

    def _permutation(self) -> Result:
        shuffled = self.rng.permutation(self.vocab)
        # Equal logits keep their order, by which a cut may choose among them.
        order = np.empty_like(shuffled)
        order[np.argsort(self.row[shuffled], kind="stable")] = np.argsort(self.row, kind="stable")
        lead = "the law changes with the order of the vocabulary"
        return self._changed(lead, self.row[order], 3, ids=order)

    def _padding(self) -> Result:
        extra = 7
        places = np.sort(self.rng.integers(0, self.vocab + 1, 2 * extra))
        places = np.concatenate([[0], places, [self.vocab] * extra])
        row = np.insert(self.row, places, -np.inf)
        ids = np.insert(np.arange(self.vocab), places, self.vocab)
        return self._changed("tokens put in at -inf change the law", row, 4, ids=ids)

    def _layout(self) -> Result:
        """Every second column, backwards; columns first; every third row."""
        batch = self._copies(self.row)
        wide = np.full((self.batch, 2 * self.vocab), 9.0, self.row.dtype)
        backwards = wide[:, ::-2]
        backwards[...] = batch
        tall = np.full((3 * self.batch, self.vocab), 9.0, self.row.dtype)
        apart = tall[::3]
        apart[...] = batch
        batches = [backwards, np.asfortranarray(batch), apart]
        return self._changed("the law changes with the strides", self.row, 5, batches=batches)

    def _dtype(self, dtype: str) -> Result:
        row = self.row.astype(dtype)
        try:
            self._open(6)(self._copies(row))
        except (TypeError, RuntimeError) as error:  # as torch says it, too; not a ValueError
            refused = isinstance(error, (TypeError, NotImplementedError))
            if not refused and "not implemented" not in str(error):
                raise
            self.notes.append(f"{dtype}, which the sampler refuses ({error})")
            return Result(
                check="", ok=True, pvalue=1.0, detectable_bias=0.0, draws=0, findings=[],
                alpha=self.level, power=self.power,
            )  # fmt: skip
        law = None
        if not np.array_equal(row.astype(np.float64), self.row):
            assert self.law_of is not None
            law = self.law_of(row)
        return self._changed(f"{dtype} logits have another law", row, 6, law=law)

    def _ties(self) -> Result:
        assert self.law_of is not None
        row = np.round(self.row)
        lead = "of logits that are equal, others are kept than the law says"
        return self._changed(lead, row, 7, law=self.law_of(row))

    def _tail(self) -> Result:
        assert self.law_of is not None
        row, depth = self._tail_row(TAIL_DEPTH), TAIL_DEPTH
        law = self.law_of(row)
        # Of another temperature, the depth that it brings to the same mass: in sixteenths, which
        # every dtype has.
        wanted = TAIL_TOKENS * math.exp(-TAIL_DEPTH)
        if law[1] > 0 or float(law[0]) == 1.0:
            low, high = 0, 16 * 400
            while high - low > 1:
                middle = (low + high) // 2
                enough = 1.0 - self.law_of(self._tail_row(middle / 16))[0] > 0.99 * wanted
                low, high = (middle, high) if enough else (low, middle)
            # A cut-off ends the tail abruptly. What lies at the cut is no matter of depth.
            if 1.0 - self.law_of(self._tail_row(low / 16))[0] < 1.2 * wanted:
                row, depth = self._tail_row(low / 16), low / 16
                law = self.law_of(row)
        mass = math.fsum(law[1:].tolist())
        # It has to make a bin, and no draw at all has to be odd enough for the share of alpha that
        # the tails have: about a dozen of them, two-sided, of a quarter. The least mass judged is
        # nine tenths of it all.
        calls = self.calls
        batch = min(self.batch, 64)
        if mass > 0.5 * wanted:
            expected = max(LEAST, math.log(2 * 4 * 16 / self.level) / 0.9)
            calls = math.ceil(expected / mass / batch)
        tokens = self._collect(self._open(8), np.tile(row, (batch, 1)), calls)
        result = self._judge(tokens, law)
        if result.ok is False and not np.any(tokens) and not self.dependent:
            told = (
                f"the {TAIL_TOKENS:,} tokens {depth:g} nats down, {show_share(mass)} together, "
                f"were never drawn in {tokens.size:,}: they cannot be reached"
            )
            return replace(result, findings=[told])
        return result

    def _tail_row(self, depth: float) -> npt.NDArray[Any]:
        row = np.full(TAIL_TOKENS + 1, -depth, self.row.dtype)
        row[0] = 0
        return row

    # --- independence ---------------------------------------------------------------------------

    def _joint_bins(self, tokens: Ints) -> Ints:
        """Contiguous ids in bins of about equal mass: what is near in u is near here."""
        counts = np.bincount(tokens.ravel(), minlength=self.vocab)
        middle = (np.cumsum(counts) - 0.5 * counts) / counts.sum()
        labels = np.minimum((middle * JOINT_BINS).astype(np.int64), JOINT_BINS - 1)
        bins: Ints = labels[tokens]
        return bins

    def _rows(self) -> Result:
        return self.pairs["rows"]

    def _steps(self) -> Result:
        return self.pairs["steps"]

    def _row_pairs(self, bins: Ints) -> Result:
        """Rows 1, 2, 4 ... apart; a row in one pair of each kind, so that pairs are independent."""
        pairs = {}
        lag = 1
        while lag < self.batch:
            left = np.arange(self.batch - lag)
            left = left[(left // lag) % 2 == 0]
            pairs[f"rows i and i + {lag} of a batch"] = (bins[:, left], bins[:, left + lag])
            lag *= 2
        same = list(pairs)
        # The first row, the second, two more, four more ...; the same from the end.
        places = np.minimum(np.ceil(np.log2(1 + np.arange(self.batch))), JOINT_BINS - 1)
        for end, labels in (("first", places), ("last", places[::-1])):
            name = f"a row's distance from the {end} of the batch and its tokens"
            pairs[name] = (np.broadcast_to(labels.astype(np.int64), bins.shape), bins)
        return self._independent(pairs, same=same)

    def _step_pairs(self, bins: Ints) -> Result:
        """Calls 1 and 2 apart; also one row further, where a seed is a sum of row and step."""
        pairs = {}
        for lag in (1, 2):
            left = np.arange(len(bins) - lag)
            left = left[(left // lag) % 2 == 0]
            if len(left):
                a, b = bins[left], bins[left + lag]
                pairs[f"calls t and t + {lag}"] = (a, b)
                pairs[f"row i + 1 of call t and row i of call t + {lag}"] = (a[:, 1:], b[:, :-1])
                pairs[f"row i of call t and row i + 1 of call t + {lag}"] = (a[:, :-1], b[:, 1:])
        return self._independent(pairs, same=list(pairs))

    def _seeds(self) -> Result:
        batch = self._copies(self.row)
        a, b = (
            self._joint_bins(self._collect(self._open(offset), batch, self.calls))
            for offset in (10, 11)
        )
        # Of rows or calls that repeat, few: their pairs are no further evidence.
        if self.pairs["rows"].ok is False:
            a, b = a[:, :2], b[:, :2]
        if self.pairs["steps"].ok is False:
            a, b = a[:2], b[:2]
        pairs = {
            "seeds s and s + 1": (a, b),
            "row i + 1 under seed s and row i under seed s + 1": (a[:, 1:], b[:, :-1]),
            "call t + 1 under seed s and call t under seed s + 1": (a[1:], b[:-1]),
        }
        return self._independent(pairs, same=list(pairs))

    def _independent(self, pairs: dict[str, tuple[Ints, Ints]], same: list[str]) -> Result:
        """Chi-square of every table of pairs, from their own margins: the law plays no part."""
        pvalues, findings, agreeing = [], [], []
        count, enough = 0, False
        for name, (a, b) in pairs.items():
            key = a * JOINT_BINS + b
            table = np.bincount(key.ravel(), minlength=JOINT_BINS**2).reshape(JOINT_BINS, -1)
            _, pvalue, freedom = contingency(table)
            pvalues.append(pvalue)
            count += a.size
            # Without freedom among many pairs, nearly all are of one bin: nothing to depend on.
            enough = enough or freedom > 0 or a.size >= 4 * LEAST * JOINT_BINS
            if pvalue < self.level / len(pairs):
                shares = table / table.sum()
                equal = float(np.trace(shares))
                usual = float(np.sum(shares.sum(0) * shares.sum(1)))
                told = (
                    f"{show_share(equal)} of pairs agree, {show_share(usual)} are usual"
                    if name in same
                    else f"p = {pvalue:.2g}"
                )
                findings.append(f"{name} are not independent: {told}")
                agreeing.append(equal if name in same else 0.0)
        if max(agreeing, default=0.0) > 0.9:  # what is a copy explains the rest
            findings = [f for f, share in zip(findings, agreeing, strict=True) if share > 0.9]
        least = min([1.0, *(len(pairs) * p for p in pvalues)])
        # How much likelier one joint bin of 64 would have to be, in the table of the fewest pairs.
        fewest = min((a.size for a, _ in pairs.values()), default=0)  # one call has no next
        value = noncentrality((JOINT_BINS - 1) ** 2, self.level / max(len(pairs), 1), self.power)
        ok: bool | None = not findings
        if not enough:
            ok = None
            findings = [f"too few draws for any conclusion: {count:,} pairs"]
        return Result(
            check="", ok=ok, pvalue=least, draws=count, findings=findings[:3],
            detectable_bias=math.sqrt(value * (JOINT_BINS**2 - 1) / fewest) if fewest else math.inf,
            alpha=self.level, power=self.power,
        )  # fmt: skip

    def _repeat(self) -> Result:
        """Exact: the same seed twice, and with other neighbours."""
        findings = []
        batch = self._copies(self.row)
        calls = min(self.calls, 8)
        once, again = (self._collect(self._open(9), batch, calls) for _ in range(2))
        if not np.array_equal(once, again):
            findings.append(
                f"the same seed gives other tokens the second time, from call "
                f"{int(np.argmax((once != again).any(axis=1)))} on"
            )
        else:
            batch[1::2] = self.row[self.rng.permutation(self.vocab)]
            beside = self._collect(self._open(9), batch, calls)[:, ::2]
            changed = int(np.count_nonzero(beside != once[:, ::2]))
            if changed:
                findings.append(
                    f"under the same seed, {changed:,} of {beside.size:,} tokens change with the "
                    "rows beside them"
                )
        return Result(
            check="", ok=not findings, pvalue=0.0 if findings else 1.0, detectable_bias=0.0,
            draws=once.size, findings=findings, alpha=self.level, power=self.power,
        )  # fmt: skip
