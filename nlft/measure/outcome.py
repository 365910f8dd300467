"""The outcome of a run or a comparison in one plain sentence, the same whoever wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlft.measure.unit import show, show_change, show_loss

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]
LEAST_LEVEL = 0.1
"""Below this, methods have learned the same only in that they have learned next to nothing."""


def outcome(summary: Summary) -> str:
    """What happened: who learned how much and lost how much, at the same learning where that can be said.

    Args:
        summary: as `summarise` makes it, without NaN.
    """
    entries = [entry for entry in summary["methods"] if entry["n_finished"]]
    failed = sum(entry["n_runs"] - entry["n_finished"] for entry in summary["methods"])
    if not entries:
        reason = summary["methods"][0]["statuses"][0]
        return (
            f"None of the {failed} runs finished ({reason})." if failed > 1 else f"The run did not finish ({reason})."
        )
    best = [entry for entry in entries if entry["best"]]
    text = _alone(summary, best[0]) if len(best) == 1 else _matched(summary, best) or _unmatched(summary, best)
    return text + (f" {failed} of {_total(summary)} runs failed." if failed else "")


def _alone(summary: Summary, entry: Entry) -> str:
    unit, values = summary["task_unit"], entry["values"]
    continual = values["continual"]
    text = (
        f"{named(entry)} took the tasks from {_level(continual, 'base', unit)} to {_level(continual, 'learned', unit)}"
    )
    if len(summary["tasks"]) > 1:
        text += f" right after each one's training and {_level(continual, 'acc', unit)} at the end"
    if len(summary["tasks"]) == 1:
        text += f" on {summary['tasks'][0]}"
    if not summary["probes"]:
        return text + "; there were no probes, so what the base has forgotten is not known."
    changes = [_change(summary, entry, name) for name in summary["probes"]]
    return text + f"; with the adapter on, the probes changed by {_and(changes)}."


def _change(summary: Summary, entry: Entry, name: str) -> str:
    unit = next(column["unit"] for column in summary["columns"] if (column["name"], column["role"]) == (name, "probe"))
    interval = entry["intervals"].get("probes", {}).get(name)
    text = f"{show_change(entry['values']['probes'][name]['change']['value'], unit)} on {name}"
    if interval and interval["low"] is not None:
        low, high = (show_change(interval[end], unit, False) for end in ("low", "high"))
        text += f" (95 % interval {low} to {high})"
    return text


def _matched(summary: Summary, best: Sequence[Entry]) -> str:
    """At the largest level at which a memory pathway and a plain method can be read, if there is one."""
    ours = {entry["method"] for entry in best if entry["kind"] not in ("full", "lora")}
    for moment, words in (("end", "at the end"), ("now", "right after training")):
        levels = [
            level
            for level in summary["frontier"][moment]["matched"]
            if level["reference"]
            and level["level"] >= LEAST_LEVEL
            and (not ours or any(level["forgetting"][name] is not None for name in ours))
            and sum(lost is not None for lost in level["forgetting"].values()) > 1
        ]
        if levels:
            whole = [level for level in levels if None not in level["forgetting"].values()]
            return _at_level(summary, (whole or levels)[-1], words, ours)
    return ""


def _at_level(summary: Summary, level: Mapping[str, Any], words: str, ours: set[str]) -> str:
    unit = summary["probe_unit"]
    found = sorted((lost, name) for name, lost in level["forgetting"].items() if lost is not None)
    parts = [f"{name} {lost_or_gained(lost, unit)}" for lost, name in found]
    who = "all methods" if len(found) == len(level["forgetting"]) else _and([name for _, name in found])
    text = f"Where {who} had learned {100 * level['level']:.0f} % of what could be learned ({words}), "
    text += f"{_and(parts)} on {probes_meant(summary)}"
    reference = level["reference"]
    for name in (name for _, name in found if name in ours and name != reference):
        own, other = level["forgetting"][name], level["forgetting"][reference]
        ratio = level["ratio"][name]
        if own > other:
            text += f"; {name} forgot more than {reference}"
        elif own == other:
            text += f"; {name} forgot as much as {reference}"
        else:
            text += f"; {name} forgot less than {reference}" + (f" (×{ratio:.2g})" if ratio is not None else "")
    missing = [name for name, lost in level["forgetting"].items() if lost is None]
    if missing:
        reasons = [f"{name} ({level['why'].get(name, 'not measured')})" for name in missing]
        text += f"; {_and(reasons)} cannot be read there"
    return text + "."


def _unmatched(summary: Summary, best: Sequence[Entry]) -> str:
    unit = summary["task_unit"]
    parts = []
    for entry in best:
        continual = entry["values"]["continual"]
        text = f"{named(entry)} ended at {_level(continual, 'acc', unit)} (from {_level(continual, 'base', unit)})"
        if summary["probes"]:
            text += f" and {lost_or_gained(entry['values']['base_forgetting']['value'], summary['probe_unit'])}"
        parts.append(text)
    if not summary["probes"]:
        return f"On the tasks, {_and(parts)}; there were no probes, so what the base has forgotten is not known."
    return (
        f"There is no level of learning ({100 * LEAST_LEVEL:.0f} % or more) at which the methods can be compared: "
        f"{_and(parts)} on {probes_meant(summary)}."
    )


def probes_meant(summary: Summary) -> str:
    """The probes behind a mean: those of one unit; named where that is not all of several."""
    probes = [column for column in summary["columns"] if column["role"] == "probe"]
    names = [column["name"] for column in probes if column["unit"] == summary["probe_unit"]]
    if len(names) == 1:
        return f"the probe {names[0]}"
    return "the probes" if len(names) == len(probes) else f"the probes {_and(names)}"


def lost_or_gained(value: float | None, unit: str) -> str:
    """A loss in words; below zero it is a gain."""
    return f"gained {show_loss(-value, unit)}" if value is not None and value < 0 else f"lost {show_loss(value, unit)}"


def named(entry: Entry) -> str:
    """A method with its learning rate."""
    return f"{entry['method']} (lr {entry['lr']:g})"


def _level(values: Mapping[str, Any], key: str, unit: str | None) -> str:
    return show(values[key]["value"], unit or "") if key in values else "–"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _total(summary: Summary) -> int:
    return sum(entry["n_runs"] for entry in summary["methods"])
