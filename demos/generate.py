"""Write text with a language model, each token drawn by the sampler.

    python demos/generate.py --prompt "Why is the sky blue?" --temperature 0.7 --top-k 40
    python demos/generate.py --raw --prompt "The sea" -n 3 --max-new-tokens 30 --logprobs 5
    python demos/generate.py --set repetition_penalty=1.1 --set dry=0.8 --set xtc=0.1,0.5

One text is streamed; several are written as one batch, and shown when all are done. The text goes
to standard output, everything else to standard error.
"""

from __future__ import annotations

import ast
import math
import secrets
import time
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from _model import DEFAULT_NAME, load, token_text
from sampler import Sampler
from sampler.stages.settings import STAGES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from transformers import PreTrainedTokenizerBase

    from sampler import Samples

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


class BarStreamer:
    """Count the tokens of a batch on a progress bar: ``TextStreamer`` takes one row only.

    Parameters
    ----------
    total : int
        The most tokens that a row can get.
    """

    def __init__(self, total: int) -> None:
        # disable=None: no bar where standard error is a file.
        self.bar = tqdm(total=total, desc="tokens of each text", leave=False, disable=None)

    def put(self, tokens: torch.Tensor) -> None:
        """Take what generate() hands over: the prompts first, then one token per row."""
        if tokens.ndim == 1:
            self.bar.update()

    def end(self) -> None:
        """Remove the bar."""
        self.bar.close()


def read_order(
    context: click.Context, option: click.Parameter, value: str | None
) -> list[str] | None:
    """Split ``--order`` into names of settings."""
    if value is None:
        return None
    names = value.replace("-", "_").replace(" ", "").split(",")
    if not set(names) <= STAGES.keys() or len(set(names)) < len(names):
        raise click.BadParameter(f"has to name some of {', '.join(STAGES)}, each once")
    return names


def read_settings(
    context: click.Context, option: click.Parameter, values: Sequence[str]
) -> dict[str, Any]:
    """Read ``--set NAME=VALUE``, the value as Python writes it."""
    settings = {}
    for text in values:
        name, _, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in STAGES:
            raise click.BadParameter(f"has to set one of {', '.join(STAGES)}, but sets {name!r}")
        try:
            settings[name] = ast.literal_eval(value.strip())
        except (SyntaxError, ValueError):
            raise click.BadParameter(
                f"{value!r} is not a value: write 0.8, (0.1, 0.5) ..."
            ) from None
    return settings


def make_sampler(order: Sequence[str] | None, named: Mapping[str, Any], **others: Any) -> Sampler:
    """Make a sampler whose stages are those of `order`, then the rest as usual."""
    if order is None:
        return Sampler(**named, **others)
    chain = [STAGES[name].of(named.get(name)) for name in dict.fromkeys([*order, *named])]
    chain.sort(key=lambda stage: stage.kind != "edit")  # which come first
    return Sampler([stage for stage in chain if not stage.is_off], **others)


def encode(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool) -> Mapping[str, Any]:
    """Turn the prompt into the model's inputs, a batch of one row."""
    if not chat:
        return tokenizer(prompt, return_tensors="pt")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )


def logprob_table(
    samples: Samples, row: int, tokenizer: PreTrainedTokenizerBase, top: int
) -> Table:
    """List the log-probability, rank and likeliest alternatives of each token of a text."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    for name in ("#", "token", "id", "p", "ln p", "raw ln p", "rank", "kept"):
        table.add_column(name, justify="left" if name == "token" else "right", no_wrap=True)
    if top:
        table.add_column("most likely:p", overflow="fold")
    table.caption = "p: under the settings; raw: the model's own; kept: how many the settings left"

    for place, drawn in enumerate(samples[row]):
        if drawn.tokens < 0:  # this text has ended, others of its batch have not
            break
        token = Text(token_text(tokenizer, drawn.tokens), style="bold")  # where "[" is no markup
        cells = [
            str(place + 1),
            token,
            str(drawn.tokens),
            f"{math.exp(drawn.logprobs):.3g}",
            f"{drawn.logprobs:.3f}",
            f"{drawn.raw_logprobs:.3f}",
            str(drawn.ranks),
            str(drawn.n_kept),
        ]
        if top:
            likely = zip(drawn.top_ids.tolist(), drawn.top_logprobs.exp().tolist(), strict=True)
            # Fewer than `top` where the settings left fewer: -1 fills the list.
            items = [(token_text(tokenizer, i), f":{p:.2g}") for i, p in likely if i >= 0]
            # No space inside an item, so that lines break between them.
            cells.append(Text("  ").join(Text(text).append(p, "dim") for text, p in items))
        table.add_row(*cells)
    return table


def show_texts(
    samples: Samples,
    prompts: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
    top: int | None,
) -> None:
    """Print each text under a heading, and unless `top` is None its log-probabilities."""
    for row, prompt in enumerate(prompts):
        if row:
            click.echo()
        console.rule(f"[bold]{row + 1} of {len(prompts)}[/]", align="left")
        drawn = samples.tokens[row]
        tokens = [*prompt, *drawn[drawn >= 0].tolist()]
        click.echo(tokenizer.decode(tokens, skip_special_tokens=True))
        if top is not None:
            console.print(logprob_table(samples, row, tokenizer, top))


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--prompt", default=PROMPT, help="The prompt.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it stands: no chat template.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=200)
@click.option(
    "-n",
    "--num-return-sequences",
    "count",
    type=click.IntRange(min=1),
    default=1,
    help="How many texts, written as one batch.",
)
@click.option("--temperature", type=float, default=0.8, help="0 is greedy, 1 is off.")
@click.option("--top-k", type=int, default=0, help="Keep the k most likely tokens; 0 is off.")
@click.option("--top-p", type=float, default=0.9, help="Keep this much probability; 1 is off.")
@click.option("--min-p", type=float, default=0.0, help="Keep tokens this likely; 0 is off.")
@click.option(
    "--set",
    "others",
    multiple=True,
    callback=read_settings,
    metavar="NAME=VALUE",
    help="Any other setting, such as repetition_penalty=1.1, dry=0.8 or xtc=0.1,0.5.",
)
@click.option("--min-tokens-to-keep", type=int, default=1, help="A floor for all of these.")
@click.option(
    "--ties",
    type=click.Choice(["id", "all"]),
    default="id",
    help="Of tokens equal to the k-th, top-k keeps the lowest ids, or all.",
)
@click.option(
    "--order",
    callback=read_order,
    metavar="NAME,...",
    help="Apply these stages first, such as top_k,top_p.  [default: in the order of this list]",
)
@click.option("--seed", type=int, default=None, help="Repeat an earlier text.  [default: fresh]")
@click.option(
    "--logprobs",
    type=click.IntRange(min=0),
    metavar="K",
    help="Show each token's probability, and the K most likely ones.",
)
@click.option("--model", "name", default=None, help=f"Hub id or folder.  [default: {DEFAULT_NAME}]")
def main(
    prompt: str,
    raw: bool,
    max_new_tokens: int,
    count: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    others: dict[str, Any],
    min_tokens_to_keep: int,
    ties: str,
    order: list[str] | None,
    seed: int | None,
    logprobs: int | None,
    name: str | None,
) -> None:
    """Write text with a language model, each token drawn by the sampler."""
    console = Console(stderr=True)
    if not prompt:
        raise click.UsageError("the prompt is empty")
    if seed is None:
        seed = secrets.randbits(32)  # 32 of the 64 bits: short enough to type again
    named = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    named |= others
    if "dynamic_temperature" in others and "temperature" not in others:
        named["temperature"] = None  # of which it takes the place
    try:
        s = make_sampler(order, named, min_tokens_to_keep=min_tokens_to_keep, ties=ties, seed=seed)
    except (TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None

    model, tokenizer = load(name, console=console)
    # These import transformers, which takes seconds: after the settings have been checked.
    from transformers import TextStreamer

    from sampler.hf import expand_inputs, generate_kwargs

    chat = not raw and tokenizer.chat_template is not None
    inputs = expand_inputs(encode(tokenizer, prompt, chat), count)
    if chat:
        console.print(f"\n> {prompt}\n", style="bold", markup=False, highlight=False)
    if count == 1:
        streamer = TextStreamer(tokenizer, skip_prompt=chat, skip_special_tokens=True)
    else:
        streamer = BarStreamer(max_new_tokens)

    # The whole integration is this one call; the stopwatch only feeds the summary.
    settings = generate_kwargs(
        s,
        attention_mask=inputs["attention_mask"],
        logprobs=logprobs or 0,
        raw=logprobs is not None,
        eos_token_id=model.generation_config.eos_token_id,
    )
    processor = settings["logits_processor"][-1]
    settings["logits_processor"][-1] = stopwatch = Stopwatch(processor)

    stopped = ""
    start = time.perf_counter()
    try:
        model.generate(**inputs, **settings, streamer=streamer, max_new_tokens=max_new_tokens)
    except KeyboardInterrupt:
        streamer.end()  # prints the words that still wait in the streamer, or removes the bar
        stopped = " (stopped)"
    seconds = time.perf_counter() - start

    drawn = 0
    if stopwatch.calls:
        samples = processor.samples
        drawn = int((samples.tokens >= 0).sum())
        if count > 1:
            prompts = [[] if chat else ids for ids in inputs["input_ids"].tolist()]
            show_texts(samples, prompts, tokenizer, console, logprobs)
        elif logprobs is not None:
            console.print(logprob_table(samples, 0, tokenizer, logprobs))

    table = Table(show_header=False, title="Summary", title_justify="left")
    table.add_row("model", escape(name or DEFAULT_NAME))
    table.add_row("settings", escape(repr(s)))
    table.add_row("seed", str(seed))
    table.add_row("tokens", f"{drawn}{f' in {count} texts' if count > 1 else ''}{stopped}")
    table.add_row("tokens/s", f"{drawn / seconds:.1f}")
    table.add_row("sampling", f"{stopwatch.seconds / seconds:.2%} of the time")
    console.print()
    console.print(table)


if __name__ == "__main__":
    main()
