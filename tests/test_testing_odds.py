"""Both error rates of the checks, over many runs."""

import numpy as np
import pytest
from scipy import stats

import wrong_samplers
from sampler import Sampler
from sampler.testing import check_draws, check_sampler
from sampler.testing._statistics import Bins, chi_square

LAWS = {
    "equal": np.full(40, 1 / 40),
    "one rare": np.array([0.975, 0.0125, 0.0125]),
    "geometric": 0.7 ** np.arange(30) / np.sum(0.7 ** np.arange(30)),
    "a long tail": np.append(0.5, np.full(1000, 0.0005)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_10_000_right_samples_pass(name):
    """At alpha = 1e-4 one alarm is expected at most; 7 or more come once in 10,000 times. The same
    runs at 1e-2: 100 at most; 139 or more once in 10,000 times."""
    law = LAWS[name]
    s, row = Sampler(seed=1), np.log(law)
    runs = [check_draws(s.sample(row, n=2000).tokens, law, alpha=1e-4) for _ in range(10_000)]
    alarms = sum(run.ok is False for run in runs)
    at_1_percent = sum(run.pvalue < 1e-2 for run in runs)
    print(f"{name}: {alarms} alarms at 1e-4, {at_1_percent} at 1e-2, of 10,000")
    assert alarms < 7 and at_1_percent < 139


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda seed: Sampler(seed=seed), wrong_samplers.Right])
def test_10_000_right_samplers_pass(make):
    """`check_sampler`, without the tail row, as above."""
    row = wrong_samplers.ROW[:12]
    runs = [
        check_sampler(
            make, row, alpha=1e-4, draws=1000, batch=100, seeded=True, seed=100 * i, tail=False,
            progress=False,
        )
        for i in range(10_000)
    ]  # fmt: skip
    alarms = sum(run.ok is False for run in runs)
    at_1_percent = sum(run.pvalue < 1e-2 for run in runs)
    print(f"{alarms} alarms at 1e-4, {at_1_percent} at 1e-2, of 10,000")
    assert alarms < 7 and at_1_percent < 139


@pytest.mark.slow
def test_g_and_small_bins_give_false_alarms():
    """Why Pearson's statistic, why 25 per bin, why Lancaster's decomposition.

    A million samples of each law at alpha = 1e-4: 100 alarms are expected, 140 or more come once
    in 25,000 times.
    """
    runs, alpha = 1_000_000, 1e-4
    rng = np.random.default_rng(0)

    def alarms(statistic, bins):
        return int(np.sum(stats.chi2.sf(statistic, bins - 1) < alpha))

    def both(law, draws):
        counts = rng.multinomial(draws, law, runs)
        expected = draws * np.asarray(law)
        pearson = np.sum((counts - expected) ** 2 / expected, axis=1)
        terms = np.where(counts > 0, counts * np.log(np.maximum(counts, 1) / expected), 0)
        return counts, alarms(pearson, len(law)), alarms(2 * np.sum(terms, axis=1), len(law))

    # Two draws per bin: G alarms five times as often as it should, Pearson twice.
    _, pearson, g = both([1 / 50] * 50, 100)
    print(f"50 bins of 2 draws: Pearson {pearson}, G {g} where 100 are expected")
    assert g > 400 and pearson > 140
    # A quarter of a draw in most bins: so does Pearson.
    _, pearson, g = both([0.9] + [0.1 / 40] * 40, 100)
    print(f"40 bins of 1/4 draw: Pearson {pearson}, G {g}")
    assert pearson > 400
    # 25 draws in small bins next to a large one: Pearson alone is still off; ours is not.
    law = [0.9, 0.025, 0.025, 0.025, 0.025]
    counts, pearson, _ = both(law, 1000)
    different, times = np.unique(counts, axis=0, return_counts=True)
    law = np.array(law)
    likely = np.sum((different - 1000 * law) ** 2 / (1000 * law), axis=1) > 15
    ours = sum(
        int(n)
        for row, n in zip(different[likely], times[likely], strict=True)
        if chi_square(Bins(law, row, np.ones(5, int)))[1] < alpha
    )
    print(f"4 bins of 25 draws next to one of 900: Pearson {pearson}, Lancaster {ours}")
    assert pearson > 140 > ours
