"""Upper bounds of learning: a task alone, and all tasks at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nlft.measure.account import method_config
from nlft.measure.matrix import Column, Matrix

Row = Mapping[str, Any]


def bounds_of(rows: Sequence[Row], matrices: Mapping[str, Matrix], columns: Sequence[Column]) -> dict[str, Any]:
    """What each method reached on a task alone and on all tasks at once.

    A task alone is what a run learned first, in a sequence as in a run of one task. The value is in the metric's own
    unit: the mean over the runs of one learning rate and number of steps, and of these the best, chosen on the
    reported items themselves.

    Args:
        rows: lines of `runs.parquet`; those that did not end well do not count.
        matrices: R [S+1, J] by run.
        columns: the columns of the matrices.

    Returns:
        `{"single"|"multitask": {method: {task: {value, lr, steps, n}}}}`, n the number of runs behind a value; what
        was not measured is absent.
    """
    places = {column.name: j for j, column in enumerate(columns) if (column.role, column.split) == ("task", "test")}
    scores: dict[tuple[str, str, str], dict[tuple[float, int | None], list[float]]] = {}
    for row in rows:
        if row["status"] != "ok":
            continue
        point = row["lr"], method_config(row).get("steps")
        for bound, task in _bounded(row, list(places)):
            R = matrices[row["run_id"]]
            value = float(R[1, places[task]]) if len(R) > 1 else math.nan
            if not math.isnan(value):
                scores.setdefault((bound, row["method"], task), {}).setdefault(point, []).append(value)
    found: dict[str, Any] = {"single": {}, "multitask": {}}
    for (bound, method, task), points in scores.items():
        sign = columns[places[task]].sign
        (lr, steps), values = max(points.items(), key=lambda pair: sign * float(np.mean(pair[1])))
        best = {"value": float(np.mean(values)), "lr": lr, "steps": steps, "n": len(values)}
        found[bound].setdefault(method, {})[task] = best
    return found


def _bounded(row: Row, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The bounds that a run gives: which, and of which task."""
    if row["setting"] == "multitask":
        yield from (("multitask", task) for task in tasks)
    elif row["order"] and row["order"][0] in tasks:
        yield "single", row["order"][0]
