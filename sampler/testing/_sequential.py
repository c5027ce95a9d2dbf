"""Draws that are judged while they are made: `check_sequentially`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from sampler._checks import check_real
from sampler.testing._arguments import check_drawn, check_probs, check_rates
from sampler.testing._draws import judge_counts
from sampler.testing._outcome import report
from sampler.testing._progress import bar
from sampler.testing._result import Result
from sampler.testing._statistics import MOST_DRAWS, count_ids, draws_for_bias

_EARLY_LOOKS = 5
_AT_ONCE = 2**20


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
        Show a bar on stderr; by default only if that is a terminal.

    Returns
    -------
    Result
        Of all draws up to where it stopped.

    Raises
    ------
    TypeError, ValueError
        As `check_draws`; if `draw` returns anything else; or if it would take more than 2**40
        draws.

    See Also
    --------
    check_draws : draws that are already there.
    check_sampler : everything else that a sampler has to get right.

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
            f"a `bias` of {bias} would take more than 2**40 draws to show, because the likeliest "
            f"token has probability {float(law.max())}: choose a larger one"
        )
    looks = sorted({-(-planned // 2**i) for i in range(_EARLY_LOOKS, -1, -1)})
    counts = np.zeros(len(law), np.int64)
    with bar(planned, "draws", progress) as shown:
        for look in looks:
            while wanted := min(look - int(counts.sum()), _AT_ONCE):
                tokens = check_drawn("draw", draw(wanted), wanted, len(law))
                counts += count_ids(tokens, len(law))
                shown.update(wanted)
            last = look == planned
            level = alpha / 2 if last else alpha / 2 / max(len(looks) - 1, 1)
            outcome = judge_counts(law, counts, level, power)
            if outcome.ok is False or last:
                break
    scaled = min(1.0, outcome.pvalue * alpha / level)
    return report("check_sequentially", replace(outcome, alpha=alpha, pvalue=scaled))
