"""Where the states of frozen prefixes are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch


class PrefixStore:
    """Tables of states by address."""

    def __init__(self, most_bytes: float) -> None:
        self.most_bytes = most_bytes
        self.tables: dict[str, torch.Tensor] = {}

    def find(self, address: str) -> torch.Tensor | None:
        """The table of an address."""
        return self.tables.get(address)

    def has_room(self, size: int) -> bool:
        """Whether a table of so many bytes would be kept."""
        return sum(table.nbytes for table in self.tables.values()) + size <= self.most_bytes

    def add(self, address: str, table: torch.Tensor) -> torch.Tensor:
        """Keeps a table; what comes back is to be read in its place."""
        self.tables[address] = table
        return table


def address_of(fingerprint: str, rows: Sequence[Sequence[int]], depth: int, dtype: torch.dtype) -> str:
    """sha256 of everything that decides a table: the base, the ids of its rows in order, the layer and the dtype."""
    digest = hashlib.sha256(f"{fingerprint} {depth} {dtype}".encode())
    for ids in rows:
        digest.update(repr(list(ids)).encode())
    return digest.hexdigest()
