"""How far the adapted model has moved away from the base: KL(base || adapted) at every target token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from nlft.base import in_dtype
from nlft.data.batch import by_length, collate, tokens_a_pass
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.frozen_prefix import keep_prefix
from nlft.head import Head
from nlft.measure.isolation import evaluating
from nlft.measure.targets import parts, read_targets

Reference = Callable[[], Any]
"""Loads the untouched base: for a model that is the base with other weights."""


def divergences(
    model: Any, reference: Reference | None, encoded: Sequence[Encoded], pad_id: int, batch_size: int
) -> list[float]:
    """KL(base || adapted) in nats, summed over the targets of each sequence; in the given order.

    Both models read every batch; their logits are made a block at a time. The base is the adapted model with its
    adapter switched off, or what `reference` loads. Call under `evaluating(model)`.

    Raises:
        NlftError: a model without an adapter, and no `reference`.
    """
    results = torch.zeros(len(encoded), dtype=torch.float64)
    device = next(model.parameters()).device
    keep_prefix(model, encoded, pad_id)
    with _base_of(model, reference) as (base, as_base):
        heads = Head(base), Head(model)
        for chosen in by_length([len(one.ids) for one in encoded], batch_size, tokens_a_pass(device)):
            batch = collate([encoded[index] for index in chosen], pad_id).to(device)
            with as_base():
                before = read_targets(base, heads[0], batch)
            now = read_targets(model, heads[1], batch)
            rows = torch.tensor(chosen)[now.row.cpu()]
            for block in now.blocks():
                with as_base():
                    base_logits = before.logits(block)
                pairs = zip(parts(base_logits), parts(now.logits(block)), strict=True)
                nats = torch.cat([divergence(*pair) for pair in pairs])
                results.index_add_(0, rows[block], nats.cpu())
    return results.tolist()


def divergence(base: Tensor, adapted: Tensor) -> Tensor:
    """KL(base || adapted) of logits [N, vocabulary], in nats: [N] float64; a token that the base rules out adds 0."""
    p, q = (logits.float().log_softmax(dim=-1) for logits in (base, adapted))
    weight = p.exp()
    return torch.where(weight > 0, weight * (p - q), 0.0).sum(dim=-1, dtype=torch.float64)


@contextmanager
def _base_of(
    model: Any, reference: Reference | None
) -> Iterator[tuple[Any, Callable[[], AbstractContextManager[Any]]]]:
    """The model that is the base, and under what it is."""
    if reference is None:
        if not isinstance(model, PeftModel):
            raise NlftError(
                "The metric 'kl' compares with the base, and this model does not hold it.",
                "Score the run with `nlft eval`, which loads the base beside it.",
            )
        yield model, model.disable_adapter
        return
    base = in_dtype(reference(), next(model.parameters()).dtype)
    with evaluating(base):
        yield base, nullcontext
