"""What is exported: a run, a cell of a comparison, or an adapter; and what cannot be exported or merged, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nlft.adapter import adapter_folder, read_config
from nlft.checkpoint import finished_stages
from nlft.config import Recipe
from nlft.errors import NlftError
from nlft.found_recipe import EXPORTED, beside
from nlft.manifest import FILE, sha256_of, whole_manifest
from nlft.measure.items import read_runs
from nlft.methods import build_method
from nlft.methods.task_lora import TASKS
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.lifecycle import kind_of
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.task import TaskPeftConfig
from nlft.remote import CONFIG, WEIGHTS
from nlft.rescore import weights_of

INSTEAD = (
    "Keep the adapter beside the base: `nlft export RUN DIR` writes a folder that PEFT loads in two lines, and"
    " `unload()` gives the base back. Distilling it into weights is not offered."
)


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
    same: bool | None = None
    """The adapter is the one that was measured; None where its run did not note which that was."""


def find_cargo(path: str | Path, console: Console | None = None) -> Cargo:
    """Finds the adapter of a folder.

    Args:
        path: a result folder of `nlft train`, a cell of a comparison, or an adapter's folder, which then comes without
            results: it may have been changed since its run was measured.

    Raises:
        NlftError: there is none, or what the run learned is no adapter.
    """
    folder = Path(path).expanduser().resolve()
    refuse_exported(folder)
    found = beside(folder, console)
    if found is None or (folder / CONFIG).is_file():
        check_single(folder)
        weights = folder if (folder / CONFIG).is_file() else weights_of(folder)
        check_single(weights)
        weights = adapter_folder(weights)
        check_type(weights)
        homes = [weights] * (weights / EXPORTED).is_file() + [weights.parent] * (weights.name == "adapter")
        file, recipe = (beside(homes[0], console) if homes else None) or (None, None)
        return Cargo(folder, weights, recipe, file, None)
    file, recipe = found
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
    check_type(weights)
    return Cargo(folder, weights, recipe, file, row, is_measured(folder, weights, row))


def refuse_exported(folder: Path) -> None:
    """Refuses an exported directory.

    Raises:
        NlftError: it is one, or was one before it was changed.
    """
    try:
        if whole_manifest(folder) is None:
            return
    except NlftError as error:
        said = f"If you have changed it, delete {folder / FILE}: then it is an adapter that comes without results."
        raise NlftError(error.message, said) from error
    raise NlftError(
        f"{folder} is an exported adapter already.",
        "Copy it or push it as it is; in another --dtype, export the run that it was made from.",
    )


def check_type(weights: Path) -> None:
    """Refuses adapters that are tokens before the text.

    Raises:
        NlftError: naming the kind.
    """
    config = read_config(weights)
    if config.is_prompt_learning:
        raise NlftError(
            f"{weights} is a {kind_of(config)} adapter, which puts learned states before the text; the check that an"
            " exported adapter computes what it computed here compares every token, so it cannot be exported.",
            "Give the folder away as PEFT has written it.",
        )


def is_measured(folder: Path, weights: Path, row: Mapping[str, Any]) -> bool | None:
    """Whether the adapter of a run is the one that its scores are of: by the sha256 in the run's line, or in runs of
    older versions by the checkpoint of its last stage.

    Returns:
        None where neither is there.

    Raises:
        NlftError: it is another one.
    """
    noted, stages = row["adapter_sha256"], finished_stages(folder)
    if noted is None and stages and (last := stages[-1] / "model" / WEIGHTS).is_file():
        noted = sha256_of(last)
    if noted is None or not (weights / WEIGHTS).is_file():
        return None
    if noted != sha256_of(weights / WEIGHTS):
        raise NlftError(
            f"The adapter in {weights} is not what was measured: it was changed after its run, as `nlft tune`,"
            f" `nlft prune` and `nlft tasks` do in place, so the scores in {folder} are those of another one.",
            f"Score it as it is: nlft eval {folder}. Export it alone, without those scores: nlft export {weights} DIR.",
        )
    return True


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
        hint = (
            f"Its weights are a whole model, and nothing to export. A comparison does not keep them: `nlft train"
            f" {folder / 'config.yaml'} --out FOLDER` trains them again, into FOLDER/stages, where base.model can name"
            " them."
        )
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


def check_linear(source: str, weights: Path) -> None:
    """Refuses an adapter that no weight of the base can stand for.

    Raises:
        NlftError: with the reason and what to do instead.
    """
    config = read_config(weights) if (weights / CONFIG).is_file() else None
    why = None if config is None else why_not(config)
    if why is not None:
        raise NlftError(f"{source} cannot be merged: {why}.", INSTEAD)


def why_not(config: Any) -> str | None:
    """Why the adapter is no change of the base's weights; None if it is one, or is not one of nlft's pathways."""
    if config.is_prompt_learning:
        return "it puts learned states before the text, which no weight does"
    if not isinstance(config, TaskPeftConfig):
        return None
    if isinstance(config, SparseMemoryPeftConfig):
        return "which of its slots speak is decided anew for every token that is read, and a weight is always the same"
    if isinstance(config, HopePeftConfig):
        return "its memory learns from the sequence that it reads, and a weight is always the same"
    if config.gate_layer is not None:
        return "it stands behind a gate, which is opened by what is read, and a weight is always on"
    if isinstance(config, CmsPeftConfig) and config.init == "pretrained":
        return None
    return "its levels are MLPs beside the base's blocks, with a nonlinearity of their own"
