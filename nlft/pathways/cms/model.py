"""The PEFT tuner of a continuum memory system, and what a method does with all of its layers at once."""

from __future__ import annotations

from copy import copy
from typing import Any, cast

import torch
from torch import nn

from nlft.anatomy import decoder_layers, find_blocks, is_map, map_widths
from nlft.errors import NlftError
from nlft.pathways.block import PathwayModel, chosen_blocks, cores_of
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.cms.layer import CmsCore, CmsLayer, check_mergeable
from nlft.pathways.gate import check_behind_gate, layer_behind_gate


class CmsModel(PathwayModel):
    """Puts levels beside MLP blocks, or low-rank changes beside their last linear maps."""

    prefix = "nlft_"
    tuner_layer_cls = CmsLayer

    @classmethod
    def keeps_state(cls, config: CmsPeftConfig) -> bool:
        """With updates at test time a sequence has a state."""
        return config.online_chunk is not None

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        others = {one.init for one in cast("dict[str, CmsPeftConfig]", self.peft_config).values()} - {peft_config.init}
        if others:
            raise NlftError(
                f"init: an adapter with `init: {others.pop()}` stands on the model, and beside it one with `init:"
                f" {peft_config.init}` could not be saved under the base's names.",
                "Use one init for all adapters of a model.",
            )
        if peft_config.target_modules is not None and peft_config.gate_layer is not None:
            # Names such as `mlp` are those of early layers too, which the gate cannot serve.
            peft_config.layers_to_transform = self.layers(peft_config)
        return super()._prepare_adapter_config(peft_config, model_config)

    def layers(self, config: CmsPeftConfig) -> list[int]:
        """Indices of the layers with a level: those named, else all behind the gate, else all.

        Raises:
            NlftError: a layer lies in front of the gate or is none of the base, or there are fewer than levels.
        """
        layers = config.layers_to_transform
        layers = [layers] if isinstance(layers, int) else layers
        if config.gate_layer is not None:
            layer_behind_gate(self.model, config.gate_layer)  # says so if it does not exist
            check_behind_gate(layers, config.gate_layer)
        layers = sorted(
            set(range(config.gate_layer or 0, len(decoder_layers(self.model)[1])) if layers is None else layers)
        )
        if config.init == "pretrained" and len(layers) < len(config.periods):
            raise NlftError(
                f"periods: there are {len(config.periods)} levels for {len(layers)} layers, and with `init: pretrained`"
                " a layer belongs to one level.",
                "Name more layers, or fewer periods.",
            )
        return layers

    def default_targets(self, peft_config: Any) -> set[str]:
        """The blocks of the chosen layers, or their last linear maps."""
        names = chosen_blocks(find_blocks(self.model), self.layers(peft_config))
        if peft_config.init == "zero":
            return names
        width = self.model.config.get_text_config().hidden_size
        return {last_map(self.model.get_submodule(name), name, width) for name in sorted(names)}

    @classmethod
    def adds_to_maps(cls, config: CmsPeftConfig) -> bool:
        """With `init: pretrained` a level changes a map."""
        return config.init == "pretrained"

    def level_of(self, config: CmsPeftConfig, module: str) -> int:
        """The level to which a module belongs with `init: pretrained`: neighbouring layers share one, fastest first.

        Raises:
            NlftError: the module lies in none of the chosen layers.
        """
        prefix, layers = decoder_layers(self.model)[0] + ".", self.layers(config)
        index = module.removeprefix(prefix).partition(".")[0]
        if not module.startswith(prefix) or int(index) not in layers:
            raise NlftError(
                f"target_modules: {module} lies in none of the layers {layers}, so it has no level.",
                "Leave target_modules away, or name the layers.",
            )
        return layers.index(int(index)) * len(config.periods) // len(layers)

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, peft_config: Any, adapter_name: str, target: nn.Module, *names: Any, current_key: str, **optional: Any
    ) -> None:
        if peft_config.init == "pretrained":
            peft_config = copy(peft_config)
            peft_config.level = self.level_of(peft_config, current_key)
        super()._create_and_replace(peft_config, adapter_name, target, *names, current_key=current_key, **optional)

    def _check_merge_allowed(self) -> None:
        """Before the first module is touched; which adapters are meant is only known to the modules."""
        configs = cast("dict[str, CmsPeftConfig]", self.peft_config).values()
        linear = [one for one in configs if one.init == "pretrained" and one.gate_layer is None]
        layers = [one for one in self.model.modules() if isinstance(one, CmsLayer)]
        check_mergeable(linear or configs, layers)


def last_map(block: nn.Module, name: str, width: int) -> str:
    """Full name of the last linear map (`nn.Linear`, a quantised one, or GPT-2's `Conv1D`) of an MLP block.

    Args:
        name: of the block.
        width: D, which the map must give.

    Raises:
        NlftError: it has none, or experts, each of which sees only its own tokens.
    """
    hint = "Use `init: zero`, or name other layers."
    # Another adapter may stand there.
    parts = [(own, one) for own, one in block.named_modules() if ".nlft_" not in f".{own}"]
    if any(isinstance(one, nn.ModuleList) for _, one in parts) or any(p.ndim > 2 for p in block.parameters()):
        raise NlftError(f"init: {name} ({type(block).__name__}) is a mixture of experts, which has no last map.", hint)
    maps = [(own, one) for own, one in parts if is_map(one)]
    if not maps or map_widths(maps[-1][1])[1] != width:
        raise NlftError(f"init: {name} ({type(block).__name__}) has no last linear map of {width} outputs.", hint)
    return f"{name}.{maps[-1][0]}".removesuffix(".").removesuffix(".base_layer")


def cms_cores(model: Any, adapter: str = "default") -> dict[str, CmsCore]:
    """The levels of one adapter by module."""
    return cores_of(model, CmsLayer, adapter)


def levels_of(model: nn.Module, adapter: str = "default") -> list[dict[str, nn.Parameter]]:
    """What is trained of every level, by the names that `named_parameters` gives; fastest level first.

    Tensors of two levels stand at the same places of their lists if both stand at the same blocks.
    """
    found: dict[int, dict[str, nn.Parameter]] = {}
    count = 0
    for name, module in model.named_modules():
        if not isinstance(module, CmsLayer) or adapter not in module.cores:
            continue
        core = cast(CmsCore, module.cores[adapter])
        count = len(core.config.periods)
        for number, part in enumerate(core.parts):
            for level, names in part.by_level().items():
                for one in names:
                    tensor = getattr(part, one)
                    if isinstance(tensor, nn.Parameter):
                        key = f"{name}.{CmsLayer.adapter_layer_names[0]}.{adapter}.tasks.{number}.{one}"
                        found.setdefault(level, {})[key] = tensor
    return [found.get(level, {}) for level in range(count)]


def begin_task(model: Any, name: str, seed: int, adapter: str = "default") -> None:
    """Gives every module levels for a new task, which are all that is trained.

    Raises:
        NlftError: there is no gate, the task is known, or another one is still open.
    """
    config: CmsPeftConfig = model.peft_config[adapter]
    check_apart(config)
    config.open_task(name, config.r)
    generator = torch.Generator().manual_seed(seed)
    device = model.get_input_embeddings().weight.device
    for core in cms_cores(model, adapter).values():
        core.begin_task(generator, device)


def end_task(model: Any, adapter: str = "default") -> None:
    """Freezes the levels of the open task; the function that the model computes stays bit-equal.

    Raises:
        NlftError: there is no gate, or no task is open.
    """
    config: CmsPeftConfig = model.peft_config[adapter]
    check_apart(config)
    config.close_task()
    for core in cms_cores(model, adapter).values():
        core.end_task()


def check_apart(config: CmsPeftConfig) -> None:
    """Refuses to begin or end a task where tasks have no parts.

    Raises:
        NlftError: there is no gate.
    """
    if not config.keeps_tasks_apart:
        raise NlftError(
            "Without a gate the levels are shared by all tasks, so none begins or ends.",
            "Train them as they are, or name a gate_layer.",
        )
