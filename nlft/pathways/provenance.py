"""What an adapter notes of its past: where each task came from, and which background calibrated it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from nlft.errors import NlftError

if TYPE_CHECKING:
    from nlft.data.template import Encoded
    from nlft.pathways.task import TaskPeftConfig

STAGED, PERMANENT = "staged", "permanent"
"""A task is staged until `nlft promote` has found that it keeps its promises."""
FACTS: dict[str, type] = {
    "status": str,
    "created": str,
    "rows": int,
    "tokens": int,
    "rows_sha256": str,
    "replay": bool,
    "reads": dict,
    "promoted": dict,
}
"""What may be known of a task, and its type."""
LONGEST_NAME = 200
"""Letters of a task's name."""
BACKGROUNDS = "background_sha256"
"""Key of `config.calibration`: the digests of every background that calibrated a task, in order."""


def note_task(config: TaskPeftConfig, name: str, rows: Sequence[Encoded], replay: bool = False) -> None:
    """Notes where a task comes from when its training begins; it is staged.

    Args:
        rows: its train rows.
        replay: whether rows of the past are trained on too.

    Raises:
        NlftError: the task has been learned already, and its provenance stands.
    """
    if name in config.tasks and name != config.active_task:
        raise NlftError(f"The task {name!r} has been learned already.", "Give the new task a name of its own.")
    config.provenance[name] = {
        "status": STAGED,
        "created": now(),
        "rows": len(rows),
        "tokens": sum(len(row.ids) for row in rows),
        "rows_sha256": digest(rows),
        "replay": replay,
    }


def note_background(config: TaskPeftConfig, rows: Sequence[Encoded]) -> None:
    """Notes the background that calibrates a task, so that its held-out half can be told from others later.

    Args:
        rows: all of it, the held-out half too.
    """
    join_backgrounds(config, [background_digest(rows)])


def join_backgrounds(config: TaskPeftConfig, digests: Sequence[str]) -> None:
    """Adds digests that are not noted yet."""
    every = list(dict.fromkeys([*backgrounds(config), *digests]))
    if every:
        config.calibration = {**config.calibration, BACKGROUNDS: every}


def backgrounds(config: TaskPeftConfig) -> list[str]:
    """Digests of the backgrounds that calibrated the adapter; empty if they were not noted."""
    return list(config.calibration.get(BACKGROUNDS, []))


def background_digest(rows: Sequence[Encoded]) -> str:
    """sha256 over the token ids and groups of rows, in their order: groups decide which rows are held out."""
    found = hashlib.sha256()
    for row in rows:
        found.update(repr((row.ids, row.cluster)).encode())
    return found.hexdigest()


def digest(rows: Sequence[Encoded]) -> str:
    """sha256 over the token ids and labels of rows, in their order."""
    found = hashlib.sha256()
    for row in rows:
        found.update(repr((row.ids, row.labels)).encode())
    return found.hexdigest()


def check_past(provenance: Mapping[str, Any], calibration: Mapping[str, Any]) -> None:
    """Refuses notes of other types than nlft writes; they come from a file that anyone may have made.

    Raises:
        NlftError: naming the entry.
    """
    hint = "Take a whole copy of the adapter."
    if not isinstance(provenance, Mapping) or not isinstance(calibration, Mapping):
        raise NlftError("provenance and calibration must be objects.", hint)
    for name, facts in provenance.items():
        check_name("provenance", name)
        if not isinstance(facts, Mapping):
            raise NlftError(f"provenance.{name} must be an object.", hint)
        for fact, value in facts.items():
            kind = FACTS.get(fact)
            odd = kind is not None and type(value) is not kind
            if odd or (isinstance(value, str) and not value.isprintable()):
                raise NlftError(f"provenance.{name}: {fact!r} is {value!r}, which nlft never writes.", hint)
        counts = facts.get("reads", {"tokens": 0, "total": 0})
        if any(type(counts.get(key)) is not int for key in ("tokens", "total")):
            raise NlftError(f"provenance.{name}.reads counts no tokens.", hint)
    digests = calibration.get(BACKGROUNDS, [])
    if not isinstance(digests, list) or not all(isinstance(one, str) and one.isprintable() for one in digests):
        raise NlftError(f"calibration.{BACKGROUNDS} must be a list of digests.", hint)


def check_name(field: str, name: Any) -> None:
    """Refuses the name of a task that would do more than be read when it is printed.

    Raises:
        NlftError: it is empty, no text, longer than `LONGEST_NAME`, or holds a character that cannot be printed.
    """
    if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
        raise NlftError(f"{field}: {repr(name)[:80]} is no name of a task.", "Use letters, digits, spaces and signs.")


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
