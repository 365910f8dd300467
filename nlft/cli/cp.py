"""`nlft cp`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def cp(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A built-in recipe (see `nlft ls`).")],
    dest: Annotated[
        Path | None, typer.Argument(metavar="[DEST]", help="A file or folder; NAME.yaml here if empty.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST.")] = False,
) -> None:
    """Copy a built-in recipe, to edit it."""
    from nlft.errors import NlftError
    from nlft.recipes import find_recipe

    source = find_recipe(name)
    target = dest or Path(f"{source.stem}.yaml")
    if target.is_dir():
        target = target / f"{source.stem}.yaml"
    if target.exists() and not force:
        raise NlftError(f"{target} is there already.", "Choose another name, or overwrite it with --force.")
    if target.exists() and target.samefile(source):
        raise NlftError(f"{target} is the recipe itself.", "Choose another name.")
    partial = target.with_name(f"{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(source.read_bytes())
        partial.replace(target)
    except OSError as error:
        raise NlftError(f"{target} cannot be written: {error.strerror}.", "Choose another place.") from error
    finally:
        with suppress(OSError):
            partial.unlink()
    print(f"Wrote {target}. Run it with: nlft compare {target}")
