"""Slots: which of them a token reads, with which weights, and what comes out.

Two ways of addressing: prototypes with a rejection threshold, and product keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

SMALLEST_ROOM = 0.01
"""Least 1 - threshold that a score is divided by: caps the gain of a key next to the background at 100."""


def prototype_scores(queries: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """How strongly every query fires every prototype: `s = relu(cos - tau) / (1 - tau)`.

    There is no softmax over slots: a query below all thresholds reads exactly zero. A threshold of 1 or more
    silences its key.

    Args:
        queries: [N, K] of length 1.
        keys: [M, K] of length 1.
        thresholds: [M], cosines.

    Returns:
        [N, M], 0 at silence, at most 1.
    """
    return ((queries @ keys.T) - thresholds).relu_() / (1 - thresholds).clamp_min(SMALLEST_ROOM)


def naive_prototype_read(
    queries: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Twin of `prototype_scores(...) @ values`, slot by slot; values [M, D], returns [N, D]."""
    outputs = []
    for query in queries:
        output = values.new_zeros(values.shape[1])
        for key, threshold, value in zip(keys, thresholds, values, strict=True):
            excess = float((query * key).sum() - threshold)
            if excess > 0:
                output = output + excess / max(1 - float(threshold), SMALLEST_ROOM) * value
        outputs.append(output)
    return torch.stack(outputs)


def half_scores(queries: torch.Tensor, rotations: torch.Tensor, half_keys: torch.Tensor) -> torch.Tensor:
    """Cosines of each half of each head's rotated query to its half keys.

    Args:
        queries: [N, K].
        rotations: [H, K, 2 * K_half].
        half_keys: [H, 2, n, K_half] of length 1.

    Returns:
        [N, H, 2, n].
    """
    return torch.einsum("nhck,hcmk->nhcm", half_queries(queries, rotations), half_keys)


def half_queries(queries: torch.Tensor, rotations: torch.Tensor) -> torch.Tensor:
    """Every head's rotated query [N, K] in two halves of length 1, [N, H, 2, K_half]."""
    rotated = torch.einsum("nk,hkj->nhj", queries, rotations)
    return F.normalize(rotated.unflatten(-1, (2, -1)), dim=-1)


def product_topk(scores: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best slots of a product-key table (Lample et al. 2019, section 3.1; Berges et al. 2024, section
    3.1).

    Slot `i * n + j` scores the sum of half scores i and j. The best of all n^2 sums lie among the topk^2 sums
    of the best halves, so the answer is exact.

    Args:
        scores: [..., 2, n] scores of the half keys.
        topk: slots wanted, at most n^2.

    Returns:
        scores [..., topk] in falling order and slots [..., topk] int64; among equal scores the lowest slot
        comes first.
    """
    if scores.device.type != "cpu" or torch.compiler.is_compiling():
        return stable_product_topk(scores, topk)  # no step of it depends on what was found
    n = scores.shape[-1]
    wanted = min(topk + 1, n * n)  # one more, to see a tie at the border
    halves, indices = scores.topk(min(wanted, n), dim=-1)
    # Sorted halves: at least (i + 1) (j + 1) - 1 other pairs do as well as the pair of ranks i and j.
    ranks = torch.arange(halves.shape[-1], device=scores.device) + 1
    first, second = (ranks[:, None] * ranks <= wanted).nonzero().unbind(1)
    slots = indices[..., 0, :][..., first] * n + indices[..., 1, :][..., second]
    sums, order = (halves[..., 0, :][..., first] + halves[..., 1, :][..., second]).topk(wanted, dim=-1)
    slots = slots.gather(-1, order)
    # torch.topk leaves the order of equal scores open; ties are rare, so only they pay for a stable sort.
    tied = (sums[..., 1:] == sums[..., :-1]).any(dim=-1)
    sums, slots = sums[..., :topk], slots[..., :topk]
    if tied.any():
        sums[tied], slots[tied] = stable_product_topk(scores[tied], topk)
    return sums, slots


def stable_product_topk(scores: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`product_topk` by stable sorts: slower, but equal scores come in the order of their slots."""
    n = scores.shape[-1]
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., : min(topk, n)]
    halves = best.sort(dim=-1).values
    kept = scores.gather(-1, halves)
    sums = (kept[..., 0, :, None] + kept[..., 1, None, :]).flatten(-2)
    slots = (halves[..., 0, :, None] * n + halves[..., 1, None, :]).flatten(-2)
    # Candidates lie in the order of their slots, so stability decides ties by the lowest.
    sums, order = sums.sort(dim=-1, descending=True, stable=True)
    return sums[..., :topk], slots.gather(-1, order[..., :topk])


def naive_product_topk(scores: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Twin of `product_topk` over all n^2 slots."""
    every = (scores[..., 0, :, None] + scores[..., 1, None, :]).flatten(-2)
    every, slots = every.sort(dim=-1, descending=True, stable=True)
    return every[..., :topk], slots[..., :topk]


def product_read(slots: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the slots that exist: the table is virtual, and only `rows` of it have values.

    Nothing is of the size of the table: the gradient of `values` is dense [M, D], and bisection finds the row of a
    read. On the CPU, reads of slots that do not exist cost nothing after that; elsewhere, and in what is compiled, they
    weigh 0, so that no shape depends on what was found.

    Args:
        slots: [N, R] int64 slots of the virtual table.
        weights: [N, R], taking no gradient.
        rows: [M] int64 slots that have values, rising.
        values: [M, D].

    Returns:
        [N, D].
    """
    place = torch.searchsorted(rows, slots).clamp_max_(rows.shape[0] - 1)
    exists = rows[place] == slots
    if slots.device.type != "cpu" or torch.compiler.is_compiling():
        return F.embedding_bag(place, values, per_sample_weights=(weights * exists).to(values.dtype), mode="sum")
    ends = F.pad(exists.sum(dim=1).cumsum(dim=0), (1, 0))
    return F.embedding_bag(
        place[exists],
        values,
        offsets=ends,
        per_sample_weights=weights[exists].to(values.dtype),
        mode="sum",
        include_last_offset=True,
    )


def naive_product_read(
    slots: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Twin of `product_read`: one look-up at a time."""
    owned = {int(row): m for m, row in enumerate(rows)}
    outputs = []
    for ids, ws in zip(slots.tolist(), weights.tolist(), strict=True):
        output = values.new_zeros(values.shape[1])
        for slot, weight in zip(ids, ws, strict=True):
            if slot in owned:
                output = output + weight * values[owned[slot]]
        outputs.append(output)
    return torch.stack(outputs)


def count_accesses(slots: torch.Tensor, documents: torch.Tensor, n_slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How often each slot is read, and in how many documents.

    Args:
        slots: [N, R] int64, what every token reads.
        documents: [N] int64, the document of every token.
        n_slots: size of the table.

    Returns:
        counts [n_slots] and document frequency [n_slots], both int64. Batches of whole documents add up.
    """
    counts = torch.bincount(slots.flatten(), minlength=n_slots)
    pairs = (documents.to(slots.device)[:, None] * n_slots + slots).unique()
    return counts, torch.bincount(pairs % n_slots, minlength=n_slots)


def document_numbers(rows: torch.Tensor, tokens: int) -> torch.Tensor:
    """Cuts rows of text into documents of at most `tokens` consecutive tokens.

    Args:
        rows: [N] int64, the row of every token, in rising order.
        tokens: at least 1.

    Returns:
        [N] int64, documents numbered from 0 without gaps.
    """
    _, row, lengths = rows.unique_consecutive(return_inverse=True, return_counts=True)
    place = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(dim=0) - lengths)[row]
    starts = place % tokens == 0
    return starts.cumsum(dim=0) - 1
