"""The uniforms below a sampler, streams of them, and pairs and samples of anything."""

import math
import re

import numpy as np
import pytest

from right_samplers import LAW, drawn
from sampler import reference
from sampler.testing import check_independent, check_same, check_streams, check_uniform
from sampler.testing._statistics import contingency, two_samples


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


U = np.random.default_rng(11).random((2, 200_000))


@pytest.mark.parametrize(
    "u, says",
    [
        (0.9998 * U[0], r"numbers in \[0\.99.*, 1\)"),
        (np.clip(U[0], 3e-4, None), r"numbers in \[0, .*\)"),
        (np.floor(U[0] * 2**20) / 2**20, r"multiple of 2\*\*-20: they have 20 of 53 bits"),
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
    """A regression: two numbers against two were distinguished one time in three."""
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
        r"the counts differ: chi-square [\d,]+ over 5 bins, where 4 is expected \(p = 0\)",
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
        (lambda: check_uniform([]), ValueError, "`u` have to hold at least one number"),
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
        (lambda: check_same([], [1]), ValueError, "`a` have to hold at least one"),
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


def test_samples_that_hold_nan_or_differ_in_shape_are_refused():
    u = np.random.default_rng(0).random((100, 100))
    with pytest.raises(ValueError, match="`b` has to hold numbers, but one is nan"):
        check_same(u, np.full(10_000, np.nan))
    with pytest.raises(ValueError, match="have to be of one shape"):
        check_independent(u, u.reshape(50, 200))
    for number in (0.1, 0.5, 0.7):  # the mean of many 0.1 is not 0.1
        constant = check_independent(u, np.full((100, 100), number))
        assert constant.findings == ["all numbers of `b` are equal"]
        assert constant.ok is False and constant.pvalue == 0
