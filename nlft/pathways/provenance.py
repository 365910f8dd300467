"""Where a task of an adapter came from, and what is known of it since: `config.provenance[name]`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from nlft.pathways.task import TaskPeftConfig

if TYPE_CHECKING:
    from nlft.data.template import Encoded

STAGED, PERMANENT = "staged", "permanent"
"""A task is staged until `nlft promote` has found that it keeps its promises."""


def note_task(config: TaskPeftConfig, name: str, rows: Sequence[Encoded], replay: bool = False) -> None:
    """Notes where a task comes from when its training begins; it is staged.

    Args:
        rows: its train rows.
        replay: whether rows of the past are trained on too.
    """
    config.provenance[name] = {
        "status": STAGED,
        "created": now(),
        "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "rows_sha256": digest(rows),
        "replay": replay,
    }


def digest(rows: Sequence[Encoded]) -> str:
    """sha256 over the token ids and labels of rows, in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(repr((row.ids, row.labels)).encode())
    return found.hexdigest()


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
