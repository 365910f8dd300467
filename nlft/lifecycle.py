"""What the tasks of a stored adapter are and do to each other, measured on their base."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlft.base import FrozenBase, load_base
from nlft.config import BaseConfig, Recipe
from nlft.data.batch import in_batches
from nlft.data.domain import load_domains
from nlft.data.template import Encoded
from nlft.errors import BaseModelError, NlftError
from nlft.pathways.lifecycle import Adapter, attach, known, task_bytes, without_tasks
from nlft.pathways.provenance import digest
from nlft.pathways.reads import count_reads, gate_changes
from nlft.prepare import prepare
from nlft.rescore import load_weights

BATCH = 32
"""Rows of a forward pass that counts reads."""


def open_model(adapter: Adapter, folder: Path, recipe: Recipe | None) -> tuple[FrozenBase, Any]:
    """The base, and the PEFT model with the adapter under the name `default`.

    Args:
        recipe: names the base; the adapter's own note of it when None.

    Raises:
        NlftError: there is no base, or the adapter was made for another one.
    """
    name = adapter.config.base_model_name_or_path
    if recipe is None and not name:
        raise NlftError(f"{folder} does not say which base it was made for.", "Name a recipe with --recipe.")
    try:
        base = load_base(BaseConfig(model=name) if recipe is None and name else recipe.base)  # pyright: ignore
    except BaseModelError as error:
        raise BaseModelError(
            error.message, f"{error.hint} Or name a recipe with --recipe, whose base is taken."
        ) from error
    return base, load_weights(folder, base)


@dataclass(frozen=True)
class TaskLine:
    """What is known of one task."""

    name: str
    size: str
    """Slots at a block, or rank; `3–12` where pruning has left other numbers."""
    n_bytes: int
    status: str
    created: str
    rows: int | None
    rows_sha256: str
    reads: str
    """Share of tokens that read it, where `nlft prune` has counted."""


def describe(adapter: Adapter) -> list[TaskLine]:
    """One line a task, in the order of learning."""
    sizes = task_bytes(adapter)
    lines = []
    for name, size in adapter.config.tasks.items():
        noted = adapter.config.provenance.get(name, {})
        smallest = min([size, *adapter.config.sizes.get(name, {}).values()])
        reads = noted.get("reads")
        lines.append(
            TaskLine(
                name,
                str(size) if smallest == size else f"{smallest}–{size}",
                sizes[name],
                noted.get("status", "unknown"),
                noted.get("created", "unknown"),
                noted.get("rows"),
                noted.get("rows_sha256", "unknown"),
                f"{reads['tokens'] / max(1, reads['total']):.2%} of {reads['total']:,} tokens"
                if reads
                else "not counted",
            )
        )
    return lines


@dataclass(frozen=True)
class Overlap:
    """Whether a task was trained while another one was read."""

    task: str
    share: float | None
    """Of the tokens of its train rows; None if it is not known."""
    tokens: int
    reason: str = ""
    """Why it is not known."""


def overlaps(adapter: Adapter, folder: Path, name: str, recipe: Recipe | None) -> list[Overlap]:
    """For every task learned after `name`: how many tokens of its train rows read `name`.

    Measured with the adapter as it was at the start of that task's training and at its end; behind gates also how
    many tokens the task's own gate treats otherwise without `name` to weigh it against. The largest share counts.
    Where it is 0, the training of that task read nothing of `name`. Its calibration may have: keys, thresholds and
    heights were also set over background and rows of earlier tasks, with `name` on.

    Args:
        recipe: has the train rows; without it nothing is known.

    Raises:
        NlftError: there is no such task, or the adapter was made for another base than the recipe's.
    """
    known(adapter, name)
    names = list(adapter.config.tasks)
    later = names[names.index(name) + 1 :]
    if not later or recipe is None:
        return [Overlap(task, None, 0, "its train rows are not at hand: give --recipe") for task in later]
    base, model = open_model(adapter, folder, recipe)
    prepared = prepare(recipe, load_domains(recipe), base)
    found = []
    for task in later:
        why = unknown_reason(adapter, task, prepared.train.get(task))
        if why:
            found.append(Overlap(task, None, 0, why))
            continue
        batches = in_batches(prepared.train[task], BATCH, prepared.pad_id)
        after = names[names.index(task) :]
        shares, total = [], 0
        for number, gone in enumerate((after, after[1:])):
            attach(model, without_tasks(adapter, gone), f"stage{number}")
            model.set_adapter(f"stage{number}")
            reads = count_reads(model, batches, f"stage{number}")
            shares.append(reads.share(name))
            total = reads.total
            if number:  # gates do not change while a task is trained
                attach(model, without_tasks(adapter, [name, *gone]), "without")
                shares.append(gate_changes(model, batches, task, "stage1", "without"))
                model.delete_adapter("without")
            model.set_adapter("default")
            model.delete_adapter(f"stage{number}")
        found.append(Overlap(task, max(shares), total))
    return found


def unknown_reason(adapter: Adapter, task: str, rows: list[Encoded] | None) -> str:
    """Why the rows that a task was trained on are not known; empty if they are."""
    noted = adapter.config.provenance.get(task, {})
    if rows is None:
        return "the recipe has no task of this name"
    if noted.get("rows_sha256") not in (None, digest(rows)):
        return "the recipe's rows are not those that it was trained on"
    if noted.get("replay"):
        return "it was trained with replay of older rows"
    return ""


def cross_reads(adapter: Adapter, folder: Path, recipe: Recipe, names: list[str]) -> list[tuple[str, str, float]]:
    """Tasks that are read on train rows of others: reader's rows, task that is read, share of tokens.

    Args:
        folder: of an adapter of the same base.
        names: tasks of `adapter` that are new to the others; only pairs with one of them are looked at.

    Raises:
        NlftError: the adapter was made for another base than the recipe's.
    """
    base, model = open_model(adapter, folder, recipe)
    prepared = prepare(recipe, load_domains(recipe), base)
    attach(model, adapter, "joined")
    model.set_adapter("joined")
    found = []
    for task in (one for one in prepared.domains.tasks if one.name in adapter.config.tasks):
        reads = count_reads(model, in_batches(prepared.train[task.name], BATCH, prepared.pad_id), "joined")
        for other in adapter.config.tasks:
            if other != task.name and (other in names) != (task.name in names):
                found.append((task.name, other, reads.share(other)))
    return found


def noted(adapter: Adapter, name: str, **facts: Any) -> Adapter:
    """The adapter with further facts in the provenance of a task."""
    config = deepcopy(adapter.config)
    config.provenance.setdefault(name, {}).update(facts)
    return Adapter(config, adapter.tensors)
