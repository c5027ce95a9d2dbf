"""The vocabulary of stages: what each keeps, its setting, its range, its source.

A stage is a small frozen dataclass, of one of three kinds: edits, which come first, scales and
cuts. Its fields are its parameters: each a number, or an array of one per row. The keyword of a
stage with one parameter is that parameter's name, as Hugging Face spells it; a stage with several
has one keyword for all of them. One parameter, the switch, says whether a stage is off: the first,
unless the class names another. The fields state the ranges and the values that are off, and all
else reads them there: checks, error messages, signatures, tests. `Settings` lists the stages in the
order in which keywords apply.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    Self,
    TypedDict,
    TypeVar,
    dataclass_transform,
    get_args,
    get_type_hints,
    overload,
)

import numpy as np
import numpy.typing as npt

from sampler._checks import (
    Flag,
    FloatArray,
    HasArray,
    Ids,
    Integers,
    Range,
    Reals,
    Several,
    finite,
    integers,
    reals,
)

__all__ = [
    "XTC",
    "DynamicTemperature",
    "EpsilonCutoff",
    "EtaCutoff",
    "MinP",
    "PLess",
    "Smoothing",
    "SuppressTokens",
    "TailFree",
    "Temperature",
    "TopA",
    "TopH",
    "TopK",
    "TopNSigma",
    "TopP",
    "TypicalP",
]

_Class = TypeVar("_Class", bound="type[Stage]")
_Value = TypeVar("_Value")
_Target = TypeVar("_Target", bound=Callable[..., Any])


def setting(*, default: Any, range_: Range | Flag | Ids) -> Any:
    """Make a field of a stage: off by default, and checked."""
    return field(default=default, metadata={"range": range_})


class Parameter(NamedTuple):
    """What a field of a stage states."""

    off: Any  # the default
    range: Any  # a Range, a Flag, or Ids


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
def stage(cls: _Class) -> _Class:
    """Make a stage's class a dataclass, and keep what its fields state where all can read it."""
    made: Any = dataclass(frozen=True, slots=True, repr=False, eq=False)(cls)
    own = fields(made)
    made.parameters = {one.name: Parameter(one.default, one.metadata["range"]) for one in own}
    made.switch = cls.switch or own[0].name
    made.has_several = len(own) > 1
    if made.has_several:
        made.setting = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", made.__name__).lower()
        made.off = None
        ranges = tuple(one.range for one in made.parameters.values())
        made.range = Several(made.__name__, ranges, 1 + list(made.parameters).index(made.switch))
    else:
        ((made.setting, (made.off, made.range)),) = made.parameters.items()
    return made  # type: ignore[no-any-return]


class Stage:
    """One step of a chain. Not for direct use: see its subclasses."""

    __slots__ = ()
    kind: ClassVar[str] = "cut"  # or "scale" or "edit": see docs/law.md
    has_coin: ClassVar[bool] = False  # whether a second uniform decides what it does
    replaces: ClassVar[str] = ""  # the keyword that is not for use together with this one
    setting: ClassVar[str]
    off: ClassVar[Any]
    range: ClassVar[Any]  # a Range, a Flag, Ids, or Several
    parameters: ClassVar[Mapping[str, Parameter]]
    switch: ClassVar[str] = ""
    has_several: ClassVar[bool]

    def __init__(self, value: Any = None) -> None:
        raise NotImplementedError("use one of its subclasses, such as TopK(40)")

    def __post_init__(self) -> None:
        for name, one in self.parameters.items():
            value = getattr(self, name)
            checked = one.off if value is None else one.range.check_per_row(self.label(name), value)
            object.__setattr__(self, name, checked)

    def __repr__(self) -> str:
        shown = [
            one.range.show(value)
            for one, value in zip(self.parameters.values(), self.values, strict=True)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(map(_are_equal, self.values, other.values))

    def __hash__(self) -> int:
        return hash((type(self), *(v.tobytes() if _is_array(v) else v for v in self.values)))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.values  # which makes arrays read-only again

    @classmethod
    def of(cls, value: Any) -> Self:
        """Make the stage of what its keyword may be: a value, or the stage itself."""
        if isinstance(value, cls):
            return value
        if not cls.has_several or value is None:
            return cls(value)
        if not isinstance(value, tuple):
            value = (value,)
        if not cls.range.least <= len(value) <= len(cls.parameters):
            names = ", ".join(cls.parameters)
            found = value[0] if len(value) == 1 else value
            raise TypeError(f"`{cls.setting}` has to be ({names}), but is {found!r}")
        return cls(*value)

    @classmethod
    def label(cls, parameter: str) -> str:
        """Name a parameter, as error messages do."""
        return parameter if parameter == cls.setting else f"{cls.setting}.{parameter}"

    @classmethod
    def described(cls) -> str:
        """Say what the setting may be, as the parameter lines of docstrings do."""
        interval = "" if cls.has_several else cls.range.interval
        stated = [f"{cls.setting} : {cls.range.noun}", interval, f"off at {cls.off_text()}"]
        return ", ".join(filter(None, stated))

    @classmethod
    def off_text(cls) -> str:
        """Show the value that is off, as the documents write it."""
        return f"{cls.off:g}" if type(cls.off) in (int, float) else str(cls.off)

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of the parameters: numbers, or read-only float64 arrays of one per row."""
        return tuple(getattr(self, name) for name in self.parameters)

    @property
    def value(self) -> Any:
        """What the keyword would be: the one parameter; of several all, or None where it is off."""
        if self.has_several:
            return None if self.is_off else self.values
        return self.values[0]

    @property
    def is_off(self) -> bool:
        """Whether the stage changes nothing, in any row."""
        return bool(np.all(self.off_rows))

    @property
    def off_rows(self) -> Any:
        """`is_off`, or an array of it, one per row, if the switch is one per row."""
        value, off = getattr(self, self.switch), self.parameters[self.switch].off
        return np.isnan(value) if off is None and _is_array(value) else value == off

    def at(self, row: int) -> Self:
        """Return the stage as it is for one row of a batch."""
        return type(self)(
            *(
                one.range.at(value, row) if _is_array(value) else value
                for one, value in zip(self.parameters.values(), self.values, strict=True)
            )
        )


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _are_equal(a: Any, b: Any) -> bool:
    if _is_array(a) and _is_array(b):
        return np.array_equal(a, b, equal_nan=True)
    return bool(not _is_array(a) and not _is_array(b) and a == b)


class Edit(Stage):
    """A step that forbids single tokens of the row, before anything else looks at it."""

    __slots__ = ()
    kind = "edit"

    def banned(self, vocab: int) -> npt.NDArray[np.int64]:
        """Return the ids that become -inf, ascending, shape (n,), each in [0, vocab).

        Raises
        ------
        ValueError
            If an id is not in the vocabulary.
        """
        raise NotImplementedError


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
    no step counts it, and `min_tokens_to_keep` does not bring it back. Costs nothing where no token
    is suppressed: the other blocks of 512 logits are read in place.

    References
    ----------
    A. Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022,
    arXiv:2212.04356, whose decoder suppresses the tokens that are not speech.
    """

    suppress_tokens: Collection[int] | None = setting(default=(), range_=Ids())

    def banned(self, vocab: int) -> npt.NDArray[np.int64]:
        """Return the ids."""
        ids = np.array(self.value, np.int64)
        if ids.size and ids[-1] >= vocab:
            raise ValueError(
                f"`suppress_tokens` has to hold ids in [0, {vocab}), but one is {ids[-1]}"
            )
        return ids


@stage
class Temperature(Stage):
    """Keep everything; divide the logits by `temperature`.

    Parameters
    ----------
    temperature : float, in [0, inf], off at 1 or None
        Below 1 sharpens, above 1 flattens. 0 keeps the first token in rank alone, which is greedy
        decoding; inf makes every kept token equally likely. Nothing is clamped: 1e-30 is its
        exact limit.

    Raises
    ------
    TypeError
        If `temperature` is not a real number.
    ValueError
        If it is negative or NaN.

    See Also
    --------
    Smoothing : bends the logits instead of dividing them.

    Notes
    -----
    z = (x - max x) / temperature. Rank is by x before temperature, so no temperature changes it.
    Several temperatures in one chain multiply.

    References
    ----------
    D. H. Ackley, G. E. Hinton, T. J. Sejnowski, "A learning algorithm for Boltzmann machines",
    Cognitive Science 9, 1985.
    """

    kind = "scale"
    temperature: Reals | None = setting(default=1.0, range_=reals(0.0, math.inf))


@stage
class DynamicTemperature(Stage):
    """Keep everything; divide the logits by a temperature that grows with the entropy.

    Parameters
    ----------
    low : float, >= 0
        The temperature where one token has all the probability; 0 is greedy decoding there.
    high : float, >= 0, off at None
        The temperature where all kept tokens are equally likely; at least `low`.
    exponent : float, >= 0
        Above 1 keeps the temperature near `low` for longer, below 1 near `high`.

    Raises
    ------
    TypeError
        If a parameter is not a real number.
    ValueError
        If one is out of its range, infinite or NaN, or `low` is above `high`.

    See Also
    --------
    Temperature : the same for every row.

    Notes
    -----
    T = low + (high - low) (H / ln n)^exponent, with H the entropy in nats of the n tokens that are
    kept so far, at the temperature so far. H is rounded to a multiple of 2^-30, and 0^0 is 1. T
    multiplies the temperature so far; where one token is left, nothing changes. As a keyword, in
    place of `temperature`. Costs one pass of exponentials, unless few tokens are left.

    References
    ----------
    kalomaze, "Dynamic temperature", 2023, as in llama.cpp (`dynatemp_range`, `dynatemp_exponent`)
    and text-generation-webui (`dynatemp_low`, `dynatemp_high`).
    """

    kind = "scale"
    switch = "high"
    replaces = "temperature"
    low: Reals | None = setting(default=0.0, range_=finite(0.0))
    high: Reals | None = setting(default=None, range_=finite(0.0, optional=True))
    exponent: Reals | None = setting(default=1.0, range_=finite(0.0))

    def __post_init__(self) -> None:
        Stage.__post_init__(self)
        low, high, _ = self.values
        if high is not None and np.any(low > high):
            where = f"not in row {np.argmax(low > high)}" if np.ndim(low > high) else f"{low}"
            raise ValueError(f"`dynamic_temperature.low` has to be at most `high`, but is {where}")


@stage
class Smoothing(Stage):
    """Keep everything; bend the tempered logits, so that the likely tokens come closer together.

    Parameters
    ----------
    factor : float, >= 0, off at 0 or None
        How steep: tokens 1 / sqrt(factor) below the likeliest keep their distance, nearer ones come
        closer, others go further away.
    curve : float, >= 1
        1 is a parabola; above, a cubic term makes the distant ones more unlikely still.

    Raises
    ------
    TypeError
        If `factor` or `curve` is not a real number.
    ValueError
        If one is out of its range, infinite or NaN.

    See Also
    --------
    Temperature : divides the logits.

    Notes
    -----
    With z = (x - max x) / temperature, the new logit is z^2 f (-(3 - c) / 2 + (c - 1) / 2 z).
    The row is rebased: later steps rank by the new logits, and the temperature starts again at 1.
    Above a `curve` of 3 the likeliest token is no longer the first. Costs a copy of the row.

    References
    ----------
    kalomaze, "Smooth Sampling", 2024, as in text-generation-webui: `smoothing_factor`,
    `smoothing_curve`.
    """

    kind = "scale"
    factor: Reals | None = setting(default=0.0, range_=finite(0.0))
    curve: Reals | None = setting(default=1.0, range_=finite(1.0))


@stage
class TopNSigma(Stage):
    """Keep the tokens whose logit is at most `top_n_sigma` standard deviations below the largest.

    Parameters
    ----------
    top_n_sigma : float, in [0, inf], off at 0 or None
        How many standard deviations; inf is off as well.

    Raises
    ------
    TypeError
        If `top_n_sigma` is not a real number.
    ValueError
        If it is negative or NaN.

    See Also
    --------
    MinP : a threshold that moves with the temperature.

    Notes
    -----
    Keeps x >= max x - n sigma, with sigma the population deviation of the logits that are kept so
    far. No temperature changes what it keeps. Costs two reads of the row and one count.

    References
    ----------
    C. Tang, J. Liu, H. Xu, L. Huang, "Top-nsigma: Not All Logits Are You Need", 2024,
    arXiv:2411.07641.
    """

    top_n_sigma: Reals | None = setting(
        default=0.0, range_=reals(0.0, math.inf, note=" (0 or None is off)")
    )

    @property
    def off_rows(self) -> Any:
        """`is_off`, or an array of it, one per row."""
        n: Any = self.top_n_sigma
        return (n == 0.0) | (n == math.inf)


@stage
class TopH(Stage):
    """Of the 100 likeliest tokens, keep the most whose entropy is a share `top_h` of theirs.

    Parameters
    ----------
    top_h : float, in (0, 1], off at None
        The share of the entropy. 1 keeps the 100 tokens, or all if there are fewer.

    Raises
    ------
    TypeError
        If `top_h` is not a real number.
    ValueError
        If it is outside (0, 1] or NaN.

    See Also
    --------
    TopP : a share of the probability.

    Notes
    -----
    With q the probabilities of the first min(100, n) tokens in rank, renormalised, and H(q) their
    entropy: the longest prefix in rank whose sum of -q ln q is at most h H(q), and at least one
    token. Costs one read of the row.

    References
    ----------
    E. Baghaei Potraghloo, S. Azizi, S. Kundu, M. Pedram, "Top-H Decoding: Adapting the Creativity
    and Coherence with Bounded Entropy in Text Generation", 2025, arXiv:2509.02510.
    """

    top_h: Reals | None = setting(default=None, range_=reals(0.0, 1.0, "(]", optional=True))


@stage
class TopK(Stage):
    """Keep the `top_k` tokens of highest rank.

    Parameters
    ----------
    top_k : int, >= 0, off at 0 or None
        How many tokens; more than there are is all of them.

    Raises
    ------
    TypeError
        If `top_k` is not an integer.
    ValueError
        If it is negative.

    See Also
    --------
    TopP : adapts to how sure the model is.
    MinP : adapts to the probability of the likeliest token.

    Notes
    -----
    Tokens of equal logit rank by id, so exactly `top_k` are kept; under the sampler's
    ``ties="all"`` everything equal to the last of them is kept as well, as Hugging Face does.
    Costs one read of the row.

    References
    ----------
    A. Fan, M. Lewis, Y. Dauphin, "Hierarchical Neural Story Generation", 2018, arXiv:1805.04833.
    """

    top_k: Integers | None = setting(default=0, range_=integers(0, note=" (0 or None is off)"))


@stage
class TopP(Stage):
    """Keep the smallest set of tokens whose probability reaches `top_p`.

    Parameters
    ----------
    top_p : float, in [0, 1], off at 1 or None
        The mass to reach. 0 keeps one token.

    Raises
    ------
    TypeError
        If `top_p` is not a real number.
    ValueError
        If it is outside [0, 1] or NaN.

    See Also
    --------
    MinP : a threshold on each token.
    TopK : a count.

    Notes
    -----
    The shortest prefix in rank whose mass, among what the stages before have kept, is at least
    `top_p`: the token that crosses it stays. Exact to 1e-12. Costs one read of the row and one
    pass of exponentials, unless a stage before has left few tokens.

    References
    ----------
    A. Holtzman, J. Buys, L. Du, M. Forbes, Y. Choi, "The Curious Case of Neural Text
    Degeneration", 2019, arXiv:1904.09751.
    """

    top_p: Reals | None = setting(default=1.0, range_=reals(0.0, 1.0))


@stage
class MinP(Stage):
    """Keep the tokens at least `min_p` times as likely as the likeliest.

    Parameters
    ----------
    min_p : float, in [0, 1], off at 0 or None
        The share of the largest probability. 1 keeps the likeliest, with its ties.

    Raises
    ------
    TypeError
        If `min_p` is not a real number.
    ValueError
        If it is outside [0, 1] or NaN.

    See Also
    --------
    TopP : a threshold on the whole set.
    TopK : a count.

    Notes
    -----
    In terms of logits: x >= max x + temperature * ln(min_p), so no exponential is needed. Costs
    one read of the row.

    References
    ----------
    N. N. Minh et al., "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM
    Outputs", 2024, arXiv:2407.01082.
    """

    min_p: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0))


@stage
class TypicalP(Stage):
    """Keep the tokens whose information is nearest to the entropy, up to the mass `typical_p`.

    Parameters
    ----------
    typical_p : float, in (0, 1], off at 1 or None
        The mass to reach.

    Raises
    ------
    TypeError
        If `typical_p` is not a real number.
    ValueError
        If it is outside (0, 1] or NaN.

    See Also
    --------
    TopP : the likeliest tokens up to a mass.

    Notes
    -----
    By distance abs(-ln p - H), the smallest set of least distance whose mass is at least
    `typical_p`; all tokens at the last distance stay. What is kept is an interval of logits, which
    need not hold the likeliest token: a token above it counts as forbidden from there on. Of
    `min_tokens_to_keep`, the nearest tokens are kept. Costs what `TopP` costs and one pass more.

    References
    ----------
    C. Meister, T. Pimentel, G. Wiher, R. Cotterell, "Locally Typical Sampling", 2022,
    arXiv:2202.00666.
    """

    typical_p: Reals | None = setting(default=1.0, range_=reals(0.0, 1.0, "(]"))


@stage
class EpsilonCutoff(Stage):
    """Keep the tokens whose probability is at least `epsilon_cutoff`.

    Parameters
    ----------
    epsilon_cutoff : float, in [0, 1), off at 0 or None
        The least probability, often 3e-4 to 9e-4. Where no token has it, the first is kept.

    Raises
    ------
    TypeError
        If `epsilon_cutoff` is not a real number.
    ValueError
        If it is outside [0, 1) or NaN.

    See Also
    --------
    EtaCutoff : lower where the model is unsure.
    MinP : relative to the likeliest token.

    Notes
    -----
    The probability is that among what is kept so far. Costs one read of the row and one pass of
    exponentials, unless few tokens are left.

    References
    ----------
    J. Hewitt, C. D. Manning, P. Liang, "Truncation Sampling as Language Model Desmoothing", 2022,
    arXiv:2210.15191.
    """

    epsilon_cutoff: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0, "[)"))


@stage
class EtaCutoff(Stage):
    """Keep the tokens whose probability is at least a threshold that falls with the entropy.

    Parameters
    ----------
    eta_cutoff : float, in [0, 1), off at 0 or None
        The threshold where the entropy is low, often 3e-4 to 4e-3. Where no token reaches it, the
        first is kept.

    Raises
    ------
    TypeError
        If `eta_cutoff` is not a real number.
    ValueError
        If it is outside [0, 1) or NaN.

    See Also
    --------
    EpsilonCutoff : the same threshold for every row.

    Notes
    -----
    Keeps p >= min(e, sqrt(e) exp(-H)), with H the entropy in nats of what is kept so far. Costs as
    `EpsilonCutoff`.

    References
    ----------
    J. Hewitt, C. D. Manning, P. Liang, "Truncation Sampling as Language Model Desmoothing", 2022,
    arXiv:2210.15191.
    """

    eta_cutoff: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0, "[)"))


@stage
class TopA(Stage):
    """Keep the tokens whose probability is at least `top_a` times the square of the largest.

    Parameters
    ----------
    top_a : float, in [0, 1], off at 0 or None
        The factor. 1 and a sure model keep few tokens, a flat row keeps nearly all.

    Raises
    ------
    TypeError
        If `top_a` is not a real number.
    ValueError
        If it is outside [0, 1] or NaN.

    See Also
    --------
    MinP : the largest probability itself, not its square.

    Notes
    -----
    Keeps p >= a pmax^2. Costs as `EpsilonCutoff`.

    References
    ----------
    BlinkDL, "RWKV-LM", 2021: the sampler of its README; in KoboldAI and text-generation-webui as
    `top_a`.
    """

    top_a: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0))


@stage
class TailFree(Stage):
    """Cut the tail where the probabilities in rank stop bending.

    Parameters
    ----------
    tail_free : float, in (0, 1], off at 1 or None
        The share of the bends to keep.

    Raises
    ------
    TypeError
        If `tail_free` is not a real number.
    ValueError
        If it is outside (0, 1] or NaN.

    See Also
    --------
    TopP : a share of the probability.

    Notes
    -----
    With p_1 .. p_n in rank, the bends are s_i = abs((p_i - p_i+1) - (p_i+1 - p_i+2)), i = 1 ..
    n - 2, and c_i their running sum over the total (1 / (n - 2) each if the total is at most 1e-6).
    Keeps as many tokens as there are i before the first with c_i > z, and at least one; all if
    there is none, or if n is at most 2. Sorts what is kept: put a cut before it.

    References
    ----------
    trentbrick, "Tail Free Sampling", 2019, as in llama.cpp until 2024 (`tfs_z`).
    """

    tail_free: Reals | None = setting(default=1.0, range_=reals(0.0, 1.0, "(]"))


@stage
class PLess(Stage):
    """Keep the tokens whose probability is at least the chance that two draws agree.

    Parameters
    ----------
    p_less : bool, off at False or None
        Whether it is on; there is nothing to tune.

    Raises
    ------
    TypeError
        If `p_less` is not a bool.

    See Also
    --------
    EpsilonCutoff : a threshold that is given.

    Notes
    -----
    Keeps p >= the sum of p^2 over what is kept so far. Costs as `EpsilonCutoff`.

    References
    ----------
    R. Tan, S. Wu, P. Howard, "p-less Sampling: A Robust Hyperparameter-Free Approach for LLM
    Decoding", 2025, arXiv:2509.23234.
    """

    p_less: bool | Collection[bool] | HasArray | None = setting(default=False, range_=Flag())


@stage
class XTC(Stage):
    """Now and then remove the likeliest tokens, all but the last that is likely enough.

    Parameters
    ----------
    threshold : float, in [0, 1], off above 0.5
        The least probability of a token that may be removed.
    probability : float, in [0, 1], off at 0
        How often: the chance, per token, that the stage does anything.
    protected : sequence of int, each >= 0
        Ids that are never removed, such as the end of the text and line breaks.
    expected : bool
        Weigh down in place of removing by a coin: the law is then the mean over the coin.

    Raises
    ------
    TypeError
        If a parameter has the wrong type.
    ValueError
        If one is out of its range or NaN. A call raises it if an id is not in the vocabulary.

    See Also
    --------
    TypicalP : removes likely tokens in every row that is unsure.

    Notes
    -----
    For each draw a coin u is thrown, in a separate lane; if u < probability, the unprotected tokens
    with p >= threshold, if there are at least two, go, except the last of them in rank. Nothing
    happens where fewer than `min_tokens_to_keep` tokens would remain. What is removed counts as
    forbidden from there on. With `expected`, m the mass of those that would go, their weights are
    multiplied by (1 - q) / (1 + q m / (1 - m)), and the row is rebased. Costs as `EpsilonCutoff`.

    References
    ----------
    p-e-w, "Exclude Top Choices", 2024, text-generation-webui pull request 6335; `expected` as in
    exllamav3.
    """

    has_coin = True
    switch = "probability"
    threshold: Reals | None = setting(default=0.1, range_=reals(0.0, 1.0))
    probability: Reals | None = setting(default=0.0, range_=reals(0.0, 1.0))
    protected: Collection[int] | None = setting(default=(), range_=Ids())
    expected: bool | None = setting(default=False, range_=Flag())

    @property
    def off_rows(self) -> Any:
        """`is_off`, or an array of it, one per row."""
        threshold: Any = self.threshold
        return (self.probability == 0.0) | (threshold > 0.5)


class Settings(TypedDict, total=False):
    """Every stage by its keyword, in the order in which keywords apply: Hugging Face's."""

    suppress_tokens: Annotated[Collection[int] | None, SuppressTokens]
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


class _Setting(Generic[_Value]):
    """A setting as an attribute: that of the chain's one step of its kind, off without one."""

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

    suppress_tokens = _Setting[tuple[int, ...]]()
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
