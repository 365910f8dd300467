"""Matrices: the scores of every column after every task, as a table and as a heat map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from nlft.measure.unit import show
from nlft.report.picture import Picture, file_name, literal, save_picture
from nlft.report.rows import Grid, best_entries, runs_of, setting, start_name

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]
LEAST_SHADED = 0.25
"""Unbounded scores: the shades span at least this part of the best score."""
WORDS = (
    "Rows: the base, then after each task. Framed: the task just trained. Darker is better; unbounded scores are "
    "shaded between the worst and the best of their column in this report, a quarter of the best at least."
)
TOGETHER = 4
"""Matrices of more methods than this are folded."""


def matrix_grids(summary: Summary) -> list[Grid]:
    """The matrix of every method at its best learning rate; the last one says how to read them."""
    entries = best_entries(summary)
    folded = len(entries) > TOGETHER
    words = [""] * (len(entries) - 1) + [WORDS]
    return [matrix_grid(summary, entry, text, folded) for entry, text in zip(entries, words, strict=False)]


def order_words(summary: Summary, entry: Entry) -> str:
    """Which runs a matrix is of, where the method has run in several orders of the tasks."""
    orders = [run["order"] for run in runs_of(summary, entry)]
    n = orders.count(entry["order"])
    if n == len(orders):
        return ""
    runs = "The one run" if n == 1 else f"Mean over the {n} runs"
    return f"{runs} of the order {' → '.join(entry['order'])}; other orders differ. "


def matrix_grid(summary: Summary, entry: Entry, words: str = "", folded: bool = False) -> Grid:
    """The matrix of one method: stages × columns, the base first, the upper triangle too."""
    columns, R = summary["columns"], entry["matrix"] or []
    head = ["after"] + [f"{column['column']} ({'%' if column['bounded'] else column['unit']})" for column in columns]
    body = [
        [name, *[show(value, column["unit"], False) for value, column in zip(row, columns, strict=True)]]
        for name, row in zip([start_name(summary), *entry["order"]], R, strict=False)
    ]
    shades = shades_of(summary, np.array(R, dtype=float)) if R else np.empty((0, 0))
    levels = [[None if np.isnan(value) else float(value) for value in row] for row in shades]
    words = (order_words(summary, entry) + words).strip()
    return Grid(head, body, words, setting(entry, summary, ", "), folded, levels, framed_of(summary, entry))


def framed_of(summary: Summary, entry: Entry) -> list[tuple[int, int]]:
    """(stage, column) of the task that a stage has just trained."""
    return [
        (i, j)
        for i, name in enumerate(entry["order"], start=1)
        for j, column in enumerate(summary["columns"])
        if (column["role"], column["name"]) == ("task", name)
    ]


def shades_of(summary: Summary, R: NDArray[np.float64]) -> NDArray[np.float64]:
    """How good every value is, 0 to 1: [S+1, J]; NaN where nothing was measured."""
    return np.stack([_shade(summary, j, R[:, j]) for j in range(R.shape[1])], axis=1)


def _shade(summary: Summary, j: int, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How good values of column j are, 0 to 1."""
    column = summary["columns"][j]
    if column["bounded"]:
        return values
    found = [row[j] for entry in summary["methods"] for row in entry["matrix"] or [] if row[j] is not None]
    worst, best = (min(found), max(found)) if found else (0.0, 1.0)
    if not column["higher_is_better"]:
        worst, best = best, worst
    # Not from white to dark over a difference that is next to nothing.
    width = max(abs(best - worst), LEAST_SHADED * abs(best)) or 1.0
    return 1 - np.abs(best - values) / width


def draw_matrices(summary: Summary, folder: Path) -> list[Picture]:
    """The matrix of every method at its best learning rate."""
    return [draw_matrix(summary, entry, folder, i) for i, entry in enumerate(best_entries(summary))]


def draw_matrix(summary: Summary, entry: Entry, folder: Path, place: int = 0) -> Picture:
    """Heat map of one method's matrix: base row first, upper triangle too; a frame marks the task just trained."""
    columns, stages = summary["columns"], [start_name(summary), *entry["order"]]
    R, framed = np.array(entry["matrix"], dtype=float), framed_of(summary, entry)
    shades = shades_of(summary, R)
    # Wide enough for the title too, which names the method and the units.
    figure = Figure(figsize=(max(2.0 + 0.95 * len(columns), 5.6), 1.9 + 0.46 * len(stages)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.ma.masked_invalid(shades), cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for i in range(len(stages)):
        for j, column in enumerate(columns):
            colour = "white" if np.nan_to_num(shades[i, j]) > 0.68 else "#222222"
            axes.text(j, i, show(R[i, j], column["unit"], False), ha="center", va="center", color=colour)
            if (i, j) in framed:
                axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, edgecolor="#D55E00", lw=1.8))
    names = [literal(column["column"]).replace("/", "\n").replace(" ", "\n") for column in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=9)
    axes.set_yticks(range(len(stages)), [literal(stage) for stage in stages])
    axes.set_ylabel("after")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    groups = [(column["role"], column["split"]) for column in columns]
    for j in range(1, len(columns)):
        if groups[j] != groups[j - 1]:
            axes.axvline(j - 0.5, color="white", linewidth=5)
    units = dict.fromkeys("%" if column["bounded"] else column["unit"] for column in columns)
    axes.set_title(literal(f"{setting(entry, summary, ', ')}: scores in {', '.join(units)}"), fontsize=11)
    return save_picture(
        figure,
        folder / f"{file_name('matrix', entry['method'], place)}.png",
        f"Scores of {entry['method']} after every task",
        order_words(summary, entry) + WORDS,
        ["after", *[column["column"] for column in columns]],
        [[stage, *row] for stage, row in zip(stages, R.tolist(), strict=True)],
    )
