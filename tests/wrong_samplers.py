"""Samplers that are wrong in ways met in the field, and how the kit names each.

Each class is made from a seed and draws one token per row. `CASES` holds for each the row it is
shown, the law it should follow, the settings of the check, and words of the finding that names it.
`python tests/wrong_samplers.py` prints how many draws each took.
"""

import re
import time
from typing import NamedTuple

import numpy as np

from sampler import Sampler
from sampler.testing import Result, check_draws, check_sampler, required_draws


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float64)
    return weights / weights.sum(axis=1, keepdims=True)


class Right:
    """The inverse CDF in float64: what the others should have been."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def uniforms(self, logits):
        return self.rng.random(len(logits))

    def probs(self, logits):
        return softmax(logits)

    def __call__(self, logits):
        running = np.cumsum(self.probs(logits), axis=1)
        u = self.uniforms(logits)[:, None] * running[:, -1:]
        return np.argmax(running > u, axis=1)


class ProbabilitiesOff(Right):
    """Even ids 1 % likelier than they should be, odd ones 1 % less."""

    def probs(self, logits):
        p = softmax(logits)
        p[:, ::2] *= 1.01
        p[:, 1::2] *= 0.99
        return p / p.sum(axis=1, keepdims=True)


class Nucleus(Right):
    """Top-p, as it should be."""

    def __init__(self, seed=0, top_p=0.9, temperature=1.0):
        super().__init__(seed)
        self.top_p, self.temperature = top_p, temperature

    def cut(self, mass, p):
        return mass - p < self.top_p  # the one that crosses stays

    def nucleus(self, p):
        order = np.argsort(-p, axis=1, kind="stable")
        ranked = np.take_along_axis(p, order, axis=1)
        keep = np.zeros(p.shape, bool)
        np.put_along_axis(keep, order, self.cut(np.cumsum(ranked, axis=1), ranked), axis=1)
        return keep

    def probs(self, logits):
        p = softmax(logits / self.temperature)
        p = np.where(self.nucleus(p), p, 0)
        return p / p.sum(axis=1, keepdims=True)


class CrossingTokenDropped(Nucleus):
    """The token that crosses top_p is left out."""

    def cut(self, mass, p):
        return mass <= self.top_p


class TopPBeforeTemperature(Nucleus):
    """The nucleus of the untempered row, then the temperature."""

    def __init__(self, seed=0):
        super().__init__(seed, temperature=0.7)

    def probs(self, logits):
        kept = np.where(self.nucleus(softmax(logits)), logits, -np.inf)
        return softmax(kept / self.temperature)


class UniformScaled(Right):
    """u never passes 0.9998: a division by the wrong power of two."""

    def uniforms(self, logits):
        return 0.9998 * self.rng.random(len(logits))


class Float32Cumsum(Right):
    """A running sum in float32 over the vocabulary stands still once tokens are small."""

    def running(self, logits):
        assert np.array_equal(logits[0], logits[-1])  # copies of one row, for speed
        weights = np.exp(logits[0].astype(np.float32) - logits[0].max())
        return np.cumsum(weights / weights.sum(dtype=np.float64), dtype=np.float32)

    def __call__(self, logits):
        running = self.running(logits)
        u = self.rng.random(len(logits)) * running[-1]
        return np.searchsorted(running, u, side="right")


class LastTokenOnRounding(Float32Cumsum):
    """The float32 sum falls short of 1, and a u beyond it becomes the last token."""

    def __call__(self, logits):
        u = self.rng.random(len(logits))
        place = np.searchsorted(self.running(logits), u, side="right")
        return np.minimum(place, logits.shape[1] - 1)


class Noise(Right):
    """Argmax of logits and Gumbel noise. Of equal logits only the largest noise is drawn.

    So that a row of 2**18 tokens costs no 2**18 noises: the largest of m uniforms is u ** (1/m),
    and which of the m has it is any of them.
    """

    def round(self, u):
        return u

    def noise(self, u):
        return -np.log(-np.log(u))

    temperature = 1.0
    groups = None  # of the row before: sorting it takes longer than all else

    def __call__(self, logits):
        batch, vocab = logits.shape
        if vocab < 1000:
            with np.errstate(divide="ignore"):
                noise = self.noise(self.round(self.rng.random(logits.shape)))
            return (logits / self.temperature + noise).argmax(axis=1)
        # Batches of long rows are copies of one.
        if self.groups is None or not np.array_equal(self.groups[0], logits[0]):
            values, group, sizes = np.unique(logits[0], return_inverse=True, return_counts=True)
            self.groups = logits[0].copy(), values, np.argsort(group, kind="stable"), sizes
        _, values, order, sizes = self.groups
        with np.errstate(divide="ignore"):
            largest = self.round(self.rng.random((batch, len(values))) ** (1 / sizes))
            best = (values / self.temperature + self.noise(largest)).argmax(axis=1)
        first = np.append(0, np.cumsum(sizes))
        return order[first[best] + self.rng.integers(0, sizes[best])]


class Float32Noise(Noise):
    """u has 24 bits, so Gumbel noise ends at 16.6 and a tail further down is never drawn."""

    def round(self, u):
        return np.clip(np.round(u * 2**24), 1, 2**24 - 1) / 2**24


class NoiseTable(Noise):
    """Noise from a table of 2**20 entries: it ends at 14.6."""

    def round(self, u):
        return (np.floor(u * 2**20) + 0.5) / 2**20


class ExponentialNoise(Noise):
    """Exponential noise added to logits, where Gumbel noise belongs."""

    def noise(self, u):
        return -np.log1p(-u)


class TiesByAddress:
    """Top-k by argpartition: which of equal logits stay depends on where they lie."""

    def __init__(self, seed=0, k=10):
        self.inner, self.k = Right(seed), k

    def __call__(self, logits):
        kept = np.full(logits.shape, -np.inf)
        places = np.argpartition(logits[:, ::-1], -self.k, axis=1)[:, -self.k :]
        places = logits.shape[1] - 1 - places
        np.put_along_axis(kept, places, np.take_along_axis(logits, places, axis=1), axis=1)
        return self.inner(kept)


class OneSeedForAllRows(Right):
    """Each row makes its generator from the same seed."""

    def uniforms(self, logits):
        return np.full(len(logits), self.rng.random())


class RowPlusStep(Right):
    """Row i at step t has the generator seeded seed + i + t: what row i + 1 had a step ago."""

    def __init__(self, seed=0):
        self.seed, self.step = seed, 0

    def uniforms(self, logits):
        self.step += 1
        return keyed(self.seed, self.step + np.arange(len(logits)))


class SeedPlusRow(RowPlusStep):
    """The generator of a row is seeded seed + row: neighbouring seeds share all rows but one."""

    def uniforms(self, logits):
        self.step += 1
        return keyed(self.step, self.seed + np.arange(len(logits)))


def keyed(key, numbers):
    """A uniform for each number: splitmix64."""
    with np.errstate(over="ignore"):
        z = np.asarray(numbers, np.uint64) + np.uint64((key * 0x9E3779B97F4A7C15 + 1) % 2**64)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * 2.0**-53


class SeedOfNeighbours(Right):
    """A hash of the whole batch goes into the seed."""

    def __init__(self, seed=0):
        self.seed, self.step = seed, 0

    def uniforms(self, logits):
        self.step += 1
        words = [self.seed, self.step, hash(logits.tobytes()) % 2**63]
        return np.random.default_rng(words).random(len(logits))


class ReseededEachStep(Right):
    """Every call makes a new generator."""

    def __init__(self, seed=0):
        self.seed = seed

    def uniforms(self, logits):
        return np.random.default_rng(self.seed).random(len(logits))


class RemovedTokenDrawn(Right):
    """A token of -inf, once in 100,000 draws: float32 gave it 1e-5 for -inf + 1e-5."""

    def probs(self, logits):
        p = softmax(logits)
        removed = np.isneginf(logits)
        share = 1e-5 / np.maximum(removed.sum(axis=1, keepdims=True), 1)
        return np.where(removed, share, p * (1 - 1e-5))


class CoarseAcceptance(Right):
    """Rejection by p / max p in steps of 1 %: below half a step a token is never accepted."""

    def probs(self, logits):
        p = softmax(logits)
        accepted = np.round(100 * p / p.max(axis=1, keepdims=True))
        return accepted / accepted.sum(axis=1, keepdims=True)


class NoMaximumSubtracted(Right):
    """exp(logits) overflows float32 once logits are large, and NaN weights draw token 0."""

    def probs(self, logits):
        with np.errstate(over="ignore", invalid="ignore"):
            weights = np.exp(logits, dtype=np.float32).astype(np.float64)
            return weights / weights.sum(axis=1, keepdims=True)


class RemovedTokensClipped(Right):
    """Clips logits at 8 below the maximum, so that removed tokens get a weight."""

    def probs(self, logits):
        return softmax(np.maximum(logits, logits.max(axis=1, keepdims=True) - 8))


class StridesIgnored(Right):
    """Reads the memory after a view as if it were the view."""

    def probs(self, logits):
        base = logits if logits.base is None else logits.base
        return softmax(np.ascontiguousarray(base).ravel()[: logits.size].reshape(logits.shape))


class Float64Rounded(Right):
    """Rounds float64 to whole numbers: an integer path taken by mistake."""

    def probs(self, logits):
        if logits.dtype == np.float64:
            logits = np.round(logits)
        return softmax(logits)


class NormalisedOverBatch(Right):
    """Subtracts the maximum of the batch, in float16: rows next to a larger one lose their tail."""

    def probs(self, logits):
        p = np.exp((logits - logits.max()).astype(np.float16)).astype(np.float64)
        with np.errstate(invalid="ignore"):
            return p / p.sum(axis=1, keepdims=True)


class WritesIntoItsInput(Right):
    """Tempers in place."""

    def __call__(self, logits):
        logits *= 1.25
        return super().__call__(logits / 1.25)


class IdsForRanks(Right):
    """Keeps the first 40 ids: an id is looked at where a rank belongs."""

    def probs(self, logits):
        p = softmax(logits)
        p[:, 40:] = 0
        return p / p.sum(axis=1, keepdims=True)


class LastRowLeftOver(Right):
    """The last row, which a vectorised loop leaves over, is drawn from half of [0, 1)."""

    def uniforms(self, logits):
        u = super().uniforms(logits)
        u[-1] *= 0.5
        return u


class Case(NamedTuple):
    """What a wrong sampler is shown, and what has to be said of it."""

    wrong: type
    says: str  # a regular expression that one finding has to match
    law: object = None
    row: np.ndarray | None = None
    draws: int | None = None  # of each part; None is the default
    seeded: bool = False
    alone: bool = False  # check_draws at `draws`, where only the plain row shows it
    tail: bool = False


ROW = np.round(64 * np.random.default_rng(0).normal(0, 2, 60)).astype(np.float32) / 64
REMOVED = np.where(np.arange(60) % 7 == 3, np.float32(-np.inf), ROW)
# The likeliest token first, then 131,071 that a float32 sum can no longer count.
LONG = np.append(np.float32(0), np.full(131_071, -20.0, np.float32))
# Small enough tokens for float32 to round, large enough not to vanish.
ROUNDED = np.append(np.float32(0), np.full(131_070, -14.33, np.float32))
ROUNDED = np.append(ROUNDED, np.float32(-40))
# Its last tokens have 1e-4 in all.
FALLING = np.linspace(0, -9, 60, dtype=np.float32)

CASES = [
    Case(ProbabilitiesOff, "draws: the counts do not fit the probabilities", alone=True,
         draws=required_draws(0.01, bins=60)),
    Case(CrossingTokenDropped, r"draws: token \d+ was never drawn", Sampler(top_p=0.9)),
    Case(TopPBeforeTemperature, r"draws: token \d+ was drawn .* times; its probability is 0",
         Sampler(temperature=0.7, top_p=0.9)),
    Case(UniformScaled, r"draws: the \d+ last token ids, .* were drawn .* times, where",
         row=FALLING, draws=300_000, alone=True),
    Case(Float32Cumsum, "draws: the .* least likely tokens, .* were never drawn", row=LONG,
         draws=100_000, alone=True),
    Case(LastTokenOnRounding, "draws: token 131071 was drawn .* times", row=ROUNDED,
         draws=20_000, alone=True),
    Case(Float32Noise, "tail: the 262,144 tokens 20.5 nats down, .* cannot be reached", tail=True),
    Case(NoiseTable, "tail: the 262,144 tokens 20.5 nats down, .* cannot be reached", tail=True),
    Case(ExponentialNoise, "draws: the counts do not fit the probabilities"),
    Case(TiesByAddress, "ties: among tied logits, the sampler keeps different", Sampler(top_k=10)),
    Case(OneSeedForAllRows, r"rows: rows i and i \+ 1 of a batch are not independent: 100 %"),
    Case(RowPlusStep, r"steps: row i \+ 1 of call t and row i of call t \+ 1 are not independent"),
    Case(SeedPlusRow, r"seeds: row i \+ 1 under seed s and row i under seed s \+ 1 are not",
         seeded=True),
    Case(SeedOfNeighbours, "repeat: under the same seed, .* change with the rows next to them",
         seeded=True),
    Case(ReseededEachStep, r"steps: calls t and t \+ 1 are not independent: 100 % of pairs agree"),
    # One time in 100,000 is seen at all with probability 0.999 in 691,000 draws.
    Case(RemovedTokenDrawn, r"draws: token \d+ was drawn .* times?; its probability is 0",
         row=REMOVED, draws=700_000, alone=True),
    Case(CoarseAcceptance, r"draws: token \d+ was never drawn"),
    Case(NoMaximumSubtracted, r"shift up: adding 128 to all logits changes the law"),
    Case(RemovedTokensClipped, "padding: tokens put in at -inf were drawn"),
    Case(StridesIgnored, "layout: the law changes with the strides"),
    Case(Float64Rounded, "float64: the law changes with float64 logits"),
    Case(NormalisedOverBatch, "neighbours: a row's law changes with the rows next to it"),
    Case(WritesIntoItsInput, "the sampler writes into its logits"),
    Case(IdsForRanks, r"draws: the \d+ last token ids, .* were never drawn"),
    Case(LastRowLeftOver, "rows: a row's distance from the last of the batch and its tokens"),
]  # fmt: skip
RIGHT = [(Right, None), (Nucleus, Sampler(top_p=0.9)), (Noise, None)]


def examine(case: Case, seed: int = 0) -> Result:
    """Check a wrong sampler as its case says."""
    row = ROW if case.row is None else case.row
    if case.alone:
        draw, batch = case.wrong(seed), np.tile(row, (max(2, min(10_000, 2**22 // len(row))), 1))
        tokens = np.concatenate([draw(batch) for _ in range(-(-case.draws // len(batch)))])
        result = check_draws(tokens, softmax(row[None])[0], seeds={"seed": seed})
        result.findings[:] = [f"draws: {finding}" for finding in result.findings]
        return result
    sampler = case.wrong if case.seeded else case.wrong(seed)
    return check_sampler(
        sampler, row, case.law, draws=case.draws, seeded=case.seeded, tail=case.tail
    )


def named(case: Case, result: Result) -> bool:
    return result.ok is False and any(re.search(case.says, f) for f in result.findings)


def main() -> None:
    print(f"{'wrong sampler':22} {'draws':>10} {'a part':>9} {'s':>5}  what is said first of it")
    for case in CASES:
        start = time.perf_counter()
        result = examine(case)
        seconds = time.perf_counter() - start
        part = result.parts["draws"].draws if result.parts else result.draws
        words = next((f for f in result.findings if re.search(case.says, f)), "NOT NAMED")
        print(f"{case.wrong.__name__:22} {result.draws:10,} {part:9,} {seconds:5.1f}  {words}")


if __name__ == "__main__":
    main()
