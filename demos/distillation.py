"""Teach a small network with the softened probabilities of a large one.

    python demos/distillation.py

A teacher sees many of scikit-learn's digits, a student few of them. Students that are equal in all
else (first weights, digits, batches, steps) learn from the labels, or from what the teacher says of
the same digits at a temperature: how much a 7 looks like a 1. At 1 that is little more than the
labels, since the teacher is nearly sure of digits that it has learnt. All in NumPy, over several
seeds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from _model import require
from _plot import BLUE, GREEN, ORANGE, dress, entitle, output_option, save
from sampler import softmax
from sampler.temperature import distillation_loss_grad

_Array = npt.NDArray[Any]
# From a batch's logits, and which examples they are of, to the gradient of the loss.
Gradient = Callable[[_Array, _Array], _Array]

TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
TEACHER, TEACHER_DIGITS, TEACHER_EPOCHS = (64, 256, 256, 10), 900, 30
STUDENT, STUDENT_EPOCHS = (64, 16, 10), 300
BATCH, RATE = 64, 3e-3


class Network:
    """A multilayer perceptron with ReLUs, under Adam."""

    def __init__(self, sizes: tuple[int, ...], rng: np.random.Generator):
        self.layers = [
            (rng.normal(0.0, np.sqrt(2 / a), (a, b)), np.zeros(b)) for a, b in pairwise(sizes)
        ]
        self.moments = [
            [(np.zeros_like(p), np.zeros_like(p)) for p in pair] for pair in self.layers
        ]
        self.steps = 0

    def forward(self, x: _Array) -> _Array:
        """Return logits, and keep what each layer was given."""
        self.given = []
        for w, b in self.layers:
            x = np.maximum(x, 0.0) if self.given else x
            self.given.append(x)
            x = x @ w + b
        return x

    def step(self, grad: _Array) -> None:
        """Take one step of Adam, from the gradient with respect to the last logits."""
        self.steps += 1
        # Adam divides by the size of gradients, so that losses of any scale learn equally fast.
        for i in reversed(range(len(self.layers))):
            w, b = self.layers[i]
            grads = (self.given[i].T @ grad, grad.sum(axis=0))
            grad = (grad @ w.T) * (self.given[i] > 0)
            for p, g, (m, v) in zip((w, b), grads, self.moments[i], strict=True):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                size = np.sqrt(v / (1 - 0.999**self.steps)) + 1e-8
                p -= RATE * m / (1 - 0.9**self.steps) / size

    def accuracy(self, x: _Array, labels: _Array) -> float:
        return float(np.mean(self.forward(x).argmax(axis=1) == labels))


def train(net: Network, x: _Array, gradient: Gradient, epochs: int, seed: int) -> Network:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            batch = order[start : start + BATCH]
            net.step(gradient(net.forward(x[batch]), batch))
    return net


def hard(labels: _Array) -> Gradient:
    """The gradient of the cross-entropy with labels."""
    wanted = np.eye(10)[labels]
    return lambda logits, batch: (softmax(logits) - wanted[batch]) / len(batch)


def soft(teacher: _Array, temperature: float) -> Gradient:
    """The gradient of the distillation loss against the teacher's logits."""
    return lambda logits, batch: distillation_loss_grad(
        logits, teacher[batch], temperature=temperature
    )


def run(digits: int, seed: int) -> tuple[float, float, list[float]]:
    """Accuracies of the teacher, of the student of labels, and of one for each temperature."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x, test, y, labels = train_test_split(
        x / 16, y, train_size=TEACHER_DIGITS, random_state=seed, stratify=y
    )
    teacher = Network(TEACHER, np.random.default_rng(seed))
    train(teacher, x, hard(y), TEACHER_EPOCHS, seed)
    # The student's digits, all of which the teacher has seen: as many of each.
    few = np.concatenate([np.flatnonzero(y == d)[: digits // 10] for d in range(10)])
    x, y = x[few], y[few]
    said = teacher.forward(x)

    def student(gradient: Gradient) -> float:
        net = Network(STUDENT, np.random.default_rng(1000 + seed))
        return train(net, x, gradient, STUDENT_EPOCHS, seed).accuracy(test, labels)

    return (
        teacher.accuracy(test, labels),
        student(hard(y)),
        [student(soft(said, temperature)) for temperature in TEMPERATURES],
    )


def table(teachers: _Array, hards: _Array, softs: _Array) -> Table:
    result = Table(
        "learns from", "accuracy", "better than labels by", "in",
        title=f"Test accuracy: mean ± deviation of {len(hards)} seeds",
    )  # fmt: skip

    def cell(values: _Array) -> str:
        return f"{np.mean(values):.3f} ± {np.std(values, ddof=min(1, len(values) - 1)):.3f}"

    result.add_row("(the teacher)", cell(teachers))
    result.add_row("labels", cell(hards))
    for temperature, values in zip(TEMPERATURES, softs.T, strict=True):
        gain = values - hards
        wins = f"{np.sum(gain > 0)} of {len(gain)}"
        result.add_row(f"teacher at {temperature:g}", cell(values), cell(gain), wins)
    return result


def plot(teachers: _Array, hards: _Array, softs: _Array, digits: int, path: Path) -> None:
    """Draw the students' accuracy against the temperature, over that of the labels."""
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(10.67, 6.2), dpi=120, layout="constrained")
    ax = figure.subplots()
    spread = min(1, len(hards) - 1)
    for values, colour, name in (
        (teachers, GREEN, f"the teacher, {TEACHER_DIGITS} digits"),
        (hards, ORANGE, "student of labels"),
    ):
        mean, deviation = values.mean(), values.std(ddof=spread)
        ax.axhspan(mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0)
        ax.axhline(mean, color=colour, lw=1.5, label=name)
    # Seeds side by side, so that equal accuracies do not hide one another.
    for values, shift in zip(softs, np.linspace(-0.06, 0.06, len(softs)), strict=True):
        ax.plot(np.array(TEMPERATURES) * 2**shift, values, ".", ms=5, color=BLUE, alpha=0.5, mew=0)
    ax.errorbar(
        TEMPERATURES, softs.mean(axis=0), softs.std(axis=0, ddof=spread), color=BLUE, lw=1.5,
        marker="o", ms=6, capsize=4, label="student of the teacher's probabilities",
    )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_xticks(TEMPERATURES, [f"{t:g}" for t in TEMPERATURES])
    ax.set(xlabel="temperature of the distillation loss", ylabel="test accuracy")
    ax.legend(loc="upper left", bbox_to_anchor=(0.01, 0.86), frameon=False)
    dress(ax)
    *_, hidden, _ = STUDENT
    entitle(
        figure,
        "A teacher's softened probabilities teach more than labels do",
        f"Students of {hidden} hidden units and {digits} of scikit-learn's digits, equal in all "
        "but what they learn from.\nLines, bars and bands: mean ± standard deviation of "
        f"{len(hards)} seeds; small dots: the seeds.",
    )
    save(figure, path)


@click.command(context_settings={"show_default": True, "help_option_names": ["-h", "--help"]})
@click.option(
    "--digits", type=click.IntRange(10, 800), default=100, help="Of the student, in tens."
)
@click.option("--seeds", type=click.IntRange(min=1), default=10, help="How many to average over.")
@output_option("distillation.png")
def main(digits: int, seeds: int, output: Path) -> None:
    """Distil a teacher into small students, and plot their accuracy against the temperature."""
    require("matplotlib", "sklearn", remedy="pip install matplotlib scikit-learn")
    digits -= digits % 10
    from threadpoolctl import threadpool_limits

    bar = tqdm(range(seeds), desc="seeds", leave=False, disable=None)
    with threadpool_limits(1):  # matrices so small are multiplied faster by one thread
        teachers, hards, softs = map(np.array, zip(*(run(digits, s) for s in bar), strict=True))
    plot(teachers, hards, softs, digits, output)
    Console().print(table(teachers, hards, softs))
    click.echo(output)


if __name__ == "__main__":
    main()
