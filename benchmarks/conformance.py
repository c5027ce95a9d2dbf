"""Check the samplers that people use with `sampler.testing`, ours by the same rules.

    make conformance                  # the table, and .cache/conformance.json: a few minutes
    make conformance ARGS="--docs"    # and the picture of docs/conformance.md

Each is asked three things: `check_sampler` on a short row; whether tokens that cannot be drawn are,
from a long row; whether tokens far below the first are drawn as often as they should be. The law is
the one that its own documentation states, in float64. It fails only where ours does not
pass.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch
import transformers
from rich.table import Table
from tqdm import tqdm

import _machine
import sampler
from _peers import LlamaCpp
from _rows import Setting
from _tables import SIMPLE_HEAD, new_console
from sampler import Sampler, Temperature, TopP, reference
from sampler.hf import SamplingLogitsProcessor, generate_kwargs
from sampler.testing import Result, check_draws, check_sampler, from_generate, from_processors

Array = npt.NDArray[Any]
Draw = Callable[[Array], Any]
ALPHA = 1e-6  # of one peer
SHORT, LONG, TAIL = 400, 32_000, 2**16
DRAWS, LONG_DRAWS, TAIL_DRAWS = 25_000, 12_000, 16_000
# Tokens with 2**-25.2 times the probability of the first: below the steps of a 24-bit uniform.
DEPTH = 17.5
SETTINGS = {"temperature": 0.8, "top_p": 0.9}
PICTURED = ("sampler", "Hugging Face, generate()", "llama.cpp", "torch.multinomial, float16")


@dataclass
class Peer:
    """Who is checked, and how.

    Attributes
    ----------
    make
        A sampler of a seed; a call draws one token per row.
    law
        The probabilities of a row.
    plain_make, plain_law
        The same without truncation, where tokens far down can be drawn.
    seeded
        Whether it takes a seed; otherwise it is drawn from unseeded.
    """

    name: str
    version: str
    asked: str
    make: Callable[[int], Draw]
    law: Callable[[Array], Array]
    plain_make: Callable[[int], Draw]
    plain_law: Callable[[Array], Array]
    seeded: bool = True
    ours: bool = False
    share: float = 1.0  # of the draws, for who is slow


def law_of(*stages: Any) -> Callable[[Array], Array]:
    return lambda row: reference.probabilities(reference.kept(row, stages), len(row)).astype(float)


def tiny_model() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=SHORT, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def through_processor(seed: int, **settings: Any) -> Draw:
    """Call our processor as `generate` does: a longer history at every call, so a new step."""
    processor = SamplingLogitsProcessor(Sampler(**settings, seed=seed), logprobs=None)
    ids = torch.zeros((0, 1), dtype=torch.long)

    def draw(logits: Array) -> Array:
        nonlocal ids
        if len(ids) != len(logits):
            ids = torch.zeros((len(logits), ids.shape[1]), dtype=torch.long)
        scores = torch.from_numpy(np.ascontiguousarray(logits).copy())
        tokens = processor(ids, scores).argmax(-1)
        # The text goes on with the drawn tokens: its length is the step, and the processor checks.
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        return np.asarray(tokens.numpy())

    return draw


def through_generate(model: Any, **settings: Any) -> Callable[[int], Draw]:
    def make(seed: int) -> Draw:
        seeds = iter(range(seed * 1_000_003, 2**63))
        return from_generate(
            model, lambda: generate_kwargs(Sampler(**settings, seed=next(seeds)), logprobs=None)
        )

    return make


def weights(row: Array, dtype: torch.dtype) -> torch.Tensor:
    """What multinomial is given: a softmax in float32, rounded to the dtype."""
    x = torch.from_numpy(np.ascontiguousarray(row).copy()).float()
    return torch.softmax(x, -1).to(dtype)


def multinomial(name: str, dtype: torch.dtype) -> Peer:
    def make(seed: int) -> Draw:
        generator = torch.Generator().manual_seed(seed)

        def draw(logits: Array) -> Array:
            tokens = torch.multinomial(weights(logits, dtype), 1, generator=generator)
            return np.asarray(tokens[:, 0].numpy())

        return draw

    def law(row: Array) -> Array:
        # Of the rounded weights: the rounding is not multinomial's.
        w = weights(row, dtype).double().numpy()
        return np.asarray(w / w.sum())

    return Peer(name, torch.__version__, "softmax, multinomial", make, law, make, law)


def numpy_choice(seed: int) -> Draw:
    rng, law = np.random.default_rng(seed), law_of()
    last: dict[bytes, Array] = {}

    def draw(logits: Array) -> Array:
        tokens = np.empty(len(logits), np.int64)
        for i, row in enumerate(logits):
            key = row.tobytes()
            if key not in last:
                if len(last) > 2:
                    last.clear()
                last[key] = law(row)
            tokens[i] = rng.choice(len(row), p=last[key])
        return tokens

    return draw


def llama(setting: Setting) -> Callable[[int], Draw]:
    def make(seed: int) -> Draw:
        call = LlamaCpp().draw(setting)
        return lambda logits: np.array([call(row) for row in logits.astype(np.float32)])

    return make


def peers() -> Iterator[Peer]:
    hf = transformers.LogitsProcessorList(
        [transformers.TemperatureLogitsWarper(0.8), transformers.TopPLogitsWarper(0.9)]
    )
    stages = (Temperature(0.8), TopP(0.9))
    asked, plain = law_of(*stages), law_of()
    model = tiny_model()
    setting = "temperature 0.8, top-p 0.9"

    def ours(seed: int) -> Draw:
        return Sampler(**SETTINGS, seed=seed)

    yield Peer(
        "sampler", sampler.__version__, setting, ours, asked,
        lambda seed: Sampler(seed=seed), plain, ours=True,
    )  # fmt: skip
    yield Peer(
        "sampler, its processor", sampler.__version__, setting,
        lambda seed: through_processor(seed, **SETTINGS), asked, through_processor, plain,
        ours=True,
    )  # fmt: skip
    yield Peer(
        "sampler, in generate()", sampler.__version__, setting,
        through_generate(model, **SETTINGS), asked, through_generate(model), plain, ours=True,
    )  # fmt: skip

    def hf_generate(**more: Any) -> Callable[[int], Draw]:
        kwargs = {"do_sample": True, "top_k": 0, **more}
        return lambda seed: from_generate(model, kwargs, seed=seed)

    yield Peer(
        "Hugging Face, generate()", transformers.__version__, setting, hf_generate(**SETTINGS),
        asked, hf_generate(), plain, share=0.5,
    )  # fmt: skip
    yield Peer(
        "Hugging Face, processors", transformers.__version__, setting,
        lambda seed: from_processors(hf, seed=seed), asked,
        lambda seed: from_processors([], seed=seed), plain, share=0.5,
    )  # fmt: skip
    yield multinomial("torch.multinomial, float32", torch.float32)
    yield multinomial("torch.multinomial, float16", torch.float16)
    yield multinomial("torch.multinomial, bfloat16", torch.bfloat16)
    yield Peer(
        "NumPy, Generator.choice", np.__version__, "softmax in float64", numpy_choice, plain,
        numpy_choice, plain,
    )  # fmt: skip
    if find_spec("llama_cpp"):
        yield Peer(
            "llama.cpp", f"{version('llama-cpp-python')} (Python)", "top-p 0.9, temperature 0.8",
            llama(Setting(temperature=0.8, top_p=0.9)), law_of(TopP(0.9), Temperature(0.8)),
            llama(Setting()), plain, seeded=False, share=0.5,
        )  # fmt: skip


def short_row() -> Array:
    """No two equal, and on a grid of 2**-10, which 128 may be added to."""
    rng = np.random.default_rng(3)
    grid = rng.choice(np.arange(-6000, 6000), SHORT - 8, replace=False)
    return np.append(grid, np.linspace(6100, 9000, 8).astype(int)).astype(np.float32) / 1024


def long_row() -> Array:
    """Half of the tokens are at -inf, and eight are ahead of the rest."""
    rng = np.random.default_rng(4)
    row = rng.normal(0, 2, LONG)
    order = rng.permutation(LONG)
    row[order[: LONG // 2]] = -np.inf
    row[order[-8:]] = np.linspace(10, 13, 8)
    return row.astype(np.float32)


def tail_row() -> Array:
    row = np.full(TAIL + 1, -DEPTH, np.float32)
    row[0] = 0
    return row


def collect(draw: Draw, row: Array, draws: int, bar: tqdm[Any]) -> Array:
    batch = np.tile(row, (50, 1))
    found = []
    for _ in range(-(-draws // len(batch))):
        found.append(np.asarray(draw(batch)))
        bar.update(0)
    return np.concatenate(found)


def examine(peer: Peer, bar: tqdm[Any]) -> dict[str, Result]:
    level = ALPHA / 3
    short, long, tail = short_row(), long_row(), tail_row()
    bar.set_description(peer.name)
    made = peer.make if peer.seeded else peer.make(0)
    parts = {
        "short row": check_sampler(
            made, short, peer.law, alpha=level, draws=int(DRAWS * peer.share), seeded=peer.seeded,
            seed=1, ties=False, tail=False, progress=False,
        )
    }  # fmt: skip
    bar.update()
    for name, row, draws in (("-inf", long, LONG_DRAWS), ("far tail", tail, TAIL_DRAWS)):
        tokens = collect(peer.plain_make(2), row, draws, bar)
        law = peer.plain_law(row)
        result = check_draws(tokens, law, alpha=level, seeds={"seed": 2})
        possible = tokens[law[tokens] > 0]
        impossible = tokens.size - possible.size
        if impossible:  # one sentence for all of them, and what the others show
            summary = f"{impossible:,} of {tokens.size:,} draws are of tokens of probability 0"
            others = check_draws(possible, law, alpha=level) if possible.size else None
            faults = others.findings if others and others.ok is False else []
            result = replace(result, findings=[summary, *faults])
        parts[name] = result
        bar.update()
    return parts


def words(parts: dict[str, Result]) -> str:
    found = [f"{name}: {finding}" for name, part in parts.items() for finding in part.findings[:2]]
    return "; ".join(found) or "nothing"


def record(peer: Peer, parts: dict[str, Result], seconds: float) -> dict[str, Any]:
    oks = [part.ok for part in parts.values()]
    return {
        "name": peer.name,
        "version": peer.version,
        "asked": peer.asked,
        "ok": False if False in oks else None if None in oks else True,
        "draws": sum(part.draws for part in parts.values()),
        "detectable_bias": parts["short row"].detectable_bias,
        "pvalue": min([1.0, *(len(parts) * part.pvalue for part in parts.values())]),
        "found": words(parts),
        "seconds": round(seconds, 1),
        "parts": {
            name: {
                "ok": part.ok, "pvalue": part.pvalue, "draws": part.draws,
                "detectable_bias": part.detectable_bias, "findings": part.findings,
                "notes": part.notes,
            }
            for name, part in parts.items()
        },
    }  # fmt: skip


def plot(found: dict[str, dict[str, Result]], path: Path) -> None:
    """Counts over what they should be, of the short row; in words, what the other rows show."""
    from matplotlib.figure import Figure

    names = [name for name in PICTURED if name in found]
    figure = Figure(figsize=(11, 7), dpi=120, layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
    for ax, name in zip(axes, names, strict=False):
        part = found[name]["short row"].parts["draws"]
        part.plot(ax=ax)
        ax.set_title(name, loc="left", fontweight="bold", fontsize=11)
        ax.label_outer()
        text = f"{part.draws:,} draws, p = {part.pvalue:.2g}"
        others = [
            f"{other}: {result.findings[0]}"
            for other, result in found[name].items()
            if other != "short row" and result.ok is False
        ]
        if others:
            text = "\n".join([f"short row: {text}", *others])
        color = "#D55E00" if others else "black"
        ax.text(
            0.98, 0.95, text, transform=ax.transAxes, ha="right", va="top", fontsize=9, color=color
        )
    for ax in axes[len(names) :]:
        ax.set_axis_off()
    # Under the panels: inside, it would lie on a band.
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center", ncols=3, frameon=False, fontsize=9,
    )  # fmt: skip
    figure.suptitle("Counts of the short row's tokens", fontweight="bold")
    figure.savefig(path)


@click.command(help=__doc__.splitlines()[0])
@click.option("--docs", is_flag=True, help="Also renew the picture in docs/.")
@click.option("-k", "only", default="", help="Only those whose name has this in it.")
def main(docs: bool, only: str) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    console = new_console()
    machine = _machine.describe()
    console.print(
        f"sampler {machine['sampler']} on {machine['isa']}, Python {machine['python']}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}, {machine['processor']}"
    )
    chosen = [peer for peer in peers() if only in peer.name]
    found: dict[str, dict[str, Result]] = {}
    records = []
    with tqdm(total=3 * len(chosen), leave=False, disable=None) as bar:
        for peer in chosen:
            start = time.monotonic()
            found[peer.name] = examine(peer, bar)
            records.append(record(peer, found[peer.name], time.monotonic() - start))
    table = Table(box=SIMPLE_HEAD, title=f"alpha = {ALPHA:g} each", title_justify="left")
    for heading in ("who", "version"):
        table.add_column(heading)
    for heading in ("draws", "verdict", "bias seen", "p"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("found", ratio=1)
    verdicts = {True: "ok", False: "fault", None: "too few"}
    for line in records:
        bias = line["detectable_bias"]
        table.add_row(
            line["name"], line["version"], f"{line['draws']:,}", verdicts[line["ok"]],
            f"{100 * bias:.2g} %" if math.isfinite(bias) else "", f"{line['pvalue']:.2g}",
            line["found"],
        )  # fmt: skip
    console.print(table)
    path = Path(".cache/conformance.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "alpha": ALPHA, "peers": records}, indent=2))
    console.print(f"{path}")
    if docs:
        plot(found, Path("docs/conformance.png"))
        console.print("docs/conformance.png")
    if any(line["ok"] is not True for line, peer in zip(records, chosen, strict=True) if peer.ours):
        sys.exit(1)


if __name__ == "__main__":
    main()
