"""Heat maps of a method's parts: what each of them carries, and how far they overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nlft.measure.unit import show_loss
from nlft.report.findings import mean_tree, where_of_best
from nlft.report.picture import Picture, file_name, literal, save_picture

Summary = Mapping[str, Any]
MOST_CELLS = 24
"""Rows or columns of a heat map; of more, the first are drawn and the CSV holds all."""


def draw_ablations(summary: Summary, folder: Path) -> list[Picture]:
    """Part × column for every method that was scored without each of its parts: what is lost without it."""
    pictures = []
    units = {column["column"]: column["unit"] for column in summary["columns"]}
    for place, (entry, found) in enumerate(where_of_best(summary)):
        drops = mean_tree([one["ablation"] for one in found if one.get("ablation")])
        columns = [name for name in units if any(name in own for own in drops.values())]
        if not columns:
            continue
        values = [[own.get(name) for name in columns] for own in drops.values()]
        texts = [[show_loss(v, units[name], False) for v, name in zip(row, columns, strict=True)] for row in values]
        # Each column by its largest drop, since columns have units of their own.
        table = np.array(values, dtype=float)
        largest = np.nanmax(np.abs(table), axis=0, initial=1e-12)
        figure = _draw_cells(
            table / largest, texts, list(drops), columns, f"{entry['method']}: lost without a part", "RdBu_r", -1.4
        )
        path = folder / f"{file_name('ablation', entry['method'], place)}.png"
        words = (
            "Rows: the part that was taken out; columns: what was scored; numbers: what was lost without it. Red is "
            "a loss, blue a gain, by the column's largest."
        )
        rows = [[part, *row] for part, row in zip(drops, values, strict=True)]
        pictures.append(
            save_picture(
                figure, path, f"What each part of {entry['method']} carries", words, ["without", *columns], rows
            )
        )
    return pictures


def draw_overlaps(summary: Summary, folder: Path) -> list[Picture]:
    """Part × part for every method whose parts' traffic was recorded: Jaccard overlap, of its first run."""
    pictures = []
    for place, (entry, found) in enumerate(where_of_best(summary)):
        overlap = next((one["overlap"] for one in found if one.get("overlap")), None)
        if not overlap or len(overlap["parts"]) < 2:
            continue
        parts, values = overlap["parts"], overlap["jaccard"]
        texts = [["–" if value is None else f"{value:.2f}" for value in row] for row in values]
        title = f"{entry['method']}: overlap of its parts"
        figure = _draw_cells(np.array(values, dtype=float), texts, parts, parts, title, "Purples", 0.0)
        path = folder / f"{file_name('overlap', entry['method'], place)}.png"
        words = "How much of what two parts use is shared (Jaccard index: 0 nothing, 1 everything), in the first run."
        rows = [[part, *row] for part, row in zip(parts, values, strict=True)]
        pictures.append(
            save_picture(figure, path, f"Overlap of the parts of {entry['method']}", words, ["part", *parts], rows)
        )
    return pictures


def _draw_cells(
    shades: NDArray[np.float64],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    colours: str,
    least: float,
) -> Figure:
    """Cells shaded from `least` to the top, with their numbers in them; of very many, the first."""
    rows, columns, shades = rows[:MOST_CELLS], columns[:MOST_CELLS], shades[:MOST_CELLS, :MOST_CELLS]
    size = (max(2.4 + 0.8 * len(columns), 5.0), 1.8 + 0.42 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.ma.masked_invalid(shades), cmap=colours, vmin=least, vmax=1.4, aspect="auto")
    for i in range(len(rows)):
        for j in range(len(columns)):
            dark = abs(np.nan_to_num(shades[i, j])) > 0.8
            axes.text(j, i, texts[i][j], ha="center", va="center", fontsize=9, color="white" if dark else "#222222")
    names = [literal(name).replace("/", "\n").replace(" ", "\n") for name in columns]
    axes.set_xticks(range(len(columns)), names, fontsize=9, rotation=90 if len(columns) > 8 else 0)
    axes.set_yticks(range(len(rows)), [literal(name) for name in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(literal(title), fontsize=11)
    return figure
