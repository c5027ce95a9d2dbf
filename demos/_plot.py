"""What the demos that write a picture share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's colours, which colour-blind readers can distinguish.
BLUE, ORANGE, GREEN, PINK, SKY, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#BBBBBB",
)  # fmt: skip


def output_option(default: str) -> Any:
    """The option that says where the picture goes."""
    return click.option(
        "--output",
        type=click.Path(dir_okay=False, writable=True, path_type=Path),
        default=default,
        callback=_check_output,
        help="A .png, .svg or .pdf.",
    )


def _check_output(_context: click.Context, _option: click.Parameter, output: Path) -> Path:
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"--output has to end in .png, .svg or .pdf, but is {output}")
    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"there is no folder {output.absolute().parent}")
    return output


def dress(ax: Axes) -> None:
    """Give axes the looks of all the pictures here."""
    ax.grid(which="major", color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def entitle(figure: Figure, title: str, subtitle: str) -> None:
    """Put a bold title and a plain line or two above all panels."""
    height = figure.get_figheight()  # in inches, as the numbers below are
    lines = subtitle.count("\n") + 1
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - (0.55 + 0.22 * lines) / height))
    line = {"ha": "left", "va": "top", "parse_math": False}
    figure.text(0.015, 1 - 0.1 / height, title, fontsize=14, fontweight="bold", **line)
    figure.text(
        0.015, 1 - 0.42 / height, subtitle, fontsize=10.5, linespacing=1.4, color="#333333", **line
    )


def save(figure: Figure, path: Path) -> None:
    """Write the picture, a .png in 256 colours: more than it has, and half as large."""
    figure.savefig(path)
    if path.suffix == ".png":
        from PIL import Image

        Image.open(path).convert("RGB").quantize().save(path, optimize=True)
