"""What methods share: an optimiser over all that is trainable, and penalties for the sake of the past."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from nlft.base import FrozenBase
from nlft.config import MethodFields
from nlft.hub import model_location, model_name
from nlft.methods.anchor import Ewc, L2sp
from nlft.methods.penalty import Penalty, read_state, size, total, write_state
from nlft.methods.protocol import Ask, TaskContext
from nlft.methods.replay import Replay
from nlft.optim.build import build_optimizer
from nlft.pathways.provenance import note_task
from nlft.pathways.task import TaskPeftConfig
from nlft.remote import CONFIG
from nlft.types import Condition, Evaluation, Item


class Trainable:
    """A method that trains; `save` and `load` of the model itself are left to it."""

    changes_base = False
    told_task = False

    def __init__(self, config: MethodFields) -> None:
        self.weight_decay = config.weight_decay
        self.optimizer_config = config.optimizer
        self.replay = Replay(config.replay)
        self.penalties: list[Penalty] = [self.replay]
        if config.l2sp is not None:
            self.penalties.append(L2sp(config.l2sp))
        if config.ewc is not None:
            self.penalties.append(Ewc(config.ewc))

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Readies the penalties, and notes where the task comes from if the adapter keeps its tasks apart."""
        for penalty in self.penalties:
            penalty.begin_task(model, context)
        config = getattr(model, "peft_config", {}).get("default")
        if isinstance(config, TaskPeftConfig):
            note_task(config, context.name, context.train, replay=self.replay.batches is not None)

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """What the recipe names; AdamW (Loshchilov & Hutter 2019) in its fused form when it names nothing."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return build_optimizer(self.optimizer_config, parameters, lr, self.weight_decay, model)

    def penalty(self, model: nn.Module) -> torch.Tensor | None:
        """The replay loss and the penalties on moving, as far as there are any."""
        return total([penalty.term(model) for penalty in self.penalties])

    def end_task(self, model: nn.Module) -> None:
        """Lets the penalties take in the task; to be called while its parameters are still trainable."""
        for penalty in self.penalties:
            penalty.end_task(model)

    def score(self, model: Any, evaluation: Evaluation, condition: Condition, ask: Ask) -> list[Item]:
        """The model as it stands (`on`), or with its adapter switched off (`off`)."""
        if condition == "off" and not self.changes_base:
            with model.disable_adapter():
                return ask(model, evaluation)
        return ask(model, evaluation) if condition == "on" else []

    def held_bytes(self) -> dict[str, int]:
        """Bytes of the rows that are replayed, and of what the penalties on moving hold."""
        others = sum(size(penalty.state()) for penalty in self.penalties if penalty is not self.replay)
        return {"replay_bytes": self.replay.n_bytes, "regulariser_bytes": others}

    def save(self, model: Any, folder: Path) -> None:
        """Writes what the penalties remember."""
        write_state(self.penalties, folder)

    def remember(self, folder: Path) -> None:
        """Reads it back."""
        read_state(self.penalties, folder)


class PeftTrainable(Trainable):
    """A method that trains one PEFT adapter, which holds all that was learned."""

    def save(self, model: Any, folder: Path) -> None:
        """Writes a PEFT directory, and what the penalties remember."""
        for config in model.peft_config.values():  # where it was loaded, it names the base as it was saved
            if (config.base_model_name_or_path or "").startswith("builtin:"):
                config.base_model_name_or_path = model_location(config.base_model_name_or_path)
        model.save_pretrained(folder)
        for path in (*folder.glob(CONFIG), *folder.glob(f"*/{CONFIG}")):
            name_base(path)
        super().save(model, folder)

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads a PEFT directory onto the base, ready for the next task."""
        self.remember(folder)
        return PeftModel.from_pretrained(base.model, str(folder), is_trainable=True).eval()


def name_base(config: Path) -> None:
    """Has an adapter's settings name a built-in base as recipes do, in place of where it lies on this machine.

    Afterwards, since PEFT looks for the base's own settings at that place while it saves.
    """
    data = json.loads(config.read_text(encoding="utf-8"))
    place = data.get("base_model_name_or_path") or ""
    named = model_name(place)
    if named == place:
        return
    data["base_model_name_or_path"] = named
    config.write_text(json.dumps(data, indent=2, sort_keys=True), encoding="utf-8")
    card = config.with_name("README.md")
    if card.is_file():
        card.write_text(card.read_text(encoding="utf-8").replace(place, named), encoding="utf-8")
