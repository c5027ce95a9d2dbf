"""Show that a row's text does not depend on its batch: same seed, stream and prompt, same text.

    python demos/batch.py --seed 7 --temperature 1.2

Each prompt is continued alone, with its stream; then in one left-padded batch; then in a batch of
another order, its stream brought along; then padded by 16 more. The exit status is 1 if any text
differs from the one written alone.

The draws depend on nothing else, bit for bit. The logits do: a matrix product of another shape
rounds differently, and a draw that lies as near to a boundary between two tokens as the rounding
is large may fall on its other side. How likely that was is counted, and a text that differs is
shown as such.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from _model import DEFAULT_NAME, load, token_text
from sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sampler import Distribution

PROMPTS = (
    "The",
    "Once upon a time, there was a",
    "In my opinion, the most important thing in life is",
    "def fibonacci(n):\n    if n <",
    "Dear Sir or Madam,\n\nI am writing to complain about the",
    "The old man walked slowly along the beach. The gulls were quiet, a dog barked somewhere. He",
)
MORE_PADDING = 16


@dataclass
class Row:
    """One continuation: its tokens, and the logits that each was drawn from."""

    tokens: list[int]
    logits: torch.Tensor


@dataclass
class Difference:
    """How a row compares with the same row alone.

    Attributes
    ----------
    place : int or None
        The first token that differs; None if none does.
    logits : float
        The largest difference of two logits, up to and including that token.
    chance : float
        The expected number of tokens, among the same, that rounding makes another.
    """

    place: int | None
    logits: float
    chance: float


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    s: Sampler,
    prompts: Sequence[str],
    streams: Sequence[int],
    max_new_tokens: int,
    more_padding: int = 0,
) -> list[Row]:
    """Continue the prompts as one batch, row i with ``streams[i]``."""
    import torch

    from sampler.hf import generate_kwargs

    longest = max(len(ids) for ids in tokenizer(list(prompts))["input_ids"])
    inputs = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=longest + more_padding,
        padding_side="left",
        return_tensors="pt",
    )
    settings = generate_kwargs(
        s,
        attention_mask=inputs["attention_mask"],
        streams=streams,
        eos_token_id=model.generation_config.eos_token_id,
    )
    output = model.generate(
        **inputs,
        **settings,
        max_new_tokens=max_new_tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(output.logits, dim=1)
    drawn = settings["logits_processor"][-1].samples.tokens
    # A row has as many tokens as were drawn before it ended; -1 fills the rest.
    return [Row(tokens[tokens >= 0].tolist(), logits[row]) for row, tokens in enumerate(drawn)]


def flip_chance(ours: Distribution, theirs: Distribution) -> float:
    """How much of [0, 1) draws one token from one distribution and another from the other."""
    # A draw finds its uniform between the cumulative probabilities of token - 1 and token.
    ends = [np.cumsum(d.dense().numpy()) for d in (ours, theirs)]
    starts = [np.concatenate([[0.0], end[:-1]]) for end in ends]
    shared = np.clip(np.minimum(*ends) - np.maximum(*starts), 0.0, None)
    return max(0.0, 1.0 - float(shared.sum()))


def compare(s: Sampler, alone: Row, other: Row) -> Difference:
    """Compare a row with the same row alone, as long as both have read the same tokens."""
    # One cannot be the beginning of the other: the last token or the length ends both.
    pairs = enumerate(zip(alone.tokens, other.tokens, strict=False))
    place = next((i for i, (mine, theirs) in pairs if mine != theirs), None)
    seen = len(alone.tokens) if place is None else place + 1
    logits = list(zip(alone.logits[:seen], other.logits[:seen], strict=True))
    return Difference(
        place,
        max((mine - theirs).abs().max().item() for mine, theirs in logits),
        sum(flip_chance(s.distribution(mine), s.distribution(theirs)) for mine, theirs in logits),
    )


def explain(
    name: str, difference: Difference, alone: Row, other: Row, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Say where a text began to differ, and by how much the model's logits did."""
    place = difference.place
    mine, theirs = (token_text(tokenizer, row.tokens[place]) for row in (alone, other))
    return (
        f'{name}: differs from token {place + 1} on, "{theirs}" instead of "{mine}". '
        f"Up to there the model's logits differ by {difference.logits:.1e}."
    )


def cut(text: str) -> Text:
    """One line of a table cell, white space made single spaces, cut at its width."""
    return Text(" ".join(text.split()), no_wrap=True, overflow="ellipsis")


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=40)
@click.option("--temperature", type=float, default=0.8, help="0 is greedy, 1 is off.")
@click.option("--top-p", type=float, default=0.9, help="Keep this much probability; 1 is off.")
@click.option("--seed", type=int, default=0)
@click.option("--float64", is_flag=True, help="Run the model in float64, which hardly rounds.")
@click.option("--model", "name", default=None, help=f"Hub id or folder.  [default: {DEFAULT_NAME}]")
def main(
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    float64: bool,
    name: str | None,
) -> None:
    """Show that a row's text does not depend on its batch."""
    try:
        s = Sampler(temperature=temperature, top_p=top_p, seed=seed)
    except (TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    model, tokenizer = load(name, console=Console(stderr=True))
    if float64:
        model = model.double()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token

    rows = range(len(PROMPTS))
    shuffled = np.random.default_rng(seed).permutation(len(PROMPTS)).tolist()
    # Each way is a list of batches: the rows in their order, and the padding beyond the longest.
    ways = {
        "alone": [([row], 0) for row in rows],
        "batch": [(rows, 0)],
        "shuffled": [(shuffled, 0)],
        f"+{MORE_PADDING} padding": [(rows, MORE_PADDING)],
    }
    written: dict[str, dict[int, Row]] = {way: {} for way in ways}
    with tqdm(total=sum(map(len, ways.values())), desc="batches", leave=False, disable=None) as bar:
        for way, batches in ways.items():
            for order, more in batches:
                prompts = [PROMPTS[row] for row in order]
                done = write(model, tokenizer, s, prompts, order, max_new_tokens, more)
                written[way].update(zip(order, done, strict=True))
                bar.update()

    console = Console(highlight=False)
    console.print(escape(f"{s!r}, {name or DEFAULT_NAME}, {str(model.dtype).split('.')[-1]}\n"))
    alone = written.pop("alone")
    table = Table(expand=True)
    table.add_column("prompt", ratio=2)
    table.add_column("text, written alone", ratio=3)
    for way in written:
        table.add_column(way, justify="center", no_wrap=True)
    differences = []
    explained = []
    for row in rows:
        cells = [cut(PROMPTS[row]), cut(tokenizer.decode(alone[row].tokens))]
        for way, others in written.items():
            difference = compare(s, alone[row], others[row])
            differences.append(difference)
            cells.append("[green]✓[/]" if difference.place is None else "[red]✗[/]")
            if difference.place is not None:
                where = f"Prompt {row + 1}, {way}"
                explained.append(explain(where, difference, alone[row], others[row], tokenizer))
        table.add_row(*cells)
    console.print(table)
    for line in explained:
        console.print(line, style="red", markup=False)

    same, total = len(differences) - len(explained), len(differences)
    rounding = max(d.logits for d in differences)
    chance = sum(d.chance for d in differences)
    console.print(
        f"\n{same} of {total} texts are the same as alone, token for token.\n"
        "A batch of another shape rounds differently inside the model: its logits differ by up to "
        f"{rounding:.1e}, enough to change {chance:.1g} of these {total} texts on average."
    )
    if explained:
        sys.exit(1)


if __name__ == "__main__":
    main()
