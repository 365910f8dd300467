"""A comparison: methods × learning rates × seeds × orders, each a run of its own on the same rows."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from nlft.base import load_base
from nlft.cells import failed_row, is_done, plan_cells
from nlft.checkpoint import holds_nothing, make_folder, write_text
from nlft.config import Recipe
from nlft.data.domain import load_domains, remarks
from nlft.errors import CheckpointError, NlftError
from nlft.executor import Work, run_cells
from nlft.measure.items import join_results
from nlft.methods import build_method
from nlft.prepare import prepare
from nlft.recipes import dump_recipe
from nlft.report import write_report
from nlft.run import measure, naming
from nlft.stage import check_inputs


def compare(recipe: Recipe, out: Path, *, jobs: int = 1, console: Console | None = None) -> Path:
    """Runs every cell of a comparison and writes one report over all.

    Finished cells of an earlier, interrupted call are not run again. A cell that fails (a diverged run) is
    recorded with its reason and does not stop the others.

    Args:
        jobs: processes that run cells side by side.

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
    todo = [cell for cell in cells if not is_done(out / "cells" / cell.name)]
    if len(todo) < len(cells):
        console.print(f"{len(cells) - len(todo)} of them are done already.", highlight=False)
    # Full finetuning computes in float32, so its base row is the shared one only if that was float32 too.
    own = [] if float32 else [cell for cell in todo if recipe.methods[cell.method].kind == "full"]
    failures, ended = {}, 0
    for part, items in (([cell for cell in todo if cell not in own], base_items), (own, None)):
        for end in run_cells(part, Work(out, domains, items), min(jobs, len(part)), console) if part else ():
            ended += 1
            name = end.cell.name
            if end.disk_hint is not None:
                raise CheckpointError(end.problem, end.disk_hint)
            said = f" failed: {end.problem}" if end.problem else ""
            console.print(
                f"[{ended}/{len(todo)}] {name}{said}", style="red" if said else "", markup=False, highlight=False
            )
            if end.problem:
                failures[name] = failed_row(end.cell, end.problem, base_name, base_sha256)
    join_results(
        out,
        [out / "cells" / cell.name for cell in cells if cell.name not in failures],
        list(failures.values()),
    )
    write_report(out)
    return out
