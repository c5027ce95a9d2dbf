"""Recorded draws: does the kit see wrong ones, pass right ones, and say what it cannot tell?"""

import math

import numpy as np
import pytest

from right_samplers import LAW, drawn
from sampler import Sampler
from sampler.testing import check_draws, check_sequentially, required_draws
from sampler.testing._arguments import check_probs, count_tokens
from sampler.testing._draws import judge_counts
from sampler.testing._findings import Kind
from sampler.testing._statistics import chi_square, pool


def draws_needed(tokens, law):
    """How many draws it takes, where these are too few."""
    counts = count_tokens("tokens", tokens, len(law))
    [finding] = judge_counts(check_probs("law", law), counts, 1e-6, 0.999).findings
    assert finding.kind is Kind.FEW_DRAWS and finding.observed == len(tokens)
    return finding.expected


def test_right_draws_pass():
    result = check_draws(drawn(LAW, 20_000), LAW, seeds={"seed": 0})
    assert result.ok is True and result.findings == []
    assert result.draws == 20_000 and 1e-6 < result.pvalue <= 1
    assert 0 < result.detectable_bias < 0.1
    assert "seed=0" in str(result) and str(result).startswith("check_draws: ok")


def test_a_token_of_probability_0_fails_on_one_draw():
    tokens = np.append(drawn(LAW, 1000), 3)
    result = check_draws(tokens, LAW)
    assert result.ok is False and result.pvalue == 0
    assert result.findings == ["token 3 was drawn 1 time; its probability is 0"]


def test_many_tokens_of_probability_0_are_summed_up():
    law = np.zeros(20)
    law[0] = 1
    result = check_draws(np.arange(20), law)
    assert len(result.findings) == 4
    assert result.findings[3] == "16 more tokens of probability 0 were drawn, 16 times in all"


@pytest.mark.parametrize("size, head", [(5, 0.5), (1000, 0.5), (100_000, 0.9)])
def test_a_tail_that_is_never_drawn_is_named(size, head):
    law = np.full(size, (1 - head) / (size - 1))
    law[0] = head
    tokens = drawn(law, 40_000)
    tokens[tokens >= size - size // 4] = 0
    result = check_draws(tokens, law)
    assert result.ok is False
    assert any("last token ids" in f or "never drawn" in f for f in result.findings)


def test_one_very_rare_token_drawn_too_often_is_named():
    law = np.full(1001, 1e-12)
    law[0] = 1 - 1e-9
    tokens = np.zeros(10_000, int)
    tokens[:4] = 77
    result = check_draws(tokens, law)
    assert any(f.startswith("token 77 was drawn 4 times") for f in result.findings)


def test_it_takes_a_second_bin_to_tell_a_law_from_its_likeliest_token():
    """A regression: draws of the likeliest token alone passed."""
    law = [0.999, 0.001]
    few = check_draws([0] * 4, law)
    assert few.ok is None and few.detectable_bias == math.inf
    needed = draws_needed([0] * 4, law)
    assert f": 4, where it takes {needed:,} to see" in few.findings[0]
    assert 25_000 <= needed < 25_100
    assert check_draws(drawn(law, needed - 30), law).ok is None
    assert check_draws(drawn(law, needed), law).ok is True
    assert check_draws([0] * needed, law).ok is False
    assert check_sequentially(lambda n: [0] * n, law, bias=0.5, progress=False).ok is False
    never = check_draws([0] * 4, [1 - 1e-15, 1e-15])
    assert never.ok is None and "takes more than 2**40" in never.findings[0]
    assert check_draws([0] * 4, [1.0, 1e-300]).ok is True  # no float64 uniform reaches the second


def test_a_wide_flat_law_takes_enough_draws():
    """A regression: 50 draws passed, in two halves of the vocabulary, and a million did not."""
    law = np.full(100_000, 1e-5)
    numbers = [50, 100, 1000, 5000, 20_000, 100_000, 1_000_000]
    results = [check_draws(drawn(law, n), law) for n in numbers]
    assert [result.ok for result in results] == [None] * 4 + [True] * 3
    assert results[-1].detectable_bias < 0.2
    assert len(results[-1].bins.probs) > 10_000
    rng = np.random.default_rng(1)
    even = check_draws(2 * rng.integers(0, 50_000, 1_000_000), law)  # narrow bins show it
    drift = np.linspace(0.98, 1.02, 100_000) * 1e-5
    drifting = check_draws(rng.choice(100_000, 1_000_000, p=drift), law)  # wide ones do
    for result, bins in ((even, "over 33,333 bins"), (drifting, "over 63 bins")):
        assert result.ok is False
        assert any(bins in finding for finding in result.findings), result


def test_what_cannot_happen_leaves_no_odds():
    result = check_draws([1, 1], [1.0, 0.0])
    assert result.ok is False and result.pvalue == 0
    assert not any(math.isnan(token.pvalue) for token in result.tokens)


def test_the_shares_of_alpha():
    """Half to the fit, a quarter each to tokens and tails, corrected for how many there are."""
    law = np.full(4, 0.25)
    tokens = np.repeat(np.arange(4), [260, 240, 250, 250])
    result = check_draws(tokens, law)
    fit = chi_square(result.bins)[1]
    alone = 4 * min(token.pvalue for token in result.tokens)
    tail = len(result.tails) * min(t.pvalue for t in result.tails)
    assert result.pvalue == min(1, 2 * fit, 4 * alone, 4 * tail) == 1
    tokens = np.repeat(np.arange(4), [310, 210, 240, 240])
    result = check_draws(tokens, law)
    fit = chi_square(result.bins)[1]
    alone = 4 * min(token.pvalue for token in result.tokens)
    tail = len(result.tails) * min(t.pvalue for t in result.tails)
    assert 2 * fit < 1 and 4 * alone < 1
    assert result.pvalue == pytest.approx(min(2 * fit, 4 * alone, 4 * tail))
    # Of more than 64 bins, the two chi-squares have a quarter each.
    law = np.full(65, 1 / 65)
    tokens = np.arange(65 * 60) % 65
    tokens[(tokens % 2 == 0) & (np.arange(65 * 60) < 65 * 12)] += 1
    result = check_draws(tokens % 65, law)
    fit = chi_square(result.bins)[1]
    assert fit < 1e-8
    assert result.pvalue == pytest.approx(4 * fit, rel=1e-6, abs=0)


@pytest.mark.parametrize("n", [1, 5, 20])
def test_too_few_draws_are_no_conclusion(n):
    law = np.full(8, 1 / 8)
    result = check_draws(drawn(law, n), law)
    assert result.ok is None and not result.ok
    needed = draws_needed(drawn(law, n), law)
    assert result.findings[0].startswith(
        f"too few draws for any conclusion: {n}, where it takes {needed:,} to see"
    )
    assert check_draws(drawn(law, needed), law).ok is True
    assert check_draws(drawn(law, needed // 4), law).ok is None


def test_what_is_too_few_is_less_than_what_it_takes():
    rng = np.random.default_rng(0)
    probs = np.exp(rng.normal(0, 0.1, 400))
    probs /= probs.sum()
    tokens = rng.choice(400, 300, p=probs)
    assert check_draws(tokens, probs).ok is None
    needed = draws_needed(tokens, probs)
    assert needed > 300
    enough = check_draws(rng.choice(400, needed, p=probs), probs)
    assert enough.ok
    assert enough.detectable_bias <= 1


def test_a_lone_token_is_checked_exactly():
    assert check_draws([0] * 100, [1.0, 0.0]).ok is True
    assert check_draws([0] * 99 + [1], [1.0, 0.0]).ok is False


@pytest.mark.parametrize(
    "size, n, sign",
    [(2, 2_000, 1), (2, 2_000, -1), (2, 50_000, 1), (2, 50_000, -1),
     (40, 2_000, 1), (40, 50_000, 1), (40, 50_000, -1)],  # (40, 2_000, -1) would be below -1
)  # fmt: skip
def test_the_detectable_bias_is_seen_with_its_power(n, size, sign):
    """200 runs at power 0.9: 162 or more alarms, but for 1 run in 10,000."""
    law = np.full(size, 1 / size)
    bias = check_draws(drawn(law, n), law, power=0.9).detectable_bias
    bias *= sign
    assert -1 <= bias <= size - 1
    wrong = law * (1 - bias / (size - 1))
    wrong[0] = law[0] * (1 + bias)
    rng = np.random.default_rng(1)
    alarms = sum(
        check_draws(rng.choice(size, n, p=wrong / wrong.sum()), law, power=0.9).ok is False
        for _ in range(200)
    )
    assert alarms >= 162


WIDE_LAWS = {
    "flat": np.full(1000, 1e-3),
    "geometric": 0.97 ** np.arange(400) / np.sum(0.97 ** np.arange(400)),
    "peaked": np.append(0.99, np.full(1000, 1e-5)),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name, n", [("flat", 100_000), ("geometric", 20_000), ("peaked", 10**6)])
def test_the_detectable_bias_of_a_wide_law_is_seen(name, n, sign):
    """Of the likeliest of the wide bins, over many that are narrow. As above, of 60 runs 44."""
    law = WIDE_LAWS[name]
    result = check_draws(drawn(law, n), law, power=0.9)
    assert result.ok is True
    bias = sign * result.detectable_bias
    assert len(result.bins.probs) > 64
    order, starts = pool(law, n, n / 64)
    bins = np.append(starts, len(law))
    if len(starts) == 1:  # one token has it all, but for less than a bin
        bins = np.array([0, 1, len(law)])
    places = np.arange(len(bins) - 1)
    likeliest = max(places, key=lambda i: law[order[bins[i] : bins[i + 1]]].sum())
    ids = order[bins[likeliest] : bins[likeliest + 1]]
    wrong = law.copy()
    wrong[ids] *= 1 + bias
    rest = np.ones(len(law), bool)
    rest[ids] = False
    wrong[rest] *= (1 - wrong[ids].sum()) / law[rest].sum()
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(60):
        tokens = np.repeat(np.arange(len(law)), rng.multinomial(n, wrong / wrong.sum()))
        alarms += check_draws(tokens, law, power=0.9).ok is False
    assert alarms >= 44


def test_required_draws_of_many_bins_share_alpha():
    assert required_draws(0.01, bins=65) > required_draws(0.01, bins=64, alpha=5e-7)


def test_required_draws_see_the_effect():
    """Half the tokens 5 % up, half 5 % down: w = 0.05. 100 runs at power 0.9."""
    n = required_draws(0.05, bins=10, power=0.9)
    law = np.full(10, 0.1)
    wrong = law * np.where(np.arange(10) % 2, 1.05, 0.95)
    rng = np.random.default_rng(2)
    runs = [check_draws(rng.choice(10, n, p=wrong), law).ok is False for _ in range(100)]
    assert 77 <= sum(runs) < 100
    assert required_draws(10.0, bins=10) == 250
    with pytest.raises(ValueError, match="`bins` has to be an integer in"):
        required_draws(0.01, bins=2**36)
    assert required_draws(0.01, bins=2**36 - 1) > 2**36
    assert 10**400 < required_draws(1e-200, bins=2) < 10**402  # the square of 1e-200 is 0


def test_a_false_alarm_is_as_rare_as_alpha():
    """800 runs at alpha = 0.1: 80 expected at most, 113 or more once in 10,000 runs."""
    rng = np.random.default_rng(3)
    law = np.array([0.9, 0.05, 0.025, 0.0125, 0.0125])
    oks = [check_draws(rng.choice(5, 2000, p=law), law, alpha=0.1).ok for _ in range(800)]
    assert 20 < oks.count(False) < 113


def test_the_sequential_form_stops_early_and_passes_late():
    rng = np.random.default_rng(4)
    right = check_sequentially(lambda n: rng.choice(5, n, p=LAW), LAW, bias=0.05, progress=False)
    assert right.ok is True and right.detectable_bias <= 0.05
    wrong = check_sequentially(lambda n: rng.integers(0, 5, n), LAW, bias=0.05)
    assert wrong.ok is False and wrong.draws <= right.draws / 31
    with pytest.raises(ValueError, match=r"`draw` has to return .*, but returned shape \(1,\)"):
        check_sequentially(lambda n: [0], LAW)
    with pytest.raises(ValueError, match=r"`draw` has to return .*, but returned shape \(0,\)"):
        check_sequentially(lambda n: [], LAW)
    with pytest.raises(ValueError, match=r"would take more than 2\*\*40 draws to show"):
        check_sequentially(lambda n: [0] * n, [1 - 1e-15, 1e-15])


def test_the_looks_share_alpha():
    """The early ones half of it equally, the last the other half; tokens come in pieces."""
    law = np.full(4, 0.25)
    asked = []

    def draw(n):
        asked.append(n)
        return np.random.default_rng(len(asked)).integers(0, 4, n)

    result = check_sequentially(draw, law, bias=0.004)
    assert result.ok is True and sum(asked) == result.draws > 2**23
    assert max(asked) == 2**20
    wrong = [0.26, 0.24, 0.25, 0.25]
    rng, drawn_so_far = np.random.default_rng(0), []

    def biased(n):
        drawn_so_far.append(rng.choice(4, n, p=wrong))
        return drawn_so_far[-1]

    stopped = check_sequentially(biased, law, bias=0.02)
    assert stopped.ok is False and len(drawn_so_far) < 6 and stopped.alpha == 1e-6
    at_once = check_draws(np.concatenate(drawn_so_far), law)
    assert stopped.pvalue == pytest.approx(10 * at_once.pvalue, rel=1e-6, abs=0)


def test_a_sequential_false_alarm_is_as_rare_as_alpha():
    """100 runs at alpha = 0.1: 10 expected at most, 23 or more once in 10,000 runs."""
    rng = np.random.default_rng(5)
    law = [0.5, 0.25, 0.25]
    oks = [
        check_sequentially(
            lambda n: rng.choice(3, n, p=law), law, bias=0.3, alpha=0.1, progress=False
        ).ok
        for _ in range(100)
    ]
    assert oks.count(False) < 23


@pytest.mark.parametrize(
    "tokens, probs, settings, error, message",
    [
        ([], LAW, {}, ValueError, "`tokens` have to hold at least one draw, but are empty"),
        ([0, 5], LAW, {}, ValueError, r"integers in \[0, 5\), but one is 5"),
        ([0, -1], LAW, {}, ValueError, r"integers in \[0, 5\), but one is -1"),
        ([0.5], LAW, {}, TypeError, "`tokens` have to be integers"),
        ([True], LAW, {}, TypeError, "`tokens` have to be integers"),
        ([[0] * 1000, [1]], LAW, {}, TypeError, r"but are \[\[0, 0, 0, 0, 0, 0, ...\], \[1\]\]"),
        ([[0], [1, 2]], LAW, {}, TypeError, r"integers in \[0, 5\), but are \[\[0\], \[1, 2\]\]"),
        (np.zeros((0, 3)), LAW, {}, ValueError, "`tokens` have to hold at least one draw"),
        ([0], [0.5, 0.4], {}, ValueError, "`probs` have to sum to 1, but sum to 0.9"),
        ([0], [1.5, -0.5], {}, ValueError, r"in \[0, 1\], but that of token 0 is 1.5"),
        ([0], [0.5, 0.8, -0.3], {}, ValueError, "that of token 2 is -0.3"),
        ([0], [0.5, float("nan")], {}, ValueError, "that of token 1 is nan"),
        ([0], [[1.0]], {}, ValueError, "but have shape"),
        ([0], "law", {}, TypeError, "`probs` have to be"),
        ([0], LAW, {"alpha": 2}, ValueError, r"`alpha` has to be a float in \(0, 1\), but is 2"),
        ([0], LAW, {"alpha": 0.0}, ValueError, "`alpha`"),
        ([0], LAW, {"alpha": float("nan")}, ValueError, "`alpha`"),
        ([0], LAW, {"alpha": "1"}, TypeError, "`alpha`"),
        ([0], LAW, {"power": 1.0}, ValueError, "`power`"),
        ([0], LAW, {"alpha": 5e-324}, ValueError, "`alpha` has to be at least 1e-200"),
        ([0], LAW, {"seeds": 3}, TypeError, "`seeds` has to be a mapping of names to values"),
        (
            [0],
            LAW,
            {"alpha": 0.5, "power": 0.5},
            ValueError,
            "`power` has to be more than alpha, 0.5",
        ),
    ],
)
def test_bad_input_is_refused(tokens, probs, settings, error, message):
    with pytest.raises(error, match=message):
        check_draws(tokens, probs, **settings)


@pytest.mark.parametrize(
    "values", [(0.0, 5), (-1, 5), (float("nan"), 5), (float("inf"), 5), (0.1, 1), (0.1, 2.5)]
)
def test_bad_plans_are_refused(values):
    with pytest.raises((TypeError, ValueError), match=r"`effect`|`bins`"):
        required_draws(*values)


def test_a_distribution_is_a_law():
    s = Sampler(top_k=3, seed=1)
    row = [1.0, 3.0, 2.0, 0.0]
    assert check_draws(s.sample(row, n=5000).tokens, s.distribution(row)).ok


def test_plot(tmp_path):
    tokens = drawn(LAW, 20_000)
    check_draws(tokens, LAW).plot(tmp_path / "right.png")
    law = np.full(50, 0.02)
    figure = check_draws(drawn(law, 9000), law).plot()
    assert len(figure.axes) == 1
    assert (tmp_path / "right.png").stat().st_size > 5000


def test_what_is_expected_is_of_the_draws_that_can_be():
    tokens = np.append(np.repeat([0, 1], [900, 100]), np.full(1000, 2))
    result = check_draws(tokens, [0.5, 0.5, 0.0])
    assert {token.expected for token in result.tokens} == {500}
    assert "it is expected 500 times" in " ".join(result.findings)


def test_the_token_that_is_furthest_off_comes_first():
    law = np.array([0.3, 0.3, 0.4])
    result = check_draws(np.full(20_000, 2), law)
    assert all(token.pvalue == 0 for token in result.tokens)
    assert result.tokens[0].token == 2
    assert result.findings[0].startswith("token 2 was drawn 20,000 times")
