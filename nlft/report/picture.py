"""What every figure shares: colours, files, axes."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from nlft.measure.unit import is_bounded

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B8860B", "#56B4E9", "#7A7A7A", "#882255")
"""After Okabe and Ito: told apart with any colour vision; markers differ too."""
MARKERS = "osD^vPX*"
GREY = "#666666"
PALE = "#d4d4d4"
"""Lines of other methods, behind the one that a panel is about."""
DPI = 130
TOGETHER = 8
"""More methods than this do not share one panel: each gets a small one, with the others pale behind it."""
FAR = 0.06
"""Labels of points nearer to each other than this part of the axes would lie on top of each other."""


class Look(NamedTuple):
    """How a method is drawn in all figures of a report."""

    colour: str
    marker: str
    told: bool
    """The method is told each row's task: hollow and dashed."""

    @property
    def face(self) -> str:
        return "white" if self.told else self.colour

    @property
    def line(self) -> str:
        return "--" if self.told else "-"


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
        writer.writerows(["" if _missing(cell) else _harmless(cell) for cell in row] for row in rows)
    return Picture(path, table, title, words)


def looks_of(summary: Mapping[str, Any]) -> dict[str, Look]:
    """Colour and marker of each method; no two of the first 64 are alike."""
    told = {entry["method"]: bool(entry.get("told_task")) for entry in summary["methods"]}
    return {
        name: Look(COLOURS[i % len(COLOURS)], MARKERS[(i + i // len(COLOURS)) % len(MARKERS)], told[name])
        for i, name in enumerate(told)
    }


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


def apart(x: Sequence[float], y: Sequence[float], far: float = FAR) -> list[int]:
    """Places of points that lie apart from all those chosen before them, in parts of the whole span."""
    spans = [max(max(values) - min(values), 1e-12) for values in (x, y)]
    kept: list[int] = []
    for i in range(len(x)):
        if all(abs(x[i] - x[k]) / spans[0] + abs(y[i] - y[k]) / spans[1] > far for k in kept):
            kept.append(i)
    return kept


def scale_of(unit: str | None) -> float:
    """What values of a unit are multiplied by in a picture: fractions are drawn in percent."""
    return 100.0 if unit and is_bounded(unit) else 1.0


def small_panels(names: Sequence[str], across: str, up: str, foot: float = 0.5) -> tuple[Figure, list[Axes]]:
    """A panel for every name on the same axes, five beside each other; `foot`: inches for the lowest tick labels."""
    rows, columns = grid_of(len(names), 5)
    width, height = 2.25 * columns + 0.8, 1.8 * rows + foot + 0.4
    # Placed by hand: matplotlib's layouts take seconds for so many panels.
    figure = Figure(figsize=(width, height))
    every = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.1 / width, bottom=(foot + 0.1) / height, top=1 - 0.55 / height, wspace=0.1,
        hspace=0.26,
    )  # fmt: skip
    for axes, name in zip(every.flat, names, strict=False):
        axes.set_title(short(name, 24), fontsize=9)
        axes.tick_params(labelsize=8)
    for axes in every.flat[len(names) :]:
        axes.set_visible(False)
    figure.supxlabel(across, fontsize=9, y=0.08 / height, va="bottom")
    figure.supylabel(up, fontsize=9, x=0.1 / width, ha="left")
    return figure, list(every.flat[: len(names)])


def draw_pale(axes: Axes, lines: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Lines of the other methods, behind the one that a panel is about."""
    axes.add_collection(LineCollection([line for line in lines if line], colors=PALE, linewidths=0.8, zorder=1))


def grid_of(count: int, columns: int) -> tuple[int, int]:
    """Rows and columns for so many small panels."""
    columns = min(columns, count)
    return -(-count // columns), columns


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _harmless(cell: Any) -> Any:
    """A name that a spreadsheet would take for a formula, with an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def literal(text: str) -> str:
    """Text without mathematics: matplotlib would read a pair of $ as a formula."""
    return text.replace("$", r"\$")


def short(name: str, most: int = 28) -> str:
    """A method's name as a label: a very long one would leave no room for the picture."""
    return literal(name if len(name) <= most else f"{name[: most - 10]}…{name[-9:]}")
