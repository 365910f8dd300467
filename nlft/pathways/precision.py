"""Memories compute in float32, also where somebody has stored their tensors in half precision."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

STORED = "nlft_stored"
"""Attribute of a tensor that was widened."""


class Float32Memories(nn.Module):
    """A layer whose memories compute in float32, whatever their tensors are stored in.

    To ask every tensor for its dtype takes up to a tenth of a decoded token. So the layer remembers which memories
    hold nothing of half precision, and forgets it wherever that may change. With gradients they are always asked: TRL
    casts what is trained tensor by tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whole: set[str] = set()
        """Adapters whose memories were found to hold nothing of half precision."""

    def compute(self, name: str, core: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """`core(x)` for the memory of the adapter `name`."""
        if name in self.whole and not torch.is_grad_enabled():
            return core(x)
        if holds_half(core):
            return in_float32(core, x)
        if not torch.compiler.is_compiling():  # what is compiled asks once and for all
            self.whole.add(name)
        return core(x)

    def train(self, mode: bool = True) -> Any:
        """As in torch."""
        self.whole.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.whole.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.whole.clear()  # the memories inside are loaded next
        super()._load_from_state_dict(*args, **kwargs)


def in_float32(core: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`core(x)`, with tensors of half precision as float32; gradients come back to the tensors that there are.

    TRL casts what is trained to bfloat16 where the base is quantised, and an adapter stored in half precision is
    loaded as it is by `low_cpu_mem_usage`. States of sequences, keys and thresholds would not stand such rounding.
    """
    named = chain(core.named_parameters(), core.named_buffers())
    return functional_call(core, {name: widened(tensor) for name, tensor in named if is_half(tensor)}, (x,))


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """As float32, for one call."""
    wide = tensor.float()
    if not torch.compiler.is_compiling():
        setattr(wide, STORED, tensor)
    return wide


def stored(tensor: torch.Tensor) -> torch.Tensor:
    """What a tensor was widened from, or itself: the one that is still there at the next call."""
    return getattr(tensor, STORED, tensor)


def holds_half(core: nn.Module) -> bool:
    """Whether any tensor of a memory is of half precision."""
    return any(map(is_half, chain(core.parameters(), core.buffers())))


def is_half(tensor: torch.Tensor) -> bool:
    """Whether a tensor holds numbers of less than 32 bits."""
    return tensor.is_floating_point() and tensor.dtype.itemsize < 4
