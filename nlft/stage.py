"""A stage on disk, `stages/<n>`: its scores, its facts, and what was learned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlft.base import UNREADABLE
from nlft.checkpoint import write_folder
from nlft.errors import DamagedError, NlftError, reason
from nlft.measure.items import read_items, write_items
from nlft.train import StageCost
from nlft.types import Item


@dataclass(frozen=True)
class Stage:
    """What a stage measured and cost. Stage 0 is the base, before anything is learned."""

    task: str
    items: list[Item]
    cost: StageCost | None
    """Of training; the base has none."""
    eval_s: float
    """Seconds of scoring."""
    wall_s: float
    """Seconds since the stage before was saved, or since the call began."""


def save_stage(
    out: Path, number: int, stage: Stage, inputs: dict[str, Any], save: Callable[[Path], object] | None
) -> None:
    """Writes a stage, whole or not at all.

    Args:
        out: folder of the run.
        inputs: further facts, which `check_inputs` compares.
        save: writes what was learned into a folder.
    """

    def write(folder: Path) -> None:
        if save is not None:
            save(folder / "model")
        write_items(folder / "items.parquet", out.name, stage.items)
        facts = {"task": stage.task, "eval_s": stage.eval_s, "wall_s": stage.wall_s, **inputs}
        if stage.cost is not None:
            facts["cost"] = asdict(stage.cost)
        (folder / "stage.json").write_text(json.dumps(facts), encoding="utf-8")

    write_folder(out / "stages" / str(number), write, f"The checkpoint of stage {number} ({stage.task})")


def read_stages(folders: Sequence[Path]) -> list[Stage]:
    """Reads stages back.

    Raises:
        DamagedError: one is damaged.
    """
    stages = []
    for folder in folders:
        with undamaged(folder):
            facts = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
            cost = StageCost(**facts["cost"]) if "cost" in facts else None
            seconds = (float(facts.get(key, 0.0)) for key in ("eval_s", "wall_s"))
            stages.append(Stage(facts["task"], read_items(folder / "items.parquet"), cost, *seconds))
    return stages


@contextmanager
def undamaged(folder: Path) -> Iterator[None]:
    """Turns what a library says about a damaged stage into a sentence with a way out.

    Raises:
        DamagedError: the stage cannot be read.
    """
    try:
        yield
    except (NlftError, *UNREADABLE) as error:
        first = folder.name == "0"
        hint = "Start anew in another folder." if first else f"Delete {folder} to go on from the stage before it."
        raise DamagedError(f"The stage in {folder} is damaged: {reason(error)}", hint) from error


def check_inputs(path: Path, inputs: dict[str, str]) -> None:
    """Refuses to go on with another base or other rows than a run or comparison began with.

    Raises:
        NlftError: naming what is different.
    """
    try:
        before: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DamagedError(f"{path} is damaged: {reason(error)}", "Start anew in another folder.") from error
    for key, what in (("base_sha256", "base model's weights"), ("rows_sha256", "data")):
        if before.get(key) != inputs[key]:
            raise NlftError(
                f"{path.parent} was begun with other inputs: the {what} differ.",
                "Put them back as they were, or start anew in another folder with --out.",
            )
