"""Scales: they keep every token, and change how likely each is."""

import math

import numpy as np

from sampler._checks import Reals, finite, reals
from sampler.stages.base import Stage, setting, stage

__all__ = [
    "DynamicTemperature",
    "Smoothing",
    "Temperature",
]


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
    looks_at_row = True
    switch = "high"
    replaces = "temperature"
    low: Reals | None = setting(default=0.0, range_=finite(0.0))
    high: Reals | None = setting(default=None, range_=finite(0.0, optional=True))
    exponent: Reals | None = setting(default=1.0, range_=finite(0.0))

    def __post_init__(self) -> None:
        Stage.__post_init__(self)
        low, high, _ = self.values
        if high is not None and np.any(low > high):
            row = np.argmax(low > high)
            where = (
                f"{np.broadcast_to(low, len(low > high))[row]} in row {row}"
                if np.ndim(low > high)
                else low
            )
            raise ValueError(f"`dynamic_temperature.low` has to be at most `high`, but is {where}")


@stage
class Smoothing(Stage):
    """Keep everything; bend the tempered logits, so that the likely tokens come closer together.

    Parameters
    ----------
    factor : float, >= 0, off at 0 or None
        How steep: at a `curve` of 1, tokens 1 / factor below the likeliest keep their distance,
        nearer ones come closer, others go further away.
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
    The row is rebased: later stages rank by the new logits, and the temperature starts again at 1.
    Above a `curve` of 3 the likeliest token is no longer the first. Costs a copy of the row.

    References
    ----------
    kalomaze, "Smooth Sampling", 2024, as in text-generation-webui: `smoothing_factor`,
    `smoothing_curve`.
    """

    kind = "scale"
    looks_at_row = True
    factor: Reals | None = setting(default=0.0, range_=finite(0.0))
    curve: Reals | None = setting(default=1.0, range_=finite(1.0))
