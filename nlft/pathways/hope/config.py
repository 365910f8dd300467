"""PEFT config of Hope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from nlft.errors import NlftError
from nlft.pathways.registry import peft_type
from nlft.pathways.task import TaskPeftConfig

Memory = Literal["linear", "mlp"]
Objective = Literal["dot", "l2"]
Read = Literal["token", "boundary"]
Initial = Literal["learned", "zero"]
CHOICES = {"memory": Memory, "objective": Objective, "read": Read, "initial": Initial}


@dataclass
class HopePeftConfig(TaskPeftConfig):
    """Where memories stand, what they are, and how they learn within a sequence.

    One part serves all tasks: there is no gate.

    Args:
        heads: H, memories side by side.
        head_width: m, width of their keys, queries and values.
        memory: `linear`, a matrix for each head, or `mlp`, an MLP with one hidden layer of width m.
        objective: what a write lowers: `dot` (the delta rule, whose fixed point is the value), or `l2` as the paper
            prints it (whose fixed point is half the value).
        read: `token`, the memory just before a token, or `boundary`, the memory at the last multiple of `chunk`.
        self_modifying: keys, values, rates and decays come from memories of their own, which learn like the main one.
        initial: where a fresh sequence starts: at a `learned` memory, or at an empty one (`zero`).
        chunk: C, tokens between two boundaries.
        bptt_chunks: gradients stop at the start of every n-th chunk of a forward pass; all chunks pass them when None.
        rate_max: the largest learning rate of a write; with unit keys no more than 1 is stable. For an MLP, and for
            self-modifying memories with `l2`, it is divided by `chunk`.
        periods: optimiser steps between two moves of each level behind the memory, fastest first; no levels when empty.
        r: hidden units of a level.

    Raises:
        NlftError: naming the field whose value makes no sense.
    """

    heads: int = 4
    head_width: int = 32
    memory: Memory = "linear"
    objective: Objective = "dot"
    read: Read = "token"
    self_modifying: bool = False
    initial: Initial = "learned"
    chunk: int = 64
    bptt_chunks: int | None = None
    rate_max: float = 1.0
    periods: list[int] = field(default_factory=list)
    r: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("nlft_hope")
        for name, choice in CHOICES.items():
            if getattr(self, name) not in get_args(choice):
                raise NlftError(
                    f"{name}: {getattr(self, name)!r} is unknown.", f"Use one of {', '.join(get_args(choice))}."
                )
        for name in ("heads", "head_width", "chunk", "r"):
            if getattr(self, name) < 1:
                raise NlftError(f"{name}: {getattr(self, name)} is too small.", "Use 1 or more.")
        if self.bptt_chunks is not None and self.bptt_chunks < 1:
            raise NlftError(f"bptt_chunks: {self.bptt_chunks} is too small.", "Use 1 or more, or none.")
        if not 0 < self.rate_max <= 1:
            raise NlftError(f"rate_max: {self.rate_max} is not above 0 and at most 1.", "Use 1, or less.")
        if self.gate_layer is not None:
            raise NlftError("gate_layer: Hope has no gate.", "Leave gate_layer away.")
        odd = any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in self.periods)
        if odd or self.periods != sorted(self.periods):
            raise NlftError(
                f"periods: {self.periods} are no periods.", "List optimiser steps from 1, fastest first, as [1, 8]."
            )
        if self.memory == "mlp":
            if self.self_modifying:
                raise NlftError("self_modifying: its memories are linear.", "Use `memory: linear`.")
            if self.read == "token":
                raise NlftError("read: an MLP is read at boundaries.", "Set `read: boundary`.")
            if self.objective == "dot":
                raise NlftError(
                    "objective: `dot` has no minimum that an MLP could come to, so the memory would grow without end.",
                    "Set `objective: l2`.",
                )
        if self.initial == "zero" and (self.memory == "mlp" or self.self_modifying):
            what = "an MLP" if self.memory == "mlp" else "a memory that makes its own keys"
            raise NlftError(f"initial: {what} that starts at zero stays there.", "Use `initial: learned`.")

    @property
    def keeps_tasks_apart(self) -> bool:
        """All tasks train the same part."""
        return False
