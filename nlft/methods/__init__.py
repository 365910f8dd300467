"""Methods: full finetuning, any PEFT adapter, nlft's pathways, and methods without training, behind one protocol."""

from __future__ import annotations

from nlft.config import ClassMeansConfig, CmsConfig, FewShotConfig, FullConfig, HopeConfig, LoraConfig
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
        return build_lora(config)
    if isinstance(config, FewShotConfig):
        from nlft.methods.few_shot import FewShot

        return FewShot(config)
    if isinstance(config, ClassMeansConfig):
        from nlft.methods.class_means import ClassMeans

        return ClassMeans(config)
    if isinstance(config, CmsConfig):
        from nlft.methods.cms import Cms

        return Cms(config)
    if isinstance(config, HopeConfig):
        from nlft.methods.hope import Hope

        return Hope(config)
    from nlft.methods.sparse_memory import SparseMemory

    return SparseMemory(config)


def build_lora(config: LoraConfig) -> Method:
    """An ungated adapter of PEFT, as its section says that tasks share it."""
    from nlft.methods import task_lora
    from nlft.methods.lora import Lora
    from nlft.methods.residual_lora import ResidualLora, rewrites_base

    if config.tasks != "shared":
        kinds = {"apart": task_lora.ApartLora, "orthogonal": task_lora.OrthogonalLora, "merged": task_lora.MergedLora}
        return kinds[config.tasks](config)
    return ResidualLora(config) if rewrites_base(config) else Lora(config)
