"""The temperature at which a softmax has a given entropy or perplexity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from sampler.temperature._entropy import excess_entropy, gaps_to_top
from sampler.temperature._limits import EPS, LARGEST, SMALLEST
from sampler.temperature._rows import (
    Array,
    Floats,
    chunks,
    one_per_row,
    read_rows,
    refuse_invalid,
    row_name,
    to_float64,
)


def temperature_for_entropy(logits: Any, entropy: Any) -> Any:
    """Return the temperature at which softmax(logits / temperature) has the entropy, row by row.

    Parameters
    ----------
    logits : array_like of shape (..., vocab)
        Finite or -inf; dtypes and containers are those of the function `entropy`.
    entropy : float or array_like of shape (...)
        In nats, one for all rows or one per row. A row reaches from log(number of tokens with the
        largest logit) to log(number of logits above -inf).

    Returns
    -------
    array, tensor or scalar
        float64 of shape (...); a tensor for a tensor. 0 and inf at the two ends, and where
        no float64 is small or large enough. 1 for a row of equal logits, which has its one entropy
        at every temperature.

    Raises
    ------
    TypeError
        If `logits` are not an array of numbers, or `entropy` has the wrong type; if
        either requires grad.
    ValueError
        If a row has NaN or +inf or holds nothing above -inf, or cannot reach its entropy; the row
        is named, and what it reaches.

    See Also
    --------
    entropy : the inverse.
    temperature_for_perplexity : for a number of equally likely tokens.

    Notes
    -----
    With p = softmax(logits / T) and b = 1 / T, the entropy is log(Z) - b E[x], and d log(Z) / db is
    E[x]. So its derivative with respect to b is -b Var[x], and with respect to T it is
    Var[x] / T**3: positive, unless all logits are equal, and there is one answer. Newton's method
    finds it, on the logarithm of the entropy as a function of b, inside a bracket that is halved
    where Newton would leave it. The entropy at the temperature found is within about 1e-13,
    relative, of the one asked for.

    Near the upper end the entropy hardly depends on the temperature: near log(n) (1 - 1e-16), even
    temperatures that differ by a factor of 2 have the same entropy in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import entropy, temperature_for_entropy
    >>> logits = np.array([1.0, 3.0, 2.0, 0.0])
    >>> t = temperature_for_entropy(logits, 1.2)
    >>> t.round(4), entropy(logits, temperature=t).round(9)
    (np.float64(1.7117), np.float64(1.2))
    >>> temperature_for_entropy(logits, 2.0)
    Traceback (most recent call last):
    ...
    ValueError: `entropy` has to be in [0, 1.38629], the range of row 0, but is 2.0
    """
    return _temperature_for(logits, "entropy", entropy, lambda h: h, np.log)


def temperature_for_perplexity(logits: Any, perplexity: Any) -> Any:
    """Return the temperature at which softmax(logits / temperature) has the perplexity.

    Parameters
    ----------
    logits : array_like of shape (..., vocab)
        As `temperature_for_entropy` takes them.
    perplexity : float or array_like of shape (...)
        One for all rows or one per row. A row reaches from the number of tokens with the largest
        logit to the number of logits above -inf.

    Returns
    -------
    array, tensor or scalar
        As for `temperature_for_entropy`, whose errors are raised here too.

    See Also
    --------
    perplexity : the inverse.
    temperature_for_entropy : for an entropy in nats.

    Examples
    --------
    >>> import numpy as np
    >>> from sampler.temperature import temperature_for_perplexity
    >>> logits = np.array([[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 5.0, -np.inf]])
    >>> temperature_for_perplexity(logits, [2.0, 3.0]).round(4)
    array([0.6916, 1.    ])
    """
    return _temperature_for(logits, "perplexity", perplexity, np.log, lambda count: count)


def _temperature_for(
    logits: Any,
    name: str,
    value: Any,
    to_entropy: Callable[[Floats], Floats],
    limit: Callable[[Array], Floats],
) -> Any:
    source, rows, shape, _ = read_rows(logits, -1)
    lowest = 1.0 if name == "perplexity" else 0.0
    values = one_per_row(name, value, shape, lowest, f"a float >= {lowest:g}")
    wanted = to_entropy(values)
    result = np.empty(len(rows))
    for chunk in chunks(*rows.shape):
        x = to_float64(rows[chunk], source.kind)
        refuse_invalid(x, range(chunk.start, chunk.stop), shape)
        gaps, ties, finite, scale = gaps_to_top(x)
        h, low, high = wanted[chunk], np.log(ties), np.log(finite)
        slack = 4 * EPS  # of what log(n) may be in the caller's arithmetic
        outside = ~((h >= low * (1 - slack)) & (h <= high * (1 + slack)))
        if outside.any():
            i = int(np.argmax(outside))
            ends = f"{limit(ties)[i]:.6g}, {limit(finite)[i]:.6g}"
            raise ValueError(
                f"`{name}` has to be in [{ends}], the range of row "
                f"{row_name(chunk.start + i, shape)}, but is {values[chunk][i]}"
            )
        at_low, at_high = h <= low * (1 + slack), h >= high * (1 - slack)
        t = np.where(at_low, 0.0, math.inf)
        t[at_low & at_high] = 1.0
        inner = np.flatnonzero(~(at_low | at_high))
        t[inner] = _solve(gaps[inner], ties[inner], finite[inner], h[inner])
        result[chunk] = t / scale
    return source.to_container(result.reshape(shape))


def _solve(gaps: Floats, ties: Floats, finite: Floats, wanted: Floats) -> Floats:
    """Temperatures of rows that reach their entropies between the two ends."""
    # Above log(ties), so that the logarithm below has a root to be steep at.
    excess_wanted = wanted - np.log(ties)
    low, high = np.zeros(len(gaps)), np.full(len(gaps), math.inf)
    # The mean distance from the largest logit, computed so that it cannot overflow.
    distance = np.sum(-np.where(gaps > -math.inf, gaps, 0.0) / finite[:, None], axis=1)
    t: Floats = np.clip(0.25 * distance, 1e-300, 1e300)
    reach = np.full(len(gaps), 4.0)  # logarithm of the largest step
    active = np.arange(len(gaps))
    for _ in range(200):
        if not len(active):
            break
        now, aim = t[active], excess_wanted[active]
        excess, variance = excess_entropy(gaps[active], ties[active], now)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            misfit = np.log(excess / aim)
            # Newton's step on log(excess) against 1 / T, as a factor.
            step = -np.log1p(misfit * excess / variance)
        below = excess < aim
        low[active] = np.where(below, now, low[active])
        high[active] = np.where(below, high[active], now)
        done = (np.abs(excess - aim) <= 2 * EPS * wanted[active]) | (np.abs(step) <= 4 * EPS)
        lowest, highest = low[active], high[active]
        bounded = (lowest > 0) & (highest < math.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            newton = now * np.exp(step)
            good = (newton > lowest) & (newton < highest) & (np.abs(step) <= reach[active])
            halved = np.sqrt(lowest) * np.sqrt(highest)
            far = now * np.exp(np.where(below, 1, -1) * reach[active])
        blind = ~good & ~bounded
        # Twice as far the next time: any double is reached in a dozen steps.
        reach[active] = np.where(blind, np.minimum(2 * reach[active], 300.0), reach[active])
        far = np.clip(far, SMALLEST, LARGEST)
        # Past the last double on either side.
        over, under = below & (now == LARGEST), ~below & (now == SMALLEST)
        t[active] = np.where(done, now, np.where(good, newton, np.where(bounded, halved, far)))
        t[active[over]], t[active[under]] = math.inf, 0.0
        done |= over | under
        done |= bounded & (lowest >= highest * (1 - 2 * EPS))
        active = active[~done]
    return t
