"""Teacher-forced passes: what a text costs, and whether greedy decoding would write it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from nlft.data.batch import Batch, by_length, collate, tokens_a_pass
from nlft.data.template import Encoded, prompt_ids
from nlft.frozen_prefix import keep_prefix, recalling
from nlft.measure.prefix import can_share, in_batches, shared_logits, shared_prompts
from nlft.types import IGNORE

CHUNK = 1024
"""Target tokens whose logits [CHUNK, vocabulary] are float32 at one time."""


@dataclass(frozen=True, slots=True)
class Likelihood:
    """What one pass over one sequence gives."""

    nats: float
    """Negative log-likelihood, summed over the targets."""
    tokens: int
    """Target tokens."""
    greedy: bool
    """True if every token of the last run of targets is the likeliest one after those before it."""


def likelihoods(model: Any, encoded: Sequence[Encoded], pad_id: int, batch_size: int) -> list[Likelihood]:
    """One teacher-forced pass over all sequences; results in the given order.

    Sequences are right-padded in batches of like length. Prompts that several of them share are read once
    (`prefix.py`). Call under `evaluating(model)`. Softmax and sums are float32 and float64 whatever the model's dtype.
    """
    results: dict[int, Likelihood] = {}
    device = next(model.parameters()).device
    groups = shared_prompts(encoded) if can_share(model) else []
    for some in in_batches(groups, batch_size):
        rows, batch, kept, logits, places = shared_logits(model, encoded, some, pad_id)
        members = [index for group in some for index in group.members]
        results.update(zip(members, _read(rows, batch, kept, logits, places), strict=True))
    rest = [index for index in range(len(encoded)) if index not in results]
    keep_prefix(model, [encoded[index] for index in rest], pad_id)
    most = tokens_a_pass(device)
    for chosen in by_length([len(encoded[index].ids) for index in rest], batch_size, most):
        rows = [encoded[rest[place]] for place in chosen]
        batch = collate(rows, pad_id).to(device)
        kept = predicting(batch)
        found = _read(rows, batch, kept, logits_at(model, batch, kept))
        results.update(zip((rest[place] for place in chosen), found, strict=True))
    return [results[index] for index in range(len(encoded))]


def predicting(batch: Batch) -> Tensor:
    """Positions [K] after which some row of the batch has a target."""
    return (batch.labels[:, 1:] != IGNORE).any(dim=0).nonzero()[:, 0]


def _read(
    rows: Sequence[Encoded], batch: Batch, kept: Tensor, logits: Tensor, places: Tensor | None = None
) -> list[Likelihood]:
    """Likelihoods of the rows of a batch, whose logits [B, K, vocabulary] are those after the positions `kept`.

    Args:
        places: row of the logits for each row of the batch, [B], where they are not the same.
    """
    targets = batch.labels[:, 1:]  # position t predicts token t + 1
    row, position = (targets != IGNORE).nonzero(as_tuple=True)
    at = torch.searchsorted(kept, position)
    losses, hits = [], []
    for part in torch.arange(len(row), device=row.device).split(CHUNK):
        wanted = targets[row[part], position[part]].to(logits.device)
        chosen = row[part].to(logits.device)
        picked = logits[chosen if places is None else places[chosen], at[part].to(logits.device)].float()
        losses.append(F.cross_entropy(picked, wanted, reduction="none").cpu())
        hits.append((picked.argmax(-1) == wanted).cpu())
    row, position = row.cpu(), position.cpu()
    answer = torch.tensor([len(prompt_ids(sequence)) for sequence in rows])
    missed = ~torch.cat(hits) & (position + 1 >= answer[row])
    n = len(rows)
    nats = torch.zeros(n, dtype=torch.float64).index_add_(0, row, torch.cat(losses).double())
    misses = torch.bincount(row[missed], minlength=n)
    tokens = torch.bincount(row, minlength=n)
    return [
        Likelihood(nat, count, miss == 0)
        for nat, count, miss in zip(nats.tolist(), tokens.tolist(), misses.tolist(), strict=True)
    ]


def logits_at(model: Any, batch: Batch, positions: Tensor) -> Tensor:
    """Logits [B, len(positions), vocabulary]; the head computes no others if the model can leave them out.

    The last column is not read, for nothing comes after it that it could predict.
    """
    inputs = batch.inputs(-1)
    with recalling(model, batch, -1):
        if _takes_positions(model):
            return model(**inputs, use_cache=False, logits_to_keep=positions).logits
        # Virtual tokens of prompt tuning come first, so the text's positions are counted from the end.
        logits = model(**inputs, use_cache=False).logits[:, -inputs["input_ids"].shape[1] :]
        return logits[:, positions.to(logits.device)]


def _takes_positions(model: Any) -> bool:
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            return False
        model = model.get_base_model()
    return "logits_to_keep" in inspect.signature(model.forward).parameters
