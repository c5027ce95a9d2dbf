"""Time penalties, DRY and bias against the bare draw, and against peers.

    make bench-history
    make bench-history PEERS=llama

V = 131,072, top-p 0.9, one thread, float32. Ours is the median of the call less that of the bare
draw. Of the others only the edit is timed, without a draw: Hugging Face's processors on a torch
row, llama.cpp's samplers on an array that is filled before the clock starts, with all tokens
accepted. *text* has the words' frequencies of a text, *loop* repeats 40 tokens word for word.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import _machine
from _rows import recorded
from _tables import new_console, new_table
from sampler import Sampler
from sampler.history import History
from sampler.masks import read_mask

Array = npt.NDArray[Any]
VOCAB = 131_072
BARE = {"top_p": 0.9, "seed": 0}


def timed(call: Callable[[], Any], rounds: int, before: Callable[[], Any] | None = None) -> float:
    """The median time of a call, in microseconds."""
    found = []
    for i in range(rounds + 5):
        if before is not None:
            before()
        start = time.perf_counter_ns()
        call()
        if i >= 5:
            found.append(time.perf_counter_ns() - start)
    return median(found) / 1e3


def a_row(rng: np.random.Generator) -> Array:
    """A recorded row, and copies of it three nats lower to fill the vocabulary."""
    row = np.asarray(recorded()[5], np.float32)
    x = np.tile(row, -(-VOCAB // len(row)))[:VOCAB].copy()
    x[len(row) :] -= np.abs(rng.normal(3, 1, VOCAB - len(row))).astype(np.float32)
    return x


def hugging_face(x: Array, tokens: Array, keywords: dict[str, Any], rounds: int) -> float | None:
    import torch
    from transformers import (
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
    )

    torch.set_num_threads(1)
    processors: list[Any] = []
    for name, value in keywords.items():
        if name == "repetition_penalty":
            processors.append(RepetitionPenaltyLogitsProcessor(value))
        elif name == "no_repeat_ngram_size":
            processors.append(NoRepeatNGramLogitsProcessor(value))
        elif name == "logit_bias":
            processors.append(SequenceBiasLogitsProcessor({(i,): b for i, b in value.items()}))
        else:
            return None
    ids, scores = torch.tensor(tokens[None]), torch.tensor(x[None])

    def call() -> None:
        row = scores
        for processor in processors:
            row = processor(ids, row)

    return timed(call, rounds)


class Llama:
    """llama.cpp's samplers; a vocabulary for DRY, whose breakers are none here."""

    def __init__(self) -> None:
        import llama_cpp as llama

        from _peers import Candidates
        from llama_histories import Vocabulary

        self.llama, self.candidates, self.vocab = llama, Candidates(), Vocabulary().vocab

    def time(self, x: Array, tokens: Array, keywords: dict[str, Any], rounds: int) -> float | None:
        llama, n = self.llama, len(tokens)
        if isinstance(keywords.get("dry"), tuple):
            return None  # breakers are strings there
        if "dry" in keywords:
            none = (ctypes.c_char_p * 1)()
            sampler = llama.llama_sampler_init_dry(self.vocab, 0.8, 1.75, 2, n, none, 0)
        elif not keywords.keys() & {"no_repeat_ngram_size", "logit_bias"}:
            values = [
                keywords.get(f"{name}_penalty", off)
                for name, off in (("repetition", 1.0), ("frequency", 0.0), ("presence", 0.0))
            ]
            sampler = llama.llama_sampler_init_penalties(VOCAB, n, *values)
        else:
            return None
        for token in tokens.tolist():
            llama.llama_sampler_accept(sampler, token)
        array = self.candidates.fill(x)
        reference = ctypes.byref(array)
        found = timed(
            lambda: llama.llama_sampler_apply(sampler, reference),
            rounds,
            lambda: self.candidates.fill(x),
        )
        llama.llama_sampler_free(sampler)
        return found


@click.command(help=__doc__.splitlines()[0])
@click.option("--rounds", default=100, show_default=True)
def main(rounds: int) -> None:
    rng = np.random.default_rng(0)
    x = a_row(rng)
    words = np.minimum((rng.pareto(0.8, 200_000) * 20).astype(int), 49_000)
    loop = np.tile(words[:40], 131_072 // 40 + 1)
    all_three = {"repetition_penalty": 1.1, "frequency_penalty": 0.5, "presence_penalty": 0.5}
    cases: list[tuple[str, Array, dict[str, Any]]] = []
    for n in (64, 4096):
        text = words[:n]
        cases += [
            (f"repetition, {n:,} tokens", text, {"repetition_penalty": 1.1}),
            (f"frequency, {n:,} tokens", text, {"frequency_penalty": 0.5}),
            (f"all three, {n:,} tokens", text, all_three),
            (f"no repeated trigram, {n:,} tokens", text, {"no_repeat_ngram_size": 3}),
        ]
    for n in (8192, 131_072):
        cases += [
            (f"DRY, text, {n:,} tokens", words[:n], {"dry": 0.8}),
            (f"DRY, loop, {n:,} tokens", loop[:n], {"dry": 0.8}),
        ]
    breakers = [[int(i)] for i in rng.permutation(np.arange(49_001, 51_001))]
    many = {"dry": (0.8, 1.75, 2, None, False, breakers)}
    cases.append(("DRY, loop, 131,072 tokens, 2,000 breakers", loop[:131_072], many))
    cases.append(("bias of 50 tokens", words[:64], {"logit_bias": dict.fromkeys(range(50), 1.0)}))
    try:
        llama: Llama | None = Llama()
    except ImportError:
        llama = None
    table = new_table(
        f"V = {VOCAB:,}, float32: us over the bare draw",
        "",
        right=("sampler", "Hugging Face", "llama.cpp"),
    )
    bare = Sampler(**BARE)
    for name, tokens, keywords in cases:
        s, h = Sampler(**BARE, **keywords), History([], tokens)
        ours = timed(lambda s=s, h=h: s(x, history=h), rounds)
        ours -= timed(lambda: bare(x), rounds)
        others = [
            hugging_face(x, tokens, keywords, max(rounds // 5, 5)),
            llama.time(x, tokens, keywords, max(rounds // 5, 5)) if llama else None,
        ]
        shown = ("" if one is None else f"{one:,.1f}" for one in others)
        table.add_row(name, f"{ours:,.1f}", *shown)
    console = new_console()
    console.print(table)
    console.print(f"The bare draw: {timed(lambda: bare(x), rounds):.1f} us.")
    console.print(batch(x, words, rng, rounds))
    info = _machine.describe()
    console.print(
        f"sampler {version('token-sampler')}, NumPy {np.__version__}, "
        f"transformers {known('transformers')}, torch {known('torch')} on one thread, "
        f"llama-cpp-python {known('llama-cpp-python')}, {info['isa']}, {info['processor']}"
    )


def batch(x: Array, words: Array, rng: np.random.Generator, rounds: int) -> str:
    """32 rows, each with its own history and mask, over the sum of 32 single calls."""
    histories = [History([], words[100 * i : 100 * i + 500]) for i in range(32)]
    rows = np.stack([x] * 32)
    masks = read_mask(rng.random(rows.shape) < 0.75, rows.shape)
    s = Sampler(**BARE, repetition_penalty=1.1)

    def singles() -> None:
        for i in range(32):
            s(rows[i], history=histories[i], mask=masks[i])

    alone = timed(singles, rounds // 4)
    together = timed(lambda: s(rows, history=histories, mask=masks), rounds // 4)
    return f"32 rows with histories and masks: {together / alone:.2f} of the sum of single calls."


def known(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(none)"


if __name__ == "__main__":
    main()
