"""Adapters behind a gate on tiny models of many families: gated LoRA, levels, and memories of both addressings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pathway_models import BACKGROUND, TASKS, batch, build, calibrate, settings, train
from peft import PeftConfig, get_peft_model

from nlft.data.batch import Batch
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.cms.model import begin_task as begin_levels
from nlft.pathways.cms.model import end_task as end_levels
from nlft.pathways.evidence import begin_gate, calibrate_gate
from nlft.pathways.gate import PrototypeGate, gate_module, gates_of
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.gated_lora.model import begin_task as begin_maps
from nlft.pathways.gated_lora.model import end_task as end_maps
from nlft.pathways.prototype import HeldOut, read_addresses
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories
from nlft.pathways.sparse_memory.product_key import background_reads, product_key_rows

KINDS = ("gated_lora", "prototype", "product_key", "cms")
every_kind = pytest.mark.parametrize("kind", KINDS)
FIRST, SECOND = TASKS
GATE_LAYER = 1
WITHOUT_KEYS = (GatedLoraPeftConfig, CmsPeftConfig)
TRAINED = {
    "gated_lora": ("A", "B"),
    "prototype": ("values",),
    "product_key": ("values",),
    "cms": ("A0", "B0", "A1", "B1"),
}
"""Names of what a task trains."""


def mixed(rows: int = 6, before: int = 6, after: int = 6, seed: int = 7) -> Batch:
    """Rows that begin like the background and go on like the first task."""
    parts = batch(rows, before, seed, high=60), batch(rows, after, seed + 1, low=60, high=80)
    ids = torch.cat([torch.where(part.input_ids == 0, 5, part.input_ids) for part in parts], dim=1)
    return Batch(ids, torch.ones_like(ids), ids)


def gated_config(kind: str, **fields: Any) -> PeftConfig:
    options = {"gate_layer": GATE_LAYER, **fields}
    if kind == "gated_lora":
        return GatedLoraPeftConfig(task_type="CAUSAL_LM", **{"r": 3, **options})
    if kind == "cms":
        return CmsPeftConfig(task_type="CAUSAL_LM", **{"r": 3, "periods": [1, 2], **options})
    return settings(kind, **options)


def gated(base: Any, kind: str, adapter: str = "default", **fields: Any) -> Any:
    """A PEFT model with a calibrated gate and no task."""
    adapted = get_peft_model(base, gated_config(kind, **fields), adapter_name=adapter)
    calibrate_gated(adapted, adapter)
    return adapted.eval()


def calibrate_gated(adapted: Any, adapter: str) -> None:
    """Sets what the tasks of the active adapter will share."""
    if not isinstance(adapted.peft_config[adapter], WITHOUT_KEYS):
        calibrate(adapted)
    module = gate_module(adapted, adapter)
    calibrate_gate(adapted, module, adapter, BACKGROUND, slots=16)


def silent_rows(rows: list[Batch]) -> HeldOut:
    """Rows none of which may open the gate: with n of them a budget of 1 / (n + 1) allows no failure."""
    weights = [torch.ones(len(one.input_ids), dtype=torch.float64) for one in rows]
    count = sum(map(len, weights))
    return HeldOut(list(zip(rows, weights, strict=True)), count, 1 / (count + 1), "rows")


def begin_gated(adapted: Any, name: str, earlier: tuple[str, ...] = (), adapter: str = "default") -> None:
    """Opens a task of `TASKS` behind the gate."""
    config = adapted.peft_config[adapter]
    rows = [one for before in earlier for one in TASKS[before]]
    begin_gate(
        adapted,
        gate_module(adapted, adapter),
        adapter,
        name,
        TASKS[name],
        BACKGROUND,
        silent_rows(rows) if rows else None,
        silent_rows(BACKGROUND),
        slots=16,
    )
    if isinstance(config, GatedLoraPeftConfig):
        begin_maps(adapted, name, seed=0, adapter=adapter)
    elif isinstance(config, CmsPeftConfig):
        begin_levels(adapted, name, seed=0, adapter=adapter)
    elif config.addressing == "product_key":
        background = background_reads(adapted, BACKGROUND).blocks
        begin_task(adapted, name, product_key_rows(adapted, TASKS[name], background, slots=12), adapter)
    else:
        begin_task(adapted, name, read_addresses(adapted, memories(adapted), TASKS[name], 12, reads=4), adapter)


def end_gated(adapted: Any, adapter: str = "default") -> None:
    """Closes the open task."""
    ends: dict[Any, Any] = {GatedLoraPeftConfig: end_maps, CmsPeftConfig: end_levels}
    ends.get(type(adapted.peft_config[adapter]), end_task)(adapted, adapter)


def train_gated(adapted: Any, name: str, steps: int = 2) -> None:
    """Trains with a step that is large enough to see and keeps the logits finite."""
    low = isinstance(adapted.active_peft_config, WITHOUT_KEYS)
    train(adapted, name, steps, lr=0.05 if low else 0.5)
    adapted.eval()


def trained_gated(kind: str, family: str = "llama", **fields: Any) -> Any:
    """A model with one finished and trained task behind a gate."""
    adapted = gated(build(family), kind, **fields)
    begin_gated(adapted, FIRST)
    train_gated(adapted, FIRST)
    end_gated(adapted)
    return adapted


def gate_of(adapted: Any, adapter: str = "default") -> PrototypeGate:
    gate = gates_of(adapted)[adapter]
    assert isinstance(gate, PrototypeGate)
    return gate


def open_of(adapted: Any) -> torch.Tensor:
    """How far the gate was open in the last forward pass, [B, T, tasks]."""
    found = gate_of(adapted).open
    assert found is not None
    return found
