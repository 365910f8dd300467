"""Low-rank maps of several tasks beside one linear map."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from nlft.anatomy import map_widths
from nlft.pathways.block import PathwayLayer
from nlft.pathways.gate import PrototypeGate
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.part import TaskPart


class TaskMap(TaskPart):
    """The low-rank map of one task, `B A` with A [R, D_in] and B [D_out, R] (Hu et al. 2021).

    Both are parameters while the task is trained and buffers afterwards.
    """

    A: torch.Tensor
    B: torch.Tensor

    def __init__(self, A: torch.Tensor, B: torch.Tensor, trainable: bool) -> None:
        super().__init__()
        self.hold({"A": A, "B": B}, trainable)


class GatedMaps(nn.Module):
    """The low-rank maps of one adapter at one module: [..., D_in] to [..., D_out] float32.

    `sum_t g_t * (lora_alpha / r) * x A_t^T B_t^T`, g_t from the gate; exactly zero where every gate is shut.
    """

    def __init__(self, width_in: int, width_out: int, config: GatedLoraPeftConfig) -> None:
        super().__init__()
        self.width_in, self.width_out = width_in, width_out
        self.rank, self.scale = config.r, config.lora_alpha / config.r
        self.init_weights = config.init_weights
        self.gate: tuple[PrototypeGate] | None = None
        self.tasks = nn.ModuleList()
        for name, rank in config.tasks.items():
            A, B = torch.zeros(rank, width_in), torch.zeros(width_out, rank)
            self.tasks.append(TaskMap(A, B, trainable=name == config.active_task))

    def begin_task(self, generator: torch.Generator, device: torch.device) -> None:
        """Adds a map to train: A uniform in `+-1 / sqrt(D_in)`, as in PEFT, and B zero."""
        bound = 1 / math.sqrt(self.width_in)
        A = (2 * torch.rand(self.rank, self.width_in, generator=generator) - 1) * bound
        B = torch.zeros(self.width_out, self.rank)
        if not self.init_weights:
            B = torch.randn(self.width_out, self.rank, generator=generator) * bound
        self.tasks.append(TaskMap(A.to(device), B.to(device), trainable=True))

    def end_task(self) -> None:
        """Freezes the newest map."""
        self.task_maps[-1].freeze()

    @property
    def task_maps(self) -> list[TaskMap]:
        """Maps by task, in the order of learning."""
        return cast("list[TaskMap]", list(self.tasks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over tasks of their gated maps."""
        output = torch.zeros(*x.shape[:-1], self.width_out, dtype=torch.float32, device=x.device)
        assert self.gate is not None
        for number, task in enumerate(self.task_maps):
            opened = self.gate[0].values(number, x)
            low = x.to(task.A.dtype) @ task.A.T
            output = output + (low * (opened * self.scale)) @ task.B.T
        return output


class GatedLoraLayer(PathwayLayer):
    """A linear map with gated low-rank maps beside it."""

    adapter_layer_names = ("nlft_gated_lora_core",)

    def make_core(self, config: GatedLoraPeftConfig) -> GatedMaps:  # pyright: ignore
        """Maps for the tasks that the config lists."""
        return GatedMaps(*map_widths(self.base_layer), config)
