"""`nlft chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlft.cli.argument import going_on, open_console, say

if TYPE_CHECKING:
    from rich.console import Console

    from nlft.chat import Chat


def chat(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="A Hope adapter, or a result folder with one.")],
    session: Annotated[
        Path, typer.Option(metavar="FILE", help="What the memory has learned; made if it is not there.")
    ],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The base; the adapter's own when left out.")
    ] = None,
    length: Annotated[int, typer.Option(metavar="TOKENS", min=1, help="Longest answer.")] = 200,
) -> None:
    """Talk to a model whose memory keeps learning, from one conversation to the next."""
    console = open_console()
    with going_on("chat", adapter, "--session", str(session)):
        from nlft.chat import COMMANDS, open_chat

        opened = open_chat(adapter, session, base, length, console)
        say(console, COMMANDS)
        last = ""
        with opened.session:
            for line in lines():
                if line == "/quit":
                    break
                last = turn(opened, line, last, session, console)


def turn(opened: Chat, line: str, last: str, file: Path, console: Console) -> str:
    """Does what a line asks for; gives the last line that was answered."""
    from nlft.chat import COMMANDS

    word, _, rest = line.partition(" ")
    if word == "/off":
        text = rest.strip() or last
        say(console, opened.answer_without(text) if text else COMMANDS)
        return last
    if line == "/changed":
        show_changes(opened, console)
        return last
    if line == "/reset":
        opened.reset()
        say(console, "The memory is empty.")
    elif line.startswith("/"):
        say(console, COMMANDS)
        return last
    else:
        say(console, opened.answer(line))
        last = line
    opened.session.save(file)
    return last


def show_changes(opened: Chat, console: Console) -> None:
    """Prints how far every block's memory has moved since the chat began."""
    changes = opened.session.changed()
    if not changes:
        say(console, "Nothing was read yet.")
    for block, change in changes.items():
        say(console, f"{block}: {change.tokens[0]} tokens read, {change.relative[0]:.1%} of the memory is new.")


def lines() -> Iterator[str]:
    """Lines of the terminal or of a pipe, without those that are empty."""
    asks = sys.stdin.isatty()
    while True:
        try:
            line = input("> " if asks else "").strip()
        except EOFError:
            return
        if line:
            yield line
