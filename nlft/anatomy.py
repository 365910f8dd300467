"""Where things stand in a causal language model: its decoder layers, their MLP blocks, its linear maps."""

from __future__ import annotations

import inspect
from typing import Any, cast

from torch import nn

from nlft.errors import BaseModelError

ATTENTION_ARGUMENTS = {
    "attention_mask",
    "past_key_values",
    "layer_past",
    "position_embeddings",
    "cache_params",
    "alibi",
}
"""Arguments by which a module that mixes tokens gives itself away."""


def root_of(model: Any) -> Any:
    """The causal language model itself, out of what PEFT, accelerate or torch.compile put around it."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The text decoder's list of layers and its full name.

    A vision tower may hold a list of the same length, so the search starts at the decoder.
    """
    depth = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return next(name for name, other in model.named_modules() if other is module), module
    raise BaseModelError(
        f"No list of {depth} decoder layers was found in {type(model).__name__}.",
        "nlft needs a decoder-only language model.",
    )


def find_blocks(model: Any) -> list[str]:
    """Full names of the MLP blocks of the text decoder, in layer order.

    Found by structure: of a layer's direct children, the one with the most weights among those that hold at
    least two matrices and whose `forward` takes nothing that mixes tokens (mask, cache, positions). A layer without
    one (OPT's) may hold the two maps of an MLP themselves; then the second is named, and `block_input` knows the
    first.

    Raises:
        BaseModelError: a layer has neither.
    """
    prefix, layers = decoder_layers(model)
    width = model.config.get_text_config().hidden_size
    names = []
    for index, layer in enumerate(layers):
        children = {name: below_adapters(child) for name, child in layer.named_children()}
        sizes = {
            name: sum(p.numel() for p in child.parameters())
            for name, child in children.items()
            if sum(p.ndim >= 2 for p in child.parameters()) >= 2
            and not ATTENTION_ARGUMENTS & set(inspect.signature(child.forward).parameters)
        }
        maps = {name: map_widths(child) for name, child in children.items() if is_map(child)}
        last = [name for name, (into, out) in maps.items() if out == width and (width, into) in maps.values()]
        if not sizes and len(last) != 1:
            raise BaseModelError(
                f"Layer {index} ({type(layer).__name__}) has no MLP block of its own that a memory can stand beside.",
                "Name the modules by `target_modules`, or use another base.",
            )
        names.append(f"{prefix}.{index}.{max(sizes, key=lambda name: sizes[name]) if sizes else last[0]}")
    return names


def block_input(model: Any, name: str) -> str:
    """Name of the module whose input [..., D] is that of a block: the block, or the map in front of a second map."""
    module, width = below_adapters(model.get_submodule(name)), model.config.get_text_config().hidden_size
    if not is_map(module) or map_widths(module)[0] == width:
        return name
    parent = name.rpartition(".")[0]
    beside = {one: below_adapters(child) for one, child in model.get_submodule(parent).named_children()}
    wanted = (width, map_widths(module)[0])
    first = [one for one, child in beside.items() if is_map(child) and map_widths(child) == wanted]
    return f"{parent}.{first[0]}" if first else name


def below_adapters(module: nn.Module) -> nn.Module:
    """What adapters stand around."""
    while "base_layer" in module._modules:
        module = cast(nn.Module, module.base_layer)
    return module


def is_map(module: nn.Module) -> bool:
    """Whether a module is one linear map, quantised or not, or GPT-2's `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, (nn.Linear, Conv1D))


def map_widths(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear map; `Conv1D` keeps its weight transposed."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    return int(module.weight.shape[0]), int(module.weight.shape[1])
