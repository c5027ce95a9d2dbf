"""Print the tables of a run, and draw its plots.

    make bench                                    # runs the benchmarks, then this
    make bench-report                             # this alone, on the figures of the last run
    make bench-report ARGS="--docs"     # and the plots of the documents

Times are medians over the calls of a row and then over the rows; ratios are formed within a row,
then their median is taken. `worst` is the largest ratio of any row. Small batches differ in which
rows they hold, so there are several of them, which count by their mean.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import click
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter
from rich.console import Console

from _rows import PRESETS, SETTINGS, TOP_P, VOCAB, VOCABS
from _tables import new_console, new_table

OURS = "sampler"
READ = "np.max, reading the row"
# Okabe and Ito's colours, which colour-blind readers can distinguish, and a marker each.
STYLES = {
    OURS: ("#d55e00", "o"),
    "Hugging Face": ("#0072b2", "s"),
    "torch ops": ("#56b4e9", "D"),
    "NumPy": ("#009e73", "^"),
    "llama.cpp": ("#cc79a7", "v"),
    "jax": ("#e69f00", "P"),
    "mlx": ("#999999", "X"),
}

READ_STYLE: dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}
PLAIN = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")

Record = dict[str, Any]


def load(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """What the figures were measured with, and the figures: each benchmark's extra_info."""
    data = json.loads(path.read_text())
    records = [
        {"benchmark": bench["name"].partition("[")[0], **bench["extra_info"]}
        for bench in data["benchmarks"]
    ]
    return data["machine_info"]["sampler"], records


def where(records: Iterable[Record], **wanted: Any) -> list[Record]:
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


def middle(record: Record, name: str) -> float:
    """One number for the rows, or the batches."""
    return (fmean if "batch" in record else median)(record[name])


def to_read(record: Record) -> list[float]:
    """How many times `np.max` over the same row, row by row."""
    return [t / read for t, read in zip(record["median_us"], record["read_us"], strict=True)]


def to_ours(record: Record, records: Iterable[Record]) -> float | None:
    """How many times slower than ours, by row."""
    same = ("benchmark", "setting", "vocab", "batch", "threads")
    ours = where(records, peer=OURS, **{name: record.get(name) for name in same})
    if not ours:
        return None
    pairs = zip(record["median_us"], ours[0]["median_us"], strict=True)
    return median(theirs / mine for theirs, mine in pairs)


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{number(value)}x"


# ------------------------------------------------------------------------------------- tables


def tables(info: dict[str, Any], records: list[Record], console: Console) -> None:
    """Print everything there are figures for; the overviews come last."""
    warm, cold = where(records, benchmark="bench_warm"), where(records, benchmark="bench_cold")
    for vocab in VOCABS:
        peers_table(f"One row of {vocab:,} float32 logits, warm", where(warm, vocab=vocab), console)
    peers_table(f"One row of {VOCAB:,}, cold: out of the caches", cold, console)
    for size in sorted({r["batch"] for r in where(records, benchmark="bench_batch")} - {1}):
        batch = where(records, benchmark="bench_batch", batch=size)
        peers_table(f"A batch of {size} rows of {VOCAB:,} in one call", batch, console)
    dtypes_table(where(records, benchmark="bench_dtype"), console)
    per_row_table(where(records, benchmark="bench_per_row"), console)
    threads_table(where(records, benchmark="bench_threads"), info, console)
    generation_table([r for r in records if "ms_per_token" in r], console)
    softmax_table([r for r in records if "softmax_us" in r], console)
    settled_table(where(warm, peer=OURS), console)
    overview_to_read(where(warm, peer=OURS), where(cold, peer=OURS), console)
    overview_to_peers(where(warm, vocab=VOCAB), console)
    presets_table(where(records, benchmark="bench_preset"), console)


def peers_table(title: str, records: list[Record], console: Console) -> None:
    """Setting by setting, every peer."""
    if not records:
        return
    headings = ("median us", "p99 us", "/ np.max", "worst", "/ sampler", "calls")
    table = new_table(title, "", right=headings)
    for setting in map(str, SETTINGS):
        here = where(records, setting=setting)
        if not here:
            continue
        read = median(middle(r, "read_us") for r in here)
        table.add_row(f"[bold]{setting}")
        table.add_row("  np.max", number(read), "", "1", style="dim")
        for r in here:
            table.add_row(
                f"  {r['peer']}",
                number(middle(r, "median_us")),
                number(middle(r, "p99_us")),
                number(median(to_read(r))),
                number(max(to_read(r))) if len(r["read_us"]) > 1 else "",
                times(to_ours(r, here)),
                str(r["calls"]),
            )
        table.add_section()
    console.print(table)


def dtypes_table(records: list[Record], console: Console) -> None:
    if not records:
        return
    table = new_table(
        f"Types of logits, rows of {VOCAB:,}; np.max over their float32 values",
        "rows", "setting", "dtype", right=("median us", "p99 us", "/ float32", "/ np.max"),
    )  # fmt: skip
    groups: dict[tuple[int, str], list[Record]] = defaultdict(list)
    for r in records:
        groups[r["batch"], r["setting"]].append(r)
    for (size, setting), group in groups.items():
        wide = where(group, dtype="float32")
        for i, r in enumerate(group):
            pairs = zip(to_read(r), to_read(wide[0]), strict=True) if wide else ()
            label = "one, warm" if size == 1 else f"{size}, beyond the cache"
            table.add_row(
                *((label, setting) if i == 0 else ("", "")),
                r["dtype"],
                number(median(r["median_us"])),
                number(median(r["p99_us"])),
                f"{median(a / b for a, b in pairs):.2f}" if wide else "",
                number(median(to_read(r))),
            )
        table.add_section()
    console.print(table)


def per_row_table(records: list[Record], console: Console) -> None:
    if not records:
        return
    table = new_table(
        "64 rows under one setting, or under one each",
        "vocab", "setting", "settings", right=("median us", "/ np.max", "to one setting"),
    )  # fmt: skip
    for r in records:
        one = where(records, vocab=r["vocab"], setting=r["setting"], settings=1)
        table.add_row(
            f"{r['vocab']:,}",
            r["setting"],
            str(r["settings"]),
            number(r["median_us"][0]),
            number(to_read(r)[0]),
            f"{r['median_us'][0] / one[0]['median_us'][0]:.3f}" if one else "",
        )
    console.print(table)


def threads_table(records: list[Record], info: dict[str, Any], console: Console) -> None:
    if not records:
        return
    table = new_table(
        f"64 rows of {VOCAB:,}, {TOP_P}, on {info['cores']} core(s)",
        "who", "threads", right=("median us", "p99 us", "/ np.max", "to one thread"),
    )  # fmt: skip
    for peer in dict.fromkeys(r["peer"] for r in records):
        one = where(records, peer=peer, threads=1)
        for r in where(records, peer=peer):
            gain = one[0]["median_us"][0] / r["median_us"][0] if one else None
            table.add_row(
                peer,
                str(r["threads"]),
                number(r["median_us"][0]),
                number(r["p99_us"][0]),
                number(to_read(r)[0]),
                times(gain),
            )
        table.add_section()
    console.print(table)


def generation_table(records: list[Record], console: Console) -> None:
    if not records:
        return
    table = new_table(
        f"A token of generate(), {TOP_P}, on {records[0]['threads']} thread(s)",
        "model", "way", right=("ms per token", "to greedy", "share of sampling"),
    )  # fmt: skip
    for r in records:
        ways = r["ms_per_token"]
        for way in ways:
            ratio = median(t / g for t, g in zip(ways[way], ways["greedy"], strict=True))
            table.add_row(
                {"greedy": r["model"], "Hugging Face": f"V = {r['vocab']:,}"}.get(way, ""),
                way,
                f"{median(ways[way]):.2f}",
                f"{ratio:.3f}",
                "" if way == "greedy" else f"{1 - 1 / ratio:.1%}",
            )
        table.add_section()
    console.print(table)


def softmax_table(records: list[Record], console: Console) -> None:
    if not records:
        return
    table = new_table(
        "The softmax family; / torch: of the calls of one round, the median",
        "function", "dtype", "rows", right=("sampler us", "torch us", "/ torch", "SciPy us"),
    )  # fmt: skip
    before: tuple[str, str] | None = None
    for r in records:
        us, name = r["softmax_us"], (r["function"], r["dtype"])
        if name != before:
            table.add_section()
        ratio = median(t / theirs for t, theirs in zip(us[OURS], us["torch"], strict=True))
        table.add_row(
            *(name if name != before else ("", "")),
            f"{r['shape'][0]:,} x {r['shape'][1]:,}",
            number(median(us[OURS])),
            number(median(us["torch"])),
            f"{ratio:.2f}",
            number(median(us["SciPy"])),
        )
        before = name
    console.print(table)


def settled_table(records: list[Record], console: Console) -> None:
    """By which mass the core settled each question; what `fast` does not prove falls back."""
    names = [name for r in records[:1] for name in r["counts"]]
    ways = list(dict.fromkeys(name.partition(": ")[2] for name in names))
    table = new_table("How the core settled a draw, and a top-p", "", right=["times", *ways])
    for question in dict.fromkeys(name.partition(": ")[0] for name in names):
        table.add_section()
        table.add_row(f"[bold]{question}")
        for setting in dict.fromkeys(r["setting"] for r in records):
            total: Counter[str] = Counter()
            for r in where(records, setting=setting):
                total.update(r["counts"])
            counts = [total[f"{question}: {way}"] for way in ways]
            if n := sum(counts):
                shares = [f"{count / n:.2%}" if count else "" for count in counts]
                table.add_row(f"  {setting}", f"{n:,}", *shares)
    if table.row_count:
        console.print(table)


def overview_to_read(warm: list[Record], cold: list[Record], console: Console) -> None:
    table = new_table(
        "sampler, one row, as a multiple of np.max over it: median row (worst row)",
        "setting", right=[*(f"V = {vocab:,}" for vocab in VOCABS), f"{VOCAB:,}, cold"],
    )  # fmt: skip
    for setting in map(str, SETTINGS):
        cells = []
        for vocab in VOCABS:
            here = where(warm, setting=setting, vocab=vocab)
            text = (
                f"{number(median(to_read(here[0])))} ({number(max(to_read(here[0])))})"
                if here
                else ""
            )
            cells.append(text)
        here = where(cold, setting=setting)
        cells.append(number(median(to_read(here[0]))) if here else "")
        if any(cells):
            table.add_row(setting, *cells)
    if table.row_count:
        console.print(table)


def overview_to_peers(warm: list[Record], console: Console) -> None:
    peers = [name for name in dict.fromkeys(r["peer"] for r in warm) if name in STYLES]
    peers = [name for name in peers if name != OURS]
    if not peers:
        return
    table = new_table(
        f"V = {VOCAB:,}, one warm row: how many times as long as sampler",
        "setting", right=[OURS, *peers],
    )  # fmt: skip
    for setting in map(str, SETTINGS):
        here = where(warm, setting=setting)
        cells = [f"{number(median(r['median_us']))} us" for r in where(here, peer=OURS)] or [""]
        for peer in peers:
            slower = [to_ours(r, here) for r in where(here, peer=peer)]
            cells.append(times(slower[0] if slower else None))
        if any(cells):
            table.add_row(setting, *cells)
    console.print(table)


def presets_table(records: list[Record], console: Console) -> None:
    if not records:
        return
    peers = [name for name in ("Hugging Face", "llama.cpp", "NumPy") if where(records, peer=name)]
    table = new_table(
        f"What people run, V = {VOCAB:,}, one warm row: how many times as long as sampler",
        "preset", "setting", right=[OURS, "/ np.max", *peers],
    )  # fmt: skip
    for name, setting in PRESETS.items():
        here = where(records, setting=name)
        cells = ["", ""]
        for r in where(here, peer=OURS):
            cells = [f"{number(median(r['median_us']))} us", number(median(to_read(r)))]
        for peer in peers:
            slower = [to_ours(r, here) for r in where(here, peer=peer)]
            cells.append(times(slower[0] if slower else None))
        if any(cells):
            table.add_row(name, str(setting), *cells)
    console.print(table)


# -------------------------------------------------------------------------------------- plots


def plot_vocabulary(records: list[Record], path: Path) -> None:
    """Time against V, with the read pass as a line."""
    sizes = [2**i for i in range(10, 21)]
    here = where(records, benchmark="bench_warm", setting=str(TOP_P))
    lines = lines_of([r for r in here if r["vocab"] in sizes], "vocab")
    figure, ax = new_axes(f"One token, {TOP_P}: time against the vocabulary")
    draw_lines(ax, lines)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("tokens in the vocabulary")
    ax.xaxis.set_major_locator(FixedLocator(sizes[::2]))
    ax.xaxis.set_major_formatter(PLAIN)
    finish(figure, ax, path)


def plot_kept(records: list[Record], path: Path) -> None:
    """Time against kept tokens: by top-k, and by the temperature under top-p."""
    warm = [r for r in where(records, benchmark="bench_warm", vocab=VOCAB) if r["peer"] in STYLES]
    ks = [r for r in warm if "top-k" in r["setting"] and "top-p" not in r["setting"]]
    ps = [r for r in warm if "top-k" not in r["setting"] and "top-p 0.9" in r["setting"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, layout="constrained")
    figure.suptitle("One token: time against the tokens that the setting keeps", fontweight="bold")
    left.set_title("T 0.8, top-k from 1 to 65,536")
    draw_lines(left, lines_of([{**r, "kept": int(median(r["kept"]))} for r in ks], "kept"))
    right.set_title("top-p 0.9, T from 0.8 to 10, row by row")
    for r in ps:
        color, marker = STYLES[r["peer"]]
        right.scatter(r["kept"], r["median_us"], color=color, marker=marker, s=22, zorder=3)
    if reads := [middle(r, "read_us") for r in where(ps, peer=OURS)]:
        right.plot([1, VOCAB], [median(reads)] * 2, **READ_STYLE)
    for ax in (left, right):
        style(ax)
        ax.set_xscale("log")
        ax.set_xlabel(f"tokens kept of {VOCAB:,}")
    finish(figure, left, path)


def plot_batch(records: list[Record], path: Path) -> None:
    here = where(records, benchmark="bench_batch", setting=str(TOP_P))
    figure, ax = new_axes(f"Rows of {VOCAB:,}, {TOP_P}: time per row against the batch")
    draw_lines(ax, lines_of(here, "batch", a_row=True))
    ax.set_ylabel("microseconds per row")
    ax.set_xscale("log", base=2)
    ax.set_xlabel("rows in a call")
    ax.xaxis.set_major_formatter(PLAIN)
    finish(figure, ax, path)


def plot_threads(records: list[Record], path: Path) -> None:
    """How many times as fast as one thread; the milliseconds are written next to it."""
    here = [r for r in where(records, benchmark="bench_threads") if r["threads"] != "auto"]
    counts = sorted({r["threads"] for r in here})
    figure, ax = new_axes(f"64 rows of {VOCAB:,}, {TOP_P}: what threads gain")
    for name, points in lines_of(here, "threads").items():
        if name != READ and len(points) > 1:
            color, marker = STYLES[name]
            n, us = np.transpose(points)
            ax.plot(n, us[0] / us, color=color, marker=marker, linewidth=2, label=name)
            for x, t in zip(n, us, strict=True):
                ax.annotate(
                    f"{number(t / 1e3)} ms", (x, us[0] / t), color=color,
                    xytext=(0, 8 if name == OURS else -16), textcoords="offset points", ha="center",
                )  # fmt: skip
    if ax.lines:
        ax.plot(
            counts, counts, color="0.6", linestyle=":", zorder=1, label="as many times as threads"
        )
    ax.set_yscale("linear")
    ax.set_ylim(0.5, (counts or [1])[-1] + 0.5)
    ax.margins(x=0.15)
    ax.set_ylabel("times as fast as with one thread")
    ax.set_xlabel("threads")
    ax.xaxis.set_major_locator(FixedLocator(counts))
    finish(figure, ax, path)


def lines_of(
    records: list[Record], x: str, *, a_row: bool = False
) -> dict[str, list[tuple[float, float]]]:
    """The points of every peer, and of the read pass, by x."""
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for r in sorted(records, key=lambda r: r[x]):
        rows_in_call = r["batch"] if a_row else 1
        lines[r["peer"]].append((r[x], middle(r, "median_us") / rows_in_call))
        if r["peer"] == OURS:
            lines[READ].append((r[x], middle(r, "read_us") / rows_in_call))
    return lines


def draw_lines(ax: Axes, lines: dict[str, list[tuple[float, float]]]) -> None:
    # The highest line first in the legend, as it is in the plot.
    for name in sorted(lines, key=lambda name: -max(t for _, t in lines[name])):
        x, y = np.transpose(lines[name])
        if name == READ:
            ax.plot(x, y, label=name, **READ_STYLE)
        else:
            color, marker = STYLES[name]
            width = 2.4 if name == OURS else 1.4
            ax.plot(x, y, color=color, marker=marker, linewidth=width, markersize=5, label=name)


def new_axes(title: str) -> tuple[Figure, Axes]:
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    ax.set_title(title, fontweight="bold")
    style(ax)
    return figure, ax


def style(ax: Axes) -> None:
    ax.set_yscale("log")
    ax.set_ylabel("microseconds")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.grid(which="major", color="0.88")
    ax.spines[["top", "right"]].set_visible(False)


def finish(figure: Figure, ax: Axes, path: Path) -> None:
    """Write the plot, if there is anything in it."""
    if ax.lines:
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    plt.close(figure)


@click.command(help=__doc__.splitlines()[0])
@click.option("--json", "source", default=".cache/bench/bench.json", show_default=True)
@click.option("--docs", is_flag=True, help="Also renew the plots in docs/.")
def main(source: str, docs: bool) -> None:
    path = Path(source)
    if not path.exists():
        raise click.ClickException(f"there is no {source} yet: run `make bench`")
    plt.switch_backend("Agg")  # files, no window
    info, records = load(path)
    console = new_console()
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items())
    console.print(
        f"sampler {info['sampler']} on {info['isa']} ({info['compiler']}), {packages}, "
        f"Python {info['python']}, {info['processor']}, {info['cache_bytes'] >> 20} MiB of cache; "
        "float32 logits and one thread, where nothing else is said"
    )
    if info["missing"]:
        console.print(f"Not installed, so not timed: {', '.join(info['missing'])}", style="yellow")
    tables(info, records, console)
    for plot in (plot_vocabulary, plot_kept, plot_batch, plot_threads):
        plot(records, path.parent / f"{plot.__name__.removeprefix('plot_')}.png")
    if docs:
        plot_vocabulary(records, Path("docs/speed.png"))
        plot_kept(records, Path("docs/speed_kept.png"))
    drawn = sorted(map(str, path.parent.glob("*.png")))
    console.print(f"Plots: {', '.join(drawn) or 'none, without a whole run'}; figures: {path}")


if __name__ == "__main__":
    main()
