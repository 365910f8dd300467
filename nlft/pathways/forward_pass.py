"""One forward pass as a gate sees it: padding, the cache of earlier tokens, and what is still true when layers of
it are recomputed in a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import Cache

CHECKPOINTING = "_gradient_checkpointing_func"
"""Attribute of a layer that transformers sets to `torch.utils.checkpoint.checkpoint` with its options."""


@dataclass
class Pass:
    """One forward pass of the decoder."""

    mask: Any = None
    """Which tokens are padding, in any form that transformers has for it."""
    past: Cache | None = None
    """The key-value cache that was handed in."""
    tokens_before: int = 0
    """Tokens in that cache."""
    evidence: torch.Tensor | None = None
    """[B, T, tasks], of these tokens; not kept after the pass."""
    open: torch.Tensor | None = None
    """How far the gate is open, [B, T, tasks]; None before it has been reached."""
    unseen: bool = False
    """True if the cache holds tokens that the gate has not seen."""


class RecallPass:
    """A layer's checkpointing function that brings back the pass to which a recomputation belongs.

    A backward pass recomputes layers, and other forward passes may have moved the gates since.

    Args:
        function: the checkpointing function.
        gates: modules whose `now` is the pass that is running; all that there are at the time of a call.
    """

    def __init__(self, function: Callable[..., Any], gates: nn.ModuleDict) -> None:
        self.function, self.gates = function, gates

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        passes: list[tuple[Any, Pass]] = [(gate, gate.now) for gate in cast(Any, self.gates.values())]

        def run_in_pass(*inputs: Any, **options: Any) -> Any:
            latest = [gate.now for gate, _ in passes]
            for gate, own in passes:
                gate.now = own
            try:
                return run(*inputs, **options)
            finally:
                for (gate, _), own in zip(passes, latest, strict=True):
                    gate.now = own

        return self.function(run_in_pass, *args, **kwargs)


def recall_passes(decoder: nn.Module, gates: nn.ModuleDict) -> None:
    """Wraps the checkpointing function of every layer that has one and is not wrapped yet."""
    for layer in decoder.modules():
        function = getattr(layer, CHECKPOINTING, None)
        if function is not None and not isinstance(function, RecallPass):
            setattr(layer, CHECKPOINTING, RecallPass(function, gates))


def forget_passes(decoder: nn.Module) -> None:
    """Undoes `recall_passes`."""
    for layer in decoder.modules():
        function = getattr(layer, CHECKPOINTING, None)
        if isinstance(function, RecallPass):
            setattr(layer, CHECKPOINTING, function.function)


def attended_tokens(mask: Any, tokens_before: int, tokens: int) -> torch.Tensor | None:
    """Which of the last tokens are no padding, [B, T] bool; None where nothing says that any is.

    Args:
        mask: [B, tokens_before + T], or [B, 1, T, keys] (bool, or added to scores) as transformers prepares it for
            static caches, or a dict of such by kind of layer.
        tokens_before: tokens in the cache.
        tokens: T.
    """
    if isinstance(mask, Mapping):
        mask = next((one for one in mask.values() if one is not None), None)
    if not isinstance(mask, torch.Tensor):
        return None
    if mask.ndim == 2:
        return mask[:, -tokens:] != 0
    # A token attends itself unless it is padding. The keys of a window are the last ones only.
    places = torch.arange(tokens, device=mask.device)
    own = mask[:, 0, places, min(tokens_before, mask.shape[-1] - tokens) + places]
    return own if own.dtype == torch.bool else own >= 0
