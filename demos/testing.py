"""Show what a test of a sampler can see, and what it cannot.

    python demos/testing.py

Above: a correct sampler and one whose probabilities are 1 % off, by the same number of draws.
Below: the smallest bias that a number of draws shows.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
from tqdm import tqdm

from _model import require
from _plot import BLUE, GREEN, ORANGE, dress, entitle, output_option, save
from sampler import Sampler, softmax
from sampler.testing import check_draws, required_draws

VOCAB = 60
BIAS = 0.01
BATCH = 100_000


def draws_of(weights: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draw from logits, in batches."""
    s = Sampler(seed=seed)
    logits = np.log(weights)
    counts = [min(BATCH, n - start) for start in range(0, n, BATCH)]
    return np.concatenate(
        [s.sample(logits, n=count).tokens for count in tqdm(counts, "Drawing", leave=False)]
    )


def curve(probs: np.ndarray, draws: np.ndarray) -> list[float]:
    """The smallest bias of a token that `check_draws` sees, by how many draws it has."""
    expected = [np.round(n * probs).astype(np.int64) for n in draws]
    return [
        check_draws(np.repeat(np.arange(len(probs)), counts), probs).detectable_bias
        for counts in tqdm(expected, "Planning", leave=False)
    ]


@click.command(help=__doc__.splitlines()[0])
@output_option("testing.png")
def main(output: Path) -> None:
    require("matplotlib", "PIL", "scipy", remedy="pip install matplotlib pillow scipy")
    from matplotlib.figure import Figure

    rng = np.random.default_rng(0)
    probs = np.asarray(softmax(rng.normal(0, 0.7, VOCAB)))
    off = probs * np.where(np.arange(VOCAB) % 2, 1 - BIAS, 1 + BIAS)
    n = required_draws(BIAS, VOCAB)
    right = check_draws(draws_of(probs, n, seed=1), probs)
    wrong = check_draws(draws_of(off, n, seed=1), probs)

    figure = Figure(figsize=(10.5, 8), dpi=120, layout="constrained")
    axes = figure.subplot_mosaic(
        [["right", "wrong"], ["marks", "marks"], ["power", "power"]], height_ratios=[1, 0.08, 1.15]
    )
    for name, result, what in (
        ("right", right, "a correct sampler"),
        ("wrong", wrong, f"every probability {BIAS:.0%} off"),
    ):
        result.plot(ax=axes[name])
        axes[name].set_title(f"{what}: p = {result.pvalue:.2g}", loc="left")
        axes[name].set_ylim(0.95, 1.05)
        dress(axes[name])
    marks = axes["right"].get_legend_handles_labels()
    axes["marks"].legend(*marks, loc="center", ncols=3, frameon=False, fontsize=9)
    axes["marks"].set_axis_off()

    ax = axes["power"]
    draws = np.geomspace(1000, 1e7, 13).astype(int)
    for tokens, color in ((2, GREEN), (10, BLUE), (60, ORANGE)):
        label = f"{tokens:,} equal tokens"
        ax.plot(draws, curve(np.full(tokens, 1 / tokens), draws), color=color, label=label)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(1e-3, 1.5)
    ax.set_xlabel("draws")
    ax.set_ylabel("smallest bias of a token\nthat is seen in 99.9 % of runs")
    ax.set_title("What check_draws sees at alpha = 1e-6", loc="left")
    ax.legend(loc="lower left", frameon=False)
    dress(ax)
    entitle(
        figure,
        "A bias shows once its test has the draws for it",
        f"{n:,} draws each, as many as required_draws({BIAS}, {VOCAB}) asks for; {VOCAB} tokens.",
    )
    save(figure, output)
    click.echo(f"{right}\n{wrong}\nWrote {output}")


if __name__ == "__main__":
    main()
