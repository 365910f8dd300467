"""Tensors as bytes, and what tells one set of them from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, row by row; in place where it lies contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def digest_tensors(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """sha256 over name, dtype, shape and bytes of tensors, in order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        if hasattr(tensor, "full_tensor"):  # a DTensor: a part of it lies in every process
            tensor = tensor.full_tensor()  # pyright: ignore
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()
