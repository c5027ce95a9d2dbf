"""A token of generate(): greedy, Hugging Face's sampling and ours, in one process.

SmolLM2-135M-Instruct, and tiny random models in which sampling is a larger share. One text of a
fixed length, its end suppressed. Every round runs each way once, in an order that rotates, so that
a slow minute of the machine falls on all of them; what counts is the median of the ratios to greedy
within a round. pytest-benchmark's own figures are those of our way. All cores work.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import _machine
from _rows import TOP_P
from sampler import Sampler, hf

sys.path.insert(0, str(Path(__file__).parents[1] / "demos"))
import _model

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."
OURS = "ours"


def bench_smollm2(benchmark: Any) -> None:
    model, tokenizer = _model.load()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    _alternate(benchmark, model, inputs, tokens=128, rounds=6, model_name=_model.DEFAULT_NAME)


@pytest.mark.parametrize("vocab", [49_152, 128_256, 262_144])
def bench_tiny(benchmark: Any, vocab: int) -> None:
    """Two layers of 128, with logits as spread out as a trained model's: deviation 4, not 0.2."""
    torch.manual_seed(0)
    hidden = 128
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    # The last norm leaves a vector of length sqrt(hidden).
    torch.nn.init.normal_(model.lm_head.weight, std=4.0 / hidden**0.5)
    ids = torch.randint(vocab, (1, 32))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _alternate(
        benchmark, model, inputs, tokens=64, rounds=7, most=3, model_name="random, 2 layers of 128"
    )


def _ways(model: Any, inputs: Any) -> dict[str, Callable[..., Any]]:
    s = Sampler(**TOP_P.keywords, seed=7)
    mask = inputs["attention_mask"]
    theirs = {"do_sample": True, "temperature": TOP_P.temperature, "top_p": TOP_P.top_p, "top_k": 0}
    return {
        "greedy": lambda **more: model.generate(**inputs, do_sample=False, **more),
        "Hugging Face": lambda **more: model.generate(**inputs, **theirs, **more),
        OURS: lambda **more: model.generate(
            **inputs, **hf.generate_kwargs(s, attention_mask=mask, logprobs=None), **more
        ),
        "ours, samples recorded": lambda **more: model.generate(
            **inputs, **hf.generate_kwargs(s, attention_mask=mask), **more
        ),
        "our filters, their draw": lambda **more: model.generate(
            **inputs, **hf.filter_kwargs(s), **more
        ),
        "sampler.hf.generate": lambda **more: hf.generate(model, **inputs, sampler=s, **more),
    }


def _alternate(
    benchmark: Any,
    model: Any,
    inputs: Any,
    *,
    tokens: int,
    rounds: int,
    model_name: str,
    most: int | None = None,
) -> None:
    """Time the first `most` ways in turn."""
    torch.set_num_threads(_machine.cores())
    # Chosen tokens differ between the ways: none may end a text early.
    model.generation_config.eos_token_id = None
    vocab = model.config.vocab_size
    benchmark.group = f"a token of {model_name}, V = {vocab:,}"
    ways = dict(list(_ways(model, inputs).items())[:most])
    for way in ways.values():
        way(max_new_tokens=4)
    others = [name for name in ways if name != OURS]
    times: dict[str, list[float]] = {name: [] for name in ways}

    def run_others() -> None:
        turn = len(times["greedy"]) % len(others)
        for name in others[turn:] + others[:turn]:
            start = time.perf_counter()
            ways[name](max_new_tokens=tokens)
            times[name].append(time.perf_counter() - start)

    benchmark.pedantic(
        ways[OURS], kwargs={"max_new_tokens": tokens}, setup=run_others, rounds=rounds
    )
    if benchmark.disabled:
        return
    times[OURS] = benchmark.stats.stats.data
    benchmark.extra_info.update(
        model=model_name,
        vocab=vocab,
        tokens=tokens,
        threads=torch.get_num_threads(),
        setting=str(TOP_P),
        ms_per_token={name: [t / tokens * 1e3 for t in times[name]] for name in ways},
    )
