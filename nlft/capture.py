"""Reading hidden states of a model: a forward pass that ends where enough has been seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nlft.errors import NlftError


class _Captured(Exception):
    """Every block has been seen; the rest of the forward pass is not needed."""


def run_until_captured(
    model: Any, modules: dict[str, nn.Module], ids: torch.Tensor, mask: torch.Tensor
) -> dict[str, torch.Tensor]:
    """One forward pass, stopped as soon as every module's input is known."""
    captured: dict[str, torch.Tensor] = {}

    def hook(name: str) -> Any:
        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            captured[name] = args[0] if args else next(iter(kwargs.values()))
            if len(captured) == len(modules):
                raise _Captured

        return note

    handles = [module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, module in modules.items()]
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Captured:
        return captured
    finally:
        for handle in handles:
            handle.remove()
    missing = sorted(set(modules) - set(captured))
    raise NlftError(f"The block {missing[0]!r} took no part in the forward pass.", "Leave its layer out.")


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradient; every module's own mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        # Not inference_mode: a buffer that a forward pass caches under it could not be trained through later.
        with torch.no_grad():
            yield
    finally:
        # One by one, for `model.train()` would also wake parts that were in eval mode before.
        for module, mode in modes:
            module.training = mode
