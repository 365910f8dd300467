"""The PEFT tuner of Hope, and its parts by level."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from nlft.anatomy import find_blocks
from nlft.pathways.block import PathwayModel, chosen_blocks, cores_of
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.hope.layer import HopeCore, HopeLayer


class HopeModel(PathwayModel):
    """Puts memories of sequences beside MLP blocks."""

    prefix = "nlft_"
    tuner_layer_cls = HopeLayer

    @classmethod
    def keeps_state(cls, config: Any) -> bool:
        """A sequence always has a state."""
        return True

    def default_targets(self, peft_config: Any) -> set[str]:
        """The blocks of the chosen layers; of the last quarter of the layers, at least one, when none is chosen."""
        blocks = find_blocks(self.model)
        layers = peft_config.layers_to_transform
        if layers is None:
            layers = list(range(len(blocks) - max(1, len(blocks) // 4), len(blocks)))
        return chosen_blocks(blocks, layers)


def hope_cores(model: Any, adapter: str = "default") -> dict[str, HopeCore]:
    """The memories of one adapter by block."""
    return cores_of(model, HopeLayer, adapter)


def levels_of(model: nn.Module, adapter: str = "default") -> list[dict[str, nn.Parameter]]:
    """What is trained of every level behind the memories, by the names that `named_parameters` gives, fastest first."""
    config = cast(HopePeftConfig, cast(Any, model).peft_config[adapter])
    found: list[dict[str, nn.Parameter]] = [{} for _ in config.periods]
    for name, module in model.named_modules():
        if isinstance(module, HopeLayer) and adapter in module.cores:
            levels = cast(HopeCore, module.cores[adapter]).levels
            for level, names in ({} if levels is None else levels.by_level()).items():
                prefix = f"{name}.{HopeLayer.adapter_layer_names[0]}.{adapter}.levels"
                found[level] |= {f"{prefix}.{one}": getattr(levels, one) for one in names}
    return found
