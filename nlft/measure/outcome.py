"""The outcome of a run or a comparison in one plain sentence, the same whoever wins."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nlft.measure.unit import show, show_change, show_level, show_loss

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]
LEAST_LEVEL = 0.1
"""Below this, methods have learned the same only in that they have learned next to nothing."""
MANY = 5
"""Of more methods than this, a sentence names some."""
NO_PATHWAYS = ("full", "lora", "few_shot", "class_means")
"""Kinds of methods that have no memory beside the base."""


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
    text = started(summary)
    text += _alone(summary, best[0]) if len(best) == 1 else _matched(summary, best) or _unmatched(summary, best)
    nothing = _unfinished(summary)
    if nothing:
        text += f" {listed(nothing)} {'has' if len(nothing) == 1 else 'have'} no finished run."
    return text + (f" {failed} of {_total(summary)} runs failed." if failed else "")


def started(summary: Summary) -> str:
    """What the runs went on from, as a sentence; empty where that was the base alone."""
    base = summary["base"]
    if not base.get("adapter"):
        return ""
    learned = f", which had learned {listed(base['learned'])}" if base["learned"] else ""
    return f"Started from {base['model']} + adapter {base['adapter']}{learned}: row 0 is that model. "


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
    """The methods that are neither full finetuning nor LoRA, and that train something."""
    return {entry["method"] for entry in entries if entry["kind"] not in NO_PATHWAYS}


def spoken_of(ranked: Sequence[str], always: Collection[str | None]) -> list[str]:
    """Whom a sentence names: all of a few; of many those given, and of the others the best, five in all but one at
    least.

    Args:
        ranked: names, the best first.
        always: names that are not left out.
    """
    others = [name for name in ranked if name not in always]
    room = max(MANY - (len(ranked) - len(others)), 1)
    silent = others[room:] if len(ranked) > MANY else []
    return [name for name in ranked if name not in silent]


def level_of(summary: Summary, ours: set[str]) -> tuple[Mapping[str, Any], str] | None:
    """The largest level at which a memory pathway and a plain method can be read, else any two methods; and when."""
    moments = (("end", "at the end"), ("now", "right after training"))
    for with_reference, (moment, words) in ((flag, moment) for flag in (True, False) for moment in moments):
        levels = [
            level
            for level in summary["frontier"][moment]["matched"]
            if (level["reference"] or not with_reference)
            and round(level["level"], 3) >= LEAST_LEVEL  # as it is printed
            and (not ours or any(level["forgetting"].get(name) is not None for name in ours))
            and sum(lost is not None for lost in level["forgetting"].values()) > 1
        ]
        if levels:
            # A method that trains nothing has one point, so that it can hardly be read where the others can.
            whole = [level for level in levels if level["common"] or None not in level["forgetting"].values()]
            return (whole or levels)[-1], words
    return None


def _at_level(summary: Summary, level: Mapping[str, Any], words: str, ours: set[str]) -> str:
    unit = summary["probe_unit"]
    reference = level["reference"]
    ranked = sorted((lost, name) for name, lost in level["forgetting"].items() if lost is not None)
    named_ones = spoken_of([name for _, name in ranked], {reference, *ours})
    found = [pair for pair in ranked if pair[1] in named_ones]
    others = [lost for lost, name in ranked if name not in named_ones]
    parts = [f"{name} {lost_or_gained(lost, unit)}" for lost, name in found]
    if others:
        parts.append(f"{len(others)} more {lost_or_gained(others[0], unit)}")
        if len(others) > 1:
            ends = show_loss(others[0], unit, False), show_loss(others[-1], unit)
            parts[-1] = f"{len(others)} more lost {ends[0]} to {ends[1]}"
    everyone = len(ranked) == len(level["forgetting"]) and not _unfinished(summary)
    some = listed(named_ones) if not others else f"{len(ranked)} of {len(level['forgetting'])} methods"
    who = "all methods" if everyone else some
    bounded = all(column["bounded"] for column in summary["columns"] if column["role"] == "task")
    most = "what could be learned" if bounded else "the most that any run learned"
    text = f"Where {who} had learned {show_level(level['level'])} of {most} ({words}), "
    text += f"{listed(parts)} on {probes_meant(summary)}"
    if reference:
        for own, name in (pair for pair in found if pair[1] in ours and pair[1] != reference):
            verdict = _against(own, level["forgetting"][reference], unit)
            text += f"; {name} {verdict} {reference}"
            if verdict in FORGOT and level["ratio"][name] is not None:
                over = level["runs"][name]
                known = over["ratio_low"] is not None
                sure = f", 95 % {over['ratio_low']:.2g} to {over['ratio_high']:.2g}" if known else ""
                text += f" (×{level['ratio'][name]:.2g}{sure})"
    missing = [name for name, lost in level["forgetting"].items() if lost is None]
    if missing:
        silent = [name for name in missing if name not in ours] if len(level["forgetting"]) > MANY else []
        reasons = [f"{name} ({level['why'].get(name, 'not measured')})" for name in missing if name not in silent]
        reasons += [f"{len(silent)} {'others' if reasons else 'of them'}"] if silent else []
        text += f"; {listed(reasons)} cannot be read there"
    if not reference:
        text += "; there is no full finetuning or LoRA without replay to compare with there"
    return text + "."


FORGOT = ("forgot less than", "forgot more than")


def _against(own: float, other: float, unit: str) -> str:
    """One loss against another in words; who gained has not forgotten, and what prints alike is alike."""
    if show_loss(own, unit) == show_loss(other, unit):
        return "kept about the same as"
    if min(own, other) <= 0:
        return "kept less than" if own > other else "kept more than"
    return FORGOT[own > other]


def _unmatched(summary: Summary, best: Sequence[Entry]) -> str:
    unit = summary["task_unit"]
    whole = len(tasks_of_unit(summary)) == len(summary["tasks"])
    where = "" if whole or not summary["probes"] else f" on {tasks_meant(summary)}"
    parts = []
    chosen = spoken_entries(best)
    for entry in chosen:
        continual = entry["values"]["continual"]
        text = f"{named(entry)} ended at {level_text(continual, 'acc', unit)}{where} "
        text += f"(from {level_text(continual, 'base', unit)})"
        if summary["probes"]:
            text += f" and {lost_or_gained(entry['values']['base_forgetting']['value'], summary['probe_unit'])}"
        parts.append(text)
    more = f" {len(best) - len(chosen)} more are in the table." if len(chosen) < len(best) else ""
    if not summary["probes"]:
        text = f"On {tasks_meant(summary)}, {listed(parts)}"
        return text + "; there were no probes, so what the base has forgotten is not known." + more
    who = "the" if len(best) == 2 else "all"  # two of several may share a level
    return (
        f"There is no level of learning ({show_level(LEAST_LEVEL)} or more) at which {who} methods can be compared: "
        f"{listed(parts)} on {probes_meant(summary)}.{more}"
    )


def spoken_entries(best: Sequence[Entry]) -> list[Entry]:
    """Whom a sentence names where nothing was lost at the same learning: as `spoken_of`, who learned most first."""

    def learned(entry: Entry) -> float:
        value = entry["values"]["learning"]["end"]["value"]
        return -math.inf if value is None else value

    ranked = [entry["method"] for entry in sorted(best, key=learned, reverse=True)]
    plain = {entry["method"] for entry in best if entry["plain"]}
    names = spoken_of(ranked, plain | pathways_of(best))
    return [entry for entry in best if entry["method"] in names]


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
    """A method with its learning rate, if it has one."""
    return f"{entry['method']} (lr {entry['lr']:g})" if entry["lr"] else entry["method"]


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
