"""Logits of the target tokens of a batch and of no others, a block of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from nlft.data.batch import Batch
from nlft.frozen_prefix import recalling
from nlft.head import Head
from nlft.types import IGNORE

PART = {"cpu": 1 << 19}
"""Logits that are float32 at one time by kind of device: what is read several times stays in a processor's caches."""
MOST_PART = 1 << 26
"""The same where the device is not named."""


class TargetLogits:
    """What a pass says of the N target tokens of a batch, in the order of rows and then of columns.

    Where their logits are more than a block of the head, only the states in front of it are kept; each block is made
    when it is asked for, in the state of the model's adapters at that time. What is float32 is cut smaller (`parts`).

    Args:
        head: of the model that `call` runs; `Head(model)` looks through all modules, so one serves many batches.
        batch: rows whose targets are meant.
        call: runs the model over all columns but the last, which predicts nothing, and gives its output.
        lines: [B], the line of the pass in which each row stands; None where each has its own.
    """

    def __init__(self, head: Head, batch: Batch, call: Callable[[], Any], lines: Tensor | None = None) -> None:
        self.head = head
        self.row, column = (batch.labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        """[N] int64: row of the batch."""
        self.column = column + 1
        """[N] int64: place of the token in the batch."""
        self.wanted = batch.labels[self.row, self.column]
        """[N] int64: the token itself."""
        line = self.row if lines is None else lines[self.row]
        behind = column - (batch.labels.shape[1] - 1)  # from the end: virtual tokens of prompt tuning come first
        self.states: Tensor | None = None
        self.made: Tensor | None = None

        def chosen(found: Tensor) -> Tensor:
            return found[line.to(found.device), (behind + found.shape[1]).to(found.device)]

        def choose(states: Tensor) -> Tensor:
            self.states = chosen(states)
            small = len(self.row) <= head.tokens(states.device) or not head.can_repeat
            return (self.states if small else self.states[:0])[None]

        with head.seeing(choose):
            logits = call().logits
        if self.states is None:
            self.made = chosen(logits)
        elif logits.shape[1] == len(self.row):
            self.made = logits[0]

    def blocks(self) -> Iterator[slice]:
        """Blocks of the N tokens, as many as the head is run on at once; one where all logits are there."""
        size = self.head.tokens(self.row.device) if self.made is None else max(1, len(self.row))
        for start in range(0, len(self.row), size):
            yield slice(start, start + size)

    def logits(self, block: slice) -> Tensor:
        """Logits [n, vocabulary] of a block."""
        if self.made is not None:
            return self.made[block]
        assert self.states is not None
        return self.head.logits(self.states[block])


def parts(logits: Tensor) -> tuple[Tensor, ...]:
    """Logits [N, vocabulary] cut into as many [n, vocabulary] as are float32 at one time."""
    return logits.split(max(1, PART.get(logits.device.type, MOST_PART) // logits.shape[-1]))


def read_targets(model: Any, head: Head, batch: Batch) -> TargetLogits:
    """One pass over a batch; it begins where the frozen prefix of its rows ends."""

    def call() -> Any:
        with recalling(model, batch, -1):
            return model(**batch.inputs(-1), use_cache=False)

    return TargetLogits(head, batch, call)
