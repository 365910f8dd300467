"""`summary.json`: everything that a report says, derived from `items.parquet` and `runs.parquet`.

Schema `nlft.forgetting/1`. What was not measured is null. Levels ("base", "now", "end", "acc", …) are in the
metric's own unit; changes, gains and losses are signed as better = more. "now" is right after a task's own
training, "end" after the last task; both with the adapter on.

    schema, name, outcome (one sentence), definitions {key: words}
    base            {model, revision, sha256}
    columns         [{column, name, role, split, metric, unit, higher_is_better, bounded, n_items, ceiling}]:
                    the columns of every matrix; `ceiling` is what 1 means in normalised learning
    tasks, probes   names;  task_unit, probe_unit: the unit of means over tasks and over probes
    runs            [{run_id, method, kind, replay, lr, seed, order, status, device, dtype,
                      matrix [S+1][J], values, intervals, integrity {base_sha256, base_unchanged, off_equals_base}}]
    methods         [{method, kind, replay, lr, best, n_runs, n_finished, statuses, order, matrix, values, intervals}]:
                    one a learning rate; leaves of `values` are {value, low, high, n} over the runs; `intervals` only
                    where there is one run
    values          {learning {now, end}, base_forgetting,
                     continual {base, learned, acc, seen, aia, bwt, forgetting, fwt_base},
                     tasks {name: {base, now, end, gained_now, gained_end, change[, seen_base, seen_now, seen_end]}},
                     probes {name: {base, end, change}}, costs {trainable_params, stored_bytes, …}}
    intervals       {probes|tasks: {name: {value, low, high, n_items, n_clusters}}}: 95 %, over items, paired
    frontier        {now|end: {points {method: [{lr, learning, forgetting, n_runs}]}, envelopes {method: [[L, F]]},
                     matched [{level, common, forgetting {method}, why {method}, reference, ratio {method},
                               runs {method: {n, low, high, p_signflip}}}]}}
    recipe          the resolved recipe as YAML text
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from nlft.errors import DataError
from nlft.measure.account import account_of
from nlft.measure.bounds import bounds_of
from nlft.measure.comparison import compare_methods, frontiers
from nlft.measure.continual import DEFINITIONS
from nlft.measure.frontier import ceilings
from nlft.measure.items import read_run_items, read_runs
from nlft.measure.matrix import Column, build_matrix, columns_of
from nlft.measure.outcome import outcome
from nlft.measure.unit import pick_unit
from nlft.measure.where import where_of

SCHEMA = "nlft.forgetting/1"
WORDS = {
    "matrix": "R[i,j]: score of column j after the i-th task; row 0 is the base",
    "learning": "Learning, mean_j (R[j] - base_j) / (ceiling_j - base_j): 0 is the base, 1 the most that could be "
    "learned. The ceiling is 1 for exact match, F1 and accuracy; for likelihoods it is the best value that any "
    "run of this report had, at any stage",
    "base_forgetting": "Lost on the probes, mean_g (base_g - end_g): the mean over the probes of one unit; "
    "below zero is a gain",
    "interval": "Brackets of a single run: 95 % interval of a paired difference over items, by a bootstrap over rows "
    "about the same thing. It says nothing about other seeds",
    "range": "Where a method has several runs, numbers are means over its seeds and orders, and brackets go from "
    "the least to the largest run",
    "matched": "At matched learning: each method's learning rates make a curve of forgetting against learning "
    "(the monotone lower envelope), read where all have learned the same; straight lines between points, nothing "
    "beyond the last point",
    "best": "Best learning rate (•): the one that has learned most at the end, chosen on the reported items "
    "themselves; all others are listed",
    **DEFINITIONS,
}


def summarise(folder: Path) -> dict[str, Any]:
    """Reads the results of a run or a comparison and writes `summary.json`.

    Returns:
        The summary as it is in the file; keys in the head of this module.

    Raises:
        DataError: the folder has no results, or results that do not fit together.
    """
    rows = read_runs(folder / "runs.parquet")
    if not rows:
        raise DataError(f"{folder / 'runs.parquet'} holds no run.", "Run the recipe again.")
    items = read_run_items(folder / "items.parquet")
    text = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").is_file() else ""
    recipe = yaml.safe_load(text) or {}
    tasks = [task["name"] for task in recipe.get("tasks", [])] or list(rows[0]["order"] or [])
    columns = columns_of([item for of_run in items.values() for item in of_run], tasks, _metrics(recipe))
    matrices = {
        row["run_id"]: build_matrix(items.get(row["run_id"], []), columns, len(row["order"] or tasks)) for row in rows
    }
    ceiling = ceilings([matrices[row["run_id"]] for row in rows if row["status"] == "ok"], columns)
    runs = [
        account_of(row, items.get(row["run_id"], []), columns, matrices[row["run_id"]], ceiling)
        for row in rows
        if (row["setting"] or "sequence") == "sequence"
    ]
    methods = compare_methods(runs)
    summary = {
        "schema": SCHEMA,
        "name": recipe.get("name") or folder.resolve().name,
        "outcome": "",
        "definitions": WORDS,
        "base": {
            "model": rows[0]["base_model"],
            "revision": rows[0]["base_revision"],
            "sha256": rows[0]["base_sha256"],
        },
        "columns": [_describe(column, best) for column, best in zip(columns, ceiling, strict=True)],
        "tasks": tasks,
        "probes": [column.name for column in columns if column.role == "probe"],
        "task_unit": pick_unit([c.unit for c in columns if (c.role, c.split) == ("task", "test")]),
        "probe_unit": pick_unit([column.unit for column in columns if column.role == "probe"]),
        "runs": runs,
        "methods": methods,
        "frontier": {moment: frontiers(methods, runs, moment) for moment in ("now", "end")},
        "bounds": bounds_of(rows, matrices, columns),
        "where": [found for row in rows if (found := where_of(row, items.get(row["run_id"], []), columns))],
        "recipe": text,
    }
    summary = plain(summary)
    summary["outcome"] = outcome(summary)
    partial = folder / "summary.json.partial"
    partial.write_text(json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(partial, folder / "summary.json")
    return summary


def plain(value: Any) -> Any:
    """A tree that JSON can hold: arrays become lists, NaN and infinities null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(recipe: Mapping[str, Any]) -> dict[str, str]:
    entries = [*(recipe.get("tasks") or []), *(recipe.get("probes") or [])]
    return {entry["name"]: entry["metric"] for entry in entries if "metric" in entry}


def _describe(column: Column, ceiling: float) -> dict[str, Any]:
    return {
        "column": column.column,
        "name": column.name,
        "role": column.role,
        "split": column.split,
        "metric": column.metric,
        "unit": column.unit,
        "higher_is_better": column.sign > 0,
        "bounded": column.bounded,
        "n_items": column.n_items,
        "ceiling": column.sign * ceiling,
    }
