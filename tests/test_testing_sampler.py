"""`check_sampler`: every wrong sampler is named, right ones pass."""

import io
import re
import sys

import numpy as np
import pytest

import wrong_samplers
from right_samplers import ROW, gumbel
from sampler import Sampler
from sampler.testing import assert_sampler, check_sampler
from sampler.testing._laws import softmax_law
from wrong_samplers import CASES, RIGHT, examine, named


def test_numbers_of_a_result_are_python_s():
    result = check_sampler(gumbel(1), ROW, draws=2000, tail=False)
    for part in (result, *result.parts.values()):
        assert type(part.pvalue) is float and type(part.detectable_bias) is float
        assert type(part.draws) is int


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
        (
            np.stack([ROW, ROW]),
            {"law": softmax_law(ROW)},
            ValueError,
            "`law` has to have the shape",
        ),
        (ROW, {"alpha": 1.0}, ValueError, "`alpha`"),
        (ROW, {"power": 0}, ValueError, "`power`"),
        (ROW, {"draws": 0}, ValueError, "`draws` has to be an integer >= 1, but is 0"),
        (ROW, {"batch": 1}, ValueError, "`batch` has to be an integer >= 2, but is 1"),
        (ROW, {"seed": -1}, ValueError, "`seed`"),
        ([1, 2], {}, TypeError, "`logits` have to be floats"),
        ([[[1.0]]], {}, ValueError, "`logits` have to be floats of shape"),
        ([1.0, float("nan")], {}, ValueError, "row 0 has nan at token 1"),
        ([-np.inf, -np.inf], {}, ValueError, "row 0 is -inf throughout"),
        (ROW, {"seeded": True}, TypeError, "`sampler` has to return a function of logits"),
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
    """A new generator in each call; its seeds and rows are independent."""

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


def test_only_seeds_that_repeat_are_reported():
    assert check_sampler(gumbel(1), ROW, draws=2000, tail=False).seeds == {}
    own = check_sampler(Sampler(seed=5), ROW, draws=2000, tail=False)
    assert own.seeds == {"seed": 0, "sampler.seed": 5, "sampler.step": 0}


def test_a_seed_that_does_not_repeat_is_named():
    def unseeded(seed):
        return gumbel(None)

    result = check_sampler(unseeded, ROW, seeded=True, tail=False)
    assert result.findings == [
        "repeat: the same seed gives different tokens the second time, from call 0 on"
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
    assert result.findings[0].startswith("shift up: adding 128 to all logits changes the law")


def test_a_law_that_fails_of_shifted_rows_is_not_asked_for_them():
    def naive(row):
        weights = np.exp(row.astype(np.float32))
        return weights / weights.sum()

    assert check_sampler(Sampler(seed=1), ROW, naive, tail=False).ok is True


def test_a_sampler_where_a_function_of_a_seed_belongs_is_refused():
    with pytest.raises(TypeError, match="`sampler` has to be a function of a seed with `seeded"):
        check_sampler(Sampler(seed=1), ROW, seeded=True)


def test_logits_next_to_the_end_of_their_dtype():
    """A regression: the neighbours' logits overflowed, and only a warning showed it."""
    row = np.array([65504, 65472, -65504, -np.inf, 65504], np.float16)
    draw = gumbel(1)
    result = check_sampler(lambda x: draw(x.astype(float)), row, draws=2000, tail=False)
    assert result.ok is True, result
    assert any(note.startswith("shifts, since") for note in result.notes)


def test_a_lone_token_that_is_not_drawn_is_named_once():
    result = check_sampler(lambda x: np.zeros(len(x), int), np.zeros(1, np.float32), tail=False)
    assert result.findings[0].startswith("padding: tokens put in at -inf were drawn")
    assert not any("too few" in finding for finding in result.findings)


def test_next_to_other_rows_as_many_are_drawn_as_are_planned():
    result = check_sampler(gumbel(1), ROW, draws=4096, tail=False)
    assert {result.parts[name].draws for name in ("draws", "neighbours", "shift up")} == {4096}


def test_the_picture_of_a_sampler_has_one_panel_per_part(tmp_path):
    result = check_sampler(gumbel(1), ROW, tail=False)
    figure = result.plot(tmp_path / "parts.png")
    assert len(figure.legends) == 1  # under the panels, not on a band of one
    assert not any(ax.get_legend() for ax in figure.axes)
    counted = [part for part in result.parts.values() if part.bins is not None]
    assert len(figure.axes) >= len(counted) == 10
    ax = figure.axes[1]
    ax.clear()
    assert result.parts["draws"].plot(tmp_path / "one.png", ax=ax) is figure
    assert ax.get_ylabel() and (tmp_path / "one.png").stat().st_size > 0
    for nothing, axes in ((result.parts["rows"], None), (result, ax)):
        with pytest.raises(ValueError, match="there is nothing to plot"):
            nothing.plot(ax=axes)


def test_a_changed_row_is_compared_with_the_plain_one_where_both_are_wrong():
    result = check_sampler(wrong_samplers.IdsForRanks(), wrong_samplers.ROW, draws=2000, tail=False)
    found = [f for f in result.findings if f.startswith("permutation: ")]
    words = r"the law changes with the order of the vocabulary: chi-square [\d,]+ over \d+ bins \(p"
    assert len(found) == 1 and re.match(f"permutation: {words}", found[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.wrong.__name__)
def test_a_wrong_sampler_is_named(case):
    """Wrong samplers are seen at the planned draws; the seeds are fixed, so always or never."""
    result = examine(case)
    assert named(case, result), str(result)


@pytest.mark.parametrize("right, law", RIGHT)
@pytest.mark.parametrize("seeded", [False, True])
def test_the_right_samplers_next_to_them_pass(right, law, seeded):
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


def test_a_single_call_is_no_conclusion():
    """A regression: `check_sampler` broke where the draws fit one call, which has no next one."""
    result = check_sampler(Sampler(seed=0), np.zeros(4, np.float32), draws=10, tail=False)
    assert result.ok is None
    assert result.parts["steps"].findings == ["too few draws for any conclusion: 0 pairs"]


@pytest.mark.parametrize(
    ("terminal", "progress", "shown"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_progress_is_shown_in_a_terminal_without_being_asked(
    terminal, progress, shown, monkeypatch
):
    class Stderr(io.StringIO):
        def isatty(self):
            return terminal

    stderr = Stderr()
    monkeypatch.setattr(sys, "stderr", stderr)
    check_sampler(Sampler(seed=7), ROW, draws=1000, tail=False, progress=progress)
    assert ("draws" in stderr.getvalue()) is shown
    assert shown or not stderr.getvalue()
