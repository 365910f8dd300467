"""`nlft eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from nlft.cli.argument import AnyBase, ScoredBy, going_on, open_console


def evaluate(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|ADAPTER", help="A result folder, an adapter's folder, or USER/NAME[@REVISION] on the Hub."
        ),
    ],
    recipe: ScoredBy = None,
    any_base: AnyBase = False,
) -> None:
    """Score a run or an adapter again, beside its base."""
    from rich.table import Table

    from nlft.recipes import load_recipe

    loaded = load_recipe(recipe) if recipe else None
    console = open_console()

    with going_on():
        from nlft.rescore import evaluate_run

        lines = evaluate_run(run, loaded, console, any_base)
    table = Table("column", "metric", "rows", "base", "adapted", "difference")
    for column in table.columns[2:]:
        column.justify = "right"
    for line in lines:
        difference = f"{line.adapted - line.base:+.3f}"
        table.add_row(line.column, line.metric, str(line.n_rows), f"{line.base:.3f}", f"{line.adapted:.3f}", difference)
    console.print(table)
