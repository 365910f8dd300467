"""An adapter's folder: found, read and checked without its base, and written so that what else lies there stays."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from nlft.base import UNREADABLE
from nlft.checkpoint import PARTIAL, disk_error, holds_nothing, write_folder
from nlft.config import Recipe
from nlft.errors import CheckpointError, NlftError, reason
from nlft.found_recipe import EXPORTED, own_recipe, recipe_file
from nlft.pathways.header import WHOLE, check_config_file, read_header
from nlft.pathways.layout import check_layout
from nlft.pathways.lifecycle import Adapter, kind_of
from nlft.pathways.stranger import check_listed
from nlft.pathways.task import TaskPeftConfig, local_weights
from nlft.recipes import load_recipe
from nlft.remote import CONFIG, WEIGHTS


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
        kind = check_config_file(folder)["peft_type"]
    except NlftError as error:
        raise CheckpointError(error.message, error.hint) from error
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise CheckpointError(
            f"{folder / CONFIG}: peft_type {kind!r} is no kind of adapter that PEFT or nlft knows.",
            "Update both, or take another adapter.",
        )
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if isinstance(config, TaskPeftConfig):
            check_listed(config)
        return config
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
    check_tensors(folder, config)
    try:
        tensors = load_file(folder / WEIGHTS)
    except UNREADABLE as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged: {reason(error)}", WHOLE) from error
    try:
        check_layout(config, tensors)
    except NlftError as error:
        raise CheckpointError(f"{folder} is damaged: {error.message}", WHOLE) from error
    return Adapter(config, tensors)


def check_tensors(folder: Path, config: TaskPeftConfig) -> None:
    """Compares the header of an adapter's tensors with its settings, before anything is read into memory.

    Raises:
        CheckpointError: there is no such file, it is damaged, or its names, shapes and dtypes are not those of the
            settings.
    """
    try:
        weights = local_weights(folder)
        if weights is None:
            raise NlftError(f"{folder} has no {WEIGHTS}.", WHOLE)
        described = read_header(weights)
    except NlftError as error:
        raise CheckpointError(error.message, error.hint) from error
    try:
        check_layout(config, described)
    except NlftError as error:
        raise CheckpointError(f"{folder} is damaged: {error.message}", WHOLE) from error


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


def recipe_of(folder: Path, recipe: str | None, console: Console | None = None) -> Recipe | None:
    """The recipe that is named, else the one of the run that the adapter lies in, or of an exported directory.

    Raises:
        RecipeError: it cannot be read, or an exported one asks for what it may not.
    """
    if recipe is not None:
        return load_recipe(recipe)
    # Not held against `nlft.json`: verbs such as `nlft tune` change an exported directory in place.
    own: Path | None = folder / EXPORTED
    if folder.name == "adapter" and not (folder / EXPORTED).is_file():
        own = recipe_file(folder.parent)
    return own_recipe(own, console) if own is not None and own.is_file() else None
