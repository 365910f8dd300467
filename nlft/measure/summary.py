"""`summary.json`: everything that a report says, derived from `items.parquet` and `runs.parquet`.

Schema `nlft.forgetting/1`. What was not measured is null. Levels ("base", "now", "end", "acc", …) are in the
metric's own unit; changes, gains and losses are signed as better = more. "now" is right after a task's own
training, "end" after the last task; both with the adapter on.

    schema, name, outcome (one sentence), paragraph (two to four), definitions {key: words}
    base            {model, revision, sha256, adapter, learned}: `adapter` is what the runs went on from, null where
                    that was the base alone, and `learned` the tasks that it had learned, as far as that is known
    columns         [{column, name, role, split, metric, unit, higher_is_better, bounded, n_items, ceiling}]:
                    the columns of every matrix; `ceiling` is what 1 means in normalised learning
    tasks, probes   names;  task_unit, probe_unit: the unit of means over tasks and over probes
    runs            [{run_id, method, kind, replay, told_task, plain, lr, steps, seed, order, status, device, dtype,
                      matrix [S+1][J], values, intervals, integrity {base_sha256, base_unchanged, off_equals_base}}]
    methods         [{method, kind, replay, told_task, plain, lr, steps, best, n_runs, n_finished, statuses, order,
                      matrix, values, intervals, intransigence {single, multitask}}]:
                    one a learning rate and steps a task; leaves of `values` are {value, low, high, n} over the runs,
                    from the least to the largest; `intervals` only where there is one run; `matrix` is the mean over
                    the finished runs of `order` (the first one's) only, while `values` rest on those of all orders
    values          {learning {now, end}, base_forgetting,
                     continual {base, learned, acc, seen, aia, bwt, forgetting, fwt_base},
                     tasks {name: {base, now, end, gained_now, gained_end, change[, seen_base, seen_now, seen_end]}},
                     probes {name: {base, end, change}}, costs {trainable_params, stored_bytes, …}}
    intervals       {probes|tasks: {name: {value, low, high, n_items, n_clusters}}}: 95 %, over items, paired
    frontier        {now|end: {points, envelopes, bands, matched, hypervolume, within_budget}}; all low and high are
                    95 % over runs (`bootstrap.py`), null with fewer than two (seed, order) cells, and `why` says why
      points        {method: [{lr, steps, learning, forgetting, n_runs, learning_low, …_high, forgetting_low, …_high}]}
      envelopes     {method: [[L, F]]};  bands {method: [{learning, forgetting, low, high}]}
      matched       [{level, common, forgetting {method}, why {method}, reference, ratio {method}, runs {method: {
                      n, of, cells, low, high, interval {low, high}, difference {value, low, high}, ratio_low,
                      ratio_high, p_signflip, why}}}]: forgetting and interval rest on `cells`; ratio and difference to
                      the reference and their intervals on the `of` cells of both; low, high and p on the `n` of these
                      in which both can be read by themselves
      hypervolume   {range [L, L], reference, methods {method: {value, low, high, why, against_reference {value, low,
                      high, ratio, ratio_low, ratio_high, p, n, of, range, why}}}}: mean forgetting over `range`; the
                      difference to the reference over the range of these two
      within_budget [{budget, methods {method: {value, low, high, why}}}]: largest learning with no more forgetting
    bounds          {single|multitask: {method: {task: {value, lr, steps, n}}}};  where [{run_id, …}]: `where.py`
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
from nlft.measure.bootstrap import DRAWS, samples_of
from nlft.measure.bounds import bounds_of
from nlft.measure.comparison import compare_methods, intransigence_of
from nlft.measure.continual import DEFINITIONS
from nlft.measure.frontier import ceilings
from nlft.measure.items import read_run_items, read_runs
from nlft.measure.matching import frontiers
from nlft.measure.matrix import Column, build_matrix, columns_of
from nlft.measure.outcome import outcome
from nlft.measure.paragraph import paragraph
from nlft.measure.unit import pick_unit
from nlft.measure.where import where_of

SCHEMA = "nlft.forgetting/1"
WORDS = {
    "matrix": "R[i,j]: score of column j after the i-th task; row 0 is the base, with the adapter on from which the "
    "run went on, if it did; tasks learned before are then probes",
    "learning": "Learning, mean_j (R[j] - base_j) / (ceiling_j - base_j): 0 is the base, 1 the most that could be "
    "learned. The ceiling is 1 for exact match, F1 and accuracy; for likelihoods it is the best value that any "
    "run of this report had, at any stage",
    "base_forgetting": "Lost on the probes, mean_g (base_g - end_g): the mean over the probes of one unit; "
    "below zero is a gain",
    "interval": "Brackets of a single run: 95 % interval of a paired difference over items, by a bootstrap over rows "
    "about the same thing. It says nothing about other seeds",
    "range": "Where a method has several runs, numbers are means over its seeds and orders, and brackets go from "
    "the least to the largest run",
    "over_runs": f"95 % over runs: each of {DRAWS} draws takes pairs of seed and order (one fewer than there are) and "
    "rows about the same thing, with replacement and the same for all methods, and works the curves out anew; the "
    "limits are the 2.5th and 97.5th percentile. Given only with two pairs or more, and if 95 % of the draws have the "
    "number",
    "matched": "At matched learning: each method's learning rates and steps make a curve of forgetting against "
    "learning (the monotone lower envelope of the means), read where all have learned the same; straight lines between "
    "points, nothing beyond the last point. The largest level that all reached is another one in every draw and pair, "
    "and is read there",
    "reference": "Reference (×1): the one that lost least there of full finetuning and LoRA that all tasks share, "
    "without gate, replay or penalty. Methods that are told each row's task are bounds and are not compared",
    "sign_flip": "p: exact two-sided sign-flip test of the differences to the reference over pairs of runs of one seed "
    "and order, each read off its own curves; n pairs cannot give less than 2/2ⁿ. It rests on those pairs in which "
    "both can be read, whose number is given; ratio and interval rest on all pairs that both have finished",
    "hypervolume": "Mean forgetting over a range of learning: the area under the curve by the range's width. The range "
    "is what all swept methods span; the difference to the reference is over what these two span",
    "within_budget": "Most learned within a budget: the largest learning on the curve at which no more was lost",
    "best": "Best learning rate and steps (•): those that have learned most at the end, chosen on the reported items "
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
    summary = summary_of(folder)
    partial = folder / "summary.json.partial"
    partial.write_text(json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    os.replace(partial, folder / "summary.json")
    return summary


def summary_of(folder: Path) -> dict[str, Any]:
    """The same, and writes nothing."""
    rows = read_runs(folder / "runs.parquet")
    if not rows:
        raise DataError(f"{folder / 'runs.parquet'} holds no run.", "Run the recipe again.")
    items = read_run_items(folder / "items.parquet")
    text = (folder / "config.yaml").read_text(encoding="utf-8") if (folder / "config.yaml").is_file() else ""
    recipe = yaml.safe_load(text) or {}
    tasks = [task["name"] for task in recipe.get("tasks", [])] or list(rows[0]["order"] or [])
    started = json.loads(rows[0]["start"] or "null")
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
    samples = samples_of(runs, items, columns, ceiling)
    bounds = bounds_of(rows, matrices, columns)
    task_unit = pick_unit([column.unit for column in columns if (column.role, column.split) == ("task", "test")])
    probe_unit = pick_unit([column.unit for column in columns if column.role == "probe"])
    summary = {
        "schema": SCHEMA,
        "name": recipe.get("name") or folder.resolve().name,
        "outcome": "",
        "paragraph": "",
        "definitions": WORDS,
        "base": {
            "model": rows[0]["base_model"],
            "revision": rows[0]["base_revision"],
            "sha256": rows[0]["base_sha256"],
            "adapter": started["name"] if started else None,
            "learned": started["tasks"] if started else [],
        },
        "columns": [_describe(column, best) for column, best in zip(columns, ceiling, strict=True)],
        "tasks": tasks,
        "probes": [column.name for column in columns if column.role == "probe"],
        "task_unit": task_unit,
        "probe_unit": probe_unit,
        "runs": runs,
        "methods": [
            entry | {"intransigence": intransigence_of(entry, bounds, columns, task_unit)} for entry in methods
        ],
        "frontier": {
            moment: frontiers(methods, moment, samples[moment], probe_unit or "") for moment in ("now", "end")
        },
        "bounds": bounds,
        "where": [found for row in rows if (found := where_of(row, items.get(row["run_id"], []), columns))],
        "recipe": text,
    }
    summary = plain(summary)
    summary["outcome"], summary["paragraph"] = outcome(summary), paragraph(summary)
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
    entries = [entry for part in ("earlier", "tasks", "probes") for entry in recipe.get(part) or []]
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
