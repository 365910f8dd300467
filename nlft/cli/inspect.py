"""`nlft inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlft.cli.argument import Overrides, going_on, open_console

if TYPE_CHECKING:
    from rich.table import Table

    from nlft.inspect import Inspection


def inspect(
    target: Annotated[
        str, typer.Argument(metavar="ADAPTER|RECIPE", help="An adapter's or result folder, or a recipe, untrained.")
    ],
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="Method of the recipe.")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Base and rows for an adapter; a run brings its own.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything to this file too.")] = None,
) -> None:
    """Show how keys are read, before or after training: health, silence, and what wordings have in common."""
    from nlft.recipes import load_recipe

    loaded = load_recipe(recipe, overrides or []) if recipe else None
    console = open_console()
    with going_on():
        from nlft.inspect import inspect_keys

        found = inspect_keys(target, overrides or [], method, loaded, console)
    for table in tables(found):
        console.print(table)
    for sentence in found.remarks:
        console.print(sentence, style="bold", markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        from dataclasses import asdict
        from json import dumps

        from nlft.checkpoint import write_text

        write_text(json, dumps(asdict(found), indent=2))


def tables(found: Inspection) -> list[Table]:
    """Everything as tables; those with nothing in them are left out."""
    from rich.table import Table

    health = Table("table", "slots", "usage", "KL", "top 1 %", "median df", "slots by df, tenths of the documents")
    for one in found.tables:
        deciles = " ".join(map(str, one.deciles))
        shares = (percent(one.usage), f"{one.divergence:.2f}", percent(one.top_share), percent(one.median))
        health.add_row(one.block, str(one.slots), *shares, deciles)
    if found.tables:
        first = found.tables[0]
        health.caption = f"{first.documents} background documents of at most {first.document_tokens} tokens"
    slots = Table("task", "block", "slots", "ever read", "owned tokens", "thresholds", "overlap", "core", "no core")
    for one in found.slots:
        limits = " ".join(f"{limit:.2f}" for limit in one.thresholds or [])
        core, facts = one.core, one.core.facts
        overlap, shared = f"{core.overlap:.2f}", f"{core.shared:.1f}"
        if one.table_core is not None:
            overlap, shared = f"{overlap} ({one.table_core.overlap:.2f})", f"{shared} ({one.table_core.shared:.1f})"
        apart = f"{core.apart} of {facts}"
        slots.add_row(
            one.task, one.block, str(one.slots), percent(one.ever), percent(one.owned), limits, overlap, shared, apart
        )
    slots.caption = "core: slots of the task that all wordings of a fact read, mean over facts"
    if found.tables:
        slots.caption += "; in brackets: of the whole table"
    firing = Table("task", "read by", "rows", "tokens", "rows that read", "tokens that read")
    for one in found.firing:
        shares = (percent(one.row_share, 2), percent(one.token_share, 2))
        firing.add_row(one.task, one.text, str(one.rows), str(one.tokens), *shares)
    kept = [table for table in (health, slots, firing) if table.row_count]
    for table in kept:
        for column in table.columns:
            if column.header not in ("table", "task", "block", "read by"):
                column.justify = "right"
    return kept


def percent(share: float, digits: int = 1) -> str:
    """`12.3 %`."""
    return f"{100 * share:.{digits}f} %"
