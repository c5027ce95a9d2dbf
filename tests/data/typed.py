"""What a typed user writes. `make lint` checks it; an ignore that is not needed is an error too."""

from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import torch

import sampler
from sampler import Distribution, MinP, Sampler, Samples, Temperature, TopK, TopP
from sampler.hf import generate_kwargs, score

Row = np.ndarray[tuple[int], np.dtype[np.float32]]
Batch = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Tokens = npt.NDArray[np.int64]
Figures = npt.NDArray[np.float64]

CHAIN = [Temperature(), TopK(), TopK(None), TopP(0.9), MinP(min_p=0.1)]
SAMPLERS = [Sampler(CHAIN, seed=7), Sampler(temperature=0.8, top_k=40, top_p=None)]


def calls(
    s: Sampler, row: Row, batch: Batch, array: npt.NDArray[Any], tensor: torch.Tensor
) -> None:
    """A row gives an int, a batch an array; where the type does not say which, anything."""
    assert_type(s([1.0, 3.0]), int)
    assert_type(s([1, 3]), int)
    assert_type(s(row), int)
    assert_type(s([[1.0, 3.0]]), Tokens)
    assert_type(s(batch, mask=[[0, 2]]), Tokens)
    assert_type(s(array), Any)
    assert_type(s(tensor), Any)


def samples(s: Sampler, row: Row, batch: Batch, tensor: torch.Tensor) -> None:
    """The fields of a lone row are numbers, unless it has `n` draws."""
    lone = s.sample(row, logprobs=2, raw=True, steps=3)
    assert_type(lone, Samples[int, float])
    assert_type(lone.tokens, int)
    assert_type(lone.logprobs, float)
    print(lone.raw_logprobs + 1.0, lone.top_ids.tolist())
    assert_type(s.sample(row, n=3), Samples[Tokens, Figures])
    assert_type(s.sample([[1.0]], streams=[4], draws=0).n_kept, Tokens)
    assert_type(s.sample(batch, n=3).logprobs, Figures)
    assert_type(s.sample(tensor), Samples[Any, Any])
    assert_type(s.score(row, 3).ranks, int)
    assert_type(s.score(batch, [3, 4]).logprobs, Figures)
    for drawn in s.sample(batch):
        print(len(drawn), drawn.tokens)
    longest(s.sample(row)), longest(s.sample(batch))


def longest(samples: Samples) -> int:
    """`Samples` alone is one of whatever holds it."""
    return len(samples)


def others(s: Sampler, row: Row, tensor: torch.Tensor) -> None:
    """What goes in comes out of `filter`; settings have types."""
    assert_type(s.filter(row), Row)
    assert_type(s.filter([1.0, 2.0]), Figures)
    assert_type(s.filter(tensor), torch.Tensor)
    assert_type(s.distribution(row, stream=1, step=2, draw=3), Distribution)
    print(s.temperature, s.top_k, s.suppress_tokens[0])
    print(s == s.replace(top_k=3), {s: "a key"})
    print(sampler.hf.generate_kwargs(s), generate_kwargs(s, logprobs=5))
    assert_type(score(None, tensor, s).logprobs, torch.Tensor)
    sampler.cross_entropy(row, 0, reduction="sum")


TopK(k=3)  # type: ignore[call-arg]
Sampler(top_q=3)  # type: ignore[call-arg]
Sampler(top_p="a lot")  # type: ignore[arg-type]
Sampler(ties="any")  # type: ignore[arg-type]
Sampler(threads="all")  # type: ignore[arg-type]
Sampler().temperature = 0.5  # type: ignore[misc]
print(Sampler().temprature)  # type: ignore[attr-defined]
Sampler()([1.0], n=5)  # type: ignore[call-overload]
Sampler().sample([1.0], step=5)  # type: ignore[call-overload]
Sampler()([1.0], [2.0])  # type: ignore[call-overload]
Sampler([0.8])  # type: ignore[list-item]
sampler.cross_entropy([1.0], 0, reduction="all")  # type: ignore[arg-type]
generate_kwargs(Sampler(), max_new_tokens=5)  # type: ignore[call-arg]
