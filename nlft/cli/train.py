"""`nlft train`."""

from __future__ import annotations

from typing import Annotated

import typer

from nlft.cli.argument import Out, Overrides, RecipeName, going_on, open_console, output_folder, say
from nlft.launch import is_first, remark


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the recipe's methods.")] = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete stage in --out.")] = False,
) -> None:
    """Train one method on a recipe's tasks, one by one.

    It is measured on every task and probe before training and after each task. `accelerate launch -m nlft train …`
    shares the work over processes: each step's rows, calibration and scoring; see examples/accelerate.
    """
    from nlft.cli.report import print_report
    from nlft.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    console = open_console()
    say(console, *remark())

    words = ["train", recipe, *(overrides or [])]
    with going_on(*words):
        from nlft.plan import single_method
        from nlft.premises import check_folder

        chosen, name = single_method(loaded, method)
        folder = output_folder(out, loaded.out, f"{loaded.name}-{name}")
        # Another process may have begun already; and what an adapter's name stood for is looked at first.
        if is_first() and not (resume and loaded.adapter):
            check_folder(folder.resolve(), chosen, resume)
        from nlft.distributed import leave_processes
        from nlft.run import run_method
    try:
        run_method(loaded, method, folder, resume=resume, console=console)
    except KeyboardInterrupt:
        begun = ["--resume"] if (folder / "config.yaml").is_file() else []
        with going_on(*words, "--method", name, "--out", str(folder), *begun):
            raise
    if is_first():
        print_report(folder, console)
    leave_processes()
