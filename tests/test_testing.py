"""Does the kit see wrong samplers, pass right ones, and say what it cannot tell?"""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

import wrong_samplers
from sampler import Sampler, reference
from sampler.testing import (
    assert_sampler,
    check_draws,
    check_independent,
    check_same,
    check_sampler,
    check_sequentially,
    check_streams,
    check_uniform,
    from_generate,
    from_processors,
    required_draws,
)
from sampler.testing._arguments import check_probs, count_tokens
from sampler.testing._draws import judge_counts
from sampler.testing._findings import FarTail, Finding, Kind, Numbers, sentence
from sampler.testing._laws import softmax_law
from sampler.testing._statistics import Bins, chi_square, contingency, pool, two_samples
from wrong_samplers import CASES, RIGHT, examine, named

pytest_plugins = ["sampler.testing.fixtures"]

LAW = np.array([0.4, 0.3, 0.2, 0.0, 0.1])


def drawn(probs, n, seed=0):
    return np.random.default_rng(seed).choice(len(probs), n, p=probs)


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


def test_a_wide_flat_law_is_told_from_a_number_of_draws_on():
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


def test_numbers_of_a_result_are_python_s():
    result = check_sampler(gumbel(1), ROW, draws=2000, tail=False)
    for part in (result, *result.parts.values()):
        assert type(part.pvalue) is float and type(part.detectable_bias) is float
        assert type(part.draws) is int


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
    with pytest.raises(ValueError, match=r"`bias` has to be one that 2\*\*40 draws show"):
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
        ([], LAW, {}, ValueError, "`tokens` have to be at least one draw, but are none"),
        ([0, 5], LAW, {}, ValueError, r"integers in \[0, 5\), but one is 5"),
        ([0, -1], LAW, {}, ValueError, r"integers in \[0, 5\), but one is -1"),
        ([0.5], LAW, {}, TypeError, "`tokens` have to be integers"),
        ([True], LAW, {}, TypeError, "`tokens` have to be integers"),
        ([[0] * 1000, [1]], LAW, {}, TypeError, r"but are \[\[0, 0, 0, 0, 0, 0, ...\], \[1\]\]"),
        ([[0], [1, 2]], LAW, {}, TypeError, r"integers in \[0, 5\), but are \[\[0\], \[1, 2\]\]"),
        (np.zeros((0, 3)), LAW, {}, ValueError, "`tokens` have to be at least one draw"),
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


# --- check_sampler ------------------------------------------------------------------------------

ROW = np.random.default_rng(0).normal(0, 2, 50).astype(np.float32)


def gumbel(seed):
    rng = np.random.default_rng(seed)
    return lambda logits: (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.8, "top_p": 0.9}, {"top_k": 7}, {"min_p": 0.1, "temperature": 2.0}],
)
def test_our_sampler_passes(settings):
    tail = not settings
    result = check_sampler(Sampler(**settings, seed=3), ROW, tail=tail)
    assert result.ok is True, result
    law = Sampler(**settings)
    seeded = check_sampler(
        lambda seed: Sampler(**settings, seed=seed), ROW, law, seeded=True, tail=False
    )
    assert seeded.ok is True, seeded
    assert {"repeat", "seeds", "ties", "float64"} <= set(seeded.parts)
    assert ("tail" in result.parts) == tail


def test_a_plain_function_passes():
    assert check_sampler(gumbel(1), ROW, tail=False).ok is True
    assert check_sampler(gumbel, ROW, seeded=True, tail=False).ok is True


def test_every_row_is_judged():
    rows = np.stack([ROW, ROW[::-1]])
    laws = np.stack([softmax_law(row) for row in rows])
    assert check_sampler(gumbel(1), rows, laws, draws=5000).ok is True
    wrong = check_sampler(gumbel(1), rows, laws[[0, 0]], draws=5000)
    assert wrong.ok is False and all(f.startswith("draws[1]: ") for f in wrong.findings)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_are_kept(dtype):
    seen = set()

    def draw(logits):
        seen.add(logits.dtype.name)
        return gumbel(len(seen))(logits)

    check_sampler(draw, ROW.astype(dtype), draws=300, tail=False)
    assert seen == {"float16", "float32", "float64"}


def test_a_refused_dtype_is_no_fault_but_said():
    draw = gumbel(1)

    def only32(logits):
        if logits.dtype != np.float32:
            raise TypeError("only float32")
        return draw(logits)

    result = check_sampler(only32, ROW, tail=False)
    assert result.ok is True
    assert any(note.startswith("float64, which the sampler refuses") for note in result.notes)
    assert "not checked: float64" in str(result)


def test_an_error_of_a_dtype_that_is_no_refusal_comes_through():
    draw = gumbel(1)

    def breaks(logits):
        if logits.dtype != np.float32:
            raise ValueError("probabilities do not sum to 1")
        return draw(logits)

    with pytest.raises(ValueError, match="do not sum to 1"):
        check_sampler(breaks, ROW, tail=False)

    def not_half(logits):
        if logits.dtype == np.float16:
            raise RuntimeError('"exp" not implemented for Half')
        return draw(logits)

    assert check_sampler(not_half, ROW, tail=False).ok is True


@pytest.mark.parametrize("fault", ["rows", "steps"])
def test_dependence_shows_where_one_token_has_nearly_all_mass(fault):
    logits = np.log(np.float32([0.985, 0.015]))
    right = wrong_samplers.Right(1)
    before = []

    def wrong(batch):
        tokens = right(batch)
        if batch.shape[1] > 2:  # with tokens put in
            return tokens
        if fault == "rows" and np.array_equal(batch[0], batch[1]):
            tokens[1::2] = tokens[::2]
        if fault == "steps":
            if len(before) % 2 and len(before[-1]) == len(tokens):
                tokens = before[-1]
            before.append(tokens)
        return tokens

    assert check_sampler(wrong_samplers.Right(2), logits, tail=False).ok is True
    result = check_sampler(wrong, logits, tail=False)
    assert result.ok is False
    assert any(finding.startswith(fault) for finding in result.findings)


@pytest.mark.parametrize("p", [[0.985, 0.015], [0.5, 0.5], [0.7, 0.1, 0.1, 0.05, 0.05]])
def test_tables_of_pairs_alarm_as_often_as_they_should(p):
    rng = np.random.default_rng(0)
    pvalues = []
    for _ in range(2000):
        a, b = rng.choice(len(p), (2, 3000), p=p)
        table = np.bincount(a * len(p) + b, minlength=len(p) ** 2).reshape(len(p), -1)
        pvalues.append(contingency(table)[1])
    for level in (0.1, 0.01):
        assert np.mean(np.array(pvalues) < level) <= level + 4 * math.sqrt(level / 2000)


def test_too_few_draws_of_a_sampler_are_no_conclusion():
    result = check_sampler(gumbel(1), ROW, draws=4, batch=2, tail=False)
    assert result.ok is None
    assert len(result.findings) == 1 and "too few draws" in result.findings[0]
    with pytest.raises(AssertionError, match="no conclusion"):
        assert_sampler(gumbel(1), ROW, draws=4, batch=2, tail=False)


@pytest.mark.parametrize(
    "draw, error, message",
    [
        (lambda x: 3, ValueError, r"\[0, 50\), of shape \(256,\), but returned shape \(\)"),
        (lambda x: x.argmax(1)[:, None], ValueError, r"returned shape \(256, 1\)"),
        (lambda x: x.max(1), TypeError, "returned float32"),
        (lambda x: [None] * len(x), TypeError, "returned object"),
        (lambda x: x.argmax(1) + 50, ValueError, r"integers in \[0, 50\), .* but returned \d"),
        (lambda x: x.argmax(1) - 51, ValueError, r"integers in \[0, 50\), .* but returned -"),
    ],
)
def test_what_is_no_token_is_refused(draw, error, message):
    with pytest.raises(error, match=message):
        check_sampler(draw, ROW)


@pytest.mark.parametrize(
    "logits, settings, error, message",
    [
        (ROW, {"law": [0.5, 0.5]}, ValueError, r"`law` have to be probabilities of shape \(50,\)"),
        (ROW, {"law": lambda x: [1.0]}, ValueError, "`law` have to be"),
        (ROW, {"law": "softmax"}, TypeError, "`law` have to be"),
        (np.stack([ROW, ROW]), {"law": softmax_law(ROW)}, ValueError, "`law` has to be of the"),
        (ROW, {"alpha": 1.0}, ValueError, "`alpha`"),
        (ROW, {"power": 0}, ValueError, "`power`"),
        (ROW, {"draws": 0}, ValueError, "`draws` has to be an integer >= 1, but is 0"),
        (ROW, {"batch": 1}, ValueError, "`batch` has to be an integer >= 2, but is 1"),
        (ROW, {"seed": -1}, ValueError, "`seed`"),
        ([1, 2], {}, TypeError, "`logits` have to be floats"),
        ([[[1.0]]], {}, ValueError, "`logits` have to be floats of shape"),
        ([1.0, float("nan")], {}, ValueError, "row 0 has nan at token 1"),
        ([-np.inf, -np.inf], {}, ValueError, "row 0 is -inf throughout"),
        (ROW, {"seeded": True}, TypeError, "`sampler` has to make a function of logits"),
    ],
)
def test_bad_arguments_are_refused(logits, settings, error, message):
    with pytest.raises(error, match=message):
        check_sampler(lambda x: 0, logits, **settings)
    with pytest.raises(TypeError, match="`sampler` has to be a function of logits, but is 3"):
        check_sampler(3, ROW)


def test_the_parts_share_alpha():
    result = check_sampler(lambda seed: Sampler(seed=seed), ROW, Sampler(), seeded=True, tail=False)
    parts = list(result.parts.values())
    assert [part.check for part in parts] == list(result.parts)
    assert [part.alpha for part in parts] == [pytest.approx(1e-6 / len(parts))] * len(parts)
    assert result.pvalue == min(1, len(parts) * min(part.pvalue for part in parts))


def test_a_part_fails_where_its_pvalue_is_below_its_alpha():
    """And nowhere else: at alpha = 0.9 that is often."""
    seen = set()
    for seed in range(0, 10_000, 100):
        result = check_sampler(
            lambda seed: Sampler(seed=seed), ROW[:8], alpha=0.9, power=0.99, draws=1000,
            seeded=True, seed=seed, tail=False,
        )  # fmt: skip
        for name, part in result.parts.items():
            assert (part.ok is False) == (part.pvalue < part.alpha), (seed, name, part)
            seen |= {name} if part.ok is False else set()
    assert {"draws", "rows", "steps", "seeds"} <= seen


def shared_noise(seed):
    """One noise vector for all rows; its seeds and calls are independent."""
    rng = np.random.default_rng([seed, 99])
    return lambda logits: (logits + rng.gumbel(size=logits.shape[1])).argmax(axis=1)


def repeated_call(seed):
    """A generator made anew each call; its seeds and rows are independent."""

    def draw(logits):
        rng = np.random.default_rng([seed, 99])
        return (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)

    return draw


@pytest.mark.parametrize("make, part", [(shared_noise, "rows"), (repeated_call, "steps")])
def test_repeats_are_blamed_once(make, part):
    """A regression: copies were taken for further evidence, against seeds too."""
    result = check_sampler(make, ROW, seeded=True, tail=False, seed=1)
    assert result.findings
    assert all(f.startswith(part) and "100 % of pairs agree" in f for f in result.findings), result


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


def test_only_seeds_that_repeat_are_told():
    assert check_sampler(gumbel(1), ROW, draws=2000, tail=False).seeds == {}
    own = check_sampler(Sampler(seed=5), ROW, draws=2000, tail=False)
    assert own.seeds == {"seed": 0, "sampler.seed": 5, "sampler.step": 0}


def test_a_seed_that_does_not_repeat_is_named():
    def unseeded(seed):
        return gumbel(None)

    result = check_sampler(unseeded, ROW, seeded=True, tail=False)
    assert result.findings == [
        "repeat: the same seed gives other tokens the second time, from call 0 on"
    ]


@pytest.mark.parametrize("by_function", [True, False])
@pytest.mark.parametrize(
    "settings, row",
    [
        # Two that become equal, or other than they were, where 128 is added or taken away.
        ({"top_k": 1}, np.array([1.0, 1.0000001], np.float32)),
        ({}, np.array([-2000, -2001], np.float16)),
        ({"temperature": 32.0}, np.array([-65472, -65504, -65504], np.float16)),
        # Equal ones at a cut, which go by id.
        ({"top_k": 2}, np.array([2, 1, 1, 1, 0], np.float32)),
        ({"top_p": 0.5}, np.ones(10, np.float32)),
        # Where 1e-5 is not slight.
        ({"temperature": 1e-4}, 1 + np.array([0, 1e-4, 2e-4, 3e-4], np.float32)),
        # What float16 does not hold.
        ({}, np.array([0, 1, -1e9], np.float32)),
    ],
)
def test_rows_that_a_change_makes_another_pass(settings, row, by_function):
    """Regressions: right samplers failed, or a warning came."""
    s = Sampler(**settings, seed=1)
    law = s if by_function else s.distribution(row)
    for seed in range(4):
        result = check_sampler(s, row, law, draws=3000, tail=False, seed=seed)
        assert result.ok is True, result


def test_a_law_that_goes_by_ids_has_no_relations():
    """Token 2 is never drawn, whatever its logit."""

    def without_2(logits):
        logits = np.array(logits, np.float64)
        logits[..., 2] = -np.inf
        return logits

    draw = gumbel(1)
    result = check_sampler(
        lambda x: draw(without_2(x)), ROW, lambda row: softmax_law(without_2(row)), tail=False,
        relations=False,
    )  # fmt: skip
    assert result.ok is True, result
    assert "shifts, permutation and padding, by relations=False" in result.notes


def clipped(logits):
    """A softmax that is wrong from logits of 80 on."""
    weights = np.exp(np.clip(np.asarray(logits, np.float64), -80, 80))
    return weights / weights.sum(-1, keepdims=True)


def test_a_law_that_shares_the_sampler_s_fault_does_not_hide_it():
    draw = gumbel(1)
    result = check_sampler(lambda x: draw(np.log(clipped(x))), ROW, clipped, tail=False)
    assert result.ok is False
    assert result.findings[0].startswith("shift up: logits + 128 have another law")


def test_a_law_that_fails_of_shifted_rows_is_not_asked_for_them():
    def naive(row):
        weights = np.exp(row.astype(np.float32))
        return weights / weights.sum()

    assert check_sampler(Sampler(seed=1), ROW, naive, tail=False).ok is True


def test_a_sampler_where_a_function_of_a_seed_belongs_is_refused():
    with pytest.raises(TypeError, match="`sampler` has to be a function of a seed with `seeded"):
        check_sampler(Sampler(seed=1), ROW, seeded=True)


def test_logits_next_to_the_end_of_their_dtype():
    """A regression: the neighbours' logits overflowed, and a warning was all that told."""
    row = np.array([65504, 65472, -65504, -np.inf, 65504], np.float16)
    draw = gumbel(1)
    result = check_sampler(lambda x: draw(x.astype(float)), row, draws=2000, tail=False)
    assert result.ok is True, result
    assert any(note.startswith("shifts, since") for note in result.notes)


def test_a_lone_token_that_is_not_drawn_is_named_once():
    result = check_sampler(lambda x: np.zeros(len(x), int), np.zeros(1, np.float32), tail=False)
    assert result.findings[0].startswith("padding: tokens put in at -inf were drawn")
    assert not any("too few" in finding for finding in result.findings)


def test_beside_other_rows_as_many_are_drawn_as_are_planned():
    result = check_sampler(gumbel(1), ROW, draws=4096, tail=False)
    assert {result.parts[name].draws for name in ("draws", "neighbours", "shift up")} == {4096}


def test_the_picture_of_a_sampler_has_a_panel_a_part(tmp_path):
    result = check_sampler(gumbel(1), ROW, tail=False)
    figure = result.plot(tmp_path / "parts.png")
    counted = [part for part in result.parts.values() if part.bins is not None]
    assert len(figure.axes) >= len(counted) == 10
    ax = figure.axes[1]
    ax.clear()
    assert result.parts["draws"].plot(tmp_path / "one.png", ax=ax) is figure
    assert ax.get_ylabel() and (tmp_path / "one.png").stat().st_size > 0
    for nothing, axes in ((result.parts["rows"], None), (result, ax)):
        with pytest.raises(ValueError, match="`plot` has to have bins"):
            nothing.plot(ax=axes)


# --- adapters, assertions, fixtures -------------------------------------------------------------


def test_processors_are_a_sampler():
    from transformers import LogitsProcessorList, TopKLogitsWarper

    processors = LogitsProcessorList([TopKLogitsWarper(5)])
    law = Sampler(top_k=5, ties="all")
    settings = {"draws": 5000, "tail": False}
    assert_sampler(from_processors(processors, seed=1), ROW, law, **settings)
    assert_sampler(
        lambda seed: from_processors(processors, seed=seed), ROW, law, seeded=True, **settings
    )
    wrong = check_sampler(from_processors([], seed=1), ROW, law, **settings)
    assert "its probability is 0" in wrong.findings[0]
    with pytest.raises(TypeError, match="`processors` have to be callables"):
        from_processors([3])


def test_generate_is_a_sampler(model):
    from sampler.hf import generate_kwargs

    row = np.random.default_rng(1).normal(0, 2, 199).astype(np.float32)
    rows = np.tile(row, (4000, 1))
    law = Sampler(top_p=0.9).distribution(row)
    theirs = from_generate(model, {"do_sample": True, "top_k": 0, "top_p": 0.9}, seed=1)
    assert check_draws(theirs(rows), law).ok is True
    # Ours takes a fresh seed with each call of generate_kwargs.
    ours = from_generate(model, lambda: generate_kwargs(Sampler(top_p=0.9), streams=range(4000)))
    assert check_draws(ours(rows), law).ok is True
    # top_k=50 is on unless it is switched off.
    hidden = check_draws(from_generate(model, {"do_sample": True})(rows), softmax_law(row))
    assert hidden.ok is False
    assert any("least likely tokens" in f and "never drawn" in f for f in hidden.findings)


def test_generate_is_checked_with_its_penalties(model):
    """Also what `generate` does ahead of the caller's own processors."""
    row = np.random.default_rng(1).normal(0, 2, 199).astype(np.float32)
    from transformers import GenerationConfig

    *seen, a, b = np.argsort(row)[-4:].tolist()
    penalized = row.copy()
    penalized[seen] /= 2  # the logits are above 0
    penalized[[a, b]] = -np.inf
    settings = {
        "do_sample": True, "top_k": 0, "repetition_penalty": 2.0, "suppress_tokens": [a, b],
        "max_new_tokens": 9, "min_new_tokens": 3,
    }  # fmt: skip
    draw = from_generate(model, settings, seed=1, input_ids=seen)
    tokens = draw(np.tile(row, (4000, 1)))
    assert check_draws(tokens, softmax_law(penalized)).ok is True
    assert check_draws(tokens, softmax_law(row)).ok is False
    assert not model._forward_hooks
    config = GenerationConfig(**settings)
    kept = config.to_dict()
    draw = from_generate(model, {"generation_config": config}, seed=1, input_ids=seen)
    assert np.array_equal(draw(np.tile(row, (4000, 1))), tokens)
    assert config.to_dict() == kept
    for call, message in (
        (lambda: from_generate(3, {}), "`model` has to be a model that can generate, but is 3"),
        (lambda: from_generate(model, None), "`kwargs` has to be a mapping, or a function"),
        (lambda: from_generate(model, {}, input_ids=[0.5]), r"`input_ids` have to be .* \[0.5\]"),
        (lambda: from_generate(model, {}, input_ids=[[1]]), r"`input_ids` .* shape \(1, 1\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
    for name in ("num_beams", "num_return_sequences"):
        with pytest.raises(ValueError, match=f"`{name}` has to be 1, to draw one token a row"):
            from_generate(model, {"do_sample": True, name: 2})(row[None])


@pytest.mark.slow
def test_all_of_generate_is_a_sampler(model):
    row = np.random.default_rng(1).normal(0, 2, 199).astype(np.float32)
    theirs = from_generate(model, {"do_sample": True, "top_k": 0, "top_p": 0.9}, seed=1)
    settings = {"draws": 5000, "ties": False, "tail": False}
    assert_sampler(theirs, row, Sampler(top_p=0.9), **settings)


def test_assertions_read_well(assert_draws, assert_sampler):
    assert assert_draws(drawn(LAW, 5000), LAW).ok
    with pytest.raises(AssertionError) as caught:
        assert_draws([3, 3, 1], LAW, seeds={"seed": 7})
    text = str(caught.value)
    assert text.startswith("check_draws: NOT ok\n- token 3 was drawn 2 times; its probability is 0")
    assert "repeat it with seed=7" in text
    assert_sampler(gumbel(5), ROW, draws=2000, tail=False)


# --- findings -----------------------------------------------------------------------------------

TAIL = "last token ids"
SENTENCES = [
    (Finding(Kind.IMPOSSIBLE, 3, 1), "token 3 was drawn 1 time; its probability is 0"),
    (Finding(Kind.MORE_IMPOSSIBLE, observed=1, size=1),
     "1 more token of probability 0 were drawn, 1 time in all"),
    (Finding(Kind.MORE_IMPOSSIBLE, observed=2000, size=1000),
     "1,000 more tokens of probability 0 were drawn, 2,000 times in all"),
    (Finding(Kind.COUNT, 7, 1024, 659.4, probability=0.64391),
     "token 7 was drawn 1,024 times; of probability 0.6439, it is expected 659 times"),
    (Finding(Kind.COUNT, Numbers((0.5, 1.0)), 0, 9.1234, probability=0.5),
     "numbers in [0.5, 1) were never drawn; of probability 0.5, it is expected 9.12 times"),
    (Finding(Kind.GROUP, TAIL, 0, 100.4, size=1000, probability=0.01),
     "the 1,000 last token ids, 1 % together, were never drawn, where 100 times are expected"),
    (Finding(Kind.GROUP, TAIL, 5, 50, size=1, probability=0.01),
     "the last token id, of 1 %, was drawn 5 times, where 50 times are expected"),
    (Finding(Kind.GROUP, Numbers((0.0, 1 / 3)), 5, 50, size=2, probability=0.01),
     "numbers in [0, 0.3333333), 1 % together, were drawn 5 times, where 50 times are expected"),
    (Finding(Kind.GROUP, Numbers(), 1, 50, size=2, probability=0.01),
     "numbers next to 0 and 1, 1 % together, were drawn 1 time, where 50 times are expected"),
    (Finding(Kind.FIT, observed=1234.4, expected=1000, size=1001, pvalue=1e-9),
     ("the counts do not fit the probabilities: chi-square 1,234 over 1,001 bins, where 1,000 is "
     "usual (p = 1e-09)")),
    (Finding(Kind.DIFFERENT, observed=99.5, expected=3, size=4, pvalue=0.0),
     "the counts differ: chi-square 100 over 4 bins, where 3 is usual (p = 0)"),
    (Finding(Kind.CHANGED, observed=99.5, size=4, pvalue=0.0, change="layout", path=("layout",)),
     "layout: the law changes with the strides: chi-square 100 over 4 bins (p = 0)"),
    (Finding(Kind.OUTSIDE, 1.0, 1000), "1,000 numbers are outside [0, 1), such as 1.0"),
    (Finding(Kind.COARSE, observed=24, expected=53),
     "every number is a multiple of 2**-24: they have 24 bits of 53"),
    (Finding(Kind.EQUAL, observed=1000, size=2000), "50 % of pairs are equal, 1,000 times"),
    (Finding(Kind.CONSTANT, "b"), "all numbers of `b` are equal"),
    (Finding(Kind.CORRELATION, observed=-1.0, expected=0.01614),
     "the correlation is -1.000, where 0.0161 is the most by chance"),
    (Finding(Kind.JOINT, observed=1_500_000.2, expected=225, size=256),
     "256 joint bins: chi-square 1,500,000, where 225 is usual (p = 0)"),
    (Finding(Kind.AGREEING, "seeds s and s + 1", 1.0, 0.125),
     "seeds s and s + 1 are not independent: 100 % of pairs agree, 12.5 % are usual"),
    (Finding(Kind.DEPENDENT, "rows", pvalue=1e-9), "rows are not independent: p = 1e-09"),
    (Finding(Kind.NOT_REPEATED, observed=3),
     "the same seed gives other tokens the second time, from call 3 on"),
    (Finding(Kind.BESIDE, observed=1000, size=2000),
     "under the same seed, 1,000 of 2,000 tokens change with the rows beside them"),
    (Finding(Kind.PADDING, observed=1000, size=2000),
     "tokens put in at -inf were drawn 1,000 times in 2,000"),
    (Finding(Kind.UNREACHABLE, FarTail(2**18, 20.5), size=1000, probability=0.01),
     ("the 262,144 tokens 20.5 nats down, 1 % together, were never drawn in 1,000: they cannot be "
     "reached")),
    (Finding(Kind.WRITES), "it writes into its logits"),
    (Finding(Kind.TOKENS, observed=1, size=1000, path=("v4", "top-k")),
     "v4: top-k: 1 of 1,000 tokens differ from the reference's"),
    (Finding(Kind.UNIFORMS, observed=1000, size=1000),
     "1,000 of 1,000 uniforms differ from those of NumPy's Philox"),
    (Finding(Kind.FEW_DRAWS, observed=1000, expected=25_008),
     ("too few draws for any conclusion: 1,000, where it takes 25,008 to see even a bin that is "
     "never drawn, or drawn twice as often")),
    (Finding(Kind.FEW_DRAWS, observed=4, expected=2**40),
     ("too few draws for any conclusion: 4, where it takes more than 2**40 to see even a bin that "
     "is never drawn, or drawn twice as often")),
    (Finding(Kind.FEW_NUMBERS, observed=1000, expected=2000),
     "too few draws for any conclusion: 1,000, where it takes about 2,000"),
    (Finding(Kind.FEW_BINS, observed=1000),
     "too few draws for any conclusion: 1,000, nearly all of them of one bin"),
    (Finding(Kind.FEW_PAIRS, observed=1000),
     "too few draws for any conclusion: 1,000 pairs"),
]  # fmt: skip


@pytest.mark.parametrize("finding, words", SENTENCES)
def test_the_sentence_of_a_finding(finding, words):
    assert sentence(finding) == words


def test_every_kind_of_finding_has_its_sentence_here():
    assert {finding.kind for finding, _ in SENTENCES} == set(Kind)


@pytest.mark.parametrize(
    "change, words",
    [
        ("neighbours", "a row's law changes with the rows beside it"),
        ("shift up", "logits + 128 have another law"),
        ("shift down", "logits - 128 have another law"),
        ("permutation", "the law changes with the order of the vocabulary"),
        ("padding", "tokens put in at -inf change the law"),
        ("layout", "the law changes with the strides"),
        ("float64", "float64 logits have another law"),
        ("float32", "float32 logits have another law"),
        ("float16", "float16 logits have another law"),
        ("ties", "of logits that are equal, others are kept than the law says"),
    ],
)
def test_the_words_for_a_change(change, words):
    finding = Finding(Kind.IMPOSSIBLE, 3, 2, change=change).within(change)
    assert sentence(finding).startswith(f"{change}: {words}: token 3 was drawn 2 times; ")


def test_a_changed_row_is_compared_with_the_plain_one_where_both_are_wrong():
    result = check_sampler(wrong_samplers.IdsForRanks(), wrong_samplers.ROW, draws=2000, tail=False)
    found = [f for f in result.findings if f.startswith("permutation: ")]
    words = r"the law changes with the order of the vocabulary: chi-square [\d,]+ over \d+ bins \(p"
    assert len(found) == 1 and re.match(f"permutation: {words}", found[0])


# --- it sees ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.wrong.__name__)
def test_a_wrong_sampler_is_named(case):
    """Wrong samplers are seen at the planned draws; the seeds are fixed, so always or never."""
    result = examine(case)
    assert named(case, result), str(result)


@pytest.mark.parametrize("right, law", RIGHT)
@pytest.mark.parametrize("seeded", [False, True])
def test_the_right_samplers_beside_them_pass(right, law, seeded):
    sampler = right if seeded else right(1)
    assert_sampler(sampler, wrong_samplers.ROW, law, seeded=seeded, tail=False)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_tail_is_as_deep_as_the_temperature_makes_it(temperature):
    """Float32 noise does not reach it at any temperature."""

    noise = wrong_samplers.Float32Noise(1)
    noise.temperature = temperature
    law = Sampler(temperature=temperature)
    result = check_sampler(noise, ROW[:9], law, draws=3000)
    assert [f.split(":")[0] for f in result.findings] == ["tail"], result
    assert f"{20.5 * temperature:g} nats down" in result.findings[0]


# --- uniforms and streams -----------------------------------------------------------------------

U = np.random.default_rng(11).random((2, 200_000))


@pytest.mark.parametrize(
    "u, says",
    [
        (0.9998 * U[0], r"numbers in \[0\.99.*, 1\)"),
        (np.clip(U[0], 3e-4, None), r"numbers in \[0, .*\)"),
        (np.floor(U[0] * 2**20) / 2**20, r"multiple of 2\*\*-20: they have 20 bits of 53"),
        (np.append(U[0], 1.0), r"1 numbers are outside \[0, 1\), such as 1.0"),
        (np.append(U[0], np.nan), "such as nan"),
        (U[0] ** 1.05, "the counts do not fit"),
        (np.full(5, 2.0), r"5 numbers are outside \[0, 1\)"),
    ],
)
def test_uniforms_that_are_not(u, says):
    result = check_uniform(u)
    assert result.ok is False and any(re.search(says, f) for f in result.findings), result


def test_uniforms_that_are():
    assert check_uniform(U, seeds={"seed": 11}).ok is True
    float32 = np.random.default_rng(1).random(50_000, dtype=np.float32)
    assert check_uniform(float32, bits=24).ok is True
    assert check_uniform(U[0, :10]).ok is None


def test_ids_however_large_are_compared():
    ids = 2**62 + drawn(LAW, 2000, 1)
    assert check_same(ids, 2**62 + drawn(LAW, 2000, 2)).ok is True
    assert check_same(ids, ids[:1000] + 1).ok is False
    other = (2**62 + drawn(LAW[::-1], 2000, 3)).astype(np.uint64)  # float64 would hold both
    assert check_same(ids, other).ok is False


def test_few_numbers_are_compared_by_their_own_law():
    """A regression: two numbers against two were told apart one time in three."""
    rng = np.random.default_rng(0)
    assert all(check_same(*rng.random((2, n))).ok is None for n in (1, 2, 3, 5) for _ in range(100))
    for n, m in ((12, 12), (8, 300)):
        alarms = sum(
            check_same(rng.random(n), rng.random(m), alpha=0.05).ok is False for _ in range(2000)
        )
        assert alarms < 142  # 100 at most are expected, 142 come once in 30,000 times
    assert check_same(rng.random(200), 2 + rng.random(200)).ok is False


def test_two_samples():
    a, b = drawn(LAW, 20_000, 1), drawn(LAW, 10_000, 2)
    assert check_same(a, b).ok is True
    other = check_same(a, drawn(LAW[::-1], 10_000))
    assert other.ok is False
    assert re.fullmatch(
        r"the counts differ: chi-square [\d,]+ over 5 bins, where 4 is usual \(p = 0\)",
        other.findings[0],
    )
    assert check_same(U[0], U[1]).ok is True
    assert check_same(U[0], U[1] ** 1.1).ok is False
    few = check_same(a[:5], b[:5])
    assert few.ok is None
    assert few.findings == ["too few draws for any conclusion: 5, where it takes about 100"]
    assert check_same(U[0, :5], U[1, :5]).ok is None


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "law, sizes",
    [([0.1] * 10, (20_000, 20_000)), ([1 / 16] * 16, (2000, 50_000)), ([0.9, 0.1], (1000, 1000)),
     ([0.99, 0.01], (2500, 20_000))],
)  # fmt: skip
def test_the_detectable_bias_of_two_samples_is_seen(law, sizes, ordered):
    """In either of them, up or down: of 60 runs at power 0.9 44 or more, but for 1 in 10,000."""
    rng = np.random.default_rng(0)

    def sample(n, probs):
        tokens = rng.choice(len(law), n, p=probs)
        return tokens.astype(float) if ordered else tokens

    result = check_same(*(sample(n, law) for n in sizes), power=0.9)
    assert result.ok is True
    for biased in (0, 1):
        for bias in (result.detectable_bias, -result.detectable_bias):
            p = law[0] * (1 + bias)
            if p >= 1:  # there is no such law
                continue
            laws = [law, law]
            laws[biased] = [p, *(np.array(law[1:]) * (1 - p) / (1 - law[0]))]
            runs = [check_same(*map(sample, sizes, laws)).ok is False for _ in range(60)]
            assert sum(runs) >= 44, (biased, bias)


def test_ordered_values_are_joined_until_there_are_enough():
    table = two_samples(np.array([0, 400, 0]), np.array([2, 4000, 1]), ordered=True)[2]
    assert table.tolist() == [[400], [4003]]
    ones = np.ones(1000, np.int64)
    assert two_samples(ones, ones, ordered=True)[2].shape == (2, 16)
    assert check_same(np.zeros(1000), np.zeros(1000)).findings == [
        "too few draws for any conclusion: 1,000, nearly all of them of one bin"
    ]


@pytest.mark.parametrize(
    "b, says",
    [
        (lambda a, b: a, "100 % of pairs are equal"),
        (lambda a, b: np.where(b < 0.001, a, b), "of pairs are equal"),
        (lambda a, b: 0.98 * b + 0.02 * a, "the correlation is 0.0"),
        (lambda a, b: np.abs(2 * a - 1) % 1, "256 joint bins"),
    ],
)
def test_pairs_that_are_not_independent(b, says):
    result = check_independent(U[0], b(*U))
    assert result.ok is False and any(says in f for f in result.findings), result


def test_pairs_that_are():
    result = check_independent(*U)
    assert result.ok is True and result.detectable_bias < 0.02
    assert check_independent(U[0, :9], U[1, :9]).ok is None


def test_our_keyed_uniforms_pass():
    assert check_streams(reference.uniform, draws=4000, seed=2**63).ok is True


@pytest.mark.parametrize(
    "uniform, says",
    [
        (
            lambda seed, stream, step: np.random.default_rng(seed + stream + step).random(),
            r"neighbours \(stream \+ 1, step \+ 1\): 100 % of pairs are equal",
        ),
        (
            lambda seed, stream, step: np.random.default_rng([seed, stream // 2, step]).random(),
            r"neighbours \(stream \+ 1\): 100 % of pairs are equal",
        ),
        (
            lambda seed, stream, step: np.random.default_rng([seed, stream]).random(),
            "along step: ",
        ),
        (
            lambda seed, stream, step: float(
                np.random.default_rng([seed, stream, step]).random(dtype=np.float32)
            ),
            r"along seed: every number is a multiple of 2\*\*-24",
        ),
        (
            lambda seed, stream, step: (step * 0.6180339887498949 + seed / 3 + stream / 7) % 1,
            r"neighbours \(step \+ 1\)",
        ),
    ],
)
def test_streams_that_overlap(uniform, says):
    result = check_streams(uniform, draws=3000, axes=("seed", "stream", "step"))
    assert result.ok is False and any(re.search(says, f) for f in result.findings), result


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: check_uniform([]), ValueError, "`u` have to be at least one number"),
        (lambda: check_uniform([1, 2]), TypeError, "`u` have to be floats"),
        (
            lambda: check_uniform([[0.1], [0.2, 0.3]]),
            TypeError,
            "`u` have to be floats, but are ragged",
        ),
        (
            lambda: check_same([[1], [2, 3]], [1, 2]),
            TypeError,
            r"`a` .*, but are \[\[1\], \[2, 3\]\]",
        ),
        (lambda: check_uniform(U, bits=54), ValueError, "`bits`"),
        (lambda: check_uniform(U, alpha=0), ValueError, "`alpha`"),
        (
            lambda: check_same([1, 2], [0.5]),
            TypeError,
            "`a` and `b` have to be integers, or floats",
        ),
        (lambda: check_same([], [1]), ValueError, "`a` have to be at least one"),
        (lambda: check_same([1], [-1]), ValueError, "one is -1"),
        (lambda: check_same(["a"], ["b"]), TypeError, "`a` and `b` have to be"),
        (lambda: check_independent([0.5], [0.5, 0.1]), ValueError, "of one shape"),
        (lambda: check_independent([0.5], [1.0]), ValueError, r"`b` has to be in \[0, 1\)"),
        (lambda: check_streams(reference.uniform, draws=0), ValueError, "`draws`"),
        (lambda: check_streams(reference.uniform, axes=()), ValueError, "`axes`"),
        (lambda: check_streams(lambda **k: 1), TypeError, "`uniform` have to be floats"),
    ],
)
def test_bad_uniforms_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- both error rates, over many runs -----------------------------------------------------------

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
    """Why Pearson's statistic, why 25 a bin, why Lancaster's decomposition.

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

    # Two draws a bin: G alarms five times as often as it should, Pearson twice.
    _, pearson, g = both([1 / 50] * 50, 100)
    print(f"50 bins of 2 draws: Pearson {pearson}, G {g} where 100 are expected")
    assert g > 400 and pearson > 140
    # A quarter of a draw in most bins: so does Pearson.
    _, pearson, g = both([0.9] + [0.1 / 40] * 40, 100)
    print(f"40 bins of 1/4 draw: Pearson {pearson}, G {g}")
    assert pearson > 400
    # 25 draws in small bins beside a large one: Pearson alone is still off; ours is not.
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
    print(f"4 bins of 25 draws beside one of 900: Pearson {pearson}, Lancaster {ours}")
    assert pearson > 140 > ours


def test_a_single_call_is_no_conclusion():
    """A regression: `check_sampler` broke where the draws fit one call, which has no next one."""
    result = check_sampler(Sampler(seed=0), np.zeros(4, np.float32), draws=10, tail=False)
    assert result.ok is None
    assert result.parts["steps"].findings == ["too few draws for any conclusion: 0 pairs"]


def test_streams_from_the_last_seed():
    """A regression: the neighbour of the last seed was 2**64."""
    assert check_streams(reference.uniform, draws=2000, seed=2**64 - 1).ok


def test_every_part_of_the_key_starts_at_the_seed():
    keys = []

    def uniform(**key):
        keys.append(key)
        return reference.uniform(**key)

    check_streams(uniform, draws=10, seed=1000)
    for axis in ("seed", "stream", "step", "draw", "lane"):
        assert {key[axis] for key in keys} == set(range(1000, 1010))


def test_pairs_alarm_as_rarely_as_alpha():
    """2,000 runs at alpha = 0.1: 200 at most, 256 or more once in 30,000 times; not far less."""
    rng = np.random.default_rng(0)
    pvalues = np.array(
        [check_independent(*rng.random((2, 500)), alpha=0.1).pvalue for _ in range(2000)]
    )
    assert 60 < np.sum(pvalues < 0.1) < 256


def test_only_its_adapters_know_torch():
    code = """
import sys, sampler.testing, sampler.testing._selftest
sampler.testing.check_sampler(sampler.Sampler(seed=1), [[0.0, 1.0]], draws=2, tail=False)
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", ["scipy", "matplotlib", "tqdm"])
def test_a_missing_package_is_named(package):
    code = f"""
import sys
sys.modules[{package!r}] = None
from sampler import testing
result = testing.check_draws([0, 1] * 500, [0.5, 0.5])
result.plot()
testing.check_sequentially(lambda n: [0] * n, [0.5, 0.5], progress=True)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert package in last
    assert last.endswith('pip install "token-sampler[testing]"')


def test_samples_that_hold_nan_or_differ_in_shape_are_refused():
    u = np.random.default_rng(0).random((100, 100))
    with pytest.raises(ValueError, match="`b` has to be numbers, but holds nan"):
        check_same(u, np.full(10_000, np.nan))
    with pytest.raises(ValueError, match="have to be of one shape"):
        check_independent(u, u.reshape(50, 200))
    for number in (0.1, 0.5, 0.7):  # the mean of many 0.1 is not 0.1
        constant = check_independent(u, np.full((100, 100), number))
        assert constant.findings == ["all numbers of `b` are equal"]
        assert constant.ok is False and constant.pvalue == 0
