"""The runs of a comparison on disk, one folder each: running one where it stopped, and how it ended."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from rich.console import Console

from nlft.base import UNREADABLE
from nlft.data.domain import Domains
from nlft.errors import DamagedError, NlftError
from nlft.measure.items import join_results, read_runs, write_runs
from nlft.plan import Cell
from nlft.prefix_store import PrefixStore
from nlft.recipes import dump_recipe
from nlft.run import run_method
from nlft.types import Item

DIVERGED = "training diverged"
"""What `train.py` says of a loss or weights that are no longer finite. Such an end is a result: it would come again."""


def run_cell(
    cell: Cell,
    folder: Path,
    domains: Domains,
    base_items: list[Item] | None,
    console: Console,
    store: PrefixStore | None = None,
) -> None:
    """Runs one cell, going on where an interrupted call stopped; from the start if what that left is damaged.

    Raises:
        NlftError: the run failed; CheckpointError if its results could not be written.
    """
    resume = (folder / "stages" / "0" / "stage.json").is_file() and is_own(folder / "config.yaml", cell)
    try:
        _run(cell, folder, domains, base_items, console, store, resume)
    except DamagedError:
        _run(cell, folder, domains, base_items, console, store, resume=False)


def _run(
    cell: Cell,
    folder: Path,
    domains: Domains,
    base_items: list[Item] | None,
    console: Console,
    store: PrefixStore | None,
    resume: bool,
) -> None:
    if folder.exists() and not resume:
        shutil.rmtree(folder)
    try:
        run_method(
            cell.recipe,
            cell.method,
            folder,
            resume=resume,
            console=console,
            domains=domains,
            base_items=base_items,
            keep_stages=False,
            report=False,
            setting=cell.setting,
            cell=cell.address,
            store=store,
        )
    except torch.OutOfMemoryError as error:
        raise NlftError("The GPU ran out of memory.", "Lower train.micro_batch_size or measure.batch_size.") from error
    finally:
        # Models hold cycles; without this the next cell's model is loaded on top of this one's.
        gc.collect()
        torch.cuda.empty_cache()


def is_own(config: Path, cell: Cell) -> bool:
    """Whether a recipe on disk is this cell's, whole and readable."""
    try:
        return config.read_text(encoding="utf-8") == dump_recipe(cell.recipe)
    except (OSError, ValueError):
        return False


def row_of(cell: Cell, folder: Path) -> dict[str, Any] | None:
    """The cell's line of `runs.parquet`, if it has come to an end and its results can be read."""
    try:
        (row,) = read_runs(folder / "runs.parquet")
        if row["cell"] != cell.address or row["run_id"] != folder.name:
            return None
        if row["status"] == "ok":
            pq.read_table(folder / "items.parquet")
        return row
    except (NlftError, *UNREADABLE):
        return None


def is_done(cell: Cell, folder: Path) -> bool:
    """Whether a cell need not be run again: it ended well, or diverged, which it would again."""
    row = row_of(cell, folder)
    return row is not None and (row["status"] == "ok" or has_diverged(row))


def has_diverged(row: Mapping[str, Any]) -> bool:
    """Whether a run ended in a loss or in weights that are not finite."""
    return DIVERGED in (row["status"] or "")


def note_failure(cell: Cell, folder: Path, reason: str, base_model: str, base_sha256: str) -> None:
    """Writes the line of a cell that failed into its folder; what was not measured is null.

    A cell that diverged will not be gone on with, so its stages go.
    """
    config = cell.recipe.methods[cell.method]
    tasks = [task.name for task in cell.recipe.tasks]
    row = {
        "run_id": folder.name,
        "method": cell.method,
        "kind": config.kind,
        "lr": cell.lr,
        "seed": cell.recipe.train.seeds.data,
        "order": ["+".join(tasks)] if cell.setting == "multitask" else tasks,
        "base_model": base_model,
        "base_sha256": base_sha256,
        "config": config.model_dump_json(),
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "status": f"failed: {reason}",
        "setting": cell.setting,
        "cell": cell.address,
    }
    (folder / "runs.parquet").unlink(missing_ok=True)
    write_runs(folder / "runs.parquet", [row])
    if has_diverged(row):
        shutil.rmtree(folder / "stages", ignore_errors=True)


def join_cells(out: Path, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Writes the results of these cells, and of no other in the folder, as one; gives their lines."""
    rows = [row for cell in cells if (row := row_of(cell, out / "cells" / cell.name)) is not None]
    well = [out / "cells" / row["run_id"] for row in rows if row["status"] == "ok"]
    join_results(out, well, [row for row in rows if row["status"] != "ok"])
    return rows
