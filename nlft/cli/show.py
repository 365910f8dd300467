"""`nlft show`."""

from __future__ import annotations

from typing import Annotated

import typer

from nlft.cli.argument import Overrides, RecipeName


def show(
    recipe: RecipeName,
    overrides: Overrides = None,
    raw: Annotated[bool, typer.Option("--raw", help="The file as it is, with its comments.")] = False,
    suite: Annotated[bool, typer.Option("--suite", help="RECIPE is the name of a suite: print its file.")] = False,
) -> None:
    """Print a recipe with every default filled in."""
    from nlft.errors import NlftError
    from nlft.recipes import dump_recipe, find_recipe, load_recipe
    from nlft.suites import find_suite

    if suite:
        print(find_suite(recipe).read_text(encoding="utf-8"), end="")
        return
    if raw and overrides:
        raise NlftError("--raw prints the file as it is and takes no overrides.", "Leave one of them away.")
    print(
        find_recipe(recipe).read_text(encoding="utf-8") if raw else dump_recipe(load_recipe(recipe, overrides)),
        end="",
    )
