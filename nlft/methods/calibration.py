"""What methods with keys do when a task begins: statistics, a gate, and the parts of the background."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nlft.anatomy import decoder_layers
from nlft.base import FrozenBase
from nlft.config import GateConfig, RetentionConfig
from nlft.data.batch import Batch, in_batches
from nlft.data.template import Encoded
from nlft.frozen_prefix import keep_prefix
from nlft.methods.protocol import TaskContext
from nlft.ops.risk import allowance
from nlft.pathways.evidence import begin_gate, calibrate_gate, let_through
from nlft.pathways.gate import gate_module
from nlft.pathways.prototype import held_out_batches, hold_out
from nlft.pathways.provenance import note_background

CALIBRATION_BATCH = 64
"""Rows of a calibration forward pass."""
SPLIT_SEED = 20_251
"""The background is split alike in every task, so that a held-out row of one is held out in all."""


@dataclass(frozen=True)
class Parts:
    """The rows of a task context as calibration uses them."""

    task: list[Batch]
    earlier: list[Batch]
    background: list[Batch]
    """What sets thresholds: all of the background, or the half that is not held out."""
    background_rows: list[Encoded]
    held_out_rows: list[Encoded]
    """The other half as rows; empty without a budget."""
    budget: float
    """This task's share of the budget, 1 without one."""
    budget_so_far: float
    """The shares of this task and of all before it."""
    unit: Literal["rows", "tokens"]


def keep_rows(model: Any, context: TaskContext) -> None:
    """Keeps what the frozen part of the base computes for the rows that calibration reads several times."""
    for rows in (context.background, context.earlier, context.train):
        keep_prefix(model, rows, context.pad_id)


def split_context(context: TaskContext, retention: RetentionConfig | None) -> Parts:
    """Batches for calibration; with a budget half of the background's groups are held out."""
    rows, others, budget, unit = list(context.background), [], 1.0, "rows"
    if retention is not None:
        rows, others = hold_out(context.background, SPLIT_SEED)
        # Every task gets an equal part, so that all together keep within the budget (Bonferroni).
        budget = retention.budget / context.n_tasks
        unit = "tokens" if retention.of == "tokens" else "rows"
    return Parts(
        batches(context.train, context.pad_id),
        batches(context.earlier, context.pad_id),
        batches(rows, context.pad_id),
        rows,
        others,
        budget,
        budget * context.number,
        unit,
    )


def retention_of(config: Any) -> RetentionConfig | None:
    """The budget that a method's section of a recipe sets; a gate has one even if none is written."""
    gated = getattr(config, "gate", None) is not None
    return getattr(config, "retention", None) or (RetentionConfig() if gated else None)


def check_budget(config: Any, background: Sequence[Encoded], n_tasks: int) -> None:
    """Refuses a budget that the held-out half of the background cannot vouch for.

    Args:
        config: a method's section of a recipe.

    Raises:
        NlftError: naming how much is needed.
    """
    # Without a gate, finished tasks are read while a later one is calibrated, and their thresholds were chosen on
    # these same rows: there the bound is exact for the first task and a close estimate for later ones.
    retention = retention_of(config)
    if retention is not None:
        _, held_out = hold_out(background, SPLIT_SEED)
        allowance(retention.budget / n_tasks, len({row.cluster for row in held_out}))


def place_gate(model: Any, config: GateConfig, parts: Parts, context: TaskContext, adapter: str = "default") -> None:
    """Gives the gate the prototypes of a task; what all tasks share is set before the first."""
    module = gate_module(model, adapter)
    if not model.peft_config[adapter].gates:
        calibrate_gate(model, module, adapter, parts.background, config.slots, context.seed)
    budget, unit = parts.budget, parts.unit
    earlier = held_out_batches(context.earlier, budget, unit, context.pad_id, CALIBRATION_BATCH)
    begin_gate(
        model,
        module,
        adapter,
        context.name,
        parts.task,
        parts.background,
        earlier if context.earlier else None,
        held_out_batches(parts.held_out_rows, budget, unit, context.pad_id, CALIBRATION_BATCH),
        slots=config.slots,
        seed=context.seed,
    )


def begin_gated_task(
    model: Any, config: Any, context: TaskContext, begin_task: Callable[[Any, str, int], None]
) -> TaskContext:
    """Calibrates the gate for a task, and adds the task's part behind it.

    Args:
        config: section of a recipe with `gate`, `retention` and `replay`.
        begin_task: adds the part, given the model, the task's name and a seed.

    Returns:
        The context with the background rows that replay may draw from: where the gate is shut the part is off, and
        there is nothing to unlearn.
    """
    keep_rows(model, context)
    parts = split_context(context, retention_of(config))
    place_gate(model, config.gate, parts, context)
    begin_task(model, context.name, context.seed)
    note_background(model.peft_config["default"], context.background)
    rows = parts.background_rows
    if config.replay is not None and config.replay.source == "background":
        rows = let_through(model, "default", rows, context.pad_id, CALIBRATION_BATCH)
    return replace(context, background=rows)


def gate_fields(config: GateConfig | None, base: FrozenBase) -> dict[str, Any]:
    """Fields of a pathway's PEFT config that describe its gate."""
    if config is None:
        return {"gate_layer": None}
    return {"gate_layer": config.place(len(decoder_layers(base.model)[1])), "gate_decay": config.decay}


def batches(rows: Sequence[Encoded], pad_id: int) -> list[Batch]:
    """Calibration batches."""
    return in_batches(rows, CALIBRATION_BATCH, pad_id)
