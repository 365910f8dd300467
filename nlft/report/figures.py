"""Pictures of a summary, each a PNG with the CSV of its numbers beside it. Drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from nlft.measure.outcome import probes_meant
from nlft.measure.unit import change_unit, is_bounded, show
from nlft.report.picture import GREY, Picture, file_name, literal, looks_of, save_picture, tidy_axes, widen_axis
from nlft.report.rows import best_entries, columns_by

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]
Line = tuple[str, list[int], list[float]]
"""A method, stages, and a value at each."""
LEAST_SHADED = 0.25
"""Unbounded scores: the shades span at least this part of the best score."""
LEAST_SPAN = {True: 10.0, False: 0.2}
"""Least height of an axis, in points where scores are bounded, else in their unit, so that small changes look small."""


def draw_figures(summary: Summary, folder: Path) -> list[Picture]:
    """Draws everything that the summary has numbers for into `folder`, which is made and emptied of old figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.png"), *folder.glob("*.csv")]:
        old.unlink()  # a picture of an earlier report must not outlive its numbers
    pictures = [draw_scatter(summary, folder), draw_retention(summary, folder)]
    pictures += [draw_matrix(summary, entry, folder, i) for i, entry in enumerate(best_entries(summary))]
    return [picture for picture in pictures if picture]


def draw_matrix(summary: Summary, entry: Entry, folder: Path, place: int = 0) -> Picture:
    """Heat map of one method's matrix: base row first, upper triangle too; a frame marks the task just trained."""
    columns, stages = summary["columns"], ["base", *entry["order"]]
    R = np.array(entry["matrix"], dtype=float)
    shades = np.stack([_shade(summary, j, R[:, j]) for j in range(len(columns))], axis=1)
    # Wide enough for the title too, which names the method and the units.
    figure = Figure(figsize=(max(2.0 + 0.95 * len(columns), 5.6), 1.9 + 0.46 * len(stages)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.ma.masked_invalid(shades), cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for i in range(len(stages)):
        for j, column in enumerate(columns):
            colour = "white" if np.nan_to_num(shades[i, j]) > 0.68 else "#222222"
            axes.text(j, i, show(R[i, j], column["unit"], False), ha="center", va="center", color=colour)
            if i and column["role"] == "task" and column["name"] == stages[i]:
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
    axes.set_title(literal(f"{entry['method']}, lr {entry['lr']:g}: scores in {', '.join(units)}"), fontsize=11)
    return save_picture(
        figure,
        folder / f"{file_name('matrix', entry['method'], place)}.png",
        f"Scores of {entry['method']} after every task",
        "Rows: the base, then after each task. Framed: the task just trained. Darker is better; unbounded scores are "
        "shaded between the worst and the best of their column in this report, a quarter of the best at least.",
        ["after", *[column["column"] for column in columns]],
        [[stage, *row] for stage, row in zip(stages, R.tolist(), strict=True)],
    )


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


def draw_scatter(summary: Summary, folder: Path) -> Picture | None:
    """Learning against forgetting, a point a method and learning rate, with each method's frontier."""
    moments = {"now": "right after training", "end": "at the end"}
    points = [
        (moment, method, point)
        for moment in moments
        for method, own in summary["frontier"][moment]["points"].items()
        for point in own
        if point["learning"] is not None and point["forgetting"] is not None
    ]
    if len(points) < 3:  # one point in each panel is a line of the table, not a picture
        return None
    unit = summary["probe_unit"]
    scale = scale_of(unit)
    looks = looks_of([entry["method"] for entry in summary["methods"]])
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    for axes, (moment, words) in zip(figure.subplots(1, 2, sharey=True), moments.items(), strict=True):
        for method, envelope in summary["frontier"][moment]["envelopes"].items():
            colour, marker = looks[method]
            own = [point for when, name, point in points if (when, name) == (moment, method)]
            if not own:
                continue
            xs, ys = [p["learning"] for p in own], [p["forgetting"] * scale for p in own]
            line = np.array(envelope)
            axes.plot(line[:, 0], line[:, 1] * scale, color=colour, linewidth=1.2, alpha=0.6)
            axes.scatter(xs, ys, color=colour, marker=marker, s=46, label=literal(method), zorder=3)
            for x, y, point in zip(xs, ys, own, strict=True):
                axes.annotate(f"{point['lr']:g}", (x, y), (6, 4), textcoords="offset points", fontsize=8, color=colour)
        axes.axhline(0, color=GREY, linewidth=0.9, linestyle="--")
        axes.set_xlabel(f"learned, {words} (0: the base, 1: everything)")
        axes.set_title("better: further right, further down", fontsize=9, color=GREY, loc="right")
        axes.margins(0.12)
        tidy_axes(axes)
    figure.axes[0].set_ylabel(literal(f"lost on {probes_meant(summary)} ({change_unit(unit)})"))
    figure.axes[0].legend(frameon=False, fontsize=9)
    return save_picture(
        figure,
        folder / "learning-forgetting.png",
        "Learning against forgetting",
        "Each point is a method at one learning rate (the number beside it); lines are the frontiers at which methods "
        "are compared. Further right has learned more, further down has lost less.",
        ["moment", "method", "lr", "learning", "forgetting", "n_runs"],
        [[when, name, p["lr"], p["learning"], p["forgetting"], p["n_runs"]] for when, name, p in points],
    )


def draw_retention(summary: Summary, folder: Path) -> Picture | None:
    """Over the stages: the probes' mean score, and the earlier tasks' mean change since they were learned."""
    entries = best_entries(summary)
    panels: dict[str, list[Line]] = {
        "probes": [line for entry in entries if (line := probe_line(summary, entry))],
        "earlier tasks": [line for entry in entries if (line := task_line(summary, entry))],
    }
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        return None
    looks = looks_of([entry["method"] for entry in summary["methods"]])
    figure = Figure(figsize=(4.8 * len(panels) + 0.6, 4.0), layout="constrained")
    for axes, (panel, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items(), strict=True):
        unit = summary["probe_unit"] if panel == "probes" else summary["task_unit"]
        scale = scale_of(unit)
        for method, stages, values in lines:
            colour, marker = looks[method]
            axes.plot(stages, np.array(values) * scale, color=colour, marker=marker, label=literal(method))
        axes.axhline(lines[0][2][0] * scale, color=GREY, linestyle="--", linewidth=1)
        axes.set_xticks(lines[0][1], stage_names(entries, lines[0][1]))
        axes.set_xlabel("after")
        if panel == "probes":
            better = "higher" if _probes_of_unit(summary)[0][1]["higher_is_better"] else "lower"
            axes.set_ylabel(f"mean score ({'%' if is_bounded(unit) else unit}); {better} is better")
            axes.set_title(f"{probes_meant(summary).removeprefix('the ')} (dashed: the base)", fontsize=10)
        else:
            axes.set_ylabel(f"change since learned ({change_unit(unit)})")
            axes.set_title("earlier tasks (dashed: as right after training)", fontsize=10)
        widen_axis(axes, LEAST_SPAN[is_bounded(unit)])
        tidy_axes(axes)
    figure.axes[0].legend(frameon=False, fontsize=9)
    return save_picture(
        figure,
        folder / "retention.png",
        "What is kept from stage to stage",
        "Probes: knowledge of the base that is never trained on. Earlier tasks: how they changed, on average, after "
        "their own training. Each method at its best learning rate.",
        ["panel", "method", "stage", "value"],
        [
            [panel, method, stage, value]
            for panel, lines in panels.items()
            for method, stages, values in lines
            for stage, value in zip(stages, values, strict=True)
        ],
    )


def stage_names(entries: list[Entry], stages: list[int]) -> list[str]:
    """Names of stages: the tasks where all methods had one order, else numbers."""
    orders = {tuple(entry["order"]) for entry in entries}
    names = ["base", *(orders.pop() if len(orders) == 1 else [f"task {i}" for i in range(1, max(stages) + 1)])]
    return [literal(names[stage]) for stage in stages]


def probe_line(summary: Summary, entry: Entry) -> Line | None:
    """Mean over the probes of one unit at every stage."""
    R = np.array(entry["matrix"], dtype=float)
    chosen = [j for j, _ in _probes_of_unit(summary)]
    return (entry["method"], list(range(len(R))), R[:, chosen].mean(axis=1).tolist()) if chosen else None


def task_line(summary: Summary, entry: Entry) -> Line | None:
    """Mean over the tasks learned so far of their change since their own stage, from stage 1; better is more."""
    R, columns = np.array(entry["matrix"], dtype=float), summary["columns"]
    learned: list[tuple[int, int, int]] = []
    values = []
    for stage, name in enumerate(entry["order"], start=1):
        found = [change for row, j, sign in learned for change in [sign * (R[stage, j] - R[row, j])]]
        values.append(float(np.mean(found)) if found else 0.0)
        for j, column in enumerate(columns):
            if (column["role"], column["split"], column["name"]) == ("task", "test", name) and (
                column["unit"] == summary["task_unit"]
            ):
                learned.append((stage, j, 1 if column["higher_is_better"] else -1))
    return (entry["method"], list(range(1, len(values) + 1)), values) if len(values) > 1 else None


def scale_of(unit: str) -> float:
    """What values of a unit are multiplied by in a picture: fractions are drawn in percent."""
    return 100.0 if is_bounded(unit) else 1.0


def _probes_of_unit(summary: Summary) -> list[tuple[int, Mapping[str, Any]]]:
    names = {column["column"] for column in columns_by(summary, "probe") if column["unit"] == summary["probe_unit"]}
    return [(j, column) for j, column in enumerate(summary["columns"]) if column["column"] in names]
