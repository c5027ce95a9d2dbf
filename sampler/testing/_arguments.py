"""Checks of what callers give, and of what their functions return: rates, laws, draws, uniforms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sampler._checks import as_array, check_ids, check_real
from sampler.api import Distribution
from sampler.testing._statistics import Floats, Ints, count_ids

_MIN_ALPHA = 1e-200  # scores end at 1e-300, and there are shares to be taken


def check_rates(alpha: Any, power: Any) -> tuple[float, float]:
    """Floats in (0, 1), alpha the smaller: a test that always alarms by chance has its power."""
    text = "a float in (0, 1)"
    checked = []
    for name, value in (("alpha", alpha), ("power", power)):
        number = check_real(name, value, 0.0, 1.0, text)
        if not 0.0 < number < 1.0:
            raise ValueError(f"`{name}` has to be {text}, but is {value}")
        checked.append(number)
    if checked[0] < _MIN_ALPHA:
        raise ValueError(f"`alpha` has to be at least {_MIN_ALPHA:g}, but is {alpha}")
    if not checked[0] < checked[1]:
        raise ValueError(f"`power` has to be more than alpha, {alpha}, but is {power}")
    return checked[0], checked[1]


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
    array = as_array(name, probs)
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


def check_any(name: str, tokens: Any) -> None:
    """Refuse no draws at all."""
    array = as_array(name, tokens)
    if not array.size and array.dtype != object:  # which is a ragged list
        raise ValueError(f"`{name}` have to hold at least one draw, but are empty")


def count_tokens(name: str, tokens: Any, vocab: int) -> Ints:
    """How often each id of the vocabulary was drawn."""
    check_any(name, tokens)
    return count_ids(check_ids(name, tokens, vocab, f"integers in [0, {vocab})"), vocab)


def check_drawn(name: str, tokens: Any, count: int, vocab: int) -> Ints:
    """What a function of that name returned: one id per row, or one per draw.

    Not `check_ids`: the shape comes first, and the sentence is of a return value, not an argument.
    """
    array = as_array(name, tokens)
    wanted = f"integers in [0, {vocab}), of shape ({count},)"
    if array.shape != (count,):
        raise ValueError(f"`{name}` has to return {wanted}, but returned shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` has to return {wanted}, but returned {array.dtype}")
    outside = (array < 0) | (array >= vocab)
    if outside.any():
        raise ValueError(f"`{name}` has to return {wanted}, but returned {array[outside][0]}")
    return array.astype(np.int64)


def check_floats(name: str, u: Any) -> Floats:
    """Floats, at least one, in a row of float64."""
    array = as_array(name, u)
    if array.dtype.kind != "f":
        kind = array.dtype if array.size else "ragged"
        raise TypeError(f"`{name}` have to be floats, but are {kind}")
    if not array.size:
        raise ValueError(f"`{name}` have to hold at least one number, but are empty")
    numbers: Floats = array.astype(np.float64).ravel()
    return numbers


def check_unit(name: str, numbers: Floats) -> None:
    """Refuse numbers outside [0, 1)."""
    outside = ~((numbers >= 0.0) & (numbers < 1.0))
    if outside.any():
        raise ValueError(f"`{name}` has to be in [0, 1), but holds {numbers[outside][0]}")
