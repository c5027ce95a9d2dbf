"""How the figures are shown in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def new_console() -> Console:
    """Wide enough for every table where the output goes into a file."""
    return Console(width=None if sys.stdout.isatty() else 110, highlight=False)


def new_table(title: str, *left: str, right: Iterable[str]) -> Table:
    """A table with these headings, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for heading in left:
        table.add_column(heading, no_wrap=True)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
