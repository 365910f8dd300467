"""Methods, and what they have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nlft.config.optimizer import OptimizerConfig
from nlft.config.section import Section, Share


class ReplayConfig(Section):
    """Replay as a regulariser: old rows are trained on beside the new ones."""

    source: Literal["background", "tasks"] = "background"
    """Rows of the background, or of earlier tasks."""
    ratio: float = Field(default=0.5, gt=0)
    """Replayed rows for each new row."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the replay loss (nats per token) beside the task's."""


LearningRates = Annotated[float, Field(gt=0)] | Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]


class RetentionConfig(Section):
    """How much of what the base does on general text a run may change; sets the calibration."""

    budget: Share = Field(default=0.01, gt=0, lt=1)
    """Share for all tasks of a run together, such as `1%`; a held-out half of the background vouches for it."""
    of: Literal["rows", "tokens", "predictions"] = "rows"
    """Share of what: `rows` in which any token reads the memory, `tokens` that read it (both set before training),
    or right next-token `predictions` that may be lost (set after training)."""

    @model_validator(mode="before")
    @classmethod
    def budget_alone(cls, value: Any) -> Any:
        """`retention: 1%` is short for `retention: {budget: 1%}`."""
        return value if isinstance(value, dict) else {"budget": value}


class GateConfig(Section):
    """A gate of prototypes: a task's part is off until a token of the row looks like the task."""

    kind: Literal["prototype"] = "prototype"
    """How the gate knows a task: by prototypes of its hidden states."""
    layer: int | None = Field(default=None, ge=0)
    """The gate reads the hidden states in front of this layer, and all that it gates lies behind; a quarter of the
    depth when empty."""
    slots: int = Field(default=512, ge=1)
    """Keys of each task."""
    decay: float = Field(default=1.0, ge=0, le=1)
    """How much of an open gate is left one token later: 1 keeps it open for the rest of the row, 0 opens it for a
    token alone."""

    def place(self, depth: int) -> int:
        """The layer whose input the gate reads, in a base of so many layers."""
        return max(1, depth // 4) if self.layer is None else self.layer

    @model_validator(mode="before")
    @classmethod
    def kind_alone(cls, value: Any) -> Any:
        """`gate: prototype` is short for `gate: {kind: prototype}`."""
        return {"kind": value} if isinstance(value, str) else value


class MethodFields(Section):
    """What every method has."""

    lr: LearningRates
    """Peak learning rate; a list is a sweep (for `compare`)."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps a task; `train.steps` when empty."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What moves the parameters."""
    replay: ReplayConfig | None = None
    """Train on old rows too."""

    @property
    def lrs(self) -> list[float]:
        """The learning rates of the sweep, one or several."""
        return list(self.lr) if isinstance(self.lr, list) else [self.lr]


class FullConfig(MethodFields):
    """Full finetuning: every weight of the base is trained."""

    kind: Literal["full"]
    """Full finetuning."""


class LoraConfig(MethodFields):
    """LoRA, or any other PEFT method by its own fields."""

    kind: Literal["lora"]
    """LoRA or another PEFT method."""
    peft_type: str = "LORA"
    """PEFT's name of the method."""
    peft: dict[str, Any] = Field(default_factory=lambda: {"r": 8, "target_modules": "all-linear"})
    """Fields of that method's PEFT config; behind a gate `r`, `lora_alpha` and `target_modules`."""
    layers: list[int] | None = None
    """Behind a gate: layers with low-rank maps; all behind the gate when empty."""
    gate: GateConfig | None = None
    """Gives every task low-rank maps of its own behind a gate (LORA only)."""
    retention: RetentionConfig | None = None
    """The gate's budget; 1 % of rows when empty."""
