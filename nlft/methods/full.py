"""Full finetuning: every weight of the base is trained. The baseline that low learning rates make strong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlft.base import FrozenBase
from nlft.errors import BaseModelError
from nlft.methods.replay import Trainable


class Full(Trainable):
    """Trains the base's own weights, kept in float32 so that small steps are not rounded away."""

    changes_base = True

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

    def save(self, model: Any, folder: Path) -> None:
        """Writes the whole model."""
        model.save_pretrained(folder)

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads the weights into the base's module."""
        model: Any = self.attach(base, 0)
        trained = type(model).from_pretrained(folder, dtype=torch.float32)
        model.load_state_dict(trained.state_dict())
        return model
