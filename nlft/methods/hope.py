"""Hope: memories that learn from the sequence they read, and levels behind them, trained by every task in turn."""

from __future__ import annotations

import torch
from peft import TaskType, get_peft_model
from torch import nn

import nlft
from nlft.base import FrozenBase
from nlft.calibrate import calibrate_base
from nlft.config import HopeConfig
from nlft.data.batch import in_batches
from nlft.methods.calibration import CALIBRATION_BATCH
from nlft.methods.cms import level_groups
from nlft.methods.protocol import TaskContext
from nlft.methods.trainable import PeftTrainable
from nlft.optim.build import build_optimizer
from nlft.optim.multi_timescale import MultiTimescale
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.hope.model import hope_cores, levels_of

FORMING_RATE = 0.1
"""Learning rate of what forms keys, values, rates and decays, as a part of the rate of what reads the memories: while
nothing useful is read, gradients there are noise, which at the full rate unmakes the whitened keys."""
CALIBRATION_ROWS = 1000
"""Rows of the first task, and of the background if there is one, whose states set the projections."""


class Hope(PeftTrainable):
    """One adapter, trained on every task in turn; each level moves at its period."""

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.config = config
        self.clock: MultiTimescale | None = None
        """The optimiser of the task that is trained, if there are levels."""
        self.seed = 0
        """Of the task that is trained."""
        self.peft_config = HopePeftConfig(
            task_type=TaskType.CAUSAL_LM,
            layers_to_transform=config.layers,
            r=config.rank,
            nlft_version=nlft.__version__,
            **config.model_dump(include=set(HopePeftConfig.__dataclass_fields__)),
        )

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts the memories, drawn from `seed`; the logits stay bit-equal to the base's."""
        self.peft_config.base_fingerprint = base.fingerprint
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return get_peft_model(base.model, self.peft_config).eval()

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Before the first task sets the projections of the memories by the statistics of what the model will read."""
        self.seed = context.seed
        rows = [*context.train[:CALIBRATION_ROWS], *context.background[:CALIBRATION_ROWS]]
        if context.number == 1 and rows:  # later tasks find the projections trained
            cores = hope_cores(model)
            statistics = calibrate_base(model, list(cores), in_batches(rows, CALIBRATION_BATCH, context.pad_id))
            generator = torch.Generator().manual_seed(context.seed)
            for block, (mean, whitener) in statistics.items():
                cores[block].whiten(mean, whitener, generator)
        super().begin_task(model, context)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """The recipe's optimiser, with groups for what reads the memories, for what forms them, and for each level."""
        groups = level_groups(levels_of(model), self.config, self.weight_decay, self.seed)
        grouped = {id(one) for group in groups for one in group["params"]}
        reading = [core.output.weight for core in hope_cores(model).values()]
        grouped |= {id(one) for one in reading}
        forming = [one for one in model.parameters() if one.requires_grad and id(one) not in grouped]
        every = [{"params": reading}, {"params": forming, "lr_scale": FORMING_RATE}, *groups]
        inner = build_optimizer(self.optimizer_config, every, lr, self.weight_decay, model)
        self.clock = MultiTimescale(inner) if groups else None
        return self.clock or inner

    def end_task(self, model: nn.Module) -> None:
        """Moves levels by the gradients that wait for a boundary, unless they are dropped."""
        if self.clock is not None and self.config.at_end == "flush":
            self.clock.flush()
        self.clock = None
        super().end_task(model)
