"""What the prototype slots of one task add to every token, in memory that does not grow with tokens times slots."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from nlft.ops.keys import BLOCK
from nlft.ops.search import Fired, Index, fired, indexed
from nlft.ops.slots import SMALLEST_ROOM, prototype_scores

DENSEST, DENSEST_INPUTS = 16, 64
"""Where more than one in so many pairs of a token and a slot fires, products of whole blocks are faster."""
PROBE = 32
"""Tokens that are looked at first, where there are many times as many."""


def prototype_read(
    queries: torch.Tensor,
    keys: torch.Tensor,
    thresholds: torch.Tensor,
    values: torch.Tensor,
    inputs: torch.Tensor | None = None,
    index: Index | None = None,
) -> torch.Tensor:
    """`prototype_scores(...) @ values`, with at most `BLOCK` scores at once.

    On the CPU only the pairs that fire are computed with and kept for the backward pass, as long as they are few.
    Elsewhere, and in what is compiled, their number must not decide what runs next, so blocks of all scores are
    computed, and once more in the backward pass.

    Args:
        queries: [N, K] of length 1.
        keys: [M, K] of length 1.
        thresholds: [M], cosines.
        values: [M, D].
        inputs: [M, K]; the score of slot i is multiplied by `1 + q . inputs_i`.
        index: of the same keys and thresholds, to leave some of them out.

    Returns:
        [N, D], exactly 0 where nothing fires; with gradients for values and inputs alone.
    """
    queries = queries.detach()
    if queries.device.type == "cpu" and not torch.compiler.is_compiling():
        index = index or indexed(keys, thresholds)
        most = pairs_worth(queries, keys, inputs is not None)
        found = None if looks_dense(queries, index, most) else fired(queries, keys, thresholds, index, most)
        if found is not None:
            return compact_read(queries, found, thresholds, values, inputs)
    return BlockedRead.apply(queries, keys, thresholds, values, inputs)  # pyright: ignore


def pairs_worth(queries: torch.Tensor, keys: torch.Tensor, inputs: bool) -> int:
    """Most pairs that are computed with one by one: no more than `BLOCK`; with inputs each holds two vectors."""
    slots, width = keys.shape
    pairs = queries.shape[0] * slots
    return max(slots, min(pairs // DENSEST_INPUTS, BLOCK // width) if inputs else min(pairs // DENSEST, BLOCK))


def looks_dense(queries: torch.Tensor, index: Index, most: int) -> bool:
    """Whether every so many-th token fires more than its part of `most` pairs, so that a search would be given up.

    Slots behind a gate need not be silent: a token fires about 16 of them, however few there are. What was found in
    the last read must not decide, or a run that is resumed would not be bit-equal.
    """
    step = queries.shape[0] // PROBE
    if step < 4 or index.groups is not None or index.places.shape[0] > BLOCK // (2 * PROBE):
        return False
    return int((queries[::step] @ index.columns > index.thresholds).sum()) * step > most


def compact_read(
    queries: torch.Tensor,
    found: Fired,
    thresholds: torch.Tensor,
    values: torch.Tensor,
    inputs: torch.Tensor | None,
) -> torch.Tensor:
    """Weighted sums of values [M, D] over the pairs that fire, [N, D]."""
    tokens, slots, cosines = found
    if not tokens.shape[0] and not torch.is_grad_enabled():
        return values.new_zeros(queries.shape[0], values.shape[1])
    limits = thresholds[slots]
    scores = (cosines - limits) / (1 - limits).clamp_min_(SMALLEST_ROOM)
    if inputs is not None:
        scores = scores * (1 + (queries[tokens] * inputs[slots]).sum(dim=1))
    ends = F.pad(torch.bincount(tokens, minlength=queries.shape[0]).cumsum(dim=0), (1, 0))
    return F.embedding_bag(
        slots, values, offsets=ends, per_sample_weights=scores.to(values.dtype), mode="sum", include_last_offset=True
    )


class BlockedRead(torch.autograd.Function):
    """The read by blocks of tokens; the scores are computed again in the backward pass, not kept."""

    @staticmethod
    def forward(ctx: Any, queries, keys, thresholds, values, inputs):  # pyright: ignore
        """See `prototype_read`."""
        ctx.save_for_backward(queries, keys, thresholds, values, inputs)
        parts = queries.split(max(1, BLOCK // len(keys)))
        outputs = [block_scores(part, keys, thresholds, inputs)[0].to(values.dtype) @ values for part in parts]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @staticmethod
    def backward(ctx: Any, gradient):  # pyright: ignore
        """Of values and inputs."""
        queries, keys, thresholds, values, inputs = ctx.saved_tensors
        size = max(1, BLOCK // len(keys))
        for_values = torch.zeros_like(values) if ctx.needs_input_grad[3] else None
        for_inputs = torch.zeros_like(inputs) if ctx.needs_input_grad[4] else None
        for part, felt in zip(queries.split(size), gradient.split(size), strict=True):
            scores, plain = block_scores(part, keys, thresholds, inputs)
            if for_values is not None:
                for_values += scores.to(values.dtype).T @ felt
            if for_inputs is not None:
                for_inputs += ((felt @ values.T).to(plain.dtype) * plain).T @ part
        return None, None, None, for_values, for_inputs


def block_scores(
    queries: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor, inputs: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores [N, M] of a block of tokens, and the same without their factors."""
    plain = prototype_scores(queries, keys, thresholds)
    return (plain, plain) if inputs is None else (plain * (1 + queries @ inputs.T), plain)
