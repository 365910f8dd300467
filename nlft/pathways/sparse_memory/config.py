"""PEFT config of sparse memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nlft.errors import NlftError
from nlft.pathways.registry import peft_type
from nlft.pathways.task import TaskPeftConfig


@dataclass
class SparseMemoryPeftConfig(TaskPeftConfig):
    """Where memories stand, how their slots are addressed, and which tasks they hold.

    Args:
        addressing: `prototype` or `product_key`.
        slots: slots a task and layer that are trained.
        margin: added to every rejection threshold (cosine); prototype keys.
        input_dependent: a slot's weight also depends on the query, by a vector that is trained; prototype keys.
        half_keys: n, keys in each half; the table has n^2 slots; product keys.
        heads: look-ups a token; product keys.
        topk: slots read a head, at most n^2; product keys.
        temperature: softmax weights are those of temperature times cosine; product keys.
    """

    addressing: Literal["prototype", "product_key"] = "prototype"
    slots: int = 1500
    margin: float = 0.0
    input_dependent: bool = False
    half_keys: int = 128
    heads: int = 4
    topk: int = 16
    temperature: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("nlft_sparse_memory")
        if self.addressing not in ("prototype", "product_key"):
            raise NlftError(f"addressing: {self.addressing!r} is unknown.", "Use `prototype` or `product_key`.")
        for name in ("slots", "half_keys", "heads", "topk"):
            if getattr(self, name) < 1:
                raise NlftError(f"{name}: {getattr(self, name)} is too small.", "Use 1 or more.")
        if self.addressing == "product_key" and self.topk > self.half_keys**2:
            raise NlftError(
                f"topk: {self.topk} slots cannot be read from a table of half_keys² = {self.half_keys**2}.",
                "Lower `topk` or raise `half_keys`.",
            )
