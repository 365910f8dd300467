"""A table of states in a file: written part by part, read through a map, and known by the sha256 of its states.

The format is safetensors (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import struct
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from nlft import __version__
from nlft.digest import bytes_of

CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""Dtypes as safetensors names them."""
DIGEST = 32
"""Bytes of a sha256."""


class Shape(NamedTuple):
    """Of a table."""

    tokens: int
    width: int
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of the states."""
        return self.tokens * self.width * self.dtype.itemsize


def discard(path: Path) -> bool:
    """Removes a file, whoever else may do so too; False if that is not possible."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def write_states(file: BinaryIO, shape: Shape, parts: Iterable[Tensor]) -> None:
    """Writes a table from the front to the end: `states`, `sha256`."""
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


def read_states(path: Path, shape: Shape) -> Tensor:
    """Maps a table.

    Raises:
        ValueError: it is another one, or no longer what was written; or what safetensors raises of a file that is none.
    """
    with safe_open(path, framework="pt") as file:
        states, digest = file.get_tensor("states"), file.get_tensor("sha256")
    if states.shape != (shape.tokens, shape.width) or states.dtype != shape.dtype:
        raise ValueError("another shape")
    if hashlib.sha256(bytes_of(states)).digest() != bytes(digest.tolist()):
        raise ValueError("other states")
    return states


@cache
def versions() -> tuple[str, ...]:
    """Of what computes: other versions may round otherwise."""
    return __version__, version("torch"), version("transformers")


def address_of(decides: Sequence[object], rows: Iterable[Sequence[int]]) -> str:
    """sha256 of everything that decides a table.

    Args:
        decides: the base, the layer and the dtypes.
        rows: ids, in the order of the table.
    """
    digest = hashlib.sha256(repr((*versions(), *decides)).encode())
    for ids in rows:
        digest.update(struct.pack("<Q", len(ids)) + array("q", ids).tobytes())
    return digest.hexdigest()
