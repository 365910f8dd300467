"""`nlft promote`."""

from __future__ import annotations

from typing import Annotated

import typer

from nlft.cli.argument import Out, going_on, open_console, read_share, say
from nlft.cli.tasks import AdapterPath
from nlft.errors import NlftError


def promote(
    adapter: AdapterPath,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The task.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Test rows and probes; an adapter in a run brings its own.")
    ] = None,
    budget: Annotated[
        str,
        typer.Option(
            metavar="SHARE",
            help="Most that a probe or another task may lose by this promotion: points, or % of its loss.",
        ),
    ] = "1%",
    min_acquisition: Annotated[
        str, typer.Option(metavar="SHARE", help="Least gain on the task's own test rows, in the same unit.")
    ] = "0%",
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Judge losses as measured, not by the upper ends of their intervals.")
    ] = False,
    out: Out = None,
) -> None:
    """Make a staged task permanent if it helps on rows that it never saw and harms within a budget.

    The adapter is scored with and without the task, and the ends of 95 % intervals count. Every promotion has a budget
    of its own, so losses of several add up. Exits with 3 and writes nothing if it does not hold.
    """
    limit, least = read_share(budget, "--budget", True), read_share(min_acquisition, "--min-acquisition", True)
    console = open_console()
    with going_on():
        from rich.table import Table
        from rich.text import Text

        from nlft.adapter import adapter_folder, read_adapter, recipe_of, write_adapter
        from nlft.promotion import examine, promoted, spell

        folder = adapter_folder(adapter)
        found = read_adapter(folder)
        rows = recipe_of(folder, recipe, console)
        if rows is None:
            raise NlftError(f"{adapter} brings no rows to measure on.", "Name a recipe with --recipe.")
        verdict = examine(found, folder, name, rows, limit, least, lenient)
        table = Table("column", "metric", "rows", "without", "with", "gain [95 %]", "rows changed")
        for column in table.columns[2:]:
            column.justify = "right"
        for one in (verdict.acquisition, *verdict.retention):
            numbers = (f"{one.before:.3f}", f"{one.after:.3f}", spell(one.gain), f"{one.changed:.1%}")
            table.add_row(Text(one.column), Text(one.metric), str(one.gain.n_items), *numbers)
        console.print(table)
        wide = [one.column for one in verdict.retention if not -one.gain.low <= limit]
        say(
            console,
            f"Acquisition: {spell(verdict.acquisition.gain)} on {verdict.acquisition.column!r}.",
            f"Retention: {spell(verdict.worst.gain)} on {verdict.worst.column!r}, the worst; budget {limit:.2%}, of"
            " this promotion alone: losses of several add up.",
            *verdict.remarks,
            *verdict.objections,
        )
        if wide and lenient:
            say(console, f"Judged as measured; the interval goes beyond the budget: {', '.join(wide)}.")
        if verdict.objections:
            say(console, f"{name!r} stays as it is; nothing was written.")
            raise typer.Exit(3)
        folder = write_adapter(promoted(found, name, verdict, limit, lenient), folder, out)
    say(console, f"{name!r} is permanent. Written to {folder}.")
