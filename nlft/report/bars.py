"""Bars and intervals, a row a method: what caused the loss, the loss over the whole range, every probe's change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from nlft.measure.unit import change_unit, show_change, show_level
from nlft.report.findings import CAUSE_WORDS, CAUSES, causes_of, change_of
from nlft.report.picture import GREY, Picture, grid_of, literal, looks_of, save_picture, scale_of, short, tidy_axes
from nlft.report.rows import best_entries, columns_by
from nlft.report.sweep import MOMENTS

Summary = Mapping[str, Any]
CAUSE_COLOURS = {"overwriting": "#D55E00", "routing": "#0072B2"}
MOST_PROBES = 12
"""Probes with a panel of their own in the forest; the table holds all."""


def draw_causes(summary: Summary, folder: Path) -> list[Picture]:
    """Stacked bars of overwriting and routing, with what would be lost without a router beside them."""
    found = causes_of(summary)
    if not found:
        return []
    scale, unit = scale_of(summary["task_unit"]), change_unit(summary["task_unit"] or "")
    figure = Figure(figsize=(7.6, 1.3 + 0.5 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, own in enumerate(found.values()):
        ends = {True: 0.0, False: 0.0}  # gains are stacked to the left
        for cause, colour in CAUSE_COLOURS.items():
            width = scale * (own[cause] or 0.0)
            axes.barh(row - 0.17, width, 0.34, left=ends[width > 0], color=colour, label=cause if not row else None)
            ends[width > 0] += width
        if own["total"] is not None:
            axes.plot(
                [scale * own["total"]], [row - 0.17], "D", color="#222222", markersize=4, label=None if row else "lost"
            )
            if own["no_router"] is not None:
                width = scale * (own["total"] + own["no_router"])
                axes.barh(row + 0.2, width, 0.26, color="none", edgecolor=GREY, hatch="////", linewidth=0.8)
    axes.barh(0, 0, 0, color="none", edgecolor=GREY, hatch="////", label="without a router")
    axes.axvline(0, color=GREY, linewidth=0.9)
    axes.set_yticks(range(len(found)), [short(name) for name in found])
    axes.invert_yaxis()
    axes.set_xlabel(f"lost on earlier tasks since they were learned ({literal(unit)})")
    tidy_axes(axes)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    rows = [[name, *[own.get(key) for key in CAUSES]] for name, own in found.items()]
    words = CAUSE_WORDS.format(unit=unit) + " Hatched: all of it without a router."
    return [save_picture(figure, folder / "causes.png", "What the loss is made of", words, ["method", *CAUSES], rows)]


def draw_areas(summary: Summary, folder: Path) -> list[Picture]:
    """Mean loss over a range of learning against the reference's, with its interval, for each moment that has one."""
    found = {}
    for moment in MOMENTS:
        area = summary["frontier"][moment].get("hypervolume") or {}
        leaves = {name: leaf.get("against_reference") or {} for name, leaf in (area.get("methods") or {}).items()}
        own = {name: leaf for name, leaf in leaves.items() if leaf.get("value") is not None}
        if own:
            found[moment] = own, area.get("reference") or "the reference"
    if not found:
        return []
    looks, scale = looks_of(summary), scale_of(summary["probe_unit"])
    most = max(len(own) for own, _ in found.values())
    figure = Figure(figsize=(5.2 * len(found), 1.4 + 0.32 * most), layout="constrained")
    for axes, (moment, (own, reference)) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for row, (name, leaf) in enumerate(own.items()):
            look = looks[name]
            axes.barh(row, scale * leaf["value"], 0.6, color=look.face, edgecolor=look.colour, alpha=0.8)
            if leaf.get("low") is not None and leaf.get("high") is not None:
                axes.plot([scale * leaf["low"], scale * leaf["high"]], [row, row], color="#222222", linewidth=1.3)
        axes.set_yticks(range(len(own)), [short(name) for name in own])
        axes.invert_yaxis()
        axes.axvline(0, color=GREY, linewidth=0.9)
        axes.set_title(MOMENTS[moment], fontsize=10)
        axes.set_xlabel(
            f"mean loss, more than {short(reference)} ({literal(change_unit(summary['probe_unit'] or ''))})"
        )
        tidy_axes(axes)
    rows = [
        [moment, name, leaf["value"], leaf.get("low"), leaf.get("high")]
        for moment, (own, _) in found.items()
        for name, leaf in own.items()
    ]
    words = "Mean loss over the learning that a method and the reference both reached; left has lost less; lines: 95 %."
    head = ["moment", "method", "more_than_reference", "low", "high"]
    return [save_picture(figure, folder / "areas.png", "Forgetting over a whole range of learning", words, head, rows)]


def draw_forest(summary: Summary, folder: Path) -> list[Picture]:
    """The change of every probe of each method with its interval, around a line at no change."""
    probes, entries = columns_by(summary, "probe")[:MOST_PROBES], best_entries(summary)
    if not probes or not entries:
        return []
    looks = looks_of(summary)
    lines, columns = grid_of(len(probes), 3)
    figure = Figure(figsize=(2.2 + 3.1 * columns, lines * (1.1 + 0.27 * len(entries))), layout="constrained")
    every = figure.subplots(lines, columns, sharey=True, squeeze=False).flat
    rows = []
    for axes, probe in zip(every, probes, strict=False):
        scale = scale_of(probe["unit"])
        for row, entry in enumerate(entries):
            value, low, high = change_of(entry, probe["name"])
            rows.append([probe["name"], entry["method"], value, low, high])
            if value is None:
                continue
            look = looks[entry["method"]]
            if low is not None and high is not None:
                axes.plot([scale * low, scale * high], [row, row], color=look.colour, linewidth=1.6)
            axes.plot(
                [scale * value], [row], color=look.colour, marker=look.marker, markerfacecolor=look.face, markersize=6
            )
            axes.annotate(
                show_change(value, probe["unit"], False), (1.01, row), xycoords=("axes fraction", "data"), fontsize=8,
                color=GREY, va="center",
            )  # fmt: skip
        axes.axvline(0, color=GREY, linewidth=0.9, linestyle="--")
        axes.set_title(literal(f"{probe['name']}: change ({change_unit(probe['unit'])})"), fontsize=10)
        axes.set_yticks(range(len(entries)), [short(entry["method"]) for entry in entries], fontsize=9)
        tidy_axes(axes)
    figure.axes[0].set_ylim(len(entries) - 0.4, -0.6)
    for axes in figure.axes[len(probes) :]:
        axes.set_visible(False)
    words = (
        "Each method at its best learning rate; left of the line is lost. Lines: of a single run the 95 % interval "
        "over items, of several the least and largest run."
    )
    if len(columns_by(summary, "probe")) > MOST_PROBES:
        words += f" The first {MOST_PROBES} probes; the table has all."
    head = ["probe", "method", "change", "low", "high"]
    return [save_picture(figure, folder / "probes.png", "What each probe lost", words, head, rows)]


def draw_costs(summary: Summary, folder: Path) -> list[Picture]:
    """Bytes or parameters against forgetting: at the level that most methods reached, and at each best rate."""
    cost = "stored_bytes" if _costs(summary, "stored_bytes") else "trainable_params"
    found = [(words, own) for words, own in (_matched(summary), _at_best(summary)) if len(own) > 2]
    costs = _costs(summary, cost)
    found = [(words, {name: lost for name, lost in own.items() if name in costs}) for words, own in found]
    found = [(words, own) for words, own in found if len(own) > 2]
    if not found:
        return []
    looks, scale, name_of = looks_of(summary), scale_of(summary["probe_unit"]), {"stored_bytes": "stored bytes"}
    figure = Figure(figsize=(4.4 * len(found) + 2.2, 4.2), layout="constrained")
    every = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (words, own) in zip(every, found, strict=True):
        for name, lost in own.items():
            look = looks[name]
            axes.scatter(
                [costs[name]], [scale * lost], facecolor=look.face, edgecolor=look.colour, marker=look.marker, s=52,
                label=short(name), zorder=3,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(EngFormatter("B" if cost == "stored_bytes" else "", sep=" "))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axhline(0, color=GREY, linewidth=0.9, linestyle="--")
        axes.set_xlabel(name_of.get(cost, "trainable parameters"))
        axes.set_ylabel(f"lost on the probes ({literal(change_unit(summary['probe_unit'] or ''))})")
        axes.set_title(literal(words), fontsize=10)
        axes.margins(0.12)
        tidy_axes(axes)
    handles = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [name for name in map(short, looks) if name in handles]
    figure.legend([handles[name] for name in shown], shown, loc="outside right upper", frameon=False, fontsize=9)
    rows = [[words, name, costs[name], lost] for words, own in found for name, lost in own.items()]
    words = "What must be kept on disk against what was lost; methods that never learned so much are in one panel only."
    return [
        save_picture(
            figure, folder / "costs.png", "Cost against forgetting", words, ["at", "method", cost, "lost"], rows
        )
    ]


def _costs(summary: Summary, key: str) -> dict[str, float]:
    values = {entry["method"]: entry["values"]["costs"].get(key, {}).get("value") for entry in best_entries(summary)}
    return {name: value for name, value in values.items() if value}


def _matched(summary: Summary) -> tuple[str, dict[str, float]]:
    """Loss at the level of learning that most methods can be read at; of equals, the highest."""
    best: tuple[str, dict[str, float]] = ("", {})
    for moment, when in MOMENTS.items():
        for level in summary["frontier"][moment]["matched"]:
            forgetting = level["forgetting"]
            own = {name: forgetting[name] for name in looks_of(summary) if forgetting.get(name) is not None}
            if len(own) > len(best[1]) or (len(own) == len(best[1]) and moment == "end"):
                best = (f"where {show_level(level['level'])} was learned, {when}", own)
    return best


def _at_best(summary: Summary) -> tuple[str, dict[str, float]]:
    lost = {entry["method"]: entry["values"]["base_forgetting"]["value"] for entry in best_entries(summary)}
    return "each at its best learning rate", {name: value for name, value in lost.items() if value is not None}
