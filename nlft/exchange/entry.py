"""What an exporter is given: one run, with all that is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlft.types import Item

Tree = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One run of a result folder."""

    summary: Tree
    """Of the folder, as `measure.summary` makes it."""
    run: Tree
    """Of the summary's `runs`."""
    row: Tree
    """Of `runs.parquet`."""
    recipe: Tree
    """The resolved recipe; empty if the folder has none."""
    adapter: Tree | None
    """PEFT's own config of the adapter, if the run's folder is still there."""
    items: Sequence[Item]
    """The run's scores."""

    @property
    def finished(self) -> bool:
        """Whether the run ended well."""
        return self.run["status"] == "ok"

    @property
    def sources(self) -> dict[str, Tree]:
        """The data section that scores each task and probe, by name."""
        entries = [(entry["name"], entry.get("test")) for entry in self.recipe.get("tasks") or []]
        entries += [(entry["name"], entry.get("data")) for entry in self.recipe.get("probes") or []]
        return {name: data for name, data in entries if isinstance(data, dict)}
