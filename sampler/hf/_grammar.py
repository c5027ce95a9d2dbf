"""Grammars: which tokens may follow the output so far, as the mask of a draw.

A grammar starts a matcher for each text. What a matcher has accepted follows from the rows of a
call alone: where a row went back, as assisted decoding does, the matcher does too, or a fresh one
accepts its tokens again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from sampler import _inputs
from sampler._checks import check_batch, check_integer

_BITS = 32
_TAKES = (
    "an LLMatcher of llguidance, a CompiledGrammar of xgrammar, or an object with `vocab_size` and "
    "`start()`; or a list of them, one per row"
)


class Matcher(Protocol):
    """Follows one text. One that has ``rollback(n)`` as well goes back without a restart."""

    def fill(self, words: npt.NDArray[np.int32]) -> None:
        """Set bit j & 31 of word j >> 5 where token j may come next, and clear it elsewhere."""

    def accept(self, token: int) -> bool:
        """Take the next token; False, and nothing taken, if it may not come next."""

    def is_done(self) -> bool:
        """Whether the last token taken ended the text."""


class Grammar(Protocol):
    """What ``grammar=`` takes: it makes a `Matcher` for each text.

    Attributes
    ----------
    vocab_size : int
        How many tokens its masks cover. The model's vocabulary may be padded: tokens beyond are
        forbidden.
    """

    vocab_size: int

    def start(self) -> Matcher:
        """Return a matcher that has accepted nothing."""


def json_grammar(schema: Any, tokenizer: Any) -> Any:
    """Make the grammar of the JSON that fits a schema, by llguidance, for ``grammar=``.

    Parameters
    ----------
    schema : dict or str
        A JSON Schema. llguidance knows most of it, and refuses what it does not know.
    tokenizer : PreTrainedTokenizerFast or LLTokenizer
        The model's. Its end token ends the text.

    Returns
    -------
    llguidance.LLMatcher
        For any number of texts and calls. Making one takes a few tenths of a second.

    Raises
    ------
    ImportError
        If llguidance is not installed.
    TypeError
        If the tokenizer is not one of these.
    ValueError
        If `schema` is not one that llguidance knows.

    See Also
    --------
    generate : takes it.
    generate_kwargs : takes it.

    Notes
    -----
    The JSON is on one line, with a space after each comma and colon, as ``json.dumps`` writes it:
    where any white space is allowed, a hot sampler writes it for ever. A schema's ``x-guidance``
    says otherwise. For a grammar in another form (Lark, a regular expression), make the
    ``LLMatcher`` yourself.

    A text that ``max_new_tokens`` cuts off is not whole. Bound strings by ``maxLength`` and lists
    by ``maxItems``.
    """
    try:
        from llguidance import LLMatcher, LLTokenizer
        from llguidance.hf import from_tokenizer
    except ImportError as error:
        raise ImportError(
            f"json_grammar needs llguidance ({error}): pip install llguidance"
        ) from error
    is_theirs = isinstance(tokenizer, LLTokenizer)
    if not (is_theirs or hasattr(tokenizer, "backend_tokenizer")):
        raise TypeError(
            "`tokenizer` has to be a PreTrainedTokenizerFast or an LLTokenizer, but is "
            f"{_inputs.kind_of(tokenizer)}"
        )
    one_line: Any = {
        "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ",
    }  # fmt: skip
    try:
        text = LLMatcher.grammar_from_json_schema(schema, defaults=one_line)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"`schema` has to be a JSON schema, as a dict or a str: {error}"
        ) from None
    matcher = LLMatcher(tokenizer if is_theirs else from_tokenizer(tokenizer), text)
    if matcher.is_error():
        raise ValueError(f"`schema` is not one that llguidance knows: {matcher.get_error()}")
    return matcher


class Grammars:
    """The grammar of each row of a batch, or one that stands for all; None leaves a row free."""

    def __init__(self, grammar: Any) -> None:
        per_row = isinstance(grammar, (list, tuple))
        self._of = [
            None if one is None else _adapted(one) for one in (grammar if per_row else [grammar])
        ]
        self._per_row = per_row

    def __deepcopy__(self, memo: Any) -> Grammars:
        return self  # nothing in it changes

    def start(self, rows: torch.Tensor, vocab: int) -> Outputs:
        """Begin a generation, after rows that are all prompt."""
        grammars = self._of if self._per_row else self._of * len(rows)
        check_batch("grammar", len(grammars), len(rows))
        for size in {one.vocab_size for one in grammars if one is not None}:
            # Masks know their words, not always their bits. Models pad their vocabulary, so fewer
            # tokens may be right; of fewer than seven eighths it is taken for another model's.
            if size > -(-vocab // _BITS) * _BITS or 8 * size < 7 * vocab:
                raise ValueError(
                    f"`grammar` is for a vocabulary of {size} tokens, but the model's has {vocab}: "
                    "make it with the model's own tokenizer"
                )
        return Outputs(grammars, rows.shape[1], vocab)


class Outputs:
    """The outputs of one generation, each followed by a matcher."""

    def __init__(self, grammars: Sequence[Grammar | None], prompt_length: int, vocab: int) -> None:
        self._of = [None if one is None else _Output(one) for one in grammars]
        self._prompt_length = prompt_length
        self._width = -(-vocab // _BITS)

    def mask(
        self, rows: torch.Tensor, unfinished: npt.NDArray[np.bool_] | None
    ) -> npt.NDArray[np.int32]:
        """Return words, as `sampler.masks` has them: what may follow each row."""
        words = np.full((len(rows), self._width), -1, np.int32)
        for row, tokens in enumerate(rows[:, self._prompt_length :].tolist()):
            output = self._of[row]
            if output is not None and (unfinished is None or unfinished[row]):
                output.fill(tokens, words[row])
        return words


class _Output:
    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._matcher = grammar.start()
        self._taken: list[int] = []  # by the matcher
        if not all(hasattr(self._matcher, name) for name in ("fill", "accept", "is_done")):
            kind = _inputs.kind_of(self._matcher)
            raise TypeError(
                f"`grammar.start()` has to return an object with fill, accept and is_done, but "
                f"returned {kind}"
            )

    def fill(self, tokens: list[int], words: npt.NDArray[np.int32]) -> None:
        """Say what may follow these tokens; leave the words where they are not of the grammar.

        Then they are candidates, of which the first that is wrong is replaced, or the padding of a
        text that is over.
        """
        beyond = self._follow(tokens)
        if self._matcher.is_done():
            if not self._taken:
                raise ValueError("`grammar` has to allow a token, but is done before the first")
            end = self._taken[-1]
            if all(token == end for token in beyond):
                words[:] = 0
                words[end >> 5] = np.uint32(1 << (end & 31)).astype(np.int32)
        elif not beyond:
            size = self._grammar.vocab_size
            own = words[: -(-size // _BITS)]
            words[len(own) :] = 0
            self._matcher.fill(own)
            if size % _BITS:  # a matcher may set the bits beyond, too
                own[-1] &= (1 << size % _BITS) - 1

    def _follow(self, tokens: list[int]) -> list[int]:
        """Bring the matcher to these tokens, and return those from the first that it refuses."""
        taken = self._taken
        if taken != tokens[: len(taken)]:
            pairs = enumerate(zip(taken, tokens, strict=False))
            same = next((i for i, (a, b) in pairs if a != b), min(len(taken), len(tokens)))
            if hasattr(self._matcher, "rollback"):
                self._matcher.rollback(len(taken) - same)
                del taken[same:]
            else:
                self._matcher = self._grammar.start()
                taken.clear()
        while len(taken) < len(tokens):
            token = tokens[len(taken)]
            if self._matcher.is_done() or not self._matcher.accept(token):
                break
            taken.append(token)
        return tokens[len(taken) :]


def _adapted(grammar: Any) -> Grammar:
    kind = type(grammar)
    if hasattr(grammar, "unsafe_compute_mask_ptr") and hasattr(grammar, "deep_copy"):
        return _LLGuidance(grammar)
    if kind.__module__.partition(".")[0] == "xgrammar" and kind.__name__ == "CompiledGrammar":
        return _XGrammar(grammar)
    if kind is not type and hasattr(grammar, "start") and hasattr(grammar, "vocab_size"):
        check_integer("grammar.vocab_size", grammar.vocab_size, 1, None, "an integer >= 1")
        own: Grammar = grammar
        return own
    schema = isinstance(grammar, (dict, str))
    raise TypeError(
        f"`grammar` has to be {_TAKES}, but is {_inputs.kind_of(grammar)}"
        + ": of a JSON schema, sampler.hf.json_grammar(schema, tokenizer) makes one" * schema
    )


class _LLGuidance:
    """An LLMatcher, as it stands."""

    def __init__(self, matcher: Any) -> None:
        if matcher.is_error():
            raise ValueError(f"`grammar` is not one that llguidance knows: {matcher.get_error()}")
        self._matcher = matcher.deep_copy()  # the caller's may go on
        self.vocab_size = _BITS * self._width()

    def _width(self) -> int:
        # llguidance refuses masks of another width than its own, and makes some a word wider.
        most = len(self._matcher.compute_bitmask()) // 4
        for width in (most, most - 1):
            words = np.empty(width, np.int32)
            try:
                self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
            except ValueError:
                continue
            return width
        raise ValueError(f"`grammar` has masks of an unknown width, near {most} words")

    def start(self) -> _LLGuidanceMatcher:
        return _LLGuidanceMatcher(self._matcher.deep_copy(), self.vocab_size // _BITS)


class _LLGuidanceMatcher:
    # After an error an LLMatcher is of no use any more, so it is given no token but those of its
    # mask. Where only the end is left, it takes an end token without counting it: it is not given
    # that one.

    def __init__(self, matcher: Any, width: int) -> None:
        self._matcher = matcher
        self._words = np.zeros(width, np.int32)
        self._is_filled = self._ended = self._uncounted = False

    def fill(self, words: npt.NDArray[np.int32]) -> None:
        if not self._is_filled:
            own = self._words
            self._matcher.unsafe_compute_mask_ptr(own.ctypes.data, own.nbytes)
            self._check()
            self._is_filled = True
        words[:] = self._words

    def accept(self, token: int) -> bool:
        self.fill(self._words)
        word = token // _BITS
        if word >= len(self._words) or not self._words[word] >> token % _BITS & 1:
            return False
        if self._matcher.is_stopped():
            self._ended = self._uncounted = True
        else:
            self._is_filled = False
            self._matcher.consume_token(token)
            self._check()
            self._ended = self._matcher.stop_reason() == "EndOfSentence"
        return True

    def rollback(self, n: int) -> None:
        if n:
            counted = n - self._uncounted
            self._is_filled = self._ended = self._uncounted = False
            self._matcher.rollback(counted)
            self._check()

    def is_done(self) -> bool:
        return self._ended

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(f"llguidance gave up: {self._matcher.get_error()}")


class _XGrammar:
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self.vocab_size = compiled.tokenizer_info.vocab_size

    def start(self) -> _XGrammarMatcher:
        from xgrammar import GrammarMatcher

        return _XGrammarMatcher(GrammarMatcher(self._compiled))


class _XGrammarMatcher:
    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self.accept = matcher.accept_token
        self.rollback = matcher.rollback
        self.is_done = matcher.is_terminated

    def fill(self, words: npt.NDArray[np.int32]) -> None:
        if not self._matcher.fill_next_token_bitmask(torch.from_numpy(words[None])):
            words[:] = -1  # all are allowed
