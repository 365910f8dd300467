"""The first paragraph of a report, for people who decide: who learned, who lost how much at equal learning, how sure
that is, what it costs. The same words whoever wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlft.measure.outcome import (
    LEAST_LEVEL,
    Entry,
    Summary,
    level_of,
    level_text,
    listed,
    lost_or_gained,
    outcome,
    pathways_of,
    probes_meant,
    rivals_of,
    spoken_entries,
    started,
    tasks_meant,
)
from nlft.measure.unit import show_level, show_loss, size

MINUTE = 90.0
"""From so many seconds on, times are written in minutes."""


def paragraph(summary: Summary) -> str:
    """Two to four sentences; of a single method, the outcome and what it costs.

    Args:
        summary: as `summarise` makes it, without NaN.
    """
    entries = [entry for entry in summary["methods"] if entry["n_finished"]]
    best = rivals_of(entries)
    if not best:
        return outcome(summary)
    if len(best) == 1:
        return f"{outcome(summary)} {_costs(best)}".strip()
    parts = [started(summary).strip(), _learned(summary, best)]
    compared = spoken_entries(best)
    found = level_of(summary, pathways_of(best))
    if not summary["probes"]:
        parts.append("There were no probes, so what the base has forgotten is not known.")
    elif not found:
        parts.append(
            f"There is no level of learning ({show_level(LEAST_LEVEL)} or more) at which they can be compared, so none "
            "can be said to forget less."
        )
    else:
        level, words = found
        ranked = _ranked(level)
        compared = [next(entry for entry in best if entry["method"] == name) for name in _named(level, ranked)]
        parts += [_lost(summary, level, words, ranked), _sure(summary, level, ranked)]
    return " ".join(part for part in [*parts, _costs(compared, len(best) - len(compared))] if part)


def _learned(summary: Summary, best: Sequence[Entry]) -> str:
    unit = summary["task_unit"]
    known = [entry for entry in best if entry["values"]["continual"].get("acc", {}).get("value") is not None]
    if not known:
        return f"{len(best)} methods were trained."
    column = next(one for one in summary["columns"] if (one["role"], one["unit"]) == ("task", unit))
    sign = 1 if column["higher_is_better"] else -1
    ranked = sorted(known, key=lambda entry: sign * entry["values"]["continual"]["acc"]["value"])
    levels = {entry["method"]: level_text(entry["values"]["continual"], "acc", unit) for entry in ranked}
    most, least = ranked[-1]["method"], ranked[0]["method"]
    text = f"{len(best)} methods learned {len(summary['tasks'])} task{'s' * (len(summary['tasks']) > 1)}"
    base = level_text(ranked[-1]["values"]["continual"], "base", unit)
    found = f"({levels[most]} on {tasks_meant(summary)}, from {base})"
    if levels[most] == levels[least]:
        return f"{text} in sequence; at the end, {_tied(most, levels)} had learned the same {found}."
    text += f" in sequence; at the end, {_tied(most, levels)} had learned most {found}"
    return f"{text} and {_tied(least, levels)} least ({levels[least]})."


def _tied(name: str, shown: Mapping[str, str]) -> str:
    """A method with those whose value prints like its own."""
    others = [other for other in shown if other != name and shown[other] == shown[name]]
    return listed([name, *(others if len(others) < 2 else [f"{len(others)} others"])])


def _ranked(level: Mapping[str, Any]) -> list[str]:
    """The methods that can be read at a level, who lost least first."""
    return sorted((name for name, lost in level["forgetting"].items() if lost is not None), key=level["forgetting"].get)


def _named(level: Mapping[str, Any], ranked: Sequence[str]) -> list[str]:
    """Whose losses are written: the least, the most and the reference's."""
    return list(dict.fromkeys([ranked[0], *([level["reference"]] if level["reference"] else []), ranked[-1]]))


def _lost(summary: Summary, level: Mapping[str, Any], words: str, ranked: Sequence[str]) -> str:
    unit = summary["probe_unit"]
    parts, shown = [], [show_loss(level["forgetting"][name], unit) for name in ranked]
    for name in _named(level, ranked):
        own = show_loss(level["forgetting"][name], unit)
        rank = "least" if own == shown[0] else "most" if own == shown[-1] else ""
        same = shown.count(own) - 1
        rank = "" if shown[0] == shown[-1] else f"{rank} with {same} other{'s' * (same > 1)}" if rank and same else rank
        role = "the reference" if name == level["reference"] else ""
        text = f"{name} {lost_or_gained(level['forgetting'][name], unit)}"
        interval = level["runs"][name]["interval"]
        notes = [note for note in (rank, role) if note]
        if interval["low"] is not None:
            ends = [show_loss(interval[end], unit, False) for end in ("low", "high")]
            notes.append(f"95 % {ends[0]} to {ends[1]}")
        parts.append(text + (f" ({', '.join(notes)})" if notes else ""))
    return (
        f"Of the {len(ranked)} that can be read where {show_level(level['level'])} was learned ({words}), "
        f"{listed(parts)} on {probes_meant(summary)}."
    )


def _sure(summary: Summary, level: Mapping[str, Any], ranked: Sequence[str]) -> str:
    """The difference between who lost least and the reference, or between the reference and the next."""
    reference, unit = level["reference"], summary["probe_unit"]
    if not reference:
        return "There is no full finetuning or LoRA without replay to compare with there."
    other = ranked[1] if ranked[0] == reference else ranked[0]
    over = level["runs"][other]
    value = over["difference"]["value"]
    if value is None or over["of"] < 2:
        return "All this rests on one seed and one order, so that nothing is known of others."
    text = f"{other} lost {show_loss(abs(value), unit)} {'less' if value < 0 else 'more'} than {reference}"
    low, high = over["difference"]["low"], over["difference"]["high"]
    if low is None:
        text += f" (no interval: {over['why']}"
    else:
        near, far = sorted((low, high), key=abs)
        ends = [show_loss(end if value > 0 else -end, unit, False) for end in (near, far)]
        text += f" (95 % {ends[0]} to {ends[1]}" + ("" if low * high > 0 else ", so either may be the better")
    text += f"; {over['of']} pairs of runs"
    if over["p_signflip"] is not None:
        text += f", p = {over['p_signflip']:.2g}" + (f" over {over['n']} of them" if over["n"] < over["of"] else "")
    return text + ")."


def _costs(entries: Sequence[Entry], more: int = 0) -> str:
    """What a run of each costs; `more` are left to the table."""
    parts = []
    for entry in entries:
        costs = entry["values"]["costs"]
        stored, seconds = (costs.get(key, {}).get("value") for key in ("stored_bytes", "train_s"))
        bits = [f"{size(stored)} stored"] if stored is not None else []
        if seconds is not None:
            bits.append(f"{seconds / 60:.3g} min" if seconds >= MINUTE else f"{seconds:.2g} s")
            bits[-1] += " of training"
        if bits:
            parts.append(f"{entry['method']} {' and '.join(bits)}")
    rest = f"; {more} more are in the table" if more else ""
    return f"A run costs: {'; '.join(parts)}{rest}." if parts else ""
