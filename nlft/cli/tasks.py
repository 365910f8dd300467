"""`nlft tasks`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlft.cli.argument import Out, going_on, open_console, say
from nlft.errors import NlftError

if TYPE_CHECKING:
    from rich.console import Console

    from nlft.lifecycle import Overlap
    from nlft.pathways.lifecycle import Adapter

AdapterPath = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="An adapter's folder, or a result folder of `nlft train`.")
]
CHECK_BUDGET = "The retention budget was set for the adapter as it was; check it with `nlft tune`."
"""Said after a change of what is read."""


def tasks(
    adapter: AdapterPath,
    remove: Annotated[str | None, typer.Option(metavar="NAME", help="Take this task out.")] = None,
    add: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Put the tasks of another adapter behind its own.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Rows on which overlaps between tasks are measured.")
    ] = None,
    out: Out = None,
) -> None:
    """List the tasks that an adapter holds; remove one, or add those of another adapter.

    The adapter is changed in place unless --out names another folder.
    """
    if remove is not None and add is not None:
        raise NlftError("--remove and --add cannot be used at once.", "Use one after the other.")
    if out is not None and remove is None and add is None:
        raise NlftError("--out has no effect without --remove or --add.", "Leave it out.")
    console = open_console()
    with going_on():
        from nlft.adapter import adapter_folder, read_adapter, write_adapter
        from nlft.pathways.lifecycle import has_thresholds

        folder = adapter_folder(adapter)
        found = read_adapter(folder)
        if remove is not None:
            found = _removed(found, folder, remove, recipe, console)
        elif add is not None:
            found = _added(found, folder, add, recipe, console)
        if remove is not None or add is not None:
            folder = write_adapter(found, folder, out)
            say(console, f"Written to {folder}.")
            if has_thresholds(found.config):
                say(console, CHECK_BUDGET)
        _print(found, console)


def _removed(found: Adapter, folder: Path, name: str, recipe: str | None, console: Console) -> Adapter:
    from nlft.adapter import recipe_of
    from nlft.lifecycle import overlaps
    from nlft.pathways.lifecycle import without_tasks

    rest = without_tasks(found, [name])
    gated = name in found.config.gates
    for overlap in overlaps(found, folder, name, recipe_of(folder, recipe, console)):
        say(console, _spelled(name, overlap, gated))
    later = list(found.config.tasks)[list(found.config.tasks).index(name) + 1 :]
    if gated and later:
        say(
            console,
            f"The gates of {', '.join(map(repr, later))} no longer weigh a text against {name!r}, and may open on text"
            " like its rows: score the result with `nlft eval`.",
        )
    say(console, f"Removed {name!r}: its slots and the keys of its gate are gone, all other tensors are as they were.")
    return rest


def _spelled(name: str, overlap: Overlap, gated: bool) -> str:
    if overlap.share is None:
        return f"{overlap.task!r}: whether it was trained while {name!r} was read is not known ({overlap.reason})."
    if overlap.share:
        return (
            f"{overlap.task!r}: {overlap.share:.2%} of the {overlap.tokens:,} tokens of its train rows read {name!r},"
            f" and it was trained beside what they read. Train it again without {name!r} if that matters."
        )
    none = f"{overlap.task!r}: none of the {overlap.tokens:,} tokens of its train rows reads {name!r}, so its training"
    none += " read nothing of it; its calibration may have. "
    if gated:
        return none + (
            "Its gate reads states in front of every pathway, which no task touches, but what the gate must pass was"
            f" set with the keys of {name!r} among its rivals."
        )
    return none + f"Its slots were placed over background and earlier rows too, while {name!r} was on."


def _added(found: Adapter, folder: Path, other: str, recipe: str | None, console: Console) -> Adapter:
    from nlft.adapter import adapter_folder, read_adapter, recipe_of
    from nlft.lifecycle import cross_reads
    from nlft.pathways.lifecycle import shared_rows, with_tasks

    second = read_adapter(adapter_folder(other))
    joined = with_tasks(found, second)
    new = list(second.config.tasks)
    for (one, two), count in shared_rows(joined).items():
        if (one in new) != (two in new):
            say(console, f"{one!r} and {two!r} share {count:,} rows of the table, and add up where one is read.")
    if found.config.base_fingerprint is None:
        say(console, "Neither adapter notes its base's weights, so it is unknown whether they were the same.")
    rows = recipe_of(folder, recipe, console)
    if rows is None:
        say(
            console,
            "The tasks of both were not calibrated against each other: give --recipe to measure how often they are"
            " read on each other's rows, and score the result with `nlft eval`.",
        )
    else:
        for reader, read, share in cross_reads(joined, folder, rows, new):
            say(console, f"{share:.2%} of the tokens of {reader!r} read {read!r}.")
    say(console, f"Added {', '.join(map(repr, new))}.")
    return joined


def _print(found: Adapter, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from nlft.lifecycle import describe

    lines = describe(found)
    if not lines:
        say(console, "The adapter has no tasks.")
        return
    table = Table("task", "slots or rank", "bytes", "status", "created", "rows", "rows sha256", "read by")
    for column in (1, 2, 5):
        table.columns[column].justify = "right"
    for line in lines:
        rows = "unknown" if line.rows is None else f"{line.rows:,}"
        table.add_row(
            Text(line.name),
            line.size,
            f"{line.n_bytes:,}",
            Text(line.status),
            Text(line.created),
            rows,
            Text(line.rows_sha256[:12]),
            line.reads,
        )
    console.print(table)
