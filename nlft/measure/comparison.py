"""Several runs beside each other: means over seeds and orders, frontiers, forgetting at matched learning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlft.measure.frontier import (
    LEVELS,
    Point,
    Reading,
    common_level,
    lower_envelope,
    ratio_to,
    read_envelope,
    reference_of,
)
from nlft.measure.interval import ratio_interval, sign_flip_p

Run = Mapping[str, Any]
Cell = tuple[Any, ...]


def finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that ended well."""
    return [run for run in runs if run["status"] == "ok"]


def compare_methods(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry a method and learning rate: the mean over its finished runs, and the range from run to run.

    `best` marks the learning rate of a method that has learned most at the end. It is chosen on the very items
    that are reported, so it looks slightly better than it is; every other one is listed beside it.
    """
    groups: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["lr"]), []).append(run)
    names = list(dict.fromkeys(name for name, _ in groups))
    entries = []
    for (method, lr), group in sorted(groups.items(), key=lambda entry: (names.index(entry[0][0]), entry[0][1])):
        done = finished(group)
        same_order = [run for run in done if run["order"] == done[0]["order"]]
        entries.append(
            {
                "method": method,
                "kind": group[0]["kind"],
                "replay": group[0]["replay"],
                "told_task": group[0]["told_task"],
                "lr": lr,
                "best": False,
                "n_runs": len(group),
                "n_finished": len(done),
                "statuses": [run["status"] for run in group],
                "order": (done or group)[0]["order"],
                "matrix": np.mean([run["matrix"] for run in same_order], axis=0) if same_order else None,
                "values": combine([run["values"] for run in done]) if done else {},
                "intervals": done[0]["intervals"] if len(done) == 1 else {},
            }
        )
    for name in names:
        own = [entry for entry in entries if entry["method"] == name and entry["n_finished"]]
        if own:
            max(own, key=_merit)["best"] = True
    return entries


def _merit(entry: Mapping[str, Any]) -> tuple[float, float]:
    learned = entry["values"]["learning"]["end"]["value"]
    lost = entry["values"]["base_forgetting"]["value"]
    return (-math.inf if math.isnan(learned) else learned), (-math.inf if math.isnan(lost) else -lost)


def combine(trees: Sequence[Any]) -> Any:
    """Trees of numbers to one tree of `{value, low, high, n}`: mean, least and largest over the runs.

    A number that a run does not have (None, NaN) does not count; `n` says how many did.
    """
    if isinstance(trees[0], Mapping):
        names = list(dict.fromkeys(name for tree in trees for name in tree))
        return {name: combine([tree[name] for tree in trees if name in tree]) for name in names}
    found = [float(number) for number in trees if number is not None and not math.isnan(number)]
    if not found:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "n": 0}
    return {"value": float(np.mean(found)), "low": min(found), "high": max(found), "n": len(found)}


def frontiers(entries: Sequence[Mapping[str, Any]], runs: Sequence[Run], moment: str) -> dict[str, Any]:
    """Points, envelopes and forgetting at matched learning, with learning taken at one `moment`.

    Args:
        entries: `compare_methods` of the runs.
        runs: the runs.
        moment: "now" (right after each task's training) or "end" (after the last task).
    """
    points: dict[str, list[dict[str, float]]] = {}
    for entry in entries:
        if entry["n_finished"]:
            values = entry["values"]
            points.setdefault(entry["method"], []).append(
                {
                    "lr": entry["lr"],
                    "learning": values["learning"][moment]["value"],
                    "forgetting": values["base_forgetting"]["value"],
                    "n_runs": entry["n_finished"],
                }
            )
    envelopes = {
        method: lower_envelope([(point["learning"], point["forgetting"]) for point in own])
        for method, own in points.items()
    }
    plain = [name for name in envelopes if any(_is_plain(entry) for entry in entries if entry["method"] == name)]
    common = common_level(envelopes)
    levels: list[float] = sorted({*LEVELS} if math.isnan(common) else {*LEVELS, common})
    cells = _cells(finished(runs), moment)
    matched = [
        {"level": level, "common": level == common} | _matched(level, envelopes, plain, cells) for level in levels
    ]
    return {"points": points, "envelopes": envelopes, "matched": matched if len(envelopes) > 1 else []}


def _is_plain(entry: Mapping[str, Any]) -> bool:
    return entry["kind"] in ("full", "lora") and not entry["replay"]


def _matched(
    level: float,
    envelopes: Mapping[str, Sequence[Point]],
    plain: Sequence[str],
    cells: Mapping[Cell, Mapping[str, Sequence[Point]]],
) -> dict[str, Any]:
    readings = {method: read_envelope(envelope, level) for method, envelope in envelopes.items()}
    reference = reference_of(readings, plain)
    least = readings[reference].value if reference else math.nan
    return {
        "forgetting": {method: reading.value for method, reading in readings.items()},
        "why": {method: reading.why for method, reading in readings.items() if reading.why},
        "reference": reference,
        "ratio": {method: ratio_to(reading.value, least) for method, reading in readings.items()},
        "runs": {
            method: _over_cells(method, reference, level, cells) for method in readings if reference and len(cells) > 1
        },
    }


def _over_cells(
    method: str, reference: str, level: float, cells: Mapping[Cell, Mapping[str, Sequence[Point]]]
) -> dict[str, Any]:
    """The same reading within each pair of seed and order, and the sign-flip test against the reference."""
    nothing = Reading(math.nan)
    pairs = []
    for cell in cells.values():
        own, other = (read_envelope(cell[name], level) if name in cell else nothing for name in (method, reference))
        if not math.isnan(own.value) and not math.isnan(other.value):
            pairs.append((own.value, other.value))
    values = [own for own, _ in pairs]
    nothing_to_say = method == reference
    ratio_low, ratio_high = ratio_interval(values, [other for _, other in pairs])
    return {
        "n": len(pairs),
        "low": min(values, default=math.nan),
        "high": max(values, default=math.nan),
        "p_signflip": math.nan if nothing_to_say else sign_flip_p([own - other for own, other in pairs]),
        "ratio_low": math.nan if nothing_to_say else ratio_low,
        "ratio_high": math.nan if nothing_to_say else ratio_high,
    }


def _cells(runs: Sequence[Run], moment: str) -> dict[Cell, dict[str, list[Point]]]:
    """Envelopes by (seed, order) and method."""
    points: dict[Cell, dict[str, list[Point]]] = {}
    for run in runs:
        cell = points.setdefault((run["seed"], *run["order"]), {})
        point = (float(run["values"]["learning"][moment]), float(run["values"]["base_forgetting"]))
        cell.setdefault(run["method"], []).append(point)
    return {cell: {name: lower_envelope(own) for name, own in methods.items()} for cell, methods in points.items()}
