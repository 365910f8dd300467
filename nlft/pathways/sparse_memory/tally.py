"""Training as in the paper: slots are chosen anew at every optimiser step, and only they move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nlft.ops.choice import Background, Choice, choose


class Tally:
    """How often one table has been read since the last optimiser step, and which slots have ever been moved.

    A token counts when a gradient comes back to what it read: padding, and tokens behind which nothing is learned,
    do not count. Micro-batches add up, and so do replayed rows.
    """

    def __init__(self, background: Background) -> None:
        self.background = background
        self.counts = torch.zeros_like(background.counts)
        self.moved = torch.zeros_like(background.counts, dtype=torch.bool)

    @torch.no_grad()
    def count(self, slots: torch.Tensor, gradient: torch.Tensor) -> None:
        """Adds what the tokens of one backward pass have read.

        Args:
            slots: [N, R] int64.
            gradient: [N, D], of what each token got.
        """
        felt = (gradient != 0).any(dim=1)
        self.counts += torch.bincount(slots[felt].flatten(), minlength=len(self.counts))

    def take(self, choice: Choice, slots: int, generator: torch.Generator) -> torch.Tensor:
        """The rows to move now, [M] int64; the counts begin anew."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.counts)
        rows = choose(choice, self.counts, self.background, slots, generator)
        self.counts.zero_()
        self.moved[rows] = True
        return rows


class RowSGD(torch.optim.Optimizer):
    """SGD without momentum or weight decay on the rows that each step chooses (Lin et al. 2025, section 3).

    Any other optimiser would move rows that were chosen before: momentum and weight decay go on without a gradient.
    The loop clips the gradient of the whole table, before rows are chosen, so clipping counts rows that do not move.

    Args:
        tables: values [n_slots, D] and the tally of each table.
        lr: learning rate.
        choice: the rule by which rows are chosen.
        slots: rows a table and step.
        seed: of the choice `random`.
    """

    def __init__(
        self, tables: Mapping[nn.Parameter, Tally], lr: float, choice: Choice, slots: int, seed: int = 0
    ) -> None:
        super().__init__(list(tables), {"lr": lr})
        self.tables = dict(tables)
        self.choice: Choice = choice
        self.slots = slots
        self.generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Moves the chosen rows against their gradient."""
        [group] = self.param_groups
        for values, tally in self.tables.items():
            rows = tally.take(self.choice, self.slots, self.generator)
            if values.grad is not None:
                values.index_add_(0, rows, values.grad[rows], alpha=-group["lr"])
