"""`nlft ls`."""

from __future__ import annotations


def ls() -> None:
    """List the built-in recipes."""
    from nlft.recipes import recipe_files

    files = recipe_files()
    width = max(map(len, files), default=0)
    for name, path in files.items():
        first = path.read_text(encoding="utf-8").split("\n", 1)[0]
        print(f"{name:{width}}  {first.lstrip('# ')}".rstrip())
