"""Where the states of frozen prefixes are kept: tables in memory, and beyond that in files that are mapped.

A table is found by an address that names everything that decides its bits, so whoever computes it computes the same:
runs, cells and processes share what they find, and two that compute one table at the same time do no harm.

- A file is read through a map (safetensors), so it takes no memory of the process that the system could not take back.
  It is written under another name, pass by pass, and renamed when it is whole. Its states are hashed when it is opened;
  a damaged or cut one is thrown away and computed again.
- A full disk costs a table, never a run: room is left for checkpoints.
- What is kept depends on what was asked for since `begin` alone, as if the store had been empty then: a run that is
  resumed keeps what it would have kept. Columns of one model are asked for in a cycle, where age would drop each just
  before it is needed again; so only what nobody has asked for since `begin` makes room, and what does not fit then is
  not kept.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from nlft.base import UNREADABLE
from nlft.config import PrefixConfig
from nlft.config.prefix import OWN
from nlft.shelf import Shelf
from nlft.state_file import Shape, discard, read_states, write_states

RESERVE = 1e9
"""Least bytes of a disk that are left free beside a file, or as many as the file has: checkpoints are written too."""
FRESH = 600
"""Seconds without a write after which a file that is not whole is taken for left by a call that was killed."""
INPUTS = 0.5
"""Memory of `PrefixStore.inputs`, by that of tables."""

Tier = Literal["memory", "file"]


class PrefixStore:
    """Tables [N, D] by address.

    Args:
        folder: for files; it need not exist, and there are none when None.
        config: how much is kept.
        shared: several processes keep tables in the folder, so files come before memory.
    """

    def __init__(self, folder: Path | None, config: PrefixConfig, shared: bool = False) -> None:
        self.folder, self.config, self.shared = folder, config, shared
        self.limits: dict[Tier, float] = {"memory": config.memory_gb * 1e9, "file": config.disk_gb * 1e9}
        self.tables: dict[str, Tensor] = {}
        self.mapped: set[str] = set()
        """Addresses of tables that are read from files."""
        self.asked: dict[str, tuple[Tier | None, int]] = {}
        """What was asked for since `begin`: where it has its place, and its bytes."""
        self.begun = time.time_ns()
        self.inputs = Shelf(INPUTS * self.limits["memory"])
        """What calibration has read, see `nlft.kept_inputs`."""
        self.writable = folder is not None
        self.said: set[str] = set()
        """What was said to the user, who is told once."""
        self.shortage: str | None = None
        """Why a table was not kept, as a sentence."""

    def __reduce__(self) -> tuple[object, ...]:
        """Another process gets the folder, and no table."""
        return PrefixStore, (self.folder, self.config, self.shared)

    def begin(self) -> None:
        """A model gets a new prefix: what was kept until now makes room where it is not asked for again."""
        self.asked, self.begun = {}, time.time_ns()
        self.inputs.begin()

    def find(self, address: str, shape: Shape) -> Tensor | None:
        """The table of an address; None where there is none, or no place for it."""
        tier = self.place(address, shape.n_bytes)
        if tier is None:
            self.forget(address)
            return None
        table = self.tables.get(address)
        if table is None:
            table = self.open(address, shape)
        elif address in self.mapped:
            with suppress(OSError):  # another process has removed the file, and the map stays
                os.utime(self.path_of(address))
        if table is None or (address in self.mapped) is (tier == "file"):
            return table
        return self.add(address, shape, lambda: [table])  # it lies in the other tier

    def add(self, address: str, shape: Shape, compute: Callable[[], Iterable[Tensor]]) -> Tensor | None:
        """Keeps a table; None where there is no place for it.

        Args:
            compute: gives the table [N, D] in parts [n, D] on the CPU, from its first token on; no more than one part
                is held beside what is kept.
        """
        tier = self.place(address, shape.n_bytes)
        if tier == "file" and not (self.make_room(tier, shape.n_bytes) and self.write(address, shape, compute)):
            tier = self.place(address, shape.n_bytes, on_disk=False)
        if tier == "file":
            return self.open(address, shape)
        if tier == "memory" and self.make_room(tier, shape.n_bytes):
            table, at = torch.empty(shape.tokens, shape.width, dtype=shape.dtype), 0
            for part in compute():
                table[at : at + len(part)] = part
                at += len(part)
            self.mapped.discard(address)
            self.tables[address] = table
            return table
        self.forget(address)
        return None

    def forget(self, address: str) -> None:
        """Lets go of a table; its file stays until it makes room."""
        self.tables.pop(address, None)
        self.mapped.discard(address)

    def place(self, address: str, size: int, on_disk: bool = True) -> Tier | None:
        """Where a table of so many bytes has its place, decided once; None if there is none.

        Args:
            on_disk: False where the disk did not take it.
        """
        if address not in self.asked or not on_disk:
            self.asked.pop(address, None)
            order: tuple[Tier, ...] = ("file", "memory") if self.shared else ("memory", "file")
            tiers = order if on_disk and self.writable else ("memory",)
            tier: Tier | None = next((one for one in tiers if self.taken(one) + size <= self.limits[one]), None)
            self.asked[address] = (tier, size)
            if tier is None:
                self.shortage = self.shortage or (
                    f"{size / 1e6:,.1f} MB of states of frozen layers have no room (prefix.memory_gb"
                    f" {self.config.memory_gb:g}, prefix.disk_gb {self.config.disk_gb:g}): they are computed in every"
                    " pass."
                )
        return self.asked[address][0]

    def taken(self, tier: Tier) -> int:
        """Bytes of a tier by what was asked for since `begin`."""
        return sum(size for own, size in self.asked.values() if own == tier)

    def make_room(self, tier: Tier, size: int) -> bool:
        """Drops what is old until a tier holds no more than it may, and a disk can take a file of so many bytes."""
        if tier == "memory":
            idle = [own for own in self.tables if own not in self.mapped and self.asked.get(own, ("",))[0] != tier]
            used = self.taken(tier) + sum(self.tables[own].nbytes for own in idle)
            while used > self.limits[tier] and idle:
                used -= self.tables.pop(idle.pop(0)).nbytes
            return used <= self.limits[tier]
        left = sorted(self.left())
        used = self.taken(tier) + sum(one[1] for one in left)
        while True:
            short = self.free() < size + max(RESERVE, size)
            if used <= self.limits[tier] and not short:
                return True
            old = next((one for one in left if self.is_old(*one)), None)
            if old is None:
                if short:
                    self.shortage = (
                        f"{size / 1e6:,.1f} MB of states of frozen layers are not kept in {self.folder}: its disk is"
                        " nearly full, and checkpoints need room."
                    )
                return False
            left.remove(old)
            if discard(old[2]):
                used -= old[1]
                if old[2].stem in self.mapped:
                    self.forget(old[2].stem)

    def free(self) -> int:
        """Bytes that are free on the folder's disk."""
        assert self.folder is not None
        there = next(one for one in (self.folder, *self.folder.parents) if one.exists())
        return shutil.disk_usage(there).free

    def left(self) -> Iterator[tuple[int, int, Path]]:
        """Of files that have no place here: when one was last asked for, its bytes, and the file; those too that are
        not whole, and those of other processes."""
        return (one for one in self.files() if self.asked.get(one[2].stem, ("",))[0] != "file")

    def is_old(self, asked: int, _size: int, path: Path) -> bool:
        """Whether a file that has no place here may go: another process reads on in what it has mapped."""
        if not self.shared:
            return True
        return asked < self.begun and (path.name[0] != "." or asked < time.time_ns() - FRESH * 10**9)

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

    def open(self, address: str, shape: Shape) -> Tensor | None:
        """Maps a file; one that is not what was written is removed."""
        if self.folder is None or not (path := self.path_of(address)).is_file():
            return None
        try:
            table = read_states(path, shape)
            path.touch()
        except UNREADABLE:
            discard(path)
            return None
        self.mapped.add(address)
        self.tables[address] = table
        return table

    def write(self, address: str, shape: Shape, compute: Callable[[], Iterable[Tensor]]) -> bool:
        """Writes a file pass by pass; False if the disk does not take it, and from then on there are no files."""
        path = self.path_of(address)
        partial = path.with_name(f".{address}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as file:
                file.truncate(shape.n_bytes)  # so that it counts for other processes from now on
                write_states(file, shape, compute())
            partial.replace(path)
            return True
        except FileNotFoundError:  # another process has removed the folder
            return False
        except OSError as error:
            self.shortage = f"The states of frozen layers cannot be kept in {path.parent}: {error.strerror or error}."
            self.writable = False
            return False
        finally:
            discard(partial)

    def remove(self) -> None:
        """Removes the folder: the run or comparison has come to its end."""
        self.tables, self.mapped, self.asked = {}, set(), {}
        for _, _, path in self.files():
            discard(path)
        if self.folder is not None:
            with suppress(OSError):  # it holds what somebody else has put there
                self.folder.rmdir()
