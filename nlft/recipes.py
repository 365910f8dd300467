"""Recipes: find them, read them with overrides, and say everything that is wrong with them at once.

No torch in here: `nlft validate` and `nlft ls` answer at once.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nlft.config import DataConfig, Recipe
from nlft.document import Document, KeyPath, dotted, dump, parse, scalar
from nlft.errors import RecipeError
from nlft.problem import booleans_as_numbers, problems, type_at
from nlft.suites import expand_suites


def recipe_files() -> dict[str, Path]:
    """Built-in recipes by name: a wheel's package data, or the repository's `recipes/`."""
    package = Path(str(resources.files("nlft")))
    packaged = package / "_recipes"
    folder = packaged if packaged.is_dir() else package.parent / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name_or_path: str) -> Path:
    """The file behind a built-in recipe's name, a path, or a result folder. Raises `RecipeError`."""
    files = recipe_files()
    if name_or_path in files:
        return files[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    if (path / "config.yaml").is_file():
        return path / "config.yaml"
    if path.is_dir():
        raise RecipeError([f"{name_or_path} is a folder without a config.yaml."], "Give the recipe's own file.")
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        built_in = f"The built-in recipe is called {path.stem}." if path.stem in files else ""
        raise RecipeError([f"There is no file {name_or_path!r} in {Path.cwd()}."], built_in or "Check the path.")
    near = get_close_matches(name_or_path, files, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise RecipeError(
        [f"There is no recipe called {name_or_path!r}.{guess}"],
        f"Built in: {', '.join(files)}. A recipe of your own is given by its path, which ends in .yaml.",
    )


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe and check it.

    Args:
        name_or_path: name of a built-in recipe, a YAML file, or a result folder (its `config.yaml`).
        overrides: `dotted.key=value`, the value in YAML: `train.steps=50`, `methods.lora.lr=[1e-3, 3e-3]`,
            `tasks.0.name=law`. An entry of a list goes by its index or by its name.

    Data paths inside a recipe are relative to the current directory, not to the recipe.

    Raises:
        RecipeError: with every problem that was found, each with its place, its key and what is allowed.
    """
    return open_recipe(name_or_path, overrides)[0]


def open_recipe(name_or_path: str, overrides: list[str] | None = None) -> tuple[Recipe, Document]:
    """As `load_recipe`, with the document, which knows the line of every key."""
    path = find_recipe(name_or_path)
    document = _read(path, str(path) if name_or_path in recipe_files() else name_or_path)
    return read_document(document, overrides), document


def read_document(document: Document, overrides: list[str] | None = None) -> Recipe:
    """The recipe that a document holds, with overrides as `load_recipe` takes them.

    Raises:
        RecipeError: with every problem that was found.
    """
    expand_suites(document)  # before, so that an override finds a suite's probes, and after, so that it may name one
    for override in overrides or []:
        _override(document, override)
    expand_suites(document)
    found = list(document.problems)
    recipe = None
    try:
        recipe = Recipe.model_validate(document.data)
        found += booleans_as_numbers(document, recipe)
    except ValidationError as failure:
        found += problems(failure, document)
    if found or recipe is None:
        raise RecipeError(found, "Correct the recipe; nothing has run.")
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """YAML of every key, defaults included; `load_recipe` reads it back as an equal recipe."""
    return dump(recipe.model_dump())


def _read(path: Path, label: str) -> Document:
    try:
        document = parse(path.read_text(encoding="utf-8"), label)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        said = ", ".join(part for part in (error.context, error.problem) if part)
        hint = "Look at the indentation, colons and quotes of that line and the one before it."
        raise RecipeError([f"{label}{line}: this is not valid YAML: {said}."], hint) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError([f"{label}: this is not a text file: {error}."], "Save the recipe as UTF-8.") from error
    except OSError as error:
        raise RecipeError([f"{label} cannot be read: {error.strerror}."]) from error
    if not isinstance(document.data, dict):
        found = "is empty" if document.data is None else "is not made of `key: value` lines"
        raise RecipeError([f"{label} {found}."], "`nlft show demo --raw` prints a recipe to start from.")
    return document


def _override(document: Document, override: str) -> None:
    """Set one value; what cannot be set becomes one of the document's problems."""
    place = f"override {override}"
    left, equals, text = override.partition("=")
    keys: list[Any] = left.strip().split(".")
    if not equals or not all(keys):
        document.problems.append(f"{place}: write it as key=value, for instance train.steps=50.")
        return
    try:
        value = scalar(text)
    except yaml.YAMLError:
        document.problems.append(f"{place}: the value is not valid YAML; put it in quotes.")
        return
    target: Any = document.data
    path: KeyPath = ()
    for depth, key in enumerate(keys):
        if isinstance(target, list):
            index = _index(target, key)
            if index is None:
                document.problems.append(f"{place}: {dotted(path)} has {_entries(target)}, and no {key!r}.")
                return
            key = index
        path = (*path, key)
        if depth == len(keys) - 1:
            target[key] = value
            break
        below = target[key] if isinstance(target, list) else target.get(key)
        if isinstance(below, str) and type_at(path) is DataConfig:
            below = {"path": below}
        elif below is None:
            below = {}
            document.origins.setdefault(path, place)
        if not isinstance(below, dict | list):
            document.problems.append(f"{place}: {dotted(path)} is {below!r} and holds no keys.")
            return
        target[key] = below
        target = below
    document.origins = {old: line for old, line in document.origins.items() if old[: len(path)] != path}
    document.origins[path] = place
    document.overridden = {old for old in document.overridden if old in document.origins} | {path}


def _index(entries: list[Any], key: str) -> int | None:
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    index = names.index(key) if key in names else int(key) if key.isdecimal() else len(entries)
    return index if index < len(entries) else None


def _entries(entries: list[Any]) -> str:
    names = [entry.get("name", "?") if isinstance(entry, dict) else "?" for entry in entries]
    return (
        "the entries " + ", ".join(f"{index} ({name})" for index, name in enumerate(names)) if entries else "no entries"
    )
