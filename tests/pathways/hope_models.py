"""Hope on tiny random models of several families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pathway_models import TASKS, build, loss
from peft import get_peft_model

from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.hope.model import hope_cores
from nlft.pathways.state import StateKeeper, keepers_of

KINDS: dict[str, dict[str, Any]] = {
    "dot": {},
    "l2": {"objective": "l2"},
    "boundary": {"read": "boundary"},
    "mlp": {"memory": "mlp", "read": "boundary", "objective": "l2"},
    "self-modifying": {"self_modifying": True},
    "self-modifying l2": {"self_modifying": True, "read": "boundary", "objective": "l2"},
    "levels": {"periods": [1, 4], "r": 5},
}
every_kind = pytest.mark.parametrize("kind", KINDS)
WIDTH = 12
"""Tokens of a row."""


def hope_config(**fields: Any) -> HopePeftConfig:
    small: dict[str, Any] = dict(heads=2, head_width=8, chunk=4, layers_to_transform=[1, 3], task_type="CAUSAL_LM")
    return HopePeftConfig(**{**small, **fields})


def hope(base: Any, adapter: str = "default", **fields: Any) -> Any:
    """Hope at two layers of a base, as it is inserted."""
    torch.manual_seed(1)
    return get_peft_model(base, hope_config(**fields), adapter_name=adapter).eval()


def shaken(adapted: Any, size: float = 0.3, seed: int = 2) -> Any:
    """The same model with all of its memory's parameters moved at random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return adapted


def lively(family: str = "llama", **fields: Any) -> Any:
    """A model whose memory says a lot."""
    return shaken(hope(build(family), **fields))


def train_hope(adapted: Any, steps: int = 2, lr: float = 0.05) -> None:
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(adapted, TASKS["first task"][0]).backward()
        optimizer.step()


def keeper_of(adapted: Any, adapter: str = "default") -> StateKeeper:
    return keepers_of(adapted)[adapter]  # pyright: ignore


def core_of(adapted: Any) -> Any:
    return list(hope_cores(adapted).values())[-1]


def rows_of(lengths: list[int], side: str = "left", seed: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [B, WIDTH] of rows of these lengths, padded on one side."""
    ids = torch.randint(3, 97, (len(lengths), WIDTH), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row, length in enumerate(lengths):
        if side == "left":
            mask[row, : WIDTH - length] = 0
        else:
            mask[row, length:] = 0
    return ids * mask, mask


def places_of(mask: torch.Tensor) -> torch.Tensor:
    """Position of every token in its row."""
    return (mask.cumsum(dim=1) - 1).clamp_min(0)
