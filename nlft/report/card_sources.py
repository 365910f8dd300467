"""What a model card says of data, and a recipe without the places of its maker's machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from nlft.config import DataConfig, Recipe
from nlft.data.source import is_hub_id
from nlft.document import dump
from nlft.report.rows import Grid

UNSTATED = "not stated"
CALIBRATION = "calibration, or replay where the recipe says so"


def is_hub_model(name: str) -> bool:
    """Whether a base's name is a model's id on the Hub; nothing is asked of the Hub."""
    if name.startswith("builtin:") or Path(name).expanduser().exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def shown_model(name: str) -> str:
    """A built-in name or a Hub id as it is; of a folder on this machine the last part alone."""
    return name if name.startswith("builtin:") or is_hub_model(name.partition("@")[0]) else _last_part(name)


def shown_data(path: str) -> str:
    """The same for data, and for files with an lm-eval task."""
    known = path.startswith("builtin:") or (is_hub_id(path) and not path.endswith((".yaml", ".yml")))
    return path if known else _last_part(path)


def _last_part(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path


def shown_recipe(recipe: Recipe) -> str:
    """YAML of what a recipe sets, without `out` and without the folders of this machine's files."""
    return dump(_without_places(recipe.model_dump(exclude_defaults=True, exclude={"out"}), ""))


def _without_places(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_places(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [_without_places(entry, key) for entry in value]
    if isinstance(value, str) and key in PLACES:
        return PLACES[key](value)
    local = isinstance(value, str) and re.match(r"[/~\\]|[A-Za-z]:[\\/]|\.\.?[\\/]|file:", value)
    return _last_part(value) if local else value


PLACES = {"path": shown_data, "lm_eval": shown_data, "model": shown_model, "adapter": shown_model}
"""How the keys of a recipe are shown whose value may be a path that is not absolute."""


def data_of(recipe: Recipe) -> Iterator[tuple[str, str, DataConfig]]:
    """(task or probe, what for, section) of every data section, in the order of the recipe."""
    for training, tasks in (("training", recipe.tasks), (f"{CALIBRATION} (learned earlier)", recipe.earlier)):
        for task in tasks:
            sections = ((training, task.train), ("scoring", task.test), ("scoring, trained wordings", task.seen))
            for use, data in sections:
                if data is not None:
                    yield task.name, use, data
    for probe in recipe.probes:
        for use, data in (("scoring only", probe.data), ("examples in the prompt", probe.shots_from)):
            if data is not None:
                yield probe.name, use, data
    if recipe.background is not None:
        yield "background", CALIBRATION, recipe.background


def trained_on(recipe: Recipe) -> list[str]:
    """Ids of the Hub's datasets that made the adapter: training rows and background, as `USER/NAME`.

    A name without a user may be a folder of another day, so it is not said to be the Hub's.
    """
    made = [data.path for _, use, data in data_of(recipe) if "scoring" not in use and "prompt" not in use]
    return [path for path in dict.fromkeys(made) if "/" in path and is_hub_id(path)]


def source_grid(recipe: Recipe, licenses: Mapping[str, str]) -> Grid:
    """Every source, what it was used for, and its licence.

    Args:
        licenses: by the recipe's `path`, as the user states them.
    """
    rows: dict[tuple[str, ...], list[str]] = {}
    for name, use, data in data_of(recipe):
        place = [shown_data(data.path), data.name or "", data.split if is_hub_id(data.path) else ""]
        source = ", ".join(part for part in place if part)
        cells = (source, data.revision or "", use, _license(data.path, licenses))
        rows.setdefault(cells, []).append(name)
    body = [
        [source, ", ".join(names), use, revision or "–", own] for (source, revision, use, own), names in rows.items()
    ]
    for probe in recipe.probes:
        if probe.lm_eval is not None:
            task = probe.lm_eval if isinstance(probe.lm_eval, str) else probe.lm_eval.get("task", "inline")
            body.append([f"lm-eval: {shown_data(str(task))}", probe.name, "scoring only", "–", UNSTATED])
    words = "Of files only the name is given. Licences are as stated by whoever exported the adapter."
    return Grid(["source", "task or probe", "used for", "revision", "licence"], body, words)


def _license(path: str, licenses: Mapping[str, str]) -> str:
    own = "part of nlft, Apache-2.0" if path.startswith("builtin:world/") else UNSTATED
    return licenses.get(path, own)
