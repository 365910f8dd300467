"""The loop. One stage: a model learns one task's rows; methods never change what happens here."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import nn

from nlft.config import TrainConfig
from nlft.data.batch import Batch, Sampler, collate
from nlft.data.packing import pack
from nlft.data.template import Encoded
from nlft.distributed import check_alike, rank, shards_base, shares, sum_gradients, total, world
from nlft.errors import NlftError
from nlft.events import Events, StageLine
from nlft.frozen_prefix import keep_prefix
from nlft.loss import target_loss
from nlft.methods.protocol import Method
from nlft.packed import check_packing
from nlft.peak import read_peak, reset_peak


@dataclass(frozen=True)
class StageCost:
    """What a stage cost."""

    steps: int
    tokens: int
    """Input tokens that were trained on, padding apart, replay apart."""
    seconds: float
    trainable: int
    """Trained parameters."""
    final_loss: float | None
    """Nats per target token, mean over the last tenth of the steps; None without steps."""
    preparing: float = 0.0
    """Seconds before the first step and after the last: calibration."""
    optimizer_bytes: int = 0
    """Of the optimiser's state at the end."""
    peak_rss: int | None = None
    """Most memory that the process held in the steps, bytes."""
    peak_bytes: int | None = None
    """Most memory held on the GPU in the steps, bytes."""
    replay_bytes: int = 0
    """Of the rows that were replayed."""
    regulariser_bytes: int = 0
    """Of what penalties hold after the stage."""


def computes_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether passes are made under bfloat16 autocast: as `train.precision` says, or on a GPU that has it."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def learning_rate(step: int, steps: int, peak: float, warmup: float, schedule: str) -> float:
    """Learning rate of a step.

    Args:
        step: from 0.
        steps: of the stage.
        peak: after warm-up.
        warmup: part of the steps in which the rate rises linearly.
        schedule: `constant`, or `linear` or `cosine` decay to zero over the rest.
    """
    rising = round(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    part = (step - rising) / max(steps - rising, 1)
    if schedule == "linear":
        return peak * (1 - part)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * part))
    return peak


def train_stage(
    model: nn.Module,
    method: Method,
    rows: Sequence[Encoded],
    config: TrainConfig,
    *,
    steps: int,
    lr: float,
    pad_id: int,
    stage: int,
    label: str,
    events: Events,
    console: Console,
    learned: int = 0,
) -> StageCost:
    """Trains `model` on one task.

    The loss of an optimiser step is the sum over its target tokens divided by their number, over all
    micro-batches and processes, so the split into micro-batches does not matter. Of several processes each takes a
    share of the rows of every step; gradients are summed before they are clipped, and every process makes the same
    step.

    Args:
        rows: encoded train rows.
        lr: peak learning rate.
        stage: from 1; seeds differ between stages by it, so that a stage can be repeated by itself.
        label: of the live line.
        learned: tasks that were learned before the first stage, whose seeds are not drawn from again.

    Raises:
        NlftError: nothing is trainable, or the loss is no longer finite.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not steps:
        return StageCost(steps=0, tokens=0, seconds=0.0, trainable=0, final_loss=None)
    if not trained:
        raise NlftError(f"{label}: the method left nothing to train.", "Choose another method or more layers.")
    device = trained[0].device
    autocast = partial(torch.autocast, device.type, torch.bfloat16, computes_in_bf16(config.precision, device))
    reset_peak(device)
    optimizer = method.optimizer(model, lr)
    if config.gradient_checkpointing:
        getattr(model, "gradient_checkpointing_enable")({"use_reentrant": False})  # noqa: B009
    number = learned + stage
    sampler = iter(Sampler(rows, config.batch_size, config.seeds.data + 1000 * number))
    tokens, losses, started = 0, [], time.perf_counter()
    if config.packing:
        check_packing(model, rows, pad_id)
    keep_prefix(model, rows, pad_id)
    model.train()
    with torch.random.fork_rng(), StageLine(console, label, steps) as line:
        torch.manual_seed(config.seeds.dropout + 1000 * number + rank())
        for step in range(steps):
            chosen = next(sampler)
            n_targets = sum(row.n_targets for row in chosen)
            rate = learning_rate(step, steps, lr, config.warmup, config.schedule)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)

            nats = torch.zeros((), device=device)
            for batch, weight in passes_of(chosen, config, pad_id):
                with autocast():
                    loss = target_loss(model, batch.to(device))
                (loss * (weight / n_targets)).backward()
                nats += loss.detach() * weight
            with autocast():
                penalty = method.penalty(model)
            if penalty is not None:
                (penalty / world()).backward()
            sum_gradients(trained)
            norm = torch.nn.utils.clip_grad_norm_(trained, config.clip)
            mean_loss = float(total(nats)) / n_targets
            if not math.isfinite(mean_loss):
                raise NlftError(
                    f"{label}: the loss of step {step + 1} is {mean_loss}, so training diverged.",
                    f"Lower the learning rate (it is {lr:g}).",
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            tokens += sum(len(row.ids) for row in chosen)
            losses.append(mean_loss)
            line.advance(mean_loss, tokens)
            if step % 10 == 0 or step == steps - 1:
                events.write(
                    "step",
                    stage=stage,
                    step=step + 1,
                    loss=mean_loss,
                    lr=rate,
                    grad_norm=float(norm),
                    tokens=tokens,
                )
    model.eval()
    if not all(bool(p.isfinite().all()) for p in trained):
        raise NlftError(
            f"{label}: weights are no longer finite after {steps} steps, so training diverged.",
            f"Lower the learning rate (it is {lr:g}).",
        )
    check_alike(trained, label)
    peak = read_peak(device)
    tail: list[Any] = losses[-max(1, steps // 10) :]
    return StageCost(
        steps=steps,
        tokens=tokens,
        seconds=time.perf_counter() - started,
        trainable=sum(p.numel() for p in trained),
        final_loss=sum(tail) / len(tail),
        optimizer_bytes=state_bytes(optimizer),
        peak_rss=peak.process,
        peak_bytes=peak.gpu,
    )


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors in an optimiser's state."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def passes_of(rows: Sequence[Encoded], config: TrainConfig, pad_id: int) -> list[tuple[Batch, float]]:
    """The forward passes of this process for one step: micro-batches of its share of the rows, each weighing 1.

    Rows are dealt out by their tokens; a share may be empty. With a sharded base every process makes as many passes as
    the one that makes most, for none can compute without the others; those that it adds weigh 0.
    """
    dealt = shares([len(row.ids) for row in rows], world())
    size = config.micro_batch_size or len(rows)
    own = [rows[i] for i in dealt[rank()]]
    together = pack if config.packing else collate
    passes = [(together(own[i : i + size], pad_id), 1.0) for i in range(0, len(own), size)]
    if shards_base():
        most = max(math.ceil(len(share) / size) for share in dealt)
        passes += [(together(rows[:1], pad_id), 0.0)] * (most - len(passes))
    return passes
