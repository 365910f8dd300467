"""Optimisers of a method."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from nlft.config.section import Section


class OptimizerConfig(Section):
    """What moves the trained parameters, see `nlft.optim`."""

    kind: Literal["adamw", "sgd", "muon", "delta_gradient_descent", "delta_momentum", "deep_momentum", "m3"] = "adamw"
    """AdamW, SGD, Muon, or a deep optimiser of Nested Learning."""
    momentum: float | None = Field(default=None, ge=0, lt=1)
    """Of `sgd`, `muon`, `delta_momentum` and `deep_momentum`; 0.9 when empty, 0.95 for `muon`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimiser's class, such as `frequency` of `m3`."""

    @model_validator(mode="before")
    @classmethod
    def kind_alone(cls, value: Any) -> Any:
        """`optimizer: sgd` is short for `optimizer: {kind: sgd}`."""
        return {"kind": value} if isinstance(value, str) else value
