"""A continuum memory system: levels that are trained at different frequencies, shared or behind a gate."""

from __future__ import annotations

from typing import Any

import torch
from peft import TaskType, get_peft_model
from torch import nn

import nlft
from nlft.base import FrozenBase
from nlft.config import CmsConfig
from nlft.config.pathway import LevelFields
from nlft.methods.apart import TasksApart
from nlft.methods.calibration import begin_gated_task, gate_fields
from nlft.methods.protocol import TaskContext
from nlft.optim.build import build_optimizer
from nlft.optim.multi_timescale import MultiTimescale
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.cms.model import begin_task, end_task, levels_of

Levels = list[dict[str, nn.Parameter]]


class Cms(TasksApart):
    """Every task trains all levels, each at its period; behind a gate every task has levels of its own."""

    def __init__(self, config: CmsConfig) -> None:
        super().__init__(config)
        self.config = config
        self.clock: MultiTimescale | None = None
        """The optimiser of the task that is trained."""
        self.seed = 0
        """Of the task that is trained."""

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts the levels, drawn from `seed`; behind a gate none yet. The logits stay bit-equal to the base's."""
        config = self.config
        peft_config = CmsPeftConfig(
            task_type=TaskType.CAUSAL_LM,
            layers_to_transform=config.layers,
            r=config.rank,
            base_fingerprint=base.fingerprint,
            nlft_version=nlft.__version__,
            **config.model_dump(include=set(CmsPeftConfig.__dataclass_fields__)),
            **gate_fields(config.gate, base),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(base.model, peft_config).eval()

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Behind a gate calibrates it for the task and adds levels to train."""
        self.seed = context.seed
        if self.config.gate is None:
            super().begin_task(model, context)
            return
        super().begin_task(model, begin_gated_task(model, self.config, context, begin_task))

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The recipe's optimiser with a group of parameters for each level, which moves at the level's period."""
        groups = level_groups(levels_of(model), self.config, self.weight_decay, self.seed)
        inner = build_optimizer(self.optimizer_config, groups, lr, self.weight_decay, model)
        nested = self.config.variant == "nested"
        self.clock = MultiTimescale(inner, consolidation=self.config.consolidation, reinitialise=nested)
        return self.clock

    def end_task(self, model: nn.Module) -> None:
        """Moves levels by the gradients that wait for a boundary, unless they are dropped; freezes gated levels."""
        if self.clock is not None and self.config.at_end == "flush":
            self.clock.flush()
        self.clock = None
        super().end_task(model)
        if self.config.gate is not None:
            end_task(model)


def level_groups(levels: Levels, config: LevelFields, weight_decay: float, seed: int) -> list[dict[str, Any]]:
    """Groups of parameters for an optimiser, fastest level first; empty levels are left out.

    A level of period P decays P times as much at each of its moves, so that all levels decay alike over time.

    Args:
        levels: of `levels_of`.
        weight_decay: for each optimiser step.
        seed: deals the periods with `slowness: shuffled`.
    """
    if config.slowness == "shuffled":
        levels = dealt(levels, seed)
    by_rate = config.slowness == "rate"
    return [
        {
            "params": list(tensors.values()),
            "level": level,
            "period": 1 if by_rate else period,
            "lr_scale": 1 / period if by_rate else 1.0,
            "weight_decay": weight_decay * period,
        }
        for level, (tensors, period) in enumerate(zip(levels, config.periods, strict=True))
        if tensors
    ]


def dealt(levels: Levels, seed: int) -> Levels:
    """Levels dealt anew at every block; where a block has one level only, the blocks are dealt to the levels anew.

    Levels of one block are alike until they have been trained, so it is from one task to the next that this differs
    from leaving them as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks: dict[str, dict[int, dict[str, nn.Parameter]]] = {}
    for level, tensors in enumerate(levels):
        for name, tensor in tensors.items():
            blocks.setdefault(name.rpartition(".")[0], {}).setdefault(level, {})[name] = tensor
    found: Levels = [{} for _ in levels]
    whole = [next(iter(held)) for held in blocks.values() if len(held) == 1]
    places = torch.randperm(len(whole), generator=generator).tolist()
    for held in blocks.values():
        kept = list(held)
        order = (
            [whole[places.pop()]]
            if len(kept) == 1
            else [kept[place] for place in torch.randperm(len(kept), generator=generator).tolist()]
        )
        for level, tensors in zip(order, held.values(), strict=True):
            found[level].update(tensors)
    return found
