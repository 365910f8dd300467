"""A recipe that was found beside an adapter and that nobody has named: what it may ask for.

`config.yaml` of a run was written here, by `nlft train`, and asks for what somebody has asked for before; only code of
the base model is left off. `recipe.yaml` in an exported directory may come from anybody. It may name built-in data,
datasets of the Hub (whose scripts `datasets` does not run), files below the current folder, nlft's own metrics and the
tasks that lm-eval brings along, but nothing that runs its author's code or reads files elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from rich.console import Console

from nlft.config import BaseConfig, DataConfig, LoraConfig, ProbeConfig, Recipe, TaskConfig
from nlft.document import parse
from nlft.errors import RecipeError, reason
from nlft.manifest import FILE, leads_out, whole_manifest
from nlft.measure.metric import METRICS
from nlft.recipes import load_recipe
from nlft.remote import CONFIG, resolved_revision
from nlft.suites import suite_files

EXPORTED, OF_RUN = "recipe.yaml", "config.yaml"
"""Names of the recipe in an exported directory and in a run's folder."""
LARGEST = 1 << 20
"""Bytes of an exported recipe."""
DEEPEST = 100
"""Lists and mappings inside each other, of which a recipe has fewer than ten."""
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def recipe_file(folder: Path) -> Path | None:
    """The recipe that lies in a folder, None if none does.

    A `config.yaml` counts only in a run's folder: beside an adapter, where `nlft.json` says that it was exported, and
    in what was downloaded, it is nothing that `nlft train` wrote here.
    """
    found = any((folder / name).is_file() for name in (FILE, CONFIG)) or resolved_revision(folder) is not None
    names = (EXPORTED,) if found else (EXPORTED, OF_RUN)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def beside(folder: Path, console: Console | None = None) -> tuple[Path, Recipe] | None:
    """The recipe that lies in a run's folder or an exported directory, and its file; None if there is none.

    Raises:
        NlftError: the directory is not what was exported.
        RecipeError: the recipe cannot be read, or an exported one asks for what it may not.
    """
    whole_manifest(folder)
    file = recipe_file(folder)
    return None if file is None else (file, own_recipe(file, console))


def own_recipe(file: Path, console: Console | None = None) -> Recipe:
    """The recipe that lies beside an adapter. Nobody has named it, so no code runs because it asks for that.

    Raises:
        RecipeError: it cannot be read, or an exported one asks for code or for files that are not its author's.
    """
    if file.name != EXPORTED:
        return without_code(load_recipe(str(file), []), file, console)
    check_text(file)
    recipe = load_recipe(str(file), [])
    problems = [*asked_for(recipe)]
    if problems:
        raise RecipeError(
            [f"{file}: {problem}" for problem in problems],
            f"The file came with the adapter, so it may run no code and read no files of yours. If you have read it and"
            f" trust it, name it: --recipe {file}",
        )
    return without_code(recipe.model_copy(update={"out": None}), file, console)


def without_code(recipe: Recipe, file: Path, console: Console | None) -> Recipe:
    """The recipe with the base's own code left off."""
    if recipe.base.trust_remote_code and console is not None:
        console.print(
            f"{file} asks for base.trust_remote_code, which is left off: the file was found, not named. Name it with"
            " --recipe if you trust that code.",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return recipe.model_copy(update={"base": recipe.base.model_copy(update={"trust_remote_code": False})})


def check_text(file: Path) -> None:
    """Refuses an exported recipe that cannot be parsed safely, or that names a suite by its path.

    Raises:
        RecipeError: it is too long, a link, no YAML, has aliases (a few lines of them make gigabytes), or names a file.
    """
    hint = "Take a whole copy of the adapter, or name a recipe of your own with --recipe."
    if leads_out(file, file.parent):
        raise RecipeError([f"{file} is a link to {file.resolve()}."], hint)
    try:
        if file.stat().st_size > LARGEST:
            raise RecipeError([f"{file} has {file.stat().st_size:,} bytes, and a recipe at most {LARGEST:,}."], hint)
        text = file.read_text(encoding="utf-8")
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            if isinstance(token, yaml.AliasToken):
                raise RecipeError([f"{file} has aliases (`*name`), which `nlft export` never writes."], hint)
            depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
            if depth > DEEPEST:  # the scanner's time grows with the square of the depth
                raise RecipeError([f"{file} cannot be read: it is nested too deeply."], hint)
        data = parse(text, str(file)).data
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        how = "it is nested too deeply." if isinstance(error, RecursionError) else reason(error)
        raise RecipeError([f"{file} cannot be read: {how}"], hint) from error
    probes = data.get("probes") if isinstance(data, dict) else None
    for probe in probes if isinstance(probes, list) else []:
        suite = probe.get("suite") if isinstance(probe, dict) else None
        if suite is not None and suite not in suite_files():
            raise RecipeError([f"{file}: the suite {suite!r} is none of nlft's, and would be read from a file."], hint)


def asked_for(recipe: Recipe) -> Iterator[str]:
    """What an exported recipe must not ask for, one sentence each."""
    for place, section in sections(recipe, ()):
        if isinstance(section, DataConfig | BaseConfig):
            key, path = ("path", section.path) if isinstance(section, DataConfig) else ("model", section.model)
            problem = data_problem(path)
            if problem:
                yield f"{'.'.join(place)}.{key}: {path!r} {problem}."
        elif isinstance(section, LoraConfig):
            for key in ("target_modules", "exclude_modules"):
                value = section.peft.get(key)
                if isinstance(value, str) and value != "all-linear":
                    yield f"{'.'.join(place)}.peft.{key}: {value[:80]!r} is a pattern, and some take for ever to match."
        elif isinstance(section, TaskConfig) or (isinstance(section, ProbeConfig) and section.lm_eval is None):
            if section.metric not in METRICS:
                yield f"{'.'.join(place)}.metric: {section.metric!r} is none of nlft's metrics, so it is code."
        elif isinstance(section, ProbeConfig):
            task = section.lm_eval
            if not isinstance(task, str) or not re.fullmatch(r"[\w-]+", task):
                shown = repr(task) if isinstance(task, str) else "a task written out"
                yield f"{'.'.join(place)}.lm_eval: {shown} is no task of lm-eval's own, and templates are code."


def sections(section: BaseModel, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], BaseModel]]:
    """Every section of a recipe with its place; of lists and mappings too."""
    yield place, section
    for name in type(section).model_fields:
        yield from inside(getattr(section, name), (*place, name))


def inside(value: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], BaseModel]]:
    """The sections in a value."""
    if isinstance(value, BaseModel):
        yield from sections(value, place)
    elif isinstance(value, list | dict):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, one in pairs:
            yield from inside(one, (*place, str(key)))


def data_problem(path: str) -> str:
    """Why a data path may not be read for a recipe that was found; empty if it may."""
    if path.startswith("builtin:"):
        return ""
    parts = Path(path).parts
    if Path(path).is_absolute() or path.startswith("~") or re.match(r"[A-Za-z]:|\\\\|\w+://", path):
        return "lies at a place of its own on a machine"
    if ".." in parts or any(part.startswith(".") and part != "." for part in parts):
        return "leads out of the current folder or to hidden files"
    if not Path(path).resolve().is_relative_to(Path.cwd().resolve()):
        return "is a link that leads out of the current folder"
    return ""
