"""A part of a memory: what is trained for one task, and frozen afterwards."""

from __future__ import annotations

import torch
from torch import nn


class TaskPart(nn.Module):
    """A module whose tensors are parameters while they are trained and buffers afterwards.

    Buffers, because PEFT turns the gradients of every parameter on when an adapter is activated.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        """Of its tensors."""

    def hold(self, tensors: dict[str, torch.Tensor], trainable: bool) -> None:
        """Registers further tensors."""
        self.names += tensors
        for name, tensor in tensors.items():
            if trainable:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def freeze(self) -> None:
        """Turns the parameters into buffers under the same names."""
        for name in self.names:
            tensor = getattr(self, name).detach()
            delattr(self, name)
            self.register_buffer(name, tensor)

    def thaw(self) -> None:
        """Turns the buffers into parameters again, so that what is frozen can be trained once more."""
        for name in self.names:
            tensor = getattr(self, name).detach()
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(tensor))
