"""What the probabilities of a row should be, from what a caller gives as the law."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sampler._checks import as_array
from sampler.api import Distribution, Sampler
from sampler.testing._arguments import check_probs
from sampler.testing._rows import Row
from sampler.testing._statistics import Floats


class Laws(NamedTuple):
    """The law of each row; and of any other row, if that is known."""

    rows: list[Floats]
    of: Callable[[Row], Floats] | None


def laws_of(law: Any, rows: Row) -> Laws:
    """Return the laws of the rows, from a Sampler, a callable, or probabilities."""
    if isinstance(law, Sampler):
        branches = _branches(law)
        return _by_function(lambda row: _mean_over_coins(branches, row), rows)
    if callable(law):
        function = law
        return _by_function(lambda row: check_probs("law", function(row), len(row)), rows)
    vocab = rows.shape[1]
    if len(rows) == 1:
        array = law if isinstance(law, Distribution) else as_array("law", law)
        if not isinstance(array, Distribution) and array.shape == (1, vocab):
            array = array[0]
        return Laws([check_probs("law", array, vocab)], None)
    array = as_array("law", law)
    if array.shape != rows.shape:
        raise ValueError(
            f"`law` has to have the shape of the logits, {rows.shape}, but has shape {array.shape}"
        )
    return Laws([check_probs("law", probs, vocab) for probs in array], None)


def _branches(sampler: Sampler) -> list[tuple[float, Sampler]]:
    """Return what the coins of the sampler's stages may make of it, and how likely each is."""
    branches = []
    for ways in itertools.product(*(stage.branches() for stage in sampler.stages)):
        share = math.prod(share for share, _ in ways)
        if share > 0.0:
            branches.append((share, sampler.replace(stages=[stage for _, stage in ways])))
    return branches if len(branches) > 1 else [(1.0, sampler)]


def _mean_over_coins(branches: list[tuple[float, Sampler]], row: Row) -> Floats:
    laws = [share * check_probs("law", one.distribution(row)) for share, one in branches]
    return laws[0] if len(laws) == 1 else check_probs("law", sum(laws))


def _by_function(of: Callable[[Row], Floats], rows: Row) -> Laws:
    return Laws([of(row) for row in rows], of)


def softmax_law(row: Row) -> Floats:
    """Return the softmax in float64."""
    x = row.astype(np.float64)
    weights = np.exp(x - x.max())
    result: Floats = weights / math.fsum(weights.tolist())
    return result
