"""Models of which some layers are frozen, rows, and what is computed with and without a frozen prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nlft.anatomy import decoder_layers
from nlft.config import PrefixConfig
from nlft.data.batch import Batch
from nlft.data.template import Encoded
from nlft.frozen_prefix import FrozenPrefix, install_prefix, keep_prefix
from nlft.loss import target_loss
from nlft.prefix_store import PrefixStore
from nlft.types import IGNORE

PAD = 0


def row(seed: int, tokens: int) -> Encoded:
    ids = torch.randint(3, 97, (tokens,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Encoded(ids, [IGNORE, *ids[1:]], 0)


ROWS = [row(seed, tokens) for seed, tokens in enumerate((19, 11, 11, 10, 5, 2))]
"""Longest first, so that a batch of all is the pass that they are computed in."""


def train_from(model: Any, layer: int) -> Any:
    """Has everything from a layer on take gradients."""
    model.requires_grad_(False)
    for one in decoder_layers(model)[1][layer:]:
        one.requires_grad_(True)
    return model


def keeping(model: Any, rows: Sequence[Encoded] = ROWS, dtype: Any = "base", units: Any = ()) -> FrozenPrefix:
    """Gives a model a prefix that holds rows."""
    config = PrefixConfig(dtype=dtype)
    prefix = install_prefix(model, "base", config, PrefixStore(None, config), units)
    assert prefix is not None
    keep_prefix(model, rows, PAD)
    return prefix


def gradients(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = target_loss(model, batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def whole_and_recalled(model: Any, batch: Batch, **options: Any) -> tuple[dict[str, torch.Tensor], ...]:
    """Loss and gradients of a whole pass, and of one that begins behind the prefix."""
    whole = gradients(model, batch)
    prefix = keeping(model, **options)
    assert prefix.depth == 2 and prefix.states(batch) is not None, prefix.refused
    return whole, gradients(model, batch)


def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
