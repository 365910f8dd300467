"""Prototype keys of a task and the thresholds that keep them silent on everything else."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from nlft.calibrate import block_inputs, counted
from nlft.data.batch import collate
from nlft.digest import bytes_of
from nlft.errors import NlftError
from nlft.frozen_prefix import prefix_of
from nlft.ops.keys import largest_cosine, largest_excess, spherical_kmeans, upper_cosine
from nlft.ops.risk import Exceedances, allowance
from nlft.state_file import address_of

if TYPE_CHECKING:
    from nlft.data.batch import Batch
    from nlft.data.template import Encoded

STATES_PER_KEY = 64
"""States kept for each key that k-means looks for; more add memory and little else."""
READ_SAMPLE = 16_384
"""States on which the thresholds of keys behind a gate are set."""
ROUNDING = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Added to every threshold (cosine), by the coarsest dtype of states: the same token in another batch has a slightly
other state, and in half precision a clearly other one."""

Addresses = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Keys [M, K] and thresholds [M] by module."""


class Reader(Protocol):
    """What has keys: a memory at its block, or a gate in front of its layer."""

    def queries(self, states: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, D] to queries [N, K] of length 1."""
        ...


@dataclass(frozen=True)
class HeldOut:
    """Background that chose no key and no threshold of its own, and how much of it may fire.

    Groups of rows about one thing (`Encoded.cluster`) are the units that are taken to be exchangeable with new
    text; every group weighs 1, whatever the number of its rows.
    """

    batches: list[tuple[Batch, torch.Tensor]]
    """Batches, and the weight of each of their rows (of each of its tokens, for the unit "tokens")."""
    groups: int
    budget: float
    unit: Literal["rows", "tokens"]


def prototype_addresses(
    model: Any,
    readers: Mapping[str, Reader],
    task_batches: Iterable[Batch],
    background_batches: Iterable[Batch],
    earlier_batches: Iterable[Batch],
    slots: int,
    margin: float = 0.0,
    held_out: HeldOut | None = None,
    kmeans_steps: int = 10,
    seed: int = 0,
) -> Addresses:
    """Prototype keys of a task, each with a threshold that the background and earlier tasks never pass.

    Keys are spherical k-means of the task's queries, the last token of every row apart. A threshold is the
    largest cosine of its key to any token of the background and of earlier tasks (first tokens of rows
    included), and `margin` more. With `held_out` one further margin for all keys of all readers is chosen so
    that a new group of rows fires with at most the budget's probability (unit "rows": the expected share of
    its rows with any token that fires; "tokens": the expected share of its tokens), see `nlft.ops.risk`. It may be
    below zero; earlier tasks stay below all thresholds even so.

    Args:
        model: with calibrated statistics; what finished tasks have learned takes part in the forward pass.
        readers: by the name of the module whose input they read.
        task_batches: train rows of the new task.
        background_batches: general text, not empty.
        earlier_batches: train rows of finished tasks; may be empty.
        slots: keys a reader; fewer if the task has fewer tokens.
        margin: added to every threshold (cosine).
        held_out: further background, and the budget.
        kmeans_steps: iterations.
        seed: of the sample of states and of the first keys.

    Raises:
        NlftError: there is no background, too little for the budget, or no key could ever fire.
    """
    samples = sample_queries(model, readers, task_batches, slots * STATES_PER_KEY, seed, last=False)
    keys = {name: prototypes(model, states, slots, kmeans_steps, seed) for name, states in samples.items()}
    loudest: list[dict[str, torch.Tensor]] = []
    seen = 0
    for batches in (background_batches, earlier_batches):
        largest = {name: own.new_full((len(own),), -1.0) for name, own in keys.items()}
        for inputs in block_inputs(model, list(readers), batches, first=True, again=batches is background_batches):
            for name, states in inputs.states.items():
                largest[name] = torch.maximum(largest[name], largest_cosine(keys[name], readers[name].queries(states)))
            seen += len(inputs.rows)
        loudest.append(largest)
    if not seen:
        raise NlftError("The background holds no token to set thresholds on.", "Give `background` more rows.")
    background, earlier = loudest
    largest = {name: torch.maximum(background[name], earlier[name]) for name in keys}
    if held_out is not None:
        margin += needed_margin(model, readers, keys, largest, held_out)
    rounding = rounding_of(model)
    # A budget may allow a margin below zero; nothing vouches for earlier tasks then, so they stay below in any case.
    found = {name: (own, torch.maximum(largest[name] + margin, earlier[name]) + rounding) for name, own in keys.items()}
    if not any(bool((thresholds < 1).any()) for _, thresholds in found.values()):
        raise NlftError(
            f"No key of the task could ever fire: every threshold is 1 or more (margin {margin:.2f}).",
            "The background looks just like the task. Raise the budget, lower the margin, or give more background.",
        )
    return found


def rounding_of(model: Any) -> float:
    """What is added to thresholds: by the base's dtype or that of kept states, whichever is coarser."""
    prefix = prefix_of(model)
    dtypes = [model.get_input_embeddings().weight.dtype, *([] if prefix is None else [prefix.dtype])]
    return max(ROUNDING.get(dtype, ROUNDING[torch.float32]) for dtype in dtypes)


def needed_margin(
    model: Any,
    readers: Mapping[str, Reader],
    keys: Mapping[str, torch.Tensor],
    thresholds: Mapping[str, torch.Tensor],
    held_out: HeldOut,
) -> float:
    """The least margin on all thresholds with which the held-out background keeps within its budget."""
    allowed = allowance(held_out.budget, held_out.groups)
    exceedances = Exceedances()
    read = block_inputs(model, list(readers), [batch for batch, _ in held_out.batches], first=True, again=True)
    for (_, weights), inputs in zip(held_out.batches, read, strict=True):
        excess = torch.stack(
            [
                largest_excess(readers[name].queries(states), keys[name], thresholds[name])
                for name, states in inputs.states.items()
            ]
        ).amax(dim=0)
        rows = inputs.rows.to(excess.device)
        if held_out.unit == "rows":
            excess = excess.new_full((len(weights),), -2.0).scatter_reduce(0, rows, excess, "amax")
            exceedances.add(excess, weights)
        else:
            exceedances.add(excess, weights.to(rows.device)[rows])
    return exceedances.height(allowed)


def read_addresses(
    model: Any,
    readers: Mapping[str, Reader],
    task_batches: Iterable[Batch],
    slots: int,
    reads: int = 16,
    kmeans_steps: int = 10,
    seed: int = 0,
) -> Addresses:
    """Prototype keys behind a gate, which need not be silent themselves: a token of the task reads about `reads`.

    A threshold is the cosine that the share `reads / slots` of the task's own tokens reach.
    """
    samples = sample_queries(model, readers, task_batches, slots * STATES_PER_KEY, seed, last=False)
    found = {}
    for name, states in samples.items():
        keys = prototypes(model, states, slots, kmeans_steps, seed)
        found[name] = (keys, upper_cosine(keys, states[:: -(-len(states) // READ_SAMPLE)], reads / len(keys)))
    return found


def prototypes(model: Any, states: torch.Tensor, slots: int, kmeans_steps: int, seed: int) -> torch.Tensor:
    """Spherical k-means of queries [N, K]: keys [min(slots, N), K].

    Runs of a comparison that differ in what comes later (a learning rate) find the keys of the first: what they ask is
    told apart by its bytes.
    """
    prefix = prefix_of(model)
    if prefix is None:
        return spherical_kmeans(states, slots, kmeans_steps, torch.Generator().manual_seed(seed))
    asked = hashlib.sha256(bytes_of(states.cpu())).digest()
    address = address_of(
        ("keys", asked, *states.shape, states.dtype, states.device.type, slots, kmeans_steps, seed), ()
    )
    keys = prefix.store.inputs.find(address)
    if keys is None:
        keys = spherical_kmeans(states, slots, kmeans_steps, torch.Generator().manual_seed(seed))
        prefix.store.inputs.add(address, keys.detach().cpu())
    return keys.to(states.device, copy=True)  # what is kept belongs to nobody


def sample_queries(
    model: Any, readers: Mapping[str, Reader], batches: Iterable[Batch], most: int, seed: int, last: bool = True
) -> dict[str, torch.Tensor]:
    """Queries [min(most, N), K] of every reader at a uniform sample of tokens, the same tokens for all readers.

    Args:
        last: last tokens of rows may be drawn too.

    Raises:
        NlftError: there is no token.
    """
    batches = list(batches)
    chosen = drawn([int(counted(batch, last=last).sum()) for batch in batches], most, seed)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in readers}
    for inputs, places in zip(block_inputs(model, list(readers), batches, last=last), chosen, strict=True):
        for name, states in inputs.states.items():
            parts[name].append(readers[name].queries(states[places.to(states.device)]))
    if not sum(map(len, chosen)):
        raise NlftError("The rows hold no token to make keys of.", "Give rows of at least two tokens.")
    return {name: torch.cat(own) for name, own in parts.items()}


def drawn(counts: Sequence[int], most: int, seed: int) -> list[torch.Tensor]:
    """A uniform sample of at most `most` of the tokens of batches with so many each: their places by batch."""
    generator = torch.Generator().manual_seed(seed)
    lots, places = torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    ends = list(accumulate(counts))
    for end, count in zip(ends, counts, strict=True):
        # Every token draws a lot and the largest are kept.
        lots = torch.cat([lots, torch.rand(count, generator=generator)])
        places = torch.cat([places, torch.arange(end - count, end)])
        if len(lots) > most:
            keep = lots.topk(most).indices.sort().values
            lots, places = lots[keep], places[keep]
    owners = torch.bucketize(places, torch.tensor(ends), right=True)
    return [places[owners == i] - (end - count) for i, (end, count) in enumerate(zip(ends, counts, strict=True))]


def hold_out(rows: Sequence[Encoded], seed: int) -> tuple[list[Encoded], list[Encoded]]:
    """Rows in two halves by their groups: one sets thresholds, the other vouches for them."""
    groups = sorted({row.cluster for row in rows})
    random.Random(seed).shuffle(groups)
    first = set(groups[: (len(groups) + 1) // 2])
    return [row for row in rows if row.cluster in first], [row for row in rows if row.cluster not in first]


def held_out_batches(
    rows: Sequence[Encoded], budget: float, unit: Literal["rows", "tokens"], pad_id: int, batch_size: int
) -> HeldOut:
    """Rows in batches of like length, weighted so that every group weighs 1."""
    sizes: Counter[str] = Counter()
    for row in rows:
        sizes[row.cluster] += 1 if unit == "rows" else len(row.ids)
    ordered = sorted(rows, key=lambda row: len(row.ids))
    parts = [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    batches = [
        (collate(part, pad_id), torch.tensor([1 / sizes[row.cluster] for row in part], dtype=torch.float64))
        for part in parts
    ]
    return HeldOut(batches, len(sizes), budget, unit)
