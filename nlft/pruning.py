"""Slots that nothing reads: counted over traffic, taken out, and the effect measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nlft.base import FrozenBase
from nlft.capture import inference
from nlft.config import DataConfig, Recipe
from nlft.data.batch import Batch, in_batches
from nlft.data.domain import load_domains
from nlft.data.source import load
from nlft.data.template import encode_rows, pad_id
from nlft.errors import NlftError
from nlft.lifecycle import BATCH, noted, open_model
from nlft.pathways.lifecycle import Adapter, attach, check_closed, place_of, task_bytes, with_slots
from nlft.pathways.provenance import now
from nlft.pathways.reads import Reads, count_reads
from nlft.pathways.shift import SILENT
from nlft.prepare import prepare
from nlft.promotion import Effect, effect
from nlft.run import measure


@dataclass(frozen=True)
class TaskCut:
    """What is taken from one task, summed over blocks; keys of its gate are counted with its slots."""

    name: str
    slots: int
    unread: int
    """Slots read by fewer tokens than asked for."""
    removed: int
    """At most `unread`: one slot stays at every block."""
    read_share: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Pruned:
    """A pruned adapter and how it differs from what it was."""

    adapter: Adapter
    cuts: list[TaskCut]
    n_tokens: int
    silenced: float
    """Largest |logit difference| on the traffic when the removed slots are silent and yet in place: rounding if none of
    them is read, for a look-up leaves silent keys out and products of other sizes round otherwise."""
    removed: float
    """The same when they are gone."""
    effects: list[Effect]
    """On the recipe's evaluations, pruned against not pruned."""


def prune(adapter: Adapter, folder: Path, traffic: str, min_reads: int, recipe: Recipe | None) -> Pruned:
    """Counts reads over a text and removes the slots with fewer than `min_reads`.

    Args:
        traffic: path of a data section: a file, a directory, or `builtin:world/…`.
        min_reads: tokens that must read a slot for it to stay.
        recipe: its evaluations are scored before and after; names the base too.

    Raises:
        NlftError: there is no task, or the traffic has no rows.
    """
    check_closed(adapter.config)
    if not adapter.config.tasks:
        raise NlftError(f"The adapter in {folder} has no tasks, so there is nothing to prune.")
    domains = load_domains(recipe) if recipe else None
    base, model = open_model(adapter, folder, recipe)
    batches = traffic_batches(traffic, base)
    reads = count_reads(model, batches)
    slots = {key: kept(counts, min_reads) for key, counts in reads.slots.items()}
    gates = {name: kept(counts, min_reads) for name, counts in reads.gates.items()}
    smaller = with_slots(adapter, slots, gates)
    attach(model, silenced(adapter, slots, gates), "silenced")
    attach(model, smaller, "pruned")
    effects = []
    if recipe and domains:
        prepared = prepare(recipe, domains, base)
        scores = []
        for stage, active in enumerate(("default", "pruned")):
            model.set_adapter(active)
            scores.append(measure(model, base, recipe, prepared, stage, "on"))
        effects = [effect(evaluation, *scores) for evaluation in domains.evaluations]
    for name in adapter.config.tasks:
        counted = {"date": now(), "traffic": traffic, "tokens": reads.tokens[name], "total": reads.total}
        smaller = noted(smaller, name, reads=counted)
    return Pruned(
        smaller,
        cuts(adapter, smaller, reads, slots, gates, min_reads),
        reads.total,
        largest_difference(model, batches, "silenced"),
        largest_difference(model, batches, "pruned"),
        effects,
    )


def traffic_batches(path: str, base: FrozenBase) -> list[Batch]:
    """Rows of a data source, tokenised; overlong plain text is split, overlong rows of other kinds are cut.

    Raises:
        DataError: there is no such source, or it has no rows.
    """
    source = load(DataConfig(path=path), "--traffic")
    too_long = "split" if source.format == "text" else "truncate"
    rows = encode_rows(source.rows, base.tokenizer, base.context, too_long)
    if not rows:
        raise NlftError(f"--traffic: {path} has no rows.", "Give text as the adapter will meet it.")
    return in_batches(sorted(rows, key=lambda row: len(row.ids)), BATCH, pad_id(base.tokenizer))


def kept(counts: torch.Tensor, min_reads: int) -> torch.Tensor:
    """Which slots stay, [M] bool: those read often enough, and the most read one in any case, since a task keeps a
    part at every block."""
    stay = counts >= min_reads
    stay[counts.argmax()] = True
    return stay.cpu()


def silenced(adapter: Adapter, slots: dict[tuple[str, str], torch.Tensor], gates: dict[str, torch.Tensor]) -> Adapter:
    """The adapter in its full size, in which what would be removed can add nothing."""
    names = list(adapter.config.tasks)
    tensors = dict(adapter.tensors)
    for key, tensor in adapter.tensors.items():
        place = place_of(key)
        if place is None:
            continue
        name = names[place.task]
        stay = gates.get(name) if place.gate else slots.get((name, place.block))
        if stay is None:
            continue
        if place.gate and place.name == "keys":
            tensors[key] = torch.where(stay[:, None], tensor, tensor[stay][0])  # a key twice is a key once
        elif place.name == "thresholds":
            tensors[key] = torch.where(stay, tensor, SILENT)
        elif place.name == "values" and adapter.config.to_dict().get("addressing") == "product_key":
            tensors[key] = tensor * stay[:, None]
    return Adapter(adapter.config, tensors)


def largest_difference(model: Any, batches: list[Batch], adapter: str) -> float:
    """Largest |difference| of any logit between an adapter and `default`, padding left out."""
    largest = 0.0
    device = model.get_input_embeddings().weight.device
    with inference(model):
        for batch in batches:
            ids, mask = batch.input_ids.to(device), batch.attention_mask.to(device)
            logits = []
            for active in ("default", adapter):
                model.set_adapter(active)
                logits.append(model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask != 0].float())
            largest = max(largest, float((logits[0] - logits[1]).abs().max()))
    model.set_adapter("default")
    return largest


def cuts(
    adapter: Adapter,
    smaller: Adapter,
    reads: Reads,
    slots: dict[tuple[str, str], torch.Tensor],
    gates: dict[str, torch.Tensor],
    min_reads: int,
) -> list[TaskCut]:
    """What pruning takes from every task."""
    before, after = task_bytes(adapter), task_bytes(smaller)
    found = []
    for name in adapter.config.tasks:
        counts = [c for (task, _), c in reads.slots.items() if task == name] + [
            c for t, c in reads.gates.items() if t == name
        ]
        stay = [s for (task, _), s in slots.items() if task == name] + [s for t, s in gates.items() if t == name]
        found.append(
            TaskCut(
                name,
                sum(len(each) for each in counts),
                sum(int((each < min_reads).sum()) for each in counts),
                sum(int((~each).sum()) for each in stay),
                reads.share(name),
                before[name],
                after[name],
            )
        )
    return found
