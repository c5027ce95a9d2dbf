"""Time a draw with a mask or with bans against the bare draw.

    make bench-masks

Medians over the calls of a row, then over the rows; a ratio is taken row by row. Every mask is
random: *dense* words allow three tokens in four, *few* allow 100; *bools* and *ids* are these two
masks in other forms, which are packed first: part of their time, and stated apart. *bans* suppress
100 tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import click
import numpy as np

from _rows import SETTINGS, VOCAB, rows
from _tables import new_console, new_table
from sampler import Sampler, _core, build_info
from sampler.masks import read_mask

CALLS = 200


def times(call: Callable[..., object], *args: Any, **more: Any) -> float:
    """The median time of a call, in microseconds."""
    found = []
    for _ in range(CALLS):
        start = time.perf_counter_ns()
        call(*args, **more)
        found.append(time.perf_counter_ns() - start)
    return median(found) / 1e3


@click.command(help=__doc__.splitlines()[0])
def main() -> None:
    console = new_console()
    rng = np.random.default_rng(0)
    dense = rng.random(VOCAB) < 0.75
    ids = np.sort(rng.choice(VOCAB, 100, replace=False))
    few = np.isin(np.arange(VOCAB), ids)
    shape = (VOCAB,)
    masks = {
        "dense": read_mask(dense, shape)[0],
        "few": read_mask(few, shape)[0],
        "bools": dense,
        "ids": ids.tolist(),
    }
    info = build_info()
    for isa in reversed(info["isas"]):
        _core.choose_isa(isa)
        table = new_table(f"V = {VOCAB:,}, float32, {isa}: us", "", right=("bare", *masks, "bans"))
        for setting in SETTINGS:
            bare, banned = (
                Sampler(**setting.keywords, suppress_tokens=bans, seed=0)
                for bans in (None, ids.tolist())
            )
            calls: list[tuple[Sampler, dict[str, Any]]] = [
                (bare, {}),
                *((bare, {"mask": mask}) for mask in masks.values()),
                (banned, {}),
            ]
            columns = [[times(s, row, **more) for s, more in calls] for row in rows(VOCAB)]
            first, *others = np.array(columns).T
            table.add_row(
                str(setting),
                f"{median(first):.1f}",
                *(f"{median(one):.1f} {median(one / first):.2f}x" for one in others),
            )
        console.print(table)
    packing = [f"{name} {times(read_mask, mask, shape):.1f} us" for name, mask in masks.items()]
    console.print("Packing:", ", ".join(packing))
    _core.choose_isa(info["isa"])


if __name__ == "__main__":
    main()
