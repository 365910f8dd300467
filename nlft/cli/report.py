"""`nlft report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlft.cli.argument import open_console, say

if TYPE_CHECKING:
    from rich.console import Console


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Result folder of `nlft train` or `nlft compare`.")],
    export: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help="Write every run into RUN/export/FORMAT as well: `peft` (its method comparison, with a block"
            " `continual`) or `every-eval-ever`; can be repeated.",
        ),
    ] = None,
) -> None:
    """Write a result folder's report again."""
    from nlft.errors import NlftError

    if not (run / "items.parquet").is_file():
        raise NlftError(
            f"{run} holds no results: there is no items.parquet.",
            "Give the folder that `nlft train` or `nlft compare` wrote.",
        )
    from nlft.exchange import export as export_runs
    from nlft.exchange import known_format
    from nlft.report import write_report

    for name in export or ():
        known_format(name)
    write_report(run)
    console = open_console()
    print_report(run, console)
    for name in export or ():
        files = export_runs(run, name)
        say(console, f"Exported: {len(files)} run{'s' * (len(files) != 1)} to {run / 'export' / name}")


def print_report(folder: Path, console: Console) -> None:
    """Print the table of a result folder and say where the rest is."""
    import json

    from nlft.report import table

    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    console.print(table(summary))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, markup=False, highlight=False)
