"""Calibrate an overconfident classifier with one number, its temperature.

    python demos/calibration.py

Trains scikit-learn's MLPClassifier on few of its digits until it knows them by heart, and is as
sure of digits that it has never seen. The temperature is fitted on one part of the rest, and judged
on another, over several splits; the picture shows the first.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from _model import require
from _plot import BLUE, GREY, dress, entitle, output_option, save
from sampler import log_softmax, softmax
from sampler.temperature import Reliability, fit_temperature, reliability

_Array = npt.NDArray[Any]
VALIDATION = 600
EPOCHS = 2000


@dataclass
class Judged:
    """A classifier's probabilities on the test split, at one temperature."""

    nll: float
    accuracy: float
    reliability: Reliability


@dataclass
class Run:
    """One split: the temperature, and the test split without and with it."""

    temperature: float
    before: Judged
    after: Judged


def logits_of(classifier: Any, x: _Array) -> _Array:
    """Run a fitted MLPClassifier as far as the softmax, which it does not show."""
    *inner, (weights, biases) = zip(classifier.coefs_, classifier.intercepts_, strict=True)
    for w, b in inner:
        x = np.maximum(x @ w + b, 0.0)
    return x @ weights + biases


def judge(logits: _Array, labels: _Array, temperature: float) -> Judged:
    logprobs = log_softmax(logits, temperature=temperature)
    return Judged(
        nll=float(-np.mean(logprobs[np.arange(len(labels)), labels])),
        accuracy=float(np.mean(logits.argmax(axis=1) == labels)),
        reliability=reliability(softmax(logits, temperature=temperature), labels),
    )


def run(train: int, seed: int) -> Run:
    """Train, fit the temperature on the validation split, and judge on the test split."""
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits

    x, y = load_digits(return_X_y=True)
    x = x / 16
    x, rest, y, labels = train_test_split(x, y, train_size=train, random_state=seed, stratify=y)
    validation, test, known, unknown = train_test_split(
        rest, labels, train_size=VALIDATION, random_state=seed, stratify=labels
    )
    # No weight decay and no early stop: it goes on when every training digit is right already.
    classifier = MLPClassifier(
        (128, 128), alpha=0, max_iter=EPOCHS, tol=0, n_iter_no_change=EPOCHS, random_state=seed
    )
    with warnings.catch_warnings(), threadpool_limits(1):  # small matrices: one thread is faster
        warnings.simplefilter("ignore", ConvergenceWarning)  # as said
        classifier.fit(x, y)
    temperature = fit_temperature(logits_of(classifier, validation), known)
    logits = logits_of(classifier, test)
    return Run(temperature, judge(logits, unknown, 1.0), judge(logits, unknown, temperature))


def table(runs: list[Run]) -> Table:
    """Lay out means and standard deviations over the splits."""
    result = Table("", "before", "after", title=f"Test splits: mean ± deviation of {len(runs)}")

    def row(name: str, before: list[float], after: list[float], digits: int = 3) -> None:
        cells = (
            f"{np.mean(v):.{digits}f} ± {np.std(v, ddof=min(1, len(v) - 1)):.{digits}f}"
            for v in (before, after)
        )
        result.add_row(name, *cells)

    row("temperature", [1.0] * len(runs), [r.temperature for r in runs], 2)
    row("negative log-likelihood", [r.before.nll for r in runs], [r.after.nll for r in runs])
    row("expected calibration error", [r.before.reliability.error for r in runs],
        [r.after.reliability.error for r in runs])  # fmt: skip
    row("accuracy", [r.before.accuracy for r in runs], [r.after.accuracy for r in runs])
    return result


def plot(run: Run, train: int, path: Path) -> None:
    """Draw both reliability diagrams, and under them how many digits each bar is made of."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(10.67, 7.9), dpi=120, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[4, 1])
    judged = (("as trained", 1.0, run.before), ("calibrated", run.temperature, run.after))
    for (name, temperature, result), (upper, lower) in zip(judged, panels.T, strict=True):
        r = result.reliability
        r.plot(upper)
        upper.set_title(f"{name}, temperature {temperature:.3g}", loc="left")
        upper.set_xlabel("")
        share = r.count / r.count.sum()
        lower.bar(r.edges[:-1], share, np.diff(r.edges), align="edge", color=GREY, ec="white")
        confidence = float(np.sum(share * np.nan_to_num(r.confidence)))
        lower.axvline(confidence, color="black", lw=1)
        lower.axvline(result.accuracy, color=BLUE, lw=1)
        lower.text(
            0.03, 0.93, f"mean confidence {confidence:.3f} (black)\naccuracy {result.accuracy:.3f}"
            f" (blue)\nnegative log-likelihood {result.nll:.3f}",
            transform=lower.transAxes, va="top", fontsize=9.5, linespacing=1.4,
        )  # fmt: skip
        lower.set(xlabel="confidence: probability of the likeliest digit", ylim=(0, 1))
        for ax in (upper, lower):
            dress(ax)
    panels[0, 1].set_ylabel("")
    panels[0, 1].get_legend().remove()
    panels[1, 0].set_ylabel("share of\nthe digits")
    entitle(
        figure,
        "One number, fitted on other digits, calibrates an overfit classifier",
        f"MLPClassifier trained on {train} of scikit-learn's digits; "
        f"{run.before.reliability.count.sum():,} test digits in 15 bins of confidence.\n"
        "The bins below 0.8 hold few digits each, so that their bars are rough.",
    )
    save(figure, path)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option("--train", type=click.IntRange(20, 800), default=100, help="Training digits.")
@click.option("--splits", type=click.IntRange(min=1), default=10, help="How many to average over.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the first split.")
@output_option("calibration.png")
def main(train: int, splits: int, seed: int, output: Path) -> None:
    """Fit the temperature of an overfit classifier, and plot its reliability before and after."""
    require("matplotlib", "sklearn", remedy="pip install matplotlib scikit-learn")
    seeds = tqdm(range(seed, seed + splits), desc="splits", leave=False, disable=None)
    runs = [run(train, each) for each in seeds]
    plot(runs[0], train, output)
    Console().print(table(runs))
    click.echo(output)


if __name__ == "__main__":
    main()
