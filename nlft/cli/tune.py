"""`nlft tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nlft.cli.argument import Out, going_on, open_console, read_share, say

if TYPE_CHECKING:
    from rich.table import Table

    from nlft.tune import Tuned


def tune(
    adapter: Annotated[str, typer.Argument(metavar="RUN|ADAPTER", help="A PEFT adapter's folder, or a result folder.")],
    budget: Annotated[str, typer.Option(metavar="SHARE", help="Most predictions lost, as 0.5% or 0.005.")],
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Base, tasks and probes; a run brings its own.")
    ] = None,
    background: Annotated[
        str | None, typer.Option(metavar="PATH", help="Held-out text; else what the recipe's `retention` held out.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Turn this task alone; may be given again.")
    ] = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the curve and write nothing.")] = False,
) -> None:
    """Turn an adapter's thresholds to a retention budget, without training.

    Predictions lost on held-out background stay within the budget; of the shifts for which that holds, the one is
    written that does best on the tasks' train rows.
    """
    from nlft.recipes import load_recipe

    share = read_share(budget, "--budget")
    loaded = load_recipe(recipe) if recipe else None
    console = open_console()
    with going_on():
        from nlft.report.curve import show_shift
        from nlft.tune import tune_adapter

        tuned = tune_adapter(
            adapter, loaded, share, background=background, tasks=task, out=out, dry_run=dry_run, console=console
        )
    console.print(curve_table(tuned))
    say(
        console,
        f"Shift {show_shift(tuned.shift)} for {', '.join(tuned.tasks)} (the budget allows {show_shift(tuned.smallest)}"
        f" and more): a new group of rows like the held-out {tuned.clusters} ({tuned.rows} rows) loses at most"
        f" {100 * share:g} % of its predictions, in expectation.",
        f"Written to {tuned.folder}." if tuned.folder else "Nothing was written (--dry-run).",
    )


def curve_table(tuned: Tuned) -> Table:
    """The curve as a table, the chosen shift marked."""
    from rich.table import Column, Table
    from rich.text import Text

    from nlft.measure.unit import show
    from nlft.report.curve import show_shift

    table = Table("shift", "lost %", "bound %", "train %", *(Column(Text(column.name)) for column in tuned.columns), "")
    for column in table.columns:
        column.justify = "right"
    for point in tuned.points:
        scores = [show(value, column.unit, False) for value, column in zip(point.scores, tuned.columns, strict=True)]
        mark = "chosen" if point.chosen else ""
        shares = [f"{100 * share:.3f}" for share in (point.lost, point.bound, point.learned)]
        table.add_row(show_shift(point.shift), *shares, *scores, mark)
    return table
