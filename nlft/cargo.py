"""What is exported: a run, a cell of a comparison, or a bare adapter; and what cannot be, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nlft.adapter import CONFIG, adapter_folder, recipe_of
from nlft.checkpoint import finished_stages
from nlft.config import Recipe
from nlft.errors import NlftError
from nlft.found_recipe import own_recipe
from nlft.measure.items import read_runs
from nlft.methods import build_method
from nlft.methods.task_lora import TASKS
from nlft.rescore import weights_of


@dataclass(frozen=True)
class Cargo:
    """An adapter, and what is known of it."""

    run: Path
    """The folder that was given."""
    weights: Path
    """PEFT's directory."""
    recipe: Recipe | None
    """Of its run, with one method; None for a bare adapter that lies in no run."""
    recipe_file: Path | None
    row: dict[str, Any] | None
    """Its line of `runs.parquet`; None where nothing was measured."""


def find_cargo(path: str | Path, console: Console | None = None) -> Cargo:
    """Finds the adapter of a folder.

    Args:
        path: a result folder of `nlft train`, a cell of a comparison, or an adapter's folder, which then comes without
            results: it may have been changed since its run was measured.

    Raises:
        NlftError: there is none, or what the run learned is no adapter.
    """
    folder = Path(path).expanduser().resolve()
    file = folder / "config.yaml"
    if not file.is_file():
        check_single(folder)
        weights = folder if (folder / CONFIG).is_file() else weights_of(folder)
        check_single(weights)
        weights = adapter_folder(weights)
        recipe = recipe_of(weights, None, console)
        return Cargo(folder, weights, recipe, weights.parent / "config.yaml" if recipe else None, None)
    recipe = own_recipe(file, console)
    check_kind(folder, recipe)
    weights = folder / "adapter" if (folder / "adapter").is_dir() else weights_of(folder)
    if not (folder / "runs.parquet").is_file():
        done = len(finished_stages(folder))
        raise NlftError(
            f"The run in {folder} is not finished: it has learned {done} of {len(recipe.tasks)} tasks.",
            f"Go on with `nlft train … --resume`, or export what there is: {weights}." if done else "Go on with it.",
        )
    check_single(weights)
    weights = adapter_folder(weights)
    rows = read_runs(folder / "runs.parquet")
    row = next((row for row in rows if row["run_id"] == folder.name), rows[0] if len(rows) == 1 else None)
    if row is None:
        raise NlftError(
            f"{folder / 'runs.parquet'} holds {len(rows)} runs, and none is called {folder.name!r}.",
            "Give one run's folder.",
        )
    if row["status"] != "ok":
        raise NlftError(f"The run in {folder} has the status {row['status']!r}.", "Export a run that has gone well.")
    return Cargo(folder, weights, recipe, file, row)


def check_kind(folder: Path, recipe: Recipe) -> None:
    """Refuses methods whose result is no single adapter.

    Raises:
        NlftError: with the reason and what to do.
    """
    if len(recipe.methods) != 1:
        raise NlftError(
            f"{folder} is a comparison of {len(recipe.methods)} methods.", f"Give one of its runs: {folder}/cells/NAME."
        )
    [(name, config)] = recipe.methods.items()
    stages = finished_stages(folder)
    model = stages[-1] / "model" if stages else None
    if config.kind in ("few_shot", "class_means"):
        kept = "examples in the prompt" if config.kind == "few_shot" else "means of the base's states"
        raise NlftError(
            f"{name!r} learns no weights: what it keeps are {kept}, which PEFT cannot load.",
            "Train a method that ends as an adapter, such as sparse_memory or lora.",
        )
    if build_method(config).changes_base:
        hint = "`nlft train` keeps the weights; a comparison does not."
        if model is not None and (model / "config.json").is_file():
            hint = (
                f"{model} is a whole model: give it as base.model, or copy the tokenizer beside it and upload it as"
                " one."
            )
        raise NlftError(f"{name!r} changed the base's own weights, so what it learned is no adapter beside it.", hint)


def check_single(folder: Path) -> None:
    """Refuses adapters that lie several in a folder, one a task.

    Raises:
        NlftError: naming their folders.
    """
    if (folder / TASKS).is_file():
        names = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
        raise NlftError(
            f"{folder} holds {len(names)} adapters, one for each task; an exported directory is one adapter.",
            f"Export them one by one: nlft export {folder / names[0]} DIR." if names else "",
        )
