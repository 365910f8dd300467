"""The runs of a comparison, one at a time: what each is, and running it where an interrupted call stopped."""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from nlft.config import Recipe
from nlft.data.domain import Domains
from nlft.errors import NlftError
from nlft.measure.items import read_runs
from nlft.run import run_method


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    name: str
    method: str
    recipe: Recipe
    """The recipe with this method, learning rate, seed and order alone."""


def plan_cells(recipe: Recipe) -> list[Cell]:
    """Every run of a comparison, in a fixed order."""
    cells = []
    orders = recipe.compare.orders or [[task.name for task in recipe.tasks]]
    tasks = {task.name: task for task in recipe.tasks}
    for number, order in enumerate(orders):
        for seed in recipe.compare.seeds:
            for method, config in recipe.methods.items():
                for lr in config.lrs:
                    seeds = recipe.train.seeds
                    moved = {field: getattr(seeds, field) + seed for field in type(seeds).model_fields}
                    update = {
                        "tasks": [tasks[name] for name in order],
                        "methods": {method: config.model_copy(update={"lr": lr})},
                        "train": recipe.train.model_copy(update={"seeds": seeds.model_copy(update=moved)}),
                    }
                    name = f"{method}-lr{lr:g}-seed{seed}-order{number}".replace(" ", "_")
                    cells.append(Cell(name, method, recipe.model_copy(update=update)))
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise NlftError(f"Two runs of the comparison would be {twice!r}.", "List every rate, seed and order once.")
    return cells


def is_done(folder: Path) -> bool:
    """Whether a cell has been run to its end."""
    return (folder / "runs.parquet").is_file() and read_runs(folder / "runs.parquet")[0]["status"] == "ok"


def run_cell(cell: Cell, folder: Path, domains: Domains, base_items: list | None, console: Console) -> None:
    """Runs one cell, going on where an interrupted call stopped."""
    resume = (folder / "stages" / "0" / "stage.json").is_file()
    if folder.exists() and not resume:
        shutil.rmtree(folder)
    order = [task.name for task in cell.recipe.tasks]
    try:
        run_method(
            cell.recipe,
            cell.method,
            folder,
            resume=resume,
            console=console,
            domains=domains.in_order(order),
            base_items=base_items,
            keep_stages=False,
            report=False,
        )
    except torch.OutOfMemoryError as error:
        raise NlftError("The GPU ran out of memory.", "Lower train.micro_batch_size or measure.batch_size.") from error
    finally:
        # Models hold cycles; without this the next cell's model is loaded on top of this one's.
        gc.collect()
        torch.cuda.empty_cache()


def failed_row(cell: Cell, reason: str, base_model: str, base_sha256: str) -> dict:
    """The row of `runs.parquet` of a cell that failed; what was not measured is null."""
    config = cell.recipe.methods[cell.method]
    return {
        "run_id": cell.name,
        "method": cell.method,
        "kind": config.kind,
        "lr": config.lrs[0],
        "seed": cell.recipe.train.seeds.data,
        "order": [task.name for task in cell.recipe.tasks],
        "base_model": base_model,
        "base_sha256": base_sha256,
        "config": config.model_dump_json(),
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "status": f"failed: {reason}",
    }
