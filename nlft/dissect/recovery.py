"""Ten rows again: what comes back after so few was not forgotten, only out of reach (Zheng et al. 2025, 2501.13453)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.dissect.study import Study, spread
from nlft.loss import target_loss
from nlft.pathways.task import TaskPeftConfig
from nlft.pathways.voices import reopened
from nlft.types import Item

SHOWN = 10
"""Train rows of the task, spread evenly over all."""
STEPS = 10
"""Optimiser steps, each on all of these rows, at the method's learning rate without warm-up or decay."""


def recovered(study: Study) -> list[Item]:
    """Scores of each earlier task after a few of its train rows, each time from the final state.

    What is trained is what the method trains when it ends; a part that a task has to itself is opened again. Nothing
    comes back from a method that trains nothing, or that is told the task: what it knows of each is as it was.
    """
    items: list[Item] = []
    if study.learner.told_task:
        return items
    for task in study.prepared.domains.tasks[:-1]:
        with retrained(study.model, task.name) as trained:
            if not trained:
                continue
            train(study, trained, spread(study.prepared.train[task.name], SHOWN))
            only = study.few(lambda one, name=task.name: (one.name, one.split) == (name, "test"))
            items += study.score(only, f"recovered:{task.name}")
    return items


@contextmanager
def retrained(model: Any, task: str) -> Iterator[list[torch.nn.Parameter]]:
    """What can be trained for a task; afterwards every tensor is as before."""
    config = getattr(model, "peft_config", {}).get("default")
    if isinstance(config, TaskPeftConfig) and config.keeps_tasks_apart:
        with reopened(model, task):
            yield [one for one in model.parameters() if one.requires_grad]
        return
    trained = [one for one in model.parameters() if one.requires_grad]
    before = [one.detach().clone() for one in trained]
    try:
        yield trained
    finally:
        with torch.no_grad():
            for one, old in zip(trained, before, strict=True):
                one.copy_(old)


def train(study: Study, trained: list[torch.nn.Parameter], rows: Sequence[Encoded]) -> None:
    """A few steps on a few rows; the model is afterwards in the mode in which it was found."""
    [method] = study.recipe.methods.values()
    model, seeds = study.model, study.recipe.train.seeds
    optimizer: Any = copy.copy(study.learner).optimizer(model, method.lrs[0])
    for group in optimizer.param_groups:
        group["lr"] = method.lrs[0] * group.get("lr_scale", 1.0)
    batch = collate(rows, study.prepared.pad_id).to(trained[0].device)
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seeds.dropout)
        for _ in range(STEPS):
            loss = target_loss(model, batch) / batch.n_targets
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, study.recipe.train.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    if hasattr(optimizer, "flush"):
        optimizer.flush()  # slow levels have waited for a boundary that so few steps do not reach
    for module, mode in modes:
        module.training = mode
