"""The account of one run: its matrix, what it learned, what it lost, what it cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nlft.errors import DataError
from nlft.measure import continual
from nlft.measure.frontier import base_forgetting, normalised_learning
from nlft.measure.interval import paired_difference
from nlft.measure.matrix import Column, Matrix, orient
from nlft.measure.unit import pick_unit
from nlft.types import Item

COSTS = (
    "trainable_params",
    "stored_bytes",
    "task_bytes",
    "replay_bytes",
    "regulariser_bytes",
    "optimizer_bytes",
    "peak_rss",
    "peak_bytes",
    "train_tokens",
    "steps",
    "train_s",
    "eval_s",
    "wall_s",
    "latency_ratio",
)
PROOFS = ("base_sha256", "base_unchanged", "off_equals_base")


def account_of(
    row: Mapping[str, Any],
    items: Sequence[Item],
    columns: Sequence[Column],
    R: Matrix,
    ceiling: Matrix,
) -> dict[str, Any]:
    """Everything a summary says about one run; keys as in `summary.py`.

    Args:
        row: the run's line of `runs.parquet`.
        items: its scores.
        columns: the columns of the matrix.
        R: its matrix [S+1, J] in the metrics' own units.
        ceiling: s [J], oriented (`frontier.ceilings`).
    """
    return {
        "run_id": row["run_id"],
        "method": row["method"],
        "kind": row["kind"],
        "replay": bool(method_config(row).get("replay")),
        "told_task": bool(row["told_task"]),
        "plain": is_plain(row),
        "lr": row["lr"],
        "steps": steps_of(row),
        "seed": row["seed"],
        "order": list(row["order"] or []),
        "status": row["status"] or "unknown",
        "device": row["device"],
        "dtype": row["dtype"],
        "matrix": R,
        "values": values_of(R, columns, row["order"] or [], ceiling) | {"costs": costs_of(row)},
        "intervals": intervals_of(items, columns, row["order"] or []),
        "integrity": {name: row[name] for name in PROOFS},
        "overlap": json.loads(row["overlap"] or "null"),
    }


def costs_of(row: Mapping[str, Any]) -> dict[str, float | None]:
    """What one run cost, by `COSTS`: bytes, seconds and counts as in `runs.parquet`; None of what was not measured.

    `task_bytes` is the mean growth of what is stored from stage to stage; None with fewer than two stages.
    """
    stored = [held for held in row["task_bytes"] or [] if held is not None]
    growth = (stored[-1] - stored[0]) / (len(stored) - 1) if len(stored) > 1 else None
    return {name: row[name] for name in COSTS} | {"task_bytes": growth}


def method_config(row: Mapping[str, Any]) -> dict[str, Any]:
    """The method's part of the recipe; empty where a run has none."""
    try:
        found = json.loads(row["config"] or "{}")
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def is_plain(row: Mapping[str, Any]) -> bool:
    """Whether a run is one of the rivals that others are measured against: full finetuning, or one LoRA that all tasks
    share, with no gate, replay or regulariser, and not told the task."""
    config = method_config(row)
    if row["told_task"] or any(config.get(part) for part in ("gate", "replay", "ewc", "l2sp")):
        return False
    shared = config.get("tasks", "shared") == "shared" and str(config.get("peft_type", "LORA")).upper() == "LORA"
    return row["kind"] == "full" or (row["kind"] == "lora" and shared)


def steps_of(row: Mapping[str, Any]) -> int:
    """Optimiser steps a task; 0 where nothing was trained, or where a failed run of version 0.1 does not say it."""
    steps, total, tasks = method_config(row).get("steps"), row["steps"], row["order"]
    return steps if isinstance(steps, int) else (total or 0) // (len(tasks or []) or 1)


def values_of(R: Matrix, columns: Sequence[Column], order: Sequence[str], ceiling: Matrix) -> dict[str, Any]:
    """The numbers of one run. Levels are in the metric's own unit, changes and losses signed as better = more."""
    oriented = orient(R, columns)
    tests = [j for name in order for j in places(columns, name, "task", "test")]
    probes = [j for j, column in enumerate(columns) if column.role == "probe"]
    now, end = normalised_learning(oriented[:, tests], ceiling[tests]) if tests else (np.nan, np.nan)
    lost, _ = base_forgetting(oriented[:, probes], [columns[j] for j in probes])
    return {
        "learning": {"now": now, "end": end},
        "base_forgetting": lost,
        "continual": _continual(oriented, columns, tests),
        "tasks": {columns[j].name: _task(R, oriented, columns, j, stage) for stage, j in enumerate(tests, start=1)},
        "probes": {
            columns[j].name: {"base": R[0, j], "end": R[-1, j], "change": oriented[-1, j] - oriented[0, j]}
            for j in probes
        },
    }


def places(columns: Sequence[Column], name: str, role: str, split: str) -> list[int]:
    """Places of a task's or probe's columns: one or none."""
    wanted = (name, role, split)
    return [j for j, column in enumerate(columns) if (column.name, column.role, column.split) == wanted]


def _continual(oriented: Matrix, columns: Sequence[Column], tests: Sequence[int]) -> dict[str, float]:
    # From the columns as they are, so that every order of the tasks takes the same unit, as `summary.py` does.
    unit = pick_unit([column.unit for column in columns if (column.role, column.split) == ("task", "test")])
    if unit not in [columns[j].unit for j in tests]:
        return {}
    # A task of another unit keeps its stage and becomes a column without values, which the metrics leave out.
    same = np.array([columns[j].unit == unit for j in tests])
    T = np.where(same, oriented[:, tests], np.nan)
    sign = next(columns[j].sign for j in tests if columns[j].unit == unit)
    learned = np.diagonal(T[1:])
    seen = [j for t in tests if columns[t].unit == unit for j in places(columns, columns[t].name, "task", "seen")]
    return {
        "base": sign * _mean(T[0, same]),
        "learned": sign * _mean(learned[same[: len(learned)]]),
        "acc": sign * continual.average_accuracy(T),
        "seen": sign * _mean(oriented[-1, seen]),
        "aia": sign * continual.average_incremental_accuracy(T),
        "bwt": continual.backward_transfer(T),
        "forgetting": continual.forgetting(T),
        "fwt_base": continual.forward_transfer(T),
    }


def _task(R: Matrix, oriented: Matrix, columns: Sequence[Column], j: int, stage: int) -> dict[str, float]:
    values = {
        "base": R[0, j],
        "now": R[stage, j],
        "end": R[-1, j],
        "gained_now": oriented[stage, j] - oriented[0, j],
        "gained_end": oriented[-1, j] - oriented[0, j],
        "change": oriented[-1, j] - oriented[stage, j],
    }
    for k in places(columns, columns[j].name, "task", "seen"):
        values |= {"seen_base": R[0, k], "seen_now": R[stage, k], "seen_end": R[-1, k]}
    return values


def intervals_of(items: Sequence[Item], columns: Sequence[Column], order: Sequence[str]) -> dict[str, Any]:
    """95 % intervals over items: of every probe's change since the base, of every earlier task's since its stage."""
    metrics = {column.column: column.metric for column in columns}
    stages: dict[tuple[int, str], dict[str, Item]] = {}
    for item in items:
        if item.metric == metrics.get(item.column) and item.condition == ("base" if item.stage == 0 else "on"):
            stages.setdefault((item.stage, item.column), {})[item.item_id] = item
    last = len(order)
    found: dict[str, Any] = {"probes": {}, "tasks": {}}
    for column in columns:
        if column.role == "probe":
            group, start = "probes", 0
        elif column.split == "test" and column.name in order[:-1]:
            group, start = "tasks", order.index(column.name) + 1
        else:
            continue
        before, after = stages.get((start, column.column)), stages.get((last, column.column))
        if before and after:
            found[group][column.name] = _interval(before, after, column)
    return found


def _interval(before: Mapping[str, Item], after: Mapping[str, Item], column: Column) -> dict[str, Any]:
    if set(before) != set(after):
        raise DataError(
            f"{column.column!r} was scored on {len(before)} items at one stage and on others later.",
            "Both stages must have the same rows; run the recipe again into an empty folder.",
        )
    pairs = [(item, after[item_id]) for item_id, item in before.items()]
    interval = paired_difference(
        [column.sign * old.value for old, _ in pairs],
        [column.sign * new.value for _, new in pairs],
        [old.weight for old, _ in pairs],
        [new.weight for _, new in pairs],
        [old.cluster or old.item_id for old, _ in pairs],
        bounded=column.bounded,
    )
    return asdict(interval)


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
