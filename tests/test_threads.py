"""Batches shared over threads: the same answers, errors, signals, forks, and no wasted time."""

import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from interrupting import interrupted
from sampler import Sampler, Samples, _core
from sampler._engine import make_chain
from test_odds import draw

SETTINGS = (
    {},
    {"temperature": 0.8, "top_p": 0.9},
    {"top_k": 50},
    {"temperature": 5.0, "top_p": 0.9},
)
TASKS = Path("/proc/self/task")


def batch(rows=40, vocab=20_000, dtype=np.float32):
    """Enough work for several threads."""
    return np.random.default_rng(rows).normal(0.0, 2.5, (rows, vocab)).astype(dtype)


def same(a, b):
    """Whether two Samples hold the same bits."""
    for field in dataclasses.fields(Samples):
        x, y = getattr(a, field.name), getattr(b, field.name)
        assert (x is None and y is None) or x.tobytes() == y.tobytes(), field.name


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("threads", [2, 3, 8, 1000, "auto"])
def test_the_same_answers_for_every_thread_count(settings, threads):
    rows = batch()
    one, many = (Sampler(**settings, seed=7, threads=n) for n in (1, threads))
    assert np.array_equal(one(rows), many(rows))
    same(one.sample(rows, logprobs=5), many.sample(rows, logprobs=5))
    same(one.sample(rows, n=9, raw=True), many.sample(rows, n=9, raw=True))
    tokens = np.arange(len(rows))
    same(one.score(rows, tokens, raw=True), many.score(rows, tokens, raw=True))
    assert one.filter(rows).tobytes() == many.filter(rows).tobytes()
    assert one.step == many.step == 3


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64, 5000])
def test_batches_of_every_size(rows):
    logits = np.random.default_rng(rows).normal(0.0, 2.0, (rows, 400_000 // rows))
    streams = np.arange(rows) + 3
    one, many = (
        Sampler(top_p=0.9, seed=1, threads=n).sample(logits, streams=streams, steps=5, raw=True)
        for n in (1, 4)
    )
    same(one, many)


def test_strides_and_read_only_rows_are_shared_too():
    rows = batch(80, 20_000)[::-2, ::-1]
    rows.flags.writeable = False
    one, many = (Sampler(top_p=0.9, seed=1, threads=n)(rows) for n in (1, 3))
    assert np.array_equal(one, many)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_first_invalid_row_is_named(threads):
    rows = batch(200)
    for bad in (3, 4, 90, 91, 150, 199):
        rows[bad, bad] = np.nan
    s = Sampler(seed=1, threads=threads)
    for call in (s, s.sample, s.filter):
        for _ in range(5):
            with pytest.raises(ValueError, match="row 3 has nan at token 3"):
                call(rows)


def test_invalid_rows_are_flagged_and_the_others_as_they_are():
    rows = batch(64)
    clean = Sampler(top_p=0.9, seed=1)(rows)
    rows[[0, 9, 63], 5] = np.inf
    found = Sampler(top_p=0.9, seed=1, threads=4, on_invalid="flag")(rows)
    clean[[0, 9, 63]] = -1
    assert np.array_equal(found, clean)


def test_samplers_that_share_rows_at_the_same_time():
    # One call has the pool; what comes meanwhile does without, and is right all the same.
    rows = batch()
    s = Sampler(temperature=0.8, top_p=0.9, seed=7, threads=3)
    expected = [s.sample(rows, steps=i).tokens for i in range(12)]
    found = {}

    def work(i):
        for _ in range(5):
            found[i] = s.sample(rows, steps=i).tokens

    workers = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(12):
        assert np.array_equal(found[i], expected[i])


@pytest.mark.skipif(not TASKS.exists(), reason="no /proc")
def test_threads_persist():
    rows = batch()
    Sampler(seed=1, threads=3)(rows)
    before = {task.name for task in TASKS.iterdir()}
    for _ in range(20):
        Sampler(seed=1, threads=3)(rows)
        Sampler(seed=1, threads=2)(rows)
    after = {task.name for task in TASKS.iterdir()}
    assert after <= before  # no new one; those of an earlier test may only now be gone
    assert len(after) >= 3  # this one and two of the pool


@pytest.mark.skipif(not TASKS.exists(), reason="no /proc")
def test_a_call_that_is_soon_done_starts_no_thread():
    row = batch(1, 262_144)
    before = {task.name for task in TASKS.iterdir()}
    s = Sampler(seed=1, threads=60)
    s(row[0])
    s(row)
    s(row[:, :1000].repeat(4, axis=0))
    assert {task.name for task in TASKS.iterdir()} <= before  # others may only now be gone


def test_idle_threads_take_no_time():
    rows = batch()
    Sampler(seed=1, threads=4)(rows)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of threads and fork
def test_a_fork_has_threads_of_its_own():
    rows = batch()
    s = Sampler(temperature=0.8, top_p=0.9, seed=7, threads=3)
    expected = s.sample(rows, steps=0).tokens
    inside = threading.Event()
    done = threading.Event()

    def keep_busy():
        while not done.is_set():
            s.sample(rows, steps=0)
            inside.set()

    # The pool is at work while the child is made.
    worker = threading.Thread(target=keep_busy)
    worker.start()
    inside.wait()
    try:
        for _ in range(5):
            child = os.fork()
            if child == 0:
                try:
                    right = all(
                        np.array_equal(s.sample(rows, steps=0).tokens, expected) for _ in range(3)
                    )
                    os._exit(0 if right else 1)
                finally:
                    os._exit(2)
            deadline = time.monotonic() + 60
            while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    pytest.fail("the child hangs")
                time.sleep(0.01)
            assert os.waitstatus_to_exitcode(ended[1]) == 0
    finally:
        done.set()
        worker.join()


FORKS = """
import os, signal, sys, threading, time
import numpy as np
from sampler import Sampler, _core
from sampler._engine import make_chain

s = Sampler(temperature=0.8, top_p=0.9, seed=1, threads={threads})
chain = make_chain(s.stages)
few = np.random.default_rng(0).normal(0, 3, (8, 100_000)).astype(np.float32)
expected = s.sample(few, steps=0).tokens
words = np.broadcast_to(few[:1].view(np.uint32), ({rows}, 100_000))
rows = _core.Rows(words, _core.KINDS["float32"], False)
tokens = np.full(({rows}, {n}), -7)

class Stop(Exception):
    pass

def fork(*_):
    global child, done
    child = os.fork()
    if child:
        raise Stop  # the parent need not go on
    for _ in range({calls_inside}):
        assert np.array_equal(s.sample(few, steps=0).tokens, expected)
    done = np.count_nonzero(tokens + 7)

def draw():
    _core.draw_tokens(chain, rows, _core.KeyedUniforms(0, 0), tokens, False, {threads})

def watch():
    while tokens[0, 0] == -7:
        time.sleep(0.001)
    signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, fork)
threading.Thread(target=watch, daemon=True).start()
try:
    draw()
except Stop:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
except RuntimeError as error:
    assert child == 0 and "forked" in str(error) and error.__context__ is None, error
    after = np.count_nonzero(tokens + 7) - done
    assert 0 < done < tokens.size and after == 0, (done, after)
else:
    assert {threads} == 1 and child == 0 and 0 < done < tokens.size, done
    assert not np.any(tokens == -7)
os._exit(0 if np.array_equal(s.sample(few, steps=0).tokens, expected) else 1)
"""


def run_forks(**settings):
    # Subprocess: a child of ours that went wrong would go on with the tests.
    code = FORKS.format(**{"n": 1, "calls_inside": 0, **settings})
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("calls_inside", [0, 1])
def test_a_signal_handler_that_forks_during_a_call_ends_it_in_the_child(calls_inside):
    # At that look at signals: the child once did all other rows first, alone.
    run_forks(threads=3, rows=200_000, calls_inside=calls_inside)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_signal_handler_that_forks_between_draws_from_one_row_ends_the_call_in_the_child():
    run_forks(threads=3, rows=8, n=1_200_000)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_signal_handler_that_forks_during_a_call_on_one_thread_leaves_it_whole():
    run_forks(threads=1, rows=10_000)


def test_signals_stop_all_threads():
    row = batch(1, 100_000)
    words = np.broadcast_to(row.view(np.uint32), (60_000, 100_000))
    rows = _core.Rows(words, _core.KINDS["float32"], False)
    s = Sampler(temperature=0.8, top_p=0.9, seed=1, threads=3)
    tokens = np.full((60_000, 1), -7)
    with interrupted(tokens):
        _core.draw_tokens(make_chain(s.stages), rows, _core.KeyedUniforms(0, 0), tokens, False, 3)
    # Nobody is still at work, and the pool serves the next call.
    done = np.count_nonzero(tokens + 7)
    time.sleep(0.2)
    assert np.count_nonzero(tokens + 7) == done < 30_000
    few = np.broadcast_to(row, (30, 100_000))
    assert np.array_equal(s.sample(few, steps=0).tokens, draw_alone(s, few))


def draw_alone(s, rows):
    return s.replace(threads=1).sample(rows, steps=0).tokens


@pytest.mark.slow
def test_memory_is_flat_over_a_hundred_thousand_calls():
    resource = pytest.importorskip("resource")
    rows = batch(8, 30_000)
    one = Sampler(temperature=0.8, top_p=0.9, seed=5)
    two = one.replace(threads=2)

    def call(times):
        for _ in range(times):
            one(rows[0])
            two(rows)

    call(300)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call(50_000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1024 * (1024 if sys.platform == "darwin" else 1)  # 1 MiB: 10 bytes per call


def test_given_uniforms_are_shared_as_keyed_ones():
    rows = batch(64, 5000)
    u = np.random.default_rng(0).random((64, 3))
    assert np.array_equal(draw([], rows, u), draw([], rows, u, threads=3))


# ------------------------------------------------------------------------------- the setting


def test_the_setting():
    s = Sampler(top_p=0.9, seed=7)
    assert s.threads == 1
    assert "threads" not in repr(s)
    s = Sampler(top_p=0.9, seed=7, threads="auto")
    assert s.threads == "auto"
    assert repr(s) == "Sampler(top_p=0.9, seed=7, threads='auto')"
    assert eval(repr(s)).threads == "auto"
    assert pickle.loads(pickle.dumps(s)).threads == "auto"
    assert s.replace(top_p=0.8).threads == "auto"
    assert s.replace(threads=np.int64(3)).threads == 3
    assert Sampler.from_generation_config({}, threads=2).threads == 2


@pytest.mark.parametrize(
    ("threads", "error"),
    [
        (0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError),
        ("all", TypeError), ([2], TypeError), (2**31, ValueError),
    ],
)  # fmt: skip
def test_a_bad_setting(threads, error):
    with pytest.raises(error, match="`threads` has to be an integer >= 1 or 'auto', but is"):
        Sampler(threads=threads)


def test_auto_takes_the_processors_of_this_process(monkeypatch):
    taken = []
    draw_tokens = _core.draw_tokens
    monkeypatch.setattr(
        _core,
        "draw_tokens",
        lambda *args, **kwargs: taken.append(args[5]) or draw_tokens(*args, **kwargs),
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    for threads in ("auto", 2):
        Sampler(seed=1, threads=threads)(batch(2, 8))
    assert taken == [3, 2]
