"""`nlft report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlft.cli.argument import open_console

if TYPE_CHECKING:
    from rich.console import Console


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Result folder of `nlft train` or `nlft compare`.")],
) -> None:
    """Write a result folder's report again."""
    from nlft.errors import NlftError

    if not (run / "items.parquet").is_file():
        raise NlftError(
            f"{run} holds no results: there is no items.parquet.",
            "Give the folder that `nlft train` or `nlft compare` wrote.",
        )
    print_report(run, open_console())


def print_report(folder: Path, console: Console) -> None:
    """Write the report, print the table and say where the rest is."""
    from nlft.report import table, write_report

    console.print(table(write_report(folder)))
    console.print(f"Report: {folder / 'report.html'}", soft_wrap=True, markup=False, highlight=False)
