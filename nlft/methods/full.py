"""Full finetuning: every weight of the base is trained. The baseline that low learning rates make strong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlft.base import FrozenBase
from nlft.config import FullConfig
from nlft.errors import BaseModelError
from nlft.methods.protocol import TaskContext, adamw
from nlft.methods.replay import Replay


class Full:
    """Trains the base's own weights, kept in float32 so that small steps are not rounded away."""

    changes_base = True

    def __init__(self, config: FullConfig) -> None:
        self.config = config
        self.replay = Replay(config.replay)

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Unfreezes the base.

        Raises:
            BaseModelError: the base is quantised.
        """
        if getattr(base.model, "is_quantized", False):
            raise BaseModelError(
                "Full finetuning needs unquantised weights, but base.quantization is set.",
                "Set base.quantization=none, or choose `lora` or `sparse_memory`.",
            )
        return base.model.float().requires_grad_(True)

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Starts replay."""
        self.replay.begin_task(context)

    def optimizer(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """AdamW over every weight."""
        return adamw(parameters, lr, self.config.weight_decay)

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """The replay loss, if there is replay."""
        return self.replay.penalty(model)

    def end_task(self, model: nn.Module) -> None:
        """Nothing to close."""

    def save(self, model: Any, folder: Path) -> None:
        """Writes the whole model."""
        model.save_pretrained(folder)

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads the weights into the base's module."""
        model: Any = self.attach(base, 0)
        trained = type(model).from_pretrained(folder, dtype=torch.float32)
        model.load_state_dict(trained.state_dict())
        return model
