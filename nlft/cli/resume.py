"""`nlft resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlft.cli.argument import going_on, open_console, say
from nlft.errors import NlftError
from nlft.launch import check_verb, is_first


def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's or comparison's result folder.")],
    jobs: Annotated[int | None, typer.Option(help="Of a comparison: runs side by side; 1 by default.")] = None,
) -> None:
    """Go on with an interrupted run exactly as it was begun; the folder is all it needs.

    It ends with the same bits as an uninterrupted run. For a further task see `nlft continue`.
    """
    from nlft.cli.report import print_report
    from nlft.premises import check_run, finished_line

    if jobs is not None and jobs < 1:
        raise NlftError(f"--jobs: {jobs} is no number of runs.", "Give a number, 1 or more.")
    console, place = open_console(), Path(run).expanduser().resolve()
    check_run(place, run)
    if (place / "cells").is_dir():
        check_verb("compare")
    if (finished := finished_line(place, run)) is not None:
        say(console, *[finished] * is_first())
        if is_first():
            print_report(place, console)
        return
    with going_on("resume", run):
        from nlft.continuing import resume as go_on
        from nlft.distributed import leave_processes

        folder = go_on(run, jobs, console)
    if is_first():
        print_report(folder, console)
    leave_processes()
