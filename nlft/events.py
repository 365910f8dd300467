"""What happens in a run, told twice: as lines of `events.jsonl`, and as one live line in the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Events:
    """Appends one JSON object a line to a file; every line has `time` (Unix seconds) and `event`."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def write(self, event: str, **fields: Any) -> None:
        """Appends one line; does nothing without a path."""
        if self.path is None:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}) + "\n")


class StageLine:
    """One live line (loss, tokens a second, time left) on a terminal; nothing while running elsewhere."""

    def __init__(self, console: Console, label: str, steps: int) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tok/s"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.bar = self.progress.add_task(label, total=steps, loss=float("nan"), speed=0.0)
        self.started = time.perf_counter()

    def __enter__(self) -> StageLine:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, loss: float, tokens: int) -> None:
        """Moves one step on.

        Args:
            loss: nats per target token of the step.
            tokens: input tokens since the stage began.
        """
        speed = tokens / max(time.perf_counter() - self.started, 1e-9)
        self.progress.update(self.bar, advance=1, loss=loss, speed=speed)
