"""Optimisers of `nlft.optim` on one task, each at its own best learning rate.

    python eval/bench/optimizers.py            # eight minutes on one core
    python eval/bench/optimizers.py m3 adamw   # some of them

LoRA of rank 8 on the built-in base learns 256 rows of the task `people` for 60 steps of 16 rows by `nlft.train`, with
warm-up over 10 % and no decay. Loss: nats per target token of these rows afterwards. Learning rates are swept with one
seed, by factors of 4 until the best lies inside, then by 2; the best is run with two more seeds (initialisation and
order of rows), and the loss is the mean of three, with their range.
Times and bytes: full finetuning of the base (1.47 M parameters), one batch of 16 rows, the fastest of 20 steps.
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from nlft.base import load_base
from nlft.config import BaseConfig, LoraConfig, OptimizerConfig, Recipe
from nlft.data.batch import Batch, in_batches
from nlft.data.domain import load_domains
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.events import Events
from nlft.loss import target_loss
from nlft.methods import build_method
from nlft.methods.protocol import TaskContext
from nlft.optim.build import build_optimizer
from nlft.prepare import prepare
from nlft.train import train_stage

STEPS, ROWS, BATCH = 60, 256, 16
CONTENDERS: dict[str, tuple[dict[str, Any], float]] = {
    "adamw": ({"kind": "adamw"}, 4e-3),
    "sgd": ({"kind": "sgd"}, 0.3),
    "sgd, no momentum": ({"kind": "sgd", "momentum": 0.0}, 1.0),
    "muon": ({"kind": "muon"}, 4e-3),
    "delta_gradient_descent": ({"kind": "delta_gradient_descent"}, 1.0),
    "delta_momentum": ({"kind": "delta_momentum"}, 4e-3),
    "delta_momentum, P = I": ({"kind": "delta_momentum", "options": {"preconditioner": "identity"}}, 0.3),
    "delta_momentum, literal": (
        {"kind": "delta_momentum", "options": {"preconditioner": "identity", "normalise": False}},
        0.3,
    ),
    "deep_momentum": ({"kind": "deep_momentum"}, 4e-3),
    "m3": ({"kind": "m3"}, 4e-3),
    "m3, literal": ({"kind": "m3", "options": {"decay": False, "relative": False}}, 1e-5),
}
"""What is compared, and where the sweep of its learning rate begins."""


@dataclass(frozen=True)
class Task:
    """Rows that are learned."""

    rows: list[Encoded]
    pad_id: int
    recipe: Recipe


def make_task() -> Task:
    """The first rows of one task of the built-in world."""
    source = {"path": "builtin:world/tasks/people/train", "limit": ROWS}
    recipe = Recipe.model_validate(
        {
            "name": "optimizers",
            "tasks": [{"name": "people", "train": source, "test": source}],
            "background": {"path": "builtin:world/base/background-text", "limit": 8},
            "methods": {"full": {"kind": "full", "lr": 1e-3}},
            "train": {"steps": STEPS, "batch_size": BATCH, "warmup": 0.1, "schedule": "constant"},
        }
    )
    prepared = prepare(recipe, load_domains(recipe), load_base(BaseConfig(model="builtin:tiny")))
    return Task(prepared.train["people"], prepared.pad_id, recipe)


def loss_of(model: nn.Module, batches: list[Batch]) -> float:
    """Nats per target token."""
    with torch.no_grad():
        nats = sum(float(target_loss(model, b)) for b in batches)
    return nats / sum(b.n_targets for b in batches)


def train(task: Task, fields: dict[str, Any], lr: float, seed: int = 0) -> float:
    """The loss after training at a learning rate; infinite if it diverged."""
    base = load_base(BaseConfig(model="builtin:tiny"))
    method = build_method(LoraConfig.model_validate({"kind": "lora", "lr": lr, "optimizer": fields}))
    model = method.attach(base, seed)
    method.begin_task(model, TaskContext("people", task.rows, [], [], 1, 1, BATCH, task.pad_id, 0))
    try:
        train_stage(
            model,
            method,
            task.rows,
            task.recipe.train,
            steps=STEPS,
            lr=lr,
            pad_id=task.pad_id,
            stage=1 + seed,
            label="people",
            events=Events(None),
            console=Console(quiet=True),
        )
    except NlftError:
        return math.inf
    loss = loss_of(model, in_batches(task.rows, BATCH, task.pad_id))
    return loss if math.isfinite(loss) else math.inf


def sweep(task: Task, fields: dict[str, Any], start: float) -> tuple[float, dict[float, float]]:
    """The best learning rate, and losses by learning rate, those at a quarter and four times of it among them."""
    losses: dict[float, float] = {}

    def measure(exponent: float) -> float:
        lr = start * 4**exponent
        if lr not in losses:
            losses[lr] = train(task, fields, lr)
        return losses[lr]

    best = min((-1, 0, 1), key=measure)
    while abs(best) < 6 and min((best - 1, best + 1), key=measure) != best:
        better = min((best - 1, best, best + 1), key=measure)
        if better == best:
            break
        best = better
    final: float = min((best - 0.5, float(best), best + 0.5), key=measure)
    for exponent in (final - 1, final + 1):
        measure(exponent)
    return start * 4**final, losses


def cost(task: Task, fields: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of a whole training step and of the optimiser's part, and bytes of state per parameter."""
    model = load_base(BaseConfig(model="builtin:tiny")).model.requires_grad_(True).train()
    optimizer = build_optimizer(OptimizerConfig.model_validate(fields), model.parameters(), 1e-6, 0.0, model)
    batch = in_batches(task.rows, BATCH, task.pad_id)[0]
    whole, part, held = [], [], 0
    for _ in range(20):
        started = time.perf_counter()
        (target_loss(model, batch) / batch.n_targets).backward()
        before = time.perf_counter()
        held = max(held, held_bytes(optimizer))
        middle = time.perf_counter()
        optimizer.step()
        ended = time.perf_counter()
        optimizer.zero_grad()
        part.append(ended - middle)
        whole.append(ended - middle + before - started)
    held = max(held, held_bytes(optimizer))
    count = sum(p.numel() for p in model.parameters())
    return min(whole), min(part), held / count


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors in an optimiser's state."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def main(names: list[str]) -> None:
    """Sweeps, measures and prints."""
    task = make_task()
    base = load_base(BaseConfig(model="builtin:tiny")).model
    loss = loss_of(base, in_batches(task.rows, BATCH, task.pad_id))
    grid = Table(
        *("optimiser", "best lr", "loss", "at lr / 4", "at lr x 4", "a step", "its own part", "bytes / parameter"),
        title=f"before training: {loss:.3f} nats; times relative to AdamW",
    )
    unit = cost(task, CONTENDERS["adamw"][0])
    for name in names or CONTENDERS:
        fields, start = CONTENDERS[name]
        best, losses = sweep(task, fields, start)
        seeds = [losses[best], *(train(task, fields, best, seed) for seed in (1, 2))]
        whole, part, held = cost(task, fields)
        below, above = (
            min(losses.items(), key=lambda item, lr=lr: abs(math.log(item[0] / lr)))[1] for lr in (best / 4, best * 4)
        )
        grid.add_row(
            name,
            f"{best:.2g}",
            f"{sum(seeds) / 3:.3f} ({min(seeds):.3f} to {max(seeds):.3f})",
            *(f"{value:.3f}" for value in (below, above)),
            *(f"{value:.2f}x" for value in (whole / unit[0], part / unit[1])),
            f"{held:.1f}",
        )
    console = Console(width=140)
    console.print(grid)
    console.print(f"AdamW: {1e3 * unit[0]:.1f} ms a step, of which {1e3 * unit[1]:.2f} ms its own.")


if __name__ == "__main__":
    main(sys.argv[1:])
