"""Where a run starts that does not start from the base: an adapter that has learned tasks before."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from nlft.adapter import adapter_folder, check_tensors, read_config
from nlft.anatomy import decoder_layers
from nlft.base import UNREADABLE, FrozenBase
from nlft.checkpoint import finished_stages
from nlft.config import LoraConfig, Recipe
from nlft.config import Method as MethodConfig
from nlft.data.domain import Domains
from nlft.errors import NlftError, combined, reason
from nlft.manifest import sha256_of
from nlft.methods.calibration import retention_of
from nlft.methods.penalty import FILE as REMEMBERED
from nlft.methods.protocol import Method
from nlft.methods.residual_lora import rewrites_base
from nlft.origin import Start, comparable, digest_of, learned_tasks, parts_of, stages_behind
from nlft.pathways.lifecycle import kind_of
from nlft.pathways.task import TaskPeftConfig
from nlft.recipes import load_recipe
from nlft.remote import CONFIG, WEIGHTS, fetch_adapter, is_adapter_id, resolved_revision, split_revision
from nlft.types import Item

KINDS = {"sparse_memory": "NLFT_SPARSE_MEMORY", "cms": "NLFT_CMS", "hope": "NLFT_HOPE"}
"""PEFT's names of the adapters that methods train, by kind; LoRA's is in its section."""
COMMIT = re.compile("[0-9a-f]{40}")
RENAMED = {"rank": "r", "layers": "layers_to_transform"}
"""Keys of a method's section under which PEFT's config has another name."""
FREE = {"slots", "margin", "kind", "gate", "peft", "peft_type", "tasks"}
"""Keys that may be others for a new task than for those before, or that are looked at by themselves."""


@dataclass(frozen=True)
class Found:
    """An adapter on this machine."""

    folder: Path
    config: PeftConfig
    start: Start


def find_start(recipe: Recipe) -> Found | None:
    """The adapter that a recipe goes on from, fetched if it is on the Hub; None if it starts from the base.

    Raises:
        NlftError: it is not there, is damaged, or its tasks are not those that the recipe takes them for.
    """
    if recipe.adapter is None:
        return None
    name, there = recipe.adapter, fetch_adapter(recipe.adapter)
    check_finished(there, name)
    folder = adapter_folder(there)
    if not (folder / WEIGHTS).is_file():
        raise NlftError(f"adapter: {folder} has no {WEIGHTS}.", "Take a whole copy of the adapter.")
    config = read_config(folder)
    if isinstance(config, TaskPeftConfig):
        check_tensors(folder, config)  # before the base is loaded; values are looked at when it is put on
    revision = resolved_revision(there)
    if revision is not None and not Path(name).expanduser().exists():
        name = f"{split_revision(name)[0]}@{revision}"
    learned = learned_tasks(config)
    check_tasks(recipe, learned)
    tasks = [task.name for task in recipe.earlier] if learned is None else learned
    number = max(len(tasks), len(recipe.earlier), stages_behind(folder), 1)
    sha256 = sha256_of(folder / WEIGHTS)
    return Found(folder, config, Start(name, revision, sha256, digest_of(folder, config, sha256), tasks, number))


def as_begun(recipe: Recipe, out: Path) -> Recipe:
    """A recipe whose adapter, if it is named without a whole commit, is the one with which the run in `out` was begun:
    that noted which commit a branch or tag stood for."""
    config = out / "config.yaml"
    begun = load_recipe(str(config)).adapter if recipe.adapter is not None and config.is_file() else None
    if begun is None or begun == recipe.adapter or recipe.adapter is None or not is_adapter_id(recipe.adapter):
        return recipe
    name, revision = split_revision(recipe.adapter)
    if (revision and COMMIT.fullmatch(revision)) or begun.rpartition("@")[0] != name:
        return recipe
    return recipe.model_copy(update={"adapter": begun})


def as_base(items: Sequence[Item]) -> list[Item]:
    """Scores of the model that a run starts from, as row 0 of its matrix."""
    return [replace(item, condition="base") for item in items]


def announcement(recipe: Recipe, found: Found, domains: Domains) -> list[str]:
    """What a run goes on from, in sentences."""
    learned, new = found.start.tasks, [task.name for task in domains.tasks]
    known = f"learned: {', '.join(learned)}" if learned else "it does not say what it has learned"
    lines = [f"Goes on from {found.start.name} ({known}) with {', '.join(new)}; base {recipe.base.model} unchanged."]
    rows = {task.name for task in domains.earlier}
    silent = [name for name in learned if not parts_of([name]) & rows]
    if silent:
        lines.append(
            f"Without rows of {', '.join(silent)}: thresholds of new tasks do not know them, and what happens to them"
            " is not measured. `earlier` in the recipe takes such rows."
        )
    for method in recipe.methods.values():
        retention = retention_of(method)
        if retention is not None:
            lines.append(
                f"The budget of {retention.budget:.3g} of {retention.of} is shared by {found.start.number + len(new)}"
                " tasks, learned ones too; what those were promised before stays as it was."
            )
    return lines


def check_finished(folder: Path, name: str) -> None:
    """Refuses a run's folder without an adapter.

    Raises:
        NlftError: the run is not finished, or what it learned is no adapter.
    """
    if not (folder / "config.yaml").is_file() or (folder / CONFIG).is_file():
        return
    if (folder / "cells").is_dir():
        cells = sorted(path.name for path in (folder / "cells").iterdir())
        one = f", such as {folder / 'cells' / cells[0]}" if cells else ""
        raise NlftError(f"{name} is a comparison of several runs.", f"Name one of its runs{one}.")
    if not (folder / "runs.parquet").is_file():
        raise NlftError(
            f"The run in {name} is not finished, so there is no adapter yet to go on from.",
            f"`nlft resume {name}` finishes it.",
        )
    if (folder / "adapter" / CONFIG).is_file():
        return
    stages = finished_stages(folder)
    weights = f" ({stages[-1] / 'model'})" if stages else ""
    raise NlftError(
        f"{name} holds no adapter that could be trained on: its method keeps something else.",
        f"Whole weights{weights} are a base of their own: save the base's tokenizer beside them, and name that folder"
        " by base.model.",
    )


def check_tasks(recipe: Recipe, learned: Sequence[str] | None) -> None:
    """Refuses tasks that were learned already, and earlier ones that never were.

    Raises:
        NlftError: naming all of them.
    """
    if learned is None:
        return
    again = [task.name for task in recipe.tasks if task.name in learned]
    hint = "Give the new task a name of its own, or move it to `earlier`."
    problems = [NlftError(f"tasks.{name}: {recipe.adapter} has learned {name!r} already.", hint) for name in again]
    parts = parts_of(learned)
    hint = f"It holds {', '.join(learned) or 'none'}."
    for name in (task.name for task in recipe.earlier if task.name not in parts):
        problems.append(NlftError(f"earlier.{name}: {recipe.adapter} has not learned a task {name!r}.", hint))
    if problems:
        raise combined(problems)


def check_methods(recipe: Recipe, found: Found, base: FrozenBase) -> None:
    """Refuses a base that the adapter was not made for, and methods that cannot go on from it.

    Raises:
        NlftError: naming every method, what it would train and what is there.
    """
    depth = len(decoder_layers(base.model)[1])
    problems = [
        NlftError(f"methods.{name}: {said}", hint)
        for name, method in recipe.methods.items()
        for said, hint in misfits(method, found.config, found.start.name, depth)
    ]
    if getattr(found.config, "base_fingerprint", None) not in (None, base.fingerprint):
        said = f"adapter: {found.start.name} was made for a base with other weights than {base.name!r}."
        problems.append(NlftError(said, "Go on with its own base: its model, revision, dtype and quantization."))
    if problems:
        raise combined(problems)


def misfits(method: MethodConfig, config: PeftConfig, name: str, depth: int) -> Iterator[tuple[str, str]]:
    """Why a method cannot go on from an adapter, each with a hint; nothing if it can.

    Args:
        name: of the adapter.
        depth: the base's layers.
    """
    own = kind_trained(method)
    if own is None:
        what = f"{method.kind} leaves nothing in one adapter that could be trained on."
        yield what, "Sparse memory, CMS, Hope, and LoRA that all tasks share or behind a gate, can go on."
        return
    if own != kind_of(config):
        yield f"it trains a {own} adapter, and {name} is a {kind_of(config)} adapter.", "Take the adapter's own method."
        return
    for key, (field, wanted) in settings_of(method, depth).items():
        there = getattr(config, field, wanted)
        if comparable(there) != comparable(wanted):
            said = f"{key} is {wanted}, and {name} was made with {there}, which stands for all its tasks."
            yield said, "Keep the settings of the adapter, or start a new one."


def kind_trained(method: MethodConfig) -> str | None:
    """PEFT's name of the one adapter that a method trains; None if it trains none or several."""
    if not isinstance(method, LoraConfig):
        return KINDS.get(method.kind)
    if method.gate is not None:
        return "NLFT_GATED_LORA"
    return None if method.tasks != "shared" or rewrites_base(method) else method.peft_type


def settings_of(method: MethodConfig, depth: int) -> dict[str, tuple[str, Any]]:
    """What a method's section settles of its adapter: by key of the section, PEFT's field and the value."""
    found = {key: (RENAMED.get(key, key), value) for key, value in method.model_dump(exclude=FREE).items()}
    found = {key: pair for key, pair in found.items() if key != "layers" or pair[1] is not None}
    gate = getattr(method, "gate", None)
    found["gate"] = ("gate_layer", None if gate is None else gate.place(depth))
    if gate is not None:
        found["gate.decay"] = ("gate_decay", gate.decay)
    given: Mapping[str, Any] = getattr(method, "peft", {})
    for key, value in given.items():
        if key != "init_lora_weights" and not (key == "target_modules" and isinstance(value, str | None)):
            found[f"peft.{key}"] = (key, value)
    return found


def begin(learner: Method, base: FrozenBase, found: Found) -> nn.Module:
    """The adapter on its base, ready for the next task.

    Raises:
        NlftError: it does not load, or does not bring what the method remembers.
    """
    remembering = [one.name for one in getattr(learner, "penalties", []) if one.remembers]
    if remembering and not (found.folder / REMEMBERED).is_file():
        raise NlftError(
            f"{found.start.name} does not bring what {' and '.join(remembering)} remembers of earlier tasks: it has no"
            f" {REMEMBERED}.",
            "Go on from the folder of the run that trained it, or without; replay.source=background needs no memory.",
        )
    try:
        return learner.load(base, found.folder)
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        said = f"{found.start.name} does not load onto {base.name!r}: {reason(error)}"
        raise NlftError(said, "Take a whole copy of the adapter, and the base that it was made for.") from error
