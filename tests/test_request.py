"""Requests: each text is the one that it would be alone, whatever is drawn with it."""

import copy
import json
import pickle
import random

import numpy as np
import pytest
import torch

from sampler import RepetitionPenalty, Sampler, Temperature, TopK, TopP
from sampler.history import History
from sampler.request import Request, next_samples, next_tokens
from sampler.schedule import Schedule

inf, nan = np.inf, np.nan
VOCAB = 40
SETTINGS = [
    {},
    {"temperature": 0},
    {"top_p": 0.9, "temperature": 0.8},
    {"top_k": 5, "repetition_penalty": 1.3},
    {"min_p": 0.1, "temperature": 2.0, "frequency_penalty": 0.5},
    {"typical_p": 0.5, "presence_penalty": (0.4, 3)},
    {"xtc": (0.05, 0.5)},
    {"dry": 0.8},
    {"dynamic_temperature": (0.5, 1.5, 1.0), "top_p": 0.9},
    {"logit_bias": {3: 2.0, 5: -inf}},
    {"suppress_tokens": [1, 2, 3], "smoothing": 0.2},
    {"no_repeat_ngram_size": 2},
    {"adaptive_p": 0.4, "min_p": 0.01},
    {"mirostat": 2, "temperature": 0.8},
    {"stages": [TopK(9), TopP(0.9), Temperature(0.7)]},
    {"stages": [RepetitionPenalty(1.2), Temperature(0.7), TopK(9)], "ties": "all"},
]


def sampler(i):
    return Sampler(seed=1000 + i // 3, **SETTINGS[i % len(SETTINGS)])


def mask_of(i):
    return None if i % 3 else np.arange(VOCAB) % 4 != i % 4


def row_of(i, n):
    """The logits after n tokens of text i: any function of these."""
    return np.random.default_rng([i, n]).normal(0, 3, VOCAB).astype(np.float32)


def alone(i, prompt, length):
    """The text of request i, by calls of its sampler."""
    s, history = sampler(i), History(prompt)
    state = s.initial_state() if s.mirostat or s.adaptive_p else None
    for n in range(length):
        r = s.sample(
            row_of(i, n), history=history, state=state, mask=mask_of(i), streams=[i],
            steps=[len(history)], draws=[i % 2],
        )  # fmt: skip
        history.accept(r.tokens)
        state = r.state
    return history.output


def test_a_thousand_requests_that_join_and_leave():
    """The soak test: at any time some 40 run together, each with its own settings."""
    chance = random.Random(0)
    texts = {i: ([i % VOCAB, 3] * (i % 3), chance.randint(1, 12)) for i in range(1000)}
    waiting, running, done = list(range(1000)), {}, {}
    while waiting or running:
        while waiting and (len(running) < 20 or chance.random() < 0.9) and len(running) < 64:
            i = waiting.pop()
            prompt, length = texts[i]
            running[i] = Request(
                sampler(i), prompt, stream=i, draw=i % 2, mask=mask_of(i), max_new_tokens=length
            )
        order = list(running)
        chance.shuffle(order)
        rows = np.stack([row_of(i, len(running[i].output)) for i in order])
        drawn = next_tokens([running[i] for i in order], rows)
        assert drawn.tolist() == [running[i].output[-1] for i in order]
        for i in order:
            if running[i].is_over:
                done[i] = running.pop(i).output
            elif chance.random() < 0.05:  # and some are written down meanwhile
                running[i] = Request.from_json(running[i].to_json())
            elif chance.random() < 0.05:
                running[i].rollback(chance.randint(0, len(running[i].output)))
    assert done == {i: alone(i, *texts[i]) for i in range(1000)}


@pytest.mark.parametrize("i", range(len(SETTINGS)))
def test_one_request_is_its_sampler(i):
    r = Request(sampler(i), [1, 2], stream=i, draw=i % 2, mask=mask_of(i))
    assert [r.next(row_of(i, n)) for n in range(8)] == r.output == alone(i, [1, 2], 8)
    copy = Request.from_json(r.to_json())
    assert copy.to_json() == r.to_json() and copy.output == r.output
    r.rollback(5)
    assert [r.next(row_of(i, n)) for n in range(3, 8)] == copy.output[3:]
    assert r.to_json() == copy.to_json()
    assert copy.next(row_of(i, 8)) == r.next(row_of(i, 8))


def test_samples_are_those_of_the_sampler():
    requests = [Request(sampler(i), [1, 2], stream=i, mask=mask_of(i)) for i in range(16)]
    rows = np.stack([row_of(i, 0) for i in range(16)])
    copies = [one.fork() for one in requests]
    found = next_samples(requests, rows, logprobs=3, raw=True, keep=True)
    for i, fork in enumerate(copies):
        s = sampler(i)
        state = fork.state
        own = s.sample(
            rows[i], history=History([1, 2]), state=state, mask=mask_of(i), streams=[i],
            steps=[2], logprobs=3, raw=True, keep=True,
        )  # fmt: skip
        for name in ("tokens", "logprobs", "ranks", "n_kept", "entropy", "log_mass", "raw_logprobs",
                     "raw_top_ids", "top_logprobs", "kept_ids", "kept_indptr"):  # fmt: skip
            assert np.array_equal(getattr(found[i], name), getattr(own, name)), (i, name)
        assert requests[i].state == own.state
        again = fork.sample(rows[i], logprobs=3, raw=True, keep=True)
        assert again.logprobs == own.logprobs and fork.output == requests[i].output


def test_forks_draw_the_samples_of_a_row():
    s, row = Sampler(temperature=2.0, seed=5), row_of(0, 0)
    forks = [Request(s, stream=4).fork(draw=i) for i in range(6)]
    drawn = next_tokens(forks, np.stack([row] * 6))
    assert drawn.tolist() == s.sample(row, n=6, streams=[4], steps=[0]).tokens.tolist()
    assert forks[0].fork(stream=9).stream == 9 and forks[0].stream == 4


def test_tensors_for_a_tensor():
    requests = [Request(sampler(i), stream=i) for i in range(3)]
    rows = torch.from_numpy(np.stack([row_of(i, 0) for i in range(3)]))
    assert isinstance(next_tokens(requests, rows), torch.Tensor)
    assert isinstance(next_samples(requests, rows.bfloat16()).logprobs, torch.Tensor)
    assert next_tokens([], rows[:0]).shape == (0,)


# ------------------------------------------------------------------------------ bad input


def test_a_bad_row_fails_alone():
    requests = [Request(sampler(i), [1, 2], stream=i) for i in range(16)]
    copies = [one.fork() for one in requests]
    rows = np.stack([row_of(i, 0) for i in range(16)])
    whole = next_tokens(copies, rows)
    rows[4, 7] = nan
    rows[9] = -inf
    rows[11, 3] = inf
    requests[14].mask = []  # no token
    drawn = next_tokens(requests, rows)
    failed = [4, 9, 11, 14]
    rest = [i for i in range(16) if i not in failed]
    assert drawn[failed].tolist() == [-1] * 4 and np.array_equal(drawn[rest], whole[rest])
    for i in rest:
        assert requests[i].error is None and requests[i].to_json() == copies[i].to_json()
    messages = [str(requests[i].error) for i in failed]
    assert "row 4 at step 2 has nan at token 7" in messages[0]
    assert "row 9 at step 2 is -inf throughout" in messages[1]
    assert "row 11 at step 2 has inf at token 3" in messages[2]
    assert "leave no token in row 14" in messages[3]
    assert all(requests[i].is_over and requests[i].output == [] for i in failed)
    with pytest.raises(
        ValueError, match="the request of row 4 has failed: `logits` have to be finite"
    ):
        next_tokens(requests, rows)
    requests[4].rollback(0)  # as it was before
    assert requests[4].next(row_of(4, 0)) == whole[4]


def test_samples_of_a_bad_row_are_blank():
    requests = [Request(Sampler(seed=1), stream=i) for i in range(3)]
    requests[1] = Request(Sampler(logit_bias={VOCAB: 1.0}))
    rows = np.stack([row_of(i, 0) for i in range(3)])
    rows[2, 5] = nan
    r = next_samples(requests, rows, logprobs=2, keep=True)
    assert r.tokens[1:].tolist() == [-1, -1] and np.isnan(r.logprobs[1:]).all()
    assert r.tokens[0] >= 0 and np.diff(r.kept_indptr).tolist() == [VOCAB, 0, 0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Request(Sampler(logit_bias={VOCAB: 1.0})), r"logit_bias.*ids in \[0, 40\)"),
        (lambda: Request(Sampler(xtc=(0.1, 0.5, [99]))), r"xtc.protected.*ids in \[0, 40\)"),
        (lambda: Request(Sampler(seed=1), [VOCAB]), r"the text has to hold ids in \[0, 40\)"),
        (lambda: Request(Sampler(seed=1), mask=[VOCAB]), r"mask.*ids in \[0, 40\)"),
        (lambda: Request(Sampler(seed=1), mask=np.ones(7, bool)), "the shape of the logits"),
    ],
)
def test_what_a_request_asks_for_fails_alone(make, message):
    other = Request(Sampler(seed=1), stream=3)
    one = make()
    with pytest.raises(ValueError, match=message):
        one.next(row_of(0, 0))
    assert one.error is None  # it raised instead
    drawn = next_tokens([one, other], np.stack([row_of(0, 0)] * 2))
    assert drawn[0] == -1 and drawn[1] == Sampler(seed=1).sample(row_of(0, 0), streams=[3]).tokens
    with pytest.raises(ValueError, match=message):
        raise one.error


def test_misuse_moves_nothing():
    s = Sampler(seed=1)
    rows = np.stack([row_of(i, 0) for i in range(2)])
    fine, over = Request(s), Request(s, eos_token_id=2, max_new_tokens=1)
    over.next(rows[0])
    for pair, error, message in (
        ([fine, over], ValueError, "the request of row 1 is over"),
        ([fine, fine], ValueError, "one is there twice"),
        ([fine], ValueError, "for 2 rows, but is for 1"),
        ([fine, s], TypeError, "have to be Requests, but one is a sampler.api.Sampler"),
    ):
        with pytest.raises(error, match=message):
            next_tokens(pair, rows)
        assert fine.output == []
    with pytest.raises(ValueError, match="the request is over"):
        over.next(rows[0])
    with pytest.raises(ValueError, match="the request is over"):
        over.accept(3)
    with pytest.raises(ValueError, match="`n` has to be an integer in"):
        over.rollback(2)
    over.rollback(1)
    assert not over.is_over
    with pytest.raises(ValueError, match="2-D"):
        next_tokens([fine], rows[0])
    with pytest.raises(ValueError, match="1-D"):
        fine.next(rows)


def test_another_vocabulary_fails_alone():
    s = Sampler(seed=1)
    one, other = Request(s), Request(s)
    one.next([1.0, 2.0])
    drawn = next_tokens([one, other], np.stack([row_of(0, 0)] * 2))
    assert drawn.tolist() == [-1, s.sample(row_of(0, 0), steps=0).tokens]
    assert "of 2 tokens, as the last ones of this request were, but are of 40" in str(one.error)
    with pytest.raises(ValueError, match="of 2 tokens, as the last ones"):
        Request.from_json(one.to_json()).next(row_of(0, 0))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("x",), TypeError, "`sampler` has to be a Sampler"),
        ((Sampler(temperature=[1, 2]),), ValueError, "settings per row"),
        ((Sampler(), "ab"), TypeError, "`prompt`"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Request(*arguments)


@pytest.mark.parametrize("name", ["stream", "draw", "max_new_tokens", "eos_token_id"])
@pytest.mark.parametrize("value", [-1, 0.5, "1", True])
def test_bad_numbers(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        Request(Sampler(), **{name: value})


# ------------------------------------------------------------------------------ the end


def test_the_end():
    r = Request(Sampler(temperature=0), eos_token_id=[2, 3])
    assert (r.next([9.0, 1.0, 2.0, 0.0]), r.is_over) == (0, False)
    assert (r.next([1.0, 1.0, 2.0, 0.0]), r.is_over) == (2, True)
    assert Request(Sampler(), max_new_tokens=0).is_over
    assert not Request(Sampler(), [2], eos_token_id=2).is_over  # the prompt is not the text's end


def test_accept_takes_a_token_from_elsewhere():
    r = Request(Sampler(seed=1, repetition_penalty=2.0), [1])
    r.accept(5)
    assert r.output == [5] and r.history == History([1], [5])
    remembers = Request(Sampler(seed=1, mirostat=2))
    with pytest.raises(ValueError, match="remembers the probability"):
        remembers.accept(3)
    row = row_of(0, 0)
    drawn = remembers.fork()
    remembers.accept(drawn.next(row), row)
    assert remembers.state == drawn.state
    for token, error in ((-1, ValueError), (VOCAB, ValueError), (0.5, TypeError)):
        with pytest.raises(error, match="`token`"):
            drawn.accept(token)


# ------------------------------------------------------------------------------ schedules


def test_a_schedule_changes_settings_where_it_says():
    hot, cold = Sampler(temperature=5.0, seed=1), Sampler(temperature=0, seed=1)
    row = [4.0, 3.0, 2.0, 1.0]
    by_step = Request(Schedule([(hot, 3), (cold, None)]))
    tokens = [by_step.next(row) for _ in range(6)]
    assert tokens[:3] == [hot.sample(row, steps=n).tokens for n in range(3)]
    assert tokens[3:] == [0, 0, 0] and by_step.sampler is cold
    by_step.rollback(4)
    assert by_step.sampler is hot and [by_step.next(row) for _ in range(4)] == tokens[2:]

    def thinks(history):
        return history.output[-2:] == [2, 2]

    for until in ((2, 2), [2, 2], thinks):
        r = Request(Schedule([(cold, until), (hot, None)]), [2, 2])
        for token in (2, 1, 2, 2):
            assert r.sampler is cold
            r.accept(token)
        assert r.sampler is hot
        r.rollback(1)
        assert r.sampler is cold
    with pytest.raises(ValueError, match="asks a function"):
        r.to_json()
    assert Request.from_json(by_step.to_json()).to_json() == by_step.to_json()


def test_the_memory_of_a_part_is_its_own():
    row, memory = row_of(0, 0), Sampler(mirostat=2, seed=1)
    r = Request(Schedule([(memory, 2), (Sampler(seed=1), 2), (memory, None)]))
    states = [r.state]
    for _ in range(6):
        r.next(row)
        states.append(r.state)
    first = memory.initial_state()
    assert states[0] == states[4] == first and states[2] is states[3] is None
    assert states[1] != first and states[6] != states[5] != first
    r.rollback(5)
    assert r.state == states[1]
    copy = Request.from_json(r.to_json())
    assert [copy.next(row) for _ in range(5)] == [r.next(row) for _ in range(5)]


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ([], TypeError, "pairs"),
        (5, TypeError, "pairs"),
        ([Sampler()], TypeError, "pairs"),
        ([(Sampler(), 3)], ValueError, "the last has to have None"),
        ([(Sampler(), None), (Sampler(), None)], ValueError, "part 0 of 2 has None"),
        ([("s", None)], TypeError, "a Sampler"),
        ([(Sampler(), -1), (Sampler(), None)], ValueError, "`until`"),
        ([(Sampler(), []), (Sampler(), None)], ValueError, "at least one id"),
        ([(Sampler(), "a"), (Sampler(), None)], TypeError, "`until`"),
        ([(Sampler(), True), (Sampler(), None)], TypeError, "`until`"),
    ],
)
def test_bad_schedules(parts, error, message):
    with pytest.raises(error, match=message):
        Schedule(parts)


# ------------------------------------------------------------------------------ JSON


def changed(**changes):
    r = Request(Sampler(seed=1, mirostat=2), [1], mask=[0, 2])
    r.next(row_of(0, 0))
    return json.dumps({**json.loads(r.to_json()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "1", "{}", "[" * 100000, changed(version=2), changed(version=True),
        changed(more=1), changed(parts=5), changed(parts=[[1]]), changed(parts=[[{}, None]]),
        changed(stream=-1), changed(stream="1"), changed(prompt=["a"]), changed(output=[0.5]),
        changed(output=[1, 2]), changed(vocab=-1), changed(mask="!"), changed(mask="AAA="),
        changed(mask=5), changed(starts=[0, 0]), changed(starts=5), changed(states=[None]),
        changed(states=["{}", "{}"]), changed(states=5), changed(eos_token_id=[-1]),
        changed(max_new_tokens=-2),
    ],
)  # fmt: skip
def test_bad_json(text):
    with pytest.raises((TypeError, ValueError)):
        Request.from_json(text)


def test_a_mask_has_to_have_seen_logits():
    with pytest.raises(ValueError, match="has to see logits before it is JSON"):
        Request(Sampler(seed=1), mask=[1]).to_json()


# ------------------------------------------------------------------------------ all or nothing


def test_a_mask_that_is_refused_changes_nothing():
    r = Request(Sampler(seed=1), mask=[3])
    r.next(row_of(0, 0))
    with pytest.raises(ValueError, match="mask"):
        r.mask = [99]
    assert r.mask == [3] and r.next(row_of(0, 1)) == 3
    r.mask = None
    assert r.next(row_of(0, 2)) == Sampler(seed=1).sample(row_of(0, 2), steps=2).tokens


def test_a_schedule_that_raises_fails_alone():
    def boom(history):
        if len(history.output) == 2:
            raise KeyError("of mine")
        return False

    s = Sampler(mirostat=2, seed=1)
    bad, other = Request(Schedule([(s, boom), (s, None)])), Request(s)
    rows = np.stack([row_of(0, 0)] * 2)
    next_tokens([bad, other], rows)
    state, drawn = bad.state, next_tokens([bad, other], rows)
    assert drawn[0] == -1 and isinstance(bad.error, KeyError) and len(other.output) == 2
    assert len(bad.output) == 1 and bad.state is state
    bad.rollback(0)
    with pytest.raises(KeyError):
        bad.next(rows[0])
    assert bad.error is None and len(bad.output) == 1


def test_copies_and_pickles_go_their_own_way():
    s, row = Sampler(mirostat=2, seed=1), row_of(0, 0)
    r = Request(s, [1, 2], mask=np.arange(VOCAB) < 20, eos_token_id=3, max_new_tokens=9)
    r.next(row)
    for made in (copy.copy(r), copy.deepcopy(r), pickle.loads(pickle.dumps(r)), r.fork()):
        before = r.to_json()
        assert made.to_json() == before
        made.next(row)
        assert r.to_json() == before != made.to_json()


def test_a_failed_request_stays_so_as_json():
    r = Request(Sampler(seed=1))
    next_tokens([r], np.full((1, 5), nan))
    again = Request.from_json(r.to_json())
    assert again.is_over and str(again.error) == str(r.error)
    with pytest.raises(ValueError, match="has failed: `logits` have to be finite"):
        again.next(np.zeros(5))


def test_a_text_that_the_vocabulary_lacks_is_refused_at_once():
    bad = Request(Sampler(frequency_penalty=1.0, seed=1))
    bad.next(row_of(0, 0))
    text = json.dumps({**json.loads(bad.to_json()), "output": [99]})
    with pytest.raises(ValueError, match=r"the text has to hold ids in \[0, 40\)"):
        Request.from_json(text)
    other = Request(Sampler(suppress_tokens=list(range(1, VOCAB)), seed=1))
    bad.history.accept(99)  # which is not to be done
    with pytest.raises(ValueError, match="the text of row 0 has the id 99"):
        next_tokens([bad, other], np.stack([row_of(0, 0)] * 2))
    assert other.output == []


def test_a_schedule_that_leaves_memory_is_read_back():
    row = row_of(0, 0)
    r = Request(Schedule([(Sampler(mirostat=2, seed=1), 2), (Sampler(seed=1), None)]))
    for _ in range(4):
        r.next(row)
    again = Request.from_json(r.to_json())
    assert again.to_json() == r.to_json() and again.next(row) == r.next(row)


def test_parts_that_began_before_a_function_raised_are_taken_back():
    broken = [True]

    def breaks_once(history):
        if broken and broken.pop():
            raise KeyError
        return False

    row = [3.0, 3.0, 2.9, 3.1]
    parts = [(Sampler(seed=3), 1), (Sampler(temperature=0), breaks_once), (Sampler(), None)]
    r = Request(Schedule(parts))
    with pytest.raises(KeyError):
        r.next(row)
    assert r.sampler is parts[0][0] and r.output == []
    assert [r.next(row) for _ in range(3)] == [Sampler(seed=3).sample(row, steps=0).tokens, 3, 3]


def test_misuse_does_not_settle_the_vocabulary():
    s = Sampler(seed=1)
    r = Request(s, mask=[0, 3])
    with pytest.raises(ValueError, match="is over"):
        next_tokens([r, Request(s, max_new_tokens=0)], np.zeros((2, 10)))
    with pytest.raises(ValueError, match="nan"):
        r.next([nan] * 6)
    assert r.next(np.zeros(5)) in (0, 3)
    with pytest.raises(ValueError, match="of 5 tokens"):
        r.next(np.zeros(10))


def test_numbers_of_numpy_are_numbers():
    r = Request(Sampler(temperature=0), eos_token_id=np.int64(3), max_new_tokens=np.int64(3))
    assert Request.from_json(r.to_json()).to_json() == r.to_json()
    r.next([0.0, 0.0, 0.0, 1.0])
    assert r.is_over
