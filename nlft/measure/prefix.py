"""Prompts that several sequences share are read once: their cache is handed to every sequence that goes on from them.

Four choices behind one question cost one question instead of four. What comes out is what separate passes give, up to
rounding: a cache holds exactly what earlier tokens left behind, states of memories and evidence of gates included.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from nlft.data.batch import Batch, collate
from nlft.data.template import Encoded
from nlft.types import IGNORE

SHORTEST = 8
"""Tokens of a prompt below which reading it again costs less than a pass of its own."""
LEAST_SAVED = 0.25
"""Part of the tokens of a group that sharing must save."""


@dataclass(frozen=True, slots=True)
class Shared:
    """Sequences that begin with the same tokens."""

    length: int
    """How many tokens they share; the first target lies behind them."""
    members: list[int]
    """Indices of the sequences."""


def can_share(model: Any) -> bool:
    """Whether the model goes on from a key-value cache and takes positions, so that padding may come first."""
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            return False
        model = model.get_base_model()
    parameters = inspect.signature(model.forward).parameters
    stateful = getattr(model, "_is_stateful", False)
    return not stateful and all(name in parameters for name in ("past_key_values", "position_ids", "logits_to_keep"))


def shared_prompts(encoded: Sequence[Encoded]) -> list[Shared]:
    """Groups of sequences with one prompt, longest prompt first; sequences that gain nothing are in none.

    A prompt is what lies before the first target; its last token is read again with each sequence, for it predicts.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for index, one in enumerate(encoded):
        first = next((at for at, label in enumerate(one.labels) if label != IGNORE), 0)
        if first > SHORTEST:
            found.setdefault(tuple(one.ids[: first - 1]), []).append(index)
    groups = []
    for prompt, members in found.items():
        tokens = sum(len(encoded[index].ids) for index in members)
        if len(prompt) * (len(members) - 1) >= LEAST_SAVED * tokens:
            groups.append(Shared(len(prompt), members))
    return sorted(groups, key=lambda group: (-group.length, group.members[0]))


def in_batches(groups: Sequence[Shared], batch_size: int) -> Iterator[list[Shared]]:
    """Whole groups of like prompts, up to `batch_size` sequences together; a larger group is cut."""
    batch: list[Shared] = []
    room = batch_size
    for group in groups:
        for at in range(0, len(group.members), batch_size):
            part = Shared(group.length, group.members[at : at + batch_size])
            if len(part.members) > room:
                yield batch
                batch, room = [], batch_size
            batch.append(part)
            room -= len(part.members)
    if batch:
        yield batch


def shared_logits(
    model: Any, encoded: Sequence[Encoded], groups: Sequence[Shared], pad_id: int
) -> tuple[list[Encoded], Batch, Tensor, Tensor, Tensor]:
    """One pass over the prompts of groups, left-padded, and one over what follows them, right-padded.

    Sequences that differ in their last token alone, which is not read, are one row of the second pass.

    Returns:
        What follows the prompts, one sequence a member in the order of the groups; the same as a batch of B rows; the
        positions [K] in it that predict a target; logits [at most B, K, vocabulary]; and the row in them of each
        sequence, [B].
    """
    device = next(model.parameters()).device
    prompts = []
    for group in groups:
        ids = encoded[group.members[0]].ids[: group.length]
        prompts.append(Encoded(ids, [IGNORE] * len(ids), 0))
    read = collate(prompts, pad_id, side="left").to(device)
    output = model(
        input_ids=read.input_ids,
        attention_mask=read.attention_mask,
        position_ids=positions_of(read.attention_mask),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    tails, rows, first = [], [], []
    known: dict[tuple[int, ...], int] = {}
    for place, group in enumerate(groups):
        for index in group.members:
            one = encoded[index]
            tails.append(Encoded(one.ids[group.length :], one.labels[group.length :], one.n_bytes))
            row = known.setdefault((place, *tails[-1].ids[:-1]), len(first))
            rows.append(row)
            if row == len(first):
                first.append((place, len(tails) - 1))
    owner, own = (torch.tensor(column, device=device) for column in zip(*first, strict=True))
    cache.batch_select_indices(owner)
    batch = collate(tails, pad_id).to(device)
    kept = (batch.labels[:, 1:] != IGNORE).any(dim=0).nonzero()[:, 0]
    ids = batch.input_ids[own, :-1]  # nothing comes after the last column
    mask = torch.cat([read.attention_mask[owner], batch.attention_mask[own, :-1]], dim=1)
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions_of(mask)[:, -ids.shape[1] :],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=kept,
    ).logits
    return tails, batch, kept, logits, torch.tensor(rows, device=logits.device)


def positions_of(mask: Tensor) -> Tensor:
    """Position of every token among those of its row that are no padding, [B, T] int64."""
    return (mask.cumsum(dim=-1) - 1).clamp_min(0)
