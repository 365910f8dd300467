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
    best = rivals_of(entries)
    text = _alone(summary, best[0]) if len(best) == 1 else _matched(summary, best) or _unmatched(summary, best)
    nothing = _unfinished(summary)
    if nothing:
        text += f" {listed(nothing)} {'has' if len(nothing) == 1 else 'have'} no finished run."
    return text + (f" {failed} of {_total(summary)} runs failed." if failed else "")


def rivals_of(entries: Sequence[Entry]) -> list[Entry]:
    """Every method at its best learning rate; those that are told the task, which are bounds, only if there are no
    others."""
    best = [entry for entry in entries if entry["best"]]
    return [entry for entry in best if not entry["told_task"]] or best


def _alone(summary: Summary, entry: Entry) -> str:
    unit, values = summary["task_unit"], entry["values"]
    continual = values["continual"]
    text = f"{named(entry)} took {tasks_meant(summary)} from {level_text(continual, 'base', unit)} "
    text += f"to {level_text(continual, 'learned', unit)}"
    if len(summary["tasks"]) > 1:
        whose = "its" if len(tasks_of_unit(summary)) == 1 else "each one's"
        text += f" right after {whose} training and {level_text(continual, 'acc', unit)} at the end"
    if len(summary["tasks"]) == 1:
        text += f" on {summary['tasks'][0]}"
    if not summary["probes"]:
        return text + "; there were no probes, so what the base has forgotten is not known."
    changes = [_change(summary, entry, name) for name in summary["probes"]]
    when = "after training" if entry["kind"] == "full" else "with the adapter on"
    return text + f"; {when}, the probes changed by {listed(changes)}."


def _change(summary: Summary, entry: Entry, name: str) -> str:
    unit = next(column["unit"] for column in summary["columns"] if (column["name"], column["role"]) == (name, "probe"))
    interval = entry["intervals"].get("probes", {}).get(name)
    text = f"{show_change(entry['values']['probes'][name]['change']['value'], unit)} on {name}"
    if interval and interval["low"] is not None:
        low, high = (show_change(interval[end], unit, False) for end in ("low", "high"))
        text += f" (95 % interval {low} to {high})"
    return text


def _matched(summary: Summary, best: Sequence[Entry]) -> str:
    ours = pathways_of(best)
    found = level_of(summary, ours)
    return _at_level(summary, *found, ours) if found else ""


def pathways_of(entries: Sequence[Entry]) -> set[str]:
    """The methods that are neither full finetuning nor LoRA."""
    return {entry["method"] for entry in entries if entry["kind"] not in ("full", "lora")}


def level_of(summary: Summary, ours: set[str]) -> tuple[Mapping[str, Any], str] | None:
    """The largest level at which a memory pathway and a plain method can be read, else any two methods; and when."""
    moments = (("end", "at the end"), ("now", "right after training"))
    for with_reference, (moment, words) in ((flag, moment) for flag in (True, False) for moment in moments):
        levels = [
            level
            for level in summary["frontier"][moment]["matched"]
            if (level["reference"] or not with_reference)
            and level["level"] >= LEAST_LEVEL
            and (not ours or any(level["forgetting"].get(name) is not None for name in ours))
            and sum(lost is not None for lost in level["forgetting"].values()) > 1
        ]
        if levels:
            whole = [level for level in levels if None not in level["forgetting"].values()]
            return (whole or levels)[-1], words
    return None


def _at_level(summary: Summary, level: Mapping[str, Any], words: str, ours: set[str]) -> str:
    unit = summary["probe_unit"]
    found = sorted((lost, name) for name, lost in level["forgetting"].items() if lost is not None)
    parts = [f"{name} {lost_or_gained(lost, unit)}" for lost, name in found]
    everyone = len(found) == len(level["forgetting"]) and not _unfinished(summary)
    who = "all methods" if everyone else listed([name for _, name in found])
    bounded = all(column["bounded"] for column in summary["columns"] if column["role"] == "task")
    most = "what could be learned" if bounded else "the most that any run learned"
    text = f"Where {who} had learned {100 * level['level']:.0f} % of {most} ({words}), "
    text += f"{listed(parts)} on {probes_meant(summary)}"
    reference = level["reference"]
    if reference:
        for own, name in (pair for pair in found if pair[1] in ours and pair[1] != reference):
            verdict = _against(own, level["forgetting"][reference], unit)
            text += f"; {name} {verdict} {reference}"
            if verdict == "forgot less than" and level["ratio"][name] is not None:
                over = level["runs"][name]
                known = over["ratio_low"] is not None
                sure = f", 95 % {over['ratio_low']:.2g} to {over['ratio_high']:.2g}" if known else ""
                text += f" (×{level['ratio'][name]:.2g}{sure})"
    missing = [name for name, lost in level["forgetting"].items() if lost is None]
    if missing:
        reasons = [f"{name} ({level['why'].get(name, 'not measured')})" for name in missing]
        text += f"; {listed(reasons)} cannot be read there"
    if not reference:
        text += "; there is no full finetuning or LoRA without replay to compare with there"
    return text + "."


def _against(own: float, other: float, unit: str) -> str:
    """One loss against another in words; who gained has not forgotten, and what prints alike is alike."""
    if show_loss(own, unit) == show_loss(other, unit):
        return "kept about the same as"
    if min(own, other) <= 0:
        return "kept less than" if own > other else "kept more than"
    return "forgot more than" if own > other else "forgot less than"


def _unmatched(summary: Summary, best: Sequence[Entry]) -> str:
    unit = summary["task_unit"]
    whole = len(tasks_of_unit(summary)) == len(summary["tasks"])
    where = "" if whole or not summary["probes"] else f" on {tasks_meant(summary)}"
    parts = []
    for entry in best:
        continual = entry["values"]["continual"]
        text = f"{named(entry)} ended at {level_text(continual, 'acc', unit)}{where} "
        text += f"(from {level_text(continual, 'base', unit)})"
        if summary["probes"]:
            text += f" and {lost_or_gained(entry['values']['base_forgetting']['value'], summary['probe_unit'])}"
        parts.append(text)
    if not summary["probes"]:
        text = f"On {tasks_meant(summary)}, {listed(parts)}"
        return text + "; there were no probes, so what the base has forgotten is not known."
    who = "the" if len(best) == 2 else "all"  # two of several may share a level
    return (
        f"There is no level of learning ({100 * LEAST_LEVEL:.0f} % or more) at which {who} methods can be compared: "
        f"{listed(parts)} on {probes_meant(summary)}."
    )


def probes_meant(summary: Summary) -> str:
    """The probes behind a mean: those of one unit; named where that is not all of several."""
    probes = [column for column in summary["columns"] if column["role"] == "probe"]
    names = [column["name"] for column in probes if column["unit"] == summary["probe_unit"]]
    if len(names) == 1:
        return f"the probe {names[0]}"
    return "the probes" if len(names) == len(probes) else f"the probes {listed(names)}"


def tasks_of_unit(summary: Summary) -> list[str]:
    """The tasks behind a mean: those of one unit."""
    wanted = ("task", "test", summary["task_unit"])
    return [
        column["name"] for column in summary["columns"] if (column["role"], column["split"], column["unit"]) == wanted
    ]


def tasks_meant(summary: Summary) -> str:
    """The tasks behind a mean in words; named where that is not all of several."""
    names = tasks_of_unit(summary)
    if len(names) in (0, len(summary["tasks"])):
        return "the tasks"
    return f"the task {names[0]}" if len(names) == 1 else f"the tasks {listed(names)}"


def lost_or_gained(value: float | None, unit: str) -> str:
    """A loss in words; below zero it is a gain."""
    return f"gained {show_loss(-value, unit)}" if value is not None and value < 0 else f"lost {show_loss(value, unit)}"


def named(entry: Entry) -> str:
    """A method with its learning rate."""
    return f"{entry['method']} (lr {entry['lr']:g})"


def level_text(values: Mapping[str, Any], key: str, unit: str | None) -> str:
    """One of an entry's `continual` levels as text."""
    return show(values[key]["value"], unit or "") if key in values else "–"


def listed(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _unfinished(summary: Summary) -> list[str]:
    """Methods of which no run finished at any learning rate."""
    done = {entry["method"] for entry in summary["methods"] if entry["n_finished"]}
    return list(dict.fromkeys(entry["method"] for entry in summary["methods"] if entry["method"] not in done))


def _total(summary: Summary) -> int:
    return sum(entry["n_runs"] for entry in summary["methods"])
