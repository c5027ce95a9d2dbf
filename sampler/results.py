"""What a sampler returns with tokens: `Samples`, `Distribution`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic

import numpy as np
import numpy.typing as npt

from sampler import _tensors
from sampler._checks import as_array
from sampler._tensors import container_of

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    _Ints = TypeVar("_Ints", default=Any)
    _Floats = TypeVar("_Floats", default=Any)
else:  # `default` is of Python 3.13
    from typing import TypeVar

    _Ints, _Floats = TypeVar("_Ints"), TypeVar("_Floats")

__all__ = ["Distribution", "Samples"]

_IntArray = npt.NDArray[np.int64]
_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Samples(Generic[_Ints, _Floats]):
    """The drawn tokens with their log-probabilities, ranks and kept counts.

    For a batch of B rows the fields have shape (B,), or (B, n) under ``n=``. A lone row drops B, so
    that without ``n=`` each is an int or a float. The top lists have shape (B, logprobs), or
    (logprobs,), and are None without any. All are tensors where the logits were a tensor, otherwise
    NumPy arrays.

    ``len(samples)`` is the length of the first axis; ``samples[i]``, with an integer, a slice or an
    array, is the `Samples` of that part of it, and a loop goes along it.

    Attributes
    ----------
    tokens : int64
        Token ids; -1 where the row was invalid under ``on_invalid="flag"``.
    logprobs : float64
        Natural log of the token's probability under the law it was sampled from; NaN where
        invalid.
    ranks : int64
        1 + the number of tokens that rank before it; 0 where invalid.
    n_kept : int64
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
        Natural log of the probability that the kept tokens have without the cuts, so that
        ``logprobs + log_mass`` is the token's log-probability there. 0 where nothing is removed,
        and at temperature 0; NaN where invalid.
    raw_top_ids, raw_top_logprobs : int64, float64
        As `top_ids`, `top_logprobs`, under the model's own softmax.
    state : State, or ndarray of shape (B,) of State
        Of a sampler with memory, what it remembers after the token: for the next call. Else, and
        inside Hugging Face, None.
    kept_ids, kept_indptr : int32 of shape (nnz,), int64 of shape (rows + 1,)
        The ids that the stages kept, under ``keep=True``: those of row i are
        ``kept_ids[kept_indptr[i]:kept_indptr[i + 1]]``, ascending; none where invalid. Under ``n=``
        one list per draw, those of a row's draws one after another.

    See Also
    --------
    sampler.Sampler.sample : returns one.
    Distribution : all kept tokens of one row.
    """

    tokens: _Ints
    # A user always has these; inside, tokens may go alone.
    logprobs: _Floats = None  # type: ignore[assignment]
    ranks: _Ints = None  # type: ignore[assignment]
    n_kept: _Ints = None  # type: ignore[assignment]
    entropy: _Floats = None  # type: ignore[assignment]
    # `| Any` and not `| None`: the caller knows what was asked for.
    top_ids: _IntArray | Any = None
    top_logprobs: _FloatArray | Any = None
    raw_logprobs: _Floats | Any = None
    raw_ranks: _Ints | Any = None
    log_mass: _Floats | Any = None
    raw_top_ids: _IntArray | Any = None
    raw_top_logprobs: _FloatArray | Any = None
    state: Any = None
    kept_ids: Any = None
    kept_indptr: Any = None

    @property
    def kept(self) -> _Ints:
        """The old name of `n_kept`."""
        warnings.warn(
            "`Samples.kept` is now called `n_kept`: write samples.n_kept",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.n_kept

    def __len__(self) -> int:
        if not _axes(self.tokens):
            raise TypeError("the Samples of a lone row holds one token, so it has no length")
        return len(self.tokens)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Samples[Any, Any]:
        if isinstance(index, tuple):
            raise TypeError("Samples takes one index at a time: write samples[row][draw]")
        len(self)  # a lone row has no parts
        lists = self._lists_at(index)

        def part(name: str) -> Any:
            value = getattr(self, name)
            # Under `n=`, all draws of a lone row have its one list, and its one state.
            if value is None or (name in _LISTS and _axes(value) == _axes(self.tokens) == 1):
                return value
            if name in lists:
                return lists[name]
            if name == "state":
                return value[index] if _axes(value) else value
            return plain(value[index])

        return Samples(*map(part, _FIELDS))

    def _lists_at(self, index: Any) -> dict[str, Any]:
        """Return what is kept of a part, as the two fields."""
        if self.kept_ids is None:
            return {}
        bounds = np.asarray(_tensors.readable(self.kept_indptr, "kept_indptr"))
        draws = np.arange(len(bounds) - 1).reshape(self._shape())[index].ravel()
        counts = np.diff(bounds)[draws]
        new = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(bounds[draws] - new[:-1], counts) + np.arange(new[-1])
        to_tensor = container_of(self.kept_indptr)
        if to_tensor is not None:
            new, places = to_tensor(new), to_tensor(places)
        return {"kept_ids": self.kept_ids[places], "kept_indptr": new}

    def _shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = getattr(self.tokens, "shape", ())
        return shape

    def __iter__(self) -> Iterator[Samples[Any, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        shown = []
        for name in _FIELDS:
            value = getattr(self, name)
            if value is not None and name in _SHOWN:
                values = np.asarray(value.tolist() if _axes(value) else value)
                ends = 2 if values.ndim == 1 else 1
                text = np.array2string(
                    values, precision=4, threshold=8, edgeitems=ends, separator=", "
                )
                shown.append(f"{name}={' '.join(text.split())}")
            elif value is not None:
                shown.append(f"{name}=...")
        return f"Samples({', '.join(shown)})"


_FIELDS = tuple(field.name for field in fields(Samples))
_SHOWN = ("tokens", "logprobs", "ranks", "n_kept", "entropy")
_LISTS = ("top_ids", "top_logprobs", "raw_top_ids", "raw_top_logprobs")


def _axes(value: Any) -> int:
    return getattr(value, "ndim", 0)


def moved(
    samples: Samples[Any, Any], contain: Callable[[npt.NDArray[Any]], Any]
) -> Samples[Any, Any]:
    """Return Samples with each array in another container."""
    values = {name: getattr(samples, name) for name in _FIELDS}
    arrays = {n: v for n, v in values.items() if isinstance(v, np.ndarray) and n != "state"}
    return Samples(**{**values, **{name: contain(value) for name, value in arrays.items()}})


def plain(value: Any) -> Any:
    """Return an array or a tensor as it is, and a number as an int or a float."""
    return value if value.ndim else value.item()


class Distribution:
    """What a sampler makes of one row: the kept tokens and their probabilities.

    Made by `Sampler.distribution`. Arrays are in the order of rank: logit descending, then id
    ascending; tensors where the row was one. They are sorted when first asked for.

    Attributes
    ----------
    ids : int64 of shape (kept,)
    probs : float64 of shape (kept,)
        Sum to 1; 0 where a probability underflows.
    logprobs : float64 of shape (kept,)
        Natural logs, finite even where `probs` underflow.
    entropy : float
        In nats, to the nearest multiple of 2**-30.

    See Also
    --------
    sampler.Sampler.distribution : returns one.
    Samples : drawn tokens.

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
        to_tensor: Callable[[npt.NDArray[Any]], Any] | None = None,
        memory: Any = None,
        observed: _FloatArray | None = None,
    ) -> None:
        # By ascending id, as the draw goes.
        self._vocab = vocab
        self.entropy = entropy
        self._ids = ids
        self._logits = logits
        self._probs = probs
        self._logprobs = logprobs
        self._cumulative = cumulative
        self._to_tensor = to_tensor
        # Of a sampler with memory: its stage, and what that sees of each token.
        self._memory, self._observed = memory, observed

    @cached_property
    def _by_rank(self) -> _IntArray:
        return np.argsort(-self._logits, kind="stable")

    @cached_property
    def ids(self) -> Any:
        """Kept token ids."""
        return self._put(self._ids[self._by_rank])

    @cached_property
    def probs(self) -> Any:
        """Their probabilities."""
        return self._put(self._probs[self._by_rank])

    @cached_property
    def logprobs(self) -> Any:
        """Natural logs of their probabilities."""
        return self._put(self._logprobs[self._by_rank])

    def dense(self) -> Any:
        """Return all `vocab` probabilities by token id, 0 where removed.

        Returns
        -------
        ndarray or tensor of shape (vocab,), float64

        See Also
        --------
        sampler.Sampler.filter : logits, for a batch.
        """
        probs = np.zeros(self._vocab)
        probs[self._ids] = self._probs
        return self._put(probs)

    def draw(self, u: Any) -> Any:
        """Return the token at u: the first, ids ascending, whose cumulative probability exceeds u.

        Parameters
        ----------
        u : float or array_like of float, in [0, 1)

        Returns
        -------
        int, or ndarray or tensor of int64, as u is, of its shape

        Raises
        ------
        TypeError
            If u is not made of real numbers.
        ValueError
            If any u is outside [0, 1) or NaN.

        See Also
        --------
        sampler.Sampler.sample : draws from keyed uniforms.
        """
        values = as_array("u", u)
        if values.dtype.kind not in "fiu":
            raise TypeError(f"`u` has to be in [0, 1), but is {u!r}")
        values = values.astype(np.float64)
        if not np.all((values >= 0.0) & (values < 1.0)):
            raise ValueError(f"`u` has to be in [0, 1), but is {u!r}")
        place = np.searchsorted(self._cumulative, values * self._cumulative[-1], side="right")
        tokens = self._ids[place]
        if not values.ndim:
            return int(tokens)
        to_tensor = container_of(u)
        return tokens if to_tensor is None else to_tensor(tokens)

    def _put(self, array: npt.NDArray[Any]) -> Any:
        """Put an array into the container of the row."""
        return array if self._to_tensor is None else self._to_tensor(array)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        top = ", ".join(
            f"{token}: {p:.3g}"
            for token, p in zip(self.ids[:4].tolist(), self.probs[:4].tolist(), strict=True)
        )
        more = ", ..." if len(self) > 4 else ""
        return f"Distribution({{{top}{more}}}, kept={len(self)}, vocab={self._vocab})"


def observed_of(distribution: Distribution, token: int) -> tuple[Any, float]:
    """Return the stage with memory that made it, None without one, and what that sees of a token.

    That is NaN where the token is not kept.
    """
    if token >= distribution._vocab:
        raise ValueError(
            f"`token` has to be an integer in [0, {distribution._vocab}), but is {token}"
        )
    if distribution._observed is None:
        return None, math.nan
    place = int(np.searchsorted(distribution._ids, token))
    if place == len(distribution._ids) or distribution._ids[place] != token:
        return distribution._memory, math.nan
    return distribution._memory, float(distribution._observed[place])
