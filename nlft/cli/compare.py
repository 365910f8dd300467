"""`nlft compare`."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nlft.cli.argument import Out, Overrides, RecipeName, fresh_folder, going_on, open_console, output_folder, say
from nlft.errors import NlftError

if TYPE_CHECKING:
    from nlft.config import Recipe


class Executor(str, Enum):
    """Where runs are done."""

    local = "local"
    ray = "ray"


Jobs = Annotated[
    int | None,
    typer.Option(
        help="Runs side by side; each holds a base of its own. By default 1, and on Ray one for each GPU or core.",
    ),
]
Where = Annotated[
    Executor,
    typer.Option(
        help="`local` processes, or tasks on a `ray` cluster: the one at RAY_ADDRESS, else one on this machine. All"
        " its nodes must share the output folder and have nlft; the run of a lost worker is begun again."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would run and how long it may take, and stop.")]


def compare(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Out = None,
    jobs: Jobs = None,
    executor: Where = Executor.local,
    dry_run: DryRun = False,
) -> None:
    """Run all methods of a recipe, and compare them; or join finished results: `nlft compare RUN RUN…`.

    Every learning rate, seed and order is a run of its own. After an interruption, the same command goes
    on where it stopped; after an edit of the recipe, what is finished is used again. Exits with 1 if a run failed;
    the report then holds the others.

    Two or more result folders of one base, the same tasks and the same rows are joined into one report, in --out or
    runs/compare-…; nothing is trained.
    """
    if jobs is not None and jobs < 1:
        raise NlftError(f"--jobs: {jobs} is no number of runs.", "Give a number, 1 or more.")
    words = [recipe, *(overrides or [])]
    lost = [word for word in words if not (Path(word) / "runs.parquet").is_file()]
    if len(words) > 1 and len(lost) < len(words) and not any("=" in word for word in lost):
        return join([Path(word) for word in words], lost, out)
    choices = {"jobs": jobs, "executor": executor.value, "dry_run": dry_run}
    run(recipe, overrides, lambda found: output_folder(out, found.out, found.name), **choices)


def join(folders: list[Path], lost: list[str], out: Path | None) -> None:
    """Write one report over finished results, then print its table.

    Args:
        lost: those of the folders that hold no results.
    """
    from nlft.cli.report import print_report
    from nlft.joining import join as join_folders
    from nlft.joining import train_remark

    if lost:
        there = Path(lost[0]).exists()
        raise NlftError(
            f"{lost[0]!r} holds no finished run: it has no runs.parquet." if there else f"{lost[0]!r} does not exist.",
            "Give result folders alone to join them, or one recipe and key=value for each change.",
        )
    names = "-".join(folder.resolve().name for folder in folders)
    out = out or fresh_folder(Path(f"runs/compare-{names}"))
    console = open_console()
    join_folders(folders, out)
    say(console, *train_remark(folders))
    print_report(out, console)


def run(recipe: str, overrides: list[str] | None, folder: Callable[[Recipe], Path], **choices: Any) -> None:
    """Compare, then print the table; exit with 1 if a run failed.

    Args:
        choices: of `nlft.compare.compare`.
    """
    from nlft.cli.report import print_report
    from nlft.measure.items import read_runs
    from nlft.progress import counted
    from nlft.recipes import load_recipe

    loaded = load_recipe(recipe, overrides)
    console = open_console()

    out = folder(loaded)
    with going_on("compare", recipe, *(overrides or []), "--out", str(out)):
        from nlft.compare import compare as run_comparison

        run_comparison(loaded, out, console=console, **choices)
    if choices.get("dry_run"):
        return
    print_report(out, console)
    runs = read_runs(out / "runs.parquet")  # those of the bounds too, which the summary does not list
    failed = [run["run_id"] for run in runs if run["status"] != "ok"]
    if failed:
        console.print(
            f"{len(failed)} of {counted(len(runs), 'run')} failed: {', '.join(failed)}.",
            style="red",
            markup=False,
            highlight=False,
        )
        raise typer.Exit(1)
