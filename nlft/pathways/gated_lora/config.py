"""PEFT config of gated LoRA."""

from __future__ import annotations

from dataclasses import dataclass

from nlft.errors import NlftError
from nlft.pathways.registry import peft_type
from nlft.pathways.task import TaskPeftConfig


@dataclass
class GatedLoraPeftConfig(TaskPeftConfig):
    """Where low-rank maps stand and how wide they are.

    Args:
        r: rank of a task's part of every module.
        lora_alpha: the low-rank map is scaled by `lora_alpha / r`.
    """

    r: int = 8
    lora_alpha: float = 16.0
    gate_layer: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("nlft_gated_lora")
        if self.r < 1:
            raise NlftError(f"r: {self.r} is no rank.", "Use 1 or more.")
        if self.gate_layer is None:
            raise NlftError("gate_layer: gated LoRA needs a gate.", "Name a layer, or use PEFT's LORA.")
