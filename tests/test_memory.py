"""Samplers with memory: the state of a text, and what Mirostat and adaptive-p make of it."""

import copy
import json
import math
import pickle
import re
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sampler import (
    XTC,
    AdaptiveP,
    MinP,
    Mirostat,
    Sampler,
    Temperature,
    TopK,
    TopP,
    _core,
    reference,
)
from sampler.memory import State

inf, nan = math.inf, math.nan
ROW = [3.0, 2.0, 1.0, 0.0]
STAGES = [Mirostat(1, 3.0, 0.2), Mirostat(2, 3.0, 0.2), AdaptiveP(0.4, 0.8)]
EVERY = pytest.mark.parametrize("stage", STAGES, ids=repr)
P = np.log([0.4, 0.3, 0.2, 0.1])


def rows_of(seed, batch=4, vocab=300):
    rng = np.random.default_rng(seed)
    return rng.normal(0, rng.uniform(1, 4), (batch, vocab)).astype(np.float32)


def by_hand(stage, values, token, before):
    """The values after a token, from the probabilities before the stage, in long doubles."""
    if isinstance(stage, AdaptiveP):
        total, weight = values
        return before[token] + stage.decay * total, 1 + stage.decay * weight
    kept = reference.mirostat(_state_of(before), stage, len(before), *values)
    p = before[_state_of(before).ids[kept]]
    surprise = -np.log2(before[token] / p.sum())
    return (values[0] - stage.eta * (surprise - stage.tau),)


def _state_of(p):
    with np.errstate(divide="ignore"):
        x = np.log(p.astype(np.float64))
    order = np.argsort(-x, kind="stable")
    order = order[x[order] > -inf]
    return reference.State(order, x[order], reference.tempered(x[order], 1.0))


# ----------------------------------------------------------------------------- what they compute


@pytest.mark.parametrize(
    ("mu", "kept"), [(-1.0, 1), (0.0, 1), (1.73, 1), (1.74, 2), (2.31, 2), (3.3, 3), (3.33, 4)]
)
def test_mirostat_2_keeps_the_tokens_of_little_surprise(mu, kept):
    # The surprises are 1.322, 1.737, 2.322 and 3.322.
    d = Sampler(mirostat=(2, 1.0, 0.1)).distribution(P, state=State(Mirostat(2, 1.0, 0.1), [mu]))
    assert d.ids.tolist() == list(range(kept))


def test_mirostat_1_by_hand():
    # b = ln 4/3, ln 3/2, ln 2; t = ln 2, ln 3/2, ln 4/3.
    b, t = np.log([4 / 3, 3 / 2, 2]), np.log([2, 3 / 2, 4 / 3])
    s = (t * b).sum() / (t * t).sum()
    e, stage = s - 1, Mirostat(1, 1.0, 0.1)
    sampler = Sampler([stage], seed=0)
    for mu in (0.1, 1.0, 1.6, 2.0, 2.5, 3.0):
        k = (e * 2**mu / (1 - 4**-e)) ** (1 / s)
        assert abs(k - round(k)) > 1e-3
        kept = len(sampler.distribution(P, state=State(stage, [mu])))
        assert kept == min(max(int(k), 1), 4), mu


def test_mirostat_1_of_a_zipf_law():
    # Of p ~ 1 / rank the exponent is 1, where e is 0: k = 2^mu / ln V.
    row, stage = -np.log(np.arange(1, 2001)), Mirostat(1)
    s = Sampler([stage], seed=0)
    for mu in (3.0, 5.0, 8.0, 11.0):
        kept = len(s.distribution(row, state=State(stage, [mu])))
        assert kept == math.floor(2**mu / math.log(2000))
    assert len(s.distribution(np.zeros(50), state=State(stage, [0.0]))) == 50  # as flat as can be
    assert len(s.distribution([0.0, -inf], state=State(stage, [9.0]))) == 1


def test_adaptive_p_by_hand():
    stage = AdaptiveP(0.3, 0.5)
    d = Sampler([stage]).distribution(P, state=State(stage, [0.6, 1.2]))  # t = 0.6 - 0.5 = 0.1
    distance = np.abs(np.exp(P) - 0.1) / 0.3
    logits = 5 - 10 * distance**2 / (1 + distance)
    assert d.ids.tolist() == [3, 2, 1, 0]
    assert np.allclose(d.dense(), np.exp(logits) / np.exp(logits).sum(), rtol=1e-8, atol=0)


@pytest.mark.parametrize(("total", "t"), [(0.0, 0.6), (9.0, 0.0), (-5.0, 1.0)])
def test_the_target_stays_a_probability(total, t):
    stage = AdaptiveP(0.3, 0.9)
    x = Sampler([stage]).filter(P, state=State(stage, [total, 1.0]))
    distance = np.abs(np.exp(P) - t) / 0.3
    assert np.allclose(x, 5 - 10 * distance**2 / (1 + distance), atol=1e-9)


@EVERY
@given(seed=st.integers(0, 2**32 - 1), vocab=st.sampled_from([1, 2, 7, 100, 101, 257, 3000]))
def test_core_and_twin_agree(stage, seed, vocab):
    rng = np.random.default_rng(seed)
    (row,) = rows_of(seed, 1, vocab)
    if seed % 3 == 0:
        row[1:][rng.random(vocab - 1) < 0.5] = -inf
    values = (
        rng.choice([rng.uniform(-2, 15), 1e9, -1e9]).item(),
    ) if isinstance(stage, Mirostat) else (rng.uniform(0, 10), rng.uniform(1, 10))  # fmt: skip
    before = [[], [Temperature(rng.uniform(0.2, 3))], [MinP(0.01)], [TopK(40), TopP(0.913)]]
    stages, floor = [*before[seed % 4], stage], int(rng.integers(1, 4))
    state = State(stage, values)
    s = Sampler(stages, seed=seed, min_tokens_to_keep=floor)
    twin = reference.kept(row, stages, min_tokens_to_keep=floor, remembered=values)
    d = s.distribution(row, state=state)
    assert sorted(d.ids) == sorted(twin.ids)
    p = reference.probabilities(twin, vocab)
    assert np.allclose(d.dense(), p.astype(float), rtol=1e-9, atol=1e-300)
    r = s.sample(row, state=state, raw=True, logprobs=3, steps=3)
    wanted = reference.log_mass(row, stages, min_tokens_to_keep=floor, remembered=values)
    assert abs(r.log_mass - wanted) <= 2.0**-31
    without = reference.kept(row, stages[:-1], min_tokens_to_keep=floor)
    if floor == 1:
        after = by_hand(stage, values, r.tokens, reference.probabilities(without, vocab))
        assert np.allclose(r.state.values, np.array(after, float), rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------- the state


@EVERY
@pytest.mark.parametrize("before", [[], [Temperature(1.5), TopP(0.97)], [XTC(0.05, 0.5)]], ids=repr)
def test_every_door_has_the_same_state(stage, before):
    # The one that `sample` returns is that of `score`, of the pure function, and of a lone row.
    s = Sampler([*before, stage], seed=5)
    states = s.initial_state(4)
    alone = [s.initial_state()] * 4
    for step in range(12):
        rows = rows_of(step)
        r = s.sample(rows, state=states, steps=step)
        scored = s.score(rows, r.tokens, state=states, steps=step)
        assert scored.state.tolist() == r.state.tolist()
        assert scored.logprobs.tobytes() == r.logprobs.tobytes()
        for i, row in enumerate(rows):
            one = s.sample(row, state=alone[i], streams=i, steps=step, n=1)
            assert one.tokens.tolist() == [r.tokens[i]]
            d = s.distribution(row, state=alone[i], stream=i, step=step)
            assert alone[i].after(r.tokens[i], d) == one.state == r.state[i]
            assert d.dense()[r.tokens[i]] == pytest.approx(math.exp(r.logprobs[i]))
            alone[i] = one.state
        assert sorted(map(id, states)) != sorted(map(id, r.state))
        states = r.state
        assert r[1].state == states[1]
        assert r[:2].state.tolist() == states[:2].tolist()


@EVERY
def test_same_bits_on_threads_dtypes_and_tiers(stage):
    s, threads = (Sampler([MinP(0.001), stage], seed=3, threads=n) for n in (1, 4))
    rows = rows_of(1, 40, 2000).astype(np.float16)
    states = [State(stage, one.values) for one in s.sample(rows, state=s.initial_state(40)).state]
    want = s.sample(rows, state=states, steps=1, raw=True)
    for other in (
        threads.sample(rows, state=states, steps=1, raw=True),
        s.sample(rows.astype(np.float64), state=np.array(states), steps=1, raw=True),
        s.sample(torch.tensor(rows), state=tuple(states), steps=1, raw=True),
    ):
        assert other.state.tolist() == want.state.tolist()
        assert other.tokens.tolist() == want.tokens.tolist()
        assert np.asarray(other.logprobs).tobytes() == want.logprobs.tobytes()


def test_a_text_goes_back_by_its_earlier_state():
    s = Sampler(mirostat=2, seed=1)
    rows, states, tokens = rows_of(0, 9), [s.initial_state()], []
    for step, row in enumerate(rows):
        r = s.sample(row, state=states[-1], steps=step)
        states.append(r.state)
        tokens.append(r.tokens)
    for step in (5, 2, 8, 0):
        again = s.sample(rows[step], state=states[step], steps=step)
        assert (again.tokens, again.state) == (tokens[step], states[step + 1])


@pytest.mark.parametrize("version", [1, 2])
def test_the_surprise_is_held(version):
    tau = 2.5
    s, rng = Sampler(mirostat=(version, tau, 0.1), seed=0), np.random.default_rng(0)
    state, surprises = s.initial_state(), []
    for _ in range(400):
        r = s.sample(rng.normal(0, 2, 1000), state=state)
        state = r.state
        surprises.append(-r.logprobs / math.log(2))
    assert abs(np.mean(surprises[100:]) - tau) < 0.1


def test_the_probability_is_held():
    for target in (0.25, 0.45):
        s = Sampler([MinP(0.05), AdaptiveP(target, 0.9)], seed=0)
        plain, rng = Sampler(min_p=0.05), np.random.default_rng(0)
        state, seen = s.initial_state(), []
        for _ in range(400):
            row = rng.normal(0, 3, 200)
            r = s.sample(row, state=state)
            state = r.state
            seen.append(math.exp(plain.score(row, r.tokens).logprobs))
        assert abs(np.mean(seen[50:]) - target) < 0.1


@EVERY
def test_rows_that_leave_the_state_as_it_is(stage):
    # Invalid or greedy ones, and tokens that are not kept.
    s = Sampler([Temperature([0.0, 1.0, 1.0]), stage], seed=0, on_invalid="flag")
    state = s.initial_state(3)
    rows = np.array([ROW, ROW, [1.0, nan, 0.0, 0.0]])
    r = s.sample(rows, state=state)
    assert (r.state[0], r.state[2]) == (state[0], state[2])
    assert r.state[1] != state[1]
    assert r.n_kept[0] == 1
    s = Sampler([TopK(2), stage], seed=0)
    state = s.initial_state()
    r = s.score(ROW, 3, state=state)
    assert r.state == state
    assert r.logprobs == -inf
    d = s.distribution(ROW, state=state)
    assert state.after(3, d) == state != state.after(0, d)


def test_settings_per_row():
    s = Sampler(mirostat=([2, 0, 1], [1.0, 2.0, 3.0], 0.1), seed=4)
    states = s.initial_state(3)
    assert states.tolist() == [State(Mirostat(2, 1.0, 0.1)), None, State(Mirostat(1, 3.0, 0.1))]
    row = rows_of(0, 1)[0]
    r = s.sample([row] * 3, state=states)
    assert r.state[1] is None
    for i in (0, 2):
        alone = Sampler([s.stages[-2].at(i)], seed=4).sample(row, state=states[i], streams=i)
        assert alone.tokens == r.tokens[i]
        assert alone.state == r.state[i]
    assert r.tokens[1] == Sampler(seed=4).sample(row, streams=1).tokens
    with pytest.raises(ValueError, match=r"^`state` .* of Mirostat\(2, .* but row 0 has State"):
        s.sample([row] * 3, state=states[::-1])
    with pytest.raises(ValueError, match=r"^`mirostat` is for 3 rows: give `batch` as well$"):
        s.initial_state()
    with pytest.raises(ValueError, match=r"^`mirostat` has to be for 2 rows, but is for 3$"):
        s.initial_state(2)


def test_a_wild_eta_does_not_leave_the_numbers():
    s = Sampler(mirostat=(2, sys.float_info.max, sys.float_info.max), seed=0)
    state = s.initial_state()
    for _ in range(5):
        r = s.sample(ROW, state=state)
        state = r.state
        assert math.isfinite(state.values[0])
        assert 0 <= r.tokens < 4


# ------------------------------------------------------------------------------- a state as a value


@EVERY
def test_a_state_is_a_value(stage):
    first = State(stage)
    s = Sampler([stage], seed=0)
    later = s.sample(rows_of(0)[0], state=first).state
    assert first == State(stage) == s.initial_state() != later
    assert hash(first) == hash(State(stage))
    for state in (first, later):
        for other in (
            pickle.loads(pickle.dumps(state)), copy.copy(state), copy.deepcopy(state),
            State.from_json(state.to_json()), State(state.stage, state.values),
        ):  # fmt: skip
            assert other == state
            assert other.values == state.values
            assert other.stage == stage
    assert first.__eq__(1) is NotImplemented
    for name in ("stage", "values", "other"):
        with pytest.raises(AttributeError, match=r"^a State does not change: Samples.state is the"):
            setattr(first, name, 1)
    with pytest.raises(AttributeError, match="does not change"):
        del first.values
    assert not hasattr(first, "__dict__")
    assert repr(stage) in repr(first)


def test_json_is_versioned():
    text = State(Mirostat(2, 3.0, 0.1)).to_json()
    assert json.loads(text) == {"version": 1, "mirostat": [2, 3.0, 0.1], "mu": 6.0}
    for change in (
        {"version": 2}, {"version": None}, {"version": True}, {"version": 1.0},
        {"mu": None}, {"mu": "6"}, {"mirostat": [2, 3.0]},
        {"mirostat": [0, 3.0, 0.1]}, {"mirostat": 2}, {"more": 1}, {"mirostat": [3, 3.0, 0.1]},
        {"mirostat": [[2], 3.0, 0.1]},
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError)):
            State.from_json(json.dumps({**json.loads(text), **change}))
    for bad in ("[" * 100_000, "[]", "1", "null", "{}", '{"version": 1}', "{"):
        with pytest.raises(ValueError, match=r"`text` has to|Expecting"):
            State.from_json(bad)
    with pytest.raises(ValueError, match="finite"):
        State.from_json(text.replace("6.0", "Infinity"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TopK(3),), "`stage` has to be one with memory, but is a sampler.stages.cuts.TopK"),
        ((Mirostat(),), "`stage` has to be on, and for one row, but is Mirostat(0, 5.0, 0.1)"),
        ((Mirostat([1, 2]),), "`stage` has to be on, and for one row, but is Mirostat([1, 2],"),
        ((Mirostat(2), [1.0, 2.0]), "`values` have to be mu, but are (1.0, 2.0)"),
        ((AdaptiveP(0.5), [1.0]), "`values` have to be sum and weight, but are (1.0,)"),
        ((Mirostat(2), [nan]), "`mu` has to be a finite float, but is nan"),
        (
            (AdaptiveP(0.5), [1.0, 0.0]),
            "`weight` has to be a float in (0, 1.79769e+308], but",
        ),
    ],
)
def test_what_is_no_state(arguments, message):
    with pytest.raises((TypeError, ValueError), match=f"^{re.escape(message)}"):
        State(*arguments)


# ------------------------------------------------------------------------------------- bad input


def test_calls_that_cannot_be():
    s, row = Sampler(mirostat=2, seed=0), np.array(ROW)
    state = s.initial_state()
    missing = (
        "^`mirostat` goes on from what it remembers: write r = s.sample(logits, state=s.initial_sta"
    )
    for call in (
        lambda: s(row), lambda: s([row]), lambda: s.sample(row), lambda: s.score(row, 1),
        lambda: s.filter(row), lambda: s.distribution(row), lambda: s(row, mask=[1]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=missing.replace("(", r"\(")):
            call()
    assert s.step == 0
    several = r"^`mirostat` goes on from one token per row, not from 3: repeat the row, once for"
    with pytest.raises(ValueError, match=several):
        s.sample(row, n=3, state=state)
    with pytest.raises(ValueError, match=several):
        s.score(row, [0, 1, 2], state=state)
    plain = Sampler(seed=0)
    none = r"^`state` is for a sampler with memory, such as Sampler\(mirostat=2\), but this one has"
    for call in (plain.sample, plain.filter, plain.distribution):
        with pytest.raises(ValueError, match=none):
            call(row, state=state)
    with pytest.raises(ValueError, match=r"^`initial_state` is for a sampler with memory"):
        plain.initial_state()
    for bad in (1.5, "2", True):
        with pytest.raises(TypeError, match=r"^`batch` has to be an integer >= 0"):
            s.initial_state(bad)
    with pytest.raises(ValueError, match=r"^`batch` has to be an integer >= 0, but is -1"):
        s.initial_state(-1)


def test_states_that_cannot_be():
    s, row = Sampler(mirostat=(2, 3.0), seed=0), np.array(ROW)
    state = s.initial_state()
    for bad in (1.0, "state", None.__class__, [state], {"mu": 6.0}):
        with pytest.raises(TypeError, match=r"^`state` has to be a State for a lone row, but is"):
            s.sample(row, state=bad)
    for bad in (state, "state", 3.0):
        with pytest.raises(TypeError, match=r"^`state` has to be an array of one State per row"):
            s.sample([row, row], state=bad)
    with pytest.raises(
        TypeError, match=r"^`state` has to hold one State per row, but holds an int"
    ):
        s.sample([row, row], state=[state, 1])
    with pytest.raises(ValueError, match=r"^`state` has to be for 2 rows, but is for 1$"):
        s.sample([row, row], state=[state])
    for other in (Mirostat(1, 3.0), Mirostat(2, 3.1), AdaptiveP(0.5)):
        with pytest.raises(ValueError, match=r"^`state` has to be of Mirostat"):
            s.sample(row, state=State(other))
    assert s.sample(np.empty((0, 4)), state=s.initial_state(0)).state.shape == (0,)
    d = Sampler(seed=0).distribution(row)
    with pytest.raises(ValueError, match=r"^`distribution` .* but is of one with no memory$"):
        state.after(0, d)
    other = Sampler(adaptive_p=0.5, seed=0)
    with pytest.raises(ValueError, match=r"^`distribution` .* but is of one with AdaptiveP\(0.5, "):
        state.after(0, other.distribution(row, state=other.initial_state()))
    with pytest.raises(TypeError, match=r"^`distribution` has to be a Distribution, but is a N"):
        state.after(0, None)
    with pytest.raises(ValueError, match=r"^`token` has to be an integer in \[0, 4\), but is 4$"):
        state.after(4, s.distribution(row, state=state))
    for bad in (1.5, "1", True):
        with pytest.raises(TypeError, match=r"^`token` has to be an integer >= 0"):
            state.after(bad, d)


def test_one_memory_and_last():
    for chain in (
        [Mirostat(2), AdaptiveP(0.5)], [Mirostat(2), TopK(3)], [AdaptiveP(0.5), Temperature(0.5)],
        [Mirostat(2), Mirostat(2)],
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"remembers what was drawn, so in `stages` it"):
            Sampler(chain)
    with pytest.raises(TypeError, match=r"^give either `mirostat` or `adaptive_p`, not both$"):
        Sampler(mirostat=2, adaptive_p=0.5)
    assert Sampler([Mirostat(2), AdaptiveP(None), TopK(0)]).mirostat == (2, 5.0, 0.1)
    assert Sampler(mirostat=2, top_k=40, temperature=0.8).stages[-2] == Mirostat(2)


def test_the_core_checks_what_would_be_unsafe():
    def rows():
        return _core.Rows(np.zeros((2, 4)), _core.KINDS["float64"], False)

    with pytest.raises(ValueError, match="memory"):
        rows().remember(np.zeros(3))
    twice = rows()
    twice.remember(np.zeros(2))
    with pytest.raises(ValueError, match="memory"):
        twice.remember(np.zeros(2))
