"""A comparison: methods × learning rates × seeds × orders, each a run of its own on the same rows."""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from nlft.base import load_base
from nlft.checkpoint import holds_nothing, make_folder, write_text
from nlft.config import Recipe
from nlft.data.domain import Domains, load_domains, remarks
from nlft.errors import CheckpointError, NlftError
from nlft.measure.items import join_results, read_runs
from nlft.methods import build_method
from nlft.prepare import prepare
from nlft.recipes import dump_recipe
from nlft.report import write_report
from nlft.run import measure, naming, run_method
from nlft.stage import check_inputs


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


def compare(recipe: Recipe, out: Path, *, console: Console | None = None) -> Path:
    """Runs every cell of a comparison and writes one report over all.

    Finished cells of an earlier, interrupted call are not run again. A cell that fails (a diverged run) is
    recorded with its reason and does not stop the others.

    Raises:
        NlftError: the folder holds another comparison, or one of other data or another base.
    """
    console, out = console or Console(quiet=True), out.resolve()
    config = out / "config.yaml"
    if not holds_nothing(out) and (not config.is_file() or config.read_text(encoding="utf-8") != dump_recipe(recipe)):
        raise NlftError(f"{out} holds another run or comparison.", "Give another folder with --out.")
    domains = load_domains(recipe)
    for line in (*domains.descriptions, *remarks(domains)):
        console.print(line, style="dim", markup=False, highlight=False)
    for name, method in recipe.methods.items():
        with naming(name):
            build_method(method)
    base = load_base(recipe.base)
    prepared = prepare(recipe, domains, base)
    cells = plan_cells(recipe)
    base_name, base_sha256 = base.name, base.fingerprint

    make_folder(out)
    inputs = {"base_sha256": base.fingerprint, "rows_sha256": prepared.rows_sha256}
    if (out / "inputs.json").is_file():
        check_inputs(out / "inputs.json", inputs)
    write_text(config, dump_recipe(recipe))
    write_text(out / "inputs.json", json.dumps(inputs))
    console.print(
        f"{len(cells)} runs of {len(recipe.tasks)} tasks on {base.name} "
        f"({sum(p.numel() for p in base.model.parameters()):,} parameters, context {base.context}).",
        highlight=False,
    )
    base_items = measure(base.model, base, recipe, prepared, 0, "base")
    float32 = base.model.dtype.itemsize == 4
    del base, prepared
    failures = {}
    for number, cell in enumerate(cells, start=1):
        folder = out / "cells" / cell.name
        if (folder / "runs.parquet").is_file() and read_runs(folder / "runs.parquet")[0]["status"] == "ok":
            console.print(f"[{number}/{len(cells)}] {cell.name}: done before.", markup=False, highlight=False)
            continue
        console.print(f"[{number}/{len(cells)}] {cell.name}", markup=False, highlight=False)
        # Full finetuning computes in float32, so its base row is the shared one only if that was float32 too.
        shared = base_items if float32 or recipe.methods[cell.method].kind != "full" else None
        try:
            run_cell(cell, folder, domains, shared, console)
        except CheckpointError:
            raise
        except NlftError as error:
            console.print(f"{cell.name} failed: {error}", style="red", markup=False, highlight=False)
            failures[cell.name] = failed_row(cell, str(error), base_name, base_sha256)
    join_results(
        out,
        [out / "cells" / cell.name for cell in cells if cell.name not in failures],
        list(failures.values()),
    )
    write_report(out)
    return out


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
