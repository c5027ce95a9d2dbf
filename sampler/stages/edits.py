"""Edits: they change single logits, or forbid tokens, before anything else looks at the row.

Those that look at the text so far need `history=` in a call: `sampler.history.History`.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sampler._checks import (
    Biases,
    Flag,
    HasArray,
    Ids,
    Integers,
    Range,
    Reals,
    Sequences,
    finite,
    integers,
    reals,
)
from sampler.stages.base import Compiled, Edit, setting, stage

__all__ = [
    "DRY",
    "BadWords",
    "BeginSuppressTokens",
    "ForcedTokens",
    "FrequencyPenalty",
    "LogitBias",
    "MinNewTokens",
    "NoRepeatNgram",
    "PresencePenalty",
    "RepetitionPenalty",
    "SequenceBias",
    "SuppressTokens",
    "TokenCount",
]

_Flags = bool | Collection[bool] | HasArray | None


def _window() -> Any:
    return setting(default=None, range_=Range(int, 1, None, optional=True))


def _with_prompt(default: bool) -> Any:
    return setting(default=default, range_=Flag())


def _decay() -> Any:
    return setting(default=0, range_=integers(0))


class _Penalty(Edit):
    """What the three penalties have in common."""

    __slots__ = ()
    compiled_kind = ""

    def compiled(self, vocab: int) -> Compiled:
        """Return the penalty, NaN in the rows where it is off."""
        penalty, window, include_prompt, decay = self.values
        window = math.nan if window is None else window
        parameters = (self.nan_where_off(penalty), window, include_prompt, decay)
        return Compiled(self.compiled_kind, parameters)


@stage
class LogitBias(Edit):
    """Add a number to the logits of some tokens.

    Parameters
    ----------
    logit_bias : mapping of int to float, off at () or None
        The ids and what is added to each; -inf forbids it. Kept as a tuple of pairs by id.

    Raises
    ------
    TypeError
        If `logit_bias` is not such a mapping.
    ValueError
        If an id is negative, or a bias NaN or inf. A call raises it if an id is not in the
        vocabulary.

    See Also
    --------
    SequenceBias : for words of several tokens.
    SuppressTokens : forbids.

    Notes
    -----
    x + bias, in double; a float32 stays one. Costs in proportion to the ids.

    References
    ----------
    OpenAI's API reference, `logit_bias`.
    """

    needs_history = False
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] | None = setting(
        default=(), range_=Biases()
    )

    def compiled(self, vocab: int) -> Compiled:
        """Return a sequence of one for each id."""
        pairs: Any = self.logit_bias
        pairs = (((one,), bias) for one, bias in pairs)
        return self._sequences(vocab, "bias", "logit_bias", pairs)


@stage
class SequenceBias(Edit):
    """Add a number to the logit of a token that would complete a sequence.

    Parameters
    ----------
    sequence_bias : mapping of tuple of int to float, off at () or None
        Sequences of ids, and what is added to the last id of each where the others end the text;
        -inf forbids it. A sequence of one always counts. Kept as a tuple of pairs.

    Raises
    ------
    TypeError
        If `sequence_bias` is not such a mapping.
    ValueError
        If an id is negative, or a bias NaN or inf. A call raises it if an id is not in the
        vocabulary.

    See Also
    --------
    LogitBias : for single tokens.
    BadWords : forbids sequences.

    Notes
    -----
    Looks at the prompt and the output. Several that complete at once add up, in the
    order of their ids; of a sequence given twice the last number counts.

    References
    ----------
    Hugging Face's `SequenceBiasLogitsProcessor`.
    """

    sequence_bias: Mapping[tuple[int, ...], float] | Iterable[Any] | None = setting(
        default=(), range_=Biases(sequences=True)
    )

    def compiled(self, vocab: int) -> Compiled:
        """Return the sequences."""
        pairs: Any = self.sequence_bias
        return self._sequences(vocab, "bias", "sequence_bias", pairs)


@stage
class RepetitionPenalty(_Penalty):
    """Make tokens that the text has already less likely, in proportion to their logits.

    Parameters
    ----------
    penalty : float, in (0, inf), off at 1
        Above 1 makes them less likely, below 1 more.
    window : int, >= 1
        How many tokens at the end of the text count; None: all.
    include_prompt : bool
        Whether those of the prompt count.
    decay : int, >= 0
        Over how many tokens before the window the penalty falls to nothing.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If one is out of its range or NaN.

    See Also
    --------
    FrequencyPenalty : grows with the number of times.
    DRY : penalises repeated sequences, not words.

    Notes
    -----
    y = x / penalty where x > 0, else x penalty. With `decay`, a token at the distance d > window
    from the end (the last token has d = 1) has the share s = 1 - (d - window) / decay, and the new
    logit is (1 - s) x + s y. The largest share counts.

    References
    ----------
    N. S. Keskar, B. McCann, L. R. Varshney, C. Xiong, R. Socher, "CTRL: A Conditional Transformer
    Language Model for Controllable Generation", 2019, arXiv:1909.05858; `decay` as in exllamav3.
    """

    compiled_kind = "repetition"
    penalty: Reals | None = setting(default=1.0, range_=reals(0.0, math.inf, "()"))
    window: Integers | None = _window()
    include_prompt: _Flags = _with_prompt(True)
    decay: Integers | None = _decay()


@stage
class FrequencyPenalty(_Penalty):
    """Lower the logit of a token by a number for each time that the text has it.

    Parameters
    ----------
    penalty : float, off at 0
        What is subtracted each time; negative favours repetition.
    window : int, >= 1
        How many tokens at the end of the text count; None: all.
    include_prompt : bool
        Whether those of the prompt count.
    decay : int, >= 0
        Over how many tokens before the window the penalty falls to nothing.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If one is out of its range, infinite or NaN.

    See Also
    --------
    PresencePenalty : whatever the number of times.
    RepetitionPenalty : in proportion to the logit.

    Notes
    -----
    x - count penalty, where each time counts as 1, or with `decay` as in `RepetitionPenalty`.

    References
    ----------
    OpenAI's API reference, `frequency_penalty`.
    """

    compiled_kind = "frequency"
    penalty: Reals | None = setting(default=0.0, range_=finite(-math.inf))
    window: Integers | None = _window()
    include_prompt: _Flags = _with_prompt(False)
    decay: Integers | None = _decay()


@stage
class PresencePenalty(_Penalty):
    """Lower the logit of every token that the text has by a number.

    Parameters
    ----------
    penalty : float, off at 0
        What is subtracted; negative favours repetition.
    window : int, >= 1
        How many tokens at the end of the text count; None: all.
    include_prompt : bool
        Whether those of the prompt count.
    decay : int, >= 0
        Over how many tokens before the window the penalty falls to nothing.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If one is out of its range, infinite or NaN.

    See Also
    --------
    FrequencyPenalty : for each time.

    Notes
    -----
    x - penalty; with `decay`, times the largest share, as in `RepetitionPenalty`.

    References
    ----------
    OpenAI's API reference, `presence_penalty`.
    """

    compiled_kind = "presence"
    penalty: Reals | None = setting(default=0.0, range_=finite(-math.inf))
    window: Integers | None = _window()
    include_prompt: _Flags = _with_prompt(False)
    decay: Integers | None = _decay()


@stage
class DRY(Edit):
    """Lower the logits of tokens that would go on with a repetition of what the text has already.

    Parameters
    ----------
    multiplier : float, >= 0, off at 0
        The penalty of a repetition of `allowed_length` tokens.
    base : float, >= 1
        The factor for each further token.
    allowed_length : int, >= 1
        The shortest repetition whose next token is penalised.
    window : int, >= 1
        How many tokens at the end of the text count; None: all.
    include_prompt : bool
        Whether those of the prompt count.
    breakers : sequence of sequences of int
        Sequences of ids that end a repetition, such as line breaks and quotes.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If one is out of its range, infinite or NaN.

    See Also
    --------
    NoRepeatNgram : forbids repetitions.
    RepetitionPenalty : of single tokens.

    Notes
    -----
    With n the length of the longest run that ends the text and also stands right before an earlier
    occurrence of the token: x - multiplier base^(n - allowed_length), if n >= allowed_length. The
    run begins after the last breaker, and a breaker of one token is never penalised. The power is
    at most the largest float32. Linear in the text, at worst times the longest breaker.

    References
    ----------
    p-e-w, "DRY: A modern repetition penalty that reliably prevents looping", 2024,
    text-generation-webui pull request 5677; as in llama.cpp.
    """

    multiplier: Reals | None = setting(default=0.0, range_=finite(0.0))
    base: Reals | None = setting(default=1.75, range_=finite(1.0))
    allowed_length: Integers | None = setting(default=2, range_=integers(1))
    window: Integers | None = _window()
    include_prompt: _Flags = _with_prompt(False)
    breakers: Iterable[int | Sequence[int]] | None = setting(default=(), range_=Sequences())

    def compiled(self, vocab: int) -> Compiled:
        """Return the breakers, and the multiplier: NaN in the rows where it is off."""
        multiplier, base, allowed, window, include_prompt, breakers = self.values
        window = math.nan if window is None else window
        parameters = (self.nan_where_off(multiplier), window, include_prompt, base, allowed)
        breakers = sorted(breakers, key=lambda ids: ids[::-1])  # for the core to look them up
        pairs = ((ids, 0.0) for ids in breakers)
        return self._sequences(vocab, "dry", "breakers", pairs, parameters)


@stage
class NoRepeatNgram(Edit):
    """Forbid every token that would complete a sequence of n that the text has already.

    Parameters
    ----------
    no_repeat_ngram_size : int, >= 0, off at 0 or None
        n, the length of the sequences; 1 forbids every token of the text.

    Raises
    ------
    TypeError
        If `no_repeat_ngram_size` is not an integer.
    ValueError
        If it is negative.

    See Also
    --------
    DRY : penalises, and leaves room for names.

    Notes
    -----
    Looks at the prompt and the output. Linear in the text.

    References
    ----------
    R. Paulus, C. Xiong, R. Socher, "A Deep Reinforced Model for Abstractive Summarization", 2017,
    arXiv:1705.04304; Hugging Face's `NoRepeatNGramLogitsProcessor`.
    """

    no_repeat_ngram_size: Integers | None = setting(default=0, range_=integers(0))

    def compiled(self, vocab: int) -> Compiled:
        """Return the size, NaN in the rows where it is off."""
        return Compiled("no_repeat", (self.nan_where_off(self.no_repeat_ngram_size),))


@stage
class BadWords(Edit):
    """Forbid the last token of a sequence where the others end the text.

    Parameters
    ----------
    bad_words : sequence of sequences of int, off at () or None
        The sequences; one of a single token is always forbidden. Kept as tuples.

    Raises
    ------
    TypeError
        If `bad_words` is not such a sequence.
    ValueError
        If an id is negative. A call raises it if one is not in the vocabulary.

    See Also
    --------
    SequenceBias : makes them less likely.
    SuppressTokens : for single tokens.

    Notes
    -----
    Looks at the prompt and the output.

    References
    ----------
    Hugging Face's `NoBadWordsLogitsProcessor`.
    """

    bad_words: Iterable[int | Sequence[int]] | None = setting(default=(), range_=Sequences())

    def compiled(self, vocab: int) -> Compiled:
        """Return the sequences."""
        words: Any = self.bad_words
        return self._sequences(vocab, "bias", "bad_words", ((one, -math.inf) for one in words))


@stage
class SuppressTokens(Edit):
    """Never draw the tokens `suppress_tokens`.

    Parameters
    ----------
    suppress_tokens : sequence of int, each >= 0, off at () or None
        Ids of tokens. Kept as a tuple: ascending, each once.

    Raises
    ------
    TypeError
        If `suppress_tokens` is not a sequence of integers.
    ValueError
        If one is negative. A call raises it if one is not in the vocabulary.

    See Also
    --------
    sampler.Sampler : takes a `mask` per call, to allow or forbid many tokens.

    Notes
    -----
    A token that is suppressed has the logit -inf, whatever it was, NaN included. So it has no rank,
    no stage counts it, and `min_tokens_to_keep` does not bring it back. Costs nothing where no
    token is suppressed: the other blocks of 512 logits are read in place.

    References
    ----------
    A. Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022,
    arXiv:2212.04356, whose decoder suppresses the tokens that are not speech.
    """

    bans = True
    needs_history = False
    suppress_tokens: Collection[int] | None = setting(default=(), range_=Ids())

    def compiled(self, vocab: int) -> Compiled:
        """Return the ids."""
        ids: Any = self.suppress_tokens
        pairs = (((one,), -math.inf) for one in ids)
        return self._sequences(vocab, "bias", "suppress_tokens", pairs)


@stage
class BeginSuppressTokens(Edit):
    """Forbid the tokens `begin_suppress_tokens` at the beginning of the output.

    Parameters
    ----------
    begin_suppress_tokens : sequence of int, each >= 0, off at () or None
        Ids of tokens. Kept as a tuple: ascending, each once.

    Raises
    ------
    TypeError
        If `begin_suppress_tokens` is not a sequence of integers.
    ValueError
        If one is negative. A call raises it if one is not in the vocabulary.

    See Also
    --------
    SuppressTokens : everywhere.
    MinNewTokens : for longer.

    Notes
    -----
    Only the first token of the output is meant.

    References
    ----------
    Hugging Face's `SuppressTokensAtBeginLogitsProcessor`.
    """

    begin_suppress_tokens: Collection[int] | None = setting(default=(), range_=Ids())

    def compiled(self, vocab: int) -> Compiled:
        """Return the ids, forbidden before the first token."""
        ids: Any = self.begin_suppress_tokens
        pairs = (((one,), 0.0) for one in ids)
        return self._sequences(vocab, "before", "begin_suppress_tokens", pairs, (1.0,))


@stage
class MinNewTokens(Edit):
    """Forbid the end of the text until the output has so many tokens.

    Parameters
    ----------
    min_new_tokens : int, >= 0, off at 0
        How many tokens the output has at least.
    eos_token_id : sequence of int, each >= 0
        The ids that end a text.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If one is out of its range, or there are no ends. A call raises it if an id is not in the
        vocabulary.

    See Also
    --------
    BeginSuppressTokens : at the beginning alone.

    Notes
    -----
    Tokens of the prompt do not count.

    References
    ----------
    Hugging Face's `MinNewTokensLengthLogitsProcessor`.
    """

    min_new_tokens: Integers | None = setting(default=0, range_=integers(0))
    eos_token_id: Collection[int] | None = setting(default=(), range_=Ids())

    def __post_init__(self) -> None:
        Edit.__post_init__(self)
        if not self.is_off and not self.eos_token_id:
            least = f"{self.min_new_tokens}, [tokenizer.eos_token_id]"
            raise ValueError(
                f"`min_new_tokens` has to have the ids that end a text: min_new_tokens=({least})"
            )

    def compiled(self, vocab: int) -> Compiled:
        """Return the ids, forbidden before so many tokens."""
        least, ids = self.values
        pairs = (((one,), 0.0) for one in ids)
        parameters = (self.nan_where_off(least),)
        return self._sequences(vocab, "before", "eos_token_id", pairs, parameters)


@stage
class TokenCount(Edit):
    """Forbid every id from `n_tokens` on: the padding of a vocabulary.

    Parameters
    ----------
    n_tokens : int, >= 1, off at None
        How many tokens the tokenizer has.

    Raises
    ------
    TypeError
        If `n_tokens` is not an integer.
    ValueError
        If it is below 1.

    See Also
    --------
    SuppressTokens : for single ids.

    Notes
    -----
    Models pad their vocabulary to a round number; the ids at the end have no text.

    References
    ----------
    vLLM's `VocabParallelEmbedding`, which masks them.
    """

    bans = True
    needs_history = False
    n_tokens: int | None = setting(default=None, range_=Range(int, 1, None, optional=True))

    def __post_init__(self) -> None:
        Edit.__post_init__(self)
        if isinstance(self.n_tokens, np.ndarray):
            raise TypeError("`n_tokens` has to be one number for all rows, but is an array")

    def compiled(self, vocab: int) -> Compiled:
        """Return the ids beyond."""
        pairs = (((one,), -math.inf) for one in range(int(self.values[0]), vocab))
        return self._sequences(vocab, "bias", "n_tokens", pairs)


@stage
class ForcedTokens(Edit):
    """Let only one token follow, at some places of the output.

    Parameters
    ----------
    forced_tokens : mapping of int to int, off at () or None
        Places in the output, counted from 0, and the id that each has to have. Kept as pairs.

    Raises
    ------
    TypeError
        If `forced_tokens` is not such a mapping.
    ValueError
        If a place or an id is negative. A call raises it if an id is not in the vocabulary.

    See Also
    --------
    MinNewTokens : forbids instead.

    Notes
    -----
    A mask that forbids the token leaves none, which is an error.

    References
    ----------
    Hugging Face's `ForcedBOSTokenLogitsProcessor`.
    """

    forced_tokens: Mapping[int, int] | Iterable[tuple[int, int]] | None = setting(
        default=(), range_=Biases(integers=True)
    )

    def compiled(self, vocab: int) -> Compiled:
        """Return the ids, and their places as the numbers."""
        pairs: Any = self.forced_tokens
        pairs = (((one,), place) for place, one in pairs)
        return self._sequences(vocab, "force", "forced_tokens", pairs)
