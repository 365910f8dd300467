"""The result as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from nlft.measure.outcome import tasks_of_unit
from nlft.measure.unit import change_unit, count, is_bounded, show, show_change
from nlft.report.findings import short_facts
from nlft.report.rows import columns_by, mark_of, means_of_tasks, seconds, steps_swept

Summary = Mapping[str, Any]
MOST_PROBES = 3
"""Probes with a column of their own; with more, their mean loss stands for them, so that 100 columns suffice."""


def table(summary: Summary) -> Table:
    """A compact table: what each method learned, what it lost, what it cost; the outcome below it."""
    task_unit, probes = summary["task_unit"] or "", columns_by(summary, "probe")
    several = len(summary["tasks"]) > 1
    some = 0 < len(tasks_of_unit(summary)) < len(summary["tasks"])
    mean_of = [probe for probe in probes if probe["unit"] == summary["probe_unit"]]
    more = [f"{means_of_tasks(summary)}."] * some
    part = MOST_PROBES < len(probes) != len(mean_of)
    of = f"{len(mean_of)} of {len(probes)} probes" if part else f"{len(probes)} probes"
    if part:
        more.append(f"{of}: the mean of those in {change_unit(summary['probe_unit'])}; the others are in the report.")
    more += short_facts(summary)
    swept = any(steps_swept(entry, summary) for entry in summary["methods"])
    if any("•" in mark_of(entry, summary) for entry in summary["methods"]):
        more.append(f"• best rate{' and steps' * swept} of its method.")
    grid = Table(
        title=Text(f"{summary['name']} (Δ below zero: lost)"),
        caption=Text(" ".join([summary["outcome"], *more]), style="bold"),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=0,
    )
    mark = " %" if is_bounded(task_unit) else ""
    heads = ["method", "lr" + " × steps" * swept, f"learned\nnow{mark}"] + [f"learned\nat end{mark}"] * several
    if len(probes) <= MOST_PROBES:
        heads += [f"{probe['name']}\n{_change(probe['unit'])}" for probe in probes]
    else:
        heads.append(f"{of}\n{_change(summary['probe_unit'])}")
    heads += [f"earlier\ntasks {_change(task_unit)}"] * several + ["trained\nparams", "train\ntime"]
    for place, head in enumerate(heads):
        grid.add_column(Text(head), justify="left" if place == 0 else "right", overflow="fold")
    for entry in summary["methods"]:
        grid.add_row(*[Text(cell) for cell in _cells(summary, entry, len(heads))])
    return grid


def _change(unit: str) -> str:
    """A change's unit in few letters."""
    return f"Δ {change_unit(unit).removesuffix('/token').removesuffix('/byte')}"


def _cells(summary: Summary, entry: Mapping[str, Any], width: int) -> list[str]:
    swept = f"{entry['lr']:g}" if entry["lr"] else "–"
    swept += f" × {steps}" if (steps := steps_swept(entry, summary)) else ""
    cells = [entry["method"], swept + mark_of(entry, summary)]
    if not entry["n_finished"]:
        return [*cells, entry["statuses"][0].split(":")[0], *["–"] * (width - 3)]
    values, unit = entry["values"], summary["task_unit"]
    several = len(summary["tasks"]) > 1
    cells += [show(values["continual"][key]["value"], unit, False) for key in ["learned"] + ["acc"] * several]
    probes = columns_by(summary, "probe")
    if len(probes) <= MOST_PROBES:
        changes = [(values["probes"][probe["name"]]["change"]["value"], probe["unit"]) for probe in probes]
    else:
        lost = values["base_forgetting"]["value"]
        changes = [(None if lost is None else -lost, summary["probe_unit"])]
    cells += [show_change(change, of, False) for change, of in changes]
    if several:
        cells.append(show_change(values["continual"]["bwt"]["value"], unit, False))
    return [*cells, count(values["costs"]["trainable_params"]["value"]), seconds(values["costs"]["train_s"]["value"])]
