"""Signals that come while the core is at work, however fast or busy the machine is."""

import contextlib
import signal
import threading
import time

import numpy as np
import pytest


class StopHereError(Exception):
    """What the signal's handler raises."""


@contextlib.contextmanager
def interrupted(tokens, signals=1):
    """Break off the call in this block that writes `tokens`, and check that it was.

    A thread waits for the first token and sends a signal, and the next when that one was handled.
    The handler of the last one raises. Gives a list: how many tokens there were at each.
    """
    empty, counts, over = tokens.flat[0], [], threading.Event()

    def handle(*_):
        counts.append(np.count_nonzero(tokens != empty))
        if len(counts) == signals:
            raise StopHereError

    def watch():
        for sent in range(signals):
            while tokens.flat[0] == empty or len(counts) < sent:
                if over.is_set():
                    return
                time.sleep(0.001)
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, handle)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(StopHereError):
            yield counts
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGINT, before)
