"""What is added to the loss of every step for the sake of the past, and what it has to remember for that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nlft.methods.protocol import TaskContext

FILE = "penalties.safetensors"
"""What penalties remember, beside the model of a stage."""


class Penalty(Protocol):
    """A term of the loss, in nats per token."""

    name: str
    """Before the names of its tensors in a file."""

    @property
    def remembers(self) -> bool:
        """Whether it holds anything that a later stage could not work out again."""
        ...

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Gets ready for a task."""
        ...

    def term(self, model: nn.Module) -> Tensor | None:
        """The term of one optimiser step, or None."""
        ...

    def end_task(self, model: nn.Module) -> None:
        """Takes in the task that has just been learned."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it remembers."""
        ...

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        """Puts back what `state` gave."""
        ...


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name; the names are the same under torch's wrappers for several processes."""
    return {name.removeprefix("module."): one for name, one in model.named_parameters() if one.requires_grad}


def size(tensors: dict[str, Tensor]) -> int:
    """Bytes of tensors."""
    return sum(one.numel() * one.element_size() for one in tensors.values())


def write_state(penalties: Sequence[Penalty], folder: Path) -> None:
    """Writes what penalties remember, if they do."""
    tensors = {
        f"{one.name}.{name}": tensor.cpu().contiguous() for one in penalties for name, tensor in one.state().items()
    }
    if tensors:
        save_file(tensors, folder / FILE)


def read_state(penalties: Sequence[Penalty], folder: Path) -> None:
    """Reads it back.

    Raises:
        OSError: it is not there.
    """
    remembering = [one for one in penalties if one.remembers]
    tensors = load_file(folder / FILE) if remembering else {}
    for one in remembering:
        prefix = f"{one.name}."
        own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        one.set_state(own)


def total(terms: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of the terms that there are."""
    there = [term for term in terms if term is not None]
    return torch.stack(there).sum() if there else None
