"""Which analyses there are, and what they leave behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from nlft.checkpoint import write_text
from nlft.dissect.ablation import without_parts
from nlft.dissect.mixed import mixed_contexts
from nlft.dissect.reading import TAU, changed_tokens, firing_tokens, prompt_identity, read_overlap
from nlft.dissect.recovery import recovered
from nlft.dissect.study import ROWS, Study
from nlft.distributed import leads
from nlft.types import Item

SCORED: dict[str, Callable[[Study], list[Item]]] = {
    "ablation": without_parts,
    "recovery": recovered,
    "mixed": mixed_contexts,
}
"""Analyses that give scores; the others give facts."""


def dissect(study: Study, kinds: Sequence[str], path: Path, console: Console | None = None) -> list[Item]:
    """Runs analyses (`measure.dissect`); what is no score goes into a file.

    Args:
        kinds: of `nlft.config.MeasureConfig.dissect`; what a method does not have is left out.
        path: of `dissect.json`, which also lists what was asked for.

    Returns:
        Scores under conditions with a colon, which `nlft.measure.condition` lists.
    """
    items: list[Item] = []
    facts: dict[str, Any] = {"conditions": list(study.recipe.measure.conditions), "kinds": list(kinds), "rows": ROWS}
    for kind in kinds:
        if console is not None:
            console.print(f"{kind} …", style="dim", highlight=False)
        if kind in SCORED:
            items += SCORED[kind](study)
        elif kind == "identity":
            told = prompt_identity(study)
            facts["identity"] = asdict(told) if told else None
        elif kind == "overlap":
            facts["overlap"] = read_overlap(study)
        else:
            facts |= {"false_fire": changed_tokens(study), "gate_fire": firing_tokens(study), "tau": TAU}
    if leads():
        write_text(path, json.dumps(facts, indent=1, ensure_ascii=False))
    return items


def facts_of(folder: Path) -> str | None:
    """What `dissect` has left in a folder, as JSON; None if nothing was asked for."""
    path = folder / "dissect.json"
    return json.dumps(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None
