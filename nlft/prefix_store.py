"""Where the states of frozen prefixes are kept: tables in memory, and beyond that in files that are mapped.

A table is found by an address that names everything that decides its bits, so whoever computes it computes the same:
runs, cells and processes share what they find, and two that compute one table at the same time do no harm.

- A file is read through a map (safetensors), so it takes no memory of the process that the system could not take back.
  It is written under another name, pass by pass, and renamed when it is whole. Its states are hashed when it is opened;
  a damaged or cut one is thrown away and computed again.
- A full disk costs a table, never a run.
- Where both limits are reached, the tables that were asked for longest ago make room. What is there then depends on
  the latest requests alone, not on all that came before them: a run that is resumed finds what it would have found.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import uuid
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from nlft.base import UNREADABLE
from nlft.config import PrefixConfig

CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Dtypes as safetensors names them."""
OWN = re.compile(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.[0-9a-f]{32}")
"""Names of files, and of files that are not whole yet."""
DIGEST = 32
"""Bytes of a sha256."""

SMALL = 4e6
"""Bytes of a table below which it stays in memory: sooner computed by each process than shared."""

Tier = Literal["memory", "file"]


class Shape(NamedTuple):
    """Of a table."""

    tokens: int
    width: int
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of the states."""
        return self.tokens * self.width * self.dtype.itemsize


class PrefixStore:
    """Tables [N, D] by address.

    Args:
        folder: for files; it need not exist, and there are none when None.
        config: how much is kept.
        shared: several processes keep tables in the folder, so files come before memory for tables that are not small.
    """

    def __init__(self, folder: Path | None, config: PrefixConfig, shared: bool = False) -> None:
        self.folder, self.config, self.shared = folder, config, shared
        self.tables: dict[str, Tensor] = {}
        """What was asked for longest ago comes first."""
        self.mapped: set[str] = set()
        """Addresses of tables that are read from files."""
        self.writable = folder is not None
        self.said: set[str] = set()
        """What was said to the user, who is told once."""
        self.shortage: str | None = None
        """Why a table was not kept, or not for long, as a sentence."""

    def __reduce__(self) -> tuple[object, ...]:
        """Another process gets the folder, and no table."""
        return PrefixStore, (self.folder, self.config, self.shared)

    def find(self, address: str) -> Tensor | None:
        """The table of an address, which from now on is the latest that was asked for."""
        table = self.tables.pop(address, None)
        if table is None:
            table = self.open(address)
        if table is not None:
            self.tables[address] = table
        return table

    def add(self, address: str, shape: Shape, compute: Callable[[], Iterable[Tensor]]) -> Tensor | None:
        """Keeps a table; None where there is no room for it.

        Args:
            compute: gives the table [N, D] in parts [n, D] on the CPU, from its first token on; no more than one part
                is held beside what is kept.
        """
        while (tier := self.tier_for(shape.n_bytes)) is not None:
            if tier == "file":
                if not self.write(address, shape, compute):
                    continue
                table = self.open(address)
            else:
                table, at = torch.empty(shape.tokens, shape.width, dtype=shape.dtype), 0
                for part in compute():
                    table[at : at + len(part)] = part
                    at += len(part)
            if table is not None:
                self.tables[address] = table
            return table
        return None

    def tier_for(self, size: int) -> Tier | None:
        """Where a table of so many bytes goes, once the oldest have made room for it; None if it fits nowhere."""
        limits: dict[Tier, float] = {"memory": self.config.memory_gb * 1e9, "file": self.config.disk_gb * 1e9}
        order: tuple[Tier, ...] = ("file", "memory") if self.shared and size >= SMALL else ("memory", "file")
        tiers: list[Tier] = [tier for tier in order if size <= limits[tier] and (tier == "memory" or self.writable)]
        if not tiers:
            self.shortage = self.shortage or (
                f"{size / 1e6:,.1f} MB of states of frozen layers have no room (prefix.memory_gb"
                f" {self.config.memory_gb:g}, prefix.disk_gb {self.config.disk_gb:g}): they are computed in every pass."
            )
            return None
        while True:
            for tier in tiers:
                if self.used(tier) + size <= limits[tier]:
                    return tier
            self.shortage = self.shortage or (
                f"The states of frozen layers take more than prefix.memory_gb ({self.config.memory_gb:g}) and"
                f" prefix.disk_gb ({self.config.disk_gb:g}): what was read longest ago is computed again when needed."
            )
            if not self.make_room(tiers):
                return None

    def has_room(self, size: int, share: float = 1.0) -> bool:
        """Whether so many bytes fit into a share of all that may be kept, without dropping anything."""
        room = self.config.memory_gb + (self.config.disk_gb if self.writable else 0)
        return self.used("memory") + self.used("file") + size <= share * room * 1e9

    def used(self, tier: Tier) -> int:
        """Bytes in a tier; files of other processes count."""
        if tier == "memory":
            return sum(table.nbytes for address, table in self.tables.items() if address not in self.mapped)
        return sum(size for _, size, _ in self.files())

    def make_room(self, tiers: Sequence[Tier]) -> bool:
        """Drops the oldest table of these tiers, else the oldest file; False if nothing can be dropped."""
        for address in self.tables:
            if ("file" if address in self.mapped else "memory") in tiers:
                del self.tables[address]
                if address not in self.mapped:
                    return True
                self.mapped.remove(address)
                return discard(self.path_of(address))
        # Left by a call that was interrupted, or another process's; that one reads on until it is done.
        files = self.files()
        return bool(files) and discard(min(files)[2])

    def files(self) -> list[tuple[int, int, Path]]:
        """When a file was last asked for, its bytes, and the file; those that are not whole too."""
        found = []
        for path in self.folder.glob("*") if self.folder else ():
            if not OWN.fullmatch(path.name):
                continue
            try:
                stat = path.stat()
            except OSError:  # removed by another process
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        return found

    def path_of(self, address: str) -> Path:
        """Where the file of an address lies."""
        assert self.folder is not None
        return self.folder / f"{address}.safetensors"

    def open(self, address: str) -> Tensor | None:
        """Maps a file; one that is not what was written is removed."""
        if self.folder is None or not (path := self.path_of(address)).is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                table, digest = file.get_tensor("states"), file.get_tensor("sha256")
            if hashlib.sha256(bytes_of(table)).digest() != bytes(digest.tolist()):
                raise ValueError("other states")
            path.touch()
        except UNREADABLE:
            discard(path)
            return None
        self.mapped.add(address)
        return table

    def write(self, address: str, shape: Shape, compute: Callable[[], Iterable[Tensor]]) -> bool:
        """Writes a file pass by pass; False if the disk does not take it, and from then on there are no files."""
        path = self.path_of(address)
        partial = path.with_name(f".{address}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                write_states(file, shape, compute())
            partial.replace(path)
            return True
        except OSError as error:
            self.shortage = f"The states of frozen layers cannot be kept in {path.parent}: {error.strerror or error}."
            self.writable = False
            return False
        finally:
            discard(partial)

    def remove(self) -> None:
        """Removes the folder: the run or comparison has come to its end."""
        self.tables, self.mapped = {}, set()
        for _, _, path in self.files():
            discard(path)
        if self.folder is not None:
            with suppress(OSError):  # it holds what somebody else has put there
                self.folder.rmdir()


def discard(path: Path) -> bool:
    """Removes a file, whoever else may do so too; False if that is not possible."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def write_states(file: BinaryIO, shape: Shape, parts: Iterable[Tensor]) -> None:
    """Writes safetensors (https://huggingface.co/docs/safetensors) from the front to the end: `states`, `sha256`."""
    end = shape.n_bytes
    entries = {
        "states": {"dtype": CODES[shape.dtype], "shape": [shape.tokens, shape.width], "data_offsets": [0, end]},
        "sha256": {"dtype": "U8", "shape": [DIGEST], "data_offsets": [end, end + DIGEST]},
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)  # a map can be read in place where its numbers are aligned
    file.write(struct.pack("<Q", len(header)) + header)
    digest = hashlib.sha256()
    for part in parts:
        written = bytes_of(part)
        digest.update(written)
        file.write(written)
    file.write(digest.digest())


def bytes_of(states: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, in place."""
    return states.contiguous().view(torch.uint8).numpy().data


def address_of(decides: Sequence[object], rows: Iterable[Sequence[int]]) -> str:
    """sha256 of everything that decides a table.

    Args:
        decides: the base, the layer and the dtypes.
        rows: ids, in the order of the table.
    """
    digest = hashlib.sha256(repr(tuple(decides)).encode())
    for ids in rows:
        digest.update(struct.pack("<Q", len(ids)) + array("q", ids).tobytes())
    return digest.hexdigest()
