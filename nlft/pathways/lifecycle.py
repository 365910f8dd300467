"""What happens to a task after training: it is removed, joined by others', or pruned.

All of it is done on an `Adapter`, the settings and tensors as they are stored, so it needs no base. `stored` takes an
adapter out of a loaded model, `attach` puts one in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from peft import PeftConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from nlft.errors import NlftError
from nlft.pathways.gate import GATES
from nlft.pathways.header import PREFIX
from nlft.pathways.provenance import backgrounds, join_backgrounds
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.task import TaskPeftConfig

PART = re.compile(rf"{re.escape(PREFIX)}(.+)\.(nlft_\w+)\.tasks\.(\d+)\.(\w+)")
PER_TASK = {"tasks", "sizes", "active_task", "gates", "provenance"}
"""Fields of a config that list tasks."""
INCIDENTAL = {"slots", "margin", "r", "nlft_version", "inference_mode", "base_model_name_or_path", "revision"} | {
    "peft_version",
    "layers_to_transform",  # the blocks themselves are compared
    "auto_mapping",
    "task_type",
    "init_weights",
    "calibration",  # what it left in the tensors is compared
}
"""Fields in which adapters may differ and yet be joined: they say nothing about what a finished task computes."""


@dataclass(frozen=True)
class Adapter:
    """An adapter as it is stored: settings, and tensors by the names that PEFT writes."""

    config: TaskPeftConfig
    tensors: dict[str, torch.Tensor]


class Place(NamedTuple):
    """Where a tensor of a task belongs."""

    block: str
    """Name of the module in the base; the decoder for keys of a gate."""
    gate: bool
    task: int
    """Number of the task in the order of learning."""
    name: str
    """Such as `keys`."""


def place_of(key: str) -> Place | None:
    """What a stored name says; None for a tensor that all tasks share."""
    found = PART.fullmatch(key)
    return Place(found[1], found[2] == GATES, int(found[3]), found[4]) if found else None


def stored(model: Any, adapter: str = "default") -> Adapter:
    """A copy of one adapter of a PEFT model.

    Raises:
        NlftError: the model has no such adapter of nlft's.
    """
    config = model.peft_config.get(adapter)
    if not isinstance(config, TaskPeftConfig):
        raise NlftError(f"{adapter!r} is no adapter of nlft's.", f"The adapters are {sorted(model.peft_config)}.")
    tensors = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return Adapter(deepcopy(config), {key: tensor.detach().clone() for key, tensor in tensors.items()})


def attach(model: Any, adapter: Adapter, name: str) -> None:
    """Puts an adapter into a PEFT model under a name that is free, not yet active."""
    model.add_adapter(name, deepcopy(adapter.config))
    set_peft_model_state_dict(model, adapter.tensors, adapter_name=name)


def without_tasks(adapter: Adapter, names: Sequence[str]) -> Adapter:
    """The adapter without some of its tasks: their parts at every block and the keys of their gates are gone.

    The tensors that are left are what they were, bit for bit: later tasks keep the keys, thresholds and values that
    they got while the removed ones were read, by their train rows or in calibration. A later task's gate loses a
    rival, so it may open in more places.

    Raises:
        NlftError: there is no such task, or a task is still being trained.
    """
    order = list(adapter.config.tasks)
    gone = {order.index(known(adapter, name)) for name in names}
    numbers = {old: new for new, old in enumerate(number for number in range(len(order)) if number not in gone)}
    tensors = {}
    for key, tensor in adapter.tensors.items():
        place = place_of(key)
        if place is None:
            tensors[key] = tensor
        elif place.task in numbers:
            tensors[renumbered(key, numbers[place.task])] = tensor
    config = deepcopy(adapter.config)
    for name in names:
        for record in (config.tasks, config.sizes, config.gates, config.provenance):
            record.pop(name, None)
    return Adapter(config, tensors)


def with_tasks(adapter: Adapter, other: Adapter) -> Adapter:
    """The adapter with the tasks of another one behind its own; nothing of either is changed.

    Raises:
        NlftError: they are not of one base and one calibration, or share the name of a task.
    """
    check_composable(adapter, other)
    tensors = dict(adapter.tensors)
    for key, tensor in other.tensors.items():
        place = place_of(key)
        if place is not None:
            tensors[renumbered(key, len(adapter.config.tasks) + place.task)] = tensor
    config = deepcopy(adapter.config)
    for name in PER_TASK - {"active_task"}:
        getattr(config, name).update(deepcopy(getattr(other.config, name)))
    join_backgrounds(config, backgrounds(other.config))
    return Adapter(config, tensors)


def check_composable(adapter: Adapter, other: Adapter) -> None:
    """Refuses adapters that do not read hidden states alike.

    Raises:
        NlftError: naming the first thing in which they differ.
    """
    ours, theirs = adapter.config, other.config
    again = "Only adapters of one calibration can be joined. Train both tasks in one run instead: `nlft train`."
    if type(ours) is not type(theirs):
        raise NlftError(f"The adapters are of two kinds, {kind_of(ours)} and {kind_of(theirs)}.", again)
    if (ours.base_fingerprint is None) != (theirs.base_fingerprint is None):
        raise NlftError(
            "It is unknown whether the adapters were made for one base: only one of them notes its base's weights.",
            "Use adapters that note their base.",
        )
    if ours.base_fingerprint != theirs.base_fingerprint:
        raise NlftError("The adapters were made for bases with other weights.", "Use adapters of one base.")
    for field in fields(ours):
        one, two = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name not in PER_TASK | INCIDENTAL | {"base_fingerprint", "base_sample"} and one != two:
            raise NlftError(f"The adapters differ in {field.name}: {one} and {two}.", again)
    for config in (ours, theirs):
        check_closed(config)
        if not config.tasks:
            raise NlftError("An adapter without tasks cannot be joined with another.", "Use the other one as it is.")
    twice = sorted(set(ours.tasks) & set(theirs.tasks))
    if twice:
        raise NlftError(
            f"Both adapters hold a task {twice[0]!r}.",
            f"Remove it from one of them first: nlft tasks ADAPTER --remove {twice[0]!r}.",
        )
    shared = [{key: t for key, t in one.tensors.items() if place_of(key) is None} for one in (adapter, other)]
    blocks = [{place[:2] for key in one.tensors if (place := place_of(key))} for one in (adapter, other)]
    if shared[0].keys() != shared[1].keys() or blocks[0] != blocks[1]:
        raise NlftError("The adapters stand at other blocks of the base.", again)
    for key, tensor in shared[0].items():
        if not torch.equal(tensor, shared[1][key]):
            name = key.removeprefix(PREFIX)
            raise NlftError(f"The adapters were calibrated differently: {name} is not the same.", again)


def kind_of(config: PeftConfig) -> str:
    """PEFT's name of an adapter's kind."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def has_thresholds(config: TaskPeftConfig) -> bool:
    """Whether silence is decided by thresholds: those of a gate, or of prototype slots."""
    prototypes = isinstance(config, SparseMemoryPeftConfig) and config.addressing == "prototype"
    return bool(config.tasks) and (bool(config.gates) or prototypes)


def shared_rows(adapter: Adapter) -> dict[tuple[str, str], int]:
    """Product keys: slots of the table that two tasks both own, summed over blocks. Where such a slot is read, both
    add their values. Pairs without any are left out."""
    owned: dict[str, dict[int, set[int]]] = {}
    for key, tensor in adapter.tensors.items():
        place = place_of(key)
        if place is not None and place.name == "rows":
            owned.setdefault(place.block, {})[place.task] = set(tensor.tolist())
    names = list(adapter.config.tasks)
    counts: dict[tuple[str, str], int] = {}
    for of_block in owned.values():
        for one in of_block:
            for two in of_block:
                if one < two and (both := len(of_block[one] & of_block[two])):
                    pair = (names[one], names[two])
                    counts[pair] = counts.get(pair, 0) + both
    return counts


def with_slots(
    adapter: Adapter,
    slots: Mapping[tuple[str, str], torch.Tensor],
    gates: Mapping[str, torch.Tensor],
) -> Adapter:
    """The adapter with some of its slots and gate keys only; where none is named, all are kept.

    Args:
        slots: by task and block, which slots stay, [M] bool with at least one True.
        gates: by task, which keys of its gate stay, [M] bool.

    Raises:
        NlftError: a task is still being trained.
    """
    names = list(adapter.config.tasks)
    for name in names:
        known(adapter, name)
    tensors = dict(adapter.tensors)
    config = deepcopy(adapter.config)
    there: dict[str, dict[str, int]] = {}
    for key, tensor in adapter.tensors.items():
        place = place_of(key)
        if place is None:
            continue
        name = names[place.task]
        kept = gates.get(name) if place.gate else slots.get((name, place.block))
        if kept is not None and tensor.ndim:  # a shift is one number for all slots
            tensors[key] = tensor[kept].clone()
        if place.name != "values":
            continue
        there.setdefault(name, {})[place.block] = len(tensors[key])
    for name, sizes in there.items():
        config.resize(name, sizes)
    for name, kept in gates.items():
        config.gates[name] = int(kept.sum())
    return Adapter(config, tensors)


def task_bytes(adapter: Adapter) -> dict[str, int]:
    """Bytes of every task's tensors, keys of its gate included."""
    counts = dict.fromkeys(adapter.config.tasks, 0)
    names = list(counts)
    for key, tensor in adapter.tensors.items():
        place = place_of(key)
        if place is not None:
            counts[names[place.task]] += tensor.nbytes
    return counts


def renumbered(key: str, task: int) -> str:
    """A stored name for another number of its task."""
    head, _, tail = key.rpartition(".tasks.")
    return f"{head}.tasks.{task}.{tail.partition('.')[2]}"


def known(adapter: Adapter, name: str) -> str:
    """The name of a task that the adapter holds and that may be changed.

    Raises:
        NlftError: there is no such task, or one is still being trained.
    """
    check_closed(adapter.config)
    if name not in adapter.config.tasks:
        held = ", ".join(map(repr, adapter.config.tasks)) or "none"
        raise NlftError(f"The adapter has no task {name!r}.", f"Its tasks: {held}.")
    return name


def check_closed(config: TaskPeftConfig) -> None:
    """Refuses an adapter in the middle of a task.

    Raises:
        NlftError: naming the task.
    """
    if config.active_task is not None:
        raise NlftError(f"The task {config.active_task!r} is still being trained.", "Finish its training first.")
