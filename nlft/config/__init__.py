"""The recipe's schema. Field docstrings are the help text; nothing here imports torch.

A recipe is one YAML file. Unknown keys are errors; every error of a recipe is reported at once
(`recipes.py` adds the line and the nearest valid key).
"""

from __future__ import annotations

from nlft.config.compare import BoundsConfig, CompareConfig
from nlft.config.measure import MeasureConfig
from nlft.config.method import (
    ClassMeansConfig,
    EwcConfig,
    FewShotConfig,
    FullConfig,
    GateConfig,
    L2spConfig,
    LearningRates,
    LoraConfig,
    MethodFields,
    ReplayConfig,
    RetentionConfig,
    UntrainedFields,
)
from nlft.config.optimizer import OptimizerConfig
from nlft.config.pathway import CmsConfig, HopeConfig, LevelFields, SparseMemoryConfig
from nlft.config.prefix import PrefixConfig
from nlft.config.recipe import (
    Method,
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
    "BoundsConfig",
    "ClassMeansConfig",
    "CmsConfig",
    "CompareConfig",
    "DataConfig",
    "EwcConfig",
    "FewShotConfig",
    "FullConfig",
    "GateConfig",
    "HopeConfig",
    "L2spConfig",
    "LearningRates",
    "LevelFields",
    "LoraConfig",
    "MeasureConfig",
    "Method",
    "MethodFields",
    "OptimizerConfig",
    "PrefixConfig",
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
    "UntrainedFields",
    "parse_share",
]
