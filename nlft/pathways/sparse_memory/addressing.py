"""Where a task's slots lie: prototypes of its states with thresholds, or rows of the product-key table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from nlft.calibrate import block_inputs
from nlft.errors import NlftError
from nlft.ops.keys import largest_cosine, spherical_kmeans
from nlft.ops.slots import best_rows, count_accesses, half_queries, tfidf
from nlft.pathways.sparse_memory.layer import SparseMemory
from nlft.pathways.sparse_memory.model import memories

if TYPE_CHECKING:
    from nlft.data.batch import Batch

STATES_PER_KEY = 64
"""States kept for each key that k-means looks for; more add memory and little else."""
ROUNDING = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Added to every threshold (cosine), by the base's dtype: the same token in another batch has a slightly other
state, and in half precision a clearly other one."""


def prototype_addresses(
    peft_model: Any,
    task_batches: Iterable[Batch],
    background_batches: Iterable[Batch],
    earlier_batches: Iterable[Batch],
    slots: int,
    margin: float = 0.0,
    kmeans_steps: int = 10,
    seed: int = 0,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Prototype keys of a task, each with a threshold that the background and earlier tasks never pass.

    Keys are spherical k-means of the task's queries; a threshold is the largest cosine of its key to any
    token of the background and of earlier tasks (first tokens of rows included), and `margin` more.

    Args:
        peft_model: with calibrated statistics; memories of finished tasks take part in the forward pass.
        task_batches: train rows of the new task.
        background_batches: general text, not empty.
        earlier_batches: train rows of finished tasks; may be empty.
        slots: keys a block; fewer if the task has fewer tokens.
        margin: added to every threshold (cosine).
        kmeans_steps: iterations.
        seed: of the sample of states and of the first keys.

    Returns:
        By block: keys [M, K] and thresholds [M].
    """
    cores = memories(peft_model)
    keys = {
        block: spherical_kmeans(states, slots, kmeans_steps, torch.Generator().manual_seed(seed))
        for block, states in sample_queries(peft_model, cores, task_batches, slots * STATES_PER_KEY, seed).items()
    }
    largest = {block: own.new_full((len(own),), -1.0) for block, own in keys.items()}
    seen = 0
    for batches in (background_batches, earlier_batches):
        for inputs in block_inputs(peft_model, list(cores), batches, first=True):
            for block, states in inputs.states.items():
                cosine = largest_cosine(keys[block], cores[block].queries(states))
                largest[block] = torch.maximum(largest[block], cosine)
            seen += len(inputs.rows)
    if not seen:
        raise NlftError("The background holds no token to set thresholds on.", "Give `background` more rows.")
    rounding = ROUNDING.get(peft_model.get_input_embeddings().weight.dtype, ROUNDING[torch.float32])
    return {block: (own, largest[block] + margin + rounding) for block, own in keys.items()}


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


def product_key_rows(
    peft_model: Any, task_batches: Iterable[Batch], background_batches: Iterable[Batch], slots: int
) -> dict[str, torch.Tensor]:
    """The rows of the table that a task trains: the best by TF-IDF (Lin et al. 2025), a document being one
    row of text.

    Args:
        peft_model: with calibrated statistics and half keys.
        task_batches: train rows of the new task.
        background_batches: general text.
        slots: rows a block, at most n^2.

    Returns:
        By block: [min(slots, n^2)] int64 in rising order.
    """
    counts, _, _ = accesses(peft_model, task_batches)
    _, frequency, n_documents = accesses(peft_model, background_batches)
    return {block: best_rows(tfidf(counts[block], frequency[block], n_documents), slots) for block in counts}


def accesses(peft_model: Any, batches: Iterable[Batch]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]:
    """By block: reads and document frequency of every slot, [n^2] int64; and the number of documents."""
    cores = memories(peft_model)
    size = {block: core.half_keys.shape[2] ** 2 for block, core in cores.items()}
    counts = {block: core.mean.new_zeros(size[block], dtype=torch.int64) for block, core in cores.items()}
    frequency = {block: own.clone() for block, own in counts.items()}
    n_documents = 0
    for inputs in block_inputs(peft_model, list(cores), batches):
        for block, states in inputs.states.items():
            more = count_accesses(cores[block].route(states)[0], inputs.rows, size[block])
            counts[block] += more[0]
            frequency[block] += more[1]
        n_documents += len(inputs.rows.unique())
    return counts, frequency, n_documents


def sample_queries(
    peft_model: Any, cores: dict[str, SparseMemory], batches: Iterable[Batch], most: int, seed: int
) -> dict[str, torch.Tensor]:
    """Queries [min(most, N), K] of every block at a uniform sample of tokens, the same tokens for all blocks.

    Raises:
        NlftError: there is no token.
    """
    generator = torch.Generator().manual_seed(seed)
    lots = torch.zeros(0)
    queries = {block: core.mean.new_zeros(0, core.key_width) for block, core in cores.items()}
    for inputs in block_inputs(peft_model, list(cores), batches):
        # Every token draws a lot and the largest are kept: a uniform sample of a stream of any length.
        lots = torch.cat([lots, torch.rand(len(inputs.rows), generator=generator)])
        keep = lots.topk(min(most, len(lots))).indices.sort().values
        lots = lots[keep]
        for block, states in inputs.states.items():
            every = torch.cat([queries[block], cores[block].queries(states)])
            queries[block] = every[keep.to(every.device)]
    if not len(lots):
        raise NlftError("The rows hold no token to make keys of.", "Give rows of at least two tokens.")
    return queries


def random_rotations(heads: int, width: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """A random [width, columns] matrix with orthonormal columns for every head, [H, width, columns]."""
    return torch.linalg.qr(torch.randn(heads, width, columns, generator=generator)).Q


def filled(keys: torch.Tensor, n_keys: int, generator: torch.Generator) -> torch.Tensor:
    """Keys [m, K_half] and random ones of length 1 after them, [n_keys, K_half]."""
    drawn = torch.randn(n_keys - len(keys), keys.shape[1], generator=generator).to(keys)
    return torch.cat([keys, F.normalize(drawn, dim=1)])
