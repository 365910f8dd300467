"""Sections of the pathways: memory that is trained beside a frozen base."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nlft.config.method import GateConfig, MethodFields, RetentionConfig
from nlft.config.optimizer import OptimizerConfig


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
    input_dependent: bool = False
    """Prototype keys: every slot is a hidden unit, whose weight also depends on the query that reads it."""
    gate: GateConfig | None = None
    """Puts the memory behind a gate, which then keeps it silent; prototype keys lose their own thresholds."""
    retention: RetentionConfig | None = None
    """A budget that sets the thresholds of prototype keys, or the gate's."""
    kmeans_steps: int = Field(default=10, ge=0)
    """Iterations of spherical k-means behind the keys; 0 takes states of the task as they are."""
    whitening: bool = True
    """Whiten hidden states before they are compared; without, they are only centred."""
    half_keys: int = Field(default=128, ge=2)
    """Product keys: keys in each half; the table has its square in slots."""
    heads: int = Field(default=4, ge=1)
    """Product keys: independent look-ups a token."""
    topk: int = Field(default=16, ge=1)
    """Product keys: slots read a head."""
    temperature: float = Field(default=8.0, gt=0)
    """Product keys: softmax weights are those of temperature times cosine."""
    choice: Literal["tfidf", "kl", "tf", "random", "all"] = "tfidf"
    """Product keys: which slots are trained, of those that the task reads: often read there and in few documents of the
    background (`tfidf`), more often than by the background (`kl`), often (`tf`), drawn (`random`), or `all`."""
    mode: Literal["task", "step"] = "task"
    """Product keys: slots are chosen once for a `task` and trained by AdamW, or at every `step`, as in the paper, and
    moved by SGD (which needs learning rates of hundreds to thousands, since the gradient is clipped)."""
    health: Literal["check", "ignore"] = "check"
    """Product keys: refuse keys that the background reads too unevenly (see `nlft inspect`), or `ignore` it."""

    @model_validator(mode="after")
    def steps_are_plain(self) -> SparseMemoryConfig:
        """`mode: step` means one thing."""
        if self.mode == "step" and (self.addressing != "product_key" or self.weight_decay):
            raise ValueError("`mode: step` needs `addressing: product_key`, and has no weight_decay")
        if self.mode == "step" and self.optimizer != OptimizerConfig():
            raise ValueError("`mode: step` moves its rows by SGD; leave `optimizer` away")
        return self


class LevelFields(MethodFields):
    """Levels of a continuum memory: the slower ones move once in many optimiser steps."""

    layers: list[int] | None = None
    """Layers with a memory; the method's own choice when empty."""
    periods: list[Annotated[int, Field(ge=1)]] = Field(default=[1, 8, 64], min_length=1)
    """Optimiser steps between two moves of each level."""
    rank: int = Field(default=16, ge=1)
    """Hidden units of a level, or rank of its low-rank change."""
    slowness: Literal["period", "rate", "shuffled"] = "period"
    """How a level is slow: it moves once in its `period`; as a control, at every step at the learning `rate` divided by
    it; as another, the periods are dealt anew to the levels of every layer (`shuffled`)."""
    at_end: Literal["flush", "drop"] = "flush"
    """Gradients that wait for their level's boundary when a task ends move it once more, or are dropped."""


class CmsConfig(LevelFields):
    """A continuum memory system beside the MLP blocks: levels that are trained at different frequencies."""

    kind: Literal["cms"]
    """Continuum memory system."""
    variant: Literal["headwise", "sequential", "nested"] = "headwise"
    """Levels side by side; one after another; or one after another, where each faster one starts again from a state
    that the next slower one owns."""
    init: Literal["zero", "pretrained"] = "zero"
    """New memories that start at zero, or low-rank changes of the base's own blocks, each of which is given a level."""
    consolidation: float = Field(default=0.0, ge=0, le=1)
    """Part of what a faster level has moved that a slower one takes over at its boundary (with `nested`: that the state
    from which the faster one starts again takes over)."""
    online_chunk: int | None = Field(default=None, ge=1)
    """Tokens between two updates at test time, whose state belongs to the sequence; none when empty."""
    gate: GateConfig | None = None
    """Gives every task levels of its own behind a gate."""
    retention: RetentionConfig | None = None
    """The gate's budget; 1 % of rows when empty."""

    @model_validator(mode="after")
    def fits(self) -> CmsConfig:
        """Options that exclude each other."""
        if self.init == "pretrained" and (self.variant != "headwise" or self.online_chunk):
            raise ValueError("`init: pretrained` gives every block one level; it has no variant and no online_chunk")
        if self.variant == "nested" and (len(self.periods) < 2 or self.slowness != "period"):
            raise ValueError("`variant: nested` needs two periods or more, and `slowness: period`")
        if self.variant == "nested" and not self.consolidation:
            raise ValueError(
                "with `variant: nested` a faster level starts again from a state that nothing would move; set"
                " `consolidation` above 0, such as 0.5"
            )
        if self.consolidation and self.init == "pretrained":
            raise ValueError(
                "with `init: pretrained` the levels are different blocks, which cannot take over from each other; leave"
                " `consolidation` away"
            )
        if self.consolidation and (self.slowness == "rate" or len(self.periods) < 2):
            raise ValueError(
                "`consolidation` happens at the boundary of a slower level, and there is none; give two periods or more"
                " and no `slowness: rate`, or leave it away"
            )
        if self.retention and not self.gate:
            raise ValueError("`retention` belongs to a gate; add `gate: prototype`")
        return self


class HopeConfig(LevelFields):
    """Self-modifying memory that learns from the sequence it reads, beside the MLP blocks, and levels behind it."""

    kind: Literal["hope"]
    """Hope."""
    periods: list[Annotated[int, Field(ge=1)]] = Field(default=[])
    """Optimiser steps between two moves of each level behind the memory; no levels when empty."""
    heads: int = Field(default=4, ge=1)
    """Memories side by side."""
    head_width: int = Field(default=32, ge=1)
    """Width of their keys and values."""
    memory: Literal["linear", "mlp"] = "linear"
    """What a memory is."""
    objective: Literal["dot", "l2"] = "dot"
    """What it is trained on within a sequence: the delta rule (`dot`), or the squared error as the paper prints it."""
    read: Literal["token", "boundary"] = "token"
    """A token reads what stands before it, or what stood at the last boundary of a chunk."""
    self_modifying: bool = False
    """Keys, values, rates and decays come from memories too."""
    initial: Literal["learned", "zero"] = "learned"
    """Where a sequence starts: at a trained memory, or at an empty one."""
    chunk: int = Field(default=64, ge=1)
    """Tokens between two boundaries."""
    bptt_chunks: int | None = Field(default=None, ge=1)
    """Chunks through which gradients flow back; all when empty."""

    @model_validator(mode="after")
    def fits(self) -> HopeConfig:
        """Options that exclude each other."""
        odd = [name for name, value in (("read", "boundary"), ("objective", "l2")) if getattr(self, name) != value]
        if self.memory == "mlp" and odd:
            wanted = {"read": "boundary", "objective": "l2"}[odd[0]]
            raise ValueError(f"`memory: mlp` needs `{odd[0]}: {wanted}`")
        if self.memory == "mlp" and self.self_modifying:
            raise ValueError("`self_modifying` memories are linear; leave `memory` away")
        if self.initial == "zero" and (self.memory == "mlp" or self.self_modifying):
            raise ValueError("`initial: zero` would stay zero in an MLP or with `self_modifying`; leave it away")
        return self
