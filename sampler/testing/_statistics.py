"""The statistics: bins, exact binomial tails, Pearson's chi-square, power. No opinions here."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import optimize, special, stats

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# The names of tails.
LEAST_LIKELY, FIRST_IDS, LAST_IDS = "least likely tokens", "first token ids", "last token ids"
MIN_EXPECTED = 25.0  # expected draws of a bin
MOST_DRAWS = 2**40  # that anything is planned for
WIDE = 64  # bins of the second chi-square, where the first has more
INTERVALS = 16  # of ordered values
MIN_BINS = 8  # where the likeliest token makes no bin of its own
# Shares of alpha: the chi-square sees many small faults, the others one large fault.
CHI_SQUARE_SHARE, TOKEN_SHARE, TAIL_SHARE = 0.5, 0.25, 0.25


class Tail(NamedTuple):
    """Some tokens taken together, and how often they were drawn."""

    name: str
    tokens: int
    probability: float
    expected: float
    observed: int
    pvalue: float


class Bins(NamedTuple):
    """Pooled counts, the likeliest bin first."""

    probs: Floats
    observed: Ints
    sizes: Ints  # tokens in each


def pool(probs: Floats, draws: int, least: float = MIN_EXPECTED) -> tuple[Ints, Ints]:
    """Order the tokens by probability and cut them into bins of at least `least` expected draws.

    The bins depend on the law alone, never on the counts. Returns the order, and where in it each
    bin starts. What is left at the end is too little for a bin and joins the last one.
    """
    order = np.argsort(-probs, kind="stable")
    expected = draws * probs[order]
    running = np.cumsum(expected)
    floor = least * (1 - 1e-9)  # equal shares that are exactly enough must not fail by rounding
    alone = int(np.searchsorted(-expected, -floor, side="right"))
    starts = list(range(alone))
    place, done = alone, float(running[alone - 1]) if alone else 0.0
    while place < len(order) and running[-1] - done >= floor:
        end = max(int(np.searchsorted(running, done + floor)), place)
        if end >= len(order):
            break
        starts.append(place)
        place, done = end + 1, float(running[end])
    return order, np.array(starts or [0], np.int64)


def bins_of(probs: Floats, counts: Ints) -> Bins:
    """Pool counts by their law."""
    return _bins(probs, counts, *pool(probs, int(counts.sum())))


def _bins(probs: Floats, counts: Ints, order: Ints, starts: Ints) -> Bins:
    sizes: Ints = np.diff(np.append(starts, np.count_nonzero(probs))).astype(np.int64)
    return Bins(
        np.add.reduceat(probs[order], starts), np.add.reduceat(counts[order], starts), sizes
    )


def count_ids(ids: Ints, vocab: int) -> Ints:
    """How often there is each id below vocab."""
    return np.bincount(ids.ravel(), minlength=vocab).astype(np.int64)


def chi_square(bins: Bins) -> tuple[float, float]:
    """Pearson's chi-square and its p-value, right in the far tail also for few expected draws.

    Taken in Lancaster's decomposition: the count of each bin, given the bins before it, is
    binomial, and the k - 1 binomials are independent. Each goes to the normal score of its exact
    mid-p tail; the sum of their squares is Pearson's statistic up to terms in 1/expected, and
    follows the chi-square law where the plain sum does not: of two bins, one with 25 expected
    draws, the plain sum alarms fourteen times as often as it should at alpha = 1e-6.
    """
    if len(bins.probs) < 2:
        return 0.0, 1.0
    draws = bins.observed.sum()
    left = draws - np.append(0, np.cumsum(bins.observed)[:-2])
    rest = np.cumsum(bins.probs[::-1])[::-1][:-1]
    share = np.minimum(bins.probs[:-1] / rest, 1.0)
    drawn = bins.observed[:-1]
    half = 0.5 * stats.binom.pmf(drawn, left, share)
    below = stats.binom.cdf(drawn, left, share) - half
    above = stats.binom.sf(drawn, left, share) + half
    score = special.ndtri(np.clip(np.minimum(below, above), 1e-300, 0.5))
    statistic = float(np.sum(score**2))
    return statistic, float(stats.chi2.sf(statistic, len(drawn)))


def chi_square_share(bins: int) -> float:
    """The share of alpha that each chi-square has: of more bins than `WIDE` there are two."""
    return CHI_SQUARE_SHARE / (2 if bins > WIDE else 1)


def wide(probs: Floats, draws: int, bins: int) -> tuple[Ints, Ints] | None:
    """Pool tokens to at most `WIDE` bins, where there are more; None where that is no use."""
    if bins <= WIDE:
        return None
    order, starts = pool(probs, draws, draws / WIDE)
    return (order, starts) if len(starts) > 1 else None


def fit(probs: Floats, counts: Ints, bins: Bins) -> tuple[float, float, int, float]:
    """The chi-square that fits worse, of those bins and, if they are many, of wide ones too.

    Many narrow bins see what differs from token to token, few wide ones a drift that is too small
    to show in any narrow one. Returns the statistic, its p-value, how many bins, and the p-value
    corrected for the share of alpha.
    """
    tried = [bins]
    pooled = wide(probs, int(counts.sum()), len(bins.probs))
    if pooled is not None:
        tried.append(_bins(probs, counts, *pooled))
    found = [(*chi_square(b), len(b.probs)) for b in tried]
    statistic, pvalue, count = min(found, key=lambda each: each[1])
    return statistic, pvalue, count, min(1.0, pvalue / chi_square_share(len(bins.probs)))


def binomial_pvalues(observed: Any, draws: int, probs: Any) -> Floats:
    """Two-sided exact: twice the smaller tail."""
    smaller = np.minimum(
        stats.binom.cdf(observed, draws, probs),
        stats.binom.sf(np.asarray(observed) - 1, draws, probs),
    )
    result: Floats = np.minimum(2.0 * smaller, 1.0)
    return result


def token_pvalues(probs: Floats, counts: Ints) -> Floats:
    """Exact p-value of each token's count on its own, 1 for tokens of probability 0."""
    draws = int(counts.sum())
    result = np.ones(len(probs))
    if not draws:  # 0 times log(0) is no number
        return result
    # Most of a vocabulary is never drawn; its tail is a power.
    never = (counts == 0) & (probs > 0)
    with np.errstate(divide="ignore"):
        result[never] = np.minimum(1.0, 2.0 * np.exp(draws * np.log1p(-probs[never])))
    drawn = (counts > 0) & (probs > 0)
    result[drawn] = binomial_pvalues(counts[drawn], draws, probs[drawn])
    return result


def tails(probs: Floats, counts: Ints) -> list[Tail]:
    """Hold the tails against their mass: least likely tokens, first ids, last ids.

    A tail is the most tokens whose mass is at most 0.3, 0.1, 0.03 ... down to one expected draw.
    """
    draws = int(counts.sum())
    order = np.argsort(probs, kind="stable")
    order = order[probs[order] > 0]
    by_id = np.sort(order)
    found = []
    for name, ids in (
        (LEAST_LIKELY, order),
        (FIRST_IDS, by_id),
        (LAST_IDS, by_id[::-1]),
    ):
        mass, drawn = np.cumsum(probs[ids]), np.cumsum(counts[ids])
        ends = [int(np.searchsorted(mass, level, side="right")) for level in _levels(draws)]
        for end in sorted({end for end in ends if end > 0}, reverse=True):
            share = min(float(mass[end - 1]), 1.0)
            seen = int(drawn[end - 1])
            p = float(binomial_pvalues(seen, draws, share))
            found.append(Tail(name, end, share, draws * share, seen, p))
    return found


def _levels(draws: int) -> list[float]:
    return [
        first * 10.0**-decade
        for decade in range(1, 20)
        for first in (3.0, 1.0)
        if draws * first * 10.0**-decade >= 1
    ]


def two_samples(a: Ints, b: Ints, ordered: bool = False) -> tuple[float, float, Ints]:
    """Chi-square of homogeneity of two vectors of counts: statistic, p-value, the table of bins.

    Tokens are pooled by frequency, or, if the counts are of ordered values, with their neighbours,
    until the smaller sample expects `MIN_EXPECTED`.
    """
    total = a + b
    smaller = int(min(a.sum(), b.sum()))
    if ordered:
        middle = (np.cumsum(total) - 0.5 * total) / total.sum()
        starts = np.flatnonzero(np.diff((middle * INTERVALS).astype(np.int64), prepend=-1))
        table = np.array([np.add.reduceat(v, starts) for v in (a, b)])
        table = _joined(table.T, MIN_EXPECTED * int(total.sum()) / smaller).T
    else:
        order, starts = pool(total / total.sum(), smaller)
        table = np.array([np.add.reduceat(v[order], starts) for v in (a, b)])
    return (*_independence(table), table)


def contingency(table: Ints) -> tuple[float, float, int]:
    """Chi-square of independence of a two-way table of counts: statistic, p-value, freedom.

    Neighbouring columns, then rows, are joined until each cell expects `MIN_EXPECTED`; by the
    margins alone, which say nothing of dependence. If that leaves one row or column, the likeliest
    and all others remain, however little the rarest cell expects. Freedom 0: all counts are of one
    row, or of one column.
    """
    total = int(table.sum())
    if not total:
        return 0.0, 1.0, 0
    given = table
    table = _joined(table.T, math.sqrt(MIN_EXPECTED * total)).T
    table = _joined(table, MIN_EXPECTED * total / int(table.sum(0).min()))
    if min(table.shape) < 2:
        row, column = int(given.sum(1).argmax()), int(given.sum(0).argmax())
        both = int(given[row, column])
        table = np.array(
            [[both, given[row].sum() - both], [given[:, column].sum() - both, 0]], np.int64
        )
        table[1, 1] = total - table.sum()
        if not (table.sum(0).all() and table.sum(1).all()):
            return 0.0, 1.0, 0
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return (*_independence(table), freedom)


def _independence(table: Ints) -> tuple[float, float]:
    """Pearson's statistic of a two-way table without empty margins, and a p-value for its tail.

    As in `chi_square` the p-value is of Lancaster's decomposition: given the margins, the tables of
    what is above and left of a cell against the cell are hypergeometric and independent.
    """
    rows, columns = table.shape
    if min(rows, columns) < 2:
        return 0.0, 1.0
    expected = table.sum(1)[:, None] * (table.sum(0) / table.sum())[None, :]
    statistic = float(np.sum((table - expected) ** 2 / expected))
    corner = table.cumsum(0).cumsum(1)  # of all up to a cell
    up_to, left_of, above = corner[1:, 1:], corner[1:, :-1], corner[:-1, 1:]
    drawn = corner[:-1, :-1]  # of the `above`, those that are in the `left_of`
    half = 0.5 * stats.hypergeom.pmf(drawn, up_to, left_of, above)
    below = stats.hypergeom.cdf(drawn, up_to, left_of, above) - half
    beyond = stats.hypergeom.sf(drawn, up_to, left_of, above) + half
    # Where the margins leave no choice, scipy has no law.
    tail = np.nan_to_num(np.minimum(below, beyond), nan=0.5)
    score = special.ndtri(np.clip(tail, 1e-300, 0.5))
    return statistic, float(stats.chi2.sf(np.sum(score**2), score.size))


def _joined(table: Ints, least: float) -> Ints:
    """Join neighbouring rows until each sums to `least`; what is left joins the last."""
    starts, running = [0], 0
    for i, size in enumerate(table.sum(1).tolist()):
        running += size
        if running >= least:
            starts.append(i + 1)
            running = 0
    starts.pop()
    result: Ints = np.add.reduceat(table, starts or [0], axis=0)
    return result


@lru_cache(maxsize=4096)
def noncentrality(freedom: int, alpha: float, power: float) -> float:
    """The noncentrality at which a chi-square test of level alpha has this power."""
    critical = stats.chi2.isf(alpha, freedom)

    def short(value: float) -> float:
        # The lower tail: in the upper one, 1 - 1e-12 and 1 - 1e-13 look alike.
        return float(stats.ncx2.cdf(critical, freedom, value)) - (1.0 - power)

    high = 1.0
    while short(high) > 0:
        high *= 2.0
    return float(optimize.brentq(short, 0.0, high, xtol=1e-9)) if short(0.0) > 0 else 0.0


def detectable_bias(probs: Floats, draws: int, alpha: float, power: float) -> float:
    """The smallest relative bias of the likeliest bin that `check_draws` sees with this power.

    Of the wide bins, where there are such; inf if it sees none. The bin, of probability p, is
    really q = p (1 + b), or p (1 - b), the others making up for it in proportion. If it is one
    token, that is also judged alone, exactly: which decides where it has nearly all mass.

    It takes a second bin: of one, a sampler that draws nothing else would pass. Unless the law has
    only one token, as far as float64 goes. And more of them where all hold several tokens: that
    half of a vocabulary is drawn half of the time tells little of its tokens.
    """
    order, starts = pool(probs, draws)
    level = chi_square_share(len(starts)) * alpha
    order, starts = wide(probs, draws, len(starts)) or (order, starts)
    p = min(float(probs.max()), 1.0)
    bins = np.add.reduceat(probs[order], starts)
    shared = len(starts) > 1 and starts[1] > 1
    if len(starts) < (MIN_BINS if shared else 2) and p < 1.0:
        return math.inf
    # The likeliest bin shows the least, but where it has no room to gain: then the next.
    likeliest = tuple(np.sort(bins)[::-1][:3].tolist())
    best = _bias_of_bins(likeliest, len(bins), draws, level, power)
    if likeliest[0] > p * (1 + 1e-9):
        return best
    return min(best, _bias_alone(p, draws, TOKEN_SHARE * alpha / np.count_nonzero(probs), power))


@lru_cache(maxsize=4096)
def _bias_of_bins(
    likeliest: tuple[float, ...], count: int, draws: int, level: float, power: float
) -> float:
    if count < 2:
        return math.inf
    value = noncentrality(count - 1, level, power)
    bins = np.array(likeliest)
    gain = _bias_in_chi_square(bins, (1.0 - bins) / bins, draws, value, power)
    loss = _bias_in_chi_square(bins, -np.ones_like(bins), draws, value, power)
    return float(np.min(_of_either_sign(gain, loss)))


def bias_of_two(p: float, bins: int, sizes: tuple[int, int], alpha: float, power: float) -> float:
    """The smallest relative bias of a bin of probability p that `two_samples` sees; inf if none.

    Whichever of the two samples has it.
    """
    if bins < 2:
        return math.inf
    value, margin = noncentrality(bins - 1, alpha, power), float(special.ndtri(power))
    found = []
    for biased in (0, 1):

        def excess(bias: Floats, biased: int = biased) -> Floats:
            q = np.clip(p * (1.0 + bias), 1e-300, 1.0 - 1e-16)
            shares = [np.full_like(q, p), np.full_like(q, p)]
            shares[biased] = q
            both = (sizes[0] * shares[0] + sizes[1] * shares[1]) / sum(sizes)
            ratio, variance = np.zeros_like(q), np.zeros_like(q)
            for n, share in zip(sizes, shares, strict=True):
                up, down = np.log(share / both), np.log((1.0 - share) / (1.0 - both))
                ratio += 2.0 * n * (share * up + (1.0 - share) * down)
                variance += n * share * (1.0 - share) * (up - down) ** 2
            score = np.sqrt(np.maximum(ratio, 1e-300))
            result: Floats = score - margin * (np.sqrt(variance) / score - 1.0) - math.sqrt(value)
            return result

        gain, loss = _smallest(excess, np.array([(1.0 - p) / p, -1.0]))
        found.append(float(_of_either_sign(gain, loss)))
    return max(found)


def _of_either_sign(gain: Any, loss: Any) -> Any:
    """The larger of two biases, but for one that cannot be seen while the other can."""
    return np.where(np.isinf(gain), loss, np.where(np.isinf(loss), gain, np.maximum(gain, loss)))


def _bias_in_chi_square(p: Floats, limit: Floats, draws: int, value: float, power: float) -> Floats:
    """Solve for the bias, between 0 and `limit`, at which the noncentrality is reached.

    The score of a bin's exact tail is the root of twice the log-likelihood ratio, and under q its
    deviation is not 1: without both, gains of a small bin would be promised that are not seen.
    """
    margin = float(special.ndtri(power))

    def excess(bias: Floats) -> Floats:
        q = np.clip(p * (1.0 + bias), 1e-300, 1.0 - 1e-16)
        up, down = np.log(q / p), np.log((1.0 - q) / (1.0 - p))
        score = np.sqrt(np.maximum(2.0 * draws * (q * up + (1.0 - q) * down), 1e-300))
        deviation = np.abs(up - down) * np.sqrt(draws * q * (1.0 - q)) / score
        result: Floats = score - margin * (deviation - 1.0) - math.sqrt(value)
        return result

    return _smallest(excess, limit)


def _smallest(excess: Callable[[Floats], Floats], limit: Floats) -> Floats:
    """Where an excess becomes positive between 0 and each limit; inf where it does not."""
    low, high = np.zeros_like(limit), limit * (1.0 - 1e-12)
    possible = excess(high) >= 0
    for _ in range(50):
        middle = 0.5 * (low + high)
        enough = excess(middle) >= 0
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    result: Floats = np.where(possible, np.abs(high), math.inf)
    return result


@lru_cache(maxsize=4096)
def _bias_alone(p: float, draws: int, level: float, power: float) -> float:
    """The same for one token under its exact two-sided binomial test."""
    low = int(stats.binom.ppf(level / 2, draws, p))  # counts below it alarm
    high = int(stats.binom.isf(level / 2, draws, p))  # counts above it alarm
    gain = loss = math.inf
    if low > 0:
        loss = 1.0 - float(stats.beta.ppf(1.0 - power, low, draws - low + 1)) / p
    if high < draws:
        gain = float(stats.beta.ppf(power, high + 1, draws - high)) / p - 1.0
    return max(0.0, float(_of_either_sign(gain, loss)))


def draws_for_bias(probs: Floats, bias: float, alpha: float, power: float, above: int = 0) -> int:
    """About the fewest draws at which `detectable_bias` is no more than `bias`, or MOST_DRAWS.

    More than `above`, since with more draws there are more bins, and for a while each shows less.
    """

    def enough(draws: int) -> bool:
        return detectable_bias(probs, draws, alpha, power) <= bias

    low, high = above, max(2 * above, 1)
    while not enough(high):
        low, high = high, 2 * high
        if high >= MOST_DRAWS:
            return MOST_DRAWS
    while high - low > max(1, high // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
