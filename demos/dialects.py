"""Plot where engines part under the same numbers: what each keeps of one real row.

    python demos/dialects.py --temperature 1.5 --top-k 40 --top-p 0.9 --min-p 0.02

Writes the same four numbers as each engine's settings, reads them as that engine does, and shows
the kept tokens of one row of SmolLM2. What an engine is not given has its own default, such as
Ollama's repetition penalty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from _model import load, require
from _plot import dress, entitle, output_option, save
from sampler import Sampler, dialects
from sampler.history import History

PROMPT = "The old lighthouse keeper opened the door, and there stood a"
SHOWN = 40  # tokens of the row

_Row = npt.NDArray[np.float64]


def written(engine: str, numbers: dict[str, float]) -> dict[str, Any]:
    """Return the numbers under the keys that an engine has for them."""
    table = dialects.dialect(engine)
    found: dict[str, Any] = {
        name: numbers[key.to] for name, key in table.keys.items() if key.to in numbers
    }
    return {**found, **({table.greedy_key: True} if table.greedy_key else {})}


def laws(row: Any, history: History, numbers: dict[str, float]) -> dict[str, tuple[Sampler, _Row]]:
    """Return the sampler of each engine, and the probabilities that it gives."""
    found = {}
    for engine in dialects.names():
        if engine == dialects.OWN:
            name, s = "sampler, by keyword", Sampler(**numbers)  # type: ignore[arg-type]
        else:
            name = dialects.dialect(engine).engine
            s = Sampler.load(written(engine, numbers), like=engine)
        found[name] = s, s.distribution(row, history=history).dense().numpy()
    return found


def plot(
    found: dict[str, tuple[Sampler, _Row]],
    words: list[str],
    order: Any,
    numbers: dict[str, float],
    path: Path,
) -> None:
    """Draw a line for each engine, and a cell for each token: the darker, the likelier."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    names = list(found)
    cells = np.array([found[name][1][order[: len(words)]] for name in names])
    figure, ax = plt.subplots(figsize=(11, 5.4), layout="constrained", dpi=150)
    image = ax.imshow(
        np.ma.masked_equal(cells, 0.0), aspect="auto", cmap="Blues", norm=LogNorm(1e-3, 0.5)
    )
    for line, name in enumerate(names):
        kept = int((found[name][1] > 0).sum())
        ax.text(len(words) - 0.2, line, f"{kept:,}", va="center", fontsize=9)
    ax.text(len(words) - 0.2, -0.9, "kept", va="center", fontsize=9, color="#333333")
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(len(words)), words, rotation=90, fontsize=8)
    ax.set_xlabel("the likeliest tokens of the model, in rank")
    dress(ax)
    ax.grid(visible=False)
    figure.colorbar(image, ax=ax, label="probability", shrink=0.6, pad=0.07)
    listed = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
    entitle(
        figure, "The same numbers in every engine",
        f"{listed}: what is left of one row of SmolLM2-135M-Instruct,\n"
        f"after “{PROMPT}”.",
    )  # fmt: skip
    save(figure, path)
    plt.close(figure)


@click.command(help=__doc__.splitlines()[0])
@click.option("--temperature", default=1.5, show_default=True, type=click.FloatRange(0.0))
@click.option("--top-k", default=40, show_default=True, type=click.IntRange(0))
@click.option("--top-p", default=0.9, show_default=True, type=click.FloatRange(0.0, 1.0))
@click.option("--min-p", default=0.02, show_default=True, type=click.FloatRange(0.0, 1.0))
@output_option("dialects.png")
def main(output: Path, **numbers: Any) -> None:
    require("matplotlib", remedy="pip install matplotlib")
    model, tokenizer = load()
    import torch

    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        row = model(**inputs).logits[0, -1]
    found = laws(row, History(inputs["input_ids"][0]), numbers)
    order = np.argsort(-row.numpy(), kind="stable")
    words = [tokenizer.decode([int(one)]).strip() or "·" for one in order[:SHOWN]]
    plot(found, words, order, numbers, output)
    ours = next(iter(found.values()))[1]
    table = Table("engine", "kept", "distance from ours", "chain", title="The same numbers")
    for name, (s, law) in found.items():
        distance = 0.5 * np.abs(law - ours).sum()
        chain = ", ".join(repr(one) for one in s.stages if not one.is_off)
        table.add_row(name, f"{(law > 0).sum():,}", f"{distance:.3f}", chain)
    Console().print(table)
    click.echo(output)


if __name__ == "__main__":
    main()
