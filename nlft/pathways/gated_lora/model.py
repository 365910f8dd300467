"""The PEFT tuner of gated LoRA, and what a method does with all of its layers at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from nlft.anatomy import decoder_layers, find_blocks, is_map
from nlft.errors import NlftError
from nlft.pathways.block import PathwayModel, chosen_blocks, cores_of
from nlft.pathways.gate import check_behind_gate, layer_behind_gate
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.gated_lora.layer import GatedLoraLayer, GatedMaps


class GatedLoraModel(PathwayModel):
    """Puts gated low-rank maps beside every linear map behind the gate."""

    prefix = "nlft_"
    tuner_layer_cls = GatedLoraLayer

    @classmethod
    def adds_to_maps(cls, config: Any) -> bool:
        """Always."""
        return True

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        if peft_config.target_modules is not None and peft_config.layers_to_transform is None:
            # Names such as `q_proj` are those of early layers too, which the gate cannot serve.
            depth = len(decoder_layers(self.model)[1])
            peft_config.layers_to_transform = list(range(peft_config.gate_layer, depth))
        return super()._prepare_adapter_config(peft_config, model_config)

    def default_targets(self, peft_config: Any) -> set[str]:
        """The linear maps of the chosen layers; of all layers behind the gate when none is chosen.

        Raises:
            NlftError: a chosen layer lies in front of the gate.
        """
        first = peft_config.gate_layer
        layer_behind_gate(self.model, first)  # says so if it does not exist
        layers = peft_config.layers_to_transform
        layers = [layers] if isinstance(layers, int) else layers
        check_behind_gate(layers, first)
        prefix, every = decoder_layers(self.model)
        if layers is None:
            layers = list(range(first, len(every)))
        chosen_blocks(find_blocks(self.model), layers)  # says so if a layer does not exist
        names = {
            f"{prefix}.{index}.{name}".removesuffix(".base_layer")  # another adapter may stand there
            for index in layers
            for name, module in every[index].named_modules()
            if is_map(module) and sees_every_token(every[index], name)
        }
        if not names:
            raise NlftError("The base has no linear map that sees every token.", "Name modules by target_modules.")
        return names


def sees_every_token(layer: nn.Module, name: str) -> bool:
    """Whether a module is no expert: experts, in a list of modules below a layer, see only their own tokens."""
    parts = name.split(".")
    parents = [layer.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]
    return not any(isinstance(parent, nn.ModuleList) for parent in parents)


def gated_maps(model: Any, adapter: str) -> dict[str, GatedMaps]:
    """The maps of one adapter by module."""
    return cores_of(model, GatedLoraLayer, adapter)


def begin_task(model: Any, name: str, seed: int, adapter: str = "default") -> None:
    """Gives every module a low-rank map for a new task, which is all that is trained.

    Raises:
        NlftError: the task is known, or another one is still open.
    """
    config: GatedLoraPeftConfig = model.peft_config[adapter]
    config.open_task(name, config.r)
    generator = torch.Generator().manual_seed(seed)
    device = model.get_input_embeddings().weight.device
    for maps in gated_maps(model, adapter).values():
        maps.begin_task(generator, device)


def end_task(model: Any, adapter: str = "default") -> None:
    """Freezes the open task; the function that the model computes stays bit-equal.

    Raises:
        NlftError: no task is open.
    """
    model.peft_config[adapter].close_task()
    for maps in gated_maps(model, adapter).values():
        maps.end_task()
