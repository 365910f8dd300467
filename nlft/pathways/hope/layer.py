"""The memory of one adapter beside one MLP block."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from nlft.errors import NlftError
from nlft.pathways.block import PathwayLayer
from nlft.pathways.cms.levels import Levels
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.hope.memory import make_memory
from nlft.pathways.state import State, StateKeeper

TAPS = 4
"""Width of the convolution over the tokens before and at each token (Behrouz et al. 2025, section 8)."""


class HopeCore(nn.Module):
    """Memories of one adapter at one block: [B, T, D] to what is added to the block's output, [B, T, D] float32.

    Each of H heads has a memory M with keys and values of width m. A token reads `M(q)`, then writes `v` under `k`
    by delta gradient descent at its own rate, after forgetting a part of M (section 8.1 of the paper). `q`, `k` and
    `v` are linear in the block's input, followed by a causal depthwise convolution; `q` and `k` have length 1. Added is
    `W_o` times what was read, and then what levels of MLPs add to that (equations 94 to 97). `W_o` is zero at first.
    """

    def __init__(self, width: int, config: HopePeftConfig) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.gate: None = None
        self.keeper: tuple[StateKeeper] | None = None
        self.block = ""
        self.memory = make_memory(width, config)
        inner = config.heads * config.head_width
        self.project = nn.Linear(width, self.memory.projections * inner)
        self.output = nn.Linear(inner, width, bias=False)
        taps = torch.zeros(self.memory.projections * inner, TAPS)
        taps[:, -1] = 1.0  # the token alone
        if self.memory.projections == 3:
            # A value stands under the token before it, and a token asks for what followed it: what an induction head
            # does (Olsson et al. 2022), which training finds late if at all when it starts elsewhere.
            taps[inner : 2 * inner] = torch.tensor([0.0] * (TAPS - 2) + [1.0, 0.0])
        with torch.no_grad():
            self.project.bias.zero_()
            self.tie_keys()
        self.taps = nn.Parameter(taps)
        if config.init_weights:
            nn.init.zeros_(self.output.weight)
        self.levels = None
        if config.periods:
            self.levels = Levels(width, config.r, len(config.periods), zero=config.init_weights)

    def tie_keys(self) -> None:
        """Gives keys the projection of queries, where there are both, so that a token finds what it has written."""
        if self.memory.projections == 3:
            inner = self.output.in_features
            for tensor in (self.project.weight, self.project.bias):
                tensor[inner : 2 * inner] = tensor[:inner]

    @torch.no_grad()
    def whiten(self, mean: torch.Tensor, whitener: torch.Tensor, generator: torch.Generator) -> None:
        """Sets all projections to random rotations of the whitened input, whose numbers have a variance of 1.

        Hidden states share a large mean and a few strong directions, so that unit keys of raw states are nearly all
        alike and every write disturbs every other.

        Args:
            mean: [D].
            whitener: [D, D], columns in falling order of their directions' variance.
        """
        parts = []
        for part in self.project.weight.split(self.output.in_features):
            drawn = torch.randn(len(part), min(part.shape), generator=generator)
            rotation = torch.linalg.qr(drawn).Q.to(part.device)
            parts.append(rotation @ whitener[:, : rotation.shape[1]].T)
        if self.memory.bounded_values:
            parts[-1] = parts[-1] / math.sqrt(self.config.head_width)
        self.project.weight.copy_(torch.cat(parts))
        self.project.bias.copy_(-self.project.weight @ mean)
        self.tie_keys()

    def fresh(self, rows: int) -> State:
        """The state of sequences that have read nothing; all tensors begin with B."""
        return {**self.memory.fresh(rows), "tail": self.taps.new_zeros(rows, TAPS - 1, len(self.taps))}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Reads and writes T tokens of every row; padding neither reads nor writes.

        Raises:
            NlftError: the block does not see whole sequences, or the cache does not hold the state before x.
        """
        if x.ndim != 3 or self.keeper is None:
            raise NlftError(
                f"{self.block} gets an input of shape {list(x.shape)}, and a memory of sequences needs [B, T, D].",
                "Choose other layers.",
            )
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.taps.dtype)
            added = self.output(self.read(x, self.keeper[0]))
            return added if self.levels is None else added + self.levels(x + added)

    def read(self, x: torch.Tensor, keeper: StateKeeper) -> torch.Tensor:
        """What every token reads, [B, T, H m]; hands the state behind it to the keeper."""
        x = keeper.apart(x)
        earlier, attended = keeper.earlier(self.block), keeper.attended(x.shape[1])
        state = self.fresh(len(x)) if earlier is None else {n: t.to(x.device) for n, t in earlier.items()}
        order = None
        if attended is not None:
            attended = attended.to(x.device)
            if x.shape[1] > 1:
                # Real tokens first, so that the convolution sees each beside the one before it.
                order = (~attended).long().argsort(dim=1, stable=True)
                x, attended = select(x, order), select(attended, order)
        parts, tail = self.convolve(x, state["tail"], attended)
        reads, behind, surprise = self.memory.run(state, parts, x, keeper.now.learns, attended=attended)
        keeper.keep(self.block, {**behind, "tail": tail})
        reads, back = reads.transpose(1, 2).flatten(2), None
        if order is not None:
            back = order.argsort(dim=1)
            reads = select(reads, back)
        if keeper.watched:
            surprise = surprise.norm(dim=1)
            keeper.note_surprise(self.block, surprise if back is None else select(surprise, back))
        return keeper.together(reads)

    def convolve(
        self, x: torch.Tensor, tail: torch.Tensor, attended: torch.Tensor | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Projections of the tokens x [B, T, D], [B, H, T, m] each, and the last inputs of the convolution.

        Args:
            tail: [B, 3, projections H m], the last inputs of the convolution before x.
            attended: [B, T] bool, all real tokens first; None when nothing is padding.
        """
        rows, tokens, _ = x.shape
        seen = torch.cat([tail, self.project(x)], dim=1)
        convolved = torch.zeros_like(seen[:, :tokens])
        for tap in range(TAPS):
            convolved = convolved + seen[:, tap : tap + tokens] * self.taps[:, tap]
        real = torch.full((rows,), tokens, device=x.device) if attended is None else attended.sum(dim=1)
        tail = select(seen, real[:, None] + torch.arange(TAPS - 1, device=x.device))
        heads = convolved.unflatten(2, (self.memory.projections, self.config.heads, -1))
        return [part.transpose(1, 2) for part in heads.unbind(2)], tail


def select(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """`x` [B, T, ...] at the places [B, S] of every row, [B, S, ...]."""
    return x[torch.arange(len(x), device=x.device)[:, None], places]


class HopeLayer(PathwayLayer):
    """An MLP block with memories of sequences beside it."""

    adapter_layer_names = ("nlft_hope_core",)

    def make_core(self, config: Any) -> HopeCore:
        """Memories that have read nothing."""
        return HopeCore(self.width, config)
