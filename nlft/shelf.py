"""Tensors that stay in memory for as long as somebody asks for them."""

from __future__ import annotations

from torch import Tensor


class Shelf:
    """Tensors that stay in memory, by address; what nobody has asked for since `begin` makes room."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        """Most bytes."""
        self.tensors: dict[str, Tensor] = {}
        self.asked: set[str] = set()

    def begin(self) -> None:
        """From now on everything is old."""
        self.asked.clear()

    def find(self, address: str) -> Tensor | None:
        """What was added under an address; it must not be written to."""
        if address in self.tensors:
            self.asked.add(address)
        return self.tensors.get(address)

    def add(self, address: str, tensor: Tensor) -> None:
        """Keeps a tensor of the CPU, if there is room."""
        used = sum(one.nbytes for one in self.tensors.values())
        fixed = sum(one.nbytes for own, one in self.tensors.items() if own in self.asked)
        if fixed + tensor.nbytes > self.limit:
            return
        for old in [own for own in self.tensors if own not in self.asked]:
            if used + tensor.nbytes > self.limit:
                used -= self.tensors.pop(old).nbytes
        self.tensors[address] = tensor
        self.asked.add(address)
