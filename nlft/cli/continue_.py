"""`nlft continue`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlft.cli.argument import Out, Overrides, fresh_folder, going_on, open_console

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="NAME=TRAIN,TEST|FILE.yaml",
        help="A new task: two files, or a YAML file with a task's section or a recipe. May be given several times.",
    ),
]


def continue_(
    start: Annotated[
        str, typer.Argument(metavar="RUN|ADAPTER|USER/NAME", help="A finished run, an adapter, or one on the Hub.")
    ],
    overrides: Overrides = None,
    task: Tasks = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Of what has been learned, if it brings none of its own.")
    ] = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="Which method, if the recipe has several.")] = None,
    out: Out = None,
) -> None:
    """Teach what has been learned a further task: a new run, which starts from the adapter.

    Base, method, probes and background stay those of the run. The tasks before become probes, and the new task is
    calibrated against them; `earlier=[]` leaves their rows out. For a run that was interrupted see `nlft resume`.
    """
    from nlft.cli.report import print_report
    from nlft.premises import check_source, check_tasks

    check_tasks(task)
    check_source(start)
    console = open_console()
    with going_on("continue", start):
        from nlft.continuing import next_recipe
        from nlft.run import run_method

        following = next_recipe(start, task or [], overrides, recipe, console)
    folder = out or fresh_folder(Path(following.out or f"runs/{following.name}"))
    try:
        run_method(following, method, folder, console=console)
    except KeyboardInterrupt:
        begun = ["resume", str(folder)] if (folder / "config.yaml").is_file() else []
        with going_on(*begun):
            raise
    print_report(folder, console)
