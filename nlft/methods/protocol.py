"""What a method is: it varies the model, the parameters and the optimiser, never the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from nlft.base import FrozenBase
from nlft.data.template import Encoded
from nlft.types import Condition, Evaluation, Item, Row

Ask = Callable[[nn.Module, Evaluation], list[Item]]
"""Scores a model, as it stands, on the rows of one column."""


@dataclass(frozen=True)
class TaskContext:
    """What a method may look at when a task begins."""

    name: str
    train: Sequence[Encoded]
    """Rows of this task."""
    earlier: Sequence[Encoded]
    """Train rows of finished tasks, for calibration and replay."""
    background: Sequence[Encoded]
    """General text, for calibration and replay."""
    number: int
    """Which task of the run this is, from 1."""
    n_tasks: int
    """Tasks of the whole run, which share a retention budget."""
    batch_size: int
    pad_id: int
    seed: int
    """Seed of everything that the method draws for this task."""
    rows: Sequence[Row] = ()
    """Rows of this task as text."""
    max_length: int | None = None
    """Longest row in tokens; the base's context when empty."""
    begin_id: int | None = None
    """The tokenizer's begin-of-text token, if it has one."""


class Method(Protocol):
    """A way to learn tasks one after another."""

    changes_base: bool
    """True if the method trains the base's own weights."""
    told_task: bool
    """True if the method is told which task a row belongs to when it is scored: a bound, not a rival."""

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Makes the model that is trained out of the base; the function that it computes is still the base's."""
        ...

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Prepares the model for a task; afterwards what is trained is what has `requires_grad`."""
        ...

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The optimiser of one stage, over what has `requires_grad`; a group's `lr_scale` multiplies its rate."""
        ...

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """A term added to the loss of an optimiser step, in nats per token, or None.

        Of several processes each gives its own, and their mean is the term.
        """
        ...

    def end_task(self, model: nn.Module) -> None:
        """Closes the task."""
        ...

    def score(self, model: nn.Module, evaluation: Evaluation, condition: Condition, ask: Ask) -> list[Item]:
        """Scores one column under a condition (`nlft.measure.condition`); nothing where that means nothing here."""
        ...

    def held_bytes(self) -> dict[str, int]:
        """What is held beside the model: `replay_bytes` of rows, `regulariser_bytes` of penalties."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes what was learned (safetensors), and what is held beside it."""
        ...

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads what `save` wrote onto a fresh base."""
        ...
