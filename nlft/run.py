"""A run: one method learns the tasks of a recipe one after another, and is measured after each."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from nlft.base import choose_device, load_base, named_tensors, without_adapter
from nlft.checkpoint import disk_error, finished_stages, make_folder, write_folder, write_text
from nlft.config import Recipe
from nlft.config.prefix import FOLDER
from nlft.data.domain import Domains, load_domains, remarks
from nlft.dissect.findings import dissect, facts_of
from nlft.dissect.study import Study
from nlft.distributed import check_same_run, join_processes, leads, shards_base, take_from_first, wait_for_all, world
from nlft.errors import NlftError, reason
from nlft.events import Events
from nlft.frozen_prefix import install_prefix, prefix_remarks
from nlft.measure.items import write_items, write_runs
from nlft.methods import build_method
from nlft.origin import read_start
from nlft.plan import single_method
from nlft.prefix_store import PrefixStore
from nlft.premises import check_folder
from nlft.prepare import prepare
from nlft.recipes import dump_recipe
from nlft.report import write_report
from nlft.scoring import measure
from nlft.sharding import check_method, shared_out
from nlft.stage import Stage, check_inputs, read_stages, save_stage, undamaged
from nlft.start import announcement, as_base, as_begun, begin, check_methods, find_start
from nlft.train import train_stage
from nlft.types import Item
from nlft.witness import latency_ratio, logits_digest, off_digest, row_of


def run_method(
    recipe: Recipe,
    method: str | None,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
    domains: Domains | None = None,
    base_items: list[Item] | None = None,
    keep_stages: bool = True,
    report: bool = True,
    setting: str = "sequence",
    cell: str | None = None,
    store: PrefixStore | None = None,
) -> Path:
    """Trains and measures one method of a recipe.

    Args:
        recipe: the recipe; only `method` of its methods is run.
        method: name of the method; may be None if the recipe has one.
        out: result folder; must not hold another run.
        resume: go on after the last complete stage of the same run in `out`.
        domains: rows already read (a comparison reads them once).
        base_items: scores of the base already taken on these rows.
        keep_stages: keep the checkpoint of every stage; else only the final adapter.
        report: write summary, report and figures.
        setting: as in `runs.parquet`; "multitask" learns all tasks at once, as one stage.
        cell: content address, for `runs.parquet`.
        store: where the states of frozen prefixes are kept that several runs share; the run's own when None.

    Returns:
        The result folder.

    Raises:
        NlftError: anything a user can mend; found before anything is written wherever possible.
    """
    console, out = console or Console(quiet=True), out.resolve()
    recipe, name = single_method(as_begun(recipe, out) if resume else recipe, method)
    join_processes(choose_device(recipe.base.device))
    if leads():
        check_folder(out, recipe, resume)
    else:
        console = Console(quiet=True)
    # With a sharded base no process may find what others still compute, for they would wait for it.
    kept = store or PrefixStore(None if shards_base() else out / FOLDER, recipe.prefix, shared=world() > 1)
    try:
        _run(recipe, name, out, resume, console, domains, base_items, keep_stages, report, setting, cell, kept)
    except Exception:  # an interrupted run will go on with what is kept, and is none of these
        if store is None:
            kept.remove()
        raise
    if store is None and leads():
        kept.remove()
    return out


def _run(
    recipe: Recipe,
    name: str,
    out: Path,
    resume: bool,
    console: Console,
    domains: Domains | None,
    base_items: list[Item] | None,
    keep_stages: bool,
    report: bool,
    setting: str,
    cell: str | None,
    kept: PrefixStore,
) -> None:
    """`run_method` in a folder that is its own; no process ends before the others."""
    started = time.perf_counter()
    done = finished_stages(out) if resume else []
    check_same_run(len(done), dump_recipe(recipe))
    found = None if done else find_start(recipe)
    started_from = read_start(out) if done else found.start if found else None
    first = started_from.number if started_from else 0
    if domains is None:
        domains = load_domains(recipe)
        for line in (*domains.descriptions, *remarks(domains)):
            console.print(line, style="dim", markup=False, highlight=False)
    with naming(name):
        learner = build_method(recipe.methods[name])
    check_method(learner.changes_base, name)
    base = shared_out(load_base(recipe.base), recipe.base)
    prepared = prepare(recipe, domains, base, first)
    if found is not None:
        recipe = recipe.model_copy(update={"adapter": found.start.name})
        check_methods(recipe, found, base)
        console.print(*announcement(recipe, found, domains), sep="\n", markup=False, highlight=False, soft_wrap=True)
    units = [*prepared.train.values(), prepared.background]
    if setting == "multitask":
        prepared = prepared.joined()
        domains = prepared.domains
    witness = logits_digest(base.model, base, prepared)
    keep_constants = partial(
        install_prefix, fingerprint=base.fingerprint, config=recipe.prefix, store=kept, units=units
    )
    inputs: dict[str, Any] = {"base_sha256": base.fingerprint, "rows_sha256": prepared.rows_sha256}
    events = Events(out / "events.jsonl" if leads() else None)
    start = {"method": name, "base": base.name, "fingerprint": base.fingerprint, "resume": resume, "cwd": os.getcwd()}
    if started_from is not None:
        inputs["start"] = start["start"] = asdict(started_from)
    saved = started
    if done:
        check_inputs(out / "stages" / "0" / "stage.json", inputs)
        stages = read_stages([out / "stages" / "0", *done])
        with undamaged(done[-1]):
            model = learner.load(base, done[-1] / "model")
        keep_constants(model)
        events.write("start", **start)
        console.print(f"Going on after stage {len(done)} of {len(domains.tasks)}.")
    else:
        # What a recipe's method gets wrong is found here, and what its rows get wrong in the first scoring; nothing
        # is written before. A method that trains the base has put it into float32, the dtype of all its scores.
        with naming(name):
            model = begin(learner, base, found) if found else learner.attach(base, recipe.train.seeds.init)
        keep_constants(model)
        if leads():
            make_folder(out)
        begun = time.perf_counter()
        if found is not None:  # row 0 is what one starts from, so with the adapter on
            base_items = as_base(measure(model, base, recipe, prepared, 0, "on", learner))
        elif base_items is None:
            with nullcontext() if learner.changes_base else without_adapter(model):
                base_items = measure(model, base, recipe, prepared, 0, "base")
        now = time.perf_counter()
        stages = [Stage("base", base_items, None, now - begun, now - saved)]
        if leads():
            write_text(out / "config.yaml", dump_recipe(recipe))
        events.write("start", **start)
        if leads():
            save_stage(out, 0, stages[0], inputs, None)
        saved = now

    for stage, task in enumerate(domains.tasks, start=1):
        if stage <= len(done):
            continue
        events.write("stage", stage=stage, task=task.name)
        begun = time.perf_counter()
        keep_constants(model)  # afresh, as for a resumed run
        learner.begin_task(model, prepared.context(recipe, base, stage, first))
        take_from_first(one for key, one in named_tensors(model) if key not in base.names)
        preparing = time.perf_counter() - begun
        cost = train_stage(
            model,
            learner,
            prepared.train[task.name],
            recipe.train,
            steps=recipe.methods[name].step_counts(recipe.train.steps)[0],
            lr=recipe.methods[name].lrs[0],
            pad_id=prepared.pad_id,
            stage=stage,
            label=f"{name}: {task.name}",
            events=events,
            console=console,
            learned=first,
        )
        begun = time.perf_counter()
        learner.end_task(model)
        cost = replace(cost, preparing=preparing + time.perf_counter() - begun, **learner.held_bytes())
        begun = time.perf_counter()
        last = stage == len(domains.tasks)
        scores = []
        for condition in ("on", *(recipe.measure.conditions if last else ())):
            scores += measure(model, base, recipe, prepared, stage, condition, learner)
        if last and setting == "sequence" and (recipe.measure.conditions or recipe.measure.dissect):
            study = Study(learner, model, base, recipe, prepared, stage)
            scores += dissect(study, recipe.measure.dissect, out / "dissect.json")
        now = time.perf_counter()
        stages.append(Stage(task.name, scores, cost, now - begun, now - saved))
        if leads():
            save_stage(out, stage, stages[-1], {}, partial(learner.save, model))
        saved = now
        events.write("measured", stage=stage, task=task.name, **asdict(cost))
        took = "without a step"
        if cost.steps:
            took = f"in {cost.seconds:.0f} s ({cost.tokens / cost.seconds:,.0f} tok/s), loss {cost.final_loss:.3f}"
        console.print(f"{name}: {task.name} learned {took}", highlight=False)
        for line in prefix_remarks(model):
            console.print(line, style="dim", markup=False, highlight=False)

    unchanged = None if learner.changes_base else base.is_unchanged(model)
    off_equals_base = None if learner.changes_base else off_digest(model, base, prepared) == witness
    changed = unchanged is False or off_equals_base is False
    facts = {
        "setting": setting,
        "cell": cell,
        "start": json.dumps(asdict(started_from)) if started_from else None,
        "base_unchanged": unchanged,
        "off_equals_base": off_equals_base,
        "latency_ratio": None if learner.changes_base else latency_ratio(model, base, prepared),
    }
    if changed:
        facts["status"] = f"failed: the base was changed (weights equal {unchanged}, off equals base {off_equals_base})"
    if leads():
        if not learner.changes_base:
            write_folder(out / "adapter", lambda folder: learner.save(model, folder), "The adapter")
        wall_s = sum(stage.wall_s for stage in stages) + time.perf_counter() - saved
        row = row_of(recipe, name, base, prepared.domains, learner, stages, out, wall_s)
        try:
            write_items(out / "items.parquet", out.name, [item for stage in stages for item in stage.items])
            write_runs(out / "runs.parquet", [row | {"dissect": facts_of(out)} | facts])
            if not keep_stages:
                shutil.rmtree(out / "stages")
            if report:
                write_report(out)
        except OSError as error:
            raise disk_error(error, out, "The results") from error
    events.write("end", base_unchanged=unchanged, off_equals_base=off_equals_base)
    wait_for_all()
    if changed:
        raise NlftError(
            f"The base was changed by {name!r} (weights equal: {unchanged}, off equals base: {off_equals_base}).",
            "This is a bug in nlft or in the adapter's code; the results stand, the adapter should not be used.",
        )


@contextmanager
def naming(method: str) -> Iterator[None]:
    """Puts a method's key before what its settings get wrong.

    Raises:
        NlftError: also for what a library says about them.
    """
    try:
        yield
    except NlftError as error:
        raise NlftError(f"methods.{method}: {error.message}", error.hint) from error
    except (TypeError, ValueError, LookupError, AttributeError, NotImplementedError, ArithmeticError) as error:
        raise NlftError(
            f"methods.{method}: its settings do not fit this base: {reason(error)}", f"Correct methods.{method}."
        ) from error
