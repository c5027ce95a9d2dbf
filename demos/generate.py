"""Stream text that a language model writes through the sampler.

    python demos/generate.py --prompt "Why is the sky blue?" --temperature 0.7 --top-k 40

The text goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from _model import DEFAULT_NAME, load
from sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."


class Stopwatch:
    """Wrap a logits processor and add up the time spent in it.

    Parameters
    ----------
    processor : callable
        A Hugging Face ``LogitsProcessor``, called with token ids and scores.
    """

    def __init__(
        self, processor: Callable[[torch.LongTensor, torch.FloatTensor], torch.FloatTensor]
    ) -> None:
        self.processor = processor
        self.calls = 0
        self.seconds = 0.0

    # generate() counts this signature's arguments: exactly these two.
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Pass the scores through the wrapped processor, and time it."""
        start = time.perf_counter()
        scores = self.processor(input_ids, scores)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return scores


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--prompt", default=PROMPT, help="What to tell the model.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=200)
@click.option("--temperature", type=float, default=0.8, help="0 is greedy, 1 is off.")
@click.option("--top-k", type=int, default=0, help="Keep the k most likely tokens; 0 is off.")
@click.option("--top-p", type=float, default=0.9, help="Keep this much probability; 1 is off.")
@click.option("--min-p", type=float, default=0.0, help="Keep tokens this likely; 0 is off.")
@click.option("--seed", type=int, default=None, help="Repeat an earlier text.  [default: fresh]")
@click.option("--model", "name", default=None, help=f"Hub id or folder.  [default: {DEFAULT_NAME}]")
@click.option("--raw", is_flag=True, help="Continue the prompt as it stands: no chat template.")
def main(
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    name: str | None,
    raw: bool,
) -> None:
    """Stream text that a language model writes through the sampler."""
    console = Console(stderr=True)
    if not prompt:
        raise click.UsageError("the prompt is empty")
    if seed is None:
        seed = secrets.randbits(32)  # 32 of the 64 bits: short enough to type again
    try:
        s = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    except (TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None

    model, tokenizer = load(name, console=console)
    # These import transformers, which takes seconds: after the settings have been checked.
    from transformers import TextStreamer

    from sampler.hf import generate_kwargs

    if raw or tokenizer.chat_template is None:
        inputs = tokenizer(prompt, return_tensors="pt")
        streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    else:
        message = {"role": "user", "content": prompt}
        inputs = tokenizer.apply_chat_template(
            [message], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        console.print(f"\n> {prompt}\n", style="bold", markup=False, highlight=False)

    # The whole integration is this one line; the stopwatch only feeds the summary.
    settings = generate_kwargs(s, attention_mask=inputs["attention_mask"])
    processors = settings["logits_processor"]
    processors[0] = stopwatch = Stopwatch(processors[0])

    stopped = ""
    start = time.perf_counter()
    try:
        model.generate(**inputs, **settings, streamer=streamer, max_new_tokens=max_new_tokens)
    except KeyboardInterrupt:
        streamer.end()  # prints the words that still wait in the streamer
        stopped = " (stopped)"
    seconds = time.perf_counter() - start

    table = Table(show_header=False, title="Summary", title_justify="left")
    table.add_row("model", escape(name or DEFAULT_NAME))
    table.add_row("settings", escape(repr(s)))
    table.add_row("seed", str(seed))
    table.add_row("tokens", f"{stopwatch.calls}{stopped}")
    table.add_row("tokens/s", f"{stopwatch.calls / seconds:.1f}")
    table.add_row("sampling", f"{stopwatch.seconds / seconds:.2%} of the time")
    console.print()
    console.print(table)


if __name__ == "__main__":
    main()
