"""Print the worst errors of the softmax family, ours, NumPy's, SciPy's and torch's.

    make accuracy                     # the table
    make accuracy ARGS="--docs"       # and the plot of docs/softmax.md

Errors are in units in the last place of the exact result, which mpmath computes with 200 bits; for
log_softmax and logsumexp in those of max(1, |result|). Every library gets the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import mpmath
import numpy as np
import numpy.typing as npt
import scipy.special
import torch
from rich.progress import track

import _machine
import sampler
from _tables import new_console, new_table

Array = npt.NDArray[Any]
Function = Callable[[Array], Array]
RECORDED = Path(__file__).parents[1] / "tests" / "data" / "smollm2_logits.npz"
FAMILY = ("softmax", "log_softmax", "logsumexp")
DIGITS = {"float32": (24, -149), "float64": (53, -1074)}  # of precision; lowest exponent


def rows(dtype: str) -> Iterator[tuple[str, Array]]:
    """Named logits, ordinary ones first."""
    rng = np.random.default_rng(1)
    with np.load(RECORDED) as recorded:
        row = recorded[recorded.files[0]][3].astype(np.float64)
    yield "real logits, a language model's 49,152", row
    yield "normal, deviation 3", rng.normal(0, 3, 4000)
    yield "normal, deviation 30", rng.normal(0, 30, 4000)
    yield "attention scores, 128", rng.normal(0, 1, 128)
    yield "far from zero: normal + 1,000", rng.normal(0, 3, 4000) + 1000
    yield "far from zero: normal - 10,000", rng.normal(0, 3, 4000) - 1e4
    depth = 104 if dtype == "float32" else 745
    yield "down to the least number", np.linspace(-depth, 0, 4000)
    yield "one token ahead of 4,000 equals", np.append(12.0, np.zeros(4000))


def numpy_family() -> dict[str, Function]:
    """As one writes it: the maximum subtracted, in the logits' own precision."""

    def shifted(x: Array) -> tuple[Array, Array]:
        z = x - x.max()
        return z, np.exp(z)

    def softmax(x: Array) -> Array:
        _, weights = shifted(x)
        return np.asarray(weights / weights.sum())

    def log_softmax(x: Array) -> Array:
        z, weights = shifted(x)
        return np.asarray(z - np.log(weights.sum()))

    def logsumexp(x: Array) -> Array:
        return np.asarray(x.max() + np.log(shifted(x)[1].sum()))

    return {"softmax": softmax, "log_softmax": log_softmax, "logsumexp": logsumexp}


def libraries() -> dict[str, dict[str, Function]]:
    def of_torch(name: str) -> Function:
        return lambda x: getattr(torch, name)(torch.from_numpy(x), -1).numpy()

    return {
        "sampler": {name: getattr(sampler, name) for name in FAMILY},
        "NumPy": numpy_family(),
        "SciPy": {name: getattr(scipy.special, name) for name in FAMILY},
        "torch": {name: of_torch(name) for name in FAMILY},
    }


def exact(x: Array) -> dict[str, list[Any]]:
    values = [mpmath.mpf(float(v)) for v in x]
    top = max(values)
    weights = [mpmath.exp(v - top) for v in values]
    total = mpmath.fsum(weights)
    log_total = mpmath.log(total)
    return {
        "softmax": [w / total for w in weights],
        "log_softmax": [v - top - log_total for v in values],
        "logsumexp": [top + log_total],
    }


def errors(got: Array, wanted: list[Any], function: str) -> Array:
    """In units in the last place, signed."""
    digits, lowest = DIGITS[got.dtype.name]
    result = []
    for g, want in zip(np.atleast_1d(got), wanted, strict=True):
        size = abs(want) if function == "softmax" else max(abs(want), mpmath.mpf(1))
        exponent = mpmath.frexp(size)[1] if size else lowest
        ulp = mpmath.ldexp(1, max(exponent - digits, lowest))
        result.append(float((mpmath.mpf(float(g)) - want) / ulp))
    return np.array(result)


def plot(path: Path) -> None:
    """The error of every probability of a row, by how far its logit is below the maximum."""
    x = np.random.default_rng(2).uniform(-60, 20, 4000).astype(np.float32)
    wanted = exact(x)["softmax"]
    # A panel each: torch and NumPy err alike, and one would hide the other.
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")
    depth = x.max() - x
    styles = {"torch": "#0072b2", "NumPy": "#009e73", "sampler": "#d55e00"}
    for ax, (name, color) in zip(axes, styles.items(), strict=True):
        found = errors(libraries()[name]["softmax"](x), wanted, "softmax")
        ax.scatter(depth, found, s=3, color=color, alpha=0.6, linewidths=0)
        ax.axhspan(-4, 4, color="0.85", zorder=0, label="within 4 ULP")
        ax.set_title(f"{name}: at most {np.abs(found).max():.2g} ULP", loc="left")
        ax.set_xlabel("distance below the largest logit")
        ax.set_axisbelow(True)
        ax.grid(color="0.92")
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1].legend(loc="upper left", frameon=False)
    axes[0].set_ylabel("error of the probability, ULP")
    figure.suptitle("float32 softmax of 4,000 logits between -60 and 20", fontweight="bold")
    figure.savefig(path, dpi=120)


@click.command(help=__doc__.splitlines()[0])
@click.option("--docs", is_flag=True, help="Also renew the plot in docs/.")
def main(docs: bool) -> None:
    plt.switch_backend("Agg")
    torch.set_num_threads(1)
    mpmath.mp.prec = 200
    console = new_console()
    machine = _machine.describe()
    console.print(
        f"sampler {machine['sampler']} on {machine['isa']}, numpy {np.__version__}, "
        f"scipy {scipy.__version__}, torch {torch.__version__}, Python {machine['python']}, "
        f"{machine['processor']}"
    )
    names = list(libraries())
    table = new_table("Worst error, ULP", "dtype", "function", "logits", right=names)
    cases = [(dtype, *case) for dtype in DIGITS for case in rows(dtype)]
    found: dict[tuple[str, str], list[tuple[str, list[str]]]] = {}
    for dtype, label, values in track(cases, "Computing", console=console, transient=True):
        x = values.astype(dtype)
        wanted = exact(x)
        for function in FAMILY:
            cells = []
            for library in libraries().values():
                got = np.asarray(library[function](x))
                cells.append(f"{np.abs(errors(got, wanted[function], function)).max():,.2f}")
            found.setdefault((dtype, function), []).append((label, cells))
    for (dtype, function), lines in found.items():
        for i, (label, cells) in enumerate(lines):
            table.add_row(*((dtype, function) if i == 0 else ("", "")), label, *cells)
        table.add_section()
    console.print(table)
    if docs:
        plot(Path("docs/softmax_error.png"))


if __name__ == "__main__":
    main()
