"""How far the adapted model has moved away from the base: KL(base || adapted) at every target token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from nlft.base import in_dtype
from nlft.data.batch import by_length, collate
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.measure.isolation import evaluating
from nlft.measure.likelihood import CHUNK, logits_at, predicting
from nlft.types import IGNORE

Reference = Callable[[], Any]
"""Loads the untouched base: for a model that is the base with other weights."""


def divergences(
    model: Any, reference: Reference | None, encoded: Sequence[Encoded], pad_id: int, batch_size: int
) -> list[float]:
    """KL(base || adapted) in nats, summed over the targets of each sequence; in the given order.

    Both models read every batch, so the logits of two batches are the most that is held at one time. The base is the
    adapted model with its adapter switched off, or what `reference` loads. Call under `evaluating(model)`.

    Raises:
        NlftError: a model without an adapter, and no `reference`.
    """
    results = [0.0] * len(encoded)
    device = next(model.parameters()).device
    with _base_of(model, reference) as ask_base:
        for chosen in by_length([len(one.ids) for one in encoded], batch_size):
            batch = collate([encoded[index] for index in chosen], pad_id).to(device)
            kept = predicting(batch)
            row, position = (batch.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
            at = torch.searchsorted(kept, position)
            before = ask_base(batch, kept)
            now = logits_at(model, batch, kept)
            for part in torch.arange(len(row), device=row.device).split(CHUNK):
                places = row[part], at[part]
                found = divergence(before[places], now[places])
                for place, nats in zip(row[part].tolist(), found.tolist(), strict=True):
                    results[chosen[place]] += nats
    return results


def divergence(base: Tensor, adapted: Tensor) -> Tensor:
    """KL(base || adapted) of logits [N, vocabulary], in nats: [N] float64; a token that the base rules out adds 0."""
    p, q = (logits.float().log_softmax(dim=-1) for logits in (base, adapted))
    weight = p.exp()
    return torch.where(weight > 0, weight * (p - q), 0.0).sum(dim=-1, dtype=torch.float64)


@contextmanager
def _base_of(model: Any, reference: Reference | None) -> Iterator[Callable[[Any, Tensor], Tensor]]:
    if reference is None:
        if not isinstance(model, PeftModel):
            raise NlftError(
                "The metric 'kl' compares with the base, and this model does not hold it.",
                "Score the run with `nlft eval`, which loads the base beside it.",
            )

        def switched_off(batch: Any, kept: Tensor) -> Tensor:
            with model.disable_adapter():
                return logits_at(model, batch, kept)

        yield switched_off
        return
    base = in_dtype(reference(), next(model.parameters()).dtype)
    with evaluating(base):
        yield lambda batch, kept: logits_at(base, batch, kept)
