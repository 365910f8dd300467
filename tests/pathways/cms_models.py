"""Levels without a gate on tiny models: every variant of new memories, and changes of pretrained maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pathway_models import SHAPES, TASKS, build, loss
from peft import get_peft_model

from nlft.data.batch import Batch
from nlft.pathways.cms.config import CmsPeftConfig

FIELDS: dict[str, dict[str, Any]] = {
    "headwise": {},
    "sequential": {"variant": "sequential"},
    "nested": {"variant": "nested"},
    "pretrained": {"init": "pretrained"},
}
EXPERTS = ("gpt_oss",)
"""Families whose blocks have no last linear map."""
every_kind = pytest.mark.parametrize("kind", FIELDS)
every_pair = pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family in SHAPES for kind in FIELDS if kind != "pretrained" or family not in EXPERTS],
)
ROWS = TASKS["first task"][0]


def cms_config(kind: str, **fields: Any) -> CmsPeftConfig:
    return CmsPeftConfig(task_type="CAUSAL_LM", **{"periods": [1, 2, 4], "r": 3, **FIELDS[kind], **fields})


def cms(base: Any, kind: str, adapter: str = "default", seed: int = 1, **fields: Any) -> Any:
    """A PEFT model with untrained levels, the same at every call."""
    torch.manual_seed(seed)
    return get_peft_model(base, cms_config(kind, **fields), adapter_name=adapter).eval()


def train(adapted: Any, steps: int = 2, rows: Batch = ROWS, lr: float = 0.05) -> None:
    """AdamW on all levels alike; moves the logits and keeps them finite."""
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(adapted, rows).backward()
        optimizer.step()


def trained_cms(kind: str, family: str = "llama", **fields: Any) -> Any:
    adapted = cms(build(family), kind, **fields)
    train(adapted)
    return adapted
