"""Memories compute in float32, also where somebody has stored their tensors in half precision."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch.func import functional_call


def in_float32(core: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`core(x)`, with tensors of half precision as float32; gradients come back to the tensors that there are.

    TRL casts what is trained to bfloat16 where the base is quantised, and an adapter stored in half precision is
    loaded as it is by `low_cpu_mem_usage`. States of sequences, keys and thresholds would not stand such rounding.
    """
    if not any(is_half(tensor) for tensor in chain(core.parameters(), core.buffers())):
        return core(x)
    named = chain(core.named_parameters(), core.named_buffers())
    return functional_call(core, {name: tensor.float() for name, tensor in named if is_half(tensor)}, (x,))


def is_half(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers of less than 32 bits."""
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4
