"""Which tokens of a text read which slots of an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from nlft.anatomy import decoder_layers
from nlft.capture import inference
from nlft.errors import NlftError
from nlft.ops.keys import nearest
from nlft.ops.slots import prototype_scores
from nlft.pathways.block import PathwayLayer
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.gate import PrototypeGate, gates_of
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.sparse_memory.layer import SparseMemory, TaskSlots

if TYPE_CHECKING:
    from nlft.data.batch import Batch


@dataclass
class Reads:
    """Counts over a text; padding counts nowhere."""

    total: int
    """Tokens of the text."""
    tokens: dict[str, int]
    """By task: tokens that read it at one block or more."""
    slots: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    """By task and block: tokens that read each slot, [M] int64. Gated LoRA and CMS have no slots."""
    fired: int = 0
    """Tokens that read any task."""
    gates: dict[str, torch.Tensor] = field(default_factory=dict)
    """By task: tokens to which each key of its gate is the nearest of the task's keys, [M] int64."""

    def share(self, task: str) -> float:
        """Part of the tokens that read a task."""
        return self.tokens[task] / max(1, self.total)


class _Batch:
    """What the hooks of one forward pass share."""

    mask: torch.Tensor
    """Tokens that are no padding, [B * T] bool."""
    read: torch.Tensor
    """Tokens that read each task, [B * T, tasks] bool."""


def count_reads(model: Any, batches: Iterable[Batch], adapter: str = "default") -> Reads:
    """Runs a text through a model and counts what its adapter reads.

    A slot of prototype memory is read where its score is above zero, one of product keys where it is among the best
    of a head; behind a gate only where the gate is open. A task of gated LoRA or CMS is read where its gate is open.

    Args:
        model: PEFT model in which the adapter is active.
        batches: `input_ids` and `attention_mask` [B, T].

    Raises:
        NlftError: a block sees only some of the tokens.
    """
    names = list(model.peft_config[adapter].tasks)
    reads = Reads(0, dict.fromkeys(names, 0))
    shared = _Batch()
    device = model.get_input_embeddings().weight.device
    whole = isinstance(model.peft_config[adapter], GatedLoraPeftConfig | CmsPeftConfig)  # no slots
    with inference(model), watched(model, adapter, partial(note, names, reads, shared)):
        for batch in batches:
            ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
            shared.mask = (mask != 0).flatten()
            shared.read = torch.zeros(len(shared.mask), len(names), dtype=torch.bool, device=device)
            model(input_ids=ids, attention_mask=mask, use_cache=False)
            if whole and names:
                shared.read = cast(Any, gates_of(model)[adapter]).open.flatten(0, 1) > 0
            reads.total += int(shared.mask.sum())
            reads.fired += int((shared.read.any(dim=1) & shared.mask).sum())
            for number, name in enumerate(names):
                reads.tokens[name] += int((shared.read[:, number] & shared.mask).sum())
    return reads


@contextmanager
def watched(model: Any, adapter: str, see: Any) -> Iterator[None]:
    """Calls `see(module, block, input)` for every memory and for the adapter's gate."""
    root = model.get_base_model()
    handles = []
    for block, layer in root.named_modules():
        if isinstance(layer, PathwayLayer) and adapter in layer.cores:
            core = layer.cores[adapter]
            handles.append(core.register_forward_pre_hook(lambda c, args, b=block: see(c, b, args[0])))
    if adapter in gates_of(model):
        gate = gates_of(model)[adapter]
        _, layers = decoder_layers(root)

        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(gate, "", args[0] if args else kwargs["hidden_states"])

        layer = layers[model.peft_config[adapter].gate_layer]
        handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def note(names: list[str], reads: Reads, batch: _Batch, module: nn.Module, block: str, x: torch.Tensor) -> None:
    """Adds what one module reads in one forward pass.

    Raises:
        NlftError: the module sees only some of the tokens.
    """
    if not isinstance(module, SparseMemory | PrototypeGate):
        return
    flat = x.detach().reshape(-1, module.width)
    if len(flat) != len(batch.mask):
        raise NlftError(f"The block {block!r} sees only some of the tokens, so its reads cannot be counted.")
    with torch.autocast(x.device.type, enabled=False):
        if isinstance(module, PrototypeGate):
            queries = module.queries(flat)[batch.mask]
            for name, task in zip(names, module.task_keys, strict=True):
                closest = nearest(queries, task.keys)[1]
                add(reads.gates, name, torch.bincount(closest, minlength=len(task.keys)))
            return
        routed = module.queries(flat) if module.addressing == "prototype" else module.route(flat)[0]
        for number, (name, task) in enumerate(zip(names, module.task_slots, strict=True)):
            read = slots_read(module, task, routed) & batch.mask[:, None]
            if module.gate is not None:
                read &= module.gate[0].values(number, x).reshape(-1, 1) > 0
            add(reads.slots, (name, block), read.sum(dim=0))
            batch.read[:, number] |= read.any(dim=1)


def slots_read(core: SparseMemory, task: TaskSlots, routed: torch.Tensor) -> torch.Tensor:
    """Which slots of a task N tokens read, [N, M] bool.

    Args:
        routed: queries [N, K] of prototypes, or the slots [N, R] of the table that product keys have chosen.
    """
    if core.addressing == "prototype":
        return prototype_scores(routed, task.keys, task.thresholds + task.shift) > 0
    place = torch.searchsorted(task.rows, routed).clamp_(max=len(task.rows) - 1)
    owned = task.rows[place] == routed
    read = torch.zeros(len(routed), len(task.rows) + 1, dtype=torch.bool, device=routed.device)
    # What the task does not own goes to a column of its own, which is then left out.
    read.scatter_(1, torch.where(owned, place, len(task.rows)), True)
    return read[:, :-1]


def naive_slots_read(core: SparseMemory, task: TaskSlots, routed: torch.Tensor) -> torch.Tensor:
    """Twin of `slots_read`, token by token and slot by slot."""
    if core.addressing == "prototype":
        pairs = [
            [
                float(query @ key) > float(limit + task.shift)
                for key, limit in zip(task.keys, task.thresholds, strict=True)
            ]
            for query in routed
        ]
    else:
        pairs = [[int(row) in slots for row in task.rows] for slots in routed.tolist()]
    return torch.tensor(pairs, dtype=torch.bool)


def gate_changes(model: Any, batches: Iterable[Batch], task: str, one: str, other: str) -> float:
    """Share of tokens at which the gates of two adapters are open for a task to another extent; 0 without gates.

    A gate weighs a task against those learned before it, so it may open elsewhere once one of them is gone.
    """
    gates = gates_of(model)
    if one not in gates:
        return 0.0
    places = [list(model.peft_config[name].tasks).index(task) for name in (one, other)]
    device = model.get_input_embeddings().weight.device
    total = changed = 0
    with inference(model):
        for batch in batches:
            ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
            model(input_ids=ids, attention_mask=mask, use_cache=False)  # every gate sees it, active or not
            first, second = (
                cast(Any, gates[name]).open[..., place] for name, place in zip((one, other), places, strict=True)
            )
            changed += int(((first != second) & (mask != 0)).sum())
            total += int((mask != 0).sum())
    return changed / max(1, total)


def add(counts: dict[Any, torch.Tensor], key: Any, more: torch.Tensor) -> None:
    """Adds to the counts [M] under a key."""
    counts[key] = counts[key] + more if key in counts else more
