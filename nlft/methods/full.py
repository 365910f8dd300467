"""Full finetuning: every weight of the base is trained. The baseline that low learning rates make strong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from nlft.base import FrozenBase
from nlft.methods.trainable import Trainable
from nlft.methods.weights import check_whole, load_weights, save_weights


class Full(Trainable):
    """Trains the base's own weights, kept in float32 so that small steps are not rounded away."""

    changes_base = True

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Unfreezes the base.

        Raises:
            BaseModelError: the base is quantised.
        """
        check_whole(base, "Full finetuning")
        return base.model.float().requires_grad_(True)

    def save(self, model: Any, folder: Path) -> None:
        """Writes the whole model, and what the penalties remember."""
        save_weights(model, folder)
        super().save(model, folder)

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads the weights into the base's module."""
        self.remember(folder)
        model = self.attach(base, 0)
        load_weights(base, folder)
        return model
