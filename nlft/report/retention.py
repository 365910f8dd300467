"""Retention over the stages: the probes, the tasks learned so far, and how earlier tasks changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nlft.measure.outcome import probes_meant, tasks_meant, tasks_of_unit
from nlft.measure.unit import change_unit, is_bounded
from nlft.report.picture import (
    GREY,
    TOGETHER,
    Look,
    Picture,
    draw_pale,
    literal,
    looks_of,
    save_picture,
    scale_of,
    short,
    small_panels,
    tidy_axes,
    widen_axis,
)
from nlft.report.rows import best_entries, runs_of, start_name

Summary = Mapping[str, Any]
Run = Mapping[str, Any]
LEAST_SPAN = {True: 10.0, False: 0.2}
"""Least height of an axis, in points where scores are bounded, else in their unit, so that small changes look small."""


@dataclass(frozen=True, slots=True)
class Line:
    """A method over the stages: mean, least and largest of its runs."""

    method: str
    stages: list[int]
    values: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One quantity of all methods, with the levels it is held against: (value, words, line style)."""

    name: str
    title: str
    height: str
    unit: str
    lines: list[Line]
    levels: list[tuple[float, str, str]]


def draw_retention(summary: Summary, folder: Path) -> list[Picture]:
    """All panels beside each other, or a picture a panel where there are too many methods for one."""
    panels = [panel for panel in panels_of(summary) if panel.lines]
    if not panels:
        return []
    looks, names = looks_of(summary), stage_names(summary)
    if max(len(panel.lines) for panel in panels) > TOGETHER:
        return [_save(_draw_each(panel, looks, names), [panel], folder, f"-{panel.name}") for panel in panels]
    figure = Figure(figsize=(4.6 * len(panels) + 1.8, 4.0), layout="constrained")
    every = np.atleast_1d(figure.subplots(1, len(panels)))
    for axes, panel in zip(every, panels, strict=True):
        for line in panel.lines:
            _draw_line(axes, panel, line, looks[line.method])
        _finish(axes, panel, names)
        axes.set_title(literal(panel.title), fontsize=10)
        axes.set_ylabel(literal(panel.height))
    handles = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right upper", frameon=False, fontsize=9)
    return [_save(figure, panels, folder, "")]


def panels_of(summary: Summary) -> list[Panel]:
    """The three quantities; a panel without lines has nothing to show."""
    task_unit, probe_unit = summary["task_unit"] or "", summary["probe_unit"] or ""
    probes = [
        j
        for j, column in enumerate(summary["columns"])
        if column["role"] == "probe" and column["unit"] == probe_unit and column["split"] == "test"
    ]
    several = len(tasks_of_unit(summary)) > 1
    lines = _lines(summary, lambda run: _mean_of(run, probes)) if probes else []
    base = [(lines[0].values[0], "the base", "--")] if lines else []
    kept = _lines(summary, lambda run: known(summary, run)) if several else []
    changed = _lines(summary, lambda run: change_since(summary, run)) if several else []
    return [
        Panel(
            "probes", probes_meant(summary).removeprefix("the "), _height("mean score", summary, "probe"), probe_unit,
            lines, base,
        ),
        Panel(
            "tasks so far", f"{tasks_meant(summary).removeprefix('the ')}: those learned so far",
            _height("mean score", summary, "task"), task_unit, kept, _bounds(summary),
        ),
        Panel(
            "earlier tasks", "earlier tasks: change since learned", f"mean change ({change_unit(task_unit)})",
            task_unit, changed, [(0.0, "as right after training", "--")],
        ),
    ]  # fmt: skip


def _lines(summary: Summary, values_of: Callable[[Run], Sequence[float] | NDArray[np.float64]]) -> list[Line]:
    lines = []
    for entry in best_entries(summary):
        found = [values_of(run) for run in runs_of(summary, entry)]
        found = [values for values in found if len(values) == len(found[0])]
        if not found or len(found[0]) < 2:
            continue
        table = np.array(found, dtype=float)
        last = len(entry["order"])
        stages = list(range(last + 1 - table.shape[1], last + 1))
        spread = (table.mean(axis=0).tolist(), table.min(axis=0).tolist(), table.max(axis=0).tolist())
        lines.append(Line(entry["method"], stages, *spread))
    return lines


def _mean_of(run: Run, chosen: Sequence[int]) -> NDArray[np.float64]:
    """Mean over columns at every stage, from stage 0: [S+1]."""
    return np.array(run["matrix"], dtype=float)[:, list(chosen)].mean(axis=1)


def known(summary: Summary, run: Run) -> list[float]:
    """Mean score of the tasks learned so far, from stage 1 on; empty if the first task has another unit."""
    R = np.array(run["matrix"], dtype=float)
    learned: list[int] = []
    values = []
    for stage, j, _ in _trained(summary, run):
        learned += [] if j is None else [j]
        values.append(float(R[stage, learned].mean()) if learned else np.nan)
    return values


def change_since(summary: Summary, run: Run) -> list[float]:
    """Mean change of the tasks learned before each stage since their own stage, from stage 1; better is more."""
    R = np.array(run["matrix"], dtype=float)
    learned: list[tuple[int, int, int]] = []
    values = []
    for stage, j, sign in _trained(summary, run):
        found = [sign_then * (R[stage, k] - R[row, k]) for row, k, sign_then in learned]
        values.append(float(np.mean(found)) if found else 0.0)
        learned += [] if j is None else [(stage, j, sign)]
    return values


def _trained(summary: Summary, run: Run) -> list[tuple[int, int | None, int]]:
    """For every stage, the place of its task's column (None: of another unit) and +1 where more is better."""
    found: dict[str, tuple[int | None, int]] = {
        column["name"]: (j, 1 if column["higher_is_better"] else -1)
        for j, column in enumerate(summary["columns"])
        if (column["role"], column["split"], column["unit"]) == ("task", "test", summary["task_unit"])
    }
    nothing: tuple[int | None, int] = (None, 1)
    return [(stage, *found.get(name, nothing)) for stage, name in enumerate(run["order"], start=1)]


def _bounds(summary: Summary) -> list[tuple[float, str, str]]:
    """The base's mean over the tasks, and the best of any method on each task alone and on all at once."""
    tasks = tasks_of_unit(summary)
    values = next((entry["values"] for entry in best_entries(summary)), None)
    levels = []
    if values and values["continual"].get("base", {}).get("value") is not None:
        levels.append((values["continual"]["base"]["value"], "the base", "--"))
    more = {column["name"]: column["higher_is_better"] for column in summary["columns"]}
    for key, words, style in (
        ("single", "each task alone, best method", ":"),
        ("multitask", "all at once, best", "-."),
    ):
        found = [
            [own[task]["value"] for own in (summary.get("bounds") or {}).get(key, {}).values() if _has(own, task)]
            for task in tasks
        ]
        if found and all(found):
            best = [max(own) if more[task] else min(own) for task, own in zip(tasks, found, strict=True)]
            levels.append((float(np.mean(best)), words, style))
    return levels


def _has(own: Mapping[str, Any], task: str) -> bool:
    return bool(own.get(task)) and own[task]["value"] is not None


def _height(words: str, summary: Summary, role: str) -> str:
    unit = summary[f"{role}_unit"] or ""
    more = all(
        column["higher_is_better"] for column in summary["columns"] if (column["role"], column["unit"]) == (role, unit)
    )
    return f"{words} ({'%' if is_bounded(unit) else unit}); {'higher' if more else 'lower'} is better"


def stage_names(summary: Summary) -> list[str]:
    """Names of the stages: the tasks where all runs had one order, else numbers."""
    orders = {tuple(run["order"]) for entry in best_entries(summary) for run in runs_of(summary, entry)}
    most = max((len(order) for order in orders), default=0)
    names = [start_name(summary), *(orders.pop() if len(orders) == 1 else [f"task {i}" for i in range(1, most + 1)])]
    return [literal(name) for name in names]


def _draw_line(axes: Axes, panel: Panel, line: Line, look: Look) -> None:
    scale = scale_of(panel.unit)
    values, low, high = (np.array(part) * scale for part in (line.values, line.low, line.high))
    if (high - low).max() > 0:
        axes.fill_between(line.stages, low, high, color=look.colour, alpha=0.13, linewidth=0)
    axes.plot(
        line.stages, values, color=look.colour, marker=look.marker, markerfacecolor=look.face, linestyle=look.line,
        markersize=5, label=short(line.method),
    )  # fmt: skip


def _finish(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    for value, words, style in panel.levels:
        axes.axhline(value * scale_of(panel.unit), color=GREY, linestyle=style, linewidth=1, label=literal(words))
    stages = panel.lines[0].stages
    turn = 60 if _crowded(panel, names) else 0
    axes.set_xticks(stages, [names[stage] for stage in stages], rotation=turn, fontsize=8)
    widen_axis(axes, LEAST_SPAN[is_bounded(panel.unit)])
    tidy_axes(axes)


def _crowded(panel: Panel, names: Sequence[str]) -> bool:
    """Whether the names of the stages would run into each other."""
    most = 36 if len(panel.lines) <= TOGETHER else 24
    stages = panel.lines[0].stages
    return len(stages) > 6 or sum(len(names[stage]) for stage in stages) > most


def _draw_each(panel: Panel, looks: Mapping[str, Look], names: Sequence[str]) -> Figure:
    """A small panel a method, with the others pale behind it."""
    foot = 0.8 if _crowded(panel, names) else 0.4
    figure, every = small_panels([line.method for line in panel.lines], "", literal(panel.height), foot)
    others = [list(zip(o.stages, np.array(o.values) * scale_of(panel.unit), strict=True)) for o in panel.lines]
    for axes, line in zip(every, panel.lines, strict=True):
        draw_pale(axes, others)
        _draw_line(axes, panel, line, looks[line.method])
        _finish(axes, panel, names)
    figure.suptitle(literal(panel.title), fontsize=10)
    return figure


def _save(figure: Figure, panels: Sequence[Panel], folder: Path, name: str) -> Picture:
    words = {
        "probes": "Probes: knowledge of the base that is never trained on.",
        "tasks so far": "Tasks so far: the mean over those learned until then.",
        "earlier tasks": "Earlier tasks: how they changed, on average, after their own training.",
    }
    levels = dict.fromkeys(f"{style}: {text}" for panel in panels for _, text, style in panel.levels)
    shown = ", ".join(levels).replace("--:", "dashed:").replace("-.:", "dash-dotted:").replace(":: ", "dotted: ")
    return save_picture(
        figure,
        folder / f"retention{name.replace(' ', '-')}.png",
        f"What is kept from stage to stage{name.replace('-', ': ')}",
        f"{' '.join(words[panel.name] for panel in panels)} Each method at its best learning rate; bands go from the "
        f"least to the largest run; {shown}.",
        ["panel", "method", "stage", "value", "low", "high"],
        [
            [panel.name, line.method, *row]
            for panel in panels
            for line in panel.lines
            for row in zip(line.stages, line.values, line.low, line.high, strict=True)
        ],
    )
