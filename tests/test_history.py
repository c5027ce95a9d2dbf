"""The text so far: made from ids and batches, grown, rolled back, forked, written and read."""

import copy
import math
import pickle
import resource
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sampler import Sampler
from sampler.history import History

TOKEN = st.integers(0, 2**27 - 1)
X = np.array([1.0, 3.0, 2.0, 0.0])
inf = math.inf


class Histories(RuleBasedStateMachine):
    """Whatever is done to a history, it equals one that is made of its tokens."""

    @initialize(prompt=st.lists(TOKEN), output=st.lists(TOKEN))
    def make(self, prompt, output):
        self.history, self.prompt, self.output = History(prompt, output), prompt, list(output)
        self.others = []

    @rule(token=TOKEN)
    def accept(self, token):
        self.history.accept(token)
        self.output.append(token)

    @rule(data=st.data())
    def roll_back(self, data):
        n = data.draw(st.integers(0, len(self.output)))
        self.history.rollback(n)
        del self.output[len(self.output) - n :]

    @rule(kind=st.sampled_from(["fork", "pickle", "copy", "json"]))
    def fork(self, kind):
        made = {
            "fork": History.fork, "pickle": lambda h: pickle.loads(pickle.dumps(h)),
            "copy": copy.deepcopy, "json": lambda h: History.from_json(h.to_json()),
        }[kind](self.history)  # fmt: skip
        self.others.append((self.history, History(self.prompt, self.output)))
        self.history = made

    @invariant()
    def equals_one_made_anew(self):
        for one, wanted in [*self.others, (self.history, History(self.prompt, self.output))]:
            assert one == wanted
            assert (one.prompt, one.output) == (wanted.prompt, wanted.output)
            assert len(one) == len(wanted)


test_histories = Histories.TestCase
test_histories.settings = settings(max_examples=40, stateful_step_count=20)


@pytest.mark.parametrize("ids", [
    [1, 2, 3], (1, 2, 3), range(1, 4), np.array([1, 2, 3]), np.array([1, 2, 3], np.uint8),
    torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3], dtype=torch.int32),
], ids=repr)  # fmt: skip
def test_any_sequence_of_ids(ids):
    assert History(ids) == History([1, 2, 3])
    assert History((), ids).output == [1, 2, 3]


def test_equality_and_repr():
    # Planted: prompt and output taken for one.
    assert History([1], [2]) != History([1, 2])
    assert History([1]) != [1]
    assert eval(repr(History([1, 2], [3]))) == History([1, 2], [3])
    assert repr(History(range(20))) == "History([0, 1, 2, 3, 4, 5, ...], [])"
    with pytest.raises(TypeError, match="unhashable"):
        hash(History())


def test_batches():
    ids, mask = torch.tensor([[9, 9, 5, 6], [1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    assert History.from_batch(ids, mask, 3) == [History([5], [6]), History([1, 2, 3], [4])]
    assert History.from_batch(ids) == [History([9, 9, 5, 6]), History([1, 2, 3, 4])]
    assert History.from_batch(ids.numpy(), mask.bool().numpy(), 0)[0] == History([], [5, 6])
    assert History.from_batch(np.empty((0, 3), int)) == []
    assert History.from_batch(ids, mask, 4)[0] == History([5, 6])
    assert History.from_batch([[]]) == [History()]
    assert History(np.array([]), []) == History()


def test_a_long_batch_is_its_rows():
    # Planted: memory that is not given back; texts copied from one place.
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 4, int(rng.integers(0, 9000))).tolist() for _ in range(90)]
    histories = [History(text[: i % 3], text[i % 3 :]) for i, text in enumerate(texts)]
    rows = rng.normal(0, 1, (90, 2000))
    s = Sampler(frequency_penalty=0.01, dry=(1.0, 1.1, 3), seed=1)
    found = s.filter(rows, history=histories)
    for row in range(0, 90, 7):
        assert found[row].tolist() == s.filter(rows[row], history=histories[row]).tolist()
    few, short = rows[:64, :900], [History([], [i, 1, 2]) for i in range(64)]
    s.filter(few, history=short)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(1500):
        s.filter(few, history=short)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # In KiB (bytes on macOS): a leak of 100 bytes per row would be 10 MB.
    assert grown < 8192 * (1024 if sys.platform == "darwin" else 1)


def test_texts_are_worked_on_without_the_gil():
    # Another thread goes on meanwhile, and may write to the texts.
    h = History([], list(range(50)) * 4000)
    s, x = Sampler(dry=0.5, seed=1), np.zeros((12, 50))
    want = s.filter(x, history=[h.fork() for _ in x])
    over, ticks = threading.Event(), []

    def tick():
        while not over.is_set():
            h.accept(0)
            h.rollback(1)
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    while not ticks:
        time.sleep(0.001)
    early = 0
    for _ in range(200):  # on a busy machine it may not get its turn at once
        begun = time.perf_counter()
        found = s.filter(x, history=[h] * 12)
        third = begun + (time.perf_counter() - begun) / 3  # later it goes on in any case
        early += any(begun < one < third for one in ticks)
        ticks.clear()
        if early == 3:
            break
    over.set()
    thread.join()
    assert early == 3
    either = s.filter(x[0], history=History([], [*h.output, 0])).tolist()
    assert all(row.tolist() in (want[0].tolist(), either) for row in found)


def test_a_rejected_token_leaves_no_trace():
    s = Sampler(repetition_penalty=2.0, dry=(1.0, 2.0, 1), no_repeat_ngram_size=3, seed=7)
    h = History([0, 1], [2, 1, 2])
    before = s.filter(X, history=h).tolist()
    for token in (1, 3, 2):
        h.accept(token)
    assert s.filter(X, history=h).tolist() != before
    h.rollback(3)
    assert s.filter(X, history=h).tolist() == before


def test_readers_while_one_thread_writes():
    # Each reader sees a text that there was: all of its tokens are the same but for the last.
    s = Sampler(frequency_penalty=1.0, seed=1)
    h, bad, ready = History(), [], threading.Event()

    def read():
        ready.wait()
        for _ in range(300):
            lost = -s.filter(np.zeros(2), history=h)
            if lost[1] != 0 or lost[0] != int(lost[0]):
                bad.append(lost)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for one in threads:
        one.start()
    ready.set()
    for i in range(3000):
        h.accept(0)
        if i % 7 == 6:
            h.rollback(5)
    for one in threads:
        one.join()
    assert not bad


IDS = r"integers in \[0, 134217728\)"
BAD = [
    (lambda: History(5), TypeError, rf"^`prompt` has to be a sequence of {IDS}, but is"),
    (lambda: History("ab"), TypeError, r"^`prompt` has to be"),
    (lambda: History([0.5]), TypeError, r"^`prompt` has to be a sequence of .*, but is \[0.5\]$"),
    (lambda: History([True]), TypeError, r"^`prompt` has to be"),
    (lambda: History([1], [[2]]), TypeError, r"^`output` has to be"),
    (lambda: History(np.array([0.5])), TypeError, r"^`prompt` has to be"),
    (lambda: History(np.zeros((2, 2), int)), TypeError, r"^`prompt` has to be"),
    (lambda: History([1, -1]), ValueError, rf"^`prompt` has to hold {IDS}, but one is -1$"),
    (lambda: History(np.array([2**27])), ValueError, r"^`prompt` has to hold .* 134217728$"),
    (lambda: History().accept(-1), ValueError, r"^`token` has to be an integer in .* but is -1$"),
    (lambda: History().accept("a"), TypeError, r"^`token` has to be an integer"),
    (lambda: History().accept(True), TypeError, r"^`token` has to be an integer"),
    (lambda: History([1, 2], [3]).rollback(2), ValueError,
     r"^`n` has to be an integer in \[0, 1\], the tokens of the output, but is 2$"),
    (lambda: History().rollback(-1), ValueError, r"^`n` has to be"),
    (lambda: History.from_json("[]"), ValueError, r"^`text` has to be a History of version 1"),
    (lambda: History.from_json('{"version": 2, "prompt": [], "output": []}'), ValueError,
     r"^`text` has to be a History of version 1"),
    (lambda: History.from_json('{"version": 1, "prompt": []}'), ValueError, r"^`text` has to"),
    (lambda: History.from_json('{"version": 1, "prompt": [-1], "output": []}'), ValueError,
     r"^`prompt` has to hold"),
    (lambda: History.from_json("{"), ValueError, r"^`text` has to be a History of version 1"),
    (lambda: History.from_json("[" * 100000), ValueError, r"^`text` has to be a History"),
    (lambda: History([[1, 2]]), TypeError, r"^`prompt` has to be"),
    (lambda: History(torch.tensor([[1, 2]])), TypeError,
     r"shape \(1, 2\): one row of it, or History.from_batch$"),
    (lambda: History().accept(2**27), ValueError, r"^`token` has to be an integer"),
    (lambda: History.from_batch([[0, 5], [1]]), TypeError, r"^`input_ids`"),
    (lambda: History.from_batch([[0, 5]], [[-inf, 0.0]]), ValueError,
     r"^`attention_mask` has to be an array of 0 and 1, but has -inf$"),
    (lambda: History.from_batch([[0, 5]], [[0.5, 1]]), ValueError, r"but has 0.5$"),
    (lambda: History.from_batch([[0, 5]], [["0", "1"]]), TypeError, r"^`attention_mask`"),
    (lambda: History.from_batch([1, 2]), TypeError, r"^`input_ids` have to be integers of shape"),
    (lambda: History.from_batch([[0.5]]), TypeError, r"^`input_ids` have to be integers"),
    (lambda: History.from_batch([[1]], [[1, 1]]), ValueError, r"^`attention_mask` has to have"),
    (lambda: History.from_batch([[1]], prompt_length=2), ValueError, r"^`prompt_length` has to be"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_full_text(monkeypatch):
    import sampler.history

    monkeypatch.setattr(sampler.history, "_MOST", 4)
    h = History([1], [2, 3])
    with pytest.raises(ValueError, match=r"^a text has to have fewer than 4 tokens, but would"):
        h.accept(1)
    assert len(h) == 3
    with pytest.raises(ValueError, match=r"^a text has to have fewer than 4 tokens"):
        History([1, 2], [3, 4])


@pytest.mark.parametrize(("history", "error", "message"), [
    ([History()], TypeError, r"^`history` has to be a History for a lone row, but is a list:"),
    ([1, 2], TypeError, r"^`history` has to be a History for a lone row"),
    (History([4]), ValueError, r"^`history` has to hold ids in \[0, 4\), but one is 4$"),
    (None, ValueError, r"^`repetition_penalty` looks at the text so far: give it as history="),
])  # fmt: skip
def test_histories_that_do_not_fit_a_row(history, error, message):
    s = Sampler(repetition_penalty=1.1, seed=1)
    for call in (s, s.sample, s.filter, s.distribution, lambda x, **how: s.score(x, 0, **how)):
        with pytest.raises(error, match=message):
            call(X, history=history)
    assert s.step == 0
    assert s(X, history=History([3])) in range(4)  # and what failed left nothing


@pytest.mark.parametrize(("history", "error", "message"), [
    (History(), TypeError, r"^`history` has to be a list of one History per row, but is a samp"),
    ([History(), [1]], TypeError, r"^`history` has to hold one History per row, but holds a list$"),
    ([History()] * 3, ValueError, r"^`history` has to be for 2 rows, but is for 3$"),
    ([History([1]), History([2], [7])], ValueError, r"^`history` .*, but one is 7 in row 1$"),
    ("ab", TypeError, r"^`history` has to be a list of one History per row"),
])  # fmt: skip
def test_histories_that_do_not_fit_a_batch(history, error, message):
    s = Sampler(frequency_penalty=0.5, no_repeat_ngram_size=2, seed=1)
    with pytest.raises(error, match=message):
        s(np.stack([X, X]), history=history)


def test_an_empty_batch():
    s = Sampler(repetition_penalty=2.0, seed=1)
    assert s(np.empty((0, 5)), history=[]).shape == (0,)


def test_a_history_that_nothing_looks_at_changes_nothing():
    assert Sampler(seed=3)(X, history=History([1])) == Sampler(seed=3)(X)
    with pytest.raises(TypeError, match=r"^`history` has to be"):
        Sampler(seed=3)(X, history=5)
