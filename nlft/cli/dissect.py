"""`nlft dissect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nlft.cli.argument import going_on, open_console, say

if TYPE_CHECKING:
    from rich.table import Table

LOSSES = ("overwriting", "routing", "total", "no_router")
LEAKS = ("leakage", "leakage_ungated")


def dissect(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A result folder of `nlft train`.")],
) -> None:
    """Find out where a run forgets: in its parts, between them, or on the way to them.

    Scores the run's columns again with its adapter off, told the task, with everything open, without each of its parts,
    after ten rows again, and in mixed contexts. What is found becomes a part of the run's results; `nlft report RUN`
    draws it.
    """
    console = open_console()
    with going_on():
        from nlft.dissection import dissect_run

        done = dissect_run(run, console)
    for table in tables(done.where):
        console.print(table)
    say(console, f"Written to {done.folder / 'dissect.json'}. `nlft report {run}` writes the report again.")


def tables(where: dict[str, Any]) -> list[Table]:
    """The account of one run (`nlft.measure.where`) as tables."""
    found = [
        levels("task: lost since its training", where["tasks"], ("snapshot", "oracle", "on", "ungated"), LOSSES),
        levels("probe: lost since the base", where["probes"], ("base", "off", "on", "ungated"), LEAKS),
    ]
    for name, title in (("ablation", "without"), ("recovery", "ten rows again"), ("mixed", "on − base")):
        if name in where:
            found.append(plain_table(title, where[name]))
    if "overlap" in where:
        parts = where["overlap"]["parts"]
        matrix = {
            one: dict(zip(parts, line, strict=True))
            for one, line in zip(parts, where["overlap"]["jaccard"], strict=True)
        }
        found.append(plain_table("read in common (Jaccard)", matrix))
    fires = {title: where[name] for name, title in (("false_fire", "changed"), ("gate_fire", "read")) if name in where}
    if fires:
        found.append(plain_table("share of tokens", fires))
    if "identity" in where:
        told = where["identity"]
        found.append(plain_table("the prompt tells its task", {"words": told["recall"] | {"mean": told["accuracy"]}}))
    return found


def levels(title: str, entries: dict[str, Any], scores: tuple[str, ...], losses: tuple[str, ...]) -> Table:
    """Scores, and losses with their intervals."""
    from rich.table import Table

    table = Table(title, *scores, *(name.replace("_", " ") for name in losses))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in entries.items():
        cells = [number(entry[score]) for score in scores]
        for loss in losses:
            held = entry["intervals"].get(loss)
            span = f" ({number(held['low'])} to {number(held['high'])})" if held else ""
            cells.append(number(entry[loss], sign=True) + span)
        table.add_row(name, *cells)
    return table


def plain_table(title: str, entries: dict[str, dict[str, Any]]) -> Table:
    """Numbers by row and column."""
    from rich.table import Table

    names = list(dict.fromkeys(name for entry in entries.values() for name in entry))
    table = Table(title, *names)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, entry in entries.items():
        table.add_row(name, *(number(entry.get(column)) for column in names))
    return table


def number(value: Any, sign: bool = False) -> str:
    """Three digits; a dash where nothing was measured."""
    if value is None or value != value:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:+.3f}" if sign else f"{value:.3f}"
