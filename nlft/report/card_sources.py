"""What a model card says of data, and a recipe without the places of its maker's machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nlft.config import DataConfig, Recipe
from nlft.data.source import is_hub_id
from nlft.document import dump
from nlft.hub import is_hub_model
from nlft.report.rows import Grid

UNSTATED = "not stated"
CALIBRATION = "calibration, or replay where the recipe says so"


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
    return dump(with_places(recipe.model_dump(exclude_defaults=True, exclude={"out"}), PLACES))


def shown_file(path: str) -> str:
    """Of what is a path by its form the last part alone; a name as it is."""
    return _last_part(path) if re.match(r"[/~\\]|[A-Za-z]:[\\/]|\.\.?[\\/]|file:", path) else path


PLACES: Mapping[str, Callable[[str], str]] = {
    "path": shown_data,
    "lm_eval": shown_data,
    "model": shown_model,
    "adapter": shown_model,
    **dict.fromkeys(("metric", "dataset_path", "data_files", "data_dir", "include"), shown_file),
}
"""How the keys of a recipe whose value may be a path are shown; of an lm-eval task written out, its own keys too.
What stands under other keys is text, whatever it looks like: a join of `/`, a value `~`."""


def with_places(value: Any, places: Mapping[str, Callable[[str], str]], key: str = "") -> Any:
    """A part of a recipe in which every value under one of the keys is what its function makes of it."""
    if isinstance(value, Mapping):  # files by split: {train: FILE, test: FILE}
        return {name: with_places(entry, places, key if key == "data_files" else name) for name, entry in value.items()}
    if isinstance(value, list):
        return [with_places(entry, places, key) for entry in value]
    return places[key](value) if isinstance(value, str) and key in places else value


def portable(recipe: Recipe) -> Recipe:
    """The recipe without what is of this machine alone: its device, its output folder, folders above a file.

    A path below the current folder becomes relative to it; another absolute one is left with its last part.
    """

    def near(value: str) -> str:
        path, here = Path(value).expanduser() if value.startswith(("/", "~")) else Path(value), Path.cwd()
        if not path.is_absolute():
            return value
        return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name

    data = recipe.model_dump()
    base = data.pop("base") | {"device": "auto"}
    return Recipe.model_validate({**with_places(data, dict.fromkeys(PLACES, near)), "base": base, "out": None})


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
