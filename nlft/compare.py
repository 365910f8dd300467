"""A comparison: methods × learning rates × steps × seeds × orders, each a run of its own on the same rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import yaml
from rich.console import Console

from nlft.base import FrozenBase, load_base
from nlft.bracket import Added, rates_beyond
from nlft.cells import is_done, join_cells, note_failure, row_of
from nlft.checkpoint import holds_nothing, make_folder, write_text
from nlft.config import Recipe
from nlft.config.prefix import FOLDER
from nlft.data.domain import load_domains, remarks
from nlft.errors import CheckpointError, NlftError
from nlft.events import Events
from nlft.executor import Ended, Work, run_cells
from nlft.methods import build_method
from nlft.pace import expected, kind_of, measure_pace, train_tokens
from nlft.plan import Cell, addressed, plan_cells
from nlft.prefix_store import PrefixStore
from nlft.prepare import Prepared, digest_rows, prepare
from nlft.progress import Progress, counted
from nlft.ray_executor import import_ray, run_on_ray
from nlft.recipes import dump_recipe
from nlft.report import write_report
from nlft.run import naming
from nlft.scoring import measure
from nlft.start import announcement, check_methods, find_start
from nlft.workers import begin_imports

Executor = Literal["local", "ray"]


def compare(
    recipe: Recipe,
    out: Path,
    *,
    jobs: int | None = None,
    executor: Executor = "local",
    dry_run: bool = False,
    console: Console | None = None,
) -> Path:
    """Runs every cell of a comparison and writes one report over all.

    A cell's folder is named by everything that decides its result, so a finished one is never run again, after an
    interruption or with a recipe that has been edited; the report holds the cells of the recipe as it is now. A cell
    that fails (a diverged run) is recorded with its reason and does not stop the others.

    Args:
        jobs: cells that run side by side; 1 when None, and on Ray one for each GPU or core of the cluster.
        executor: "local" processes, or the tasks of a "ray" cluster.
        dry_run: say what would run and how long it would take, and write nothing.

    Raises:
        NlftError: the folder holds something else, or results cannot be written.
    """
    console, out = console or Console(quiet=True), out.resolve()
    if not holds_nothing(out, but_states=True) and not (out / "cells").is_dir():
        raise NlftError(f"{out} holds another run, and no comparison.", "Give another folder with --out.")
    name = name_in(out)
    if name not in (None, recipe.name):
        raise NlftError(
            f"{out} holds the comparison of another recipe, called {name!r} and not {recipe.name!r}.",
            "Give another folder with --out; an edited recipe goes on in its folder as long as it keeps its name.",
        )
    if executor == "ray":
        import_ray()
    origin = find_start(recipe)
    if origin is not None:
        recipe = recipe.model_copy(update={"adapter": origin.start.name})
    domains = load_domains(recipe)
    for line in (*domains.descriptions, *remarks(domains)):
        console.print(line, style="dim", markup=False, highlight=False)
    changing = set()
    for name, method in recipe.methods.items():
        with naming(name):
            if build_method(method).changes_base:
                changing.add(name)
    base = load_base(recipe.base)
    prepared = prepare(recipe, domains, base, origin.start.number if origin else 0)
    if origin is not None:
        check_methods(recipe, origin, base)
        console.print(*announcement(recipe, origin, domains), sep="\n", markup=False, highlight=False, soft_wrap=True)

    def plan(added: list[Added]) -> list[Cell]:
        rates = {one.method: [other.lr for other in added if other.method == one.method] for one in added}
        cells = plan_cells(recipe, rates)
        adapter = origin.start.digest if origin else ""
        return addressed(cells, fingerprint, lambda order: digest_rows(domains.in_order(order)), adapter)

    fingerprint, base_name = base.fingerprint, base.name
    cells = plan([])
    seconds = announce(cells, out, recipe, base, prepared, jobs or int(executor == "local"), console)
    if dry_run:
        return out
    if seconds and executor == "local" and (jobs or 1) > 1:
        begin_imports()  # not sooner: the warm-up that judges the time would share its cores
    make_folder(out / "cells")
    write_text(out / "config.yaml", dump_recipe(recipe))
    Events(out / "events.jsonl").write("start", cwd=os.getcwd())
    # Methods that train the base compute in float32, so its row is the shared one only if that was float32 too.
    own = frozenset() if base.model.dtype.itemsize == 4 else frozenset(changing)
    items = None  # of an adapter, each cell scores what it starts from
    if origin is None:
        items = measure(base.model, base, recipe, prepared, 0, "base") if seconds or recipe.compare.widen else []
    del base, prepared
    store = PrefixStore(out / FOLDER, recipe.prefix, shared=executor == "ray" or (jobs or 1) > 1)
    work, added = Work(out, domains, items, own, store), []
    for number in range(recipe.compare.widen + 1):
        run_todo(cells, work, seconds, jobs, executor, console, base_name, fingerprint)
        rows = join_cells(out, cells)
        found = rates_beyond(recipe, out, rows) if number < recipe.compare.widen else []
        if not found:
            break
        for one in found:
            console.print(
                f"Added {one.method} lr {one.lr:g}: {one.why}.", markup=False, highlight=False, soft_wrap=True
            )
        added += found
        cells = plan(added)
    others = {path.name for path in (out / "cells").glob("*")} - {cell.name for cell in cells}
    if others:
        line = f"{counted(len(others), 'other run')} in the folder: not of this plan, kept, and not reported."
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    write_text(out / "added.json", json.dumps([asdict(one) for one in added], indent=1))
    store.remove()
    write_report(out)
    return out


def name_in(out: Path) -> str | None:
    """The name of the recipe whose comparison a folder holds; None if it does not say."""
    try:
        found = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return found.get("name") if isinstance(found, dict) else None


def announce(
    cells: list[Cell],
    out: Path,
    recipe: Recipe,
    base: FrozenBase,
    prepared: Prepared,
    jobs: int,
    console: Console,
) -> float:
    """Says what will run, how much it is and how long it may take; gives the expected seconds.

    Args:
        jobs: cells side by side; 0 when only a cluster knows.
    """
    todo = [cell for cell in cells if not is_done(cell, out / "cells" / cell.name)]
    size = sum(parameter.numel() for parameter in base.model.parameters())
    tasks = len(recipe.tasks)
    what = f"{counted(len(cells), 'run')} of {counted(tasks, 'task')}"
    lines = [f"{what} on {base.name} ({size:,} parameters, context {base.context})."]
    for method in recipe.methods:
        own = [cell for cell in cells if cell.method == method]
        rates = ", ".join(dict.fromkeys(f"{cell.lr:g}" for cell in own if cell.lr))
        kinds = {kind: sum(cell.setting == kind for cell in own) for kind in ("sequence", "single", "multitask")}
        parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        steps = ", ".join(dict.fromkeys(str(cell.steps) for cell in own if cell.setting == "sequence"))
        lines.append(f"  {method}: {parts}; {f'lr {rates}; ' if rates else ''}{steps} steps a task")
    if len(todo) < len(cells):
        lines.append(f"{len(cells) - len(todo)} of them are done already.")
    seconds = 0.0
    if todo:
        walls = finished_walls(cells, out)
        span = expected(todo, walls, measure_pace(base, recipe, prepared), jobs or 1)
        known = sum(kind_of(cell) in walls for cell in todo)
        basis = f"finished runs of the same methods for {known} of {counted(len(todo), 'run')}, " if known else ""
        tokens = train_tokens(todo, prepared)
        lines.append(f"To run: {counted(len(todo), 'run')}, {tokens:,} train tokens, {span}, {jobs or 1} at a time.")
        lines.append(f"Judged from {basis}a warm-up of three batches and a part of the scoring.")
        seconds = span.value
    if recipe.compare.widen:
        lines.append(f"Up to {counted(recipe.compare.widen, 'round')} of further learning rates may follow.")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return seconds


def finished_walls(cells: list[Cell], out: Path) -> dict[str, list[float]]:
    """Seconds of the finished cells, by kind."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        row = row_of(cell, out / "cells" / cell.name)
        if row and row["status"] == "ok" and row["wall_s"]:
            found.setdefault(kind_of(cell), []).append(row["wall_s"])
    return found


def run_todo(
    cells: list[Cell],
    work: Work,
    seconds: float,
    jobs: int | None,
    executor: Executor,
    console: Console,
    base_name: str,
    base_sha256: str,
) -> None:
    """Runs the cells that are not done, and notes the failures in their folders.

    Raises:
        CheckpointError: results could not be written.
    """
    todo = [cell for cell in cells if not is_done(cell, work.out / "cells" / cell.name)]
    if not todo:
        return
    quiet = Console(quiet=True) if console.is_terminal else console
    ends: Iterator[Ended]
    if executor == "ray":
        ends = run_on_ray(todo, work, jobs, quiet)
    else:
        ends = run_cells(todo, work, min(jobs or 1, len(todo)), quiet)
    with Progress(cells, todo, work.out, seconds, console) as progress:
        for end in ends:
            if end.disk_hint is not None:
                raise CheckpointError(end.problem, end.disk_hint)
            folder = work.out / "cells" / end.cell.name
            problem = end.problem
            if not problem and row_of(end.cell, folder) is None:
                problem = "Its results cannot be read."
            if problem:
                note_failure(end.cell, folder, problem, base_name, base_sha256)
            progress.note(end)
