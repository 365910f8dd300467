"""The kinds of memory that learn from a sequence: matrices, MLPs, and matrices that make their own keys and values."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from nlft.ops.chunk_grid import unit
from nlft.ops.delta_memory import new_memory, run_memory
from nlft.ops.mlp_memory import new_mlp_memory, run_mlp_memory
from nlft.ops.self_modifying import join_memories, run_self_modifying
from nlft.pathways.cms.levels import drawn
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.state import State

FIRST_DECAY = 0.999
"""What a token leaves of the memory before anything is trained."""
DECAY_OFFSET = math.log(math.expm1(-math.log(FIRST_DECAY)))
"""Where `exp(-softplus(x))` is that."""
NEVER = -1e4
"""An offset at which a rate is exactly 0 and a decay exactly 1."""
Run = tuple[torch.Tensor, State, torch.Tensor]
"""Reads [B, H, T, m], the state behind them, and the surprise [B, H, T]."""


class SequenceMemory(nn.Module):
    """H memories of width m. A subclass says how many projections of the input it needs, [B, H, T, m] each."""

    projections = 3
    bounded_values = True
    """Values of a length near 1, since larger ones would make the memory diverge."""

    def __init__(self, width: int, config: HopePeftConfig) -> None:
        super().__init__()
        self.config, self.size = config, (config.heads, config.head_width, config.head_width)
        self.build(width)

    @property
    def rate_limit(self) -> float:
        """The largest rate. A chunk's gradients are taken at its start and added up; where they meet no delta factor
        that holds the sum in bounds, they are averaged instead, or the memory would overshoot and diverge."""
        config = self.config
        unbounded = config.memory == "mlp" or (config.self_modifying and config.objective == "l2")
        return config.rate_max / config.chunk if unbounded else config.rate_max

    def build(self, width: int) -> None:
        """Makes the parameters."""
        raise NotImplementedError

    def fresh(self, rows: int) -> State:
        """The state of sequences that have read nothing."""
        raise NotImplementedError

    def run(self, state: State, parts: list[torch.Tensor], x: torch.Tensor, learns: bool, **options: Any) -> Run:
        """Reads and writes T tokens.

        Args:
            parts: the projections; the first are the queries.
            x: [B, T, D], the block's input.
            learns: False writes and forgets nothing.
            options: of the operation.
        """
        raise NotImplementedError


class LinearMemory(SequenceMemory):
    """A matrix for each head: `M(q) = M q`."""

    bounded_values = False

    def build(self, width: int) -> None:
        self.rate = nn.Linear(width, self.config.heads)
        self.decay = nn.Linear(width, self.config.heads)
        with torch.no_grad():
            self.rate.bias.zero_()
            self.decay.bias.fill_(DECAY_OFFSET)
        self.build_initial()

    def build_initial(self) -> None:
        """Makes the parameters of the first state."""
        if self.config.initial == "learned":
            self.initial = nn.Parameter(torch.zeros(self.size))

    def fresh(self, rows: int) -> State:
        initial = getattr(self, "initial", None)
        return new_memory(self.rate.weight.new_zeros(self.size) if initial is None else initial, rows)

    def writes(self, x: torch.Tensor, learns: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Rates and log decays of the tokens x [B, T, D], [B, H, T] each."""
        rates = self.rate_limit * torch.sigmoid(self.rate(x)).mT
        nothing = torch.zeros_like(rates)
        return (rates, -functional.softplus(self.decay(x)).mT) if learns else (nothing, nothing)

    def operate(self, *tokens: Any, **options: Any) -> Run:
        """The operation of this kind of memory."""
        return run_memory(*tokens, reads=self.config.read, **options)

    def run(self, state: State, parts: list[torch.Tensor], x: torch.Tensor, learns: bool, **options: Any) -> Run:
        queries, keys, values = parts
        return self.operate(
            state,
            unit(queries),
            unit(keys),
            values,
            *self.writes(x, learns),
            self.config.chunk,
            objective=self.config.objective,
            bptt_chunks=self.config.bptt_chunks,
            **options,
        )


class MlpMemory(LinearMemory):
    """An MLP with a hidden layer for each head: `M(q) = q + W1 silu(W2 q)`, read at boundaries; W1 is zero at first."""

    bounded_values = True

    def build_initial(self) -> None:
        heads, width, _ = self.size
        self.initial_w1 = nn.Parameter(torch.zeros(self.size))
        self.initial_w2 = nn.Parameter(drawn(heads * width, width, width, None).view(self.size))

    def fresh(self, rows: int) -> State:
        return new_mlp_memory((self.initial_w1, self.initial_w2), rows)

    def operate(self, *tokens: Any, **options: Any) -> Run:
        return run_mlp_memory(*tokens, **options)


class SelfModifyingMemory(SequenceMemory):
    """Matrices for keys, values, rates and decays beside the one that is read; all of them learn from the sequence."""

    projections = 2

    def build(self, width: int) -> None:
        heads, size, _ = self.size
        first = drawn(heads * 3 * size, size, size, None).view(heads, 3, size, size)
        none = torch.zeros(heads, size)
        self.initial = nn.Parameter(join_memories(first[:, 0], first[:, 1], first[:, 2], none, none))
        self.offsets = nn.Parameter(torch.tensor([0.0, DECAY_OFFSET]).repeat(heads, 1))

    def fresh(self, rows: int) -> State:
        return new_memory(self.initial, rows)

    def run(self, state: State, parts: list[torch.Tensor], x: torch.Tensor, learns: bool, **options: Any) -> Run:
        queries, features = parts
        return run_self_modifying(
            state,
            unit(queries),
            features,
            self.offsets if learns else torch.full_like(self.offsets, NEVER),
            self.config.chunk,
            rate_limit=self.rate_limit,
            objective=self.config.objective,
            reads=self.config.read,
            bptt_chunks=self.config.bptt_chunks,
            **options,
        )


def make_memory(width: int, config: HopePeftConfig) -> SequenceMemory:
    """The kind of memory that a config names."""
    if config.self_modifying:
        return SelfModifyingMemory(width, config)
    return (MlpMemory if config.memory == "mlp" else LinearMemory)(width, config)
