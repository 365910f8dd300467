"""An adapter's folder: found, read and checked without its base, and written so that what else lies there stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from peft import PeftConfig
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nlft.base import UNREADABLE
from nlft.checkpoint import PARTIAL, disk_error, holds_nothing, write_folder
from nlft.config import Recipe
from nlft.errors import CheckpointError, NlftError, reason
from nlft.pathways.layout import check_layout
from nlft.pathways.lifecycle import Adapter, kind_of, place_of
from nlft.pathways.task import TaskPeftConfig
from nlft.recipes import load_recipe

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""The files that PEFT writes."""
WHOLE = "Take a whole copy of the adapter."


def adapter_folder(path: str | Path) -> Path:
    """The folder with the adapter: the path itself, or `adapter` below it (a result folder of `nlft train`).

    Raises:
        NlftError: there is none.
    """
    folder = Path(path).expanduser().resolve()
    for candidate in (folder, folder / "adapter"):
        if (candidate / CONFIG).is_file():
            return candidate
    problem = f"it has no {CONFIG}" if folder.is_dir() else "there is no such folder"
    raise NlftError(
        f"{path} is no adapter: {problem}.", "Give an adapter's folder, or a result folder of `nlft train`."
    )


def read_config(folder: Path) -> PeftConfig:
    """Reads the settings of any PEFT adapter.

    Raises:
        CheckpointError: they cannot be read.
    """
    try:
        return PeftConfig.from_pretrained(str(folder))
    except UNREADABLE as error:
        raise CheckpointError(f"{folder / CONFIG} cannot be read: {reason(error)}", WHOLE) from error
    except NlftError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error.message}", error.hint) from error


def read_adapter(folder: Path, apart: bool = True) -> Adapter:
    """Reads an adapter without its base.

    Args:
        apart: refuse one whose tasks share one part.

    Raises:
        NlftError: it is not one of nlft's pathways.
        CheckpointError: it is damaged, or its tensors are not what its settings say.
    """
    config = read_config(folder)
    if not isinstance(config, TaskPeftConfig):
        raise NlftError(
            f"{folder} is a {kind_of(config)} adapter, which does not keep its tasks apart.",
            "Only adapters of sparse memory, gated LoRA and gated CMS have tasks to list, remove or join.",
        )
    if apart and not config.keeps_tasks_apart:
        raise NlftError(
            f"{folder} is a {kind_of(config)} adapter without a gate: what it holds is shared by all tasks, so none can"
            " be listed, removed, joined or tuned.",
            "Train it with `gate: prototype`, which gives every task a part of its own.",
        )
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder} has no {WEIGHTS}.", WHOLE)
    try:
        tensors = load_file(folder / WEIGHTS)
    except UNREADABLE as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {reason(error)}", WHOLE) from error
    found = {place.task for key in tensors if (place := place_of(key)) is not None}
    listed = len(config.tasks) if config.keeps_tasks_apart else len(found & {0})  # Hope's part has no number
    if found != set(range(listed)):
        raise CheckpointError(
            f"{folder} is damaged: {CONFIG} lists {listed} tasks, and {WEIGHTS} holds {len(found)}.", WHOLE
        )
    try:
        check_layout(config, tensors)
    except NlftError as error:
        raise CheckpointError(f"{folder} is damaged: {error.message}", WHOLE) from error
    return Adapter(config, tensors)


def write_adapter(
    adapter: Adapter, source: Path, out: Path | None = None, more: Callable[[Path], object] | None = None
) -> Path:
    """Writes an adapter in place of the one that it came from, or into a folder that holds nothing yet.

    In place only the settings, the tensors and what `more` writes are replaced, each whole or not at all. Into
    another folder the other files of `source` come along; folders and links do not.

    Args:
        source: folder that the adapter was read from.
        more: writes further files into the folder that it is given.

    Returns:
        The folder.

    Raises:
        NlftError: `out` holds something, or the folder is a checkpoint of a run.
        CheckpointError: the disk cannot be written.
    """
    folder = source if out is None else out.expanduser().resolve()

    def write(partial: Path) -> None:
        adapter.config.save_pretrained(str(partial))
        tensors = {key: tensor.contiguous() for key, tensor in adapter.tensors.items()}
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        if more is not None:
            more(partial)

    def write_all(partial: Path) -> None:
        for path in source.iterdir():
            if path.is_file() and not path.is_symlink() and path.name not in (CONFIG, WEIGHTS):
                shutil.copy2(path, partial)
        write(partial)

    if folder == source:
        check_no_stage(folder)
        replace_files(folder, write)
        return folder
    if not holds_nothing(folder):
        raise NlftError(f"{out} is not empty.", "Give another folder with --out.")
    write_folder(folder, write_all, "The adapter")
    return folder


def replace_files(folder: Path, write: Callable[[Path], object]) -> None:
    """Puts new files in the place of those of the same names; a file that is a link is replaced, not followed.

    All are on the disk before the first is put in place.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    partial = folder / f".nlft{PARTIAL}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        write(partial)
        files = sorted(partial.iterdir())
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        for path in files:
            os.replace(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise disk_error(error, folder, "The adapter") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_no_stage(folder: Path) -> None:
    """Refuses to change a checkpoint from which a run goes on.

    Raises:
        NlftError: it is one.
    """
    if (folder.parent / "stage.json").exists():
        raise NlftError(
            f"{folder} is a checkpoint of a run, from which `nlft train --resume` goes on.",
            "Name another folder with --out.",
        )


def own_recipe(file: Path, console: Console | None = None) -> Recipe:
    """The recipe that lies beside an adapter. Nobody has named it, so no code runs because it asks for that.

    Raises:
        RecipeError: it cannot be read.
    """
    recipe = load_recipe(str(file), [])
    if recipe.base.trust_remote_code and console is not None:
        console.print(
            f"{file} asks for base.trust_remote_code, which is left off: the file was found, not named. Name it with"
            " --recipe if you trust that code.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return recipe.model_copy(update={"base": recipe.base.model_copy(update={"trust_remote_code": False})})


def recipe_of(folder: Path, recipe: str | None, console: Console | None = None) -> Recipe | None:
    """The recipe that is named, else the one of the run that the adapter lies in, if it lies in one.

    Raises:
        RecipeError: it cannot be read.
    """
    if recipe is not None:
        return load_recipe(recipe)
    own = folder.parent / "config.yaml"
    return own_recipe(own, console) if folder.name == "adapter" and own.is_file() else None
