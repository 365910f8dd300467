"""How far a comparison is: a live table on a terminal, one line a finished run elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from nlft.executor import Ended
from nlft.pace import clock
from nlft.plan import Cell

TAIL = 4096
"""Bytes of the end of `events.jsonl` that are read."""


class Progress:
    """Follows the cells of a comparison by what they write, wherever they run.

    Args:
        cells: all of the plan.
        todo: those that will run.
        out: result folder of the comparison.
        expected: seconds that all will take, until the first has ended.
    """

    def __init__(
        self, cells: Sequence[Cell], todo: Sequence[Cell], out: Path, expected: float, console: Console
    ) -> None:
        self.cells, self.todo, self.out = list(cells), {cell.name: cell for cell in todo}, out
        self.expected, self.console = expected, console
        self.ended: dict[str, str] = {}
        """What went wrong, by cell that ended; empty if nothing did."""
        self.begun_at, self.begun = time.time(), time.perf_counter()
        self.live = Live(console=console, get_renderable=self.table, refresh_per_second=1)

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def note(self, end: Ended) -> None:
        """Takes in that a cell ended, and says so: on a terminal only what failed, for the table shows the rest."""
        self.ended[end.cell.name] = end.problem
        said = f" failed: {end.problem}" if end.problem else ""
        left = "" if len(self.ended) == len(self.todo) else f"; about {clock(self.time_left())} left"
        if said or not self.console.is_terminal:
            line = f"[{len(self.ended)}/{len(self.todo)}] {end.cell.name}{said}{left}"
            self.console.print(line, style="red" if said else "", markup=False, highlight=False)

    def time_left(self) -> float:
        """Seconds, from the pace so far."""
        spent = time.perf_counter() - self.begun
        if not self.ended:
            return max(self.expected - spent, 0.0)
        return spent / len(self.ended) * (len(self.todo) - len(self.ended))

    def table(self) -> Table:
        """One line a method: how many of its runs are finished, running and failed, and the newest line of one."""
        table = Table(
            caption=f"{len(self.ended)} of {counted(len(self.todo), 'run')}; about {clock(self.time_left())} left"
        )
        table.add_column("method")
        for name in ("runs", "finished", "running", "failed"):
            table.add_column(name, justify="right")
        table.add_column("last line")
        running = self.running()
        for method in dict.fromkeys(cell.method for cell in self.cells):
            own = [cell for cell in self.cells if cell.method == method]
            failed = sum(bool(self.ended.get(cell.name)) for cell in own)
            done = sum(cell.name not in self.todo or cell.name in self.ended for cell in own) - failed
            now = [(event, cell) for cell, event in running if cell.method == method]
            last = max(now, key=lambda pair: pair[0].get("time", 0), default=None)
            line = "" if last is None else f"{last[1].name.rpartition('-')[0]}: {sentence(last[0])}"
            table.add_row(Text(method), *map(str, (len(own), done, len(now), failed)), Text(line))
        return table

    def running(self) -> list[tuple[Cell, dict[str, Any]]]:
        """Cells that have begun and not ended, each with its newest event."""
        found = []
        for name, cell in self.todo.items():
            path = self.out / "cells" / name / "events.jsonl"
            try:
                if name not in self.ended and path.stat().st_mtime >= self.begun_at:
                    found.append((cell, last_event(path)))
            except OSError:
                continue  # not begun, or begun anew at this moment
        return found


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def last_event(path: Path) -> dict[str, Any]:
    """The newest whole line of `events.jsonl`; empty if there is none."""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - TAIL, 0))
        lines = file.read().split(b"\n")[:-1]
    try:
        found = json.loads(lines[-1])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def sentence(event: dict[str, Any]) -> str:
    """An event in words."""
    if event.get("event") == "step":
        return f"task {event.get('stage')}, step {event.get('step')}, loss {event.get('loss', float('nan')):.3f}"
    words = {"start": "begins", "stage": "prepares", "measured": "has learned", "end": "ends"}
    return f"{words.get(str(event.get('event')), '')} {event.get('task', '')}".strip()
