"""Plot how often each token is drawn against how often it should be.

    python demos/sampling_rates.py --prompt "She opened the door and saw" --temperature 1.5

Takes the model's logits after a prompt, draws many tokens from that one row, and compares the
frequencies with the probabilities of ``sampler.reference``: plain float64 NumPy that sorts the
vocabulary and shares no code with the core. A token's count is binomial, so its band is exact.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from tqdm import tqdm

from _model import DEFAULT_NAME, load, require, token_text
from _plot import BLUE, GREY, ORANGE, output_option
from sampler import Sampler, reference

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROMPT = "My favourite animal is the"
BATCH = 5_000
COVERAGE = 0.999  # of the band
SMALLEST_BIN = 25  # expected draws, below which chi-square is no good approximation
DOUBT = 0.001  # p-values below this are called a misfit: one run in a thousand is, by chance

_Array = npt.NDArray[Any]


@dataclass
class Rates:
    """Counts and what they should be, one entry per kept token, the likeliest first.

    Attributes
    ----------
    ids, counts, probs
        The tokens, how often each was drawn, and its probability.
    low, high
        The band: the smallest and the largest count that is not outside.
    outside : bool
        Whether the count is outside the band.
    expected_outside : float
        How many counts are, on average.
    bins, chi_square, p_value
        Pearson's test on pooled bins; NaN where there are fewer than two.
    strays : int
        How many draws were of tokens that are not kept. There must be none.
    """

    ids: _Array
    counts: _Array
    probs: _Array
    low: _Array
    high: _Array
    outside: _Array
    expected_outside: float
    bins: int
    chi_square: float
    p_value: float
    strays: int


def next_token_logits(name: str | None, prompt: str, console: Console) -> tuple[_Array, Any]:
    """Return the model's logits after the prompt, and its tokenizer."""
    model, tokenizer = load(name, console=console)
    import torch

    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    return logits.float().numpy(), tokenizer


def count_draws(s: Sampler, row: _Array, draws: int) -> _Array:
    """Draw from the row, and count each token of the vocabulary."""
    counts = np.zeros(len(row), np.int64)
    with tqdm(total=draws, desc="draws", unit_scale=True, leave=False, disable=None) as bar:
        for start in range(0, draws, BATCH):
            n = min(BATCH, draws - start)
            # Each call takes the sampler's next step, so no two batches repeat each other.
            counts += np.bincount(s.sample(row, n=n).tokens, minlength=len(row))
            bar.update(n)
    return counts


def pool(expected: _Array, observed: _Array) -> tuple[_Array, _Array]:
    """Join the least likely tokens into bins of at least `SMALLEST_BIN` expected draws."""
    bins, last = [], np.zeros(2)
    for pair in zip(expected, observed, strict=True):  # the likeliest first
        last = last + pair
        if last[0] >= SMALLEST_BIN:
            bins.append(last)
            last = np.zeros(2)
    if bins:
        bins[-1] = bins[-1] + last  # what is left is too little for its own bin
    return tuple(np.array(bins).reshape(-1, 2).T)


def compare(s: Sampler, row: _Array, counts: _Array) -> Rates:
    """Hold the counts against the reference."""
    from scipy import stats

    state = reference.kept(row, s.stages, min_tokens_to_keep=s.min_tokens_to_keep, ties=s.ties)
    draws, ids = int(counts.sum()), state.ids
    probs, counts = np.exp(reference.logprobs(state)), counts[ids]
    # A lone token's probability may round to just above 1.
    law = stats.binom(draws, np.minimum(probs, 1.0))
    low, high = law.ppf((1 - COVERAGE) / 2), law.ppf((1 + COVERAGE) / 2)
    expected, observed = pool(draws * probs, counts)
    enough = len(expected) > 1
    chi_square = float(np.sum((observed - expected) ** 2 / expected)) if enough else np.nan
    return Rates(
        ids=ids,
        counts=counts,
        probs=probs,
        low=low,
        high=high,
        outside=(counts < low) | (counts > high),
        # Counts are whole, so the band holds a little more than `COVERAGE`.
        expected_outside=float(np.sum(law.cdf(low - 1) + law.sf(high))),
        bins=len(expected),
        chi_square=chi_square,
        p_value=float(stats.chi2.sf(chi_square, len(expected) - 1)) if enough else np.nan,
        strays=draws - int(counts.sum()),
    )


def verdict(rates: Rates) -> str:
    """Say in two lines how many tokens are outside, and whether the whole fits."""
    from scipy import stats

    outside = int(rates.outside.sum())
    first = (
        f"{outside} of {len(rates.ids)} tokens outside their {COVERAGE:.1%} band; "
        f"{rates.expected_outside:.2g} expected by chance"
    )
    misfit = stats.poisson.sf(outside - 1, rates.expected_outside) < DOUBT
    if rates.strays:
        first += f"; {rates.strays} draws of tokens that are not kept"
        misfit = True
    if np.isnan(rates.p_value):
        second = f"Too few bins of {SMALLEST_BIN} expected draws for a chi-square test: "
    else:
        second = (
            f"Chi-square {rates.chi_square:.1f} over {rates.bins} bins, p = {rates.p_value:.2g}: "
        )
        misfit = misfit or rates.p_value < DOUBT
    return f"{first}.\n{second}the frequencies {'do NOT fit' if misfit else 'fit'}."


def label_top(ax: Axes, rates: Rates, frequency: _Array, tokenizer: Any) -> None:
    """Name the likeliest tokens, alternately above and below, as far as they lie apart."""
    x = np.log10(rates.probs)
    x = x / max(x[0] - x[-1], 1.0)  # in widths of the panel
    last = {1: np.inf, -1: np.inf}
    side = 1
    for place in range(min(len(rates.ids), 30)):
        text = token_text(tokenizer, int(rates.ids[place])).removeprefix("␣")
        # The font has no glyph for everything that a token can be.
        if not text or not text.isascii():
            continue
        if x[place] > min(last[side] - 0.06, last[-side] - 0.017):
            continue
        ax.annotate(
            text,
            (rates.probs[place], frequency[place]),
            xytext=(-8 * side, 8 * side),
            textcoords="offset points",
            ha="right" if side > 0 else "left",
            va="center",
            fontsize=9.5,
            color="#333333",
            parse_math=False,  # a token may be a dollar sign
        )
        last[side] = x[place]
        side = -side


def plot(rates: Rates, draws: int, title: str, subtitle: str, tokenizer: Any, path: Path) -> None:
    """Draw both panels and save them."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(10.67, 9), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[2.4, 1])
    p, outside = rates.probs, rates.outside
    never = (rates.counts == 0) & ~outside
    inside = ~outside & ~never
    # A logarithmic axis has no 0: a token that was never drawn is shown at half a draw.
    frequency = np.maximum(rates.counts, 0.5) / draws
    dot = {"ls": "none", "marker": "o", "ms": 4.5, "mew": 0, "color": BLUE, "alpha": 0.75}
    cross = {"ls": "none", "marker": "X", "ms": 10, "mec": "white", "mew": 0.8, "color": ORANGE}
    band = {"color": GREY, "alpha": 0.6, "lw": 0}
    # Counts are whole: the edges of the band lie half a draw beyond the last ones inside.
    edges = np.array([rates.low - 0.5, rates.high + 0.5])

    upper.fill_between(
        p, *np.maximum(edges, 0.5) / draws, **band, label=f"{COVERAGE:.1%} band (binomial)"
    )
    upper.plot(p, p, color="black", lw=0.8, label="observed = expected")
    upper.plot(p[inside], frequency[inside], **dot, label="a token")
    if never.any():
        down = {**dot, "marker": "v"}
        upper.plot(p[never], frequency[never], **down, label="a token never drawn (at half a draw)")
    upper.plot(
        p[outside],
        frequency[outside],
        **cross,
        label=f"outside: {outside.sum()} ({rates.expected_outside:.2g} expected by chance)",
    )
    upper.set(xscale="log", yscale="log", ylabel="observed frequency (share of draws)")
    if never.any():
        upper.set_ylim(bottom=0.25 / draws)
    label_top(upper, rates, frequency, tokenizer)
    # Tokens never drawn line the bottom.
    upper.legend(loc="center left" if never.any() else "lower right", frameon=False)
    note = f"{len(p):,} tokens kept"
    if not np.isnan(rates.p_value):
        note += (
            f"\nchi-square {rates.chi_square:.1f} over {rates.bins} bins\np = {rates.p_value:.2g}"
        )
    upper.text(0.02, 0.97, note, transform=upper.transAxes, va="top", linespacing=1.5)

    deviation = np.sqrt(draws * p * (1 - p))
    deviation[deviation == 0] = 1  # of a lone token, whose residual is 0
    residual = (rates.counts - draws * p) / deviation
    # Of a token that should not be drawn even once, it says little, in large numbers.
    likely = draws * p >= 1
    lower.fill_between(p[likely], *((edges - draws * p) / deviation)[:, likely], **band)
    lower.axhline(0, color="black", lw=0.8)
    lower.plot(p[~outside & likely], residual[~outside & likely], **dot)
    lower.plot(p[outside & likely], residual[outside & likely], **cross)
    if not likely.all():
        rest = "tokens of fewer than one\nexpected draw are left out"
        lower.text(0.02, 0.95, rest, transform=lower.transAxes, va="top", linespacing=1.5)
    lower.set_xlabel("expected probability (float64 NumPy reference)")
    lower.set_ylabel("residual (standard deviations)")

    lines = subtitle.count("\n") + 1
    upper.set_title(
        title, loc="left", pad=12 + 17 * lines, fontsize=14, fontweight="bold", parse_math=False
    )
    upper.annotate(
        subtitle,
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 7),
        textcoords="offset points",
        va="bottom",
        fontsize=10.5,
        linespacing=1.4,
        color="#333333",
        parse_math=False,
    )
    for ax in (upper, lower):
        ax.grid(which="major", color="#DDDDDD", lw=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    figure.savefig(path)
    if path.suffix == ".png":
        from PIL import Image

        # 256 colours are more than it has, edges aside: the file is half as large.
        Image.open(path).convert("RGB").quantize().save(path, optimize=True)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--prompt", default=PROMPT, help="What the next token is drawn after.")
@click.option("--draws", type=click.IntRange(min=1), default=100_000)
@click.option("--temperature", type=float, default=1.0, help="0 is greedy, 1 is off.")
@click.option("--top-k", type=int, default=0, help="Keep the k most likely tokens; 0 is off.")
@click.option("--top-p", type=float, default=0.9, help="Keep this much probability; 1 is off.")
@click.option("--min-p", type=float, default=0.0, help="Keep tokens this likely; 0 is off.")
@click.option("--seed", type=int, default=0)
@click.option("--model", "name", default=None, help=f"Hub id or folder.  [default: {DEFAULT_NAME}]")
@output_option("sampling_rates.png")
def main(
    prompt: str,
    draws: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
    name: str | None,
    output: Path,
) -> None:
    """Plot how often each token is drawn against how often it should be."""
    console = Console(stderr=True)
    if not prompt:
        raise click.UsageError("the prompt is empty")
    try:
        s = Sampler(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    except (TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    require("matplotlib", "scipy", remedy="pip install matplotlib scipy")

    settings = repr(s)  # before it has taken steps
    row, tokenizer = next_token_logits(name, prompt, console)
    rates = compare(s, row, count_draws(s, row, draws))
    title = f"{draws:,} next tokens of {name or DEFAULT_NAME}"
    subtitle = textwrap.shorten(f"after “{prompt}”", 100, placeholder=" …") + f"\n{settings}"
    plot(rates, draws, title, subtitle, tokenizer, output)
    click.echo(f"{verdict(rates)}\n{output}")


if __name__ == "__main__":
    main()
