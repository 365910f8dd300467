"""The base's own weights as a method leaves them: whole on disk, read back into the base's module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils.save_and_load import get_base_model_state_dict

from nlft.base import FrozenBase
from nlft.errors import BaseModelError


def check_whole(base: FrozenBase, what: str) -> None:
    """Refuses a base whose weights cannot be moved.

    Raises:
        BaseModelError: the base is quantised.
    """
    if getattr(base.model, "is_quantized", False):
        raise BaseModelError(
            f"{what} needs unquantised weights, but base.quantization is set.",
            "Set base.quantization=none, or choose a method that leaves the base alone, as `lora` does by default.",
        )


def save_weights(model: Any, folder: Path) -> None:
    """Writes the weights of the base inside `model`, adapted or not, as a Hugging Face model."""
    if isinstance(model, PeftModel):
        core: Any = model.get_base_model()
        core.save_pretrained(folder, state_dict=get_base_model_state_dict(model))
    else:
        model.save_pretrained(folder)


def load_weights(base: FrozenBase, folder: Path) -> None:
    """Reads them into the base's module, in its dtype."""
    model: Any = base.model
    saved = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())
