"""Recorded draws against their probabilities: `check_draws`, `required_draws`, and step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any, Self

import numpy as np

from sampler._checks import array_of, check_ids, check_integer, check_real
from sampler.api import Distribution
from sampler.testing._result import Result, TokenCount, show_count, show_share
from sampler.testing._statistics import (
    LEAST,
    MOST_DRAWS,
    TAIL_SHARE,
    TOKEN_SHARE,
    Floats,
    Ints,
    Tail,
    bins_of,
    chi_square_share,
    detectable_bias,
    draws_for_bias,
    fit,
    noncentrality,
    tails,
    token_pvalues,
)

_NAMED = 3  # tokens that a sentence each is spent on


def check_draws(
    tokens: Any,
    probs: Any,
    *,
    alpha: float = 1e-6,
    power: float = 0.999,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """Tell whether recorded draws follow their probabilities.

    Parameters
    ----------
    tokens : array_like of int, in [0, vocab)
        The draws, in any shape. They have to be independent: one history, drawn from one law.
    probs : array_like of shape (vocab,), or Distribution
        The law. It has to sum to 1 within 1e-5.
    alpha : float, in (0, 1)
        How often draws of a correct sampler may fail.
    power : float, in (alpha, 1)
        With which probability a bias of `detectable_bias` has to be seen.
    seeds : mapping, optional
        What the draws came from; the report repeats it.

    Returns
    -------
    Result
        ``ok`` is None, never True, if there are too few draws to show even that the likeliest bin
        is never drawn; or for a second bin, or for eight where even the likeliest token is too rare
        for one of its own. The finding says how many it takes. One token with all probability needs
        no second.

    Raises
    ------
    TypeError
        If the tokens are not integers, or the probabilities no floats.
    ValueError
        If there are no tokens, one is outside the vocabulary, the probabilities are negative, NaN
        or do not sum to 1, alpha or power are outside (0, 1), or power is not the larger.

    Notes
    -----
    A token of probability 0 must not be drawn even once; this costs no false alarms. Three more
    tests share alpha:

    - half: Pearson's chi-square [1]_ over bins of at least 25 expected draws, in the decomposition
      of Lancaster [2]_, which keeps the false-alarm rate where it should be down to 1e-6 and
      below. The G-test and small bins do not: their rates are wrong by factors. Of more than 64
      bins, half of it goes to the same over at most 64 wide ones, which see a drift that no
      narrow one shows;
    - a quarter: each token's count, exact, corrected for the size of the vocabulary;
    - a quarter: the least likely tokens, the first and the last ids, each taken together, exact.

    References
    ----------
    .. [1] K. Pearson, "On the criterion that a given system of deviations ...", 1900.
    .. [2] H. O. Lancaster, "The derivation and partition of chi-square in certain discrete
       distributions", Biometrika 36, 1949.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.testing import check_draws
    >>> s = Sampler(top_k=3, seed=7)
    >>> logits = [1.0, 3.0, 2.0, 0.0]
    >>> result = check_draws(s.sample(logits, n=20_000).tokens, s.distribution(logits))
    >>> result
    Result(check_draws, ok=True, pvalue=0.36, draws=20000, detectable_bias=0.043, findings=[])
    >>> result = check_draws([0, 1, 1, 2, 3, 1], s.distribution(logits))
    >>> result.ok, result.findings
    (False, ['token 3 was drawn 1 time; its probability is 0'])
    """
    alpha, power = check_rates(alpha, power)
    law = check_probs("probs", probs)
    counts = count_tokens("tokens", tokens, len(law))
    return judge("check_draws", law, counts, alpha, power, seeds)


def judge(
    check: str,
    law: Floats,
    counts: Ints,
    alpha: float,
    power: float,
    seeds: Mapping[str, Any] | None = None,
) -> Result:
    """`check_draws` of checked counts."""
    draws = int(counts.sum())
    findings = impossible(law, counts)
    possible = np.where(law > 0, counts, 0)
    bins = bins_of(law, possible)
    statistic, of_fit, number, least_fit = fit(law, possible, bins)
    alone = token_pvalues(law, possible)
    several = tails(law, possible)
    least_token = float(alone.min()) * int(np.count_nonzero(law))
    least_tail = min((tail.pvalue for tail in several), default=1.0) * len(several)
    pvalue = min(
        1.0, least_fit, least_token / TOKEN_SHARE,
        least_tail / TAIL_SHARE if several else 1.0,
    )  # fmt: skip
    expected = law * int(possible.sum())
    # Of equal p-values, which may all be 0, the one that is furthest off.
    worst = [
        TokenCount(i, float(law[i]), float(expected[i]), int(counts[i]), float(alone[i]))
        for i in np.lexsort((-np.abs(possible - expected), alone))[:10].tolist()
        if law[i] > 0
    ]
    if pvalue < alpha:
        findings += _misfits(worst, several, alpha, int(np.count_nonzero(law)))
        if least_fit < alpha:
            findings.append(
                f"the counts do not fit the probabilities: chi-square {statistic:,.0f} over "
                f"{number:,} bins, where {number - 1:,} is usual (p = {of_fit:.2g})"
            )
    bias = detectable_bias(law, draws, alpha, power)
    ok: bool | None = not findings
    if ok and bias > 1:
        ok = None
        needed = draws_for_bias(law, 1.0, alpha, power, above=draws)
        told = f"{needed:,}" if needed < MOST_DRAWS else "more than 2**40"
        findings.append(
            f"too few draws for any conclusion: {draws:,}, where it takes {told} to see even "
            "a bin that is never drawn, or drawn twice as often"
        )
    return Result(
        check=check,
        ok=ok,
        pvalue=0.0 if np.any(counts[law == 0]) else pvalue,
        detectable_bias=bias,
        draws=draws,
        findings=findings,
        alpha=alpha,
        power=power,
        seeds=check_seeds(seeds),
        tokens=worst,
        tails=several,
        bins=bins,
    )


def impossible(law: Floats, counts: Ints) -> list[str]:
    """Name the tokens of probability 0 that were drawn."""
    strays = np.flatnonzero((law == 0) & (counts > 0))
    strays = strays[np.argsort(-counts[strays], kind="stable")]
    found = [
        f"token {i} was drawn {times(int(counts[i]))}; its probability is 0"
        for i in strays[:_NAMED].tolist()
    ]
    if len(strays) > _NAMED:
        more = len(strays) - _NAMED
        found.append(
            f"{more:,} more {'token' if more == 1 else 'tokens'} of probability 0 were drawn, "
            f"{times(int(counts[strays[_NAMED:]].sum()))} in all"
        )
    return found


def _misfits(worst: list[TokenCount], several: list[Tail], alpha: float, kept: int) -> list[str]:
    found = []
    level = TOKEN_SHARE * alpha / kept
    for token, p, expected, observed, pvalue in worst[:_NAMED]:
        if pvalue < level:
            often = f"drawn {times(observed)}" if observed else "never drawn"
            found.append(
                f"token {token} was {often}; of probability {p:.4g}, it is expected "
                f"{show_count(expected)} times"
            )
    level = TAIL_SHARE * alpha / max(len(several), 1)
    for name in dict.fromkeys(tail.name for tail in several):
        tail = min((t for t in several if t.name == name), key=lambda t: (t.pvalue, -t.tokens))
        if tail.pvalue < level:
            often = f"drawn {times(tail.observed)}" if tail.observed else "never drawn"
            which = (
                f"the {tail.tokens:,} {name}, {show_share(tail.probability)} together, were"
                if tail.tokens > 1
                else f"the {name[:-1]}, of {show_share(tail.probability)}, was"
            )
            found.append(f"{which} {often}, where {show_count(tail.expected)} times are expected")
    return found


def times(count: int) -> str:
    """Write how often."""
    return f"{count:,} {'time' if count == 1 else 'times'}"


def required_draws(effect: float, bins: int, *, alpha: float = 1e-6, power: float = 0.999) -> int:
    """Return how many draws `check_draws` takes to see an effect.

    Parameters
    ----------
    effect : float, in (0, inf)
        Cohen's w [1]_: the root of the sum of (q - p)^2 / p over the bins, q being what the sampler
        does and p the law. If half of the probability is 1 % too high and half 1 % too low, it is
        0.01; if one bin of probability p is off by a share b, it is b sqrt(p / (1 - p)).
    bins : int, in [2, 2**36)
        How many bins there are: the tokens of 25 or more expected draws, and the rest pooled.
    alpha, power : float, in (0, 1)
        The two error rates; power is the larger.

    Returns
    -------
    int
        Not less than 25 a bin.

    References
    ----------
    .. [1] J. Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988.

    Examples
    --------
    >>> from sampler.testing import required_draws
    >>> required_draws(0.01, bins=50)
    1341314
    """
    effect = check_real("effect", effect, 0.0, math.inf, "a float in (0, inf)")
    if not 0.0 < effect < math.inf:
        raise ValueError(f"`effect` has to be a float in (0, inf), but is {effect}")
    bins = check_integer("bins", bins, 2, 2**36, "an integer in [2, 2**36)")
    alpha, power = check_rates(alpha, power)
    value = noncentrality(bins - 1, chi_square_share(bins) * alpha, power)
    # Exact, since the square of a small float is 0.
    return max(math.ceil(Fraction(value) / Fraction(effect) ** 2), math.ceil(LEAST * bins))


def check_rates(alpha: Any, power: Any) -> tuple[float, float]:
    """Floats in (0, 1), alpha the smaller: a test that always alarms by chance has its power."""
    text = "a float in (0, 1)"
    checked = []
    for name, value in (("alpha", alpha), ("power", power)):
        number = check_real(name, value, 0.0, 1.0, text)
        if not 0.0 < number < 1.0:
            raise ValueError(f"`{name}` has to be {text}, but is {value}")
        checked.append(number)
    if checked[0] < _LEAST_ALPHA:
        raise ValueError(f"`alpha` has to be at least {_LEAST_ALPHA:g}, but is {alpha}")
    if not checked[0] < checked[1]:
        raise ValueError(f"`power` has to be more than alpha, {alpha}, but is {power}")
    return checked[0], checked[1]


_LEAST_ALPHA = 1e-200  # scores end at 1e-300, and there are shares to be taken


def check_seeds(seeds: Any) -> dict[str, Any]:
    """What the report repeats."""
    if seeds is None:
        return {}
    if not isinstance(seeds, Mapping):
        raise TypeError(f"`seeds` has to be a mapping of names to values, but is {seeds!r}")
    return dict(seeds)


def check_probs(name: str, probs: Any, vocab: int | None = None) -> Floats:
    """Probabilities by token id, float64, made to sum to 1 exactly as far as float64 goes."""
    if isinstance(probs, Distribution):
        probs = probs.dense()
    array = array_of(name, probs)
    wanted = f"probabilities of shape ({'vocab' if vocab is None else vocab},)"
    if array.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` have to be {wanted}, but are {probs!r}")
    if array.ndim != 1 or not array.size or (vocab is not None and len(array) != vocab):
        raise ValueError(f"`{name}` have to be {wanted}, but have shape {array.shape}")
    law = array.astype(np.float64)
    wrong = ~((law >= 0.0) & (law <= 1.0 + 1e-5))
    if wrong.any():
        token = int(np.argmax(wrong))
        raise ValueError(
            f"`{name}` have to be in [0, 1], but that of token {token} is {law[token]}"
        )
    total = math.fsum(law.tolist())
    if not abs(total - 1.0) <= 1e-5:
        raise ValueError(f"`{name}` have to sum to 1, but sum to {total:.9g}")
    return law / total


def count_tokens(name: str, tokens: Any, vocab: int) -> Ints:
    """How often each id of the vocabulary was drawn."""
    check_any(name, tokens)
    return counted(check_ids(name, tokens, vocab, f"integers in [0, {vocab})"), vocab)


def check_any(name: str, tokens: Any) -> None:
    """Refuse no draws at all."""
    array = array_of(name, tokens)
    if not array.size and array.dtype != object:  # which is a ragged list
        raise ValueError(f"`{name}` have to be at least one draw, but are none")


def counted(ids: Ints, vocab: int) -> Ints:
    """How often there is each id below vocab."""
    return np.bincount(ids.ravel(), minlength=vocab).astype(np.int64)


def check_drawn(name: str, tokens: Any, count: int, vocab: int) -> Ints:
    """What a function of that name returned: one id a row, or one a draw."""
    array = array_of(name, tokens)
    wanted = f"integers in [0, {vocab}), of shape ({count},)"
    if array.shape != (count,):
        raise ValueError(f"`{name}` has to return {wanted}, but returned shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` has to return {wanted}, but returned {array.dtype}")
    outside = (array < 0) | (array >= vocab)
    if outside.any():
        raise ValueError(f"`{name}` has to return {wanted}, but returned {array[outside][0]}")
    return array.astype(np.int64)


def check_sequentially(
    draw: Callable[[int], Any],
    probs: Any,
    *,
    bias: float = 0.05,
    alpha: float = 1e-6,
    power: float = 0.999,
    progress: bool | None = None,
) -> Result:
    """Draw until a fault shows, or until a bias as small as `bias` would have.

    Parameters
    ----------
    draw : callable
        ``draw(n)`` gives the next n tokens, in an array of shape (n,); n is at most 2**20.
    probs : array_like of shape (vocab,), or Distribution
        The law.
    bias : float, in (0, 1]
        The relative bias of the likeliest bin at which to stop looking.
    alpha, power : float, in (0, 1)
        The two error rates of the whole, however many looks there are.
    progress : bool, optional
        Show a bar; by default only on a terminal.

    Returns
    -------
    Result
        Of all draws up to where it stopped.

    Raises
    ------
    TypeError, ValueError
        As `check_draws`; if `draw` returns anything else; or if it would take more than 2**40
        draws.

    Notes
    -----
    It looks after 1/32, 1/16 ... of the planned draws and after all of them. The early looks share
    half of alpha equally, the last has the other half: by Bonferroni's bound a correct sampler
    fails at any of them with probability at most alpha. A gross fault shows in 1/32 of the time.

    Examples
    --------
    >>> from sampler import Sampler
    >>> from sampler.testing import check_sequentially
    >>> s = Sampler(seed=7)
    >>> logits = [1.0, 3.0, 2.0, 0.0]
    >>> check_sequentially(lambda n: s.sample(logits, n=n).tokens, s.distribution(logits)).ok
    True
    >>> wrong = check_sequentially(lambda n: s.sample(logits, n=n).tokens, [0.25] * 4, bias=0.01)
    >>> wrong.ok, wrong.draws
    (False, 70016)
    """
    alpha, power = check_rates(alpha, power)
    bias = check_real("bias", bias, 0.0, 1.0, "a float in (0, 1]")
    if not bias:
        raise ValueError("`bias` has to be a float in (0, 1], but is 0")
    law = check_probs("probs", probs)
    planned = draws_for_bias(law, bias, alpha / 2, power)
    if planned >= MOST_DRAWS:
        raise ValueError(
            f"`bias` has to be one that 2**40 draws show, but is {bias}, where the likeliest token "
            f"has probability {float(law.max())}"
        )
    looks = sorted({-(-planned // 2**i) for i in range(_EARLY_LOOKS, -1, -1)})
    counts = np.zeros(len(law), np.int64)
    with bar(planned, "draws", progress) as shown:
        for look in looks:
            while wanted := min(look - int(counts.sum()), _AT_ONCE):
                counts += counted(check_drawn("draw", draw(wanted), wanted, len(law)), len(law))
                shown.update(wanted)
            last = look == planned
            spent = alpha / 2 if last else alpha / 2 / max(len(looks) - 1, 1)
            result = judge("check_sequentially", law, counts, spent, power)
            if result.ok is False or last:
                break
    scaled = min(1.0, result.pvalue * alpha / spent)
    return replace(result, alpha=alpha, pvalue=scaled)


_EARLY_LOOKS = 5
_AT_ONCE = 2**20


def bar(total: int, name: str, progress: bool | None) -> Any:
    """Show a tqdm bar; without `progress=True` only on a terminal, and only if tqdm is there."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        if progress:
            raise ImportError(
                f"`progress` needs tqdm ({error}); it comes with "
                'pip install "token-sampler[testing]"'
            ) from error
        return _NoBar()
    disable = None if progress is None else not progress
    return tqdm(total=total, desc=name, unit_scale=True, leave=False, disable=disable)


class _NoBar:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int) -> None:
        pass

    def set_description(self, text: str) -> None:
        pass
