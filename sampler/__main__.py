"""``python -m sampler``: what can be asked of an installation."""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

import sampler
from sampler._build import install

if TYPE_CHECKING:
    from sampler.testing import Result


def _missing(package: str, error: ImportError) -> NoReturn:
    remedy = f"it comes with {install('testing')}"
    print(f"python -m sampler needs {package} ({error}); {remedy}", file=sys.stderr)
    sys.exit(2)


try:
    import click
except ImportError as error:
    _missing("click", error)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(sampler.__version__, prog_name="sampler")
@click.pass_context
def main(context: click.Context) -> None:
    """Turn a language model's logits into tokens; this checks the installation."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@main.command()
@click.option("--deep", is_flag=True, help="Ten minutes instead of one: it sees smaller faults.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--draws",
    type=click.IntRange(1, 2**40 - 1),
    help="Of each setting, dtype and instruction set.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
def selftest(deep: bool, as_json: bool, draws: int | None, seed: int) -> None:
    """Test whether this build samples correctly on this machine.

    Exit status: 0 if it does, 1 if there is a fault, 3 if there were too few draws to tell. 2 if
    nothing was checked: a wrong option, a missing package.
    """
    for package in ("scipy", "rich", "tqdm"):
        try:
            import_module(package)
        except ImportError as error:
            _missing(package, error)
    from rich.console import Console

    from sampler.testing import _selftest as tests

    build = {
        "sampler": sampler.__version__,
        **sampler.build_info(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    if not as_json:
        isas = ", ".join(build["isas"])
        console.print(
            f"sampler {build['sampler']}, compiled by {build['compiler']}; Python "
            f"{build['python']}, NumPy {build['numpy']}, {build['machine']}"
        )
        console.print(f"Instruction sets: {isas} ({build['isa']} is in use)")
    start = time.monotonic()
    result = tests.selftest(deep=deep, draws=draws, seed=seed)
    seconds = time.monotonic() - start
    sentence = _sentence(result, build["isas"], seconds)
    if as_json:
        head = {"ok": result.ok, "sentence": sentence, "seconds": round(seconds, 1), "build": build}
        click.echo(json.dumps({**head, **_fields(result)}, indent=2, allow_nan=False))
    else:
        _print(console, result, tests.SETTINGS, tests.DTYPES)
        console.print(sentence, markup=False)
    sys.exit({True: 0, False: 1, None: 3}[result.ok])


def _print(console: Any, result: Result, settings: Any, dtypes: Any) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    what = {
        "uniforms": "keyed uniforms: NumPy's bits; even (bias: of 1/256)",
        "independence": "rows, steps, seeds, shifts, padding, strides, order, ties",
    }
    each = f"{len(settings)} settings x {len(dtypes)} dtypes, and token by token"
    table = Table(box=SIMPLE_HEAD)
    table.add_column("checked")
    for heading in ("draws", "bias seen", "p-value", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, part in result.parts.items():
        table.add_row(
            what.get(name, f"{name}: {each}"), f"{part.draws:,}", _bias(part),
            f"{part.pvalue:.2g}", {True: "ok", False: "FAULT", None: "too few"}[part.ok],
        )  # fmt: skip
    console.print(table)
    console.print(f"Settings: {'; '.join(settings)}. Dtypes: {', '.join(dtypes)}.\n")
    for finding in result.findings:
        console.print(f"- {finding}", markup=False)


def _bias(result: Result) -> str:
    return f"{100 * result.detectable_bias:.2g} %" if result.detectable_bias < 1 else "none"


def _sentence(result: Result, isas: tuple[str, ...], seconds: float) -> str:
    took = f"{result.draws:,} draws in {seconds:.0f} s"
    if result.ok is None:
        return f"No conclusion: {took} are too few; leave out --draws."
    if result.ok is False:
        return (
            f"Your build does NOT sample correctly: {took} show it, where a correct build looks "
            f"like this with probability {result.pvalue:.1g}."
        )
    return (
        f"Your build samples correctly: {took} on {len(isas)} instruction "
        f"{'set' if len(isas) == 1 else 'sets'} show no fault (p = {result.pvalue:.2g}), and a "
        f"likely token drawn {_bias(result)} too often or too rarely would have been seen in "
        f"{result.power:.1%} of runs."
    )


def _fields(result: Result) -> dict[str, Any]:
    bias = result.detectable_bias
    parts = {name: _fields(part) for name, part in result.parts.items()}
    return {
        "ok": result.ok,
        "pvalue": result.pvalue,
        "detectable_bias": bias if np.isfinite(bias) else None,
        "draws": result.draws,
        "alpha": result.alpha,
        "power": result.power,
        "seeds": dict(result.seeds),
        "findings": result.findings,
        "notes": result.notes,
        **({"parts": parts} if parts else {}),
    }


if __name__ == "__main__":
    main(prog_name="python -m sampler")
