"""The scales and cuts of other engines: tables with the answers, relations, bad input."""

import dataclasses
import math
import pickle
import re
from itertools import pairwise

import numpy as np
import pytest

from law import TABLE
from sampler import (
    XTC,
    DynamicTemperature,
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    PLess,
    Sampler,
    Smoothing,
    SuppressTokens,
    TailFree,
    Temperature,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    reference,
)

inf, nan = math.inf, math.nan

# ------------------------------------------------------------------- tables: logs of probabilities

P = [0.1, 0.2, 0.3, 0.4]  # H = 0.2303 + 0.3219 + 0.3612 + 0.3665 = 1.2799, exp(-H) = 0.2781
SURE = [0.97, 0.01, 0.01, 0.01]  # H = 0.0295 + 3 * 0.0461 = 0.1677, exp(-H) = 0.8456
STEEP = [0.8, 0.1, 0.06, 0.04]
EVEN = [0.25] * 4
# Slopes 0.15, 0.07, 0.06, 0.07, so bends 0.08, 0.01, 0.01: shares 0.8, 0.9, 1.
BENT = [0.4, 0.25, 0.18, 0.12, 0.05]
FLOORS = [{"min_tokens_to_keep": n} for n in range(5)]

CUTS = [
    # probabilities, stages, sampler settings, kept ids in rank order
    #
    # Of P the first holds 0.2864 of the entropy, the first two 0.5686, the first three 0.8201.
    (P, [TopH(0.28)], {}, [3]),
    (P, [TopH(0.29)], {}, [3]),
    (P, [TopH(0.56)], {}, [3]),
    (P, [TopH(0.57)], {}, [3, 2]),
    (P, [TopH(0.81)], {}, [3, 2]),
    (P, [TopH(0.83)], {}, [3, 2, 1]),
    (P, [TopH(1.0)], {}, [3, 2, 1, 0]),
    (P, [TopH(0.56)], FLOORS[3], [3, 2, 1]),
    ([0.0, *P], [TopH(0.57)], {}, [4, 3]),
    # Of the first two of P, renormalised to 4/7 and 3/7, the first holds 0.3198 / 0.6829 = 0.4683.
    (P, [TopK(2), TopH(0.57)], {}, [3]),
    (P, [TopH(0.57), TopK(2)], {}, [3, 2]),
    # However little the others weigh: here next to nothing but the second counts.
    (P, [Temperature(1e-5), TopH(0.5)], {}, [3]),
    # Of 10 equal ones far below the first, each has a tenth of the entropy.
    (np.exp([0.0, *[-700.0] * 10]), [Temperature(0.25), TopH(0.55)], {}, [*range(6)]),
    (P, [Temperature(1e-5), TopH(1.0)], {}, [3, 2, 1, 0]),
    # Shares of 2 / 82, 40 + 2 / 82, 1: e^-40 times 2, 40 and 40.
    (np.exp([0.0, -40.0, -40.0]), [TopH(0.505)], {}, [0]),
    (np.exp([0.0, -40.0, -40.0]), [TopH(0.52)], {}, [0, 1]),
    # No more than 100; of as many equal ones each holds 0.01, of 60 each 1/60.
    ([1 / 150] * 150, [TopH(1.0)], {}, [*range(100)]),
    ([1 / 150] * 150, [TopH(0.495)], {}, [*range(49)]),
    ([1 / 150] * 150, [TopH(0.495)], {"min_tokens_to_keep": 120}, [*range(120)]),
    ([1 / 60] * 60, [TopH(0.495)], {}, [*range(29)]),
    #
    # Distances |-ln p - H| in P: 1.0227, 0.0759, ... so by distance ids 1, 2, 3, 0: 0.0759 has
    # p = 0.3 (id 2, -ln p = 1.2040), 0.3296 has 0.2 (id 1), 0.3636 has 0.4 (id 3), 1.0227 has 0.1.
    (P, [TypicalP(0.29)], {}, [2]),
    (P, [TypicalP(0.31)], {}, [2, 1]),
    (P, [TypicalP(0.49)], {}, [2, 1]),
    (P, [TypicalP(0.51)], {}, [3, 2, 1]),
    (P, [TypicalP(0.89)], {}, [3, 2, 1]),
    (P, [TypicalP(0.91)], {}, [3, 2, 1, 0]),
    (P, [TypicalP(1e-12)], {}, [2]),
    (P, [TypicalP(0.29)], FLOORS[2], [2, 1]),  # the floor counts by distance
    (P, [TypicalP(0.29)], FLOORS[3], [3, 2, 1]),
    (P, [TypicalP(0.29)], FLOORS[4], [3, 2, 1, 0]),
    (P, [TypicalP(0.29), Temperature(0)], {}, [2]),  # the first of what is left
    (P, [TypicalP(0.31), TopK(1)], {}, [2]),
    (P, [TypicalP(0.31), MinP(0.68)], {}, [2]),  # 0.2 / 0.3 is 0.667
    (P, [TypicalP(0.31), MinP(0.65)], {}, [2, 1]),
    (P, [TypicalP(0.31), TopP(0.59)], {}, [2]),  # 0.3 / 0.5
    (P, [TypicalP(0.31), TopP(0.61)], {}, [2, 1]),
    # Everything at the last distance stays: 0.2773 twice, 1.1090 twice.
    ([0.4, 0.1, 0.4, 0.1], [TypicalP(0.1)], {}, [0, 2]),
    ([0.4, 0.1, 0.4, 0.1], [TypicalP(0.81)], {}, [0, 2, 1, 3]),
    (EVEN, [TypicalP(0.1)], {}, [0, 1, 2, 3]),
    (EVEN, [TypicalP(0.1), TopK(2)], {}, [0, 1]),
    (P, [Temperature(inf), TypicalP(0.1)], {}, [3, 2, 1, 0]),
    # 4/7 and 3/7 have distances 0.1233 and 0.1644: the first is nearer.
    (P, [TopK(2), TypicalP(0.29)], {}, [3]),
    (P, [TypicalP(0.29), TopK(2)], {}, [2]),
    #
    (P, [EpsilonCutoff(0.09)], {}, [3, 2, 1, 0]),
    (P, [EpsilonCutoff(0.11)], {}, [3, 2, 1]),
    (P, [EpsilonCutoff(0.21)], {}, [3, 2]),
    (P, [EpsilonCutoff(0.41)], {}, [3]),  # none reaches it: the first stays
    (P, [EpsilonCutoff(0.41)], FLOORS[3], [3, 2, 1]),
    ([0.0, 1.0], [EpsilonCutoff(1e-300)], FLOORS[2], [1]),
    (P, [EpsilonCutoff(0.21), TopK(3)], {}, [3, 2]),
    (P, [TopK(3), EpsilonCutoff(0.21)], {}, [3, 2, 1]),  # 0.2 / 0.9 = 0.222
    (P, [Temperature(inf), EpsilonCutoff(0.24)], {}, [3, 2, 1, 0]),
    (P, [Temperature(inf), EpsilonCutoff(0.26)], {}, [3]),
    (P, [Temperature(inf), TopK(3), EpsilonCutoff(0.26)], {}, [3, 2, 1]),
    (P, [Temperature(0.5), EpsilonCutoff(0.31)], {}, [3]),  # 1, 4, 9, 16 of 30
    (P, [EpsilonCutoff(0.11), Temperature(0)], {}, [3]),
    #
    # min(0.1, 0.3162 * 0.2781 = 0.0879), min(0.2, 0.1244), min(0.6, 0.2154)
    (P, [EtaCutoff(0.1)], {}, [3, 2, 1, 0]),
    (P, [EtaCutoff(0.2)], {}, [3, 2, 1]),
    (P, [EtaCutoff(0.6)], {}, [3, 2]),
    (P, [EtaCutoff(0.999)], {}, [3, 2]),  # exp(-H) = 0.278 at the most
    (P, [EtaCutoff(0.6)], FLOORS[3], [3, 2, 1]),
    # min(0.009, 0.0802), min(0.02, 0.1196): of a sure model the threshold is e itself
    (SURE, [EtaCutoff(0.009)], {}, [0, 1, 2, 3]),
    (SURE, [EtaCutoff(0.02)], {}, [0]),
    # Of two, H = 0.6829: min(0.8, 0.8944 * 0.5051 = 0.4518) drops 3/7. Of four: 0.8944 * 0.2781.
    (P, [TopK(2), EtaCutoff(0.8)], {}, [3]),
    (P, [EtaCutoff(0.8), TopK(2)], {}, [3, 2]),
    (P, [Temperature(inf), EtaCutoff(0.9)], {}, [3, 2, 1, 0]),  # sqrt(0.9) / 4
    #
    (P, [TopA(0.62)], {}, [3, 2, 1, 0]),  # 0.62 * 0.16 = 0.0992
    (P, [TopA(0.63)], {}, [3, 2, 1]),  # 0.1008
    (P, [TopA(1.0)], {}, [3, 2, 1]),
    (P, [TopA(1.0)], FLOORS[4], [3, 2, 1, 0]),
    (STEEP, [TopA(0.09)], {}, [0, 1, 2]),  # 0.09 * 0.64 = 0.0576
    (STEEP, [TopA(0.1)], {}, [0, 1]),
    (STEEP, [TopA(0.15)], {}, [0, 1]),
    (STEEP, [TopA(0.16)], {}, [0]),
    (P, [TopA(1.0), Temperature(0.5)], {}, [3, 2, 1]),
    (P, [Temperature(0.5), TopA(1.0)], {}, [3, 2]),  # 4/30 < (16/30)^2 = 0.2844 < 9/30
    (EVEN, [TopA(1.0)], {}, [0, 1, 2, 3]),
    #
    # Bends of P are 0, so each of both counts 1/2; at least one stays, and none of z = 1.
    (P, [TailFree(0.49)], {}, [3]),
    (P, [TailFree(0.51)], {}, [3]),
    (BENT, [TailFree(0.7)], {}, [0]),
    (BENT, [TailFree(0.85)], {}, [0]),
    (BENT, [TailFree(0.95)], {}, [0, 1]),
    (BENT, [TailFree(0.7)], FLOORS[3], [0, 1, 2]),
    (BENT, [TailFree(1.0)], {}, [0, 1, 2, 3, 4]),
    # Four bends of 0: shares 1/4, 2/4, 3/4, 1.
    ([1 / 6] * 6, [TailFree(0.2)], {}, [0]),
    ([1 / 6] * 6, [TailFree(0.6)], {}, [0, 1]),
    ([1 / 6] * 6, [TailFree(0.8)], {}, [0, 1, 2]),
    ([0.9, 0.1], [TailFree(0.1)], {}, [0, 1]),
    ([0.9, 0.1, 0.0], [TailFree(0.1)], {}, [0, 1]),
    (P, [TopK(2), TailFree(0.1)], {}, [3, 2]),
    (P, [TailFree(0.1), TopK(2)], {}, [3]),
    #
    # 0.64 + 0.01 + 0.0036 + 0.0016 = 0.6552; 0.16 + 0.1225 + 0.0225 + 0.01 = 0.315
    (STEEP, [PLess(True)], {}, [0]),
    (STEEP, [PLess(True)], FLOORS[2], [0, 1]),
    ([0.4, 0.35, 0.15, 0.1], [PLess(True)], {}, [0, 1]),
    ([0.4, 0.35, 0.15, 0.1], [PLess(False)], {}, [0, 1, 2, 3]),
    (EVEN, [PLess(True)], {}, [0, 1, 2, 3]),
    (P, [Temperature(inf), PLess(True)], {}, [3, 2, 1, 0]),
    # At temperature 0.5: 0.16, 0.1225, 0.0225, 0.01 of 0.315; the squares sum to 0.4159.
    ([0.4, 0.35, 0.15, 0.1], [Temperature(0.5), PLess(True)], {}, [0]),
    ([0.4, 0.35, 0.15, 0.1], [PLess(True), Temperature(0.5)], {}, [0, 1]),
    #
    # With probability 1 there is no need of a coin.
    (P, [XTC(0.05, 1.0)], {}, [0]),
    (P, [XTC(0.15, 1.0)], {}, [1, 0]),
    (P, [XTC(0.25, 1.0)], {}, [2, 1, 0]),
    (P, [XTC(0.35, 1.0)], {}, [3, 2, 1, 0]),  # one alone stays
    (P, [XTC(0.45, 1.0)], {}, [3, 2, 1, 0]),
    (P, [XTC(0.0, 1.0)], {}, [0]),
    ([0.51, 0.49], [XTC(0.48, 1.0)], {}, [1]),
    (EVEN, [XTC(0.24, 1.0)], {}, [3]),
    (EVEN, [XTC(0.26, 1.0)], {}, [0, 1, 2, 3]),
    (P, [XTC(0.15, 1.0)], FLOORS[2], [1, 0]),
    (P, [XTC(0.15, 1.0)], FLOORS[3], [3, 2, 1, 0]),  # two would be left: nothing happens
    (P, [XTC(0.15, 1.0, [3])], {}, [3, 1, 0]),
    (P, [XTC(0.15, 1.0, [2])], {}, [2, 1, 0]),
    (P, [XTC(0.15, 1.0, [2, 3])], {}, [3, 2, 1, 0]),
    (P, [XTC(0.15, 0.0)], {}, [3, 2, 1, 0]),
    (P, [XTC(0.15, 1.0, (), True)], {}, [1, 0]),
    (P, [XTC(0.15, 1.0), TopK(2)], {}, [1, 0]),
    (P, [TopK(2), XTC(0.15, 1.0)], {}, [2]),
    (P, [XTC(0.15, 1.0), Temperature(0)], {}, [1]),
    (P, [Temperature(0), XTC(0.15, 1.0)], {}, [3]),
    (P, [XTC(0.15, 1.0), TopP(0.66)], {}, [1]),  # 2/3 and 1/3 are left
    (P, [XTC(0.15, 1.0), TopP(0.67)], {}, [1, 0]),
    (P, [XTC(0.25, 1.0), XTC(0.3, 1.0)], {}, [1, 0]),  # 3/6 and 2/6 are candidates now
    (P, [Temperature(inf), XTC(0.2, 1.0)], {}, [0]),
    (P, [Temperature(inf), XTC(0.26, 1.0)], {}, [3, 2, 1, 0]),
    # Weighed down by 0.5 / (1 + 0.5 * 0.7 / 0.3), ids 3 and 2 come after 1 and 0: see below.
    (P, [XTC(0.15, 0.5, (), True), TopK(2)], {}, [1, 0]),
    (P, [TopK(2), XTC(0.15, 0.5, (), True)], {}, [2, 3]),  # 4/7, weighed down to 2/7
    #
    # Scales keep everything, except at temperature 0.
    (P, [DynamicTemperature(0.0, 2.0)], {}, [3, 2, 1, 0]),
    (P, [DynamicTemperature(0.0, 0.0)], {}, [3]),
    (P, [DynamicTemperature(0.0, 0.0), TopK(3)], FLOORS[3], [3]),
    ([1.0, 1e-18], [DynamicTemperature(0.0, 2.0)], {}, [0]),  # H rounds to 0
    ([1.0, 1e-18], [DynamicTemperature(0.0, 2.0, 0.0)], {}, [0, 1]),
    ([1.0, 0.0], [DynamicTemperature(0.0, 2.0)], {}, [0]),
    ([0.4, 0.35, 0.15, 0.1], [DynamicTemperature(0.5, 0.5), PLess(True)], {}, [0]),
    ([0.4, 0.35, 0.15, 0.1], [PLess(True), DynamicTemperature(0.5, 0.5)], {}, [0, 1]),
]

SIGMA = [
    # However small the range: sigma is 1.118 of these steps.
    *(
        (np.arange(4.0)[::-1] * step, [TopNSigma(1.0)], {}, [0, 1])
        for step in (1.0, 2.0**-140, 2.0**-149)
    ),
    # The second has 1 / 12.40 of the entropy, each of the others 0.37 / 12.40.
    ([2.0**54, 1.0, *[0.0] * 31], [TopH(0.5)], {}, [*range(16)]),
    # Where no token reaches the threshold, ties go as well, however close the logits are.
    ([1.0, 1.0], [Temperature(1e-20), EpsilonCutoff(0.9)], {}, [0]),
    ([20.0] * 3, [Temperature(1e-17), XTC(0.45, 1.0)], {}, [0, 1, 2]),
    ([1e16] * 3, [EpsilonCutoff(0.9)], {}, [0]),
    # logits, stages, sampler settings, kept ids; of the first row sigma is sqrt(2) = 1.41421
    ([3, 1, 1, -1], [TopNSigma(1.0)], {}, [0]),
    ([3, 1, 1, -1], [TopNSigma(1.41)], {}, [0]),
    ([3, 1, 1, -1], [TopNSigma(1.42)], {}, [0, 1, 2]),
    ([3, 1, 1, -1], [TopNSigma(2.82)], {}, [0, 1, 2]),
    ([3, 1, 1, -1], [TopNSigma(2.83)], {}, [0, 1, 2, 3]),
    ([3, 1, 1, -1], [TopNSigma(inf)], {}, [0, 1, 2, 3]),
    ([3, 1, 1, -1], [TopNSigma(0)], {}, [0, 1, 2, 3]),
    ([3, 1, 1, -1], [TopNSigma(1e-300)], {}, [0]),
    ([3, 1, 1, -1], [TopNSigma(1.0)], FLOORS[2], [0, 1]),
    ([-inf, 3, 1, 1, -inf, -1], [TopNSigma(1.42)], {}, [1, 2, 3]),
    # No temperature matters, except inf: all weigh the same, so sigma is 0.
    ([3, 1, 1, -1], [Temperature(9.0), TopNSigma(1.41)], {}, [0]),
    ([3, 1, 1, -1], [Temperature(1e-9), TopNSigma(1.42)], {}, [0, 1, 2]),
    ([3, 1, 1, -1], [Temperature(inf), TopNSigma(0.1)], {}, [0, 1, 2, 3]),
    ([5, 5, 5], [TopNSigma(0.1)], {}, [0, 1, 2]),
    ([5], [TopNSigma(0.1)], {}, [0]),
    # Of 0 and 2 the mean is 1 and sigma is 1, exactly: 2 - 2 sigma is the other one.
    ([0, 2], [TopNSigma(2.0)], {}, [1, 0]),
    ([0, 2], [TopNSigma(1.99)], {}, [1]),
    # The first three alone have sigma = sqrt(8 / 9) = 0.9428.
    ([3, 1, 1, -1], [TopK(3), TopNSigma(1.5)], {}, [0]),
    ([3, 1, 1, -1], [TopNSigma(1.5), TopK(3)], {}, [0, 1, 2]),
    # Smoothed by -d^2: 0, -4, -4, -16, of which the mean is -6 and sigma is 6.
    ([3, 1, 1, -1], [Smoothing(1.0), TopNSigma(0.6)], {}, [0]),
    ([3, 1, 1, -1], [Smoothing(1.0), TopNSigma(0.7)], {}, [0, 1, 2]),
    ([3, 1, 1, -1], [TopNSigma(0.7), Smoothing(1.0)], {}, [0]),
]


def logs(probabilities):
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


@pytest.mark.parametrize(
    ("row", "stages", "more", "kept"), [(logs(p), *rest) for p, *rest in CUTS] + SIGMA
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_table(row, stages, more, kept, dtype):
    more = {"min_tokens_to_keep": 1, **more}
    row = np.array(row, dtype)
    s = Sampler(stages, seed=0, **more)
    coins = [0.0] * sum(stage.has_coin for stage in stages)
    assert reference.kept(row, stages, coins=coins, **more).ids.tolist() == kept
    assert s.distribution(row).ids.tolist() == kept
    assert np.flatnonzero(s.filter(row) > -inf).tolist() == sorted(kept)
    r = s.sample(row, raw=True)
    assert r.n_kept == len(kept)
    assert r.tokens in kept
    # The same of a row so long that its first tokens are not all that is looked at.
    long = np.concatenate([row, np.full(3000, -inf, dtype)])
    assert s.distribution(long).ids.tolist() == kept


TEMPERATURES = [
    # H / ln 4 of P is 1.279854 / 1.386294 = 0.923220
    (P, [DynamicTemperature(0.0, 2.0)], 1.846440),
    (P, [DynamicTemperature(0.5, 1.5)], 1.423220),
    (P, [DynamicTemperature(0.5, 1.5, 2.0)], 1.352335),  # 0.5 + 0.923220^2
    (P, [DynamicTemperature(0.5, 1.5, 0.0)], 1.5),
    (P, [DynamicTemperature(0.7, 0.7)], 0.7),
    (EVEN, [DynamicTemperature(0.3, 1.7, 5.0)], 1.7),
    # The entropy of what is kept, at the temperature so far: of 4/7 and 3/7, 0.682908 / ln 2; of
    # all at temperature 0.5, 1, 4, 9, 16 of 30, 1.078477 / ln 4. The temperatures multiply.
    (P, [TopK(2), DynamicTemperature(0.0, 2.0)], 1.970456),
    (P, [DynamicTemperature(0.0, 2.0), TopK(2)], 1.846440),
    (P, [Temperature(0.5), DynamicTemperature(0.0, 2.0)], 0.5 * 1.555913),
    (P, [DynamicTemperature(0.0, 2.0), Temperature(0.5)], 0.5 * 1.846440),
    (P, [Temperature(inf), DynamicTemperature(0.2, 0.9)], inf),
    (P, [TopK(1), DynamicTemperature(0.0, 2.0), Temperature(3.0)], 3.0),  # one token: no change
]


@pytest.mark.parametrize(("probabilities", "stages", "temperature"), TEMPERATURES)
def test_temperatures_in_a_table(probabilities, stages, temperature):
    row = logs(probabilities)
    state = reference.kept(row, stages)
    assert state.temperature == pytest.approx(temperature, rel=1e-6)
    d = Sampler(stages, seed=0).distribution(row)
    z = row[d.ids] / temperature
    np.testing.assert_allclose(d.probs, np.exp(z) / np.exp(z).sum(), rtol=2e-6)


def test_xtc_weighs_by_the_mean_over_the_coin():
    # By the coin 1/2: half of P, and half of 2/3 and 1/3 on the last two.
    for q, expected in (
        (0.5, [13 / 60, 13 / 30, 0.15, 0.2]),
        (0.1, [37 / 300, 37 / 150, 0.27, 0.36]),
    ):
        stages = [XTC(0.15, q, (), True)]
        d = Sampler(stages, seed=0).distribution(logs(P))
        np.testing.assert_allclose(d.dense(), expected, rtol=1e-14)
        np.testing.assert_allclose(
            reference.probabilities(reference.kept(logs(P), stages), 4).astype(float), expected,
            rtol=1e-14,
        )  # fmt: skip
        assert d.ids.tolist() == np.argsort(expected)[::-1].tolist()  # rank is by the new weight
        assert Sampler(stages, seed=0).sample(logs(P), raw=True).log_mass == 0.0


# ----------------------------------------------------------------------------------- metamorphic

STAGES = [
    DynamicTemperature, TopNSigma, TopH, TypicalP, EpsilonCutoff, EtaCutoff, TopA, TailFree, PLess,
    XTC,
]  # fmt: skip
SETTINGS = [
    stage.of(value)
    for stage in STAGES
    for value in dict.fromkeys((*TABLE[stage].values, *TABLE[stage].gentle, TABLE[stage].after))
]
EVERY = pytest.mark.parametrize("stage", SETTINGS, ids=repr)
SIZES = pytest.mark.parametrize("size", [5, 300, 4500])
# A tempered row, one that is candidates already, one without its first tokens, and a rebased one.
BEFORE = [[Temperature(0.7)], [TopK(40)], [TypicalP(0.9)], [Smoothing(0.05)]]


def distinct_row(size, seed=0):
    """Tie-free logits in [-8, 8), exact in float16 where there are 1024 or fewer."""
    grid = max(1024, 2 ** size.bit_length())
    rng = np.random.default_rng(seed)
    places = grid // 2 + np.round(rng.normal(0, grid / 8, 40 * size)).astype(int)
    places = np.unique(places[(places >= 0) & (places < grid)])
    assert len(places) >= min(size, 300)
    left = np.setdiff1d(np.arange(grid), places)
    return (rng.permutation(np.append(places, left))[:size] - grid // 2) * (16.0 / grid)


def figures(stages, row, **more):
    """What is kept in rank order, the log-probabilities, entropy and log mass, to the bit."""
    s = Sampler(stages, seed=3, **more)
    d, r = s.distribution(row, step=5), s.sample(row, steps=5, raw=True)
    return d.ids, [d.logprobs.tobytes(), r.entropy, r.log_mass, r.n_kept]


@EVERY
@SIZES
def test_adding_an_exact_constant_changes_nothing(stage, size):
    row = distinct_row(size)
    for before in ([], *BEFORE):
        ids, bits = figures([*before, stage], row)
        for constant in (64.0, -512.0):
            moved, same = figures([*before, stage], row + constant)
            assert moved.tolist() == ids.tolist()
            assert same == bits


@EVERY
@SIZES
def test_permuting_a_row_without_ties_permutes_the_answer_to_the_bit(stage, size):
    row = distinct_row(size, 1)
    order = np.random.default_rng(2).permutation(size)
    there = np.argsort(order)  # where each token goes
    moved = stage
    if isinstance(stage, XTC):
        moved = dataclasses.replace(stage, protected=[int(there[i]) for i in stage.protected])
    for before in ([], *BEFORE):
        ids, bits = figures([*before, stage], row)
        others, same = figures([*before, moved], row[order])
        assert others.tolist() == there[ids].tolist()
        assert same == bits


@EVERY
@SIZES
def test_minus_infinities_only_relabel(stage, size):
    row = np.round(distinct_row(size, 3), 1)  # with ties
    places = np.sort(np.random.default_rng(4).choice(2 * size + 600, size, replace=False))
    wide = np.full(2 * size + 600, -inf)
    wide[places] = row
    moved = stage
    if isinstance(stage, XTC):
        moved = dataclasses.replace(stage, protected=[int(places[i]) for i in stage.protected])
    for before in ([], *BEFORE):
        ids, bits = figures([*before, stage], row)
        others, same = figures([*before, moved], wide)
        assert others.tolist() == places[ids].tolist()
        assert same == bits


@EVERY
def test_a_batch_is_its_rows_whatever_the_dtype_and_the_strides(stage):
    rows = np.stack([distinct_row(300, seed) for seed in range(4)])
    containers = [
        rows.astype(np.float16), rows.astype(np.float32), rows.astype(">f4"),
        np.asfortranarray(rows), np.repeat(rows, 3, axis=1)[:, ::3],
        rows[::-1, ::-1].copy()[::-1, ::-1],
    ]  # fmt: skip
    for before in ([], *BEFORE):
        s = Sampler([*before, stage], seed=3)
        alone = [s.sample(row, streams=i, steps=5, raw=True) for i, row in enumerate(rows)]
        for batch in (rows, *containers):
            whole = s.sample(batch, steps=5, raw=True)
            for name in ("tokens", "logprobs", "ranks", "n_kept", "entropy", "log_mass"):
                found = getattr(whole, name).tolist()
                assert found == [getattr(one, name) for one in alone], (name, before)


NESTED = {
    TopNSigma: [0.01, 0.3, 1.0, 1.7, 2.5],
    TopH: [0.01, 0.3, 0.6, 0.9, 1.0],
    TypicalP: [0.01, 0.3, 0.6, 0.9, 0.999],
    EpsilonCutoff: [0.9, 0.05, 0.01, 1e-3, 1e-5],
    EtaCutoff: [0.9, 0.05, 0.01, 1e-3, 1e-5],
    TopA: [1.0, 0.5, 0.1, 0.01, 1e-5],
    TailFree: [0.01, 0.5, 0.9, 0.99, 0.9999],
    XTC: [(0.0, 1.0), (0.001, 1.0), (0.01, 1.0), (0.03, 1.0), (0.5, 1.0)],
}


@pytest.mark.parametrize("stage", NESTED)
@SIZES
def test_a_gentler_setting_keeps_no_less(stage, size):
    row = np.round(distinct_row(size, 5) * 8) / 8
    for before in ([], *BEFORE):
        kept = [
            set(Sampler([*before, stage.of(value)], seed=0).distribution(row).ids.tolist())
            for value in NESTED[stage]
        ]
        assert all(few <= many for few, many in pairwise(kept))
        assert size == 5 or before or len(kept[0]) < len(kept[-1])


@pytest.mark.parametrize("size", [5, 300, 4500, 40_000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_thresholds_on_the_probability_are_one_another(size, temperature):
    # Each equals a certain epsilon, which lies between two tokens, never at one.
    row = np.random.default_rng(size).normal(0, 2, size)
    p = Sampler(temperature=temperature, seed=0).distribution(row).dense()
    square, entropy = (p @ p).item(), -(p @ logs(p)).item()
    for stage, least in (
        (PLess(True), square),
        (TopA(0.7), 0.7 * p.max() ** 2),
        (EtaCutoff(0.01), min(0.01, 0.1 * math.exp(-entropy))),
        (MinP(0.1), 0.1 * p.max()),
    ):
        kept = Sampler([Temperature(temperature), stage], seed=0).distribution(row).ids
        epsilon = [Temperature(temperature), EpsilonCutoff(float(least))]
        assert np.array_equal(kept, Sampler(epsilon, seed=0).distribution(row).ids)
        assert sorted(kept) == np.flatnonzero(p >= least).tolist() or p.max() < least


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 2.0, 1e6])
def test_no_temperature_changes_what_top_n_sigma_keeps(temperature):
    row = distinct_row(4500, 7)
    kept = Sampler(top_n_sigma=1.3, seed=0).distribution(row).ids
    assert 1 < len(kept) < 4500
    d = Sampler(top_n_sigma=1.3, temperature=temperature, seed=0).distribution(row)
    assert np.array_equal(d.ids, kept)


@EVERY
def test_real_rows_are_the_twins(real_logits, stage):
    for number, row in enumerate(real_logits[::9, :30_000]):
        coins = [reference.uniform(0, step=number, lane=1)] if stage.has_coin else []
        state = reference.kept(row, [stage], coins=coins)
        d = Sampler([stage], seed=0).distribution(row, step=number)
        assert d.ids.tolist() == state.ids.tolist()
        np.testing.assert_allclose(d.logprobs, reference.logprobs(state), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------- bad input

ROW = np.zeros(4)
H_TEXT = "`top_h` has to be a float in (0, 1] (None is off)"
TYPICAL_TEXT = "`typical_p` has to be a float in (0, 1] (1 or None is off)"
TAIL_TEXT = "`tail_free` has to be a float in (0, 1] (1 or None is off)"
SIGMA_TEXT = "`top_n_sigma` has to be a float in [0, inf] (0 or None is off)"
BAD = [
    # call, error, what it says
    (lambda: TopNSigma(-1), ValueError, f"{SIGMA_TEXT}, but is -1"),
    (lambda: TopNSigma(nan), ValueError, f"{SIGMA_TEXT}, but is nan"),
    (lambda: TopNSigma("1"), TypeError, f"{SIGMA_TEXT}, but is '1'"),
    (lambda: TopH(0), ValueError, f"{H_TEXT}, but is 0"),
    (lambda: TopH(1.1), ValueError, f"{H_TEXT}, but is 1.1"),
    (lambda: TopH(nan), ValueError, f"{H_TEXT}, but is nan"),
    (lambda: TopH(True), TypeError, f"{H_TEXT}, but is True"),
    (lambda: TypicalP(0.0), ValueError, f"{TYPICAL_TEXT}, but is 0.0"),
    (lambda: TypicalP(nan), ValueError, f"{TYPICAL_TEXT}, but is nan"),
    (lambda: EpsilonCutoff(1), ValueError,
     "`epsilon_cutoff` has to be a float in [0, 1), but is 1"),
    (lambda: EpsilonCutoff(nan), ValueError, None),
    (lambda: EpsilonCutoff(b"1"), TypeError, None),
    (lambda: EtaCutoff(1.0), ValueError, "`eta_cutoff` has to be a float in [0, 1), but is 1.0"),
    (lambda: EtaCutoff(-1e-9), ValueError, None),
    (lambda: EtaCutoff(nan), ValueError, None),
    (lambda: TopA(1.5), ValueError, "`top_a` has to be a float in [0, 1], but is 1.5"),
    (lambda: TopA(nan), ValueError, None),
    (lambda: TopA(1j), TypeError, None),
    (lambda: TailFree(0), ValueError, f"{TAIL_TEXT}, but is 0"),
    (lambda: TailFree(nan), ValueError, None),
    (lambda: TailFree("z"), TypeError, None),
    (lambda: PLess(1), TypeError, "`p_less` has to be True or False, but is 1"),
    (lambda: PLess("yes"), TypeError, "`p_less` has to be True or False, but is 'yes'"),
    (lambda: PLess(nan), TypeError, None),
    (lambda: PLess([True, 2]), TypeError, None),
    (lambda: XTC(1.5, 0.5), ValueError, "`xtc.threshold` has to be a float in [0, 1], but is 1.5"),
    (lambda: XTC(0.1, 2), ValueError,
     "`xtc.probability` has to be a float in [0, 1], but is 2 (0.02?)"),
    (lambda: XTC(nan, 0.5), ValueError, None),
    (lambda: Sampler([XTC(0.1, 0.5, [7])])(ROW), ValueError,
     "`xtc.protected` has to hold ids in [0, 4), but one is 7"),
    (lambda: Sampler(temperature=0.5, dynamic_temperature=(0.5, 1.5)), TypeError,
     "give either `temperature` or `dynamic_temperature`, not both: in a chain they multiply"),
    (lambda: DynamicTemperature([0.5, 2.0], [1.0, 1.0]), ValueError,
     "`dynamic_temperature.low` has to be at most `high`, but is 2.0 in row 1"),
    (lambda: XTC(0.1, nan), ValueError, None),
    (lambda: XTC(0.1, 0.5, 3), TypeError, None),
    (lambda: XTC(0.1, 0.5, [-1]), ValueError, None),
    (lambda: XTC(0.1, 0.5, [1.5]), TypeError, None),
    (lambda: XTC(0.1, 0.5, (), 1), TypeError, "`xtc.expected` has to be True or False, but is 1"),
    (lambda: DynamicTemperature(1, 0.5), ValueError, None),
    (lambda: DynamicTemperature(-1, 1), ValueError, None),
    (lambda: DynamicTemperature(0, inf), ValueError, None),
    (lambda: DynamicTemperature(0, 1, -1), ValueError, None),
    (lambda: DynamicTemperature(nan, 1), ValueError, None),
    (lambda: DynamicTemperature("0", 1), TypeError, None),
    # too few, too many
    (lambda: Sampler(xtc=0.5), TypeError,
     "`xtc` has to be (threshold, probability, protected, expected), but is 0.5"),
    (lambda: Sampler(xtc=(0.1, 0.5, (), False, 1)), TypeError, None),
    (lambda: Sampler(dynamic_temperature=0.5), TypeError,
     "`dynamic_temperature` has to be (low, high, exponent), but is 0.5"),
    # arrays
    (lambda: TopNSigma([1, -1]), ValueError,
     "`top_n_sigma` has to be a float in [0, inf] (0 or None is off), but is -1 in row 1"),
    (lambda: TopH([0.5, 0]), ValueError, None),
    (lambda: TypicalP([0.5, 0.5, 0]), ValueError,
     "`typical_p` has to be a float in (0, 1] (1 or None is off), but is 0.0 in row 2"),
    (lambda: EpsilonCutoff([0.5, 1]), ValueError, None),
    (lambda: EtaCutoff([nan, 0.1]), ValueError,
     "`eta_cutoff` has to be a float in [0, 1), but is nan in row 0"),
    (lambda: TopA(np.array([0.5, 7.0])), ValueError, None),
    (lambda: TailFree([1, 0.5, 2]), ValueError, None),
    (lambda: XTC([0.1, 0.2], [0.5, 2]), ValueError,
     "`xtc.probability` has to be a float in [0, 1], but is 2.0 (0.02?) in row 1"),
    (lambda: TypicalP([[0.5]]), ValueError, None),
    (lambda: TopH([0.5, nan]), ValueError, f"{H_TEXT}, but is nan in row 1"),
    (lambda: TopH(np.array([nan, 0.5])), ValueError, f"{H_TEXT}, but is nan in row 0"),
    (lambda: DynamicTemperature(0.5, [1.0, nan]), ValueError,
     "`dynamic_temperature.high` has to be a finite float >= 0, but is nan in row 1"),
    (lambda: Sampler(xtc=([0.1] * 3, [0.5, 0.6])), ValueError,
     "`xtc.threshold` and `xtc.probability` have to be for the same rows, but are for 3 and 2"),
    (lambda: DynamicTemperature([0.5] * 2, [1.0] * 3), ValueError,
     ("`dynamic_temperature.low` and `dynamic_temperature.high` have to be for the same rows, "
      "but are for 2 and 3")),
    (lambda: Sampler(typical_p=[0.5, 0.6])(ROW), ValueError,
     "`typical_p` has to be a number for a lone row, but is for 2 rows"),
    (lambda: Sampler(typical_p=[0.5, 0.6])([ROW] * 3), ValueError,
     "`typical_p` has to be for 3 rows, but is for 2"),
    (lambda: Sampler(p_less=[True, False]).filter([ROW] * 3), ValueError, None),
    (lambda: Sampler(xtc=([0.1, 0.2], 0.5)).score([ROW] * 3, [0] * 3), ValueError, None),
    (lambda: Sampler(top_h=[0.5, 0.6], top_a=[0.1] * 3), ValueError,
     "`top_h` and `top_a` have to be for the same rows, but are for 2 and 3"),
    (lambda: Sampler([TopH(0.5), SuppressTokens([1])]), TypeError,
     "SuppressTokens((1,)) edits the logits, so in `stages` it has to come before TopH(0.5)"),
    (lambda: Sampler([XTC(0.1, 0.5), SuppressTokens([1])]), TypeError, None),
    (lambda: Sampler([DynamicTemperature(0.1, 0.5), SuppressTokens([1])]), TypeError, None),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    wanted = r"^`\w+(\.\w+)?` has to be|in `stages` it has" if message is None else (
        f"^{re.escape(message)}$")  # fmt: skip
    with pytest.raises(error, match=wanted):
        call()


@pytest.mark.parametrize("value", [nan, inf])
@EVERY
def test_an_invalid_row_is_named(stage, value):
    rows = np.zeros((3, 5))
    rows[1, 2] = value
    s = Sampler([stage], seed=0)
    for call in (s, s.sample, s.filter):
        with pytest.raises(ValueError, match=rf"^`logits` have .* row 1 has {value} at token 2$"):
            call(rows)
    flagged = s.replace(on_invalid="flag").sample(rows)
    assert flagged.n_kept.tolist()[1] == 0
    assert flagged.tokens.tolist()[1] == -1


@pytest.mark.parametrize("settings", [
    {"xtc": (0.3, 0.0)}, {"xtc": (0.6, 0.5)}, {"dynamic_temperature": (0.5, None, 2.0)},
    {"smoothing": (0.0, 2.0)}, {"xtc": (0.1, [0.0, 0.0])}, {"top_h": [None, 0.5]},
    {"dynamic_temperature": (0.5, [None, 1.5])}, {"p_less": [True, False]},
], ids=str)  # fmt: skip
def test_settings_that_are_off_are_kept(settings):
    s = Sampler(**settings, seed=3)
    for other in (eval(repr(s)), pickle.loads(pickle.dumps(s)), s.replace()):
        assert other == s
        assert repr(other) == repr(s)
    assert s != Sampler(seed=3)
    ((name, value),) = settings.items()
    assert Sampler(**{name: getattr(s, name)}, seed=3) == s
    if any(isinstance(one, list) for one in (value, *np.atleast_1d(np.array(value, object)))):
        with pytest.raises(ValueError, match=r"but is for 2$"):
            s(np.zeros((3, 5)))


def test_an_infinite_top_n_sigma_is_off():
    assert TopNSigma(inf).is_off
    assert TopNSigma([inf, 1.0]).off_rows.tolist() == [True, False]


def test_the_floor_of_typical_p_in_a_long_row():
    x = np.random.default_rng(0).normal(0.0, 2.0, 131_072).astype(np.float32)
    stages = [TypicalP(0.2)]
    d = Sampler(stages, min_tokens_to_keep=5000).distribution(x)
    assert len(d) >= 5000
    assert d.ids.tolist() == reference.kept(x, stages, min_tokens_to_keep=5000).ids.tolist()
