"""The thresholds of a trained adapter, turned up or down without training anything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from nlft.errors import NlftError
from nlft.pathways.block import PathwayLayer
from nlft.pathways.gate import GateKeys, gates_of
from nlft.pathways.sparse_memory.layer import TaskSlots
from nlft.pathways.task import TaskPeftConfig, chosen_adapter

SILENT = math.inf
"""The shift at which nothing fires, whatever the threshold: the task's part is off."""

Keys = GateKeys | TaskSlots
"""What decides over silence: `keys` [M, K], a `shift` [], and `thresholds` [M] (slots) or a `height` [] (gate)."""


def set_shift(model: Any, value: float, tasks: Iterable[str] | None = None, adapter: str | None = None) -> None:
    """Adds `value` to every threshold of tasks, in place of what was added before.

    With a gate this is the height that its evidence must pass (sums of cosine differences), for what stands behind a
    gate need not be silent by itself; else the thresholds of the prototype slots of all layers (cosines).

    Args:
        model: PEFT model with an nlft adapter.
        value: 0 is as trained, above it less fires, `SILENT` is off.
        tasks: by name; all when None.
        adapter: the active one when None.

    Raises:
        NlftError: an adapter or task that is not there, or that has no thresholds; a value that is no number.
    """
    if math.isnan(value):
        raise NlftError("The shift of a threshold cannot be NaN.", "Use 0 for thresholds as they were trained.")
    parts = keys_by_task(model, adapter)
    wanted = list(parts) if tasks is None else list(tasks)
    for name in wanted:
        if name not in parts:
            raise NlftError(f"The adapter has no task {name!r}.", f"It has {', '.join(map(repr, parts))}.")
    for name in wanted:
        for part in parts[name]:
            part.shift.fill_(value)


def shifts(model: Any, adapter: str | None = None) -> dict[str, float]:
    """What is added to the thresholds of each task, in the order of learning.

    Raises:
        NlftError: the adapter is not there, or has no thresholds.
    """
    return {name: float(parts[0].shift) for name, parts in keys_by_task(model, adapter).items()}


def has_gate(model: Any, adapter: str | None = None) -> bool:
    """Whether shifts are counted in a gate's evidence, not in cosines.

    Raises:
        NlftError: the adapter is not there, or is none of nlft's.
    """
    return bool(task_config(model, adapter)[1].gates)


@contextmanager
def shifts_restored(model: Any, adapter: str | None = None) -> Iterator[None]:
    """Puts the shifts of all tasks back at the end.

    Raises:
        NlftError: the adapter is not there, or has no thresholds.
    """
    before = [(part, float(part.shift)) for parts in keys_by_task(model, adapter).values() for part in parts]
    try:
        yield
    finally:
        for part, value in before:
            part.shift.fill_(value)


def keys_by_task(model: Any, adapter: str | None = None) -> dict[str, list[Keys]]:
    """What decides over each task's silence, in the order of learning: its gate's keys, else its slots by layer.

    Raises:
        NlftError: the adapter is not there, is none of nlft's, or has no thresholds.
    """
    name, config = task_config(model, adapter)
    root = model.get_base_model()
    if config.gates:
        gate = gates_of(model)[name]
        parts = {task: [cast(GateKeys, keys)] for task, keys in zip(config.gates, gate.tasks, strict=True)}  # pyright: ignore
        return cast("dict[str, list[Keys]]", parts)
    cores: list[Any] = [
        module.cores[name] for module in root.modules() if isinstance(module, PathwayLayer) and name in module.cores
    ]
    found: dict[str, list[Keys]] = {}
    for place, task in enumerate(config.tasks):
        slots = [core.tasks[place] for core in cores]
        if not slots or not all(hasattr(one, "thresholds") for one in slots):
            raise NlftError(
                f"The task {task!r} has no thresholds to turn: its slots are found by product keys.",
                "Only prototype keys and gates have thresholds.",
            )
        found[task] = slots
    if not config.keeps_tasks_apart:
        raise NlftError(
            f"The adapter {name!r} has no gate: it serves all tasks and is always on, so it has no thresholds.",
            "Train it with `gate: prototype`.",
        )
    if not found:
        raise NlftError(f"The adapter {name!r} holds no task.", "Train one first.")
    return found


def task_config(model: Any, adapter: str | None) -> tuple[str, TaskPeftConfig]:
    """The adapter that is meant and its config.

    Raises:
        NlftError: it is not clear which, or it is none of nlft's.
    """
    configs = getattr(model, "peft_config", {})
    name = chosen_adapter(model, adapter)
    if not isinstance(configs.get(name), TaskPeftConfig):
        raise NlftError(
            f"{name!r} has no thresholds: it is no adapter of nlft.", "Give one of sparse memory or gated LoRA."
        )
    return name, configs[name]
