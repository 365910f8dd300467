"""`nlft promote`."""

from __future__ import annotations

from typing import Annotated

import typer

from nlft.cli.argument import Out, going_on, open_console
from nlft.cli.tasks import AdapterPath
from nlft.errors import NlftError


def promote(
    adapter: AdapterPath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The task.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Test rows and probes; an adapter in a run brings its own.")
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="SHARE", help="Most that a probe or another task may lose: points, or % of its loss.")
    ] = "1%",
    min_acquisition: Annotated[
        str, typer.Option(metavar="SHARE", help="Least gain on the task's own test rows, in the same unit.")
    ] = "0%",
    out: Out = None,
) -> None:
    """Make a staged task permanent if it helps on rows that it never saw and harms within a budget.

    The adapter is scored with and without the task. Exits with 3 and writes nothing if it does not hold.
    """
    limit, least = share(budget, "--budget"), share(min_acquisition, "--min-acquisition")
    console = open_console()
    with going_on():
        from rich.table import Table

        from nlft.lifecycle import adapter_folder, read_adapter, recipe_of, write_adapter
        from nlft.promotion import examine, promoted, spell

        folder = adapter_folder(adapter)
        found = read_adapter(folder)
        rows = recipe_of(folder, recipe)
        if rows is None:
            raise NlftError(f"{adapter} brings no rows to measure on.", "Name a recipe with --recipe.")
        verdict = examine(found, folder, name, rows, limit, least)
        table = Table("column", "metric", "rows", "without", "with", "gain [95 %]", "rows changed")
        for column in table.columns[2:]:
            column.justify = "right"
        for one in (verdict.acquisition, *verdict.retention):
            numbers = (f"{one.before:.3f}", f"{one.after:.3f}", spell(one.gain), f"{one.changed:.1%}")
            table.add_row(one.column, one.metric, str(one.gain.n_items), *numbers)
        console.print(table)
        wide = [one.column for one in verdict.retention if not -one.gain.low <= limit]
        lines = [
            f"Acquisition: {spell(verdict.acquisition.gain)} on {verdict.acquisition.column!r}.",
            f"Retention: {spell(verdict.worst.gain)} on {verdict.worst.column!r}, the worst; budget {limit:.2%}.",
            *verdict.objections,
        ]
        if wide:
            lines.append(f"Too few rows to be sure of the budget (the interval goes beyond it): {', '.join(wide)}.")
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if verdict.objections:
            console.print(f"{name!r} stays as it is; nothing was written.", markup=False, highlight=False)
            raise typer.Exit(3)
        folder = write_adapter(promoted(found, name, verdict, limit), folder, out)
    console.print(f"{name!r} is permanent. Written to {folder}.", markup=False, highlight=False, soft_wrap=True)


def share(text: str, option: str) -> float:
    """`1%` or `0.01` as 0.01.

    Raises:
        NlftError: it is no share.
    """
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise NlftError(f"{option}: {text!r} is no share.", "Write it as 1% or 0.01.")
    return number
