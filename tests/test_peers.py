"""Published cases of other samplers: llama.cpp's tests/test-sampling.cpp (commit 0c1e57098)."""

import numpy as np
import pytest

from sampler import MinP, Sampler, Temperature, TopK, TopP

FOUR = np.log([0.1, 0.2, 0.3, 0.4])
SMALL = [
    # stage, the kept tokens' probabilities by id; p = 0.7 of 0.4 + 0.3 lies within the band
    (Temperature(1.0), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
    (Temperature(0.0), {3: 1.0}),
    (TopK(1), {3: 1.0}),
    (TopK(3), {3: 0.44444, 2: 0.33333, 1: 0.22222}),
    (TopK(4), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
    (TopK(0), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
    (TopP(0.0), {3: 1.0}),
    (TopP(0.8), {3: 0.44444, 2: 0.33333, 1: 0.22222}),
    (TopP(1.0), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
    (MinP(0.0), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
    (MinP(0.24), {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}),
    (MinP(0.26), {1: 0.22222, 2: 0.33333, 3: 0.44444}),
    (MinP(0.49), {1: 0.22222, 2: 0.33333, 3: 0.44444}),
    (MinP(0.51), {2: 0.42857, 3: 0.57143}),
    (MinP(0.74), {2: 0.42857, 3: 0.57143}),
    (MinP(0.76), {3: 1.0}),
    (MinP(1.0), {3: 1.0}),
]

# logit i = ln i, i = 0 ... 9999: what is kept is a range of ids up to 9999, here by its size. Token
# 0, at -inf, counts for llama.cpp where nothing is removed, and never for us.
CHAINS = [
    ([TopK(10000)], [9999]),
    ([TopK(1)], [1]),
    ([TopP(1.0)], [9999]),
    ([TopP(0.0)], [1]),
    ([MinP(1.0)], [1]),
    ([MinP(1e-12)], [9999]),
    ([TopK(100)], [100]),
    ([TopP(0.0003)], [2]),
    ([TopP(0.8)], [5528]),
    ([MinP(9998.9 / 9999)], [1]),
    ([MinP(9997.9 / 9999)], [2]),
    ([MinP(0.1)], [9000]),
    ([TopK(100), TopP(0.8)], [100, 80]),
    ([TopK(100), MinP(0.1)], [100, 100]),
    ([TopP(0.8), TopK(100)], [5528, 100]),
    ([TopP(0.8), MinP(0.1)], [5528, 5528]),
    ([MinP(0.1), TopK(100)], [9000, 100]),
    ([MinP(9997.9 / 9999), TopP(0.8)], [2, 2]),
    ([MinP(0.1), TopP(0.8)], [9000, 5440]),
    ([TopK(100), TopP(0.8), MinP(0.1)], [100, 80, 80]),
    ([TopK(100), MinP(0.1), TopP(0.8)], [100, 100, 80]),
    ([TopP(0.8), TopK(100), MinP(0.1)], [5528, 100, 100]),
    ([TopP(0.8), MinP(0.1), TopK(100)], [5528, 5528, 100]),
    ([MinP(0.1), TopK(100), TopP(0.8)], [9000, 100, 80]),
    ([MinP(0.1), TopP(0.8), TopK(100)], [9000, 5440, 100]),
]


@pytest.mark.parametrize(("stage", "probabilities"), SMALL, ids=str)
def test_llama_cpp_single_stage(stage, probabilities):
    d = Sampler([stage], seed=0).distribution(FOUR)
    assert sorted(d.ids.tolist()) == sorted(probabilities)
    for token, p in probabilities.items():
        assert d.dense()[token] == pytest.approx(p, abs=1e-5)


@pytest.mark.parametrize(("stages", "sizes"), CHAINS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_llama_cpp_chain(stages, sizes, dtype):
    with np.errstate(divide="ignore"):
        row = np.log(np.arange(10_000)).astype(dtype)
    for i, size in enumerate(sizes):
        d = Sampler(stages[: i + 1], seed=0).distribution(row)
        assert sorted(d.ids.tolist()) == list(range(10_000 - size, 10_000))
