"""How much sixteen tasks leave of each other and of the base, at growing and at fixed bytes.

    nlft compare proof-capacity --out runs/capacity/growing
    python eval/capacity.py run runs/capacity      # fixed bytes: 4,800 slots a layer shared by 2, 4, 8 or 16 tasks
    python eval/capacity.py table runs/capacity    # the table, from either's items

A finished run is not run again.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from nlft.compare import compare
from nlft.recipes import load_recipe

SLOTS = 4800
"""Slots a layer, whatever the number of tasks."""
COUNTS = (2, 4, 8, 16)


def run(out: Path) -> None:
    """Runs every number of tasks at fixed bytes."""
    recipe = load_recipe("proof-capacity", [])
    method = recipe.methods["prototype-inputs"]
    for count in COUNTS:
        name = f"fixed-{count}"
        changed = method.model_copy(update={"slots": SLOTS // count})
        part = recipe.model_copy(update={"name": name, "tasks": recipe.tasks[:count], "methods": {name: changed}})
        compare(part, out / name, console=Console())


def table(out: Path) -> None:
    """Prints, for every number of tasks T, what stage T of each run knows of its T tasks and of the base."""
    tasks = [task.name for task in load_recipe("proof-capacity", []).tasks]
    grid = Table("T", "run", "right after", "at stage T", "lost of earlier tasks", "facts lost")
    for count, path in itertools.product(COUNTS, sorted(out.glob("*/items.parquet"))):
        if path.parent.name not in ("growing", f"fixed-{count}"):
            continue
        items = pq.read_table(path).to_pylist()
        for name in sorted({row["run_id"] for row in items}):
            R = {stage: means(items, name, stage) for stage in range(count + 1)}
            if any(task not in R[count] for task in tasks[:count]) or (
                "fixed" in name and f"fixed-{count}-" not in name
            ):
                continue
            now = [R[number][task] for number, task in enumerate(tasks[:count], start=1)]
            end = [R[count][task] for task in tasks[:count]]
            lost = [a - b for a, b in zip(now[:-1], end[:-1], strict=True)]
            shares = (mean(now), mean(end), mean(lost), R[0]["facts"] - R[count]["facts"])
            grid.add_row(str(count), f"{path.parent.name}: {name}", *(f"{100 * share:.1f}" for share in shares))
    Console(width=120).print(grid)


def means(items: list[dict], run_id: str, stage: int) -> dict[str, float]:
    """Exact match of every column of a run at a stage."""
    found: dict[str, list[float]] = {}
    for row in items:
        if row["run_id"] == run_id and row["stage"] == stage and row["metric"] == "exact_match":
            found.setdefault(row["column"], []).append(row["value"])
    return {column: mean(values) for column, values in found.items()}


def mean(values: list[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / max(1, len(values))


if __name__ == "__main__":
    verb, folder = (*sys.argv[1:], "table", "runs/capacity")[:2]
    {"run": run, "table": table}[verb](Path(folder))
