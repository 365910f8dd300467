"""Methods: full finetuning, any PEFT adapter, and nlft's pathways, behind one protocol."""

from __future__ import annotations

from nlft.config import FullConfig, LoraConfig, SparseMemoryConfig
from nlft.methods.protocol import Method


def build_method(config: FullConfig | LoraConfig | SparseMemoryConfig) -> Method:
    """The method that a recipe's section describes."""
    if isinstance(config, FullConfig):
        from nlft.methods.full import Full

        return Full(config)
    if isinstance(config, LoraConfig) and config.gate is not None:
        from nlft.methods.gated_lora import GatedLora

        return GatedLora(config)
    if isinstance(config, LoraConfig):
        from nlft.methods.lora import Lora

        return Lora(config)
    from nlft.methods.sparse_memory import SparseMemory

    return SparseMemory(config)
