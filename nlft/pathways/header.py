"""An adapter's files, checked before anything is made of them: regular, of sane size, and what their formats say.

Of a safetensors file only the header is read: https://huggingface.co/docs/safetensors (8 bytes of length, little
endian; JSON; then the bytes of the tensors without gaps).
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import torch

from nlft.errors import NlftError
from nlft.remote import CONFIG

PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's modules."""
LARGEST_CONFIG = 8 << 20
"""Bytes of settings: an adapter with a thousand tasks has less than one million."""
LARGEST_HEADER = 16 << 20
"""Bytes of a header: about a hundred thousand tensors."""
LARGEST_RANK = 8
LONGEST_NAME = 500
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes that torch has had for long; which of them a tensor may have, `check_layout` knows."""
WHOLE = "Take a whole copy of the adapter."


def check_file(folder: Path, name: str) -> Path:
    """Refuses a file of an adapter that is no regular file, or a link that leads out of the adapter's folder.

    A link is fine within the folder, and to the `blobs` of the Hub's cache that the folder lies in.

    Raises:
        NlftError: naming the file.
    """
    file, home = folder / name, folder.resolve()
    target = file.resolve()
    cached = target.parent.name == "blobs" and target.parent.parent in home.parents
    if not (cached or target.is_relative_to(home)):
        raise NlftError(
            f"{file} is a link to {target}, outside of the adapter.", "If you trust it, put the file itself there."
        )
    if not target.is_file():
        raise NlftError(f"{file} is no file.", WHOLE)
    return file


def check_config_file(folder: Path) -> dict[str, Any]:
    """The settings of any PEFT adapter, as they stand in the file.

    Raises:
        NlftError: they are too long, no JSON, nested too deeply, or no JSON object that names a kind of adapter.
    """
    file = check_file(folder, CONFIG)
    size = file.stat().st_size
    if size > LARGEST_CONFIG:
        raise NlftError(f"{file} has {size:,} bytes, and settings have at most {LARGEST_CONFIG:,}.", WHOLE)
    found = parsed(file.read_bytes(), f"{file}")
    if not isinstance(found.get("peft_type"), str) or not found["peft_type"].isprintable():
        raise NlftError(f"{file} does not name the kind of the adapter (`peft_type`).", WHOLE)
    return found


def read_header(file: Path) -> dict[str, torch.Tensor]:
    """Names, shapes and dtypes of a safetensors file, as tensors on the meta device.

    Reads nothing but the header, and allocates nothing by what it says.

    Raises:
        NlftError: naming the file and the tensor that is not what the format says.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise NlftError(f"{file} is damaged: its header is said to be longer than the file.", WHOLE)
        if length > LARGEST_HEADER:
            raise NlftError(f"{file} has a header of {length:,} bytes; at most {LARGEST_HEADER:,} are read.", WHOLE)
        entries = parsed(opened.read(length), f"The header of {file}")
    entries.pop("__metadata__", None)
    tensors, places = {}, []
    for name, entry in entries.items():
        tensors[name], place = described(name, entry, f"{file} is damaged:")
        places.append((*place, name))
    end = 0
    for first, last, name in sorted(places):
        if first != end:
            how = "overlaps another one" if first < end else "leaves a gap before it"
            raise NlftError(f"{file} is damaged: {name} {how}.", WHOLE)
        end = last
    if end != size - 8 - length:
        raise NlftError(f"{file} is damaged: it holds {size - 8 - length:,} bytes, and its header says {end:,}.", WHOLE)
    return tensors


def described(name: str, entry: Any, damaged: str) -> tuple[torch.Tensor, tuple[int, int]]:
    """The tensor that an entry of a header describes, on the meta device, and where its bytes begin and end.

    Raises:
        NlftError: naming the tensor.
    """
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise NlftError(f"{damaged} {name[:80]!r} is no name of a tensor.", WHOLE)
    fields = entry if isinstance(entry, dict) else {}
    kind, shape, place = (fields.get(key) for key in ("dtype", "shape", "data_offsets"))
    dtype = DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise NlftError(f"{damaged} {name} is of the dtype {str(kind)[:40]!r}, which no adapter has.", WHOLE)
    if not is_sizes(shape) or len(shape) > LARGEST_RANK or prod(max(one, 1) for one in shape) >= 2**60:
        raise NlftError(f"{damaged} {name} has the shape {str(shape)[:80]}, which no tensor has.", WHOLE)
    if not is_sizes(place) or len(place) != 2 or place[1] - place[0] != prod(shape) * dtype.itemsize:
        raise NlftError(
            f"{damaged} {name} of {kind} {shape} stands at {str(place)[:80]}, which is not its size.", WHOLE
        )
    return torch.empty(shape, dtype=dtype, device="meta"), (place[0], place[1])


def is_sizes(value: Any) -> TypeGuard[list[int]]:
    """Whether a value is a list of whole numbers from 0."""
    return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)


def parsed(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        NlftError: it is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        how = "is nested too deeply" if isinstance(error, RecursionError) else "is no JSON"
        raise NlftError(f"{what} cannot be read: it {how}.", WHOLE) from error
    if not isinstance(found, dict):
        raise NlftError(f"{what} cannot be read: it is no JSON object.", WHOLE)
    return found
