"""LoRA whose initial values are taken out of the base's weights: CorDA, PiSSA, OLoRA."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.tuners_utils import cast_adapter_dtype
from torch import nn

from nlft.base import FrozenBase
from nlft.capture import inference
from nlft.config import LoraConfig
from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.methods.lora import Lora, insert
from nlft.methods.protocol import TaskContext
from nlft.methods.trainable import Trainable
from nlft.methods.weights import check_whole, load_weights, save_weights

INITIALISATIONS = ("corda", "pissa", "olora")
"""Values of `init_lora_weights`, or what they begin with."""
CALIBRATION_ROWS = 256
"""Rows that show which directions are used (Yang et al. 2024 take 256 samples)."""


def rewrites_base(config: LoraConfig) -> bool:
    """Whether the adapter's initial values are taken out of the base's weights."""
    return str(config.peft.get("init_lora_weights", "")).startswith(INITIALISATIONS)


class ResidualLora(Lora):
    """The weights lose what the adapter begins with, so that both together compute what the base did, up to rounding.

    CorDA (Yang et al. 2024) takes a weight's directions in the light of the covariance of its inputs. In its
    knowledge-preserved mode (`kpm`, the default here) these are the background's, and the directions used least are
    trained; in its other mode (`ipm`) the first task's, and those used most.
    """

    changes_base = True

    def __init__(self, config: LoraConfig) -> None:
        settings = dict(config.peft)
        if config.is_corda:
            settings["corda_config"] = {"corda_method": "kpm", **(settings.get("corda_config") or {})}
        super().__init__(config.model_copy(update={"peft": settings}))

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts the adapter; CorDA's, which has to see rows first, begins at no change.

        Raises:
            BaseModelError: the base is quantised.
        """
        check_whole(base, "An adapter that is taken out of the weights")
        config = deepcopy(self.peft_config)
        return insert(base, plain(config) if self.config.is_corda else config, seed)

    def begin_task(self, model: Any, context: TaskContext) -> None:
        """Before the first task CorDA's adapter is put in the place of the one that changes nothing."""
        if self.config.is_corda and context.number == 1:
            settings: Any = self.peft_config
            kept = settings.corda_config.corda_method == "kpm"
            self.take_out(model, (context.background if kept else context.train)[:CALIBRATION_ROWS])
        super().begin_task(model, context)

    def take_out(self, model: Any, rows: Sequence[Encoded]) -> None:
        """Decomposes the weights by the inputs that rows give them."""
        targets = model.peft_config["default"].target_modules  # resolved to names when they were adapted
        core = model.base_model.unload()
        config: Any = deepcopy(self.peft_config)
        config.target_modules = targets
        device = next(core.parameters()).device

        def read() -> None:
            # One by one: PEFT takes an input for the tokens of a single row.
            for row in rows:
                batch = collate([row], 0).to(device)
                core(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)

        with inference(core):
            preprocess_corda(core, config, run_model=read)
        model.peft_config["default"] = config
        model.base_model.inject_adapter(core, "default")
        cast_adapter_dtype(core, "default")  # to float32, as PEFT does itself when it wraps a model or loads an adapter

    def save(self, model: Any, folder: Path) -> None:
        """Writes the weights without the adapter, the adapter in `adapter`, and what the penalties remember."""
        save_weights(model, folder)
        config = model.peft_config["default"]
        model.peft_config["default"] = plain(deepcopy(config))  # these weights have been taken out already
        try:
            model.save_pretrained(folder / "adapter")
        finally:
            model.peft_config["default"] = config
        Trainable.save(self, model, folder)

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads the weights into the base's module, and the adapter onto it."""
        self.remember(folder)
        load_weights(base, folder)
        return PeftModel.from_pretrained(base.model, str(folder / "adapter"), is_trainable=True).eval()


def plain(config: Any) -> Any:
    """The config of an adapter that begins at no change."""
    config.init_lora_weights, config.corda_config = True, None
    return config
