"""`nlft prune`."""

from __future__ import annotations

from typing import Annotated

import typer

from nlft.cli.argument import Out, going_on, open_console, say
from nlft.cli.tasks import CHECK_BUDGET, AdapterPath
from nlft.errors import NlftError


def prune(
    adapter: AdapterPath,
    traffic: Annotated[
        str, typer.Option(metavar="FILE|builtin:…", help="Text as the adapter meets it: a file, directory or dataset.")
    ],
    min_reads: Annotated[int, typer.Option(min=1, help="Tokens that must read a slot for it to stay.")] = 1,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="The base, and evaluations to score before and after.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count and measure; write nothing.")] = False,
    out: Out = None,
) -> None:
    """Remove the slots that a text does not read, and measure what that changes.

    One slot stays at every block of a task. A task that nothing reads is better removed by `nlft tasks --remove`.
    """
    if dry_run and out is not None:
        raise NlftError("--out has no effect with --dry-run.", "Leave one of them out.")
    console = open_console()
    with going_on():
        from rich.table import Table
        from rich.text import Text

        from nlft.adapter import adapter_folder, read_adapter, write_adapter
        from nlft.pathways.lifecycle import has_thresholds
        from nlft.promotion import spell
        from nlft.pruning import prune as prune_adapter
        from nlft.recipes import load_recipe

        folder = adapter_folder(adapter)
        found = read_adapter(folder)
        done = prune_adapter(found, folder, traffic, min_reads, load_recipe(recipe) if recipe else None)
        table = Table("task", "read by tokens", "slots", "unread", "removed", "bytes before", "bytes after")
        for column in table.columns[1:]:
            column.justify = "right"
        for cut in done.cuts:
            counts = (cut.slots, cut.unread, cut.removed, cut.bytes_before, cut.bytes_after)
            table.add_row(Text(cut.name), f"{cut.read_share:.2%}", *(f"{count:,}" for count in counts))
        console.print(table)
        lines = [
            f"Traffic: {done.n_tokens:,} tokens. Largest logit difference on it: {done.silenced:.2g} with the removed"
            f" slots silent, {done.removed:.2g} with them gone (shorter sums round otherwise)."
        ]
        lines += [
            f"No token reads {cut.name!r}: consider `nlft tasks … --remove {cut.name!r}`."
            for cut in done.cuts
            if not cut.read_share
        ]
        say(console, *lines)
        if done.effects:
            table = Table("column", "metric", "rows", "before", "after", "change [95 %]", "rows changed")
            for one in done.effects:
                numbers = (f"{one.before:.3f}", f"{one.after:.3f}", spell(one.gain), f"{one.changed:.1%}")
                table.add_row(Text(one.column), Text(one.metric), str(one.gain.n_items), *numbers)
            console.print(table)
        if dry_run:
            say(console, "Nothing was written.")
            return
        folder = write_adapter(done.adapter, folder, out)
    say(console, f"Written to {folder}.")
    if has_thresholds(done.adapter.config):
        say(console, CHECK_BUDGET)
