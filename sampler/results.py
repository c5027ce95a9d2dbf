"""What a sampler returns besides tokens: `Samples`, `Distribution`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler._checks import as_array

_IntArray = npt.NDArray[np.int64]
_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The drawn tokens and what is known of each.

    For a batch of B rows the arrays have shape (B,), or (B, n) under ``n=``; a single row drops
    B, so that without ``n=`` each is a NumPy scalar. The top lists have shape (B, logprobs), or
    (logprobs,), and are None unless asked for.

    Attributes
    ----------
    tokens : int64
        Token ids; -1 where the row was invalid under ``on_invalid="flag"``.
    logprobs : float64
        Natural log of the token's probability under the law it was sampled from; NaN where
        invalid.
    ranks : int64
        1 + the tokens before it in rank; 0 where invalid.
    kept : int64
        How many tokens the stages kept; 0 where invalid.
    entropy : float64
        Of the law the token was sampled from, in nats, to the nearest multiple of 2**-30; 0 at
        temperature 0, NaN where invalid.
    top_ids, top_logprobs : int64, float64
        The first tokens in rank under the law, padded with -1 and -inf.
    raw_logprobs : float64
        As `logprobs`, under the model's own softmax: temperature 1, nothing removed. This and all
        below is None unless ``raw=True`` asks for it.
    raw_ranks : int64
        As `ranks`, in the row as it came in.
    log_mass : float64
        Natural log of the kept tokens' probability under temperature alone, so that ``logprobs +
        log_mass`` is the token's log-probability there. 0 where nothing is removed, and at
        temperature 0; NaN where invalid.
    raw_top_ids, raw_top_logprobs : int64, float64
        As `top_ids`, `top_logprobs`, under the model's own softmax.
    """

    tokens: Any
    logprobs: Any = None
    ranks: Any = None
    kept: Any = None
    entropy: Any = None
    top_ids: Any = None
    top_logprobs: Any = None
    raw_logprobs: Any = None
    raw_ranks: Any = None
    log_mass: Any = None
    raw_top_ids: Any = None
    raw_top_logprobs: Any = None


class Distribution:
    """What a sampler makes of one row: the kept tokens and their probabilities.

    Made by `Sampler.distribution`. Arrays are in the order of rank: logit descending, then id
    ascending. They are sorted when first asked for.

    Attributes
    ----------
    ids : int64 of shape (kept,)
    probs : float64 of shape (kept,)
        Sum to 1; 0 where a probability underflows.
    logprobs : float64 of shape (kept,)
        Natural logs, finite even where `probs` underflow.
    entropy : float
        In nats, to the nearest multiple of 2**-30.

    Examples
    --------
    >>> from sampler import Sampler
    >>> d = Sampler(top_k=2, seed=7).distribution([1.0, 3.0, 2.0, 0.0])
    >>> d.ids
    array([1, 2])
    >>> d.probs.round(3)
    array([0.731, 0.269])
    """

    def __init__(
        self,
        vocab: int,
        entropy: float,
        ids: _IntArray,
        logits: _FloatArray,
        probs: _FloatArray,
        logprobs: _FloatArray,
        cumulative: _FloatArray,
    ) -> None:
        # By ascending id, as the draw goes.
        self._vocab = vocab
        self.entropy = entropy
        self._ids = ids
        self._logits = logits
        self._probs = probs
        self._logprobs = logprobs
        self._cumulative = cumulative

    @cached_property
    def _by_rank(self) -> _IntArray:
        return np.argsort(-self._logits, kind="stable")

    @cached_property
    def ids(self) -> _IntArray:
        """Kept token ids."""
        return self._ids[self._by_rank]

    @cached_property
    def probs(self) -> _FloatArray:
        """Their probabilities."""
        return self._probs[self._by_rank]

    @cached_property
    def logprobs(self) -> _FloatArray:
        """Natural logs of their probabilities."""
        return self._logprobs[self._by_rank]

    def dense(self) -> _FloatArray:
        """Return all `vocab` probabilities by token id, 0 where removed.

        Returns
        -------
        ndarray of shape (vocab,), float64
        """
        probs = np.zeros(self._vocab)
        probs[self._ids] = self._probs
        return probs

    def draw(self, u: Any) -> Any:
        """Return the token at u: the first, ids ascending, whose cumulative probability exceeds u.

        Parameters
        ----------
        u : float or array_like of float, in [0, 1)

        Returns
        -------
        int, or ndarray of int64 of the shape of u

        Raises
        ------
        TypeError
            If u is not made of real numbers.
        ValueError
            If any u is outside [0, 1) or NaN.
        """
        values = as_array("u", u)
        if values.dtype.kind not in "fiu":
            raise TypeError(f"`u` has to be in [0, 1), but is {u!r}")
        values = values.astype(np.float64)
        if not np.all((values >= 0.0) & (values < 1.0)):
            raise ValueError(f"`u` has to be in [0, 1), but is {u!r}")
        place = np.searchsorted(self._cumulative, values * self._cumulative[-1], side="right")
        tokens = self._ids[place]
        return tokens if values.ndim else int(tokens)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        top = ", ".join(
            f"{token}: {p:.3g}"
            for token, p in zip(self.ids[:4].tolist(), self.probs[:4].tolist(), strict=True)
        )
        more = ", ..." if len(self) > 4 else ""
        return f"Distribution({{{top}{more}}}, kept={len(self)}, vocab={self._vocab})"
