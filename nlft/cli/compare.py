"""`nlft compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from nlft.cli.argument import Out, Overrides, RecipeName, open_console, output_folder

if TYPE_CHECKING:
    from nlft.config import Recipe


def compare(recipe: RecipeName, overrides: Overrides = None, out: Out = None) -> None:
    """Run all methods of a recipe, and compare them.

    Every learning rate, seed and order is a run of its own. After an interruption, the same command goes
    on where it stopped.
    """
    run(recipe, overrides, lambda found: output_folder(out, found.out, found.name))


def run(recipe: str, overrides: list[str] | None, folder: Callable[[Recipe], Path]) -> None:
    """Compare, then print the table."""
    from nlft.cli.report import print_report
    from nlft.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    console = open_console()

    from nlft.compare import compare as run_comparison

    print_report(run_comparison(loaded, folder(loaded), console=console), console)
