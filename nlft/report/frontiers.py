"""Learning against forgetting: every point with its error bars, and each method's frontier with its band."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nlft.measure.outcome import probes_meant
from nlft.measure.unit import change_unit
from nlft.report.picture import (
    GREY,
    TOGETHER,
    Look,
    Picture,
    apart,
    draw_pale,
    literal,
    looks_of,
    save_picture,
    scale_of,
    short,
    small_panels,
    tidy_axes,
)
from nlft.report.rows import steps_swept
from nlft.report.sweep import MOMENTS

Summary = Mapping[str, Any]
Point = Mapping[str, Any]
LIMITS = ("learning_low", "learning_high", "forgetting_low", "forgetting_high")
MOST_LABELS = 16
"""Points of a panel with their learning rate beside them; more would hide each other."""


def draw_frontiers(summary: Summary, folder: Path) -> list[Picture]:
    """Both moments beside each other; with many methods, a small panel for each of them too."""
    points = [(moment, name, point) for moment in ("now", "end") for name, point in points_of(summary, moment)]
    if len(points) < 3:  # one point in each panel is a line of the table, not a picture
        return []
    pictures = [_draw_both(summary, folder, points)]
    if len({name for _, name, _ in points}) > TOGETHER:
        pictures.append(_draw_each(summary, folder))
    return pictures


def points_of(summary: Summary, moment: str) -> list[tuple[str, Point]]:
    """(method, point) of those that have both coordinates."""
    return [
        (name, point)
        for name, own in summary["frontier"][moment]["points"].items()
        for point in own
        if point["learning"] is not None and point["forgetting"] is not None
    ]


def _draw_both(summary: Summary, folder: Path, points: Sequence[tuple[str, str, Point]]) -> Picture:
    looks = looks_of(summary)
    crowd = len({name for _, name, _ in points}) > TOGETHER
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    every = figure.subplots(1, 2, sharey=True)
    for axes, moment in zip(every, ("now", "end"), strict=True):
        own = points_of(summary, moment)
        for name in dict.fromkeys(name for name, _ in own):
            _draw_method(axes, summary, moment, name, looks[name], band=not crowd)
        if len(own) <= MOST_LABELS:
            _label_points(axes, summary, own, looks)
        axes.axhline(0, color=GREY, linewidth=0.9, linestyle="--")
        axes.set_xlabel(f"learned, {MOMENTS[moment]} (0: the base, 1: everything)")
        axes.set_title("better: further right, further down", fontsize=9, color=GREY, loc="right")
        axes.margins(0.1)
        tidy_axes(axes)
    every[0].set_ylabel(_height(summary))
    handles = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right upper", frameon=False, fontsize=9)
    return save_picture(
        figure,
        folder / "learning-forgetting.png",
        "Learning against forgetting",
        "Each point is a method at one learning rate; lines are the frontiers at which methods are compared. Further "
        "right has learned more, further down has lost less. Bars and bands, where there are several runs: 95 %. "
        "Hollow and dashed: told the task, a bound.",
        ["moment", "method", "lr", "steps", "learning", "forgetting", "n_runs", *LIMITS],
        [
            [when, name, p["lr"], p.get("steps"), p["learning"], p["forgetting"], p["n_runs"]]
            + [p.get(key) for key in LIMITS]
            for when, name, p in points
        ],
    )


def _draw_each(summary: Summary, folder: Path) -> Picture:
    """One moment, a small panel a method, the others' frontiers pale behind it."""
    looks, own = looks_of(summary), points_of(summary, "end")
    names = list(dict.fromkeys(name for name, _ in own))
    across = "learned, at the end (0: the base, 1: everything)"
    figure, every = small_panels(names, across, _height(summary))
    others = [list(zip(*_envelope(summary, "end", name), strict=True)) for name in names]
    for axes, name in zip(every, names, strict=True):
        draw_pale(axes, others)
        _draw_method(axes, summary, "end", name, looks[name], band=True)
        axes.margins(0.1)
        tidy_axes(axes)
    bands = summary["frontier"]["end"].get("bands") or {}
    return save_picture(
        figure,
        folder / "frontier-each.png",
        "Each method's frontier",
        "The same as above at the end, a panel a method; pale: the others.",
        ["method", "learning", "forgetting", "low", "high"],
        [
            [name, *[one[key] for key in ("learning", "forgetting", "low", "high")]]
            for name in names
            for one in bands[name]
        ]
        if all(name in bands for name in names)
        else [[name, x, y, None, None] for name in names for x, y in summary["frontier"]["end"]["envelopes"][name]],
    )


def _height(summary: Summary) -> str:
    return literal(f"lost on {probes_meant(summary)} ({change_unit(summary['probe_unit'])})")


def _envelope(summary: Summary, moment: str, name: str) -> tuple[list[float], list[float]]:
    line = [pair for pair in summary["frontier"][moment]["envelopes"].get(name, []) if None not in pair]
    return [x for x, _ in line], [scale_of(summary["probe_unit"]) * y for _, y in line]


def _draw_method(axes: Axes, summary: Summary, moment: str, name: str, look: Look, band: bool) -> None:
    scale = scale_of(summary["probe_unit"])
    points = [point for who, point in points_of(summary, moment) if who == name]
    grid = [
        (one["learning"], one["low"], one["high"])
        for one in (summary["frontier"][moment].get("bands") or {}).get(name, [])
        if None not in (one["learning"], one["low"], one["high"])
    ]
    if band and len(grid) > 1:
        x, low, high = np.array(grid).T
        axes.fill_between(x, low * scale, high * scale, color=look.colour, alpha=0.13, linewidth=0)
    axes.plot(*_envelope(summary, moment, name), color=look.colour, linestyle=look.line, linewidth=1.2, alpha=0.7)
    for point in points:
        if None not in [point.get(key) for key in LIMITS]:
            across = [[point["learning_low"], point["learning_high"]], [point["forgetting"] * scale] * 2]
            up = [[point["learning"]] * 2, [point["forgetting_low"] * scale, point["forgetting_high"] * scale]]
            for x, y in (across, up):
                axes.plot(x, y, color=look.colour, linewidth=0.9, alpha=0.75)
    xs, ys = [p["learning"] for p in points], [p["forgetting"] * scale for p in points]
    axes.scatter(
        xs, ys, facecolor=look.face, edgecolor=look.colour, marker=look.marker, s=40, label=short(name), zorder=3
    )


def _label_points(axes: Axes, summary: Summary, own: Sequence[tuple[str, Point]], looks: Mapping[str, Look]) -> None:
    """The learning rate beside every point that is not on top of another."""
    xs, ys = [p["learning"] for _, p in own], [scale_of(summary["probe_unit"]) * p["forgetting"] for _, p in own]
    for i in apart(xs, ys):
        name, point = own[i]
        words = f"{point['lr']:g}" if point["lr"] else ""
        steps = steps_swept({**point, "method": name}, summary)
        words += f", {steps} steps" if steps else ""
        axes.annotate(words, (xs[i], ys[i]), (6, 4), textcoords="offset points", fontsize=8, color=looks[name].colour)
