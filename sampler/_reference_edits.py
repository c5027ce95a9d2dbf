"""The edits of `reference`, as one would write them on a page: one loop after another.

Each takes the row of logits as doubles, changes it in place, and looks at the text so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sampler.stages import (
    DRY,
    BadWords,
    BeginSuppressTokens,
    ForcedTokens,
    FrequencyPenalty,
    LogitBias,
    MinNewTokens,
    NoRepeatNgram,
    PresencePenalty,
    RepetitionPenalty,
    SequenceBias,
    SuppressTokens,
    TokenCount,
)
from sampler.stages.base import Stage

__all__ = ["Text", "edited"]

_Array = npt.NDArray[np.float64]
_MOST_FLOAT = float(np.finfo(np.float64).max)


class Text(NamedTuple):
    """The tokens so far."""

    prompt: Sequence[int] = ()
    output: Sequence[int] = ()

    @property
    def tokens(self) -> list[int]:
        """Both, in order."""
        return [*self.prompt, *self.output]


def edited(row: _Array, stages: Sequence[Stage], text: Text) -> _Array:
    """Return the row as the edits among the stages leave it.

    Where a logit was exactly a float32, the new one is rounded to float32; finite ones stay finite.
    """
    x = row.copy()
    with np.errstate(over="ignore"):
        for stage in stages:
            if stage.kind == "edit" and not stage.is_off:
                _EDITS[type(stage)](x, stage, text)
        most = np.finfo(np.float32).max
        narrow = np.clip(x, -most, most).astype(np.float32).astype(np.float64)
        was_float32 = row.astype(np.float32).astype(np.float64) == row
    touched = (x != row) & np.isfinite(row) & (x > -np.inf)
    return np.where(touched & was_float32, narrow, x)


def logit_bias(x: _Array, stage: LogitBias, text: Text) -> None:
    """Add to single tokens."""
    for one, bias in stage.value:
        x[one] = _finite(x[one], x[one] + bias) if bias > -math.inf else -math.inf


def sequence_bias(x: _Array, stage: SequenceBias, text: Text) -> None:
    """Add to the last token of each sequence whose others end the text."""
    for ids, bias in stage.value:
        if text.tokens[len(text.tokens) - len(ids) + 1 :] == [*ids[:-1]] or len(ids) == 1:
            last = ids[-1]
            x[last] = _finite(x[last], x[last] + bias) if bias > -math.inf else -math.inf


def penalty(x: _Array, stage: Any, text: Text) -> None:
    """Each token of the text by its share; the largest counts, or of a frequency the sum."""
    amount, window, include_prompt, decay = stage.values
    tokens = text.tokens if include_prompt else [*text.output]
    shares: dict[int, float] = {}
    for i, token in enumerate(tokens):
        distance = len(tokens) - i
        share = 1.0
        if window is not None and distance > window:
            share = 1.0 - (distance - window) / decay if distance <= window + decay else 0.0
        if share > 0.0:
            before = shares.get(token, 0.0)
            is_sum = isinstance(stage, FrequencyPenalty)
            shares[token] = before + share if is_sum else max(before, share)
    for token, share in shares.items():
        if isinstance(stage, RepetitionPenalty):
            whole = _finite(x[token], x[token] / amount if x[token] > 0 else x[token] * amount)
            x[token] = whole if share == 1.0 else x[token] * (1.0 - share) + whole * share
        else:
            x[token] = _finite(x[token], x[token] - share * amount)


def dry(x: _Array, stage: DRY, text: Text) -> None:
    """Find the longest match before each place by looking."""
    multiplier, base, allowed_length, window, include_prompt, breakers = stage.values
    tokens = text.tokens if include_prompt else [*text.output]
    tokens = tokens if window is None else tokens[-window:]
    n = len(tokens)
    limit = n  # of tokens after the last breaker
    for ids in breakers:
        for end in range(len(ids), n + 1):
            if tokens[end - len(ids) : end] == [*ids]:
                limit = min(limit, n - end)
    longest: dict[int, int] = {}
    for place in range(1, n):
        length = 0
        while length < place and tokens[place - 1 - length] == tokens[n - 1 - length]:
            length += 1
        length = min(length, limit)
        if length >= allowed_length:
            longest[tokens[place]] = max(longest.get(tokens[place], 0), length)
    most = 2**31 - 1
    if np.float32(base) > np.float32(1.000001):
        most = int(np.float32(88.7228391) / np.float32(np.log(np.float64(np.float32(base)))))
    for token, length in longest.items():
        if (token,) not in breakers:
            exponent = min(length - allowed_length, most)
            x[token] = _finite(x[token], x[token] - multiplier * _power(base, exponent))


def _finite(before: float, after: float) -> float:
    """What a finite logit becomes is finite too."""
    return min(max(after, -_MOST_FLOAT), _MOST_FLOAT) if math.isfinite(before) else after


def _power(base: float, exponent: int) -> float:
    """By squaring: the same bits as the core's."""
    result = 1.0
    while exponent > 0:
        if exponent % 2:
            result *= base
        base, exponent = base * base, exponent // 2
    return result


def no_repeat_ngram(x: _Array, stage: NoRepeatNgram, text: Text) -> None:
    """Forbid what would complete a sequence that is there."""
    n, tokens = int(stage.value), text.tokens
    for start in range(len(tokens) - n + 1):
        if tokens[start : start + n - 1] == tokens[len(tokens) - n + 1 :]:
            x[tokens[start + n - 1]] = -np.inf


def bad_words(x: _Array, stage: BadWords, text: Text) -> None:
    """Forbid the last token of each."""
    sequence_bias(x, SequenceBias(dict.fromkeys(stage.value, -math.inf)), text)


def suppress_tokens(x: _Array, stage: SuppressTokens, text: Text) -> None:
    """Forbid these ids."""
    x[list(stage.value)] = -np.inf


def begin_suppress_tokens(x: _Array, stage: BeginSuppressTokens, text: Text) -> None:
    """Forbid these ids before the first token."""
    if not text.output:
        x[list(stage.value)] = -np.inf


def min_new_tokens(x: _Array, stage: MinNewTokens, text: Text) -> None:
    """Forbid the ends."""
    least, ids = stage.values
    if len(text.output) < least:
        x[list(ids)] = -np.inf


def token_count(x: _Array, stage: TokenCount, text: Text) -> None:
    """Forbid the padding."""
    x[int(stage.value) :] = -np.inf


def forced_tokens(x: _Array, stage: ForcedTokens, text: Text) -> None:
    """Forbid all but one."""
    forced = dict(stage.value).get(len(text.output))
    if forced is not None:
        x[np.arange(len(x)) != forced] = -np.inf


_EDITS: dict[type[Stage], Callable[[_Array, Any, Text], None]] = {
    LogitBias: logit_bias,
    SequenceBias: sequence_bias,
    RepetitionPenalty: penalty,
    FrequencyPenalty: penalty,
    PresencePenalty: penalty,
    DRY: dry,
    NoRepeatNgram: no_repeat_ngram,
    BadWords: bad_words,
    SuppressTokens: suppress_tokens,
    BeginSuppressTokens: begin_suppress_tokens,
    MinNewTokens: min_new_tokens,
    TokenCount: token_count,
    ForcedTokens: forced_tokens,
}
