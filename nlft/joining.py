"""Several finished runs or comparisons as one: their results in one folder, with one report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nlft.checkpoint import holds_nothing, make_folder, write_text
from nlft.errors import DataError, NlftError
from nlft.measure.items import join_results, read_run_items, read_runs
from nlft.report import write_report

Rows = dict[tuple[str, str, str, str], frozenset[str]]
"""Ids of the rows behind every (column, role, split, metric)."""


def join(folders: Sequence[Path], out: Path) -> Path:
    """Writes the results of several folders, and one report over them, into another folder.

    All must be of one base, the same tasks (in any order) and, wherever they share a column, the same rows; a probe
    that only some have is null in the runs of the others. A run or a method whose name occurs in several folders gets
    the name of its folder in brackets. Nothing is trained or scored.

    Args:
        folders: two or more result folders of `nlft train` or `nlft compare`.
        out: new folder, or one that an earlier join wrote.

    Returns:
        `out`.

    Raises:
        NlftError: the folders cannot be compared, or `out` holds something else.
    """
    folders, out = [folder.resolve() for folder in folders], out.resolve()
    labels = labels_of(folders)
    runs = {folder: read_runs(folder / "runs.parquet") for folder in folders}
    recipes = {folder: _recipe(folder) for folder in folders}
    first = folders[0]
    own = _rows_of(first)
    for other in folders[1:]:
        said = f"{labels[first]} and {labels[other]}"
        _same_base(runs[first], runs[other], said)
        _same_tasks(runs[first], runs[other], said)
        theirs = _rows_of(other)
        _same_rows(own, theirs, said)
        own = theirs | own
    if not holds_nothing(out) and "joined" not in _recipe(out):
        raise NlftError(f"{out} holds other results.", "Give another folder with --out.")

    taken = {column: [{row[column] for row in rows} for rows in runs.values()] for column in ("run_id", "method")}

    def rename(folder: Path, column: str, name: str) -> str:
        return f"{name} ({labels[folder]})" if sum(name in names for names in taken[column]) > 1 else name

    make_folder(out)
    join_results(out, folders, rename=rename)
    write_text(out / "config.yaml", yaml.safe_dump(_joined(out.name, recipes, labels), sort_keys=False))
    write_report(out)
    return out


def labels_of(folders: Sequence[Path]) -> dict[Path, str]:
    """A name for each of several folders: its own, with as many of its parents' as tell it from the others.

    Raises:
        NlftError: a folder is given twice.
    """
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        raise NlftError(f"{twice} is given twice.", "Give different folders.")
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return {folder: "/".join(folder.parts[-depth:]) for folder in folders}


def train_remark(folders: Sequence[Path]) -> list[str]:
    """One sentence if several results learned from different train rows, as far as their recipes say; else nothing."""
    labels = labels_of([folder.resolve() for folder in folders])
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for folder, label in labels.items():
        recipe = _recipe(folder)
        for part in (recipe.get("joined") or {label: recipe}).values():
            for task in part.get("tasks") or []:
                if isinstance(task.get("train"), dict):
                    found.setdefault(task["name"], []).append((label, task["train"]))
    differ = []
    for task, parts in found.items():
        first, own = parts[0]
        for label, other in parts[1:]:
            # A key that only one of them has is of another version of nlft.
            key = next((key for key in own if key in other and own[key] != other[key]), None)
            if key:
                differ.append(f"tasks.{task}.train.{key} is {own[key]} in {first} and {other[key]} in {label}")
                break
    if not differ:
        return []
    return [f"They learned from different train rows, so that learning compares rows too: {'; '.join(differ)}."]


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "config.yaml"
    found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def _rows_of(folder: Path) -> Rows:
    ids: dict[tuple[str, str, str, str], set[str]] = {}
    for items in read_run_items(folder / "items.parquet").values():
        for item in items:
            ids.setdefault((item.column, item.role, item.split, item.metric), set()).add(item.item_id)
    return {key: frozenset(found) for key, found in ids.items()}


def _same_base(own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], said: str) -> None:
    one, two = ({row["base_sha256"] for row in rows} for rows in (own, other))
    if None in one | two or len(one | two) > 1:
        names = [
            _listed({f"{row['base_model']} ({str(row['base_sha256'])[:8]})" for row in rows}) for rows in (own, other)
        ]
        raise DataError(
            f"{said} have different bases: {' and '.join(names)}.", "Only runs of one base can be compared."
        )
    one, two = ({json.loads(row["start"] or "{}").get("digest") for row in rows} for rows in (own, other))
    if len(one | two) > 1:
        raise DataError(
            f"{said} start from different models: the base alone, or the base with other adapters on.",
            "Only runs that start from the same adapter can be compared.",
        )


def _same_tasks(own: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], said: str) -> None:
    # All tasks at once are one stage, called `a+b`.
    one, two = (
        {name for row in rows if row["setting"] != "multitask" for name in row["order"] or []} for rows in (own, other)
    )
    if one != two:
        raise DataError(
            f"{said} have different tasks: {_listed(one)} and {_listed(two)}.",
            "Learning can only be compared on the same tasks; their orders may differ.",
        )


def _same_rows(own: Rows, other: Rows, said: str) -> None:
    for column in dict.fromkeys(column for column, *_ in own):
        one, two = ({key[1:]: rows for key, rows in each.items() if key[0] == column} for each in (own, other))
        if not two:
            continue
        if not set(one) & set(two):
            kinds = [_listed({f"{metric} as a {role}" for role, _, metric in each}) for each in (one, two)]
            raise DataError(f"{said} measure {column!r} differently: {' and '.join(kinds)}.", "Use one recipe.")
        for key in set(one) & set(two):
            if one[key] != two[key]:
                raise DataError(
                    f"{said} were scored on different rows of {column!r}: {len(one[key])} and {len(two[key])},"
                    f" {len(one[key] & two[key])} of them the same.",
                    "Use the same files, `limit`, `skip` and `sample_seed` for both.",
                )


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _joined(name: str, recipes: Mapping[Path, dict[str, Any]], labels: Mapping[Path, str]) -> dict[str, Any]:
    """What a report needs to know of the recipes, and the recipes."""

    def union(section: str) -> list[dict[str, str]]:
        entries = [entry for recipe in recipes.values() for entry in recipe.get(section) or []]
        found = {entry["name"]: entry["metric"] for entry in reversed(entries) if "metric" in entry}
        names = dict.fromkeys(entry["name"] for entry in entries)
        return [{"name": name} | ({"metric": found[name]} if name in found else {}) for name in names]

    parts = {labels[folder]: recipe for folder, recipe in recipes.items()}
    sections = {section: union(section) for section in ("earlier", "tasks", "probes")}
    return {"name": name, **sections, "joined": parts}
