"""`nlft ls`."""

from __future__ import annotations

from pathlib import Path


def ls() -> None:
    """List the built-in recipes, and the suites of probes that a recipe may name."""
    from nlft.recipes import recipe_files
    from nlft.suites import suite_files

    _list(recipe_files())
    print("\nSuites, as `probes: [{suite: NAME}]`:")
    _list(suite_files())


def _list(files: dict[str, Path]) -> None:
    width = max(map(len, files), default=0)
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        print(f"{name:{width}}  {first.lstrip('# ')}".rstrip())
