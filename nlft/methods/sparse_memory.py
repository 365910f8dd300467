"""Sparse memory: each task gets slots of its own, and only their values are trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, TaskType, get_peft_model
from torch import nn

import nlft
from nlft.base import FrozenBase, find_blocks
from nlft.calibrate import calibrate_base
from nlft.config import SparseMemoryConfig
from nlft.data.batch import in_batches
from nlft.data.template import Encoded
from nlft.methods.protocol import TaskContext
from nlft.methods.replay import Trainable
from nlft.pathways.sparse_memory.addressing import (
    product_key_half_keys,
    product_key_rows,
    prototype_addresses,
)
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import (
    begin_task,
    end_task,
    memory_layers,
    set_half_keys,
    set_statistics,
)

CALIBRATION_BATCH = 64
"""Rows of a calibration forward pass."""


class SparseMemory(Trainable):
    """Slots are placed by calibration when a task begins, trained, and frozen when it ends."""

    changes_base = False

    def __init__(self, config: SparseMemoryConfig) -> None:
        super().__init__(config)
        self.config = config

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts empty memories; the logits stay bit-equal to the base's."""
        settings = self.config.model_dump(include=set(SparseMemoryPeftConfig.__dataclass_fields__))
        layers = self.config.layers
        peft_config = SparseMemoryPeftConfig(
            task_type=TaskType.CAUSAL_LM,
            layers_to_transform=list(range(1, len(find_blocks(base.model)))) if layers is None else layers,
            base_fingerprint=base.fingerprint,
            nlft_version=nlft.__version__,
            **settings,
        )
        return get_peft_model(base.model, peft_config).eval()

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Finds where the task's slots lie, from its states, the background's and earlier tasks'.

        Statistics of the base are taken once, before the first task, when the memories are still empty.
        """
        super().begin_task(model, context)
        task, background = batches(context.train, context.pad_id), batches(context.background, context.pad_id)
        product_key = self.config.addressing == "product_key"
        peft_config: Any = model.peft_config["default"]  # pyright: ignore
        if not peft_config.tasks:
            set_statistics(model, calibrate_base(model, list(memory_layers(model)), background))
            if product_key:
                set_half_keys(model, product_key_half_keys(model, background, self.config.kmeans_steps, context.seed))
        if product_key:
            addresses: Any = product_key_rows(model, task, background, self.config.slots)
        else:
            addresses = prototype_addresses(
                model,
                task,
                background,
                batches(context.earlier, context.pad_id),
                slots=self.config.slots,
                margin=self.config.margin,
                kmeans_steps=self.config.kmeans_steps,
                seed=context.seed,
            )
        begin_task(model, context.name, addresses)

    def end_task(self, model: nn.Module) -> None:
        """Freezes the task's values."""
        end_task(model)

    def save(self, model: Any, folder: Path) -> None:
        """Writes a PEFT directory: slots that were learned and what addresses them."""
        model.save_pretrained(folder)

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads a PEFT directory, ready for the next task."""
        return PeftModel.from_pretrained(base.model, str(folder), is_trainable=True).eval()


def batches(rows: Sequence[Encoded], pad_id: int) -> list:
    """Calibration batches."""
    return in_batches(rows, CALIBRATION_BATCH, pad_id)
