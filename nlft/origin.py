"""What is known of an adapter from which a run goes on: what it has learned, and what tells it from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig

from nlft.errors import DamagedError, reason
from nlft.manifest import sha256_of
from nlft.measure.items import read_runs
from nlft.methods.penalty import FILE as REMEMBERED
from nlft.pathways.task import TaskPeftConfig

INCIDENTAL = {"auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "nlft_version"}
"""Fields of an adapter's settings that say where it lies and who wrote it, not what is computed."""


@dataclass(frozen=True)
class Start:
    """An adapter from which training goes on, as a run notes it."""

    name: str
    """As the recipe names it, with the commit if it is on the Hub."""
    revision: str | None
    """Its commit on the Hub."""
    sha256: str
    """Of `adapter_model.safetensors`, as the Hub lists it too."""
    digest: str
    """sha256 over all that decides how training goes on: settings, tensors, and what penalties remember."""
    tasks: list[str]
    """Tasks that it has learned, as far as it or the recipe says."""
    number: int
    """How many those are; at least one, since some adapters do not say."""


def read_start(out: Path) -> Start | None:
    """What a run that has begun started from, by its first checkpoint; None if that was the base.

    Raises:
        DamagedError: the checkpoint cannot be read.
    """
    path = out / "stages" / "0" / "stage.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8")).get("start")
        return None if facts is None else Start(**facts)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: {reason(error)}", "Start anew in another folder.") from error


def digest_of(folder: Path, config: PeftConfig, sha256: str) -> str:
    """sha256 over the settings of an adapter that decide what it computes, its tensors, and what penalties remember."""
    settings = {key: comparable(value) for key, value in config.to_dict().items() if key not in INCIDENTAL}
    parts = [json.dumps(settings, sort_keys=True, default=str), sha256]
    parts += [sha256_of(folder / REMEMBERED)] if (folder / REMEMBERED).is_file() else []
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def stages_behind(folder: Path) -> int:
    """How many tasks were learned up to an adapter, as the run says beside which it lies; 0 if none says so.

    Other libraries' adapters do not say it themselves, and a recipe may leave earlier tasks out.
    """
    if folder.name == "model" and (folder.parent / "stage.json").is_file():
        begun = read_start(folder.parent.parent.parent)
        return int(folder.parent.name) + (begun.number if begun else 0)
    for file in (folder.parent / "runs.parquet", folder / "results" / "runs.parquet"):
        if file.is_file():
            [row, *_] = read_runs(file)
            return len(row["order"]) + int(json.loads(row["start"] or "{}").get("number", 0))
    return 0


def learned_tasks(config: PeftConfig) -> list[str] | None:
    """Names of the tasks that an adapter has learned; None if it does not say."""
    if not isinstance(config, TaskPeftConfig):
        return None
    return list(config.tasks) if config.keeps_tasks_apart else list(config.provenance) or None


def parts_of(names: Sequence[str]) -> set[str]:
    """Names of tasks, and of those that one of them stands for: `a+b` is a and b, learned at once."""
    return {part for name in names for part in (name, *name.split("+"))}


def comparable(value: Any) -> Any:
    """A value whose entries, where it has several, stand in an order of their own: PEFT reads lists as sets."""
    return sorted(value, key=repr) if isinstance(value, set | frozenset | list | tuple) else value
