"""The keyed uniforms are NumPy's Philox, bit for bit."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sampler import Sampler, _core, reference

LAST = 2**64 - 1
EDGES = (0, 1, 2**32 - 1, 2**32, 2**63, LAST - 1, LAST)
words = st.one_of(st.sampled_from(EDGES), st.integers(0, LAST))


def numpys(seed, stream=0, step=0, draw=0, lane=0):
    """The definition, written out once more."""
    key = seed | stream << 64
    counter = step | draw << 64 | lane << 128
    return np.random.Generator(np.random.Philox(key=key, counter=counter)).random()


def cores(seed, stream, step, draws, lane=0):
    u = np.empty((1, draws))
    streams, steps = np.array([stream], np.uint64), np.array([step], np.uint64)
    _core.uniforms(u, seed, streams=streams, steps=steps, lane=lane)
    return u[0].tolist()


@given(words, words, words, words)
@example(LAST, LAST, LAST, LAST)
def test_the_core(seed, stream, step, lane):
    assert cores(seed, stream, step, 3, lane) == [
        numpys(seed, stream, step, draw, lane) for draw in range(3)
    ]


@pytest.mark.parametrize("lane", [0, 1, 2**32, LAST])
@pytest.mark.parametrize("step", EDGES)
@pytest.mark.parametrize("stream", [0, 1, LAST])
@pytest.mark.parametrize("seed", EDGES)
def test_the_edges(seed, stream, step, lane):
    # At step 2**64 - 1 the increment before the first block carries into the draw.
    assert cores(seed, stream, step, 5, lane) == [
        numpys(seed, stream, step, draw, lane) for draw in range(5)
    ]


@given(words, words, words, words, words)
@example(0, 0, LAST, LAST, 0)  # the carry goes through step and draw
@example(0, 0, LAST, LAST, LAST)  # and through all
def test_the_twin(seed, stream, step, draw, lane):
    assert reference.uniform(seed, stream, step, draw, lane) == numpys(
        seed, stream, step, draw, lane
    )


def test_known_values():
    # NumPy's figures, written down once: a change on either side shows.
    assert cores(0, 0, 0, 2) == [0.011546754286331562, 0.21185954403345741]


def test_a_batch():
    streams = np.array([0, 1, LAST, 5], np.uint64)
    steps = np.array([LAST, 0, LAST, 9], np.uint64)
    u = np.empty((4, 3))
    for given_streams, given_steps in (
        (streams, steps), (None, steps), (streams, None), (None, None),
    ):  # fmt: skip
        _core.uniforms(u, LAST, LAST - 1, given_streams, given_steps, 1)
        for i in range(4):
            stream = i if given_streams is None else int(streams[i])
            step = LAST - 1 if given_steps is None else int(steps[i])
            assert u[i].tolist() == [numpys(LAST, stream, step, j, 1) for j in range(3)]


def test_every_part_of_the_address_counts():
    u = {
        reference.uniform(7), reference.uniform(8), reference.uniform(7, 1),
        reference.uniform(7, step=1), reference.uniform(7, draw=1), reference.uniform(7, lane=1),
    }  # fmt: skip
    assert len(u) == 6


def test_range_and_grid():
    u = np.empty((1, 100_000))
    _core.uniforms(u, 3)
    assert u.min() >= 0.0
    assert u.max() < 1.0
    assert np.array_equal(u * 2**53, np.floor(u * 2**53))
    # The mean of 100,000 uniforms has deviation 0.00091; the keys are fixed, so is the verdict.
    assert abs(u.mean() - 0.5) < 0.004
    assert len(np.unique(u)) == u.size


def decoded(tokens, vocab):
    """The interval of u in which the flat law over a power of two gives these tokens."""
    return np.asarray(tokens) / vocab, (np.asarray(tokens) + 1) / vocab


@given(words, words, words)
@example(LAST, LAST, LAST)
def test_end_to_end(seed, stream, step):
    vocab = 2**16
    flat = np.broadcast_to(np.float32(1.0), vocab)
    tokens = Sampler(seed=seed).sample(flat, steps=step, streams=stream, n=4).tokens
    low, high = decoded(tokens, vocab)
    u = np.array([numpys(seed, stream, step, draw) for draw in range(4)])
    assert np.all((low <= u) & (u < high))
    assert Sampler(seed=seed).sample(flat, steps=step, streams=stream).tokens == tokens[0]


def test_a_call_draws_at_stream_i_and_its_step():
    vocab, batch = 2**16, 5
    flat = np.broadcast_to(np.float32(1.0), (batch, vocab))
    s = Sampler(seed=LAST, step=LAST)
    low, high = decoded(s(flat), vocab)
    u = np.array([numpys(LAST, stream, LAST) for stream in range(batch)])
    assert np.all((low <= u) & (u < high))


@pytest.mark.parametrize(
    ("streams", "steps"), [(2, 3), (3, 2), (4, 3), (0, 0), (None, 2), (2, None)]
)
def test_shapes_are_checked_before_memory(streams, steps):
    given = [None if count is None else np.zeros(count, np.uint64) for count in (streams, steps)]
    with pytest.raises(ValueError, match="one stream and one step per row"):
        _core.uniforms(np.empty((3, 2)), 0, 0, *given)
