"""What a verb needs of the folders that it is given, looked at before torch is imported: plain mistakes at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlft.checkpoint import holds_nothing
from nlft.config import Recipe
from nlft.document import dotted
from nlft.errors import NlftError
from nlft.manifest import FILE, NOT_OURS, files_of, read_manifest
from nlft.recipes import dump_recipe, load_recipe
from nlft.remote import CONFIG, is_adapter_id

HOW = "Write --task NAME=TRAIN,TEST with two files, or --task FILE.yaml with a task's section or a recipe."
NOTHING = "Only what `nlft export` wrote can be verified."
KEYS = 4
"""Keys that are named of a recipe that differs."""


def check_source(name: str) -> None:
    """Refuses a folder that is not here; names on the Hub are looked up later.

    Raises:
        NlftError: naming it.
    """
    if not is_adapter_id(name) and not Path(name).expanduser().exists():
        raise NlftError(
            f"There is no folder {name!r}.",
            "Give the folder that `nlft train` wrote, one with adapter_config.json, or a cell of a comparison.",
        )


def check_exported(folder: Path) -> None:
    """Refuses what is no exported directory.

    Raises:
        NlftError: naming it.
    """
    if not folder.is_dir():
        raise NlftError(f"There is no folder {str(folder)!r}.", NOTHING)
    if not (folder / FILE).is_file():
        raise NlftError(f"{folder} has no {FILE}.", NOTHING)


def check_tasks(tasks: list[str] | None) -> None:
    """Refuses to go on without a task.

    Raises:
        NlftError: there is none.
    """
    if not tasks:
        raise NlftError("There is no task to go on with.", HOW)


def check_empty(folder: Path) -> None:
    """Refuses a folder that holds something.

    Raises:
        NlftError: it does.
    """
    if not holds_nothing(folder):
        raise NlftError(f"{folder} is not empty.", "Give another folder.")


def check_place(folder: Path, force: bool) -> None:
    """Refuses a folder for an export that holds something.

    Raises:
        NlftError: it does, and is no older export, holds other files too, or nobody said that it may go.
    """
    if holds_nothing(folder):
        return
    if not (folder / FILE).is_file():
        raise NlftError(f"{folder} is not empty.", "Give a folder of its own.")
    if not force:
        raise NlftError(f"{folder} holds an exported adapter.", "Replace it with --force, or give another folder.")
    older = read_manifest(folder)
    own = {FILE, "README.md", *(older.files if older else ())}
    kept = [name for name in NOT_OURS if (folder / name).exists()]
    kept += sorted(name for name in files_of(folder) if name not in own)
    if kept:
        raise NlftError(
            f"{folder} holds {', '.join(kept[:5])}{' …' if len(kept) > 5 else ''} beside an exported adapter, which"
            " --force would delete.",
            "Move that away, or give another folder.",
        )


def check_run(folder: Path, name: str) -> None:
    """Refuses what is no run that could be resumed.

    Raises:
        NlftError: saying what it is.
    """
    if is_adapter_id(name) or (folder / CONFIG).is_file():
        raise NlftError(
            f"{name} is an adapter: that is no run, and there is nothing of it to finish.",
            f"`nlft continue {name} --task …` teaches it a further task.",
        )
    if not (folder / "config.yaml").is_file():
        what = "it has no config.yaml" if folder.is_dir() else "there is no such folder"
        raise NlftError(f"{name} is no run: {what}.", "Give the folder that `nlft train` or `nlft compare` wrote.")
    whole = folder.parent.parent
    if folder.parent.name == "cells" and (whole / "config.yaml").is_file():
        raise NlftError(f"{name} is one run of a comparison.", f"Go on with all of it: nlft resume {whole}.")


def finished_line(folder: Path, name: str) -> str | None:
    """What is said of a run that has nothing to resume; None of a comparison and of a run that is not finished."""
    whole = (folder / "runs.parquet").is_file() and (folder / "summary.json").is_file()
    if not whole or (folder / "cells").is_dir():
        return None
    return f"{name} is finished: there is nothing to resume. `nlft continue {name} --task …` teaches it a further task."


def check_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """Refuses a folder that holds another run.

    Raises:
        NlftError: the folder is in use, or `resume` meets a different recipe.
    """
    config = out / "config.yaml"
    if not holds_nothing(out, but_states=True) and not resume:
        raise NlftError(
            f"{out} holds another run.",
            f"`nlft resume {out}` goes on with it as it was begun, `nlft continue {out} --task …` teaches what it has"
            " learned a further task; for a run of its own give another folder with --out.",
        )
    if resume and not config.is_file():
        raise NlftError(f"There is no run in {out} to resume: it has no config.yaml.", "Leave --resume away.")
    if not resume:
        return
    begun = load_recipe(str(config))
    if dump_recipe(begun) != dump_recipe(recipe):
        found = list(differences(begun.model_dump(), recipe.model_dump(), ()))
        more = f" and {len(found) - KEYS} more" if len(found) > KEYS else ""
        raise NlftError(
            f"The run in {out} was started with another recipe, method or override: {'; '.join(found[:KEYS])}{more}.",
            f"`nlft resume {out}` goes on with what {config} says; `nlft continue {out} --task …` teaches a finished"
            " run a further task; or give another folder with --out.",
        )


def differences(begun: Any, now: Any, path: tuple[Any, ...]) -> Iterator[str]:
    """Every key whose value differs, with both."""
    if isinstance(begun, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*begun, *now]):
            yield from differences(begun.get(key), now.get(key), (*path, key))
    elif isinstance(begun, list) and isinstance(now, list) and len(begun) == len(now):
        for index, (one, other) in enumerate(zip(begun, now, strict=True)):
            yield from differences(one, other, (*path, index))
    elif begun != now:
        yield f"{dotted(path)} was {shown(begun)} and is {shown(now)}"


def shown(value: Any) -> str:
    """A value of a recipe in a few words; a whole section only as that."""
    if isinstance(value, dict | list):
        return f"{len(value)} entries"
    return "empty" if value is None else repr(value)[:60]
