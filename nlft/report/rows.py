"""Tables of a summary as text, the same for every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nlft.measure.outcome import probes_meant, tasks_meant, tasks_of_unit
from nlft.measure.unit import change_unit, count, is_bounded, show, show_change, show_level, show_loss, size

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text: the first column names the row; after a line break, a cell goes on in small print."""

    head: list[str]
    body: list[list[str]]
    caption: str = ""
    title: str = ""
    folded: bool = False
    """Shown only when asked for, where the format can."""
    shades: Sequence[Sequence[float | None]] = ()
    """How good each cell after the first column is, 0 to 1; empty without shading."""
    framed: Sequence[tuple[int, int]] = ()
    """(row, column) of cells to stand out, columns counted after the first."""


TOLD = "†: is told each row's task when it is scored: a bound, not a rival."
LONG = 15
"""More rows than this are folded."""


def label(entry: Entry, summary: Summary) -> str:
    """A method with its learning rate."""
    return f"{setting(entry, summary)}{mark_of(entry, summary)}"


def start_name(summary: Summary) -> str:
    """What row 0 of every matrix is."""
    return "base + adapter" if summary["base"].get("adapter") else "base"


def setting(entry: Entry, summary: Summary, between: str = " ") -> str:
    """A method with what it was swept over; a method without learning rate has none (0)."""
    swept = [entry["method"]]
    swept += [f"lr {entry['lr']:g}"] if entry["lr"] else []
    swept += [f"{steps} steps"] if (steps := steps_swept(entry, summary)) else []
    return between.join(swept)


def steps_swept(entry: Entry, summary: Summary) -> str:
    """The number of steps, if the method was trained for several numbers of them; else nothing."""
    every = {other.get("steps") for other in summary["methods"] if other["method"] == entry["method"]}
    return f"{entry['steps']:g}" if len(every) > 1 and entry.get("steps") else ""


def mark_of(entry: Entry, summary: Summary) -> str:
    """• at the best of several learning rates, † at a method that is told the task."""
    several = sum(other["method"] == entry["method"] for other in summary["methods"]) > 1
    return (" •" if several and entry["best"] else "") + (" †" if entry.get("told_task") else "")


def has_told(summary: Summary) -> bool:
    """Whether some method is told the task."""
    return any(entry.get("told_task") for entry in summary["methods"])


def runs_of(summary: Summary, entry: Entry) -> list[Mapping[str, Any]]:
    """The finished runs behind a method at one point of its sweep."""
    keys = ("method", "lr", "steps") if "steps" in entry else ("method", "lr")
    return [
        run
        for run in summary["runs"]
        if run["status"] == "ok" and all((run.get(key) or entry[key]) == entry[key] for key in keys)
    ]


def best_entries(summary: Summary) -> list[Entry]:
    """Each method at its best learning rate; methods of which no run finished are missing."""
    return [entry for entry in summary["methods"] if entry["best"]]


def columns_by(summary: Summary, role: str) -> list[Mapping[str, Any]]:
    """The columns of a role on rows that were never trained on."""
    return [column for column in summary["columns"] if column["role"] == role and column["split"] == "test"]


def has_seen(summary: Summary) -> bool:
    """Whether tasks were also scored in wordings that were trained on."""
    return any(column["split"] == "seen" for column in summary["columns"])


def result_grid(summary: Summary, chosen: Sequence[Entry] | None = None, title: str = "", folded: bool = False) -> Grid:
    """Methods × what was learned, what was kept, what it cost; the base in the first row. All entries if not given."""
    entries: Sequence[Entry] = summary["methods"] if chosen is None else chosen
    task_unit, several = summary["task_unit"] or "", len(summary["tasks"]) > 1
    probes, seen = columns_by(summary, "probe"), has_seen(summary)
    head = ["method", "learned, when trained", "learned, at the end"] + ["trained wordings, at the end"] * seen
    head += [f"{probe['name']}: end (change)" + _unit_in_head(probe["unit"]) for probe in probes]
    head += ["earlier tasks: lost, F(max)", "earlier tasks: change, BWT"] * several
    head += ["trainable", "stored", "training"]
    body = []
    done = next((entry for entry in entries if entry["n_finished"]), None)
    if done:
        values = done["values"]
        level = show(values["continual"].get("base", {}).get("value"), task_unit)
        body.append(
            [start_name(summary), level, level]
            + ["–"] * seen
            + [_level(values["probes"][probe["name"]]["base"]["value"], probe["unit"]) for probe in probes]
            + ["–", "–"] * several
            + ["–", "–", "–"]
        )
    for entry in entries:
        if not entry["n_finished"]:
            body.append([f"{label(entry, summary)}\n{_status(entry)}", *["–"] * (len(head) - 1)])
            continue
        values = entry["values"]
        continual, costs = values["continual"], values["costs"]
        row = [label(entry, summary) + (f"\n{_status(entry)}" if entry["n_finished"] < entry["n_runs"] else "")]
        row += [_spread(continual.get(key), task_unit) for key in ["learned", "acc"] + ["seen"] * seen]
        row += [_probe(entry, probe) for probe in probes]
        if several:
            row += [show_loss(continual.get("forgetting", {}).get("value"), task_unit, False)]
            row += [show_change(continual.get("bwt", {}).get("value"), task_unit, False)]
        row += [count(costs["trainable_params"]["value"]), size(costs["stored_bytes"]["value"])]
        row += [seconds(costs["train_s"]["value"])]
        body.append(row)
    caption = means_of_tasks(summary) + (", wordings never trained on." if seen else ".")
    caption += f" Changes and losses in {_units(summary)}; below zero, a change is a loss."
    if any(entry["n_runs"] > 1 for entry in entries):
        caption += " Brackets: least and largest run."
    if any(entry["n_finished"] == 1 for entry in entries) and probes:
        caption += " Brackets at a change of a single run: 95 % interval over items."
    caption += f" {TOLD}" if has_told(summary) else ""
    return Grid(head, body, caption, title, folded)


def _unit_in_head(unit: str) -> str:
    """Units but % stand in the head only, so that cells are narrow."""
    return "" if is_bounded(unit) else f", {unit}"


def _level(value: float | None, unit: str) -> str:
    return show(value, unit, is_bounded(unit))


def means_of_tasks(summary: Summary) -> str:
    """What the columns about tasks are means over; tasks of another unit are in none of them."""
    names = tasks_of_unit(summary)
    if len(names) in (0, len(summary["tasks"])):
        return "Learned: mean over the tasks"
    mean = "" if len(names) == 1 else "mean over "
    return f"Learned, earlier tasks: {mean}{tasks_meant(summary)} only (the others have another unit)"


def _units(summary: Summary) -> str:
    units = dict.fromkeys(change_unit(column["unit"]) for column in summary["columns"])
    return " or ".join(unit if unit != "points" else "points (of 100)" for unit in units)


def _status(entry: Entry) -> str:
    if entry["n_runs"] == 1:
        return entry["statuses"][0].split(":")[0]
    return f"{entry['n_runs'] - entry['n_finished']} of {entry['n_runs']} runs failed"


def _spread(quantity: Mapping[str, Any] | None, unit: str) -> str:
    if not quantity:
        return "–"
    text = show(quantity["value"], unit)
    if quantity["n"] > 1:
        text += f"\n[{show(quantity['low'], unit, False)}, {show(quantity['high'], unit, False)}]"
    return text


def _probe(entry: Entry, probe: Mapping[str, Any]) -> str:
    values, unit = entry["values"]["probes"][probe["name"]], probe["unit"]
    change = values["change"]
    limits = change if change["n"] > 1 else entry["intervals"].get("probes", {}).get(probe["name"])
    text = f"{_level(values['end']['value'], unit)} ({show_change(change['value'], unit, False)})"
    if limits and limits["low"] is not None:
        text += f"\n[{show_change(limits['low'], unit, False)}, {show_change(limits['high'], unit, False)}]"
    return text


def matched_grids(summary: Summary) -> list[Grid]:
    """Forgetting at matched learning at both moments; how to read them stands below the last."""
    found = [grid for moment in ("end", "now") if (grid := matched_grid(summary, moment))]
    same = len({grid.caption for grid in found}) == 1
    return [replace(grid, caption="") if same and grid is not found[-1] else grid for grid in found]


def matched_grid(summary: Summary, moment: str) -> Grid | None:
    """Forgetting at matched learning, a row a method, with the multiple of the best plain one; None with one method."""
    matched = summary["frontier"][moment]["matched"]
    if not matched or not summary["probes"]:
        return None
    head = ["method"]
    for level in matched:
        words = "at the largest that all reached, " if level["common"] else "at "
        head.append(f"lost {words}{show_level(level['level'])}")
    told = {entry["method"] for entry in summary["methods"] if entry.get("told_task")}
    body = [
        [
            name + (" †" if name in told else ""),
            *[_matched_cell(level, name, summary["probe_unit"]) for level in matched],
        ]
        for name in matched[0]["forgetting"]
    ]
    when = "right after each task's training" if moment == "now" else "at the end"
    caption = (
        f"Lost on {probes_meant(summary)} ({change_unit(summary['probe_unit'])}), where the methods have learned the "
        "same part of what could be learned. × is the multiple of the reference: the better of full finetuning and "
        "LoRA, both without replay."
    )
    if any(runs.get("n", 0) > 1 for level in matched for runs in level["runs"].values()):
        caption += (
            " 95 %: over runs, then items. Brackets: least and largest of the pairs of runs with the same seed and "
            "order where there is no interval; p: exact sign-flip test against the reference (n pairs cannot give "
            "less than 2/2ⁿ)."
        )
    return Grid(head, body, caption, f"Learned the same {when}")


def _matched_cell(level: Mapping[str, Any], method: str, unit: str) -> str:
    """What was lost and the multiple; in small print the intervals, p and the number of pairs."""
    lost, ratio = level["forgetting"].get(method), level["ratio"].get(method)
    if lost is None:
        return f"–\n{level['why'].get(method, 'not measured')}"
    text, small = show_loss(lost, unit, False), []
    runs = level["runs"].get(method) or {}
    interval = runs.get("interval") or {}
    if interval.get("low") is not None:
        small.append(f"95 % {show_loss(interval['low'], unit, False)} to {show_loss(interval['high'], unit, False)}")
    elif runs.get("why"):
        small.append(f"no interval: {runs['why']}")
    if method == level["reference"]:
        text += " (reference)"
    elif ratio is not None:
        text += f" (×{ratio:.2g})"
        if runs.get("ratio_low") is not None:
            small.append(f"× 95 % {runs['ratio_low']:.2g} to {runs['ratio_high']:.2g}")
    if runs.get("n", 0) > 1:
        p, of = runs.get("p_signflip"), runs.get("of") or runs["n"]
        pairs = f"{runs['n']} pairs" if of == runs["n"] else f"{runs['n']} of {of} pairs"
        if interval.get("low") is None:
            small.append(f"[{show_loss(runs['low'], unit, False)}, {show_loss(runs['high'], unit, False)}]")
        small.append(pairs if p is None else f"p = {p:.2g}, {pairs}")
    return text + "".join(f"\n{part}" for part in small)


def seconds(value: float | None) -> str:
    """A duration: 8.4 s, 95 s, 12 min, 3.1 h."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
