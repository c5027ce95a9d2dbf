"""`Sampler`: settings, checked, and the calls that take logits."""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Unpack

import numpy as np

from sampler import _inputs
from sampler._checks import (
    U64_END,
    U64_TEXT,
    Integers,
    check_choice,
    check_flag,
    check_integer,
    check_logprobs,
    check_numbers,
    check_tokens,
    integers,
)
from sampler._engine import Engine, make_chain
from sampler.config import from_generation_config
from sampler.masks import read_mask
from sampler.results import Distribution, Samples
from sampler.stages import STAGES, Settings, Stage, check_names, lists_settings

__all__ = ["Distribution", "Sampler", "Samples"]

_FLOOR = integers(1)  # what `min_tokens_to_keep` may be


@lists_settings
class Sampler:
    """Draw tokens from rows of logits, under stages given by keyword or as an explicit chain.

    Parameters
    ----------
    stages : sequence of Stage, optional
        An explicit chain, applied in this order. Not together with stage settings by keyword,
        which apply in the order in which they stand here (Hugging Face's).
    {settings}
    min_tokens_to_keep : int, >= 1, off at 1
        A floor for every truncation, counted by rank. Temperature 0 keeps one token all the same.
    ties : {"id", "all"}
        What top_k does with logits equal to the k-th: keep exactly k, lower ids first, or keep
        them all, as Hugging Face does.
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
    on_invalid : {"raise", "flag"}
        What a row with NaN, +inf or no finite logit does: raise ValueError, or be marked in the
        result (token -1, log-probabilities NaN, kept 0, a row of -inf from `filter`) while every
        other row stays as it is. `distribution` always raises.

    Raises
    ------
    TypeError
        If a setting has the wrong type, or settings that exclude each other are given.
    ValueError
        If a setting is out of its range.

    Notes
    -----
    Any setting may be None, which means off. Temperature 0 is greedy. Settings never change;
    `replace` makes another sampler. The one thing that moves is `step`: each call takes one,
    atomically, so a sampler may be shared between threads.

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

    __slots__ = (
        "__weakref__",
        "_engine",
        "_min_tokens_to_keep",
        "_named",
        "_on_invalid",
        "_stages",
        "_threads",
        "_ties",
    )

    def __init__(
        self,
        stages: Iterable[Stage] | None = None,
        *,
        min_tokens_to_keep: Integers | None = 1,
        ties: str = "id",
        seed: int | None = None,
        rng: np.random.Generator | None = None,
        step: int = 0,
        on_invalid: str = "raise",
        threads: int | str = 1,
        **settings: Unpack[Settings],
    ) -> None:
        check_names("Sampler.__init__", settings)
        named = [one.of(settings.get(name)) for name, one in STAGES.items()]
        self._named = stages is None
        self._stages = tuple(named) if stages is None else _check_chain(stages, named)
        if min_tokens_to_keep is None:
            min_tokens_to_keep = 1
        self._min_tokens_to_keep: Any = _FLOOR.check_per_row(
            "min_tokens_to_keep", min_tokens_to_keep
        )
        self._ties = check_choice("ties", ties, ("id", "all"))
        self._on_invalid = check_choice("on_invalid", on_invalid, ("raise", "flag"))
        self._threads = _check_threads(threads)
        self._engine = Engine(
            make_chain(self._stages, ties=ties, min_tokens_to_keep=self._min_tokens_to_keep),
            self._stages,
            seed=_check_seed(seed, rng),
            step=check_integer("step", step, 0, U64_END + 1, "an integer in [0, 2**64]"),
            seed_is_fresh=seed is None and rng is None,
            flag_invalid=on_invalid == "flag",
            threads=self._threads,
        )

    @classmethod
    def from_generation_config(cls, config: Any, **changes: Any) -> Sampler:
        """Make the sampler that draws as Hugging Face's ``generate()`` would.

        Parameters
        ----------
        config : transformers.GenerationConfig, or mapping
            ``model.generation_config``, or what a model's generation_config.json holds. Where it
            leaves a field unset, Hugging Face's own default counts: ``top_k=50`` when it samples.
            A field that a GenerationConfig does not have is ignored, as ``generate()`` ignores it,
            unless it is a misspelling or another library's sampling setting that is on.
        **changes
            Fields of `config` to replace (None switches one off), and ``seed``, ``rng``, ``step``,
            ``on_invalid``, ``min_tokens_to_keep``, ``ties`` or ``threads`` of the sampler.

        Returns
        -------
        Sampler
            Greedy (``temperature=0``) unless ``do_sample`` is True, as ``generate()`` is. Ties as
            Hugging Face's: ``ties="all"``.

        Raises
        ------
        TypeError, ValueError
            If `config` is not a configuration, or asks for what a Sampler does not do (a penalty,
            beams, ``typical_p`` ...). One message has the call to type for all such fields. What
            ``model.generate()`` applies before the draw, such as a penalty, can be left to it:
            ``repetition_penalty=None``. And as `Sampler`, if a setting is out of its range.

        Warns
        -----
        UserWarning
            If `config` has sampling settings, but ``do_sample`` is not True, so that they have no
            effect. The argument ``do_sample=True`` samples; the argument ``do_sample=False`` stays
            greedy, without a warning.

        Examples
        --------
        >>> from sampler import Sampler
        >>> config = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
        >>> Sampler.from_generation_config(config, seed=7)
        Sampler(temperature=0.6, top_k=50, top_p=0.9, ties='all', seed=7)
        """
        return cls(**from_generation_config(config, changes))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The chain, stages that are off included."""
        return self._stages

    @property
    def min_tokens_to_keep(self) -> Any:
        """The floor of every truncation: an int, or a read-only array of one per row."""
        return self._min_tokens_to_keep

    @property
    def ties(self) -> str:
        """What top_k does with ties."""
        return self._ties

    @property
    def on_invalid(self) -> str:
        """What an invalid row does."""
        return self._on_invalid

    @property
    def threads(self) -> int | str:
        """How many threads a call may use."""
        return self._threads

    @property
    def seed(self) -> int:
        """The seed of every draw."""
        return self._engine.seed

    @property
    def step(self) -> int:
        """The step that the next call takes."""
        return self._engine.step

    def __call__(self, logits: Any, *, mask: Any = None, dtype: str | None = None) -> Any:
        """Draw one token a row, and take a step.

        Parameters
        ----------
        logits : array_like of shape (vocab,) or (batch, vocab)
            float16, bfloat16, float32 or float64, from NumPy, torch on the CPU, or anything with
            ``__array__`` or DLPack; lists become float64. Never written to. A tensor may require
            grad: a token has no gradient.
        mask : array_like, optional
            Which tokens may be drawn, per row: int32 words of shape (batch, ceil(vocab / 32)), bit
            j & 31 of word j >> 5 for token j, 1 is allowed; bools of the shape of `logits`; or
            lists of the ids that are allowed. Tokens beyond the words are not allowed. Never
            written to.
        dtype : {None, "bfloat16"}
            "bfloat16" reads 16-bit integers as raw words.

        Returns
        -------
        int, or ndarray of shape (batch,), int64

        Raises
        ------
        TypeError
            If `logits` are no array of floats on the CPU.
        ValueError
            If they have the wrong shape, a setting is one per row of another batch, or, unless
            ``on_invalid="flag"``, a row is invalid or has no token that the mask and the settings
            allow; if the mask is not for these rows.
        """
        source = _inputs.read(logits, dtype, draws=True)
        _inputs.check_rows(source)
        words = None if mask is None else read_mask(mask, source.array.shape)
        if source.array.ndim == 2:
            return self._engine.draw(source, mask=words)
        return self._engine.draw_token(source, words)

    def sample(
        self,
        logits: Any,
        *,
        mask: Any = None,
        streams: Any = None,
        step: Any = None,
        n: int | None = None,
        logprobs: int | None = None,
        raw: bool = False,
        dtype: str | None = None,
    ) -> Samples:
        """Draw tokens; return their log-probabilities, ranks, and what the stages kept as well.

        Parameters
        ----------
        logits : array_like of shape (vocab,) or (batch, vocab)
            As for a call.
        mask : array_like, optional
            As for a call. The raw fields are those of the row without it.
        streams : int or sequence of int of shape (batch,), in [0, 2**64), optional
            The random stream of each row; 0 ... batch - 1 by default.
        step : int or sequence of int of shape (batch,), in [0, 2**64), optional
            The step of each row. Without it, the sampler's own step, which then moves on.
        n : int, >= 1, optional
            Draw n tokens a row. The stages run once. Draw 0 is the token that is drawn without
            ``n=``.
        logprobs : int, >= 0, optional
            Also list this many of the first tokens in rank.
        raw : bool
            Also give the figures under the model's own softmax and the kept mass: the fields
            `raw_*` and `log_mass`. Takes at most one pass of exponentials over the row.
        dtype : {None, "bfloat16"}
            As for a call.

        Returns
        -------
        Samples

        Raises
        ------
        TypeError, ValueError
            As a call; and if streams, step, n or logprobs are not as above.

        Examples
        --------
        >>> from sampler import Sampler
        >>> r = Sampler(top_k=2, seed=7).sample([1.0, 3.0, 2.0, 0.0], logprobs=3, raw=True)
        >>> int(r.tokens), float(r.logprobs.round(3)), int(r.ranks), int(r.kept)
        (2, -1.313, 2, 2)
        >>> r.top_ids, r.raw_top_ids
        (array([ 1,  2, -1]), array([1, 2, 0]))
        """
        source = _inputs.read(logits, dtype, draws=True)
        _inputs.check_rows(source)
        if n is not None:
            n = check_integer("n", n, 1, 2**40, "an integer >= 1")
        top = None if logprobs is None else check_logprobs(logprobs)
        streams = check_numbers("streams", streams, source.batch)
        steps = check_numbers("step", step, source.batch)
        check_flag("raw", raw)
        words = None if mask is None else read_mask(mask, source.array.shape)
        return self._engine.sample(
            source, n, top, raw=raw, streams=streams, steps=steps, mask=words
        )

    def score(
        self,
        logits: Any,
        tokens: Any,
        *,
        mask: Any = None,
        logprobs: int | None = None,
        raw: bool = False,
        dtype: str | None = None,
    ) -> Samples:
        """Tell of given tokens what `sample` tells of those it draws. Never moves the step.

        Parameters
        ----------
        logits : array_like of shape (vocab,) or (batch, vocab)
            As for a call.
        tokens : int or array_like of int, of shape (batch,) or (batch, n), in [0, vocab)
            One token a row, or n; for a single row without `batch`.
        mask : array_like, optional
            As for `sample`.
        logprobs : int, >= 0, optional
            Also list this many of the first tokens in rank.
        raw : bool
            Also give the figures under the model's own softmax and the kept mass: the fields
            `raw_*` and `log_mass`. Takes at most one pass of exponentials over the row.
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
        given = check_tokens("tokens", tokens, source.array.shape)
        drop_n = given.ndim < source.array.ndim
        given = given.reshape(source.batch, 1 if drop_n else given.shape[-1])
        check_flag("raw", raw)
        words = None if mask is None else read_mask(mask, source.array.shape)
        return self._engine.score(source, given, top, drop_n=drop_n, raw=raw, mask=words)

    def distribution(
        self, row: Any, *, mask: Any = None, stream: int = 0, step: int | None = None
    ) -> Distribution:
        """Return what the stages make of one row: kept tokens and probabilities.

        Never moves the step.

        Parameters
        ----------
        row : array_like of shape (vocab,)
            As for a call.
        mask : array_like, optional
            As for a call.
        stream, step : int, in [0, 2**64)
            Where the uniforms of a random stage come from; no stage so far has one.

        Returns
        -------
        Distribution

        Raises
        ------
        TypeError, ValueError
            As a call; an invalid row always raises, and so does a tensor that requires grad, or a
            setting that is an array.
        """
        source = _inputs.read(row, name="row")
        _inputs.check_rows(source, "row", (1,))
        check_integer("stream", stream, 0, U64_END, U64_TEXT)
        if step is not None:
            check_integer("step", step, 0, U64_END, U64_TEXT)
        words = None if mask is None else read_mask(mask, source.array.shape)
        return self._engine.distribution(source, mask=words)

    def filter(
        self,
        logits: Any,
        *,
        mask: Any = None,
        streams: Any = None,
        step: Any = None,
        out: Any = None,
        dtype: str | None = None,
    ) -> Any:
        """Return the tempered logits, removed tokens at -inf. Never moves the step.

        Parameters
        ----------
        logits : array_like of shape (vocab,) or (batch, vocab)
            As for a call.
        mask : array_like, optional
            As for a call: what it forbids is -inf.
        streams, step : int or sequence of int
            Where the uniforms of a random stage come from; no stage so far has one.
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
        check_numbers("streams", streams, source.batch)
        check_numbers("step", step, source.batch)
        words = None if mask is None else read_mask(mask, source.array.shape)
        filtered = self._engine.filter(source, mask=words)
        if target is None:
            return source.to_original(filtered)
        target[...] = filtered
        return out

    def replace(self, **changes: Any) -> Sampler:
        """Return a sampler with some settings changed; seed and step stay unless changed.

        Parameters
        ----------
        **changes
            Any parameter of `Sampler`. A new seed or rng starts at step 0. On a sampler made from
            `stages`, change `stages`.

        Examples
        --------
        >>> from sampler import Sampler
        >>> Sampler(top_p=0.9, seed=7).replace(top_p=0.8)
        Sampler(top_p=0.8, seed=7)
        """
        settings = self._settings()
        if "stages" in changes:
            settings = {k: v for k, v in settings.items() if k not in STAGES}
        new_seed = "seed" in changes or "rng" in changes
        if new_seed:
            del settings["seed"], settings["step"]
        settings.update(changes)
        return Sampler(**settings) if new_seed else _restore(settings, self._engine.seed_is_fresh)

    def _settings(self) -> dict[str, Any]:
        """Everything that makes an equal sampler."""
        settings: dict[str, Any] = {}
        if self._named:
            settings.update({stage.setting: stage.value for stage in self._stages})
        else:
            settings["stages"] = self._stages
        settings.update(
            min_tokens_to_keep=self._min_tokens_to_keep,
            ties=self._ties,
            seed=self.seed,
            step=self.step,
            on_invalid=self.on_invalid,
            threads=self._threads,
        )
        return settings

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self._settings(), self._engine.seed_is_fresh)

    def __repr__(self) -> str:
        settings = self._settings()
        parts = []
        if not self._named:
            parts.append(f"[{', '.join(map(repr, settings.pop('stages')))}]")
        ranges = {"min_tokens_to_keep": _FLOOR, **{n: one.range for n, one in STAGES.items()}}
        parts += [
            f"{name}={ranges[name].show(value) if name in ranges else repr(value)}"
            for name, value in settings.items()
            if name == "seed" or isinstance(value, np.ndarray) or value != _DEFAULTS[name]
        ]
        return f"Sampler({', '.join(parts)})"


def engine_of(sampler: Sampler) -> Engine:
    """Return what a sampler runs on, for the adapters of this package."""
    return sampler._engine


_DEFAULTS = {
    name: parameter.default for name, parameter in inspect.signature(Sampler).parameters.items()
}


def _restore(settings: dict[str, Any], seed_is_fresh: bool) -> Sampler:
    sampler = Sampler(**settings)
    sampler._engine.seed_is_fresh = seed_is_fresh
    return sampler


def _check_chain(stages: Iterable[Stage], named: Iterable[Stage]) -> tuple[Stage, ...]:
    for stage in named:
        if not stage.is_off:
            raise TypeError(
                f"`stages` and `{stage.setting}` exclude each other: put {stage!r} into the chain"
            )
    try:
        chain = tuple(stages)
    except TypeError:
        shown = repr(stages)
        if isinstance(stages, float):
            shown += f" (temperature={shown}?)"
        raise TypeError(f"`stages` has to be a sequence of stages, but is {shown}") from None
    for stage in chain:
        if not isinstance(stage, tuple(STAGES.values())):
            raise TypeError(f"`stages` has to hold stages such as TopK(40), but holds {stage!r}")
    for before, stage in pairwise(chain):
        if stage.kind == "edit" and before.kind != "edit":
            raise TypeError(
                f"`stages` has to begin with what edits the logits, but {stage!r} comes after "
                f"{before!r}"
            )
    return chain


def _check_threads(threads: Any) -> int | str:
    if threads == "auto" and isinstance(threads, str):
        return threads
    return check_integer("threads", threads, 1, 2**31, "an integer >= 1 or 'auto'")


def _check_seed(seed: Any, rng: Any) -> int:
    if rng is not None:
        if seed is not None:
            raise TypeError("`seed` and `rng` exclude each other, but both are given")
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"`rng` has to be a numpy.random.Generator, but is {rng!r}")
        return int(rng.integers(0, U64_END, dtype=np.uint64))
    if seed is None:
        return secrets.randbits(64)
    return check_integer("seed", seed, 0, U64_END, U64_TEXT)
