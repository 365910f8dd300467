"""Methods, and what they have in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nlft.config.optimizer import OptimizerConfig
from nlft.config.section import Section, Share


class ReplayConfig(Section):
    """Replay as a regulariser: old rows are trained on beside the new ones."""

    source: Literal["background", "tasks", "self"] = "background"
    """Rows of the background, of earlier tasks, or written by the base itself before the first task (`self`)."""
    ratio: float = Field(default=0.5, gt=0)
    """Replayed rows for each new row."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the replay loss (nats per token) beside the task's."""
    keep: Share | None = Field(default=None, gt=0, le=1)
    """`source: tasks`: share of each earlier task's rows that is kept, such as `1%`; all when empty."""
    rows: int | None = Field(default=None, ge=1)
    """`source: self`: rows that the base writes; 256 when empty."""
    length: int | None = Field(default=None, ge=2)
    """`source: self`: longest of them in tokens; 64 when empty."""

    @model_validator(mode="after")
    def options_belong(self) -> ReplayConfig:
        """An option that its source does not use would be a mistake."""
        if self.keep is not None and self.source != "tasks":
            raise ValueError("`keep` belongs to `source: tasks`")
        if (self.rows is not None or self.length is not None) and self.source != "self":
            raise ValueError("`rows` and `length` belong to `source: self`")
        return self


class L2spConfig(Section):
    """L2-SP: what is trained is drawn towards where it started."""

    weight: float = Field(gt=0)
    """Half of it times the squared distance, summed over all parameters, is added to the loss (nats per token)."""

    @model_validator(mode="before")
    @classmethod
    def weight_alone(cls, value: Any) -> Any:
        """`l2sp: 0.01` is short for `l2sp: {weight: 0.01}`."""
        return value if isinstance(value, dict) else {"weight": value}


class EwcConfig(Section):
    """Elastic weight consolidation: weights that matter for the past are held the more firmly."""

    weight: float = Field(gt=0)
    """Of the penalty; 1 adds what the past is expected to lose, in nats per token."""
    of: list[Literal["background", "tasks"]] = Field(default=["tasks"], min_length=1)
    """The past: finished `tasks`, the `background` (held from the first task on), or both."""
    rows: int = Field(default=200, ge=1)
    """Rows of each that the Fisher information is measured on, at most."""

    @model_validator(mode="before")
    @classmethod
    def of_alone(cls, value: Any) -> Any:
        """`of: tasks` is short for `of: [tasks]`."""
        return {**value, "of": [value["of"]]} if isinstance(value, dict) and isinstance(value.get("of"), str) else value


Steps = Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
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
    steps: Steps | None = None
    """Optimiser steps a task; a list is a sweep, crossed with the learning rates; `train.steps` when empty."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What moves the parameters."""
    replay: ReplayConfig | None = None
    """Train on old rows too."""
    l2sp: L2spConfig | None = None
    """Draw what is trained towards its start."""
    ewc: EwcConfig | None = None
    """Hold what matters for the past; for methods whose tasks share what is trained."""

    @property
    def reads_background(self) -> bool:
        """Whether replay or a penalty needs general text."""
        return (self.replay is not None and self.replay.source == "background") or (
            self.ewc is not None and "background" in self.ewc.of
        )

    @property
    def lrs(self) -> list[float]:
        """The learning rates of the sweep, one or several."""
        return list(self.lr) if isinstance(self.lr, list) else [self.lr]

    def step_counts(self, default: int) -> list[int]:
        """The steps a task of the sweep, one or several; `default` is `train.steps`."""
        if self.steps is None:
            return [default]
        return list(self.steps) if isinstance(self.steps, list) else [self.steps]


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
    tasks: Literal["shared", "apart", "merged", "orthogonal"] = "shared"
    """One adapter for all tasks (`shared`); one for each, with the task told when it is scored (`apart`: a bound); one
    that is merged into the weights when its task ends (`merged`); or one for each, all at work, each kept
    `orthogonal` to those before it (O-LoRA)."""
    orthogonality: float | None = Field(default=None, ge=0)
    """`tasks: orthogonal`: weight of the overlap with earlier tasks' adapters; 0.5 when empty."""

    @property
    def is_corda(self) -> bool:
        """Whether the adapter begins with the directions that general text uses least (CorDA)."""
        return self.peft.get("init_lora_weights") == "corda"

    @property
    def reads_background(self) -> bool:
        """Whether replay, a penalty or the initial values need general text."""
        return super().reads_background or self.is_corda

    @model_validator(mode="after")
    def options_fit(self) -> LoraConfig:
        """What cannot be had together."""
        if self.tasks != "shared" and self.gate is not None:
            raise ValueError("`tasks` is for adapters without a gate; behind a gate every task has maps of its own")
        if self.tasks != "shared" and self.peft_type not in (("LORA", "OSF") if self.tasks == "merged" else ("LORA",)):
            raise ValueError(f"`tasks: {self.tasks}` is made for LORA, not for {self.peft_type}")
        if self.tasks != "shared" and isinstance(self.peft.get("init_lora_weights", True), str):
            raise ValueError(f"`tasks: {self.tasks}` begins every adapter at no change; leave out `init_lora_weights`")
        if self.orthogonality is not None and self.tasks != "orthogonal":
            raise ValueError("`orthogonality` belongs to `tasks: orthogonal`")
        return self


class UntrainedFields(Section):
    """What every method has that trains nothing."""

    lr: float = Field(default=0.0, ge=0, le=0)
    """Nothing is trained."""
    steps: int = Field(default=0, ge=0, le=0)
    """Nothing is trained."""

    @property
    def lrs(self) -> list[float]:
        """One run, which is called 0."""
        return [self.lr]

    def step_counts(self, default: int) -> list[int]:
        """None, whatever `train.steps` says."""
        return [self.steps]


class FewShotConfig(UntrainedFields):
    """Examples in the prompt: nothing is learned but what to put in front of a question."""

    kind: Literal["few_shot"]
    """Examples in the prompt."""
    shots: int = Field(default=4, ge=1)
    """Examples of each task so far."""


class ClassMeansConfig(UntrainedFields):
    """Classes by the nearest mean of the base's hidden states; columns without choices are left to the base."""

    kind: Literal["class_means"]
    """Nearest class mean."""
    states: Literal["mean", "last"] = "mean"
    """The prompt's last hidden states: their mean, or that of its last token."""
