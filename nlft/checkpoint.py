"""Checkpoints that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from nlft.config.prefix import FOLDER, OWN
from nlft.errors import CheckpointError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
PARTIAL = ".partial"
"""Suffix of a file that is not complete yet."""


def write_folder(folder: Path, write: Callable[[Path], object], what: str) -> None:
    """Writes a folder in one step: either all of it is there afterwards, or what was there before.

    Args:
        folder: its final place; an older one there is replaced only when the new one is complete.
        write: fills the folder that it is given.
        what: name of the content, for the error sentence.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    # Names that nobody else gives: a `runs.old` beside `runs` is somebody's backup.
    partial, old = (folder.with_name(f".{folder.name}.nlft-{part}") for part in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    if old.exists() and not folder.exists():
        old.rename(folder)  # killed between the two renames below
    try:
        partial.mkdir(parents=True)
        write(partial)
        readable = partial.stat().st_mode & 0o666  # safetensors lets nobody but the owner read its files
        for path in partial.rglob("*"):
            if path.is_file():
                path.chmod(readable)
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        raise disk_error(error, folder, what) from error
    finally:  # after an interruption too
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise disk_error(error, path, path.name) from error
    finally:
        partial.unlink(missing_ok=True)


def holds_nothing(folder: Path, but_states: bool = False) -> bool:
    """True if a folder is absent, empty, or left by a process that was killed while it wrote its first file.

    Args:
        but_states: states of frozen layers that a run or comparison has kept there are nothing either.

    Raises:
        CheckpointError: it is a file, or cannot be looked into.
    """
    try:
        found = [path for path in folder.iterdir() if path.name != "config.yaml" + PARTIAL] if folder.exists() else []
        if but_states:
            found = [path for path in found if path.name != FOLDER or not holds_states_alone(path)]
        return not found
    except NotADirectoryError as error:
        raise CheckpointError(f"{folder} is a file, not a folder.", "Give another folder with --out.") from error
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}.", "Give another with --out.") from error


def holds_states_alone(folder: Path) -> bool:
    """True of a folder with nothing but states of frozen layers."""
    return folder.is_dir() and all(OWN.fullmatch(path.name) for path in folder.iterdir())


def make_folder(folder: Path) -> None:
    """Makes a result folder and those above it.

    Raises:
        CheckpointError: no folder can be made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"The folder {folder} cannot be made: {error.strerror}.", "Give another folder with --out."
        ) from error


def disk_error(error: Exception, place: Path, what: str) -> CheckpointError:
    """A sentence out of a failed write."""
    text = str(error)
    full = getattr(error, "errno", None) in FULL_DISK or "No space left" in text or "File too large" in text
    reason = "the disk is full" if full else text
    return CheckpointError(
        f"{what} could not be saved to {place}: {reason}.",
        "What was saved before is whole. Make room, then go on: with the same command and --resume for `nlft train`,"
        " with the same command for `nlft compare`.",
    )


def finished_stages(folder: Path) -> list[Path]:
    """Folders of the complete stages of a run, in order: `stages/1`, `stages/2` …; a gap ends the list."""
    found = []
    while (path := folder / "stages" / str(len(found) + 1) / "stage.json").is_file():
        found.append(path.parent)
    return found
