"""The levels of an adapter beside one MLP block, or beside the last linear map of one."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from nlft.pathways.block import PathwayLayer
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.cms.levels import Delta, Levels
from nlft.pathways.cms.online import OnlineLevels
from nlft.pathways.gate import PrototypeGate
from nlft.pathways.gated_lora.layer import widths
from nlft.pathways.state import StateKeeper

NO_MERGE_OF_DELTAS = (
    "Changes of pretrained maps are linear, but merging them into the base's weights is not built. "
    "Keep the adapter beside the base, or call `unload()` to get the base back."
)


class CmsCore(nn.Module):
    """The levels of one adapter at one module: [..., D_in] to [..., D_out] float32.

    `tasks` holds one part that all tasks train; behind a gate a part for each task, multiplied by how far the gate is
    open for it, so exactly zero where it is shut.
    """

    def __init__(self, width_in: int, width_out: int, config: CmsPeftConfig) -> None:
        super().__init__()
        self.width_in, self.width_out, self.config = width_in, width_out, config
        self.gate: tuple[PrototypeGate] | None = None
        self.keeper: tuple[StateKeeper] | None = None
        self.block = ""
        self.tasks = nn.ModuleList()
        if config.keeps_tasks_apart:
            for name, r in config.tasks.items():
                self.tasks.append(self.make_part(r, trainable=name == config.active_task))
        else:
            self.tasks.append(self.make_part(config.r))

    def make_part(self, r: int, trainable: bool = True, generator: torch.Generator | None = None) -> Levels | Delta:
        """New levels, which add nothing yet."""
        config = self.config
        options: dict[str, Any] = dict(generator=generator, trainable=trainable, zero=config.init_weights)
        if config.init == "pretrained":
            return Delta(self.width_in, self.width_out, r, config.level, config.scale, **options)
        if config.online_chunk is not None:
            return OnlineLevels(self.width_in, r, len(config.periods), config.online_chunk, config.scale, **options)
        return Levels(self.width_in, r, len(config.periods), config.variant, config.scale, **options)

    def begin_task(self, generator: torch.Generator, device: torch.device) -> None:
        """Adds a part to train."""
        self.tasks.append(self.make_part(self.config.r, generator=generator).to(device))

    def end_task(self) -> None:
        """Freezes the newest part."""
        self.parts[-1].freeze()

    @property
    def parts(self) -> list[Levels | Delta]:
        """Parts by task, in the order of learning; one without a gate."""
        return cast("list[Levels | Delta]", list(self.tasks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over parts of what their levels add."""
        added: torch.Tensor | None = None
        for number, part in enumerate(self.parts):
            one = part(x)
            if isinstance(part, OnlineLevels) and self.keeper is not None:
                one = one + part.recall(x, self.keeper[0], f"{self.block}.{number}")
            if self.gate is not None:
                one = one * self.gate[0].values(number, x)
            added = one if added is None else added + one
        return x.new_zeros(*x.shape[:-1], self.width_out, dtype=torch.float32) if added is None else added


class CmsLayer(PathwayLayer):
    """An MLP block with levels beside it, or the last linear map of one with a low-rank change."""

    adapter_layer_names = ("nlft_cms_core",)

    def make_core(self, config: CmsPeftConfig) -> CmsCore:  # pyright: ignore
        """The levels that the config describes."""
        if config.init == "pretrained":
            return CmsCore(*widths(self.base_layer), config)
        return CmsCore(self.width, self.width, config)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuses."""
        if any(core.config.init == "pretrained" for core in self.cores.values()):  # pyright: ignore
            raise NotImplementedError(NO_MERGE_OF_DELTAS)
        super().merge(safe_merge, adapter_names)
