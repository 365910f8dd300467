"""Replay as a regulariser: rows of the past are trained on beside the new ones; and what all methods share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from nlft.config import MethodFields, ReplayConfig
from nlft.data.batch import Sampler, collate
from nlft.data.template import Encoded
from nlft.methods.protocol import Ask, TaskContext
from nlft.ops.loss import target_loss
from nlft.optim.build import build_optimizer
from nlft.pathways.provenance import note_task
from nlft.pathways.task import TaskPeftConfig
from nlft.types import Condition, Evaluation, Item


class Replay:
    """Adds the mean loss of a batch of old rows to every optimiser step; does nothing without a config."""

    def __init__(self, config: ReplayConfig | None) -> None:
        self.config = config
        self.batches: Iterator[list[Encoded]] | None = None
        self.pad_id = 0

    def begin_task(self, context: TaskContext) -> None:
        """Chooses the old rows; with `source: tasks` there are none in the first task."""
        self.batches = None
        if self.config is None:
            return
        rows = context.background if self.config.source == "background" else context.earlier
        if rows:
            size = max(1, round(self.config.ratio * context.batch_size))
            self.batches = iter(Sampler(rows, size, context.seed))
            self.pad_id = context.pad_id

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """Weighted mean loss of the next old rows, nats per target token."""
        if self.config is None or self.batches is None:
            return None
        device = next(model.parameters()).device
        batch = collate(next(self.batches), self.pad_id).to(device)
        nats = target_loss(model, batch.input_ids, batch.attention_mask, batch.labels)
        return self.config.weight * nats / batch.n_targets


class Trainable:
    """What every method shares: an optimiser over all that is trainable, and replay as its penalty."""

    changes_base = False
    told_task = False

    def __init__(self, config: MethodFields) -> None:
        self.weight_decay = config.weight_decay
        self.optimizer_config = config.optimizer
        self.replay = Replay(config.replay)

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Starts replay, and notes where the task comes from if the adapter keeps its tasks apart."""
        self.replay.begin_task(context)
        config = getattr(model, "peft_config", {}).get("default")
        if isinstance(config, TaskPeftConfig):
            note_task(config, context.name, context.train, replay=self.replay.batches is not None)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """What the recipe names; AdamW (Loshchilov & Hutter 2019) in its fused form when it names nothing."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return build_optimizer(self.optimizer_config, parameters, lr, self.weight_decay, model)

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """The replay loss, if there is replay."""
        return self.replay.penalty(model)

    def end_task(self, model: nn.Module) -> None:
        """Nothing to close."""

    def score(self, model: Any, evaluation: Evaluation, condition: Condition, ask: Ask) -> list[Item]:
        """The model as it stands (`on`), or with its adapter switched off (`off`)."""
        if condition == "off" and not self.changes_base:
            with model.disable_adapter():
                return ask(model, evaluation)
        return ask(model, evaluation) if condition == "on" else []
