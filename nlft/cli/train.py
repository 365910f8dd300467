"""`nlft train`."""

from __future__ import annotations

from typing import Annotated

import typer

from nlft.cli.argument import Out, Overrides, RecipeName, going_on, open_console, output_folder


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    method: Annotated[str | None, typer.Option(metavar="NAME", help="Which of the recipe's methods.")] = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last complete stage in --out.")] = False,
) -> None:
    """Train one method on a recipe's tasks, one by one.

    It is measured on every task and probe before training and after each task.
    """
    from nlft.cli.report import print_report
    from nlft.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    console = open_console()

    words = ["train", recipe, *(overrides or [])]
    with going_on(*words):
        from nlft.plan import single_method
        from nlft.premises import check_folder

        chosen, name = single_method(loaded, method)
        folder = output_folder(out, loaded.out, f"{loaded.name}-{name}")
        if not (resume and loaded.adapter):  # else what the adapter's name stood for is looked at first
            check_folder(folder.resolve(), chosen, resume)
        from nlft.run import run_method
    try:
        run_method(loaded, method, folder, resume=resume, console=console)
    except KeyboardInterrupt:
        begun = ["--resume"] if (folder / "config.yaml").is_file() else []
        with going_on(*words, "--method", name, "--out", str(folder), *begun):
            raise
    print_report(folder, console)
