"""The optimiser that a recipe names."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from nlft.config import OptimizerConfig
from nlft.errors import NlftError, reason
from nlft.optim.deep_momentum import DeepMomentum
from nlft.optim.delta_gradient_descent import DeltaGradientDescent
from nlft.optim.delta_momentum import DeltaMomentum
from nlft.optim.joined import Joined
from nlft.optim.m3 import M3
from nlft.optim.muon import Muon

CLASSES: dict[str, Any] = {
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "delta_gradient_descent": DeltaGradientDescent,
    "delta_momentum": DeltaMomentum,
    "deep_momentum": DeepMomentum,
    "m3": M3,
}
MOMENTUM = {"sgd": 0.9, "muon": 0.95, "delta_momentum": 0.9, "deep_momentum": 0.9}
"""Of each optimiser that has one, when the recipe names none."""


def build_optimizer(
    config: OptimizerConfig, groups: Any, lr: float, weight_decay: float, model: nn.Module
) -> torch.optim.Optimizer:
    """What a recipe names.

    Args:
        config: kind, momentum and options.
        groups: parameters or parameter groups; a group's `lr_scale` multiplies its learning rate, and a group's other
            keys stay in it (`period` is for `MultiTimescale`, which the caller puts around this).
        lr: peak learning rate.
        weight_decay: decoupled, except for `sgd`, where it is torch's.
        model: holds the parameters; `delta_gradient_descent` watches its linear layers, `muon` leaves its embeddings to
            AdamW.

    Raises:
        NlftError: the optimiser has no such option, or refuses its value.
    """
    groups = list(groups)
    if not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    groups = [{**group, "params": list(group["params"]), "lr": lr * group.get("lr_scale", 1.0)} for group in groups]
    options = {"lr": lr, "weight_decay": weight_decay, **config.options}
    if config.kind in MOMENTUM:
        options["momentum"] = MOMENTUM[config.kind] if config.momentum is None else config.momentum
    elif config.momentum is not None:
        raise NlftError(f"optimizer {config.kind} has no momentum to set.", "Leave out its key `momentum`.")
    if config.kind == "muon":
        return build_muon(groups, options, model)
    if config.kind == "adamw":
        options.setdefault("fused", True)
    if config.kind == "delta_gradient_descent":
        options["model"] = model
    return make(CLASSES[config.kind], config.kind, groups, options)


def build_muon(groups: list[dict[str, Any]], options: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Muon for hidden matrices, AdamW for vectors, embeddings and the output layer, at one learning rate."""
    ends = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)}
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(getattr(output, "weight", None), nn.Parameter):
        ends.add(output.weight)
    hidden, rest = (
        [
            {**group, "params": chosen}
            for group in groups
            if (chosen := [p for p in group["params"] if (p.ndim == 2 and p not in ends) is matrix])
        ]
        for matrix in (True, False)
    )
    shared = {"lr": options["lr"], "weight_decay": options["weight_decay"]}
    parts = [make(torch.optim.AdamW, "muon", rest, {**shared, "fused": True})] if rest else []
    if hidden:
        parts.insert(0, make(Muon, "muon", hidden, options))
    return parts[0] if len(parts) == 1 else Joined(parts)


def make(kind: Any, name: str, groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    """The optimiser of a class, with its refusals as sentences."""
    known = set(inspect.signature(kind).parameters) - {"params"}
    unknown = sorted(set(options) - known)
    if unknown:
        known -= {"lr", "weight_decay", "model", "momentum"}
        raise NlftError(f"optimizer {name} has no option {unknown[0]!r}.", f"It has {', '.join(sorted(known))}.")
    try:
        return kind(groups, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise NlftError(f"optimizer {name} refuses its options: {reason(error)}", "Correct its `options`.") from error
