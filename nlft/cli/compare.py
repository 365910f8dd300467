"""`nlft compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlft.cli.argument import Out, Overrides, RecipeName, going_on, open_console, output_folder

if TYPE_CHECKING:
    from nlft.config import Recipe


Jobs = Annotated[int, typer.Option(min=1, help="Processes that run side by side; each holds a base of its own.")]


def compare(recipe: RecipeName, overrides: Overrides = None, out: Out = None, jobs: Jobs = 1) -> None:
    """Run all methods of a recipe, and compare them.

    Every learning rate, seed and order is a run of its own. After an interruption, the same command goes
    on where it stopped. Exits with 1 if a run failed; the report then holds the others.
    """
    run(recipe, overrides, lambda found: output_folder(out, found.out, found.name), jobs)


def run(recipe: str, overrides: list[str] | None, folder: Callable[[Recipe], Path], jobs: int = 1) -> None:
    """Compare, then print the table; exit with 1 if a run failed."""
    from nlft.cli.report import print_report
    from nlft.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    console = open_console()

    out = folder(loaded)
    with going_on("compare", recipe, *(overrides or []), "--out", str(out)):
        from nlft.compare import compare as run_comparison

        run_comparison(loaded, out, jobs=jobs, console=console)
    summary = print_report(out, console)
    runs = summary["runs"]
    failed = [run["run_id"] for run in runs if run["status"] != "ok"]
    if failed:
        console.print(
            f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}.",
            style="red",
            markup=False,
            highlight=False,
        )
        raise typer.Exit(1)
