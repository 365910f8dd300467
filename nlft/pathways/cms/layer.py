"""The levels of an adapter beside one MLP block, or beside the last linear map of one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn
from transformers.pytorch_utils import Conv1D

from nlft.anatomy import map_widths
from nlft.pathways.block import NO_MERGE, PathwayLayer
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.cms.levels import Delta, Levels
from nlft.pathways.cms.online import OnlineLevels
from nlft.pathways.gate import PrototypeGate
from nlft.pathways.state import StateKeeper

KEEP = "Keep the adapter beside the base, or call `unload()` to get the base back."
NO_MERGE_OF_GATED = (
    f"A change behind a gate depends on what was read, so it cannot be merged into the base's weights. {KEEP}"
)
NO_MERGE_INTO_QUANTISED = (
    "The base is quantised: rounding would take away most of a change that is merged into such weights. "
    f"Load the base unquantised and merge there. {KEEP}"
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
    weight_before: torch.Tensor | None = None
    """Of the last linear map, while something is merged into it."""

    def make_core(self, config: CmsPeftConfig) -> CmsCore:  # pyright: ignore
        """The levels that the config describes."""
        if config.init == "pretrained":
            return CmsCore(*map_widths(self.base_layer), config)
        return CmsCore(self.width, self.width, config)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Adds the changes of pretrained maps to the weight, summed in float32 (or float64) and rounded once.

        The weight as it was is kept, so that `unmerge` gives it back bit for bit.

        Args:
            safe_merge: refuse a weight that is not finite.
            adapter_names: of the adapters to merge; the active ones when None.

        Raises:
            NotImplementedError: an adapter is not linear, or the weight is quantised.
            ValueError: the merged weight is not finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if name in self.cores]
        cores = [cast(CmsCore, self.cores[name]) for name in names]
        check_mergeable([core.config for core in cores], [self])
        if not cores:
            return
        target: Any = self.get_base_layer()
        weight: torch.Tensor = target.weight.data
        merged = weight
        for part in (cast(Delta, part) for core in cores for part in core.parts):
            change = part.change()
            merged = merged + (change.T if isinstance(target, Conv1D) else change)
        merged = merged.to(weight.dtype)
        if safe_merge and not bool(torch.isfinite(merged).all()):
            raise ValueError(f"NaNs detected in the merged weights. The adapters {names} seem to be broken.")
        if self.weight_before is None:
            self.weight_before = weight
        target.weight.data = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Puts the weight back that was there before anything was merged."""
        if self.weight_before is None:
            return
        target: Any = self.get_base_layer()
        target.weight.data = self.weight_before.to(target.weight)
        self.weight_before = None
        self.merged_adapters.clear()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """A merged weight speaks for itself; switched off, it is unmerged, as in all of PEFT."""
        if self.merged and self.disable_adapters:
            self.unmerge()
        return self.base_layer(*args, **kwargs) if self.merged else super().forward(*args, **kwargs)


def check_mergeable(configs: Iterable[CmsPeftConfig], layers: Iterable[CmsLayer]) -> None:
    """Refuses what no weight can say.

    Raises:
        NotImplementedError: with the reason.
    """
    for config in configs:
        if config.init != "pretrained":
            raise NotImplementedError(NO_MERGE)
        if config.gate_layer is not None:
            raise NotImplementedError(NO_MERGE_OF_GATED)
    for layer in layers:
        weight = getattr(layer.get_base_layer(), "weight", None)
        if weight is not None and not weight.is_floating_point():
            raise NotImplementedError(NO_MERGE_INTO_QUANTISED)
