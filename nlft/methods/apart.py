"""Methods that keep tasks apart: each task has a part of its own, and something decides which parts speak."""

from __future__ import annotations

from typing import Any

from nlft.methods.protocol import Ask
from nlft.methods.trainable import PeftTrainable
from nlft.pathways.task import TaskPeftConfig
from nlft.pathways.voices import alone, replaced, wide_open
from nlft.types import Condition, Evaluation, Item


class TasksApart(PeftTrainable):
    """Scores under `oracle` and `ungated` too, where the adapter has parts for its tasks."""

    def score(self, model: Any, evaluation: Evaluation, condition: Condition, ask: Ask) -> list[Item]:
        """The model as it stands, without its adapter, with the right task's part alone, or with everything open.

        Told that a row belongs to no task (`oracle` on a probe), the model is the base. Nothing comes back for a task
        that has not been learned, and where nothing decides which parts speak.
        """
        config: TaskPeftConfig = model.peft_config["default"]
        if condition not in ("oracle", "ungated") or not config.keeps_tasks_apart:
            return super().score(model, evaluation, condition, ask)
        if condition == "oracle" and evaluation.role == "probe" and evaluation.name not in config.tasks:
            return super().score(model, evaluation, "off", ask)
        if condition == "oracle" and evaluation.name not in config.tasks:
            return []
        changes = alone(model, evaluation.name) if condition == "oracle" else wide_open(model)
        if condition == "ungated" and not changes:
            return []
        with replaced(changes):
            return ask(model, evaluation)
