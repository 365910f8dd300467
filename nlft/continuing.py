"""Going on: with a run where it stopped (resume), or with what it has learned and a further task (continue)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from nlft.adapter import adapter_folder, read_config
from nlft.compare import compare
from nlft.config import Recipe
from nlft.document import dump, parse
from nlft.errors import NlftError
from nlft.found_recipe import EXPORTED, own_recipe, recipe_file
from nlft.measure.items import read_runs
from nlft.origin import learned_tasks, parts_of
from nlft.premises import HOW, check_run, check_tasks, finished_line
from nlft.recipes import find_recipe, load_recipe, read_document
from nlft.remote import fetch_adapter, is_adapter_id
from nlft.run import run_method
from nlft.start import check_finished

PATHS = ("path", "model", "lm_eval", "metric")
"""Keys of a recipe whose values may be paths."""
SUFFIX = "-continued"


@dataclass(frozen=True)
class Learned:
    """What further tasks go on from."""

    name: str
    """As it was named."""
    adapter: Path
    """The adapter's folder."""
    tasks: list[str] | None
    """What it has learned; None if it does not say."""
    recipe: Recipe | None
    """Of the run that trained it, with paths that hold here; None if it brings none."""


def next_recipe(
    name: str,
    tasks: Sequence[str],
    overrides: list[str] | None = None,
    recipe: str | None = None,
    console: Console | None = None,
) -> Recipe:
    """The recipe of stage N+1: that of a finished run or adapter, with its tasks as earlier ones and new ones to learn.

    Everything else stays: base, method, probes, background, training. Thresholds of the new tasks are calibrated
    against the rows of earlier ones, whose tests are probes.

    Args:
        name: a result folder, an adapter's folder, or USER/NAME or USER/NAME@REVISION on the Hub.
        tasks: new tasks, each as `NAME=TRAIN,TEST` or a YAML file with a task's section or a whole recipe, of which
            those that have not been learned are taken.
        overrides: as `load_recipe` takes them.
        recipe: of what has been learned, in place of the one that lies beside it.

    Raises:
        RecipeError: with every problem of the new recipe.
        NlftError: there is nothing to go on from, or no new task.
    """
    check_tasks(list(tasks))
    found = find_learned(name, recipe, console)
    if found.recipe is None:
        raise NlftError(
            f"{name} brings no recipe, so neither its base's settings, its method nor its earlier tasks are known.",
            "Name the recipe that it was trained with: --recipe RECIPE.",
        )
    data = found.recipe.model_dump()
    known = [*data["earlier"], *data["tasks"]]
    if found.tasks is not None:
        parts = parts_of(found.tasks)
        known = [task for task in known if task["name"] in parts]
    learned = {task["name"] for task in known} | set(found.tasks or [])
    new = [task for text in tasks for task in sections_of(text, learned)]
    data |= {"name": called(name), "adapter": name, "earlier": known, "tasks": new, "out": None, "compare": {}}
    return read_document(parse(dump(data), f"the recipe that goes on from {name}"), overrides)


def find_learned(name: str, recipe: str | None, console: Console | None) -> Learned:
    """What lies in a run's or adapter's folder, or on the Hub.

    Args:
        recipe: in place of the one that lies there.

    Raises:
        NlftError: it is no finished run and no adapter.
    """
    there = fetch_adapter(name)
    check_finished(there, name)
    if (there / "config.yaml").is_file() and (there / "runs.parquet").is_file():
        [row, *others] = read_runs(there / "runs.parquet")
        if not others and row["status"] != "ok":
            raise NlftError(f"The run in {name} has the status {row['status']!r}.", "Go on from one that went well.")
    adapter = adapter_folder(there)
    tasks = learned_tasks(read_config(adapter))
    if recipe is not None:
        return Learned(name, adapter, tasks, load_recipe(recipe))
    places = [there, adapter, *([adapter.parent] if adapter.name == "adapter" else [])]
    file = next(filter(None, map(recipe_file, places)), None)
    if file is None:
        return Learned(name, adapter, tasks, None)
    own, home = own_recipe(file, console), begun_in(file.parent)
    if home is not None and home != Path.cwd() and file.name != EXPORTED:
        own = Recipe.model_validate(rooted(own.model_dump(), home))
    return Learned(name, adapter, tasks, own)


def whole_recipe(text: str) -> Recipe | None:
    """The recipe that a `--task` names; None if it names a task alone.

    Raises:
        RecipeError: there is no such file, or its recipe has mistakes.
    """
    if is_pair(text):
        return None
    section = read_section(text)
    return load_recipe(text) if isinstance(section, Mapping) and "tasks" in section else None


def sections_of(text: str, learned: set[str]) -> list[dict[str, Any]]:
    """The sections of the tasks that a `--task` names; of a recipe those that have not been learned.

    Raises:
        NlftError: it says too little, or nothing in it is new.
    """
    recipe = whole_recipe(text)
    if recipe is not None:
        new = [task.model_dump() for task in recipe.tasks if task.name not in learned]
        if not new:
            raise NlftError(f"--task {text}: every task of that recipe has been learned.", HOW)
        return new
    if not is_pair(text):
        section = read_section(text)
        if not isinstance(section, dict) or "train" not in section:
            raise NlftError(f"--task {text} holds neither a task's section nor a recipe.", HOW)
        return [section]
    name, _, files = text.partition("=")
    train, comma, test = files.rpartition(",")
    if not comma or not train or not test:
        raise NlftError(
            f"--task {text}: {name} has no test rows, and what is not tested is not known to be learned.",
            f"{HOW} Rows of one file are cut in two by `skip` and `limit` of a section.",
        )
    return [{"name": name, "train": train, "test": test}]


def is_pair(text: str) -> bool:
    """Whether a `--task` is `NAME=…` and no file."""
    return "=" in text and not Path(text).expanduser().is_file()


def read_section(text: str) -> Any:
    """What a YAML file holds.

    Raises:
        NlftError: there is none, or it is no YAML.
    """
    path = find_recipe(text)
    try:
        return parse(path.read_text(encoding="utf-8"), text).data
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NlftError(f"--task {text} cannot be read as YAML: {str(error).splitlines()[0]}.", HOW) from error


def called(name: str) -> str:
    """A name for the run that goes on: that of the folder or repository, and that it was continued."""
    place = name.partition("@")[0] if is_adapter_id(name) else str(Path(name).expanduser().resolve())
    last = Path(place).name if Path(place).name != "adapter" else Path(place).parent.name
    word = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-._") or "adapter"
    return word if word.endswith(SUFFIX) else word + SUFFIX


def rooted(node: Any, home: Path, key: str = "") -> Any:
    """A part of a recipe in which paths relative to a folder are absolute; what does not lie there stays."""
    if isinstance(node, Mapping):
        return {name: rooted(value, home, name) for name, value in node.items()}
    if isinstance(node, list):
        return [rooted(value, home, key) for value in node]
    if isinstance(node, str) and key in PATHS and node and not Path(node).expanduser().is_absolute():
        return str(home / node) if (home / node).exists() else node
    return node


def begun_in(folder: Path) -> Path | None:
    """The working directory in which a run or comparison was begun, if it is still there."""
    try:
        with (folder / "events.jsonl").open(encoding="utf-8") as file:
            place = json.loads(file.readline()).get("cwd")
    except (OSError, ValueError, AttributeError):
        return None
    return Path(place) if isinstance(place, str) and Path(place).is_dir() else None


def resume(name: str, jobs: int | None, console: Console) -> Path:
    """Goes on with a run or a comparison that was interrupted, exactly as it was begun.

    Paths in its recipe are taken from where it was begun, if that folder is still there.

    Args:
        name: its result folder.
        jobs: runs of a comparison that go side by side.

    Returns:
        The folder.

    Raises:
        NlftError: there is no run, or it asks for code that came with a model.
    """
    folder = Path(name).expanduser().resolve()
    check_run(folder, name)
    if (finished := finished_line(folder, name)) is not None:
        console.print(finished, markup=False, highlight=False, soft_wrap=True)
        return folder
    recipe = load_recipe(str(folder / "config.yaml"))
    if recipe.base.trust_remote_code:
        raise NlftError(
            f"{folder / 'config.yaml'} asks for base.trust_remote_code, which runs code that came with a model.",
            f"If you trust it, name the file: nlft train {folder / 'config.yaml'} --out {name} --resume.",
        )
    with working_in(begun_in(folder)):
        if (folder / "cells").is_dir():
            return compare(recipe, folder, jobs=jobs, console=console)
        return run_method(recipe, None, folder, resume=True, console=console)


@contextmanager
def working_in(folder: Path | None) -> Iterator[None]:
    """Works in another directory for a while; in this one if none is given."""
    before = Path.cwd()
    try:
        if folder is not None:
            os.chdir(folder)
        yield
    finally:
        os.chdir(before)


def continued_from(folder: Path) -> dict[str, Any] | None:
    """The adapter from which a finished run went on: `name` as its recipe has it, `revision` on the Hub or None, and
    `sha256` of its adapter_model.safetensors; None if the run started from the base alone.

    Raises:
        DataError: the folder holds no results.
    """
    rows = read_runs(folder / "runs.parquet")
    start = json.loads(rows[0]["start"] or "null") if rows else None
    return None if start is None else {key: start[key] for key in ("name", "revision", "sha256")}
