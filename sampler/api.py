"""`Sampler`: the calls that take logits. Its settings are in `_settings`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import (
    Any,
    Unpack,
    overload,
)

import numpy as np

from sampler import _inputs
from sampler._arguments import (
    Batch,
    Bfloat16,
    DType,
    Floats,
    Options,
    Row,
    SampleOptions,
    ScoreOptions,
    Shape,
    Tokens,
    arguments_of_call,
    check_given,
    check_kept,
)
from sampler._checks import (
    U64_END,
    U64_TEXT,
    check_flag,
    check_integer,
    check_logprobs,
    check_tokens,
)
from sampler._engine import NOTHING, Engine
from sampler._keywords import helps
from sampler._settings import SamplerSettings
from sampler._tensors import Tensor
from sampler.memory import initial_states
from sampler.results import Distribution, Samples
from sampler.stages.settings import lists_settings

__all__ = ["Distribution", "Sampler", "Samples"]


@lists_settings
class Sampler(SamplerSettings):
    """Draw tokens from rows of logits, under stages given by keyword or as an explicit chain.

    Parameters
    ----------
    stages : sequence of Stage, optional
        An explicit chain, applied in this order. Not together with stage settings by keyword,
        which apply in the order in which they stand here.
    {settings}
    min_tokens_to_keep : int, >= 1, off at 1
        A floor for every cut: docs/law.md says how each counts. Temperature 0 keeps one token.
    ties : {"id", "all"}
        What `top_k` does where other logits equal the k-th. "id" keeps exactly k tokens: of equal
        logits those with the lowest ids. "all" keeps all of the equal ones, as Hugging Face does.
    seed : int, in [0, 2**64), optional
        Names the sequence of draws. None takes one from the operating system, shown as `seed`.
    rng : numpy.random.Generator, optional
        Gives one uint64 now, as the seed. Not together with `seed`.
    step : int, in [0, 2**64]
        The step that the next call takes; at 2**64 all are used up.
    threads : int, >= 1, or "auto"
        How many threads the rows of a batch are shared over; "auto" takes as many as there are
        processors. Only where that pays: a single row, or a few short ones, stay on one. The
        answers are the same for every number.
    device : {"auto", "host"}
        Where rows on another device are computed. "host" copies them to the host and the results
        back; "auto" may take a faster way once there is one. The answers are the same.
    on_invalid : {"raise", "flag"}
        What a row with NaN, +inf or no finite logit does: raise ValueError, or be marked in the
        result (token -1, log-probabilities NaN, `n_kept` 0, a row of -inf from `filter`) while
        every other row stays as it is. `distribution` always raises.

    Raises
    ------
    TypeError
        If a setting has the wrong type, or settings that exclude each other are given.
    ValueError
        If a setting is out of its range.

    See Also
    --------
    sampler.hf.generate_kwargs : the same draw inside Hugging Face's ``generate()``.
    sampler.testing.check_sampler : whether a sampler draws by its law.

    Notes
    -----
    Any setting may be None, which means off. Temperature 0 is greedy. Settings never change;
    `replace` makes another sampler. The one thing that moves is `step`: each call takes one,
    atomically, so a sampler may be shared between threads. Samplers are equal, with equal hashes,
    if their settings and seeds are, wherever their steps stand.

    Each setting is an attribute, such as `temperature`: that of the one stage of its kind, and its
    off value where an explicit chain has none. With two of a kind it is an AttributeError.

    The setting of a stage, and `min_tokens_to_keep`, may be an array of shape (batch,), with one
    value per row. Such a sampler is for batches of that length, and draws row i as the sampler that
    has the numbers at i.

    A draw depends on the row's logits, the settings, seed, stream and step, and on nothing else.
    Its uniform is ``numpy.random.Generator(numpy.random.Philox(key=seed | stream << 64,
    counter=step | draw << 64)).random()``, bit for bit [1]_; row i of a batch has stream i.

    References
    ----------
    .. [1] J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as
       1, 2, 3", SC 2011.

    Examples
    --------
    >>> from sampler import Sampler, Temperature, TopK, TopP
    >>> s = Sampler(temperature=0.8, top_p=0.9, seed=7)
    >>> s([1.0, 3.0, 2.0, 0.0])
    2
    >>> s
    Sampler(temperature=0.8, top_p=0.9, seed=7, step=1)
    >>> Sampler([TopK(40), TopP(0.95), Temperature(0.8)], seed=7)
    Sampler([TopK(40), TopP(0.95), Temperature(0.8)], seed=7)
    >>> Sampler(temperature=[0.5, 0], seed=7)([[1.0, 3.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0]])
    array([1, 1])
    """

    __slots__ = ()

    @overload
    def __call__(
        self, logits: Row, *, mask: Any = None, history: Any = None, dtype: Bfloat16 = None
    ) -> int: ...
    @overload
    def __call__(
        self, logits: Batch, *, mask: Any = None, history: Any = None, dtype: Bfloat16 = None
    ) -> Tokens: ...
    @overload
    def __call__(
        self, logits: Any, *, mask: Any = None, history: Any = None, dtype: Bfloat16 = None
    ) -> Any: ...
    # Two parameters: transformers calls a processor that has more only with their names, so that
    # `logits_processor=[s]` would not get this far.
    def __call__(self, *logits: Any, **options: Any) -> Any:
        """Draw one token per row, and take a step: ``s(logits, *, mask=, history=, dtype=)``.

        Parameters
        ----------
        logits : array_like of shape (vocab,) or (batch, vocab)
            float16, bfloat16, float32 or float64, from NumPy, torch, or anything with
            ``__array__`` or DLPack on the CPU; lists become float64. Never written to. A tensor on
            another device is copied to the host. One may require grad: a token has no gradient.
        mask : array_like, optional
            Which tokens may be drawn, per row: int32 words of shape (batch, ceil(vocab / 32)), bit
            j & 31 of word j >> 5 for token j, 1 is allowed; bools of the shape of `logits`; or
            lists of the ids that are allowed (an array of ids as ``ids.tolist()``). Tokens beyond
            the words are not allowed. Never written to.
        history : History, or list of one per row, optional
            The text of each row so far, for the settings that look at it. Never written to: see
            `sampler.history.History`.
        dtype : {None, "bfloat16"}
            "bfloat16" reads 16-bit integers as raw words.

        Returns
        -------
        int, or ndarray or tensor of shape (batch,), int64
            An int for a lone row; for a batch, a tensor if the logits are one, otherwise NumPy.

        Raises
        ------
        TypeError
            If `logits` are not an array of floats.
        ValueError
            If they have the wrong shape, a setting is one per row of another batch, or, unless
            ``on_invalid="flag"``, a row is invalid or has no token that the mask and the settings
            allow; if the mask is not for these rows; and always for a sampler with memory, which
            `sample` is for.
        """
        if len(logits) == 1 and not options:  # the usual, quickly
            values, mask, history, dtype = logits[0], None, None, None
        else:
            values, mask, history, dtype = arguments_of_call(*logits, **options)
        source = _inputs.read(values, dtype, draws=True)
        _inputs.check_rows(source)
        given = NOTHING
        if mask is not None or history is not None:
            given = check_given(source, mask, history)
        if self._engine.memory is not None:
            raise self._engine.no_state()
        if source.array.ndim == 2:
            return source.to_container(self._engine.draw(source, given=given))
        return self._engine.draw_token(source, given)

    def initial_state(self, batch: int | None = None) -> Any:
        """Return what a sampler with memory (`mirostat`, `adaptive_p`) remembers at first.

        Parameters
        ----------
        batch : int, >= 0, optional
            How many rows; without it, of a lone row.

        Returns
        -------
        State, or ndarray of shape (batch,) of State
            None in rows where the setting is off.

        Raises
        ------
        TypeError
            If `batch` is not an integer.
        ValueError
            If the sampler has no memory, or its settings are for another batch.

        See Also
        --------
        Sampler.sample : takes it, and returns the next one.

        Examples
        --------
        >>> from sampler import Sampler
        >>> s = Sampler(mirostat=2, seed=7)
        >>> r = s.sample([[1.0, 3.0, 2.0, 0.0]] * 2, state=s.initial_state(2))
        >>> [round(one.values[0], 2) for one in r.state]
        [10.29, 10.29]
        """
        if batch is not None:
            batch = check_integer("batch", batch, 0, None, "an integer >= 0")
        return initial_states(self._engine.memory, batch)

    def _check_one_token(self, n: int) -> None:
        if n != 1 and self._engine.memory is not None:
            raise ValueError(
                f"`{self._engine.memory.setting}` goes on from one token per row, not from {n}: "
                "repeat the row, once for each token"
            )

    @overload
    def sample(
        self, logits: Row, *, n: None = None, **options: Unpack[SampleOptions]
    ) -> Samples[int, float]: ...
    @overload
    def sample(
        self, logits: Row, *, n: int, **options: Unpack[SampleOptions]
    ) -> Samples[Tokens, Floats]: ...
    @overload
    def sample(
        self, logits: Batch, *, n: int | None = None, **options: Unpack[SampleOptions]
    ) -> Samples[Tokens, Floats]: ...
    @overload
    def sample(
        self, logits: Any, *, n: int | None = None, **options: Unpack[SampleOptions]
    ) -> Samples[Any, Any]: ...
    @helps
    def sample(
        self,
        logits: Any,
        *,
        mask: Any = None,
        history: Any = None,
        state: Any = None,
        streams: Any = None,
        steps: Any = None,
        draws: Any = None,
        n: int | None = None,
        logprobs: int | None = None,
        raw: bool = False,
        keep: bool = False,
        dtype: Bfloat16 = None,
    ) -> Samples[Any, Any]:
        """Draw tokens; return their log-probabilities, ranks, and what the stages kept as well.

        Parameters
        ----------
        logits : array_like of shape (vocab,) or (batch, vocab)
            As for a call.
        mask : array_like, optional
            As for a call. The raw fields are those of the row without it.
        history : History, or list of one per row, optional
            As for a call.
        state : State, or array of one per row, optional
            What a sampler with memory (`mirostat`, `adaptive_p`) goes on from: `initial_state`,
            and then the `state` of the last result. See `sampler.memory.State`.
        streams : int or sequence of int of shape (batch,), in [0, 2**64), optional
            The random stream of each row; 0 ... batch - 1 by default.
        steps : int or sequence of int of shape (batch,), in [0, 2**64), optional
            The step of each row. Without it, the sampler's own step, which then moves on.
        draws : int or sequence of int of shape (batch,), in [0, 2**64), optional
            The draw index of each row, 0 by default. Not together with `n`.
        n : int, >= 1, optional
            Draw n tokens per row, of draw index 0 to n - 1. The stages run once, but for each draw
            where one has a coin.
        logprobs : int, >= 0, optional
            Also list this many of the first tokens in rank; under `n`, as draw 0 has them.
        raw : bool
            Also give the figures under the model's own softmax and the kept mass: the fields
            `raw_*` and `log_mass`. Takes a pass of exponentials over the row, or two where it is
            edited or rebased.
        keep : bool
            Also give the ids that each row keeps, of each draw under `n`: the fields `kept_ids` and
            `kept_indptr`, for a trainer to replay with `score(..., kept=)`.
        dtype : {None, "bfloat16"}
            As for a call.

        Returns
        -------
        Samples

        Raises
        ------
        TypeError, ValueError
            As a call; if streams, steps, draws, n or logprobs are not as above; of a sampler with
            memory, without its own state or with n above 1.

        See Also
        --------
        Sampler.score : the same figures for given tokens.
        Sampler.distribution : all probabilities of one row.

        Examples
        --------
        >>> from sampler import Sampler
        >>> r = Sampler(top_k=2, seed=7).sample([1.0, 3.0, 2.0, 0.0], logprobs=3, raw=True)
        >>> r
        Samples(tokens=2, logprobs=-1.3133, ranks=2, n_kept=2, entropy=0.5822, top_ids=..., ...)
        >>> r.top_ids, r.raw_top_ids
        (array([ 1,  2, -1]), array([1, 2, 0]))
        """
        if n is not None and draws is not None:
            raise TypeError("give either `n` or `draws`, not both: n=3 takes the draws 0, 1 and 2")
        source = _inputs.read(logits, dtype, draws=True)
        _inputs.check_rows(source)
        if n is not None:
            n = check_integer("n", n, 1, 2**40, "an integer >= 1")
        self._check_one_token(n or 1)
        top = None if logprobs is None else check_logprobs(logprobs)
        given = check_given(source, mask, history, streams, steps, draws, state)
        check_flag("raw", raw)
        check_flag("keep", keep)
        return self._engine.sample(
            source, n, top, raw=raw, keep=keep, given=given, contain=source.to_container
        )

    @overload
    def score(
        self, logits: Row, tokens: int, **options: Unpack[ScoreOptions]
    ) -> Samples[int, float]: ...
    @overload
    def score(
        self, logits: Row | Batch, tokens: Sequence[Any] | Tokens, **options: Unpack[ScoreOptions]
    ) -> Samples[Tokens, Floats]: ...
    @overload
    def score(
        self, logits: Any, tokens: Any, **options: Unpack[ScoreOptions]
    ) -> Samples[Any, Any]: ...
    @helps
    def score(
        self,
        logits: Any,
        tokens: Any,
        *,
        mask: Any = None,
        history: Any = None,
        state: Any = None,
        streams: Any = None,
        steps: Any = None,
        draws: Any = None,
        logprobs: int | None = None,
        raw: bool = False,
        kept: Any = None,
        dtype: Bfloat16 = None,
    ) -> Samples[Any, Any]:
        """Return for given tokens what `sample` returns for drawn ones. Does not take a step.

        Parameters
        ----------
        logits : array_like of shape (vocab,) or (batch, vocab)
            As for a call.
        tokens : int or array_like of int, of shape (batch,) or (batch, n), in [0, vocab)
            One token per row, or n; for a lone row without `batch`.
        mask : array_like, optional
            As for `sample`.
        history, state
            As for `sample`. The next state needs one token per row.
        streams, steps, draws : int or sequence of int of shape (batch,), optional
            As for `sample`: where the coins of stages such as `XTC` fall as they did there.
        logprobs : int, >= 0, optional
            Also list this many of the first tokens in rank; under `n`, as draw 0 has them.
        raw : bool
            Also give the figures under the model's own softmax and the kept mass: the fields
            `raw_*` and `log_mass`. Takes a pass of exponentials over the row, or two where it is
            edited or rebased.
        kept : (array_like of shape (batch + 1,), array_like of shape (nnz,)), optional
            What each row keeps, as `sample(..., keep=True)` gives it: ``(r.kept_indptr,
            r.kept_ids)``. It takes the place of every cut; edits and scales act as they did, so
            the figures are those of the law that was sampled from, whatever the logits are now.
            Stages that cut take no part, so neither does the `state` of `mirostat`.
        dtype : {None, "bfloat16"}
            As for a call.

        Returns
        -------
        Samples
            A token that the stages remove has log-probability -inf, and its rank in the row.

        Raises
        ------
        TypeError, ValueError
            As a call; and if `tokens` are not as above, or a tensor requires grad.

        See Also
        --------
        Sampler.sample : draws the tokens.
        sampler.hf.score : for a whole text under a model.

        Examples
        --------
        >>> from sampler import Sampler
        >>> r = Sampler(top_k=2).score([1.0, 3.0, 2.0, 0.0], [1, 0], raw=True)
        >>> r.logprobs.round(3), r.raw_logprobs.round(3), r.ranks
        (array([-0.313,   -inf]), array([-0.44, -2.44]), array([1, 3]))
        """
        source = _inputs.read(logits, dtype)
        _inputs.check_rows(source)
        top = None if logprobs is None else check_logprobs(logprobs)
        ids = check_tokens("tokens", tokens, source.array.shape)
        drop_n = ids.ndim < source.array.ndim
        ids = ids.reshape(source.batch, 1 if drop_n else ids.shape[-1])
        self._check_one_token(ids.shape[1])
        given = check_given(source, mask, history, streams, steps, draws, state)
        if kept is not None:
            given = given._replace(kept=check_kept(kept, source.batch, source.array.shape[-1]))
        check_flag("raw", raw)
        return self._engine.score(
            source, ids, top, drop_n=drop_n, raw=raw, given=given,
            contain=source.to_container,
        )  # fmt: skip

    @helps
    def distribution(
        self,
        row: Any,
        *,
        mask: Any = None,
        history: Any = None,
        state: Any = None,
        stream: int = 0,
        step: int | None = None,
        draw: int = 0,
    ) -> Distribution:
        """Return what the stages make of one row: kept tokens and probabilities.

        Does not take a step.

        Parameters
        ----------
        row : array_like of shape (vocab,)
            As for a call.
        mask : array_like, optional
            As for a call.
        history : History, optional
            As for a call.
        state : State, optional
            As for `sample`.
        stream, step, draw : int, in [0, 2**64)
            As for `sample`, of this row: where the coins of stages such as `XTC` fall as they did
            there.

        Returns
        -------
        Distribution

        Raises
        ------
        TypeError, ValueError
            As a call; an invalid row always raises, and so does a tensor that requires grad, or a
            setting that is an array.

        See Also
        --------
        Sampler.sample : draws, and costs less.
        Sampler.filter : logits instead of probabilities, for a batch.
        """
        source = _inputs.read(row, name="row")
        _inputs.check_rows(source, "row", (1,))
        numbers = {"stream": stream, "step": self.step if step is None else step, "draw": draw}
        at = [check_integer(name, one, 0, U64_END, U64_TEXT) for name, one in numbers.items()]
        given = check_given(source, mask, history, at[0], at[1], at[2], state)
        return self._engine.distribution(source, given=given)

    @overload
    def filter(
        self, logits: np.ndarray[Shape, DType], **options: Unpack[Options]
    ) -> np.ndarray[Shape, DType]: ...
    @overload
    def filter(
        self, logits: Sequence[float] | Sequence[Sequence[float]], **options: Unpack[Options]
    ) -> Floats: ...
    @overload
    def filter(self, logits: Tensor, **options: Unpack[Options]) -> Tensor: ...
    @overload
    def filter(self, logits: Any, *, out: Any = None, **options: Unpack[Options]) -> Any: ...
    @helps
    def filter(
        self,
        logits: Any,
        *,
        mask: Any = None,
        history: Any = None,
        state: Any = None,
        streams: Any = None,
        steps: Any = None,
        draws: Any = None,
        out: Any = None,
        dtype: Bfloat16 = None,
    ) -> Any:
        """Return the tempered logits, removed tokens at -inf. Does not take a step.

        Parameters
        ----------
        logits : array_like of shape (vocab,) or (batch, vocab)
            As for a call.
        mask : array_like, optional
            As for a call: what it forbids is -inf.
        history : History, or list of one per row, optional
            As for a call.
        state : State, or array of one per row, optional
            As for `sample`.
        streams, steps, draws : int or sequence of int of shape (batch,), optional
            As for `sample`: where the coins of stages such as `XTC` fall as they did there.
        out : array or tensor, optional
            Where to write, of the shape and dtype of `logits`; may be `logits` itself.
        dtype : {None, "bfloat16"}
            As for a call.

        Returns
        -------
        array or tensor
            x / temperature in the container and dtype of `logits` (NumPy where that is neither
            NumPy nor torch), or `out`. Temperature 0 leaves the one kept logit as it is. Where
            x / temperature would pass the range of the dtype, the row is (x - max) / temperature.

        Raises
        ------
        TypeError, ValueError
            As a call; and if `out` does not fit, or a tensor requires grad.

        See Also
        --------
        Sampler.distribution : probabilities, for one row.
        sampler.hf.filter_kwargs : filters before Hugging Face's own draw.

        Examples
        --------
        >>> import numpy as np
        >>> from sampler import Sampler
        >>> Sampler(temperature=0.5, top_k=2).filter(np.array([1.0, 3.0, 2.0, 0.0]))
        array([-inf,   6.,   4., -inf])
        """
        source = _inputs.read(logits, dtype)
        _inputs.check_rows(source)
        shape = source.array.shape
        target = None if out is None else _inputs.check_out(out, shape, source.array.dtype, dtype)
        given = check_given(source, mask, history, streams, steps, draws, state)
        filtered = self._engine.filter(source, given=given)
        if target is None:
            return source.to_original(filtered)
        target[...] = filtered
        return out


def engine_of(sampler: Sampler) -> Engine:
    """Return what a sampler runs on, for the adapters of this package."""
    return sampler._engine
