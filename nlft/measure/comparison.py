"""Several runs of a method beside each other: means over seeds and orders, and the range from run to run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlft.measure.continual import intransigence
from nlft.measure.matrix import Column

Run = Mapping[str, Any]


def finished(runs: Sequence[Run]) -> list[Run]:
    """The runs that ended well."""
    return [run for run in runs if run["status"] == "ok"]


def compare_methods(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry a method, learning rate and number of steps: the mean over its finished runs, and their range.

    `best` marks the learning rate and steps of a method that have learned most at the end. They are chosen on the very
    items that are reported, so they look slightly better than they are; all others are listed beside them.
    """
    known = {(run["method"], run["lr"]): run["steps"] for run in runs if run["steps"]}
    groups: dict[tuple[str, float, int], list[Run]] = {}
    for run in runs:
        steps = run["steps"] or known.get((run["method"], run["lr"]), 0)
        groups.setdefault((run["method"], run["lr"], steps), []).append(run)
    names = list(dict.fromkeys(run["method"] for run in runs))
    entries = []
    for (method, lr, steps), group in sorted(groups.items(), key=lambda pair: (names.index(pair[0][0]), *pair[0][1:])):
        done = finished(group)
        # What a method is, a finished run says: one that failed before it began does not know all of it.
        first = (done or group)[0]
        same_order = [run for run in done if run["order"] == first["order"]]
        entries.append(
            {
                "method": method,
                "kind": first["kind"],
                "replay": first["replay"],
                "told_task": first["told_task"],
                "plain": first["plain"],
                "lr": lr,
                "steps": steps,
                "best": False,
                "n_runs": len(group),
                "n_finished": len(done),
                "statuses": [run["status"] for run in group],
                "order": first["order"],
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


def intransigence_of(
    entry: Mapping[str, Any], bounds: Mapping[str, Any], columns: Sequence[Column], unit: str | None
) -> dict[str, float]:
    """How far an entry's tasks, each right after its training, fall short of what its method reached on each alone
    ("single") and on all at once ("multitask"); NaN without a bound for every task of the unit.

    Args:
        entry: one of `compare_methods`.
        bounds: `bounds.bounds_of`.
        columns: the columns of the matrices.
        unit: of the tasks that count.
    """
    tests = {column.name: column.sign for column in columns if (column.role, column.split) == ("task", "test")}
    units = {column.name: column.unit for column in columns}
    tasks = [name for name in entry["values"].get("tasks", {}) if units[name] == unit]
    signs = np.array([tests[name] for name in tasks], dtype=np.float64)
    R = np.full((len(tasks) + 1, len(tasks)), math.nan)
    for j, name in enumerate(tasks):
        R[j + 1, j] = signs[j] * entry["values"]["tasks"][name]["now"]["value"]
    found = {}
    for kind in ("single", "multitask"):
        own = bounds.get(kind, {}).get(entry["method"], {})
        reached = np.array([own.get(name, {}).get("value", math.nan) for name in tasks], dtype=np.float64)
        found[kind] = intransigence(R, signs * reached)
    return found
