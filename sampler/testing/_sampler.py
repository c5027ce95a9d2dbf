"""`check_sampler`: what a sampler has to get right apart from the probabilities of one row."""

from __future__ import annotations

from typing import Any

from sampler._checks import U64_END, U64_TEXT, check_integer
from sampler.api import Sampler
from sampler.testing._arguments import check_rates
from sampler.testing._laws import softmax_law
from sampler.testing._outcome import report
from sampler.testing._parts import SamplerCheck
from sampler.testing._result import Result
from sampler.testing._rows import check_logits


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
    """Test whether a sampler draws by its law, from every row, in every batch, at every step.

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
        Whether `sampler` takes a seed. Only then does the check show that a seed repeats its
        tokens, and that neighbouring seeds are independent.
    seed : int, in [0, 2**64)
        The first seed; the next parts take the next ones. It also chooses the permutation.
    ties : bool
        Whether the law says which of equal logits a cut keeps. Hugging Face's top-p leaves it to
        the sort: check it with ``ties=False``.
    relations : bool
        Whether shifted, permuted and padded logits have the same law. Use False if the law depends
        on token ids or on the size of logits, as with penalties and biases.
    tail : bool
        Whether to draw from a row of 2**18 tokens that lie 20.5 nats below the first: some 70,000
        draws, seconds for a fast sampler, minutes for one that makes noise for every token.
    progress : bool, optional
        Show a bar on stderr; by default only if that is a terminal.

    Returns
    -------
    Result
        With a `Result` for each part in ``parts``:

        - draws (draws[1] ... for further rows): the plain row, as `check_draws`;
        - rows, steps: tokens of neighbouring rows and calls are independent;
        - repeat, seeds (with ``seeded=True``): the same seed gives the same tokens, whatever is in
          the other rows; neighbouring seeds give independent ones;
        - neighbours: the law of a row is its own next to other rows;
        - shift up, shift down: adding 128, or taking it away, changes nothing;
        - permutation: permuted logits give permuted tokens;
        - padding: tokens of -inf, put in anywhere, change nothing and are never drawn;
        - layout: strides change nothing; float64, float32, float16: neither do dtypes;
        - ties: logits rounded to whole numbers, so that a cut falls between equals;
        - tail: the far tail is drawn as often as it should be.

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above, or the sampler returns anything but one id in [0, vocab)
        per row. What the sampler itself raises comes through, except where it refuses a dtype by a
        TypeError, a NotImplementedError, or an error that says "not implemented".

    See Also
    --------
    check_draws : recorded draws against probabilities.
    check_uniform : the random numbers themselves.

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
    rows = check_logits(logits)
    if draws is not None:
        draws = check_integer("draws", draws, 1, 2**40, "an integer >= 1")
    if batch is not None:
        batch = check_integer("batch", batch, 2, 2**31, "an integer >= 2")
    seed = check_integer("seed", seed, 0, U64_END, U64_TEXT)
    if law is None:
        law = sampler if isinstance(sampler, Sampler) else softmax_law
    check = SamplerCheck(
        sampler, rows, law, alpha=alpha, power=power, draws=draws, batch=batch, seeded=seeded,
        seed=seed, ties=ties, relations=relations, tail=tail,
    )  # fmt: skip
    return report("check_sampler", check.run(progress))
