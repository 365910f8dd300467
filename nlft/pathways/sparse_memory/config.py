"""PEFT config of sparse memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from peft import PeftConfig

from nlft.errors import NlftError
from nlft.pathways.registry import peft_type


@dataclass
class SparseMemoryPeftConfig(PeftConfig):
    """Where memories stand, how their slots are addressed, and which tasks they hold.

    Args:
        addressing: `prototype` or `product_key`.
        slots: slots a task and layer that are trained.
        margin: added to every rejection threshold (cosine); prototype keys.
        half_keys: n, keys in each half; the table has n^2 slots; product keys.
        heads: look-ups a token; product keys.
        topk: slots read a head, at most n^2; product keys.
        temperature: softmax weights are those of temperature times cosine; product keys.
        key_width: K, width of whitened queries and keys; min(D, 256) when None.
        target_modules: names of blocks, or a regex; every MLP block of the text decoder when None.
        exclude_modules: blocks to leave out.
        layers_to_transform: indices of layers; all when None.
        modules_to_save: further modules to train and save, as in all of PEFT.
        trainable_token_indices: none; other libraries expect the field.
        init_weights: values of new slots are zero; False draws them at random, for tests.
        tasks: slots a layer of each task, in the order of learning. Kept by `begin_task`.
        active_task: the task whose values are trained. Kept by `begin_task` and `end_task`.
        base_fingerprint: sha256 of the base that the keys were made for.
        nlft_version: version of nlft that made the adapter.
    """

    addressing: Literal["prototype", "product_key"] = "prototype"
    slots: int = 1500
    margin: float = 0.0
    half_keys: int = 128
    heads: int = 4
    topk: int = 16
    temperature: float = 8.0
    key_width: int | None = None
    target_modules: Any = None
    exclude_modules: Any = None
    layers_to_transform: list[int] | int | None = None
    modules_to_save: list[str] | None = None
    trainable_token_indices: list[int] | None = None
    init_weights: bool = True
    tasks: dict[str, int] = field(default_factory=dict)
    active_task: str | None = None
    base_fingerprint: str | None = None
    nlft_version: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("nlft_sparse_memory")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        # Read back from JSON it is a list of pairs: see `to_dict`.
        self.tasks = {str(name): int(slots) for name, slots in dict(self.tasks).items()}
        if self.addressing not in ("prototype", "product_key"):
            raise NlftError(f"addressing: {self.addressing!r} is unknown.", "Use `prototype` or `product_key`.")
        if self.key_width is not None and self.key_width < 2:
            raise NlftError(f"key_width: {self.key_width} is too narrow.", "Use at least 2.")
        if self.addressing == "product_key" and self.topk > self.half_keys**2:
            raise NlftError(
                f"topk: {self.topk} slots cannot be read from a table of half_keys² = {self.half_keys**2}.",
                "Lower `topk` or raise `half_keys`.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Fields as PEFT writes them; the tasks as pairs, because PEFT sorts the keys of JSON objects."""
        return {**super().to_dict(), "tasks": [[name, slots] for name, slots in self.tasks.items()]}
