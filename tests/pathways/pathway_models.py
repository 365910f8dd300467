"""Tiny random models of many families, rows to feed them, and a memory beside them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import build
from peft import get_peft_model

from nlft.calibrate import calibrate_base
from nlft.data.batch import Batch
from nlft.pathways.prototype import prototype_addresses
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories, set_half_keys, set_statistics
from nlft.pathways.sparse_memory.product_key import background_reads, product_key_half_keys, product_key_rows
from nlft.types import IGNORE


def batch(rows: int, tokens: int, seed: int, low: int = 3, high: int = 97) -> Batch:
    """Rows of random tokens between `low` and `high`, right padded, of three lengths."""
    ids = torch.randint(low, high, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, tokens - row % 3 :] = 0
    return Batch(ids * mask, mask, ids.masked_fill(mask == 0, IGNORE))


BACKGROUND = [batch(6, 12, seed, high=60) for seed in (1, 2)]
TASKS = {"first task": [batch(5, 10, 3, low=60, high=80)], "second.task": [batch(5, 11, 4, low=78)]}


def settings(addressing: str, **fields: Any) -> SparseMemoryPeftConfig:
    small = dict(slots=12, half_keys=6, heads=2, topk=3, layers_to_transform=[1, 2], task_type="CAUSAL_LM")
    return SparseMemoryPeftConfig(addressing=addressing, **{**small, **fields})  # pyright: ignore


def adapt(model: Any, addressing: str, adapter: str = "default", **fields: Any) -> Any:
    """A PEFT model with calibrated memories at two layers and no task."""
    adapted = get_peft_model(model, settings(addressing, **fields), adapter_name=adapter)
    calibrate(adapted)
    return adapted.eval()


def calibrate(adapted: Any) -> None:
    set_statistics(adapted, calibrate_base(adapted, list(memories(adapted)), BACKGROUND))
    if adapted.active_peft_config.addressing == "product_key":
        set_half_keys(adapted, product_key_half_keys(adapted, BACKGROUND, kmeans_steps=3))


def begin(adapted: Any, name: str, earlier: tuple[str, ...] = ()) -> None:
    """Opens a task of `TASKS`."""
    rows = [one for before in earlier for one in TASKS[before]]
    if adapted.active_peft_config.addressing == "product_key":
        background = background_reads(adapted, BACKGROUND).blocks
        addresses: Any = product_key_rows(adapted, TASKS[name], background, slots=12)
    else:
        addresses = prototype_addresses(
            adapted, memories(adapted), TASKS[name], BACKGROUND, rows, slots=12, kmeans_steps=3
        )
    begin_task(adapted, name, addresses)


def loss(model: Any, rows: Batch) -> torch.Tensor:
    """Mean cross entropy of every next token that is no padding."""
    return model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, labels=rows.labels).loss


def train(adapted: Any, name: str, steps: int = 2, lr: float = 0.5) -> None:
    """AdamW on whatever is trainable."""
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(adapted, TASKS[name][0]).backward()
        optimizer.step()


def trained(family: str, addressing: str, **options: Any) -> Any:
    """A model with one finished and trained task."""
    adapted = adapt(build(family), addressing, **options)
    begin(adapted, "first task")
    train(adapted, "first task")
    end_task(adapted)
    return adapted


@torch.no_grad()
def logits(model: Any, rows: Batch = TASKS["first task"][0]) -> torch.Tensor:
    return model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits


ADDRESSINGS = ("prototype", "product_key")
both = pytest.mark.parametrize("addressing", ADDRESSINGS)
SHAPES = ("llama", "gpt2", "gpt_neox", "gpt_oss")
"""Families that differ in what a pathway meets; all of them stand in the conformance matrix."""
every_shape = pytest.mark.parametrize("family", SHAPES)
