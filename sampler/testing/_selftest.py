"""Does this build, on this machine, sample correctly? What `python -m sampler selftest` runs.

The law is `sampler.reference`, which shares no code with the core. On every instruction set that
the machine has, for several settings and all dtypes, tokens are compared with it one by one, and
many draws by `sampler.testing`; further parts look at the uniforms, and at rows, steps and seeds
next to each other. All is keyed: a build that is right gives the same tokens on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sampler import _core, reference
from sampler._build import build_info
from sampler._checks import U64_END, U64_TEXT, check_integer
from sampler.api import Sampler
from sampler.stages import (
    XTC,
    DynamicTemperature,
    EpsilonCutoff,
    EtaCutoff,
    MinP,
    PLess,
    Smoothing,
    TailFree,
    Temperature,
    TopA,
    TopH,
    TopK,
    TopNSigma,
    TopP,
    TypicalP,
)
from sampler.stages.base import Stage
from sampler.testing._arguments import check_probs, count_tokens
from sampler.testing._draws import judge_counts
from sampler.testing._findings import Finding, Kind
from sampler.testing._outcome import Outcome, combined, exact, report
from sampler.testing._parts import SamplerCheck
from sampler.testing._progress import bar
from sampler.testing._result import Result
from sampler.testing._statistics import Floats
from sampler.testing._streams import judge_streams

ALPHA, POWER = 1e-6, 0.999  # of the whole
DRAWS, DEEP_DRAWS = 200_000, 3_000_000  # of each setting, dtype and instruction set
CALLS, DEEP_CALLS = 50_000, 600_000  # the most draws of a part that makes many calls
SETTINGS: dict[str, tuple[Stage, ...]] = {
    "softmax": (),
    "temperature": (Temperature(0.7),),
    "top-k": (Temperature(0.8), TopK(50)),
    "top-p": (TopP(0.9),),
    "top-p, hot": (Temperature(1.5), TopP(0.95)),
    "min-p": (Temperature(1.2), MinP(0.05)),
    "the four": (Temperature(0.9), TopK(500), TopP(0.95), MinP(0.001)),
    "scales": (DynamicTemperature(0.3, 0.9), Smoothing(0.1)),
    "top-n-sigma": (TopNSigma(3.0), TopH(0.9)),
    "by probability": (EpsilonCutoff(1e-5), EtaCutoff(1e-4), TopA(0.01)),
    "typical-p": (TypicalP(0.9), TailFree(0.99)),
    "XTC": (Temperature(1.5), XTC(0.05, 1.0), PLess(True)),
}
DTYPES = ("float32", "float16", "bfloat16", "float64")
_VOCAB = 32_000
_BATCH, _STEPS = 16, 4  # rows, and calls, that share the draws of a part
_UNIFORMS = 1000  # keys at which uniforms are compared with NumPy's
_SHORT = 600  # tokens of the row that is drawn from in many calls


def selftest(
    *,
    deep: bool = False,
    draws: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Result:
    """Check the compiled core on this machine.

    Parameters
    ----------
    deep : bool
        Fifteen times as many draws, and the far tail: about ten minutes instead of one.
    draws : int, >= 1, optional
        Draws of each setting, dtype and instruction set.
    seed : int, in [0, 2**64)
        Of everything. The same seed gives the same result on every machine, if the build is right.
    progress : bool, optional
        Show a bar on stderr; by default only if that is a terminal.

    Returns
    -------
    Result
        In ``parts``, one for each instruction set, and then "uniforms" and "independence".

    Raises
    ------
    TypeError, ValueError
        If an argument is not as above.

    Notes
    -----
    It switches the core between its instruction sets, for the whole process, and back at the end:
    not while another thread draws.
    """
    if draws is None:
        draws = DEEP_DRAWS if deep else DRAWS
    draws = check_integer("draws", draws, 1, 2**40, "an integer >= 1")
    seed = check_integer("seed", seed, 0, U64_END, U64_TEXT)
    isas = build_info()["isas"]
    calls = min(draws, DEEP_CALLS if deep else CALLS)
    level = ALPHA / (len(isas) + 2)
    row = _logits()
    laws = {name: _law_of(stages)(row) for name, stages in SETTINGS.items()}
    parts: dict[str, Outcome] = {}
    with bar((len(isas) + 1) * len(SETTINGS) + 1, "parts", progress) as shown:
        for place, isa in enumerate(isas):
            with _running_on(isa):
                parts[isa] = _instruction_set(
                    row, laws, draws, (seed + place) % U64_END, level, shown
                )
        shown.set_description("uniforms")
        parts["uniforms"] = _uniforms(seed, level, calls)
        shown.update(1)
        parts["independence"] = _independence(seed, level, calls, deep, shown)
    outcome = combined(parts, alpha=ALPHA, power=POWER, seeds={"seed": seed})
    # Of the least sharp of all settings on all instruction sets.
    bias = max(parts[isa].detectable_bias for isa in isas)
    return report("selftest", replace(outcome, detectable_bias=bias))


def _logits() -> npt.NDArray[np.float32]:
    """A row such as a language model gives: a few tokens ahead of many.

    Every number is one of bfloat16 and of float16, so that one law holds for all dtypes.
    """
    rng = np.random.default_rng(7)
    row = rng.normal(0.0, 2.0, _VOCAB)
    ahead = rng.choice(_VOCAB, 24, replace=False)
    row[ahead] = np.linspace(9.0, 14.0, 24)
    return (np.round(row * 16) / 16).astype(np.float32)


def _as_dtype(batch: npt.NDArray[np.float32], dtype: str) -> dict[str, Any]:
    """The arguments that hand over a batch: bfloat16 goes as raw words."""
    if dtype == "bfloat16":
        return {"logits": (batch.view(np.uint32) >> 16).astype(np.uint16), "dtype": dtype}
    return {"logits": batch.astype(dtype)}


@contextmanager
def _running_on(isa: str) -> Iterator[None]:
    before = build_info()["isa"]
    _core.choose_isa(isa)
    try:
        yield
    finally:
        _core.choose_isa(before)


def _instruction_set(
    row: npt.NDArray[np.float32],
    laws: dict[str, Floats],
    draws: int,
    seed: int,
    level: float,
    shown: Any,
) -> Outcome:
    parts: dict[str, Outcome] = {}
    alpha = level / (2 * len(SETTINGS) * len(DTYPES))
    batch = np.tile(row, (_BATCH, 1))
    n = -(-draws // (_BATCH * _STEPS))
    for name, stages in SETTINGS.items():
        shown.set_description(name)
        wanted = _expected(laws[name], seed)
        for i, dtype in enumerate(DTYPES):
            logits = _as_dtype(batch, dtype)
            what = f"{name}, {dtype}"
            s = Sampler(stages, seed=seed)
            got = np.array([s(**logits) for _ in range(_STEPS)])
            parts[f"{what}, one by one"] = _one_by_one(Kind.TOKENS, got, wanted, alpha)
            # Another seed for each dtype: else all of them would draw the same tokens.
            s = Sampler(stages, seed=(seed + (1 + i) * 2**32) % U64_END)
            tokens = np.array([s.sample(**logits, n=n).tokens for _ in range(_STEPS)])
            counts = count_tokens("tokens", tokens, len(row))
            parts[what] = judge_counts(check_probs("law", laws[name]), counts, alpha, POWER)
        shown.update(1)
    return _joined(parts, level)


def _expected(law: Floats, seed: int) -> npt.NDArray[np.int64]:
    """The tokens that the law gives at the reference's uniforms."""
    sums = np.cumsum(law)
    u = [
        [reference.uniform(seed, stream=row, step=step) for row in range(_BATCH)]
        for step in range(_STEPS)
    ]
    tokens: npt.NDArray[np.int64] = np.searchsorted(sums, np.array(u) * sums[-1], side="right")
    return tokens


def _one_by_one(kind: Kind, got: Any, wanted: Any, alpha: float) -> Outcome:
    """All equal, or a fault: no odds."""
    wrong = int(np.count_nonzero(got != wanted))
    findings = [Finding(kind, observed=wrong, size=got.size)] if wrong else []
    return exact(got.size, findings, alpha, POWER)


def _uniforms(seed: int, level: float, draws: int) -> Outcome:
    """NumPy's, bit for bit; uniform along each part of the key; neighbours independent."""
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, U64_END, (_UNIFORMS, 4), np.uint64, endpoint=False).tolist()
    parts = {
        "uniforms, one by one": _one_by_one(
            Kind.UNIFORMS,
            np.array([_uniform(*key) for key in keys]),
            np.array([reference.uniform(a, b, c, lane=lane) for a, b, c, lane in keys]),
            level / 2,
        ),
        "streams": judge_streams(
            _uniform, alpha=level / 2, power=POWER, draws=draws,
            axes=("seed", "stream", "step", "lane"), seed=seed, bits=53, progress=False,
        ),
    }  # fmt: skip
    return _joined(parts, level)


def _uniform(seed: int = 0, stream: int = 0, step: int = 0, lane: int = 0) -> float:
    out = np.empty((1, 1))
    _core.uniforms(out, seed, step, np.array([stream], np.uint64), None, lane)
    return float(out[0, 0])


def _independence(seed: int, level: float, draws: int, deep: bool, shown: Any) -> Outcome:
    """Rows, steps and seeds next to each other; shifted, padded, permuted, strided logits."""
    row = _logits()
    row = row[np.argsort(-row, kind="stable")[:_SHORT]]
    row = row[np.random.default_rng(seed).permutation(len(row))]
    parts = {}
    for name, stages in SETTINGS.items():
        shown.set_description(name)
        parts[name] = SamplerCheck(
            partial(_seeded, stages), row[None], _law_of(stages), alpha=level / len(SETTINGS),
            power=POWER, draws=draws, batch=None, seeded=True, seed=seed, ties=True,
            relations=True, tail=deep and name == "softmax",
        ).run(progress=False)  # fmt: skip
        shown.update(1)
    return _joined(parts, level)


def _seeded(stages: tuple[Stage, ...], seed: int) -> Sampler:
    return Sampler(stages, seed=seed)


def _law_of(stages: tuple[Stage, ...]) -> Callable[[Any], Floats]:
    coins = [0.0] * sum(stage.has_coin for stage in stages)  # each falls
    return lambda row: reference.probabilities(reference.kept(row, stages, coins=coins), len(row))


def _joined(parts: dict[str, Outcome], level: float) -> Outcome:
    outcome = combined(parts, alpha=level, power=POWER)
    return replace(outcome, detectable_bias=max(part.detectable_bias for part in parts.values()))
