"""The recipe's schema. Field docstrings are the help text; nothing here imports torch.

A recipe is one YAML file. Unknown keys are errors; every error of a recipe is reported at once
(`recipes.py` adds the line and the nearest valid key).
"""

from __future__ import annotations

from nlft.config.method import (
    FullConfig,
    GateConfig,
    LearningRates,
    LoraConfig,
    Method,
    MethodFields,
    ReplayConfig,
    RetentionConfig,
    SparseMemoryConfig,
)
from nlft.config.recipe import (
    CompareConfig,
    MeasureConfig,
    Recipe,
    SeedConfig,
    TrainConfig,
)
from nlft.config.section import (
    NAME,
    Section,
    Share,
    parse_share,
)
from nlft.config.source import (
    BaseConfig,
    DataConfig,
    ProbeConfig,
    TaskConfig,
)

__all__ = [
    "NAME",
    "BaseConfig",
    "CompareConfig",
    "DataConfig",
    "FullConfig",
    "GateConfig",
    "LearningRates",
    "LoraConfig",
    "MeasureConfig",
    "Method",
    "MethodFields",
    "ProbeConfig",
    "Recipe",
    "ReplayConfig",
    "RetentionConfig",
    "Section",
    "SeedConfig",
    "Share",
    "SparseMemoryConfig",
    "TaskConfig",
    "TrainConfig",
    "parse_share",
]
