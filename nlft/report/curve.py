"""One adapter's curve: what it has learned against what it has lost, while its thresholds are turned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from nlft.measure.unit import is_bounded
from nlft.report.picture import COLOURS, GREY, MARKERS, Picture, apart, literal, save_picture, tidy_axes


@dataclass(frozen=True, slots=True)
class CurveColumn:
    """What was scored at every shift."""

    name: str
    role: str
    metric: str
    unit: str


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One shift: what was lost on the held-out background, and every column's score."""

    shift: float
    lost: float
    bound: float
    learned: float
    """Share of the train rows' targets that are predicted right."""
    scores: tuple[float, ...]
    chosen: bool = False


def draw_curve(columns: Sequence[CurveColumn], points: Sequence[CurvePoint], budget: float, path: Path) -> Picture:
    """Draws each task's score over the predictions lost, into `path` (PNG) with the CSV of all columns beside it.

    Tasks of another unit than the first's are in the CSV only.
    """
    tasks = [i for i, column in enumerate(columns) if column.role == "task"]
    unit = columns[tasks[0]].unit
    shown = [i for i in tasks if columns[i].unit == unit]
    factor = 100.0 if is_bounded(unit) else 1.0
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    x = [100 * point.lost for point in points]
    for place, i in enumerate(shown):
        y = [factor * point.scores[i] for point in points]
        look: dict[str, Any] = {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[place % len(MARKERS)]}
        axes.plot(x, y, markersize=4, linewidth=1.3, label=literal(columns[i].name), **look)
        for point, at, height in zip(points, x, y, strict=True):
            if point.chosen:
                axes.plot([at], [height], marker="o", markersize=12, fillstyle="none", color="#222222", linestyle="")
    # One label a point, at the mean height of the lines, and none on top of another.
    means = [factor * float(np.mean([point.scores[i] for i in shown])) for point in points]
    for place in apart(x, means):
        axes.annotate(
            show_shift(points[place].shift), (x[place], means[place]), (5, -9), textcoords="offset points",
            fontsize=7, color=GREY,
        )  # fmt: skip
    axes.axvline(100 * budget, color=GREY, linewidth=0.9, linestyle="--", label=f"budget {100 * budget:g} %")
    axes.set_xlabel("predictions lost on held-out background, %")
    axes.set_ylabel("learned, %" if is_bounded(unit) else f"{literal(columns[tasks[0]].metric)}, {literal(unit)}")
    axes.legend(frameon=False, fontsize=8)
    tidy_axes(axes)
    head = ["shift", "predictions_lost", "bound", "train_targets_right", "chosen"]
    head += [f"{column.name} ({column.metric})" for column in columns]
    rows = [[point.shift, point.lost, point.bound, point.learned, int(point.chosen), *point.scores] for point in points]
    words = "Each task's score at every shift of the thresholds, over the predictions lost; the chosen shift is ringed."
    return save_picture(figure, path, "Learning and forgetting of one adapter", words, head, rows)


def show_shift(shift: float) -> str:
    """A shift as text: `+0.04`, `0`, `silent`."""
    if shift == float("inf"):
        return "silent"
    return f"{shift:+.2g}".replace("-", "−") if shift else "0"
