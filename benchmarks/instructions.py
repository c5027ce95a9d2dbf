"""Count the instructions of a call, which a busy machine does not change.

    make bench-instructions                     # a table, and .cache/bench/instructions.json
    make bench-instructions BASE=before.json    # compared with an earlier file, changes marked

valgrind's callgrind runs a fixed set of calls on the AVX2 kernels (it knows no AVX-512). Counted is
the whole Python call, after two calls that are not. The same build gives the same numbers.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np

import _machine
from _rows import SETTINGS, TOP_K, TOP_P, rows
from _tables import new_console, new_table
from sampler import Sampler

CALLS = 3
MARKED = 0.05
# callgrind writes down what it has counted, and starts again at 0, whenever this C function is
# called. Nothing else calls it.
MARKER = "getpriority"
CASES = [
    *((setting, vocab, "float32") for vocab in (49_152, 131_072) for setting in SETTINGS),
    *((setting, 131_072, dtype) for dtype in ("bfloat16", "float64") for setting in (TOP_K, TOP_P)),
]


def run_cases() -> None:
    """What callgrind watches: two dumps a case, of which the second has the counted calls."""
    for setting, vocab, dtype in CASES:
        more = {"dtype": dtype} if dtype == "bfloat16" else {}
        for row in rows(vocab):
            if dtype == "bfloat16":
                row = (row.view(np.uint32) >> 16).astype(np.uint16)
            else:
                row = row.astype(dtype)
            s = Sampler(**setting.keywords, seed=0)
            s(row, **more)
            s(row, **more)
            os.getpriority(os.PRIO_PROCESS, 0)
            for _ in range(CALLS):
                s(row, **more)
            os.getpriority(os.PRIO_PROCESS, 0)


def count() -> dict[str, int]:
    """Run the cases under callgrind; instructions per call, the mean over the rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "dump"
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"),
                *(f"--dump-before={MARKER}", sys.executable, __file__, "--run"),
            ],
            env={**os.environ, "SAMPLER_ISA": "v3", "PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise click.ClickException(f"the calls failed under valgrind:\n{done.stderr[-2000:]}")
        dumps = sorted(Path(folder).glob("dump.*"), key=lambda path: int(path.suffix[1:]))
        totals = [
            int(total)
            for dump in dumps
            for total in re.findall(r"^totals: (\d+)", dump.read_text(), re.MULTILINE)
        ]
    counted = np.array(totals[1::2])
    if len(totals) != 2 * len(counted) or len(counted) % len(CASES):
        raise click.ClickException(f"callgrind saw {len(totals)} calls of {MARKER}: too few")
    means = counted.reshape(len(CASES), -1).mean(axis=1) / CALLS
    return {
        f"{vocab}, {dtype}: {setting}": round(mean)
        for (setting, vocab, dtype), mean in zip(CASES, means.tolist(), strict=True)
    }


@click.command(help=__doc__.splitlines()[0])
@click.option("--base", type=click.Path(exists=True, dir_okay=False), help="An earlier JSON file.")
@click.option("--json", "target", default=".cache/bench/instructions.json", show_default=True)
@click.option("--run", is_flag=True, hidden=True)
def main(base: str | None, target: str, run: bool) -> None:
    if run:
        run_cases()
        return
    if platform.machine() not in ("x86_64", "AMD64"):
        raise click.ClickException(
            f"the instructions counted are those of x86-64 with AVX2; this is {platform.machine()}"
        )
    if shutil.which("valgrind") is None:
        raise click.ClickException("valgrind is missing; on Debian: apt-get install valgrind")
    console = new_console()
    before = json.loads(Path(base).read_text())["instructions"] if base else {}
    with console.status("Counting, half a minute or so"):
        counted = count()
    info = {**_machine.describe(), "isa": "v3"}
    table = new_table(
        f"Instructions of a call, sampler {info['sampler']} on v3 ({info['compiler']})",
        "", right=("a call", "a logit", *(("before", "change") if before else ())),
    )  # fmt: skip
    rows_of = ""
    for name, n in counted.items():
        kind, _, setting = name.partition(": ")
        if kind != rows_of:
            rows_of = kind
            table.add_section()
            table.add_row(f"[bold]{kind}")
        cells = [f"  {setting}", f"{n:,}", f"{n / int(kind.split(',')[0]):.2f}"]
        if old := before.get(name):
            change = n / old - 1
            cells += [f"{old:,}", f"{change:+.2%}"]
            if abs(change) > MARKED:
                cells[-1] = f"[bold {'red' if change > 0 else 'green'}]! {cells[-1]}"
        table.add_row(*cells)
    console.print(table)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps({"info": info, "instructions": counted}, indent=1) + "\n")
    console.print(f"Written to {target}")


if __name__ == "__main__":
    main()
