"""`nlft validate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from nlft.cli.argument import Overrides, RecipeName

if TYPE_CHECKING:
    from nlft.config import DataConfig, Recipe
    from nlft.document import Document, KeyPath


def validate(recipe: RecipeName, overrides: Overrides = None) -> None:
    """Check a recipe and its data; loads no model.

    Files and built-in data are read and every row is checked. Datasets on the Hub are not looked up.
    """
    from nlft.recipes import open_recipe

    loaded, document = open_recipe(recipe, overrides)
    data = _read_data(loaded, document)
    train, cells = loaded.train, len(loaded.compare.seeds) * len(loaded.compare.orders or [0])
    runs = cells * sum(len(method.lrs) for method in loaded.methods.values())
    _line("base", f"{loaded.base.model} (dtype {loaded.base.dtype}, quantization {loaded.base.quantization})")
    for where, description in data.items():
        _line(where, description)
    for name, method in loaded.methods.items():
        _line(f"methods.{name}", f"{method.kind}, lr {', '.join(f'{lr:g}' for lr in method.lrs)}")
    _line("train", f"{train.steps} steps of {train.batch_size} rows a task, {train.schedule} schedule")
    _line("compare", f"{runs} run{'s' * (runs != 1)}")
    print("ok")


def _line(where: str, what: str) -> None:
    print(f"{where:24} {what}")


def _sections(recipe: Recipe) -> dict[KeyPath, tuple[str, DataConfig]]:
    """Every data section: its place in the recipe, its key as it is said in errors, and itself."""
    sections: dict[KeyPath, tuple[str, DataConfig]] = {}
    for number, task in enumerate(recipe.tasks):
        for part, data in (("train", task.train), ("test", task.test), ("seen", task.seen)):
            if data is not None:
                sections["tasks", number, part] = f"tasks.{task.name}.{part}", data
    for number, probe in enumerate(recipe.probes):
        sections["probes", number, "data"] = f"probes.{probe.name}.data", probe.data
    if recipe.background is not None:
        sections["background",] = "background", recipe.background
    return sections


def _is_hub_id(path: str) -> bool:
    """Whether a path is neither here nor spelt like a file."""
    from nlft.data.file import SUFFIXES

    is_here = path.startswith("builtin:") or Path(path).expanduser().exists()
    return not is_here and not path.endswith(SUFFIXES) and bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path))


def _check_base(recipe: Recipe, document: Document) -> list[str]:
    model = recipe.base.model
    if model.startswith((".", "/", "~")) and not Path(model).expanduser().is_dir():
        return [f"{document.where(('base', 'model'))}: base.model: there is no directory {model!r}."]
    return []


def _read_data(recipe: Recipe, document: Document) -> dict[str, str]:
    """Read what is on this machine; say so of what is not."""
    from nlft.data.source import load
    from nlft.errors import DataError, RecipeError

    found: dict[str, str] = {}
    problems = _check_base(recipe, document)
    for path, (where, data) in _sections(recipe).items():
        if _is_hub_id(data.path):
            found[where] = f"{data.path}: a Hub dataset, not looked up"
            continue
        try:
            found[where] = load(data, where).description
        except DataError as error:
            problems.append(f"{document.where(path)}: {error}")
    if problems:
        raise RecipeError(problems, "Relative paths start at the current directory.")
    return found
