"""How many layers of a model give what its base gives, whatever is learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers.utils import output_capturing

from nlft.anatomy import root_of

ADAPTERS = (BaseTunerLayer, AuxiliaryTrainingWrapper)
"""What PEFT puts in the place of a module."""
QUIET = ("torch.distributed.fsdp", output_capturing.__name__)
"""Whose hooks change nothing: they gather the weights of a sharded base, or only note what passes."""
DRAWS = ("drop", "jitter")
"""Parts of names of settings by which a base draws at random while it trains."""
HEADS = ("classifier", "summary")
"""How names of settings begin that are about heads other than a language model's."""


def frozen_depth(root: Any, layers: nn.ModuleList) -> int:
    """Layers, from the first, in which nothing is adapted, trained or listened to; all but the last where nothing is.

    0 where something is adapted or trained that may stand in front of them: anything but layers and head.
    """
    depth = next((index for index, layer in enumerate(layers) if is_touched(layer)), len(layers) - 1)
    above = (layers, root.get_output_embeddings())
    return 0 if depth and any(is_changed(module) for module in modules_but(root, above)) else depth


def is_touched(layer: nn.Module) -> bool:
    """Whether anything in a layer is adapted, trained or listened to."""
    return any(is_changed(one) or has_listener(one) for one in layer.modules())


def has_listener(module: nn.Module) -> bool:
    """Whether anyone listens to a module who may change what passes."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not str(getattr(hook, "__module__", "")).startswith(QUIET) for hook in hooks)


def is_changed(module: nn.Module) -> bool:
    """Whether a module is an adapter, or has a weight of its own that is trained."""
    return isinstance(module, ADAPTERS) or any(one.requires_grad for one in module.parameters(recurse=False))


def modules_but(module: nn.Module, left_out: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """A module and all in it but some, and what they hold: a few of thousands, so they are not searched."""
    yield module
    for child in module.children():
        if not any(child is one for one in left_out):
            yield from modules_but(child, left_out)


def draws(root: Any) -> bool:
    """Whether a base draws at random while it trains, so that its states are no constants."""
    return any(
        isinstance(value, float) and value > 0 and any(part in key for part in DRAWS) and not key.startswith(HEADS)
        for key, value in settings_of(root.config.get_text_config().to_dict())
    )


def settings_of(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values, those of sections too: some families have one for their attention."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from settings_of(value)
        else:
            yield key, value


def reason_against(model: Any) -> str | None:
    """Why the states of a row would not be a constant, or not be all that later layers need; None if they are."""
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        return "what is learned stands in front of every row"
    config = root_of(model).config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if any(kind in str(rope) for kind in ("dynamic", "longrope")):
        return "its positions turn by the longest row of a batch"
    if getattr(config, "num_kv_shared_layers", 0):
        return "its later layers read keys and values of earlier ones"
    return None
