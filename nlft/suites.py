"""Suites: lists of probes that recipes share, `probes: [{suite: NAME_OR_PATH}]`. Nothing here imports torch."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from nlft.document import Document, KeyPath, dotted, parse
from nlft.errors import RecipeError

KEYS = ("suite", "limit")


def suite_files() -> dict[str, Path]:
    """Built-in suites by name: a wheel's package data, or the repository's `eval/suites/`."""
    package = Path(str(resources.files("nlft")))
    packaged = package / "_suites"
    folder = packaged if packaged.is_dir() else package.parent / "eval" / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_suite(name_or_path: str) -> Path:
    """The file behind a built-in suite's name, or a path. Raises `RecipeError`."""
    files = suite_files()
    if name_or_path in files:
        return files[name_or_path]
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    near = get_close_matches(name_or_path, files, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise RecipeError(
        [f"There is no suite {name_or_path!r}.{guess}"],
        f"Built in: {', '.join(files)}. A suite of your own is given by its path, relative to the current directory.",
    )


def expand_suites(document: Document) -> None:
    """Puts the probes of every suite that a recipe names in its place; what is wrong joins the document's problems.

    A suite's probes keep their names; where a name is taken by a probe or task written in the recipe or by an earlier
    suite, the suite's name goes in front. `limit` beside `suite` is the most rows of every probe.
    """
    written = document.data.get("probes") if isinstance(document.data, dict) else None
    if not isinstance(written, list) or not any(isinstance(one, dict) and "suite" in one for one in written):
        return
    lists = [document.data.get(key) for key in ("tasks", "earlier")]
    others = [*written, *(one for entries in lists if isinstance(entries, list) for one in entries)]
    names = [one.get("name") for one in others if isinstance(one, dict) and "suite" not in one]
    taken = {name for name in names if isinstance(name, str)}
    probes: list[Any] = []
    origins = {path: place for path, place in document.origins.items() if path[:1] != ("probes",) or len(path) == 1}
    overridden = {path for path in document.overridden if path in origins}

    def move(source: Document, old: KeyPath) -> None:
        """Takes over the places of one probe."""
        for path, place in source.origins.items():
            if path[: len(old)] == old:
                new = ("probes", len(probes), *path[len(old) :])
                origins[new] = place
                if path in source.overridden:
                    overridden.add(new)

    for index, one in enumerate(written):
        here: KeyPath = ("probes", index)
        if not isinstance(one, dict) or "suite" not in one:
            move(document, here)
            probes.append(one)
            continue
        try:
            suite = _read(one, document, here)
        except RecipeError as error:
            document.problems.append(f"{document.where((*here, 'suite'))}: {dotted((*here, 'suite'))}: {error}")
            continue
        for number, probe in enumerate(suite.data["probes"]):
            move(suite, ("probes", number))
            probe = _limited(probe, one.get("limit")) if isinstance(probe, dict) else probe
            if isinstance(probe, dict) and isinstance(probe.get("name"), str):
                if probe["name"] in taken:
                    probe["name"] = f"{Path(str(one['suite'])).stem}-{probe['name']}"
                taken.add(probe["name"])
            probes.append(probe)
        document.problems += suite.problems
    document.data["probes"], document.origins, document.overridden = probes, origins, overridden


def _read(entry: dict[str, Any], document: Document, here: KeyPath) -> Document:
    """The suite that an entry names."""
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise RecipeError([f"a suite takes {' and '.join(KEYS)}, not {unknown[0]!r}."])
    limit = entry.get("limit")
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise RecipeError([f"limit must be a whole number of 1 or more, not {limit!r}."])
    if not isinstance(entry["suite"], str):
        raise RecipeError([f"a suite is a name or a path, not {entry['suite']!r}."])
    path = find_suite(entry["suite"])
    try:
        suite = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError([f"{path} cannot be read as YAML: {str(error).splitlines()[0]}."]) from error
    probes = suite.data.get("probes") if isinstance(suite.data, dict) else None
    if not isinstance(probes, list) or not probes:
        raise RecipeError([f"{path} has no list `probes`."], "Write it as the `probes` of a recipe.")
    other = [key for key in suite.data if key != "probes"]
    if other:
        raise RecipeError([f"{path} holds {other[0]!r}, and a suite holds `probes` alone."])
    if any(isinstance(probe, dict) and "suite" in probe for probe in probes):
        raise RecipeError([f"{path} names another suite, and a suite holds probes alone."])
    return suite


def _limited(probe: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """A probe with no more rows or documents than `limit`."""
    if limit is None:
        return probe
    if "lm_eval" in probe:
        return _cut(probe, limit)
    data = probe.get("data")
    data = {"path": data} if isinstance(data, str) else data
    return {**probe, "data": _cut(data, limit)} if isinstance(data, dict) else probe


def _cut(section: dict[str, Any], limit: int) -> dict[str, Any]:
    """A section with the smaller of its own limit and this; what is no number is left for the schema to refuse."""
    own = section.get("limit")
    return section if own is not None and not isinstance(own, int) else {**section, "limit": min(limit, own or limit)}
