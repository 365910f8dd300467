"""What methods share that train nothing: the base as it is, and something kept beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlft.base import FrozenBase
from nlft.methods.protocol import Ask, TaskContext
from nlft.types import Condition, Evaluation, Item


class Untrained:
    """The base, frozen; `begin_task`, `score` and what is kept are left to the method."""

    changes_base = False
    told_task = False
    base: FrozenBase

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """The base itself."""
        self.base = base
        return base.model

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Takes in the task."""
        raise NotImplementedError

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """There is nothing to move, so a run of these methods has no steps."""
        raise NotImplementedError

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """None."""
        return None

    def end_task(self, model: nn.Module) -> None:
        """The task was taken in when it began."""

    def score(self, model: Any, evaluation: Evaluation, condition: Condition, ask: Ask) -> list[Item]:
        """As the method answers."""
        raise NotImplementedError

    def held_bytes(self) -> dict[str, int]:
        """Nothing is replayed, and nothing is held by a penalty."""
        return {"replay_bytes": 0, "regulariser_bytes": 0}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes what is kept."""
        raise NotImplementedError

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads it back."""
        raise NotImplementedError
