"""`nlft gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlft.cli.argument import open_console, read_share, say

if TYPE_CHECKING:
    from rich.table import Table

    from nlft.verdict import Finding


def gate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Result folder of `nlft train` or `nlft compare`.")],
    max_drop: Annotated[
        str, typer.Option(metavar="SHARE", help="Most that a probe may lose: 1% is a point of accuracy.")
    ] = "1%",
    max_nats: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="The same for likelihoods, in their unit: nats a token or bits a byte."),
    ] = None,
    min_learned: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            help="Least learning at the end; 0 is the base, 1 all that could be learned (for likelihoods: the most that"
            " any run here learned).",
        ),
    ] = None,
    confident: Annotated[
        bool, typer.Option("--confident", help="The upper end of the 95 % interval must keep to the limit, too.")
    ] = False,
    probe: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this probe; can be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this method; can be repeated.")] = None,
) -> None:
    """Check that a finished run has kept what the base knew; for continuous integration.

    Of a comparison, every method is judged at its best learning rate, run by run. Losses are since the base, over the
    same items, with the adapter on. Reads results only; trains and writes nothing.

    Exit codes: 0 it holds; 3 a limit is broken; 2 bad input, or something that was not measured: that is no pass.
    """
    from nlft.errors import NlftError
    from nlft.measure.summary import summary_of
    from nlft.verdict import Limits, excess, judge

    least = None if min_learned is None else read_share(min_learned, "--min-learned", True)
    if max_nats is not None and not 0 <= max_nats < float("inf"):
        raise NlftError(f"--max-nats: {max_nats} is no loss.", "Give a number, 0 or more, such as 0.05.")
    limits = Limits(read_share(max_drop, "--max-drop", True), max_nats, least, confident)
    found = judge(summary_of(run), limits, probe or (), method or ())
    console = open_console()
    console.print(table(found))
    broken = [one for one in found if one.holds is False]
    unknown = [one for one in found if one.holds is None]
    if broken:
        worst = max(broken, key=excess)
        more = len(broken) - 1
        others = f"; {more} other check{'s' * (more > 1)} broken, too" if more else ""
        say(console, f"It does not hold: {spell(worst)}{others}.")
        raise typer.Exit(3)
    if unknown:
        names = ", ".join(f"{one.what} of {one.run_id}" for one in unknown)
        raise NlftError(f"Not measured, which is no pass: {names}.", "Score these rows, or choose others with --probe.")
    runs = len({one.run_id for one in found})
    sure = ", with 95 % confidence over items" if confident else ""
    say(console, f"It holds{sure} (checks: {len(found)}; runs: {runs}).")


def table(found: list[Finding]) -> Table:
    """Every finding in a line."""
    from rich.table import Table
    from rich.text import Text

    grid = Table("run", "what", "lost [95 %]", "limit", "")
    for place in (2, 3):
        grid.columns[place].justify = "right"
    words = {True: "holds", False: "BROKEN", None: "not measured"}
    for one in found:
        cells = (one.run_id, one.what, amount(one), bound(one), words[one.holds])
        grid.add_row(*[Text(cell) for cell in cells])
    return grid


def amount(one: Finding) -> str:
    """A loss with its interval, or what was learned."""
    from nlft.measure.unit import show, show_loss

    if one.what == "learned":
        return show(one.value, one.unit)
    text = show_loss(one.value, one.unit)
    if one.low is None or one.high is None:
        return text
    return f"{text} [{show_loss(one.low, one.unit, False)}, {show_loss(one.high, one.unit, False)}]"


def bound(one: Finding) -> str:
    """The limit of a finding."""
    from nlft.measure.unit import show, show_loss

    if one.what == "learned":
        return f"at least {show(one.limit, one.unit)}"
    return f"at most {show_loss(one.limit, one.unit)}"


def spell(one: Finding) -> str:
    """A broken limit in words."""
    if one.what == "learned":
        return f"{one.run_id} learned {amount(one)}, {bound(one)} required"
    return f"{one.run_id} lost on {one.what}: {amount(one)}, {bound(one)} allowed"
