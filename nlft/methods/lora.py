"""LoRA, or any other PEFT method by the fields of its own config."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from peft import PeftConfig, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from nlft.base import FrozenBase
from nlft.config import LoraConfig
from nlft.errors import NlftError, reason
from nlft.methods.trainable import PeftTrainable

FIELDS_HINT = "Correct the fields under its key `peft`."


class Lora(PeftTrainable):
    """One PEFT adapter, trained on every task in turn."""

    def __init__(self, config: LoraConfig) -> None:
        super().__init__(config)
        self.config = config
        self.peft_config = build_peft_config(config.peft_type, config.peft)

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts the adapter with PEFT's own initialisation, drawn from `seed`."""
        return insert(base, self.peft_config, seed)


def insert(base: FrozenBase, config: PeftConfig, seed: int, name: str = "default") -> Any:
    """A PEFT model around the base.

    Raises:
        NlftError: PEFT cannot adapt this base so.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return get_peft_model(base.model, config, adapter_name=name)
        except (TypeError, ValueError) as error:
            raise NlftError(f"PEFT cannot adapt this base: {reason(error)}", FIELDS_HINT) from error


def build_peft_config(peft_type: str, settings: dict[str, Any]) -> PeftConfig:
    """PEFT's config object out of a recipe's fields.

    Raises:
        NlftError: PEFT has no such method, or the method has no such field.
    """
    known = {str(getattr(key, "value", key)): value for key, value in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if peft_type not in known:
        raise NlftError(f"peft_type {peft_type!r} is no PEFT method.", f"PEFT has {', '.join(sorted(known))}.")
    config_class = known[peft_type]
    names = {field.name for field in fields(config_class)}
    unknown = sorted(set(settings) - names)
    if unknown:
        raise NlftError(
            f"{config_class.__name__} has no field {unknown[0]!r}.",
            f"Its fields are {', '.join(sorted(names))}.",
        )
    try:
        return config_class(**{"task_type": TaskType.CAUSAL_LM, **settings})
    except (TypeError, ValueError) as error:
        raise NlftError(f"PEFT refuses the fields of {config_class.__name__}: {reason(error)}", FIELDS_HINT) from error
