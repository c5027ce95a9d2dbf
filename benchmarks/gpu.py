"""Rows on a GPU: the tokens of the CPU, and what the way through the host costs.

Prints the table of docs/gpu.md for the card that torch sees; with --cpu, the same calls on the CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import torch
from tqdm import tqdm
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sampler import Sampler, build_info

VOCABS, BATCHES = (32_000, 128_000, 152_000), (1, 32)
SETTINGS = {
    "T 0.8, top-k 50": {"temperature": 0.8, "top_k": 50},
    "T 0.8, top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "T 0.8": {"temperature": 0.8},
}


def hugging_face(settings: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Draw as ``generate()`` does."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings["temperature"])])
    if "top_k" in settings:
        warpers.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        warpers.append(TopPLogitsWarper(settings["top_p"]))
    return lambda x: torch.multinomial(torch.softmax(warpers(None, x), dim=-1), 1)[:, 0]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_us(call: Callable[[torch.Tensor], Any], x: torch.Tensor, rounds: int) -> float:
    """Time a call, from logits that are ready to tokens that are."""
    times = []
    for _ in range(rounds + 3):
        wait(x.device)
        start = time.perf_counter()
        call(x)
        wait(x.device)
        times.append(time.perf_counter() - start)
    return sorted(times[3:])[rounds // 2] * 1e6


def check(device: torch.device, rows: int) -> None:
    """Raise unless the tokens of rows on the device are those of the same rows on the CPU."""
    generator = torch.Generator().manual_seed(0)
    with tqdm(total=rows, desc="Comparing with the CPU", unit="row") as bar:
        for first in range(0, rows, 100):
            here = torch.randn(min(100, rows - first), 32_000, generator=generator) * 3
            for number, settings in enumerate(SETTINGS.values()):
                s = Sampler(**settings, seed=first + number)
                there = s.sample(here.to(device), steps=0).tokens
                if not torch.equal(there.cpu(), s.sample(here, steps=0).tokens):
                    raise SystemExit(f"tokens differ among rows {first} to {first + 99}, {s}")
            bar.update(len(here))


@click.command()
@click.option("--cpu", is_flag=True, help="Tensors on the CPU, where there is no GPU.")
@click.option("--rows", default=10_000, show_default=True, help="How many to compare.")
@click.option("--rounds", default=50, show_default=True, help="How many calls to time.")
def main(cpu: bool, rows: int, rounds: int) -> None:
    """Compare the tokens of rows on a GPU with the CPU's, and time both ways."""
    if not (cpu or torch.cuda.is_available()):
        click.echo("torch sees no GPU here; --cpu makes the same calls with tensors on the CPU.")
        return
    device = torch.device("cpu" if cpu else "cuda")
    check(device, rows)
    card = "CPU" if cpu else torch.cuda.get_device_name(device)
    click.echo(f"\n{card}, torch {torch.__version__}, {build_info()['isa']}, float32: us\n")
    click.echo("| V | rows | setting | sampler | Hugging Face |\n|---|---|---|---|---|")
    for vocab in VOCABS:
        for batch in BATCHES:
            x = torch.randn(batch, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
            x = x.to(device)
            for name, settings in SETTINGS.items():
                ours = median_us(Sampler(**settings, seed=7), x, rounds)
                theirs = median_us(hugging_face(settings), x, rounds)
                click.echo(f"| {vocab:,} | {batch} | {name} | {ours:,.0f} | {theirs:,.0f} |")


if __name__ == "__main__":
    main()
