"""Sharpen and flatten one real distribution of next tokens.

    python demos/temperature.py --row 12

Takes recorded logits of SmolLM2-135M-Instruct and divides them by temperatures from 0.1 to 10: what
becomes of the likeliest tokens, of the entropy and of the perplexity, and which temperatures give
chosen entropies. Tokens show as text where `make demo` has unpacked the model, else as ids.
"""

from __future__ import annotations

import importlib.util
import textwrap
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from rich.text import Text

from _model import DEFAULT_NAME, cache_folder, require, token_text
from _plot import BLUE, GREY, ORANGE, dress, entitle, output_option, save
from sampler import softmax
from sampler.temperature import entropy, perplexity, temperature_for_entropy

_Array = npt.NDArray[Any]
RECORDED = Path(__file__).parents[1] / "tests" / "data" / "smollm2_logits.npz"
TEMPERATURES = np.geomspace(0.1, 10.0, 201)
SHOWN = 8  # tokens


def names_of(ids: _Array, console: Console) -> list[str]:
    """What the tokens say, or their ids where there is no tokenizer at hand."""
    folder = cache_folder() / f"{DEFAULT_NAME}-float32"
    if not folder.is_dir() or importlib.util.find_spec("transformers") is None:
        return [f"token {token}" for token in ids]
    with console.status("Reading the tokenizer"):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    return [token_text(tokenizer, int(token)) for token in ids]


def table(names: list[str], ids: _Array, row: _Array) -> Table:
    """Lay out the likeliest tokens' probabilities at a few temperatures."""
    chosen = np.array([0.1, 0.5, 1.0, 2.0, 10.0])
    result = Table("temperature", *(f"{t:g}" for t in chosen))
    probs = np.stack([softmax(row, temperature=t) for t in chosen])
    for name, column in zip(names, probs[:, ids].T, strict=True):
        result.add_row(Text(name), *(f"{p:.4f}" for p in column))
    result.add_section()
    for name, function in (("entropy, nats", entropy), ("perplexity", perplexity)):
        result.add_row(name, *(f"{function(row, temperature=t):,.4g}" for t in chosen))
    return result


def plot(
    row: _Array, ids: _Array, names: list[str], wanted: _Array, after: str, path: Path
) -> None:
    """Stack the probabilities above the entropy, against the temperature."""
    import matplotlib as mpl
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    t = TEMPERATURES
    top = np.stack([softmax(row, temperature=each)[ids] for each in t], axis=1)
    h = np.array([entropy(row, temperature=each) for each in t])

    figure = Figure(figsize=(10.67, 8.6), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[1.25, 1])
    shades = mpl.colormaps["viridis"](np.linspace(0.05, 0.95, len(ids)))
    others = f"{len(row) - len(ids):,} others"
    upper.stackplot(
        t, *top, 1 - top.sum(axis=0), colors=[*shades, "#E6E6E6"], edgecolor="white", lw=0.4
    )
    upper.set(ylim=(0, 1), ylabel="probability")
    handles = [mpl.patches.Patch(color=colour) for colour in (*shades, "#E6E6E6")]
    # From the top down, as the areas lie; a token may be a dollar sign.
    legend = upper.legend(
        handles[::-1], [*names, others][::-1], loc="center left", bbox_to_anchor=(1, 0.5),
        frameon=False, title="next token",
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)

    lower.plot(t, h, color=BLUE, lw=2)
    limit = entropy(row, temperature=np.inf)
    lower.axhline(limit, color=GREY, lw=1, ls="--")
    lower.text(0.102, limit, f"all {len(row):,} equal", va="bottom", fontsize=9.5, color="#666666")
    found = temperature_for_entropy(np.broadcast_to(row, (len(wanted), len(row))), wanted)
    for value, at in zip(wanted, found, strict=True):
        if t[0] <= at <= t[-1]:
            lower.plot([t[0], at, at], [value, value, 0], color=ORANGE, lw=0.9)
            lower.plot(at, value, "o", color=ORANGE, ms=6)
            lower.annotate(
                f"T = {at:.3f}", (at, value), xytext=(-6, 3), textcoords="offset points",
                ha="right", va="bottom", fontsize=9.5, color=ORANGE,
            )  # fmt: skip
    lower.set(xscale="log", xlim=(t[0], t[-1]), ylim=(0, limit * 1.09))
    lower.set(xlabel="temperature T", ylabel="entropy (nats)")
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    lower.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    lower.set_xticks([], minor=True)
    # matplotlib asks for the logarithm of 0 too, before it has limits.
    right = lower.secondary_yaxis(
        "right", functions=(np.exp, lambda p: np.log(np.maximum(p, 1e-300)))
    )
    right.set_yticks(powers := [10**n for n in range(5)], [f"{n:,}" for n in powers])
    right.set_yticks([], minor=True)
    right.set_ylabel("perplexity")
    for ax in (upper, lower):
        dress(ax)
    figure.align_ylabels((upper, lower))
    listed = ", ".join(f"{value:g}" for value in wanted)
    after = textwrap.shorten(after, 80, placeholder=" …")
    entitle(
        figure,
        "A temperature sharpens or flattens a distribution of next tokens",
        f"{DEFAULT_NAME} after “{after}”.\n"
        f"Orange: where temperature_for_entropy puts entropies of {listed} nats.",
    )
    save(figure, path)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--row", "place", type=click.IntRange(0, 27), default=12, help="Of the recording.")
@click.option("--entropies", default="1,2,4,8", help="In nats, with commas between.")
@output_option("temperature.png")
def main(place: int, entropies: str, output: Path) -> None:
    """Plot tokens' probabilities, entropy and perplexity against the temperature."""
    console = Console(stderr=True)
    require("matplotlib", remedy="pip install matplotlib")
    with np.load(RECORDED) as file:
        row, after = file["logits"][place].astype(np.float64), str(file["prompts"][place])
    try:
        wanted = np.array([float(value) for value in entropies.split(",")])
        found = temperature_for_entropy(np.broadcast_to(row, (len(wanted), len(row))), wanted)
    except ValueError as error:
        raise click.UsageError(f"--entropies: {error}") from None
    # By the logits, the likeliest first, lower ids first among equals.
    ids = np.argsort(-row, kind="stable")[:SHOWN]
    names = names_of(ids, console)
    plot(row, ids, names, wanted, after, output)
    console = Console()
    console.print(table(names, ids, row))
    for value, temperature in zip(wanted, found, strict=True):
        console.print(f"An entropy of {value:g} nats at temperature {temperature:.6g}.")
    click.echo(output)


if __name__ == "__main__":
    main()
