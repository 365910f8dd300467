"""Checkpoints that are whole or absent: written beside their place, then renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from nlft.errors import CheckpointError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_folder(folder: Path, write: Callable[[Path], object], what: str) -> None:
    """Writes a folder in one step: either all of it is there afterwards, or nothing new is.

    Args:
        folder: its final place; an older one there is replaced only when the new one is complete.
        write: fills the folder that it is given.
        what: name of the content, for the error sentence.

    Raises:
        CheckpointError: the disk is full or cannot be written.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        for path in partial.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise disk_error(error, folder, what) from error


def disk_error(error: Exception, place: Path, what: str) -> CheckpointError:
    """A sentence out of a failed write."""
    text = str(error)
    full = getattr(error, "errno", None) in FULL_DISK or "No space left" in text or "File too large" in text
    reason = "the disk is full" if full else text
    return CheckpointError(
        f"{what} could not be saved to {place}: {reason}.",
        "What was saved before is whole. Make room, then run the same command again with --resume.",
    )


def finished_stages(folder: Path) -> list[Path]:
    """Folders of the complete stages of a run, in order: `stages/1`, `stages/2` …; a gap ends the list."""
    found = []
    while (path := folder / "stages" / str(len(found) + 1) / "stage.json").is_file():
        found.append(path.parent)
    return found
