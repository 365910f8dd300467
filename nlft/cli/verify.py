"""`nlft verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nlft.cli.argument import AnyBase, NoRescore, going_on, open_console, say


def verify(
    adapter: Annotated[str, typer.Argument(metavar="DIR|USER/NAME[@REV]", help="What `nlft export` wrote.")],
    no_rescore: NoRescore = False,
    any_base: AnyBase = False,
) -> None:
    """Load an exported adapter in a fresh process and compare it with what was measured.

    Exits with 2 if it is something else.
    """
    console = open_console()
    with going_on():
        from nlft.cli.export import show_checks
        from nlft.premises import check_exported
        from nlft.remote import fetch_adapter, resolved_revision, split_revision

        folder = fetch_adapter(adapter)
        check_exported(folder)
        from nlft.verification import verify as check

        verified = check(folder, rescore=not no_rescore, any_base=any_base, console=console)
    show_checks(verified, console)
    verified.require()
    commit = None if Path(adapter).expanduser().exists() else resolved_revision(folder)
    shown = f"{split_revision(adapter)[0]}@{commit}" if commit else folder
    say(console, f"{shown}: {verified.sentence}")
