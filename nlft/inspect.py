"""Inspects the keys of an adapter, or those that a recipe would train on: are they read evenly, are they silent where
they should be, and do the wordings of one fact read the same slots?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nlft.base import FrozenBase, load_base
from nlft.config import Recipe, SparseMemoryConfig
from nlft.data.domain import load_domains
from nlft.data.template import Encoded, encode_rows
from nlft.errors import NlftError
from nlft.measure.firing import Core, Firing, core_of, fire, wordings
from nlft.methods import build_method
from nlft.methods.calibration import Parts, split_context
from nlft.methods.protocol import TaskContext
from nlft.ops.health import divergence_from_uniform, frequency_deciles, median_frequency, top_share, usage
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import memories
from nlft.pathways.sparse_memory.product_key import background_reads, check_health
from nlft.prepare import Prepared, prepare
from nlft.recipes import load_recipe
from nlft.rescore import load_weights, weights_of

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of thresholds."""


@dataclass(frozen=True)
class TableHealth:
    """How evenly the background reads a product-key table."""

    block: str
    slots: int
    usage: float
    divergence: float
    """KL divergence from even use, in nats."""
    top_share: float
    """Share of all reads that the most read 1 % of slots take."""
    median: float
    """Median df / |B| over the slots that are read."""
    deciles: list[int]
    """Slots that are read by 0-10 %, 10-20 % ... of the documents."""
    documents: int
    document_tokens: int


@dataclass(frozen=True)
class SlotHealth:
    """The slots of one task at one block, read by the task's own rows."""

    task: str
    block: str
    slots: int
    ever: float
    """Share of the slots that the task reads at all."""
    owned: float
    """Share of the task's tokens that read a slot."""
    thresholds: list[float] | None
    """Quantiles (least, quarters, largest) as they hold now; prototypes only."""
    core: Core
    """Of the task's slots."""
    table_core: Core | None
    """Of all slots that are read, trained or not; product keys only."""


@dataclass(frozen=True)
class TextFiring:
    """How much of one text reads one task, at any block."""

    task: str
    text: str
    rows: int
    tokens: int
    row_share: float
    token_share: float


@dataclass(frozen=True)
class Inspection:
    """Everything that `nlft inspect` shows."""

    tables: list[TableHealth]
    slots: list[SlotHealth]
    firing: list[TextFiring]
    remarks: list[str]
    """What is wrong, in sentences."""


def inspect_keys(
    path: str,
    overrides: Sequence[str] = (),
    method: str | None = None,
    recipe: Recipe | None = None,
    console: Console | None = None,
) -> Inspection:
    """Inspects an adapter, or what a recipe would train on; nothing is trained or written.

    Args:
        path: an adapter's folder, a result folder, or a recipe.
        overrides: of the recipe.
        method: of the recipe; may be None if one method alone has keys.
        recipe: base and rows for an adapter; a result folder brings its own.

    Raises:
        NlftError: there is nothing to inspect.
    """
    console = console or Console(quiet=True)
    folder = Path(path)
    if not folder.is_dir():
        recipe = recipe or load_recipe(path, list(overrides))
    elif recipe is None and (folder / "config.yaml").is_file():
        # Nobody has asked for what this file asks for.
        recipe = load_recipe(str(folder / "config.yaml"), [*overrides, "base.trust_remote_code=false"])
    if recipe is None:
        raise NlftError(f"{path} is an adapter and brings no rows.", "Name a recipe with --recipe.")
    name = method_with_keys(recipe, method)
    weights = weights_of(folder) if folder.is_dir() else None
    base = load_base(recipe.base)
    prepared = prepare(recipe, load_domains(recipe), base)
    found = Inspection([], [], [], [])
    for number, model, parts in stages(recipe, name, base, prepared, weights):
        task = prepared.domains.tasks[number].name
        console.print(f"{task} …", style="dim", highlight=False)
        config = model.peft_config["default"]
        if isinstance(config, SparseMemoryPeftConfig) and config.addressing == "product_key" and not found.tables:
            inspect_tables(model, parts, recipe.methods[name], found)
        inspect_task(model, list(config.tasks).index(task), number, parts, base, recipe, prepared, found)
    if not found.firing:
        raise NlftError(f"{path} holds none of the recipe's tasks.", "Give the recipe that it was trained with.")
    return found


def method_with_keys(recipe: Recipe, method: str | None) -> str:
    """The method that is inspected.

    Raises:
        NlftError: it is not clear which, or it has no keys.
    """
    able = [
        name
        for name, one in recipe.methods.items()
        if isinstance(one, SparseMemoryConfig) or getattr(one, "gate", None)
    ]
    if method is None and len(able) == 1:
        return able[0]
    if method in able:
        return str(method)
    problem = f"{len(able)} methods of the recipe have keys" if method is None else f"The method {method!r} has no keys"
    raise NlftError(f"{problem}.", f"Choose one of {', '.join(able)} with --method." if able else "")


def stages(
    recipe: Recipe, name: str, base: FrozenBase, prepared: Prepared, weights: Path | None
) -> Iterator[tuple[int, Any, Parts]]:
    """The number of each task, the model that holds it, and the rows that calibrate it.

    Without weights every task is begun and ended in turn, with values that stay zero.
    """
    config = recipe.methods[name]
    if isinstance(config, SparseMemoryConfig):
        config = config.model_copy(update={"health": "ignore"})
    learner: Any = build_method(config)
    model: Any = load_weights(weights, base) if weights else learner.attach(base, recipe.train.seeds.init)
    tasks = prepared.domains.tasks
    for number, task in enumerate(tasks):
        context = TaskContext(
            name=task.name,
            train=prepared.train[task.name],
            earlier=[row for before in tasks[:number] for row in prepared.train[before.name]],
            background=prepared.background,
            number=number + 1,
            n_tasks=len(tasks),
            batch_size=recipe.train.batch_size,
            pad_id=prepared.pad_id,
            seed=recipe.train.seeds.init + 1000 * (number + 1),
        )
        parts = split_context(context, learner.retention)
        if weights is None:
            learner.begin_task(model, context)
            yield number, model, parts
            learner.end_task(model)
        elif task.name in model.peft_config["default"].tasks:
            yield number, model, parts


def inspect_tables(model: Any, parts: Parts, config: Any, found: Inspection) -> None:
    """How evenly the background reads every table."""
    reads = background_reads(model, parts.background)
    try:
        check_health(reads, config.choice)
    except NlftError as error:
        found.remarks.append(str(error))
    for block, table in reads.blocks.items():
        found.tables.append(
            TableHealth(
                block,
                len(table.counts),
                usage(table.counts),
                divergence_from_uniform(table.counts),
                top_share(table.counts),
                median_frequency(table.frequency, table.n_documents),
                frequency_deciles(table.frequency, table.n_documents),
                table.n_documents,
                reads.document_tokens,
            )
        )


def inspect_task(
    model: Any,
    place: int,
    number: int,
    parts: Parts,
    base: FrozenBase,
    recipe: Recipe,
    prepared: Prepared,
    found: Inspection,
) -> None:
    """What the task's own rows read, what other texts read, and what wordings have in common.

    Args:
        place: number of the task in the adapter.
        number: number of the task in the recipe.
    """
    task = prepared.domains.tasks[number]
    own = fire(model, place, prepared.train[task.name], prepared.pad_id)
    found.firing.append(share_of(own, task.name, "its train rows"))
    for text, rows in texts(recipe, base, prepared, parts):
        found.firing.append(share_of(fire(model, place, rows, prepared.pad_id), task.name, text))
    if not own.blocks:
        return
    rows, facts = wordings(task.train + tuple(row for one in task.evaluations for row in one.rows))
    encoded = encode_rows(rows, base.tokenizer, prepared.max_length, "truncate")
    prompts = fire(model, place, encoded, prepared.pad_id).blocks
    cores = []
    for block, memory in memories(model).items():
        part, firing = memory.task_slots[place], own.blocks[block]
        thresholds = None
        if memory.addressing == "prototype":
            limits = (part.thresholds + part.shift).double()
            thresholds = limits.quantile(limits.new_tensor(QUANTILES)).tolist()
        cores.append(core_of(facts, prompts[block].prompts))
        found.slots.append(
            SlotHealth(
                task.name,
                block,
                len(firing.ever),
                float(firing.ever.double().mean()),
                firing.tokens / own.tokens,
                thresholds,
                cores[-1],
                core_of(facts, prompts[block].table) if memory.addressing == "product_key" else None,
            )
        )
    found.remarks.extend(core_remark(task.name, cores))


def core_remark(task: str, cores: Sequence[Core]) -> Iterator[str]:
    """A sentence if at no block all wordings of a fact have a slot in common."""
    if cores[0].facts and not any(one.shared for one in cores):
        yield (
            f"{task}: the core set is empty: at no block do all wordings of a fact read a common slot of the task, so"
            " no training of values carries it from the wordings that are trained to the others. Raise `slots`, choose"
            " other `layers`, or train on more wordings."
        )


def texts(
    recipe: Recipe, base: FrozenBase, prepared: Prepared, parts: Parts
) -> Iterator[tuple[str, Sequence[Encoded]]]:
    """Texts on which a task should be silent: background, and probes, which calibrate nothing (see
    `eval/false_fire.py` for new text like the background)."""
    if parts.held_out_rows:
        yield "background, held out (it set the margin)", parts.held_out_rows
    else:
        yield "background, calibrated on", prepared.background
    for probe in prepared.domains.probes:
        too_long = prepared.too_long[probe.column]
        yield f"probe {probe.name}", encode_rows(probe.rows, base.tokenizer, prepared.max_length, too_long)


def share_of(firing: Firing, task: str, text: str) -> TextFiring:
    """Counts as shares."""
    rows, tokens = max(1, firing.rows), max(1, firing.tokens)
    return TextFiring(task, text, firing.rows, firing.tokens, firing.fired_rows / rows, firing.fired_tokens / tokens)
