"""Methods: full finetuning, any PEFT adapter, and nlft's pathways, behind one protocol."""

from __future__ import annotations

from nlft.config import CmsConfig, FullConfig, HopeConfig, LoraConfig
from nlft.config import Method as MethodConfig
from nlft.methods.protocol import Method


def build_method(config: MethodConfig) -> Method:
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
    if isinstance(config, CmsConfig):
        from nlft.methods.cms import Cms

        return Cms(config)
    if isinstance(config, HopeConfig):
        from nlft.methods.hope import Hope

        return Hope(config)
    from nlft.methods.sparse_memory import SparseMemory

    return SparseMemory(config)
