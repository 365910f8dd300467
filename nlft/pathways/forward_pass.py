"""One forward pass as gates and keepers of state see it: padding, rows that share a line, the cache of earlier tokens,
and what is still true when layers of it are recomputed in a backward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import Cache

from nlft.errors import NlftError

CHECKPOINTING = "_gradient_checkpointing_func"
"""Attribute of a layer that transformers sets to `torch.utils.checkpoint.checkpoint` with its options."""


@dataclass(frozen=True)
class Documents:
    """Rows that share lines: S documents, none of which may see another."""

    places: torch.Tensor
    """[S, longest] int64, where their tokens lie in the flattened lines; 0 beyond their ends."""
    attended: torch.Tensor
    """[S, longest] bool, which of these places are tokens; those come first."""
    back: torch.Tensor
    """[B, T] int64, where the tokens of the lines lie in the flattened `places`."""

    def apart(self, x: torch.Tensor) -> torch.Tensor:
        """Lines [B, T, ...] as a row for each document, [S, longest, ...], 0 beyond its end."""
        beyond = ~self.attended.to(x.device)
        return x.flatten(0, 1)[self.places.to(x.device)].masked_fill(beyond.view(*beyond.shape, *[1] * (x.ndim - 2)), 0)

    def together(self, x: torch.Tensor) -> torch.Tensor:
        """The reverse of `apart`: [S, longest, ...] to [B, T, ...]."""
        return x.flatten(0, 1)[self.back.to(x.device)]


@dataclass
class Pass:
    """One forward pass of the decoder."""

    mask: Any = None
    """Which tokens are padding, in any form that transformers has for it."""
    past: Cache | None = None
    """The key-value cache that was handed in."""
    tokens_before: int = 0
    """Tokens in that cache."""
    rows: int | None = None
    """B, where the inputs say it."""
    documents: Documents | None = None
    """Where several rows share a line; None where every line is one row."""
    evidence: torch.Tensor | None = None
    """[B, T, tasks], of these tokens; not kept after the pass."""
    open: torch.Tensor | None = None
    """How far the gate is open, [B, T, tasks]; None before it has been reached."""
    unseen: bool = False
    """True if the cache holds tokens that the gate, or the keeper of states, has not seen."""
    states: dict[str, dict[str, torch.Tensor]] | None = None
    """By block, the states before these tokens; None for fresh sequences."""
    kept: dict[str, dict[str, torch.Tensor]] | None = None
    """By block, the states behind these tokens; None when the pass is over."""
    learns: bool = True
    """Whether these tokens are written into states."""


def begin_pass(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Pass:
    """The pass that begins with these arguments of the decoder, which may be given by place or by name."""
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    given = {**given.pop("kwargs", {}), **given}
    past = given.get("past_key_values")
    past = past if isinstance(past, Cache) else None
    inputs = next((given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None)
    # Now: by the time a block is reached, the layers in front of it have written into the cache.
    before = 0 if past is None else int(past.get_seq_length())
    mask, rows, documents = given.get("attention_mask"), None if inputs is None else inputs.shape[0], None
    if inputs is not None and mask is None and past is None:
        documents = find_documents(given.get("position_ids"), *inputs.shape[:2])
    return Pass(mask, past, before, rows, documents)


def find_documents(positions: Any, lines: int, tokens: int) -> Documents | None:
    """The rows that share lines by their positions, found as transformers does: one begins where a position does not
    follow the one before it. None where every line is one row.

    Args:
        positions: [B, T] or [1, T]; [4, B, T] where a model that sees counts images apart, and text first.
        lines: B.
        tokens: T.
    """
    if isinstance(positions, torch.Tensor) and positions.ndim == 3 and len(positions) == 4:
        positions = positions[0]
    if not isinstance(positions, torch.Tensor) or positions.ndim != 2 or not tokens:
        return None
    begins = positions.expand(lines, tokens).diff(dim=1) != 1
    if not bool(begins.any()):
        return None
    starts = torch.cat([torch.ones_like(begins[:, :1]), begins], dim=1).flatten()
    first = starts.nonzero()[:, 0]
    lengths = torch.cat([first, first.new_tensor([starts.numel()])]).diff()
    column = torch.arange(int(lengths.max()), device=first.device)
    attended = column < lengths[:, None]
    places = (first[:, None] + column).masked_fill(~attended, 0)
    own = starts.cumsum(dim=0) - 1
    back = own * len(column) + torch.arange(starts.numel(), device=first.device) - first[own]
    return Documents(places, attended, back.view(lines, tokens))


def check_uncached(now: Pass, past: Cache | None) -> None:
    """Refuses a key-value cache of rows that share a line: with one, transformers lets them attend to each other.

    Raises:
        NlftError: there is one.
    """
    if now.documents is not None and past is not None:
        raise NlftError(
            "Rows that share a line, told apart by their positions, were read with a key-value cache, in which they"
            " attend to each other.",
            "Call the model with use_cache=False.",
        )


def cache_of(output: Any, past: Cache | None) -> Cache | None:
    """The cache that the decoder returned, else the one that it was given."""
    made = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
    return next((one for one in made if isinstance(one, Cache)), past)


class RecallPass:
    """A layer's checkpointing function that brings back the pass to which a recomputation belongs.

    A backward pass recomputes layers, and other forward passes may have moved the gates and keepers since.

    Args:
        function: the checkpointing function.
        owners: containers of modules whose `now` is the pass that is running; all modules that there are at the time
            of a call.
    """

    def __init__(self, function: Callable[..., Any], owners: list[nn.ModuleDict]) -> None:
        self.function, self.owners = function, owners

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        passes: list[tuple[Any, Pass]] = [(one, one.now) for owner in self.owners for one in cast(Any, owner.values())]

        def run_in_pass(*inputs: Any, **options: Any) -> Any:
            latest = [one.now for one, _ in passes]
            for one, own in passes:
                one.now = own
            try:
                return run(*inputs, **options)
            finally:
                for (one, _), own in zip(passes, latest, strict=True):
                    one.now = own

        return self.function(run_in_pass, *args, **kwargs)


def recall_passes(decoder: nn.Module, owner: nn.ModuleDict) -> None:
    """Wraps the checkpointing function of every layer that has one, so that it knows the modules of `owner`."""
    for layer in decoder.modules():
        function = getattr(layer, CHECKPOINTING, None)
        if isinstance(function, RecallPass):
            if not any(one is owner for one in function.owners):
                function.owners.append(owner)
        elif function is not None:
            setattr(layer, CHECKPOINTING, RecallPass(function, [owner]))


def forget_passes(decoder: nn.Module, owner: nn.ModuleDict) -> None:
    """Undoes `recall_passes`."""
    for layer in decoder.modules():
        function = getattr(layer, CHECKPOINTING, None)
        if isinstance(function, RecallPass):
            function.owners = [one for one in function.owners if one is not owner]
            if not function.owners:
                setattr(layer, CHECKPOINTING, function.function)


def attended_tokens(mask: Any, tokens_before: int, tokens: int) -> torch.Tensor | None:
    """Which of the last tokens are no padding, [B, T] bool; None where nothing says that any is.

    Args:
        mask: [B, tokens_before + T or more], or [B, 1, T, keys] (bool, or added to scores) as transformers prepares
            it for static caches, or a dict of such by kind of layer.
        tokens_before: tokens in the cache.
        tokens: T.
    """
    if isinstance(mask, Mapping):
        mask = next((one for one in mask.values() if one is not None), None)
    if not isinstance(mask, torch.Tensor):
        return None
    first = min(tokens_before, mask.shape[-1] - tokens)  # the keys of a window are the last ones only
    if mask.ndim == 2:  # a static cache may have made it longer
        return mask[:, first : first + tokens] != 0
    # A token attends itself unless it is padding.
    places = torch.arange(tokens, device=mask.device)
    own = mask[:, 0, places, first + places]
    return own if own.dtype == torch.bool else own >= 0
