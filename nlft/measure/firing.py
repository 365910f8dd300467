"""Firing: which tokens of a text read what a task has learned, and what the wordings of one fact read in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from nlft.capture import inference
from nlft.data.batch import collate
from nlft.data.template import Encoded, prompt_ids
from nlft.ops.health import core_set
from nlft.pathways.gate import gates_of
from nlft.pathways.reads import slots_read
from nlft.pathways.sparse_memory.layer import SparseMemory
from nlft.pathways.sparse_memory.model import memory_layers
from nlft.types import Row

BATCH = 64
"""Rows of a forward pass."""


@dataclass
class BlockFiring:
    """What a text reads of one task at one block."""

    tokens: int
    """Tokens that read a slot of the task."""
    ever: torch.Tensor
    """[M] bool: slots that any token reads."""
    prompts: dict[int, set[int]] = field(default_factory=dict)
    """By row: slots of the task that its prompt reads, the first token apart, which is the same in every row."""
    table: dict[int, set[int]] = field(default_factory=dict)
    """The same over the whole table; product keys only."""


@dataclass
class Firing:
    """What a text reads of one task, at all blocks together."""

    rows: int
    tokens: int
    """Padding apart."""
    fired_rows: int = 0
    """Rows of which any token reads the task."""
    fired_tokens: int = 0
    blocks: dict[str, BlockFiring] = field(default_factory=dict)
    """Sparse memory only."""


@dataclass(frozen=True)
class Core:
    """What the wordings of facts have in common, means over the facts."""

    facts: int
    """Facts with two wordings or more."""
    overlap: float
    """Jaccard index of the slots that two wordings read."""
    shared: float
    """Slots that all wordings read."""
    apart: int
    """Facts whose wordings share no slot at all."""


def fire(model: Any, task: int, rows: Sequence[Encoded], pad_id: int, adapter: str = "default") -> Firing:
    """Runs a text through an adapted model and notes what it reads of one task.

    Where the adapter has a gate, nothing is read while it is shut for the task; gated LoRA is read where it is open.

    Args:
        task: number of the task in the order of learning.
        rows: the text.
    """
    found = Firing(len(rows), sum(len(row.ids) for row in rows))
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with inference(model), captured(model, adapter) as (cores, inputs):
        for at in range(0, len(order), BATCH):
            numbers = order[at : at + BATCH]
            batch = collate([rows[i] for i in numbers], pad_id).to(device)
            mask = batch.attention_mask != 0
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            if adapter in gates_of(model):
                mask &= cast(Any, gates_of(model)[adapter]).open[..., task] > 0
            fired = torch.zeros_like(mask) if cores else mask
            ends = torch.tensor([len(prompt_ids(rows[i])) for i in numbers], device=device)
            places = torch.arange(mask.shape[1], device=device)
            prompts = mask & (places < ends[:, None]) & (places > 0)
            for block, core in cores.items():
                fired = fired | note(found.blocks, block, core, task, inputs[block], mask, prompts, numbers)
            found.fired_tokens += int(fired.sum())
            found.fired_rows += int(fired.any(dim=1).sum())
    return found


def note(
    blocks: dict[str, BlockFiring],
    block: str,
    core: SparseMemory,
    task: int,
    x: torch.Tensor,
    mask: torch.Tensor,
    prompts: torch.Tensor,
    numbers: list[int],
) -> torch.Tensor:
    """Adds what one batch reads at one block; returns the tokens that read the task, [B, T] bool."""
    flat = x.detach().reshape(-1, core.width)
    part = core.task_slots[task]
    with torch.autocast(x.device.type, enabled=False):
        routed = core.queries(flat) if core.addressing == "prototype" else core.route(flat)[0]
        read = slots_read(core, part, routed).view(*mask.shape, -1) & mask[..., None]
    fired = read.any(dim=2)
    own = blocks.setdefault(block, BlockFiring(0, read.new_zeros(read.shape[2])))
    own.tokens += int(fired.sum())
    own.ever |= read.flatten(0, 1).any(dim=0)
    for place, number in enumerate(numbers):
        own.prompts[number] = set(read[place, prompts[place]].any(dim=0).nonzero().squeeze(1).tolist())
        if core.addressing == "product_key":
            own.table[number] = set(routed.view(*mask.shape, -1)[place, prompts[place]].flatten().tolist())
    return fired


@contextmanager
def captured(model: Any, adapter: str) -> Iterator[tuple[dict[str, SparseMemory], dict[str, torch.Tensor]]]:
    """The sparse memories of an adapter by block, and what came into them in the latest forward pass."""
    inputs: dict[str, torch.Tensor] = {}
    cores = {block: layer.cores[adapter] for block, layer in memory_layers(model).items() if adapter in layer.cores}

    def hook(block: str) -> Any:
        def note_input(_core: Any, args: tuple[Any, ...]) -> None:
            inputs[block] = args[0]

        return note_input

    handles = [core.register_forward_pre_hook(hook(block)) for block, core in cores.items()]
    try:
        yield cast("dict[str, SparseMemory]", cores), inputs
    finally:
        for handle in handles:
            handle.remove()


def core_of(facts: Sequence[Sequence[int]], sets: dict[int, set[int]]) -> Core:
    """What the wordings of every fact have in common.

    Args:
        facts: of each fact the numbers of its rows, two or more.
        sets: slots by row.
    """
    found = [core_set([sets[number] for number in fact]) for fact in facts]
    count = max(1, len(found))
    return Core(
        len(found),
        sum(overlap for overlap, _ in found) / count,
        sum(shared for _, shared in found) / count,
        sum(shared == 0 for _, shared in found),
    )


def wordings(rows: Sequence[Row]) -> tuple[list[Row], list[list[int]]]:
    """Rows whose fact is worded in two ways or more, and the numbers of each fact's rows among them.

    Rows are about one fact if they share cluster and completion; a wording that occurs twice counts once.
    """
    facts: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row.cluster and row.prompt:
            facts.setdefault((row.cluster, row.completion), {}).setdefault(row.prompt, row)
    kept: list[Row] = []
    numbers = []
    for fact in facts.values():
        if len(fact) > 1:
            numbers.append(list(range(len(kept), len(kept) + len(fact))))
            kept.extend(fact.values())
    return kept, numbers
