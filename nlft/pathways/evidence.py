"""Calibrates a gate for a task: prototypes, drift, and the height that keeps it shut on everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from nlft.calibrate import block_inputs, calibrate_base
from nlft.data.batch import collate
from nlft.errors import NlftError
from nlft.ops.gate import accumulate
from nlft.ops.risk import Exceedances, allowance
from nlft.pathways.gate import PrototypeGate, gate_module, gates_of
from nlft.pathways.prototype import STATES_PER_KEY, HeldOut, prototypes, sample_queries

if TYPE_CHECKING:
    from nlft.data.batch import Batch
    from nlft.data.template import Encoded

DRIFT = 0.5
"""Standard deviations of the background's evidence by which it is pushed below zero at every token."""
HIGHEST = 256.0
"""Evidence (sums of cosine differences) above which a background row keeps the gate shut for good."""


def calibrate_gate(
    model: Any,
    module: str,
    adapter: str,
    background_batches: Sequence[Batch],
    slots: int,
    seed: int = 0,
) -> None:
    """Sets what all tasks share: whitening, and `slots` prototypes of the background.

    Args:
        model: PEFT model with a gate.
        module: the decoder layer whose input the gate reads.
        adapter: the gate's.
        background_batches: general text.
    """
    gate = cast(PrototypeGate, gates_of(model)[adapter])
    [(mean, whitener)] = calibrate_base(model, [module], background_batches).values()
    gate.mean.copy_(mean)
    gate.whitener.copy_(whitener[:, : gate.key_width])
    [states] = sample_queries(model, {module: gate}, background_batches, slots * STATES_PER_KEY, seed).values()
    gate.others = prototypes(model, states, slots, 5, seed)
    model.peft_config[adapter].gate_others = len(gate.others)


def begin_gate(
    model: Any,
    module: str,
    adapter: str,
    name: str,
    task_batches: Iterable[Batch],
    background_batches: Iterable[Batch],
    earlier: HeldOut | None,
    held_out: HeldOut,
    slots: int,
    seed: int = 0,
) -> None:
    """Gives a calibrated gate the prototypes of a new task, and the height that its evidence must pass.

    The height is the least with which a new group of background rows opens the gate with at most the budget's
    probability (see `nlft.ops.risk`); held-out rows chose neither prototypes nor drift. On the train rows of
    earlier tasks the gate keeps to the same rate, or opens on none where they are few; they have shaped the rivals,
    so this is what was counted and no promise about other rows.

    Args:
        model: PEFT model with a gate.
        module: the decoder layer whose input the gate reads.
        adapter: the gate's.
        name: of the task.
        task_batches: its train rows.
        background_batches: general text that sets the drift.
        earlier: train rows of finished tasks.
        held_out: further background, and the budget.
        slots: prototypes of the task.
        seed: of the sample of states and of the first prototypes.

    Raises:
        NlftError: there is too little background for the budget, or no evidence could ever be enough.
    """
    gate = cast(PrototypeGate, gates_of(model)[adapter])
    [states] = sample_queries(model, {module: gate}, task_batches, slots * STATES_PER_KEY, seed, last=False).values()
    keys = prototypes(model, states, slots, 5, seed)
    every = [*(task.keys for task in gate.task_keys), keys]

    count, total, squares = 0, 0.0, 0.0
    for inputs in block_inputs(model, [module], background_batches, again=True):
        contrast = gate.contrast(gate.queries(inputs.states[module]), every)[:, -1].double()
        count += len(contrast)
        total += float(contrast.sum())
        squares += float(contrast.square().sum())
    mean = total / count
    drift = mean + DRIFT * max(squares / count - mean**2, 0.0) ** 0.5

    height = height_of(model, module, gate, every, drift, held_out, allowance(held_out.budget, held_out.groups))
    if earlier is not None:
        allowed = max(0.0, earlier.budget * (earlier.groups + 1) - 1)
        height = max(height, height_of(model, module, gate, every, drift, earlier, allowed))
    if math.isinf(height):
        raise NlftError(
            f"The gate of task {name!r} would never open: the background looks just like the task.",
            "Raise the budget, give more background, or let the gate read a later layer (gate.layer).",
        )
    gate.add_task(keys, drift, height)
    model.peft_config[adapter].gates[name] = len(keys)


def let_through(model: Any, adapter: str, rows: Sequence[Encoded], pad_id: int, batch_size: int) -> list[Encoded]:
    """The rows on which the newest task's gate opens at any token."""
    gate = cast(PrototypeGate, gates_of(model)[adapter])
    keys = [task.keys for task in gate.task_keys]
    drift = torch.stack([task.drift for task in gate.task_keys])
    ordered = sorted(rows, key=lambda row: len(row.ids))
    parts = [ordered[at : at + batch_size] for at in range(0, len(ordered), batch_size)]
    batches = [collate(part, pad_id) for part in parts]
    found = []
    read = row_evidence(model, gate_module(model, adapter), gate, keys, drift, batches)
    for part, (evidence, _) in zip(parts, read, strict=True):
        opened = (gate.opened(evidence)[..., -1] > 0).any(dim=1)
        found += [row for row, one in zip(part, opened.tolist(), strict=True) if one]
    return found


def height_of(
    model: Any, module: str, gate: PrototypeGate, keys: list[torch.Tensor], drift: float, rows: HeldOut, allowed: float
) -> float:
    """The least height that rows of at most the weight `allowed` pass at any token."""
    exceedances = Exceedances(0.0, HIGHEST)
    read = row_evidence(model, module, gate, keys, drift, [batch for batch, _ in rows.batches])
    for (_, weights), (evidence, mask) in zip(rows.batches, read, strict=True):
        # A gate that has opened stays open: the highest sum so far is what counts.
        highest = accumulate(evidence)[..., -1].cummax(dim=1).values
        if rows.unit == "rows":
            exceedances.add(highest[:, -1], weights)
        else:
            exceedances.add(highest[mask], weights[:, None].expand(mask.shape).to(mask.device)[mask])
    return exceedances.height(allowed)


def row_evidence(
    model: Any,
    module: str,
    gate: PrototypeGate,
    keys: list[torch.Tensor],
    drift: torch.Tensor | float,
    batches: Sequence[Batch],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """By batch: evidence [B, T, tasks] for tasks with these keys and drifts, 0 at padding; and which tokens are none,
    [B, T]."""
    for batch, inputs in zip(batches, block_inputs(model, [module], batches, first=True, again=True), strict=True):
        contrast = gate.contrast(gate.queries(inputs.states[module]), keys) - drift
        mask = batch.attention_mask.to(contrast.device) != 0
        evidence = contrast.new_zeros(*mask.shape, len(keys))
        evidence[mask] = contrast
        yield evidence, mask
