"""What every figure shares: colours, files, axes."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7A7A7A", "#882255")
"""After Okabe and Ito: told apart with any colour vision; markers differ too."""
MARKERS = "osD^vPX*"
GREY = "#666666"
DPI = 130


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn figure and the table behind it."""

    png: Path
    csv: Path
    title: str
    words: str
    """What it shows, for a caption and for readers who do not see it."""


def save_picture(
    figure: Figure, path: Path, title: str, words: str, head: Sequence[str], rows: Sequence[Sequence[Any]]
) -> Picture:
    """Writes `path` (PNG) and the CSV beside it; a number that is missing is an empty cell."""
    figure.savefig(path, dpi=DPI, facecolor="white")
    table = path.with_suffix(".csv")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(["" if _missing(cell) else cell for cell in row] for row in rows)
    return Picture(path, table, title, words)


def looks_of(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method, the same in all figures of a report."""
    names = list(dict.fromkeys(methods))
    return {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)}


def file_name(prefix: str, name: str, place: int) -> str:
    """A file name for a method whose name may hold anything."""
    safe = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
    return f"{prefix}-{safe}" if safe == name else f"{prefix}-{place + 1}-{safe}".rstrip("-")


def tidy_axes(axes: Axes) -> None:
    """Fewer lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def widen_axis(axes: Axes, least: float) -> None:
    """Makes the vertical axis at least so high, around what it shows."""
    low, high = axes.get_ylim()
    if high - low < least:
        middle = (low + high) / 2
        axes.set_ylim(middle - least / 2, middle + least / 2)


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def literal(text: str) -> str:
    """Text without mathematics: matplotlib would read a pair of $ as a formula."""
    return text.replace("$", r"\$")
