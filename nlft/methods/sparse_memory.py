"""Sparse memory: each task gets slots of its own, and only their values are trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from peft import TaskType, get_peft_model
from torch import nn

import nlft
from nlft.anatomy import find_blocks
from nlft.base import FrozenBase
from nlft.calibrate import calibrate_base
from nlft.config import SparseMemoryConfig
from nlft.data.template import Encoded
from nlft.methods.apart import TasksApart
from nlft.methods.calibration import (
    CALIBRATION_BATCH,
    Parts,
    gate_fields,
    keep_rows,
    place_gate,
    retention_of,
    split_context,
)
from nlft.methods.protocol import TaskContext
from nlft.pathways.gate import check_behind_gate
from nlft.pathways.prototype import held_out_batches, prototype_addresses, read_addresses
from nlft.pathways.provenance import note_background
from nlft.pathways.shift import set_shift
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import (
    begin_task,
    end_task,
    memories,
    memory_layers,
    set_half_keys,
    set_statistics,
)
from nlft.pathways.sparse_memory.product_key import (
    background_reads,
    check_health,
    keep_moved,
    open_tables,
    product_key_half_keys,
    product_key_rows,
)
from nlft.pathways.sparse_memory.tally import RowSGD, Tally
from nlft.retain import choose_shift


class Pending(NamedTuple):
    """What is needed to set a task's thresholds once it has been trained."""

    task: str
    held_out: list[Encoded]
    pad_id: int
    budget: float
    """Share of predictions that this task and all before it may lose together."""


class SparseMemory(TasksApart):
    """Slots are placed by calibration when a task begins, trained, and frozen when it ends."""

    def __init__(self, config: SparseMemoryConfig) -> None:
        super().__init__(config)
        self.config = config
        self.retention = retention_of(config)
        self.tables: dict[nn.Parameter, Tally] = {}
        """Whole tables, while every step chooses what it moves."""
        self.pending: Pending | None = None

    def layers(self, base: FrozenBase) -> list[int]:
        """Indices of the layers with a memory.

        Raises:
            NlftError: a chosen layer lies in front of the gate.
        """
        gate_layer = gate_fields(self.config.gate, base)["gate_layer"]
        first = 1 if gate_layer is None else gate_layer
        layers = self.config.layers
        check_behind_gate(layers, gate_layer)
        return list(range(first, len(find_blocks(base.model)))) if layers is None else layers

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts empty memories; the logits stay bit-equal to the base's."""
        settings = self.config.model_dump(include=set(SparseMemoryPeftConfig.__dataclass_fields__))
        peft_config = SparseMemoryPeftConfig(
            task_type=TaskType.CAUSAL_LM,
            layers_to_transform=self.layers(base),
            base_fingerprint=base.fingerprint,
            nlft_version=nlft.__version__,
            **gate_fields(self.config.gate, base),
            **settings,
        )
        return get_peft_model(base.model, peft_config).eval()

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Finds where the task's slots lie, from its states, the background's and earlier tasks'.

        Statistics of the base are taken once, before the first task, when the memories are still empty.
        """
        keep_rows(model, context)
        parts = split_context(context, self.retention)
        # What is held out vouches for the rest, so it is not replayed either.
        super().begin_task(model, replace(context, background=parts.background_rows))
        cores = memories(model)
        product_key = self.config.addressing == "product_key"
        peft_config: Any = model.peft_config["default"]  # pyright: ignore
        note_background(peft_config, context.background)
        if not peft_config.tasks:
            statistics = calibrate_base(model, list(memory_layers(model)), parts.background)
            if not self.config.whitening:
                statistics = {name: (mean, torch.eye(len(mean))) for name, (mean, _) in statistics.items()}
            set_statistics(model, statistics)
            if product_key:
                half_keys = product_key_half_keys(model, parts.background, self.config.kmeans_steps, context.seed)
                set_half_keys(model, half_keys)
        if self.config.gate is not None:
            place_gate(model, self.config.gate, parts, context)
        found: dict[str, Any] = {
            "slots": self.config.slots,
            "kmeans_steps": self.config.kmeans_steps,
            "seed": context.seed,
        }
        if product_key:
            self.begin_product_keys(model, context, parts)
            return
        if self.config.gate is not None:
            addresses = read_addresses(model, cores, parts.task, **found)
        else:
            held_out = None
            if self.retention is not None and self.retention.of != "predictions":
                rows, pad = parts.held_out_rows, context.pad_id
                held_out = held_out_batches(rows, parts.budget, parts.unit, pad, CALIBRATION_BATCH)
            found |= {"margin": self.config.margin, "held_out": held_out}
            addresses = prototype_addresses(model, cores, parts.task, parts.background, parts.earlier, **found)
        begin_task(model, context.name, addresses)
        if self.retention is not None and self.retention.of == "predictions":
            self.pending = Pending(context.name, parts.held_out_rows, context.pad_id, parts.budget_so_far)

    def begin_product_keys(self, model: nn.Module, context: TaskContext, parts: Parts) -> None:
        """Chooses rows of the table, or opens it whole if every step is to choose.

        Raises:
            NlftError: the keys are in no state to be trained on.
        """
        reads = background_reads(model, parts.background)
        if self.config.health == "check":
            check_health(reads, self.config.choice)
        self.seed = context.seed
        if self.config.mode == "step":
            self.tables = open_tables(model, context.name, reads.blocks)
            return
        choice = {"slots": self.config.slots, "choice": self.config.choice, "seed": self.seed}
        begin_task(model, context.name, product_key_rows(model, parts.task, reads.blocks, **choice))

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The recipe's, or SGD on the rows that each step chooses."""
        if self.tables:
            return RowSGD(self.tables, lr, self.config.choice, self.config.slots, self.seed)
        if self.config.addressing == "product_key" and self.config.mode == "step":
            # A finished task that is trained again has no table left to choose rows from; the rate is still SGD's.
            return torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr)
        return super().optimizer(model, lr)

    def end_task(self, model: nn.Module) -> None:
        """Freezes the task's values; of a whole table only the rows that were moved."""
        super().end_task(model)
        if self.tables:
            keep_moved(model)
            self.tables = {}
        end_task(model)
        if self.pending is not None:
            task, rows, pad_id, budget = self.pending
            set_shift(model, choose_shift(model, rows, pad_id, budget, [task]).shift, [task])
            self.pending = None
