"""A whole recipe, and what concerns the run rather than a method."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from nlft.config.compare import CompareConfig
from nlft.config.measure import MeasureConfig
from nlft.config.method import ClassMeansConfig, FewShotConfig, FullConfig, LoraConfig
from nlft.config.pathway import CmsConfig, HopeConfig, SparseMemoryConfig
from nlft.config.prefix import PrefixConfig
from nlft.config.section import NAME, Section
from nlft.config.source import BaseConfig, DataConfig, ProbeConfig, TaskConfig

Method = Annotated[
    FullConfig | LoraConfig | SparseMemoryConfig | CmsConfig | HopeConfig | FewShotConfig | ClassMeansConfig,
    Field(discriminator="kind"),
]
"""Methods by kind."""


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
    packing: bool = False
    """Rows of a forward pass side by side in few lines, without reading each other. The loss is the same; the base must
    know rows by their positions, which is checked before training."""
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


class Recipe(Section):
    """Everything that a run or a comparison needs."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the recipe, and of its folder under `runs/`."""
    base: BaseConfig = BaseConfig()
    """The frozen pretrained model."""
    adapter: str | None = None
    """An adapter from which training goes on: a folder, a run's folder, or USER/NAME or USER/NAME@REVISION on the Hub;
    from the base alone when empty."""
    earlier: list[TaskConfig] = Field(default_factory=list)
    """Tasks that the adapter has learned, in their order. Their train rows calibrate the new tasks' thresholds, so that
    new parts stay silent on earlier tasks; their test rows are probes."""
    tasks: list[TaskConfig] = Field(min_length=1)
    """Domains, in the order in which they are learned."""
    probes: list[ProbeConfig] = Field(default_factory=list)
    """Held-out knowledge whose retention is measured."""
    background: DataConfig | None = None
    """General text for calibration statistics; never for gradients, unless `replay` is on."""
    methods: dict[str, Method] = Field(min_length=1)
    """Methods by name. `train` runs one of them, `compare` all."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    measure: MeasureConfig = MeasureConfig()
    """Scoring."""
    prefix: PrefixConfig = PrefixConfig()
    """What of the base is computed once and kept."""
    compare: CompareConfig = CompareConfig()
    """Which runs `compare` makes."""
    out: str | None = None
    """Output folder; `runs/<name>` when empty."""

    def all_tasks(self) -> list[tuple[str, int, TaskConfig]]:
        """Every task with its place, section and number: earlier ones, then those to learn."""
        sections = (("earlier", self.earlier), ("tasks", self.tasks))
        return [(section, number, task) for section, entries in sections for number, task in enumerate(entries)]

    @field_validator("earlier", "tasks", "probes")
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
        tasks, earlier = [task.name for task in self.tasks], {task.name for task in self.earlier}
        both = sorted({*tasks, *earlier} & {probe.name for probe in self.probes})
        if both:
            raise ValueError(f"{both[0]!r} is the name of a task and of a probe; rename one")
        again = sorted(set(tasks) & earlier)
        if again:
            raise ValueError(f"earlier: {again[0]!r} has been learned already and is in `tasks` too; leave it in one")
        if earlier and self.adapter is None:
            raise ValueError("earlier lists tasks that an adapter has learned; name that adapter by `adapter`")
        for order in self.compare.orders_of(tasks):
            if sorted(order) != sorted(tasks):
                raise ValueError(f"compare.orders: {order} does not hold each of the tasks {tasks} once")
        for key, names in self.compare.bounds:
            unknown = [name for name in names if name not in self.methods]
            if unknown:
                raise ValueError(f"compare.bounds.{key}: {unknown[0]!r} is none of the methods {list(self.methods)}")
        told = [name for name in self.compare.bounds.multitask if getattr(self.methods[name], "tasks", "") == "apart"]
        if told:
            raise ValueError(f"compare.bounds.multitask: {told[0]!r} has an adapter a task, and this is one for all")
        for name, method in self.methods.items():
            if not re.fullmatch(NAME, name):
                raise ValueError(f"methods: {name!r} is no name; use letters, digits, spaces and any of _ . -")
            gate = getattr(method, "gate", None)
            if self.background is None and (
                method.kind == "sparse_memory" or gate or getattr(method, "reads_background", False)
            ):
                raise ValueError(f"methods.{name} needs `background`: general text for its statistics or replay")
            if getattr(method, "ewc", None) and (
                method.kind == "sparse_memory" or gate or getattr(method, "tasks", "shared") != "shared"
            ):
                raise ValueError(f"methods.{name}.ewc: every task trains parts of its own, so there is nothing to hold")
            retention = getattr(method, "retention", None)
            if retention and gate and retention.of == "predictions":
                raise ValueError(f"methods.{name}.retention: a gate takes `of: rows` or `tokens`; see `nlft tune`")
            if retention and not gate and getattr(method, "addressing", "") == "product_key":
                raise ValueError(f"methods.{name}.retention: product keys have no thresholds; add `gate: prototype`")
            if method.kind == "lora" and method.gate is None and (method.retention or method.layers):
                raise ValueError(f"methods.{name}: `retention` and `layers` belong to a gate; add `gate: prototype`")
        return self
