"""The parts of an adapter, and the model with only some of them at work.

Every part ends in tensors that it multiplies by: where these are zero it adds exactly nothing. So a part is switched
off, a gate held open or a threshold lowered by putting other numbers into tensors for a while, which holds for every
pathway and leaves the forward pass alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from nlft.pathways.block import PathwayLayer
from nlft.pathways.cms.levels import Delta, Levels
from nlft.pathways.gate import PrototypeGate, gates_of
from nlft.pathways.gated_lora.layer import TaskMap
from nlft.pathways.part import TaskPart
from nlft.pathways.sparse_memory.layer import TaskSlots
from nlft.pathways.task import TaskPeftConfig

Change = tuple[torch.Tensor, "torch.Tensor | float"]
"""A tensor, and what stands in its place for a while: a tensor of its shape or one number everywhere."""
NO_REJECTION = -2.0
"""Shift at which no cosine lies below any threshold."""


class Voice(NamedTuple):
    """What makes one part speak."""

    block: str
    task: int | None
    """Number in the order of learning; None if the part serves all tasks."""
    level: int | None
    """Fastest 0; None if the part is no level."""
    tensors: list[torch.Tensor]
    """The part adds exactly nothing while these are zero."""


@contextmanager
def replaced(changes: Iterable[Change]) -> Iterator[None]:
    """Puts other numbers into tensors; afterwards they hold the old ones, bit for bit."""
    changes = list(changes)
    kept = [tensor.detach().clone() for tensor, _ in changes]
    try:
        with torch.no_grad():
            for tensor, new in changes:
                tensor.copy_(new) if isinstance(new, torch.Tensor) else tensor.fill_(new)
        yield
    finally:
        with torch.no_grad():
            for (tensor, _), old in zip(reversed(changes), reversed(kept), strict=True):
                tensor.copy_(old)


def silence(voices: Iterable[Voice]) -> list[Change]:
    """The changes under which these parts add nothing."""
    return [(tensor, 0.0) for voice in voices for tensor in voice.tensors]


def voices_of(model: Any, adapter: str = "default") -> list[Voice]:
    """All parts of an adapter of nlft's, block by block."""
    config: TaskPeftConfig = model.peft_config[adapter]
    found = []
    for block, core in cores(model, adapter).items():
        if not hasattr(core, "tasks"):  # Hope: a memory, and levels behind it
            found.append(Voice(block, None, None, [core.output.weight]))
            if core.levels is not None:
                found += level_voices(block, None, core.levels)
            continue
        for number, part in enumerate(core.tasks):
            task = number if config.keeps_tasks_apart else None
            if isinstance(part, TaskSlots):
                found.append(Voice(block, task, None, [part.values]))
            elif isinstance(part, TaskMap):
                found.append(Voice(block, task, None, [part.B]))
            elif isinstance(part, Delta):
                found.append(Voice(block, task, part.level, [part.B]))
            else:
                found += level_voices(block, task, part)
    return found


def level_voices(block: str, task: int | None, levels: Levels) -> list[Voice]:
    """The levels of one part; a level that learns while it reads speaks through its gain too."""
    return [
        Voice(block, task, level, [getattr(levels, name) for name in names if name.startswith(("B", "gain"))])
        for level, names in levels.by_level().items()
    ]


def alone(model: Any, task: str, adapter: str = "default") -> list[Change]:
    """One task's part alone: the others add nothing, its gate is open everywhere, its thresholds are as trained.

    Slots keep their thresholds, for these are a part of what a slot computes, `relu(cos - tau) / (1 - tau)`; only what
    was added to them afterwards (`nlft.pathways.shift`) is taken back. Nothing is changed for a pathway that all tasks
    share.
    """
    number = list(model.peft_config[adapter].tasks).index(task)
    others = [voice for voice in voices_of(model, adapter) if voice.task not in (None, number)]
    return [*silence(others), *opened(model, adapter, number, 0.0)]


def wide_open(model: Any, adapter: str = "default") -> list[Change]:
    """All parts of all tasks at once, with every gate open; without a gate no slot rejects any token.

    Behind a gate slots keep their thresholds, for there it is the gate that decides. Empty where nothing decides:
    parts that all tasks share, and product keys without a gate, where all tasks are looked up already.
    """
    rejection = NO_REJECTION if adapter not in gates_of(model) else 0.0
    return opened(model, adapter, None, rejection)


def opened(model: Any, adapter: str, task: int | None, shift: float) -> list[Change]:
    """Gates held open and thresholds shifted, for one task or for all."""
    found: list[Change] = []
    if adapter in gates_of(model):
        for number, keys in enumerate(cast(PrototypeGate, gates_of(model)[adapter]).task_keys):
            if task in (None, number):
                found += [(keys.height, -torch.inf), (keys.shift, 0.0)]
    for core in cores(model, adapter).values():
        for number, part in enumerate(getattr(core, "tasks", ())):
            if isinstance(part, TaskSlots) and hasattr(part, "shift") and task in (None, number):
                found.append((part.shift, shift))
    return found


@contextmanager
def reopened(model: Any, task: str, adapter: str = "default") -> Iterator[None]:
    """Lets a finished task's part be trained again; afterwards it is frozen, with the numbers that it had before."""
    number = list(model.peft_config[adapter].tasks).index(task)
    parts = [cast(TaskPart, core.tasks[number]) for core in cores(model, adapter).values()]
    before = [{name: getattr(part, name).clone() for name in part.names} for part in parts]
    for part in parts:
        part.thaw()
    try:
        yield
    finally:
        for part, tensors in zip(parts, before, strict=True):
            part.freeze()
            for name, tensor in tensors.items():
                getattr(part, name).copy_(tensor)


def cores(model: Any, adapter: str) -> dict[str, Any]:
    """The memories of an adapter by block, of whatever kind."""
    return {
        name: cast(nn.ModuleDict, module.cores)[adapter]
        for name, module in model.get_base_model().named_modules()
        if isinstance(module, PathwayLayer) and adapter in module.cores
    }
