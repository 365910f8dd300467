"""The PEFT tuner of sparse memory, and what a method does with all of its layers at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import nn

from nlft.anatomy import root_of
from nlft.errors import NlftError
from nlft.pathways.block import PathwayModel
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.layer import SparseMemory, SparseMemoryLayer
from nlft.pathways.task import chosen_adapter


class SparseMemoryModel(PathwayModel):
    """Puts a sparse memory beside every chosen MLP block."""

    prefix = "nlft_"
    tuner_layer_cls = SparseMemoryLayer


def memory_layers(model: nn.Module) -> dict[str, SparseMemoryLayer]:
    """The wrapped blocks in layer order, by the names that the blocks have in the base model."""
    root = root_of(model)
    return {name: module for name, module in root.named_modules() if isinstance(module, SparseMemoryLayer)}


def memories(model: Any, adapter: str | None = None) -> dict[str, SparseMemory]:
    """The memories of one adapter (the active one when None) by block.

    Raises:
        NlftError: the model has no such adapter, or several are active and none is named.
    """
    name = adapter_name(model, adapter)
    cores = {block: layer.cores[name] for block, layer in memory_layers(model).items() if name in layer.cores}
    return cast("dict[str, SparseMemory]", cores)


def adapter_name(model: Any, adapter: str | None) -> str:
    """The adapter that is meant."""
    name = chosen_adapter(model, adapter)
    if not isinstance(model.peft_config.get(name), SparseMemoryPeftConfig):
        raise NlftError(f"{name!r} is no sparse memory adapter.", f"The adapters are {sorted(model.peft_config)}.")
    return name


def set_statistics(
    model: Any, statistics: Mapping[str, tuple[torch.Tensor, torch.Tensor]], adapter: str | None = None
) -> None:
    """Sets mean [D] and whitener [D, K] of every memory.

    Args:
        model: PEFT model with a sparse memory adapter.
        statistics: of `nlft.calibrate.calibrate_base`; of each whitener [D, D] the leading K directions are kept.
        adapter: the active one when None.
    """
    for core, (mean, whitener) in matched(model, statistics, adapter):
        core.mean.copy_(mean)
        core.whitener.copy_(whitener[:, : core.key_width])


def set_half_keys(
    model: Any, half_keys: Mapping[str, tuple[torch.Tensor, torch.Tensor]], adapter: str | None = None
) -> None:
    """Sets rotations [H, K, 2 * K_half] and half keys [H, 2, n, K_half] of every memory with product keys."""
    for core, (rotations, keys) in matched(model, half_keys, adapter):
        core.rotations.copy_(rotations)
        core.half_keys.copy_(keys)


def begin_task(model: Any, name: str, addresses: Mapping[str, Any], adapter: str | None = None) -> None:
    """Gives every memory the slots of a new task, whose values start at zero and are all that is trained.

    Args:
        model: PEFT model with a sparse memory adapter.
        name: of the task, new to the adapter.
        addresses: by block, `(keys [M, K], thresholds [M])` for prototypes, with the same M at every block, or
            `rows` [M] for product keys.
        adapter: the active one when None.

    Raises:
        NlftError: the task is known, another one is still open, or the addresses fit the memories in no way.
    """
    config: SparseMemoryPeftConfig = model.peft_config[adapter_name(model, adapter)]
    config.check_new(name)
    pairs = list(matched(model, addresses, adapter))
    if config.addressing == "product_key":
        found = [(core, {"rows": rows}) for core, rows in pairs]
    else:
        found = [(core, {"keys": keys, "thresholds": thresholds}) for core, (keys, thresholds) in pairs]
    sizes = {len(tensor) for _, address in found for tensor in address.values()}
    if 0 in sizes or (len(sizes) != 1 and config.addressing == "prototype"):
        raise NlftError(f"Every memory needs equally many slots, at least one; these have {sorted(sizes)}.")
    for core, address in found:
        core.begin_task(**address)
    config.open_task(name, max(sizes))
    config.resize(name, {block: core.newest.slots for block, core in memories(model, adapter).items()})


def end_task(model: Any, adapter: str | None = None) -> None:
    """Freezes the values of the open task; the function that the model computes stays bit-equal.

    Raises:
        NlftError: no task is open.
    """
    config: SparseMemoryPeftConfig = model.peft_config[adapter_name(model, adapter)]
    config.close_task()
    for core in memories(model, adapter).values():
        core.end_task()


def matched(model: Any, given: Mapping[str, Any], adapter: str | None) -> Iterator[tuple[SparseMemory, Any]]:
    """Pairs of a memory and what is given for its block.

    Raises:
        NlftError: a block is missing, or there is one too many.
    """
    cores = memories(model, adapter)
    odd = sorted(set(cores) ^ set(given))
    if odd:
        problem = "has no memory" if odd[0] in given else "is missing"
        raise NlftError(f"The block {odd[0]!r} {problem}.", f"Blocks with a memory: {', '.join(cores)}.")
    return ((core, given[block]) for block, core in cores.items())
