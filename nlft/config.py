"""The recipe's schema. Field docstrings are the help text; nothing here imports torch.

A recipe is one YAML file. Unknown keys are errors; every error of a recipe is reported at once
(`recipes.py` adds the line and the nearest valid key).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$"
"""Names become columns of tables and parts of file names."""


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class BaseConfig(Section):
    """The frozen pretrained model."""

    model: str = "builtin:tiny"
    """`builtin:tiny`, a directory, or a Hub id."""
    revision: str | None = None
    """Hub revision (branch, tag or commit)."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the base weights; `auto` is bfloat16 where the device computes in it, else float32."""
    quantization: Literal["none", "4bit", "8bit"] = "none"
    """bitsandbytes quantisation of the base."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:0` …"""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave off unless you have read that code."""


class DataConfig(Section):
    """Rows from a file, a directory, a Hub dataset or the built-in world."""

    path: str
    """A JSONL, JSON, CSV or Parquet file, a directory of them, a Hub dataset id, or `builtin:world/…`."""
    split: str = "train"
    """Split of a Hub dataset."""
    name: str | None = None
    """Configuration name of a Hub dataset."""
    revision: str | None = None
    """Hub revision of the dataset."""
    format: Literal["auto", "completion", "messages", "label", "text"] = "auto"
    """Layout of a record; `auto` looks at the columns and says what it found."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Own column names, as `prompt: question` (nlft's name: the file's name)."""
    join: str = " "
    """Text between prompt and completion, unless white space is there already."""
    too_long: Literal["error", "truncate", "split"] = "error"
    """What to do with a row longer than the context: refuse, cut its end, or (plain text only) split it."""
    limit: int | None = Field(default=None, ge=1)
    """Keep this many rows, drawn with `sample_seed`; all rows when empty."""
    skip: int = Field(default=0, ge=0)
    """Leave out this many rows of the shuffled order first (to cut disjoint parts out of one file)."""
    sample_seed: int = 0
    """Seed of the shuffle behind `limit` and `skip`."""

    @model_validator(mode="before")
    @classmethod
    def path_alone(cls, value: Any) -> Any:
        """`train: file.jsonl` is short for `train: {path: file.jsonl}`."""
        return {"path": value} if isinstance(value, str) else value


class TaskConfig(Section):
    """One domain to learn."""

    name: str = Field(pattern=NAME)
    """Name in tables and figures."""
    train: DataConfig
    """Rows to train on."""
    test: DataConfig
    """Rows that are never trained on; wordings that were never trained on, if the domain has several."""
    seen: DataConfig | None = None
    """Rows in wordings that were trained on, scored apart."""
    metric: str = "exact_match"
    """`exact_match`, `f1`, `accuracy`, `nll`, or the path or Hub id of an `evaluate` metric."""


class ProbeConfig(Section):
    """Held-out knowledge of the base; never trained on."""

    name: str = Field(pattern=NAME)
    """Name in tables and figures."""
    data: DataConfig
    """Rows to score."""
    metric: str = "exact_match"
    """As for a task."""


class ReplayConfig(Section):
    """Replay as a regulariser: old rows are trained on beside the new ones."""

    source: Literal["background", "tasks"] = "background"
    """Rows of the background, or of earlier tasks."""
    ratio: float = Field(default=0.5, gt=0)
    """Replayed rows for each new row."""
    weight: float = Field(default=1.0, gt=0)
    """Weight of the replay loss (nats per token) beside the task's."""


LearningRates = Annotated[float, Field(gt=0)] | Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]


class MethodFields(Section):
    """What every method has."""

    lr: LearningRates
    """Peak learning rate; a list is a sweep (for `compare`)."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps a task; `train.steps` when empty."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
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
    """Fields of that method's PEFT config."""


class SparseMemoryConfig(MethodFields):
    """Sparse memory slots beside the MLP blocks of a frozen base."""

    kind: Literal["sparse_memory"]
    """Sparse memory slots."""
    addressing: Literal["prototype", "product_key"] = "prototype"
    """How a token finds its slots: prototypes of the task's states, or product keys."""
    layers: list[int] | None = None
    """Layers with a memory; all but the first when empty."""
    slots: int = Field(default=1500, ge=1)
    """Slots a task and layer that are trained."""
    margin: float = Field(default=0.0, ge=0, lt=1)
    """Prototype keys: added to every rejection threshold (cosine)."""
    kmeans_steps: int = Field(default=10, ge=0)
    """Iterations of spherical k-means behind the keys."""
    half_keys: int = Field(default=128, ge=2)
    """Product keys: keys in each half; the table has its square in slots."""
    heads: int = Field(default=4, ge=1)
    """Product keys: independent look-ups a token."""
    topk: int = Field(default=16, ge=1)
    """Product keys: slots read a head."""
    temperature: float = Field(default=8.0, gt=0)
    """Product keys: softmax weights are those of temperature times cosine."""


Method = Annotated[FullConfig | LoraConfig | SparseMemoryConfig, Field(discriminator="kind")]


class SeedConfig(Section):
    """Seeds, apart from each other."""

    data: int = 0
    """Order of the rows."""
    init: int = 0
    """Initial values of what is trained, keys included."""
    dropout: int = 0
    """Dropout."""


class TrainConfig(Section):
    """The training loop."""

    steps: int = Field(default=300, ge=1)
    """Optimiser steps a task."""
    batch_size: int = Field(default=16, ge=1)
    """Rows an optimiser step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Rows a forward pass; the batch is accumulated from these. All at once when empty."""
    max_length: int | None = Field(default=None, ge=2)
    """Longest row in tokens; the base's context when empty."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Part of the steps in which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Decay after warm-up."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; `auto` is bfloat16 on a GPU that has it, else float32."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    seeds: SeedConfig = SeedConfig()
    """Seeds of one run; `compare.seeds` moves all three."""


class MeasureConfig(Section):
    """Scoring."""

    batch_size: int = Field(default=64, ge=1)
    """Rows a forward pass."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest generated answer; the longest reference and four more tokens when empty."""


class CompareConfig(Section):
    """Which runs a comparison makes: methods × learning rates × seeds × orders."""

    seeds: list[int] = Field(default=[0], min_length=1)
    """Each is added to `train.seeds`."""
    orders: list[list[str]] | None = None
    """Task orders by name; the recipe's order when empty."""


class Recipe(Section):
    """Everything that a run or a comparison needs."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the recipe, and of its folder under `runs/`."""
    base: BaseConfig = BaseConfig()
    """The frozen pretrained model."""
    tasks: list[TaskConfig] = Field(min_length=1)
    """Domains, in the order in which they are learned."""
    probes: list[ProbeConfig] = []
    """Held-out knowledge whose retention is measured."""
    background: DataConfig | None = None
    """General text for calibration statistics; never for gradients, unless `replay` is on."""
    methods: dict[str, Method] = Field(min_length=1)
    """Methods by name. `train` runs one of them, `compare` all."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    measure: MeasureConfig = MeasureConfig()
    """Scoring."""
    compare: CompareConfig = CompareConfig()
    """Which runs `compare` makes."""
    out: str | None = None
    """Output folder; `runs/<name>` when empty."""

    @field_validator("tasks", "probes")
    @classmethod
    def names_differ(cls, entries: list[Any]) -> list[Any]:
        """A name is a column of the matrix, so it may occur once."""
        names = [entry.name for entry in entries]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {twice[0]!r} is used twice; give every entry a name of its own")
        return entries

    @model_validator(mode="after")
    def consistent(self) -> Recipe:
        """Checks across sections."""
        tasks = [task.name for task in self.tasks]
        both = sorted(set(tasks) & {probe.name for probe in self.probes})
        if both:
            raise ValueError(f"{both[0]!r} is the name of a task and of a probe; rename one")
        for order in self.compare.orders or []:
            if sorted(order) != sorted(tasks):
                raise ValueError(f"compare.orders: {order} does not hold each of the tasks {tasks} once")
        for name, method in self.methods.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(f"methods: {name!r} is no name; use letters, digits, spaces and any of _ . -")
            if self.background is None and (
                method.kind == "sparse_memory" or (method.replay and method.replay.source == "background")
            ):
                raise ValueError(f"methods.{name} needs `background`: general text for its statistics or replay")
        return self
