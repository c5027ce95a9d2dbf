"""llama.cpp's published cases (tests/data/llama_cpp.json), on the twin and on a Sampler."""

import json
from pathlib import Path

import numpy as np
import pytest

from law import BAND, prefix_mass
from sampler import (
    DRY,
    XTC,
    DynamicTemperature,
    FrequencyPenalty,
    MinP,
    PLess,
    PresencePenalty,
    RepetitionPenalty,
    Sampler,
    Temperature,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
    reference,
)
from sampler.history import History

CASES = {
    case["id"]: case
    for case in json.loads((Path(__file__).parent / "data" / "llama_cpp.json").read_text())["cases"]
}
EDITS = [name for name, case in CASES.items() if "last_tokens" in case]
SMALL = [name for name in CASES if CASES[name]["sampler"] != "chain" and name not in EDITS]
CHAINS = [name for name, case in CASES.items() if case["sampler"] == "chain"]

STAGES = {
    "temp": Temperature,
    # The range is around the temperature, and never below 0.
    "temp_ext": lambda t, delta, exponent: DynamicTemperature(
        max(t - delta, 0), t + delta, exponent
    ),
    "top_k": TopK,
    "top_p": TopP,
    "min_p": MinP,
    "typical": TypicalP,
    "top_n_sigma": TopNSigma,
    "p_less": lambda: PLess(True),
    "xtc": lambda probability, threshold: XTC(threshold, probability),
}

# Cases that do not have to pass as published, with the reason.
IN_THE_BAND = {
    "topp_0.7": "0.4 + 0.3 is 0.7, so after rounding both two and three tokens reach it",
}
NOT_EXPRESSED = {
    "minp_1.05": "no token is more likely than the likeliest, so `min_p` ends at 1",
}


def stage_of(case):
    return STAGES[case["sampler"]](*case["params"].values())


def both(row, stages):
    """What the twin and a Sampler keep, at a step where the coin falls, if there is one."""
    coins = [reference.uniform(3, step=0, lane=1)] if any(s.has_coin for s in stages) else []
    assert all(coin < 0.99 for coin in coins)
    state = reference.kept(row, stages, coins=coins)
    d = Sampler(stages, seed=3).distribution(row, step=0)
    yield state.ids, reference.probabilities(state, len(row)).astype(float)
    yield d.ids, d.dense()


@pytest.mark.parametrize("name", SMALL)
def test_a_single_stage(name):
    case = CASES[name]
    if name in NOT_EXPRESSED:
        with pytest.raises(ValueError, match=r"has to be a float in \[0, 1\]"):
            stage_of(case)
        return
    row = np.log(case["probs_in"])
    expected = {int(token): p for token, p in case["probs_expected"].items()}
    total = sum(expected.values())  # XTC and typical leave them as they were
    for ids, probs in both(row, [stage_of(case)]):
        if name in IN_THE_BAND and set(ids.tolist()) != set(expected):
            mass = prefix_mass(np.sort(row)[::-1])
            assert abs(mass[len(expected) - 1] - case["params"]["p"]) < BAND
            continue
        assert set(ids.tolist()) == set(expected)
        for token, p in expected.items():
            assert probs[token] == pytest.approx(p / total, abs=1e-5)


def edits_of(case):
    """Their window counts prompt and output; their penalties come in one stage."""
    params = case["params"]
    window = params["penalty_last_n"]
    if case["sampler"] == "dry":
        shape = params["multiplier"], params["base"], params["allowed_length"]
        return [DRY(*shape, window, True, params["sequence_breakers"])]
    return [
        RepetitionPenalty(params["repeat"], window, True),
        FrequencyPenalty(params["frequency"], window, True),
        PresencePenalty(params["presence"], window, True),
    ]


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_by_the_text_so_far(name):
    case = CASES[name]
    row, tokens = np.log(case["probs_in"]), case["last_tokens"]
    expected = [case["probs_expected"].get(str(token), 0.0) for token in range(len(row))]
    for prompt in range(len(tokens) + 1):
        texts = tokens[:prompt], tokens[prompt:]
        twin = reference.kept(row, edits_of(case), history=texts)
        d = Sampler(edits_of(case), seed=3).distribution(row, history=History(*texts))
        for probs in (reference.probabilities(twin, len(row)).astype(float), d.dense()):
            assert probs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("breakers", "length"),
    [((), 3), ([5], 2), ([[5]], 2), ([[5, 0]], 1), ([[0, 1]], 0), ([[0, 5]], 3), ([2], None)],
)
def test_a_breaker_ends_a_repetition(breakers, length):
    # No published case has one that does. The last three tokens stand earlier, before token 2.
    text = [5, 0, 1, 2, 5, 0, 1]
    stages = [DRY(3.0, 2.0, 1, None, True, breakers)]
    penalty = 3.0 * 2.0 ** (length - 1) if length else 0.0
    expected = np.exp([0, 0, -penalty, 0, 0, 0]) / np.exp([0, 0, -penalty, 0, 0, 0]).sum()
    twin = reference.kept(np.zeros(6), stages, history=((), text))
    assert reference.probabilities(twin, 6).astype(float) == pytest.approx(expected)
    d = Sampler(stages, seed=3).distribution(np.zeros(6), history=History(output=text))
    assert d.dense() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain(name, dtype):
    case = CASES[name]
    with np.errstate(divide="ignore"):
        row = np.log(np.arange(10_000)).astype(dtype)
    stages = []
    for setting, (first, last) in zip(case["sequence"], case["kept"], strict=True):
        stages.append(STAGES[setting](case["params"][setting]))
        # Token 0, at -inf, counts for llama.cpp where nothing is removed, and never for us.
        expected = list(range(max(first, 1), last + 1))
        for ids, _ in both(row, stages):
            assert sorted(ids.tolist()) == expected


def test_every_case_is_there_and_every_exception_is_one():
    assert len(SMALL) == 32 and len(CHAINS) == 24 and len(EDITS) == 11
    assert IN_THE_BAND.keys() | NOT_EXPRESSED.keys() <= CASES.keys()


def test_a_threshold_between_the_first_two():
    with np.errstate(divide="ignore"):
        row = np.log(np.arange(10_000))
    assert Sampler(min_p=9998.9 / 9999, seed=0).distribution(row).ids.tolist() == [9999]
