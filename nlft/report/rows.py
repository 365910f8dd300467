"""Tables of a summary as text, the same for every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlft.measure.outcome import probes_meant, tasks_meant, tasks_of_unit
from nlft.measure.unit import change_unit, show, show_change, show_loss

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of text: the first column names the row; after a line break, a cell goes on in small print."""

    head: list[str]
    body: list[list[str]]
    caption: str = ""


def label(entry: Entry, summary: Summary) -> str:
    """A method with its learning rate."""
    return f"{entry['method']} lr {entry['lr']:g}{mark_of(entry, summary)}"


def mark_of(entry: Entry, summary: Summary) -> str:
    """• at the best of several learning rates."""
    several = sum(other["method"] == entry["method"] for other in summary["methods"]) > 1
    return " •" if several and entry["best"] else ""


def best_entries(summary: Summary) -> list[Entry]:
    """Each method at its best learning rate; methods of which no run finished are missing."""
    return [entry for entry in summary["methods"] if entry["best"]]


def columns_by(summary: Summary, role: str) -> list[Mapping[str, Any]]:
    """The columns of a role on rows that were never trained on."""
    return [column for column in summary["columns"] if column["role"] == role and column["split"] == "test"]


def has_seen(summary: Summary) -> bool:
    """Whether tasks were also scored in wordings that were trained on."""
    return any(column["split"] == "seen" for column in summary["columns"])


def result_grid(summary: Summary) -> Grid:
    """Methods × what was learned, what was kept, what it cost; the base in the first row."""
    task_unit, several = summary["task_unit"] or "", len(summary["tasks"]) > 1
    probes, seen = columns_by(summary, "probe"), has_seen(summary)
    head = ["method", "learned, when trained", "learned, at the end"] + ["trained wordings, at the end"] * seen
    head += [f"{probe['name']}: end (change)" for probe in probes]
    head += ["earlier tasks: lost, F(max)", "earlier tasks: change, BWT"] * several
    head += ["trainable", "stored", "training"]
    body = []
    done = next((entry for entry in summary["methods"] if entry["n_finished"]), None)
    if done:
        values = done["values"]
        level = show(values["continual"].get("base", {}).get("value"), task_unit)
        body.append(
            ["base", level, level]
            + ["–"] * seen
            + [show(values["probes"][probe["name"]]["base"]["value"], probe["unit"]) for probe in probes]
            + ["–", "–"] * several
            + ["–", "–", "–"]
        )
    for entry in summary["methods"]:
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
    if any(entry["n_runs"] > 1 for entry in summary["methods"]):
        caption += " Brackets: least and largest run."
    if any(entry["n_finished"] == 1 for entry in summary["methods"]) and probes:
        caption += " Brackets at a change of a single run: 95 % interval over items."
    return Grid(head, body, caption)


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
    text = f"{show(values['end']['value'], unit)} ({show_change(change['value'], unit, False)})"
    if limits and limits["low"] is not None:
        text += f"\n[{show_change(limits['low'], unit, False)}, {show_change(limits['high'], unit, False)}]"
    return text


def matched_grid(summary: Summary, moment: str) -> Grid | None:
    """Forgetting at matched learning, with the multiple of the best plain method; None with one method."""
    matched = summary["frontier"][moment]["matched"]
    if not matched or not summary["probes"]:
        return None
    methods = list(matched[0]["forgetting"])
    body = [
        [
            f"{level['level']:.2f}" + ("\nlargest that all reached" if level["common"] else ""),
            *[_matched_cell(level, method, summary["probe_unit"]) for method in methods],
        ]
        for level in matched
    ]
    when = "right after each task's training" if moment == "now" else "at the end"
    caption = (
        f"Lost on {probes_meant(summary)} ({change_unit(summary['probe_unit'])}), where the methods have learned the "
        "same. × is the multiple of the reference: the better of full finetuning and LoRA, both without replay."
    )
    if any(runs["n"] > 1 for level in matched for runs in level["runs"].values()):
        caption += (
            " Brackets: least and largest of the pairs of runs with the same seed and order; 95 %: bootstrap over these"
            " pairs; p: exact sign-flip test against the reference (n pairs cannot give less than 2/2ⁿ)."
        )
    return Grid([f"learning {when}", *methods], body, caption)


def _matched_cell(level: Mapping[str, Any], method: str, unit: str) -> str:
    lost, ratio = level["forgetting"][method], level["ratio"][method]
    if lost is None:
        return f"–\n{level['why'].get(method, 'not measured')}"
    text = show_loss(lost, unit, False)
    if method == level["reference"]:
        text += " (reference)"
    runs = level["runs"].get(method, {"n": 0})
    if method != level["reference"] and ratio is not None:
        known = runs.get("ratio_low") is not None
        interval = f", 95 % {runs['ratio_low']:.2g} to {runs['ratio_high']:.2g}" if known else ""
        text += f" (×{ratio:.2g}{interval})"
    if runs["n"] > 1:
        text += f"\n[{show_loss(runs['low'], unit, False)}, {show_loss(runs['high'], unit, False)}]"
        if runs["p_signflip"] is not None:
            text += f", p = {runs['p_signflip']:.2g}, {runs['n']} pairs"
    return text


def matrix_grid(summary: Summary, entry: Entry) -> Grid:
    """The matrix of one method: stages × columns."""
    columns = summary["columns"]
    head = ["after"] + [f"{column['column']} ({'%' if column['bounded'] else column['unit']})" for column in columns]
    body = [
        [name, *[show(value, column["unit"], False) for value, column in zip(row, columns, strict=True)]]
        for name, row in zip(["base", *entry["order"]], entry["matrix"] or [], strict=False)
    ]
    return Grid(head, body)


def cost_grid(summary: Summary) -> Grid:
    """What each run cost and whether the base is as it was."""
    head = ["run", "status", "steps", "training tokens", "training", "scoring", "trainable", "stored", "GPU memory"]
    body = []
    for run in summary["runs"]:
        costs = run["values"]["costs"]
        body.append(
            [
                run["run_id"],
                run["status"].split(":")[0],
                count(costs["steps"]),
                count(costs["train_tokens"]),
                seconds(costs["train_s"]),
                seconds(costs["eval_s"]),
                count(costs["trainable_params"]),
                size(costs["stored_bytes"]),
                size(costs["peak_bytes"]),
            ]
        )
    return Grid(head, body)


def integrity_lines(summary: Summary) -> list[str]:
    """What was verified about the base, a sentence for each finding."""
    adapters = [
        run for run in summary["runs"] if run["status"] == "ok" and run["integrity"]["base_unchanged"] is not None
    ]
    full = list(dict.fromkeys(run["method"] for run in summary["runs"] if run["kind"] == "full"))
    lines = []
    broken = [run["run_id"] for run in adapters if not run["integrity"]["base_unchanged"]]
    if broken:
        lines.append(f"BASE WEIGHTS CHANGED in {', '.join(broken)}: this is a defect.")
    elif adapters:
        lines.append(f"Base weights unchanged (verified by hash) in {_of(adapters)}.")
    off = [run for run in adapters if run["integrity"]["off_equals_base"] is not None]
    differs = [run["run_id"] for run in off if not run["integrity"]["off_equals_base"]]
    if differs:
        lines.append(f"With the adapter off, the outputs DIFFER from the base's in {', '.join(differs)}.")
    elif off:
        lines.append(f"With the adapter off, the outputs equal the base's bit for bit in {_of(off)}.")
    if full:
        lines.append(f"{', '.join(full)}: trains the base itself, so its weights change.")
    lines.append("Everything else here is measured with the adapter on: unchanged weights alone keep nothing.")
    return lines


def _of(runs: Sequence[Any]) -> str:
    return "one run with an adapter" if len(runs) == 1 else f"all {len(runs)} runs with an adapter"


def count(value: float | None) -> str:
    """A count in three digits: 950, 12.3 k, 1.46 M."""
    return "–" if value is None else _scaled(value, 1000, ("", " k", " M", " G", " T"))


def size(value: float | None) -> str:
    """Bytes in three digits."""
    return "–" if value is None else _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def seconds(value: float | None) -> str:
    """A duration: 8.4 s, 95 s, 12 min, 3.1 h."""
    if value is None:
        return "–"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def _scaled(value: float, step: int, names: Sequence[str]) -> str:
    place = 0
    while abs(value) >= step and place < len(names) - 1:
        value, place = value / step, place + 1
    digits = 0 if place == 0 or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{names[place]}"
