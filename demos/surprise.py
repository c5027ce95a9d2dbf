"""Plot the surprise along a text: of a plain sampler, of Mirostat and of adaptive-p.

    python demos/surprise.py --tokens 600 --tau 3.0

Writes a few texts of one prompt with each setting, and scores each token under the model's own
softmax: its surprise is -log2 p, in bits. Mirostat holds it near tau; under a plain temperature it
drifts, at a low one into a loop, where hardly a token surprises.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from _model import load, require
from _plot import BLUE, GREEN, GREY, ORANGE, dress, entitle, output_option, save
from sampler import Sampler

PROMPT = "The history of the lighthouse begins"
WINDOW = 50  # tokens of the running mean

_Array = npt.NDArray[Any]


def settings(tau: float) -> dict[str, dict[str, Any]]:
    return {
        "temperature 0.6": {"temperature": 0.6},
        f"Mirostat 2, tau {tau:g}": {"mirostat": (2, tau, 0.1)},
        "min-p 0.02, adaptive-p 0.4": {"min_p": 0.02, "adaptive_p": (0.4, 0.9)},
    }


def surprises(model: Any, inputs: Any, s: Sampler, tokens: int, texts: int) -> _Array:
    """Return the surprise of each token, in bits, of shape (texts, tokens)."""
    from sampler.hf import generate

    # No end of text, so that all texts are of one length.
    r = generate(
        model, **inputs, sampler=s, max_new_tokens=tokens, num_return_sequences=texts, raw=True,
        return_dict_in_generate=True, eos_token_id=None,
    )  # fmt: skip
    return np.asarray(-r.samples.raw_logprobs / np.log(2.0))


def running_mean(values: _Array) -> _Array:
    """Return the mean over the last `WINDOW` tokens, along each text."""
    sums = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    return np.asarray((sums[:, WINDOW:] - sums[:, :-WINDOW]) / WINDOW)


def plot(found: dict[str, _Array], tau: float, path: Path) -> None:
    """Draw a panel for each setting, a line for each text."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(found), figsize=(11, 4.2), sharey=True, layout="constrained", dpi=150
    )
    for ax, (name, values), colour in zip(axes, found.items(), (GREY, BLUE, GREEN), strict=True):
        means = running_mean(values)
        places = np.arange(WINDOW, WINDOW + means.shape[1])
        for one in means:
            ax.plot(places, one, color="#777777" if colour == GREY else colour, lw=1.2, alpha=0.7)
        if name.startswith("Mirostat"):
            ax.axhline(tau, color=ORANGE, lw=1.2, ls="--")
            ax.text(places[-1], tau + 0.08, "tau", color=ORANGE, ha="right", va="bottom")
        ax.set_title(f"{name}\nmean {values.mean():.2f} bits", fontsize=10.5, loc="left")
        ax.set_xlabel("tokens")
        dress(ax)
    axes[0].set_ylim(bottom=0)  # of all, once they are drawn
    axes[0].set_ylabel(f"surprise in bits, mean of the last {WINDOW} tokens")
    entitle(
        figure, "Surprise along a text",
        f"{len(next(iter(found.values())))} texts of SmolLM2-135M-Instruct for each setting, under "
        "the model's own softmax.",
    )  # fmt: skip
    save(figure, path)
    plt.close(figure)


@click.command(help=__doc__.splitlines()[0])
@click.option("--tokens", default=600, show_default=True, type=click.IntRange(WINDOW + 1, 1800))
@click.option("--texts", default=4, show_default=True, type=click.IntRange(1))
@click.option("--tau", default=3.0, show_default=True, type=click.FloatRange(0.0))
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0))
@output_option("surprise.png")
def main(tokens: int, texts: int, tau: float, seed: int, output: Path) -> None:
    require("matplotlib", remedy="pip install matplotlib")
    model, tokenizer = load()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    found = {}
    for name, one in tqdm(settings(tau).items(), desc="settings", leave=False, disable=None):
        found[name] = surprises(model, inputs, Sampler(**one, seed=seed), tokens, texts)
    plot(found, tau, output)
    table = Table("setting", "mean", "lowest and highest mean of 50 tokens", title="Surprise, bits")
    for name, values in found.items():
        means = running_mean(values)
        table.add_row(name, f"{values.mean():.2f}", f"{means.min():.2f} to {means.max():.2f}")
    Console().print(table)
    click.echo(output)


if __name__ == "__main__":
    main()
