"""Teacher-forced passes: what a text costs, and whether greedy decoding would write it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor

from nlft.data.batch import Batch, collate
from nlft.data.template import Encoded, prompt_ids
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


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of like length, longest first: memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return (order[at : at + batch_size] for at in range(0, len(order), batch_size))


def likelihoods(model: Any, encoded: Sequence[Encoded], pad_id: int, batch_size: int) -> list[Likelihood]:
    """One teacher-forced pass over all sequences, right-padded; results in the given order.

    Call under `evaluating(model)`. Softmax and sums are float32 and float64 whatever the model's dtype.
    """
    results: dict[int, Likelihood] = {}
    device = next(model.parameters()).device
    for chosen in by_length([len(row.ids) for row in encoded], batch_size):
        rows = [encoded[i] for i in chosen]
        results.update(zip(chosen, _batch(model, rows, collate(rows, pad_id).to(device)), strict=True))
    return [results[i] for i in range(len(encoded))]


def _batch(model: Any, rows: Sequence[Encoded], batch: Batch) -> list[Likelihood]:
    targets = batch.labels[:, 1:]  # position t predicts token t + 1
    row, position = (targets != IGNORE).nonzero(as_tuple=True)
    kept, at = position.unique(return_inverse=True)
    logits = _logits(model, batch, kept)
    losses, hits = [], []
    for part in torch.arange(len(row), device=row.device).split(CHUNK):
        wanted = targets[row[part], position[part]].to(logits.device)
        picked = logits[row[part].to(logits.device), at[part].to(logits.device)].float()
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


def _logits(model: Any, batch: Batch, positions: Tensor) -> Tensor:
    """Logits [B, len(positions), vocabulary]; the head computes no others if the model can leave them out."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if _takes_positions(model):
        return model(**inputs, logits_to_keep=positions).logits
    # Virtual tokens of prompt tuning come first, so the text's positions are counted from the end.
    logits = model(**inputs).logits[:, -batch.input_ids.shape[1] :]
    return logits[:, positions.to(logits.device)]


def _takes_positions(model: Any) -> bool:
    if isinstance(model, PeftModel):
        if model.active_peft_config.is_prompt_learning:
            return False
        model = model.get_base_model()
    return "logits_to_keep" in inspect.signature(model.forward).parameters
