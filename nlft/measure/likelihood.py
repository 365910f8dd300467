"""Teacher-forced passes: what a text costs, and what greedy decoding would write in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from nlft.data.batch import by_length, collate, tokens_a_pass
from nlft.data.template import Encoded, prompt_ids
from nlft.frozen_prefix import keep_prefix
from nlft.head import Head
from nlft.measure.prefix import can_share, shared_passes, shared_prompts
from nlft.measure.targets import TargetLogits, parts, read_targets


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What one pass over one sequence gives."""

    nats: float
    """Negative log-likelihood, summed over the targets."""
    tokens: int
    """Target tokens."""
    missed: int | None = None
    """Place in the sequence of the first token of the last run of targets that is not the likeliest one after those
    before it; None if all are."""
    instead: int | None = None
    """The likeliest token there."""

    @property
    def greedy(self) -> bool:
        """Whether greedy decoding would write every token of the last run of targets, given those before it."""
        return self.missed is None


def likelihoods(model: Any, encoded: Sequence[Encoded], pad_id: int, batch_size: int) -> list[Likelihood]:
    """One teacher-forced pass over all sequences; results in the given order.

    Sequences are right-padded in batches of like length. Prompts that several of them share are read once
    (`prefix.py`). Call under `evaluating(model)`. Softmax and sums are float32 and float64 whatever the model's dtype.
    """
    results: dict[int, Likelihood] = {}
    device = next(model.parameters()).device
    head = Head(model)
    keep_prefix(model, encoded, pad_id)
    groups = shared_prompts(encoded) if can_share(model) else []
    for members, starts, found in shared_passes(model, head, encoded, groups, pad_id, batch_size):
        results.update(zip(members, _read([encoded[index] for index in members], found, starts), strict=True))
    rest = [index for index in range(len(encoded)) if index not in results]
    for chosen in by_length([len(encoded[index].ids) for index in rest], batch_size, tokens_a_pass(device)):
        rows = [encoded[rest[place]] for place in chosen]
        found = read_targets(model, head, collate(rows, pad_id).to(device))
        results.update(zip((rest[place] for place in chosen), _read(rows, found, [0] * len(rows)), strict=True))
    return [results[index] for index in range(len(encoded))]


def _read(rows: Sequence[Encoded], found: TargetLogits, starts: Sequence[int]) -> list[Likelihood]:
    """Likelihoods of rows, of which the tokens from `starts` on are the rows of the batch that was read."""
    losses, likeliest = [], []
    for block in found.blocks():
        made = parts(found.logits(block))
        wanted = found.wanted[block].to(made[0].device).split(len(made[0]))
        for logits, own in zip(made, wanted, strict=True):
            losses.append(F.cross_entropy(logits.float(), own, reduction="none"))
            likeliest.append(logits.argmax(-1))
    n, row = len(rows), found.row.cpu()
    nats = torch.zeros(n, dtype=torch.float64)
    missed: list[int | None] = [None] * n
    instead: list[int | None] = [None] * n
    if losses:
        nats.index_add_(0, row, torch.cat(losses).cpu().double())
        best = torch.cat(likeliest).cpu()
        place = found.column.cpu() + torch.tensor(starts)[row]
        answer = torch.tensor([len(prompt_ids(one)) for one in rows])
        wrong = ((best != found.wanted.cpu()) & (place >= answer[row])).nonzero()[:, 0]
        first = torch.ones_like(wrong, dtype=torch.bool)
        first[1:] = row[wrong][1:] != row[wrong][:-1]
        for at in wrong[first].tolist():
            missed[int(row[at])], instead[int(row[at])] = int(place[at]), int(best[at])
    tokens = torch.bincount(row, minlength=n)
    return [Likelihood(*one) for one in zip(nats.tolist(), tokens.tolist(), missed, instead, strict=True)]
