"""Every stage by its keyword: the order in which keywords apply, attributes and signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Generic,
    Self,
    TypedDict,
    TypeVar,
    get_args,
    get_type_hints,
    overload,
)

from sampler._checks import FloatArray, HasArray, Integers, Reals
from sampler.stages.base import Stage
from sampler.stages.cuts import (
    XTC,
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    PLess,
    TailFree,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
)
from sampler.stages.edits import (
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
from sampler.stages.memories import AdaptiveP, Mirostat
from sampler.stages.scales import DynamicTemperature, Smoothing, Temperature

__all__ = ["STAGES", "HasSettings", "Settings", "lists_settings"]

_Value = TypeVar("_Value")
_Target = TypeVar("_Target", bound=Callable[..., Any])


class Settings(TypedDict, total=False):
    """Every stage by its keyword, in the order in which keywords apply."""

    logit_bias: Annotated[Mapping[int, float] | None, LogitBias]
    sequence_bias: Annotated[Mapping[tuple[int, ...], float] | None, SequenceBias]
    repetition_penalty: Annotated[Reals | tuple[Any, ...] | None, RepetitionPenalty]
    frequency_penalty: Annotated[Reals | tuple[Any, ...] | None, FrequencyPenalty]
    presence_penalty: Annotated[Reals | tuple[Any, ...] | None, PresencePenalty]
    dry: Annotated[Reals | tuple[Any, ...] | DRY | None, DRY]
    no_repeat_ngram_size: Annotated[Integers | None, NoRepeatNgram]
    bad_words: Annotated[Iterable[int | Sequence[int]] | None, BadWords]
    suppress_tokens: Annotated[Collection[int] | None, SuppressTokens]
    begin_suppress_tokens: Annotated[Collection[int] | None, BeginSuppressTokens]
    min_new_tokens: Annotated[tuple[Any, ...] | MinNewTokens | None, MinNewTokens]
    n_tokens: Annotated[int | None, TokenCount]
    forced_tokens: Annotated[Mapping[int, int] | None, ForcedTokens]
    temperature: Annotated[Reals | None, Temperature]
    dynamic_temperature: Annotated[
        tuple[Reals, ...] | DynamicTemperature | None, DynamicTemperature
    ]
    smoothing: Annotated[Reals | tuple[Reals, Reals] | Smoothing | None, Smoothing]
    top_n_sigma: Annotated[Reals | None, TopNSigma]
    top_h: Annotated[Reals | None, TopH]
    top_k: Annotated[Integers | None, TopK]
    top_p: Annotated[Reals | None, TopP]
    min_p: Annotated[Reals | None, MinP]
    typical_p: Annotated[Reals | None, TypicalP]
    epsilon_cutoff: Annotated[Reals | None, EpsilonCutoff]
    eta_cutoff: Annotated[Reals | None, EtaCutoff]
    top_a: Annotated[Reals | None, TopA]
    tail_free: Annotated[Reals | None, TailFree]
    p_less: Annotated[bool | Collection[bool] | HasArray | None, PLess]
    xtc: Annotated[tuple[Any, ...] | XTC | None, XTC]
    mirostat: Annotated[Reals | tuple[Reals, ...] | Mirostat | None, Mirostat]
    adaptive_p: Annotated[Reals | tuple[Reals, ...] | AdaptiveP | None, AdaptiveP]


class _Setting(Generic[_Value]):
    """A setting as an attribute: that of the chain's one stage of its kind, off without one."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name
        self.__doc__ = f"The setting of the chain's `{STAGES[name].__name__}`; off without one."

    @overload
    def __get__(self, chain: None, owner: type) -> Self: ...
    @overload
    def __get__(self, chain: HasSettings, owner: type) -> _Value: ...
    def __get__(self, chain: HasSettings | None, owner: type) -> Any:
        if chain is None:
            return self
        kind = STAGES[self._name]
        values = [one.value for one in chain.stages if isinstance(one, kind)]
        if len(values) > 1:
            raise AttributeError  # and Python asks `Sampler.__getattr__`
        return values[0] if values else kind.off


STAGES: Mapping[str, type[Stage]] = {
    name: get_args(hint)[1] for name, hint in get_type_hints(Settings, include_extras=True).items()
}


class HasSettings:
    """What `Sampler` inherits: each of `Settings` as an attribute."""

    __slots__ = ()
    stages: Any  # the chain

    logit_bias = _Setting[tuple[tuple[int, float], ...]]()
    sequence_bias = _Setting[tuple[tuple[tuple[int, ...], float], ...]]()
    repetition_penalty = _Setting[tuple[Any, ...] | None]()
    frequency_penalty = _Setting[tuple[Any, ...] | None]()
    presence_penalty = _Setting[tuple[Any, ...] | None]()
    dry = _Setting[tuple[Any, ...] | None]()
    no_repeat_ngram_size = _Setting[int | FloatArray]()
    bad_words = _Setting[tuple[tuple[int, ...], ...]]()
    suppress_tokens = _Setting[tuple[int, ...]]()
    begin_suppress_tokens = _Setting[tuple[int, ...]]()
    min_new_tokens = _Setting[tuple[Any, ...] | None]()
    n_tokens = _Setting[int | None]()
    forced_tokens = _Setting[tuple[tuple[int, int], ...]]()
    temperature = _Setting[float | FloatArray]()
    dynamic_temperature = _Setting[tuple[float | FloatArray, ...] | None]()
    smoothing = _Setting[tuple[float | FloatArray, ...] | None]()
    top_n_sigma = _Setting[float | FloatArray]()
    top_h = _Setting[float | FloatArray | None]()
    top_k = _Setting[int | FloatArray]()
    top_p = _Setting[float | FloatArray]()
    min_p = _Setting[float | FloatArray]()
    typical_p = _Setting[float | FloatArray]()
    epsilon_cutoff = _Setting[float | FloatArray]()
    eta_cutoff = _Setting[float | FloatArray]()
    top_a = _Setting[float | FloatArray]()
    tail_free = _Setting[float | FloatArray]()
    p_less = _Setting[bool | FloatArray]()
    xtc = _Setting[tuple[Any, ...] | None]()
    mirostat = _Setting[tuple[float | FloatArray, ...] | None]()
    adaptive_p = _Setting[tuple[float | FloatArray, ...] | None]()


def lists_settings(target: _Target) -> _Target:
    """Show each of `Settings` in place of ``**settings``: in the signature and in the docstring.

    For a function, or a class by its ``__init__``. In the docstring they go where it has the word
    ``{settings}``.
    """
    function: Any = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    signature, types = inspect.signature(function), get_type_hints(Settings)
    settings = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=one.off, annotation=types[name]
        )
        for name, one in STAGES.items()
    ]
    *others, _ = signature.parameters.values()
    first = [p for p in others if p.kind is not p.KEYWORD_ONLY]
    parameters = [*first, *settings, *others[len(first) :]]
    function.__signature__ = signature.replace(parameters=parameters)
    if target.__doc__:  # python -OO has none
        lines = [f"{one.described()}\n        See `{one.__name__}`." for one in STAGES.values()]
        target.__doc__ = target.__doc__.replace("{settings}", "\n    ".join(lines))
    return target
