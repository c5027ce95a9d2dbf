"""Time a token of generate(): greedy, Hugging Face's sampling and ours, in one process.

    make bench        # or, where sampler is installed: python benchmarks/generation.py

SmolLM2-135M-Instruct in float32, one text of a fixed length, its end suppressed. Every round runs
each way once, in an order that rotates, so that a slow minute of the machine falls on all of them;
quoted are medians over the rounds, and the median of the ratios to greedy within a round.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "demos"))
from _machine import describe
from _model import load
from sampler import Sampler, hf

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."
TOKENS = 64
ROUNDS = 15


def main() -> None:
    """Print a table of what a token costs."""
    console = Console()
    model, tokenizer = load(console=console)
    # Chosen tokens differ between the ways: none may end a text early.
    model.generation_config.eos_token_id = None
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}],
        add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    mask = inputs["attention_mask"]
    s = Sampler(temperature=0.8, top_p=0.9, seed=7)
    theirs = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}

    ways: dict[str, Callable[..., torch.Tensor]] = {
        "greedy": lambda **length: model.generate(**inputs, do_sample=False, **length),
        "Hugging Face": lambda **length: model.generate(**inputs, **theirs, **length),
        "ours": lambda **length: model.generate(
            **inputs, **hf.generate_kwargs(s, attention_mask=mask, logprobs=None), **length
        ),
        "ours, samples recorded": lambda **length: model.generate(
            **inputs, **hf.generate_kwargs(s, attention_mask=mask), **length
        ),
        "our filters, their draw": lambda **length: model.generate(
            **inputs, **hf.filter_kwargs(s), **length
        ),
        "sampler.hf.generate": lambda **length: hf.generate(model, **inputs, sampler=s, **length),
    }
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for way in ways.values():
        way(max_new_tokens=4)
    for r in track(range(ROUNDS), description="Rounds", console=console, transient=True):
        for name in names[r % len(names) :] + names[: r % len(names)]:
            start = time.perf_counter()
            ways[name](max_new_tokens=TOKENS)
            times[name].append((time.perf_counter() - start) / TOKENS * 1e3)

    console.print(
        f"{describe()}; float32, {torch.get_num_threads()} threads, temperature 0.8, top-p 0.9",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(title=f"A token of SmolLM2-135M-Instruct (V = {model.config.vocab_size:,})")
    table.add_column("way", no_wrap=True)
    for heading in ("ms a token", "to greedy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in names:
        ratios = [ours / greedy for ours, greedy in zip(times[name], times["greedy"], strict=True)]
        table.add_row(
            name, f"{statistics.median(times[name]):.2f}", f"{statistics.median(ratios):.3f}"
        )
    console.print(table)


if __name__ == "__main__":
    main()
