"""PEFT config of a continuum memory system."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from nlft.errors import NlftError
from nlft.pathways.cms.levels import Variant
from nlft.pathways.registry import peft_type
from nlft.pathways.task import TaskPeftConfig

Init = Literal["zero", "pretrained"]


@dataclass
class CmsPeftConfig(TaskPeftConfig):
    """Where levels stand, how many there are, and how often each is trained.

    Args:
        variant: how the levels of a block are joined, see `Levels`.
        periods: optimiser steps between two moves of each level, fastest first; their number is the number of levels.
        r: hidden units of a level, or rank of its change of a pretrained map.
        init: `zero` puts new MLPs beside every block; `pretrained` gives every block one level and lets a low-rank
            change of the block's last linear map be trained.
        scale: factor of all that the levels add.
        online_chunk: tokens between two updates at test time, see `nlft.pathways.cms.online`; none when None.

    Raises:
        NlftError: naming the field whose value makes no sense.
    """

    variant: Variant = "headwise"
    periods: list[int] = field(default_factory=lambda: [1, 8, 64])
    r: int = 16
    init: Init = "zero"
    scale: float = 1.0
    online_chunk: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("nlft_cms")
        self.level = 0
        """Of the block for which a core is being made, with `init: pretrained`. Set by `CmsModel`, never stored."""
        for name, allowed in (("variant", get_args(Variant)), ("init", get_args(Init))):
            if getattr(self, name) not in allowed:
                raise NlftError(f"{name}: {getattr(self, name)!r} is unknown.", f"Use one of {', '.join(allowed)}.")
        if self.r < 1:
            raise NlftError(f"r: {self.r} is no number of hidden units.", "Use 1 or more.")
        periods = self.periods
        if not periods or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in periods):
            raise NlftError(f"periods: {periods} are no periods.", "List optimiser steps from 1, such as [1, 8, 64].")
        if periods != sorted(periods):
            raise NlftError(f"periods: {periods} do not begin with the fastest level.", "Let them rise.")
        if self.online_chunk is not None and self.online_chunk < 1:
            raise NlftError(f"online_chunk: {self.online_chunk} is no number of tokens.", "Use 1 or more, or none.")
        if self.init == "pretrained" and (self.variant != "headwise" or self.online_chunk is not None):
            raise NlftError(
                "init: `pretrained` gives every block one level, which has no variant and no online_chunk.",
                "Leave variant and online_chunk away, or use `init: zero`.",
            )
        if self.variant != "headwise" and self.online_chunk is not None:
            raise NlftError(f"online_chunk: it is not built for `variant: {self.variant}`.", "Use `variant: headwise`.")

    @property
    def keeps_tasks_apart(self) -> bool:
        """Behind a gate every task has levels of its own; else all tasks train the same ones."""
        return self.gate_layer is not None
