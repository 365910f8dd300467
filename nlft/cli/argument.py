"""Arguments that several verbs share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlft.launch import is_spokesman

if TYPE_CHECKING:
    from rich.console import Console

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name (see `nlft ls`) or YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Other values for the recipe, such as train.steps=50."),
]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Output folder.")]
ScoredBy = Annotated[
    str | None,
    typer.Option("--recipe", metavar="RECIPE", help="Base, tasks and probes; runs and exports bring their own."),
]
AnyBase = Annotated[bool, typer.Option("--any-base", help="Take another base than the adapter was made for.")]
NoRescore = Annotated[bool, typer.Option("--no-rescore", help="Do not score tasks and probes again.")]

WIDTH = 140
"""Columns of a table that goes to a file or a pipe."""


def open_console() -> Console:
    """Where verbs print: colours and a live line on a terminal, plain lines elsewhere."""
    import os
    import warnings

    from rich.console import Console

    # Libraries read these when they are imported: one live line is enough.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # PEFT and accelerate still use the older of two names in transformers; a user can do nothing about it.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
    # PEFT corrects this setting for GPT-2's layers by itself, and says so for every layer.
    warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


@contextmanager
def going_on(*words: str) -> Iterator[None]:
    """Says after Ctrl-C how to go on: with `nlft` and these words, if there are any."""
    try:
        yield
    except KeyboardInterrupt:
        how = f" Go on with: nlft {shlex.join(words)}" if words else ""
        if is_spokesman():
            print(f"Interrupted.{how}", file=sys.stderr)
        raise


def fresh_folder(folder: Path) -> Path:
    """The folder itself if nothing is there, else the first free one of `folder-2`, `folder-3` …"""
    candidate, number = folder, 2
    while candidate.exists():
        candidate, number = folder.with_name(f"{folder.name}-{number}"), number + 1
    return candidate


def output_folder(out: Path | None, recipe_out: str | None, name: str) -> Path:
    """`--out`, else the recipe's `out`, else `runs/<name>`."""
    return out or Path(recipe_out or f"runs/{name}")


def read_share(text: str, option: str, ends: bool = False) -> float:
    """`0.5%` or `0.005` as a number between 0 and 1.

    Args:
        ends: whether 0 and 1 will do.

    Raises:
        NlftError: it is no such number.
    """
    from nlft.config import parse_share
    from nlft.errors import NlftError

    hint = "Write a share between 0 and 1, as 0.005, or a percentage, as 0.5%."
    try:
        share = float(parse_share(text))
    except ValueError:
        raise NlftError(f"{option}: {text!r} is no share.", hint) from None
    if not (0 <= share <= 1 if ends else 0 < share < 1):
        raise NlftError(f"{option}: {text} is not between 0 and 1.", hint)
    return share


def say(console: Console, *lines: str) -> None:
    """Prints sentences as they are: what they name may come from a file."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
