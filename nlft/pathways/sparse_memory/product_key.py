"""Product keys: half keys from the background, their health, and the rows of the table that a task trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from nlft.calibrate import block_inputs
from nlft.errors import NlftError
from nlft.ops.choice import Background, Choice, choose
from nlft.ops.health import TOP, median_frequency, top_share, usage
from nlft.ops.keys import spherical_kmeans
from nlft.ops.slots import count_accesses, document_numbers, half_queries
from nlft.pathways.prototype import STATES_PER_KEY, sample_queries
from nlft.pathways.sparse_memory.layer import TaskSlots
from nlft.pathways.sparse_memory.model import adapter_name, begin_task, memories
from nlft.pathways.sparse_memory.tally import Tally

if TYPE_CHECKING:
    from nlft.data.batch import Batch

SMALLEST_USAGE = 0.9
"""Part of a table that the background must read, or keys have collapsed."""
LARGEST_TOP_SHARE = 0.2
"""Share of all reads that the most read 1 % of slots may take."""
LARGEST_MEDIAN = 0.3
"""Median df / |B| above which document frequencies say too little."""
SHORTEST_DOCUMENT = 8
"""Tokens; shorter pieces are no documents any more."""
IGNORE_HEALTH = "`nlft inspect` shows every layer; `health: ignore` trains all the same."


@dataclass(frozen=True)
class BackgroundReads:
    """What general text reads of every table, and how it was cut into documents."""

    blocks: dict[str, Background]
    document_tokens: int
    """Longest document, in tokens."""

    @property
    def median(self) -> float:
        """Median df / |B| over the slots that are read, of the block where it is largest."""
        return max(median_frequency(one.frequency, one.n_documents) for one in self.blocks.values())


def product_key_half_keys(
    peft_model: Any, background_batches: Iterable[Batch], kmeans_steps: int = 10, seed: int = 0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Rotations and half keys of product-key memories: spherical k-means on each half of each head's queries.

    Args:
        peft_model: with calibrated statistics.
        background_batches: general text, not empty.
        kmeans_steps: iterations.
        seed: of rotations, sample and first keys.

    Returns:
        By block: rotations [H, K, 2 * K_half] with orthonormal columns, half keys [H, 2, n, K_half].
    """
    cores = memories(peft_model)
    n_keys = max(core.half_keys.shape[2] for core in cores.values())
    found = {}
    for block, states in sample_queries(peft_model, cores, background_batches, n_keys * STATES_PER_KEY, seed).items():
        generator = torch.Generator().manual_seed(seed)
        heads, _, n, half = cores[block].half_keys.shape
        rotations = random_rotations(heads, states.shape[1], 2 * half, generator).to(states.device)
        halves = half_queries(states, rotations)
        keys = torch.stack(
            [
                torch.stack(
                    [
                        filled(spherical_kmeans(halves[:, h, c], n, kmeans_steps, generator), n, generator)
                        for c in (0, 1)
                    ]
                )
                for h in range(heads)
            ]
        )
        found[block] = (rotations, keys)
    return found


def random_rotations(heads: int, width: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A random [width, columns] matrix with orthonormal columns for every head, [H, width, columns]."""
    return torch.linalg.qr(torch.randn(heads, width, columns, generator=generator)).Q


def filled(keys: torch.Tensor, n_keys: int, generator: torch.Generator) -> torch.Tensor:
    """Keys [m, K_half] and random ones of length 1 after them, [n_keys, K_half]."""
    drawn = torch.randn(n_keys - len(keys), keys.shape[1], generator=generator).to(keys)
    return torch.cat([keys, F.normalize(drawn, dim=1)])


def accesses(peft_model: Any, batches: Iterable[Batch], lengths: Sequence[int] = (1,)) -> list[dict[str, Background]]:
    """Reads and document frequencies of every table, with rows cut into documents of several lengths.

    Args:
        peft_model: with calibrated statistics and half keys.
        batches: text; padding counts nowhere.
        lengths: tokens of a document.

    Returns:
        For each of the lengths: by block. The counts are the same for all.
    """
    cores = memories(peft_model)
    size = {block: core.half_keys.shape[2] ** 2 for block, core in cores.items()}
    zeros = {block: core.mean.new_zeros(size[block], dtype=torch.int64) for block, core in cores.items()}
    found = [{block: Background(zero, zero, 0) for block, zero in zeros.items()} for _ in lengths]
    for inputs in block_inputs(peft_model, list(cores), batches):
        routed = {block: cores[block].route(states)[0] for block, states in inputs.states.items()}
        for length, tables in zip(lengths, found, strict=True):
            documents = document_numbers(inputs.rows, length)
            more = int(documents[-1]) + 1 if len(documents) else 0
            for block, slots in routed.items():
                counts, frequency = count_accesses(slots, documents, size[block])
                old = tables[block]
                tables[block] = Background(old.counts + counts, old.frequency + frequency, old.n_documents + more)
    return found


def background_reads(peft_model: Any, batches: Sequence[Batch]) -> BackgroundReads:
    """What the background reads, in documents short enough for their frequencies to tell slots apart.

    In a long document almost every slot is read by some token, so all document frequencies are near |B| and TF-IDF
    ranks by nothing. Documents are therefore pieces of rows: as long as the longest row, then half of that, and so
    on down to `SHORTEST_DOCUMENT` tokens; the first length at which the median of df / |B| is small is taken, else
    the last.
    """
    lengths = document_lengths(max(int(batch.attention_mask.sum(dim=1).max()) for batch in batches))
    found = [
        BackgroundReads(blocks, length)
        for blocks, length in zip(accesses(peft_model, batches, lengths), lengths, strict=True)
    ]
    return next((reads for reads in found if reads.median < LARGEST_MEDIAN), found[-1])


def document_lengths(longest: int) -> list[int]:
    """The longest row in tokens, halved down to `SHORTEST_DOCUMENT`."""
    lengths = [longest]
    while lengths[-1] > SHORTEST_DOCUMENT:
        lengths.append(max(SHORTEST_DOCUMENT, lengths[-1] // 2))
    return lengths


def check_health(reads: BackgroundReads, choice: Choice) -> None:
    """Refuses keys on which training is hopeless, before anything is trained.

    Raises:
        NlftError: naming the block, the number and the limit.
    """
    for block, table in reads.blocks.items():
        if (used := usage(table.counts)) <= SMALLEST_USAGE:
            raise NlftError(
                f"{block}: the background reads {used:.0%} of the slots, and more than {SMALLEST_USAGE:.0%} is needed.",
                f"Lower `half_keys`, or give `background` more and more varied rows. {IGNORE_HEALTH}",
            )
        if (top := top_share(table.counts)) >= LARGEST_TOP_SHARE:
            raise NlftError(
                f"{block}: {TOP:.0%} of the slots take {top:.0%} of all reads, and less than {LARGEST_TOP_SHARE:.0%} is"
                " needed.",
                f"Give `background` more varied rows, raise `kmeans_steps`, or leave the layer out. {IGNORE_HEALTH}",
            )
    if choice == "tfidf" and reads.median >= LARGEST_MEDIAN:
        raise NlftError(
            f"Document frequencies are saturated: even in documents of {reads.document_tokens} tokens the median slot"
            f" is read by {reads.median:.0%} of them, and less than {LARGEST_MEDIAN:.0%} is needed.",
            f"Use `choice: kl`, which counts reads and not documents, or raise `half_keys`. {IGNORE_HEALTH}",
        )


def product_key_rows(
    peft_model: Any,
    task_batches: Iterable[Batch],
    background: Mapping[str, Background],
    slots: int,
    choice: Choice = "tfidf",
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """The rows of the table that a task trains.

    Args:
        peft_model: with calibrated statistics and half keys.
        task_batches: train rows of the new task.
        background: by block, see `background_reads`.
        slots: rows a block; fewer if the task reads fewer.
        choice: the rule, see `nlft.ops.choice.choose`.
        seed: of the rule `random`.

    Returns:
        By block: [M] int64 in rising order.
    """
    [task] = accesses(peft_model, task_batches)
    generator = torch.Generator().manual_seed(seed)
    return {block: choose(choice, table.counts, background[block], slots, generator) for block, table in task.items()}


def open_tables(model: Any, name: str, background: Mapping[str, Background]) -> dict[nn.Parameter, Tally]:
    """Begins a task whose whole table can be trained, row by row.

    Returns:
        Values [n_slots, D] of every block with the tally of its reads, for `RowSGD`.
    """
    begin_task(model, name, {block: torch.arange(len(table.counts)) for block, table in background.items()})
    tables = {}
    for block, core in memories(model).items():
        core.newest.tally = Tally(background[block])
        tables[core.newest.values] = core.newest.tally
    return tables


def keep_moved(model: Any) -> dict[str, int]:
    """Cuts the tables of the open task down to the rows that were ever moved; the others are zero.

    Returns:
        Rows kept by block, at least one.
    """
    config = model.peft_config[adapter_name(model, None)]
    kept = {}
    for block, core in memories(model).items():
        kept[block] = keep(core.newest)
    config.resize(config.active_task, kept)
    return kept


def keep(part: TaskSlots) -> int:
    """Cuts one table down to the rows that were ever moved; returns how many these are."""
    assert part.tally is not None
    rows = part.tally.moved.nonzero().squeeze(1)
    if not len(rows):
        rows = torch.zeros_like(part.rows[:1])
    part.rows = part.rows[rows]
    part.values = nn.Parameter(part.values.detach()[rows])
    part.tally = None
    return len(rows)
