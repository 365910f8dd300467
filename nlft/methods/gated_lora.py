"""LoRA behind a gate: each task trains low-rank maps of its own, which are on where the gate knows the task."""

from __future__ import annotations

from peft import TaskType, get_peft_model
from torch import nn

import nlft
from nlft.base import FrozenBase
from nlft.config import LoraConfig
from nlft.errors import NlftError
from nlft.methods.apart import TasksApart
from nlft.methods.calibration import begin_gated_task, gate_fields
from nlft.methods.protocol import TaskContext
from nlft.pathways.gated_lora.config import GatedLoraPeftConfig
from nlft.pathways.gated_lora.model import begin_task, end_task

FIELDS = ("r", "lora_alpha", "target_modules")
"""Fields of LoRA's config that mean something behind a gate."""


class GatedLora(TasksApart):
    """A gate and low-rank maps are added when a task begins; the maps are frozen when it ends."""

    def __init__(self, config: LoraConfig) -> None:
        super().__init__(config)
        self.config = config
        odd = sorted(set(config.peft) - set(FIELDS))
        if odd or config.peft_type != "LORA":
            what = f"peft.{odd[0]}" if odd else f"peft_type {config.peft_type!r}"
            raise NlftError(f"{what} cannot be put behind a gate.", f"Use LORA with {', '.join(FIELDS)}.")

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts a gate and no maps yet; the logits stay bit-equal to the base's."""
        settings = dict(self.config.peft)
        if settings.get("target_modules") == "all-linear":
            settings["target_modules"] = None
        settings["lora_alpha"] = float(settings.get("lora_alpha", 2 * settings.get("r", 8)))
        peft_config = GatedLoraPeftConfig(
            task_type=TaskType.CAUSAL_LM,
            layers_to_transform=self.config.layers,
            base_fingerprint=base.fingerprint,
            nlft_version=nlft.__version__,
            **gate_fields(self.config.gate, base),
            **settings,
        )
        return get_peft_model(base.model, peft_config).eval()

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Calibrates the gate for the task and adds maps to train."""
        super().begin_task(model, begin_gated_task(model, self.config, context, begin_task))

    def end_task(self, model: nn.Module) -> None:
        """Freezes the task's maps."""
        super().end_task(model)
        end_task(model)
