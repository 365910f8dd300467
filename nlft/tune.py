"""Turns the thresholds of a trained adapter on held-out background, without training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from nlft.adapter import check_no_stage, read_adapter, write_adapter
from nlft.base import FrozenBase, load_base
from nlft.config import DataConfig, Recipe, RetentionConfig
from nlft.data.domain import load_domains
from nlft.data.source import load_rows
from nlft.data.template import Encoded, encode_rows
from nlft.errors import NlftError
from nlft.found_recipe import own_recipe
from nlft.measure.score import score
from nlft.measure.unit import unit_of
from nlft.methods.calibration import SPLIT_SEED
from nlft.ops.risk import allowance
from nlft.pathways.lifecycle import Adapter, stored
from nlft.pathways.prototype import hold_out
from nlft.pathways.provenance import background_digest, backgrounds
from nlft.pathways.shift import has_gate, keys_by_task, set_shift, shifts
from nlft.prepare import Prepared, prepare
from nlft.report.curve import CurveColumn, CurvePoint, draw_curve, show_shift
from nlft.rescore import counted_mean, load_weights, weights_of
from nlft.retain import COSINES, EVIDENCE, Kept, count_clusters, pick, predictions, retention_curve
from nlft.types import Evaluation, Row

WIDE_COSINES = (-0.16, -0.08, -0.04, -0.02, *COSINES)
"""Shifts that are tried on slots: lower thresholds than those of training too."""
WIDE_EVIDENCE = (-3.2, -1.6, -0.8, -0.4, -0.2, -0.1, *EVIDENCE)
"""Shifts that are tried on a gate."""
MOST_TRAIN = 512
"""Train rows of a task on which shifts within the budget are compared."""
UNKNOWN = "The adapter does not note which background calibrated it."
OTHER = "The recipe's background is not the one that calibrated the adapter."
CURVE = "tune.png"
"""Name of the figure in the adapter's folder; the CSV is beside it."""


@dataclass(frozen=True)
class Tuned:
    """The curve of an adapter and the point that was chosen on it."""

    columns: list[CurveColumn]
    points: list[CurvePoint]
    """From the lowest shift to the highest."""
    before: dict[str, float]
    """Shift of every task as it was."""
    shift: float
    smallest: float
    """The smallest shift within the budget."""
    tasks: list[str]
    """Whose thresholds were turned."""
    rows: int
    clusters: int
    folder: Path | None
    """Where it was written; None if it was not."""


def tune_adapter(
    path: str,
    recipe: Recipe | None,
    budget: float,
    *,
    background: str | None = None,
    tasks: Sequence[str] | None = None,
    out: Path | None = None,
    dry_run: bool = False,
    console: Console | None = None,
) -> Tuned:
    """Chooses a shift whose predictions lost stay within a budget, and writes it into the adapter.

    The guarantee of the smallest such shift holds for every larger one too (see `nlft.retain`). So of all these the
    one is taken that predicts most targets of the tasks' train rows, the largest of equals: thresholds below those
    of training often add nothing but loss.

    Args:
        path: an adapter folder, or the result folder of a run.
        recipe: base, tasks, probes and background; a run brings its own.
        budget: most predictions lost, a share; see `nlft.retain` for what is guaranteed.
        background: a file with held-out text; else the half that the recipe's `retention` holds out.
        tasks: whose thresholds are turned; all when None.
        out: where the tuned adapter goes; into its own folder when None.
        dry_run: write nothing.

    Raises:
        NlftError: no thresholds to turn, no held-out rows, too few of them for the budget, a budget that cannot be
            kept, or a checkpoint of an unfinished run that would be changed.
    """
    console = console or Console(quiet=True)
    folder = Path(path)
    if recipe is None and (folder / "config.yaml").is_file():
        recipe = own_recipe(folder / "config.yaml", console)
    weights = weights_of(folder).resolve()
    if out is None and not dry_run:
        check_no_stage(weights)
    if recipe is None:
        raise NlftError(f"{path} is an adapter and brings no tasks and probes.", "Name a recipe with --recipe.")
    if out is not None and out.exists():
        raise NlftError(f"{out} is there already.", "Give a new folder with --out.")
    base = load_base(recipe.base)
    prepared = prepare(recipe, load_domains(recipe), base)
    model = load_weights(weights, base)
    names = list(keys_by_task(model)) if tasks is None else list(tasks)
    before = shifts(model)
    rows = held_out_rows(recipe, model, base, prepared, background, console)
    vouch(budget, rows)

    evaluations = [one for one in prepared.domains.evaluations if one.split == "test"]
    columns = [CurveColumn(one.column, one.role, one.metric, unit_of(one.metric)) for one in evaluations]
    learned = [row for name in names for row in prepared.train.get(name, [])[:MOST_TRAIN]]
    found: list[Kept] = []
    points: list[CurvePoint] = []
    batch_size = recipe.measure.batch_size
    grid = WIDE_EVIDENCE if has_gate(model) else WIDE_COSINES
    with closing(retention_curve(model, rows, prepared.pad_id, names, grid, batch_size)) as curve:
        for kept in curve:
            found.append(kept)
            scores = tuple(column_value(model, base, recipe, prepared, one) for one in evaluations)
            right = share_right(model, learned, prepared.pad_id, batch_size)
            points.append(CurvePoint(kept.shift, kept.lost, kept.bound, right, scores))
            console.print(f"shift {show_shift(kept.shift)}: {100 * kept.lost:.3f} % lost", style="dim")
    smallest = pick(found, budget).shift
    within = [point for point in points if point.shift >= smallest]
    shift = max(within, key=lambda point: (point.learned, point.shift)).shift if learned else smallest
    points = [replace(point, chosen=point.shift == shift) for point in reversed(points)]
    tuned = Tuned(columns, points, before, shift, smallest, names, len(rows), count_clusters(rows), None)
    if dry_run:
        return tuned
    set_shift(model, shift, names)
    # The settings stay as they are written; only shifts are other ones.
    turned = Adapter(read_adapter(weights).config, stored(model, model.active_adapters[0]).tensors)

    def draw(partial: Path) -> None:
        draw_curve(columns, points, budget, partial / CURVE)

    target = weights_of(folder) if out is None else out
    write_adapter(turned, weights, out, draw)
    return replace(tuned, folder=target)


def held_out_rows(
    recipe: Recipe, model: Any, base: FrozenBase, prepared: Prepared, background: str | None, console: Console
) -> list[Encoded]:
    """Background that chose no key of the adapter.

    Rows of the recipe's background beyond its `limit` will not do: what shares no group with the rows that were used
    is not drawn like them (small groups are too many), so the bound would say nothing.

    Raises:
        NlftError: nothing is known to be held out.
    """
    noted = backgrounds(model.active_peft_config)
    same = noted == [background_digest(prepared.background)]
    if background is not None:
        if not same:
            console.print(
                f"{UNKNOWN if not noted else OTHER} So rows of {background} that calibrated it cannot be left out, and"
                " the guarantee holds only if there are none.",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        used = {(row.prompt, row.completion, row.messages) for row in prepared.domains.background}
        used |= {(row.prompt, row.completion, row.messages) for task in prepared.domains.tasks for row in task.train}
        every = load_rows(DataConfig(path=background), "--background")
        rows = [row for row in every if (row.prompt, row.completion, row.messages) not in used]
        if len(rows) < len(every):
            console.print(
                f"{len(every) - len(rows)} of {len(every)} rows of {background} were used in training or calibration"
                " and are left out.",
                highlight=False,
                markup=False,
            )
        return encoded(rows, base, prepared)
    retentions = retention_of(recipe, model)
    if not retentions or None in retentions:
        raise NlftError(
            "No background is known to be held out: the adapter was calibrated on all of the recipe's.",
            "Give other text with --background PATH, or train with `retention: {of: predictions}`, which holds out"
            " half.",
        )
    if noted and not same:
        raise NlftError(
            f"The guarantee does not hold: {OTHER[0].lower()}{OTHER[1:-1]}, and may hold out what did.",
            "Restore the background (its file and its settings), or give other text with --background PATH.",
        )
    if not noted:
        console.print(
            f"{UNKNOWN} The guarantee holds only if it was the recipe's, unchanged.", highlight=False, soft_wrap=True
        )
    if any(one is not None and one.of != "predictions" for one in retentions):
        console.print(
            "The held-out half of the background has chosen the margin of the thresholds, so the bound is a little"
            " optimistic; --background PATH gives other text.",
            highlight=False,
        )
    return hold_out(prepared.background, SPLIT_SEED)[1]


def retention_of(recipe: Recipe, model: Any) -> list[RetentionConfig | None]:
    """The retention settings of the recipe's methods that could have made the adapter."""
    memory = "SPARSE_MEMORY" in str(model.active_peft_config.peft_type).upper()
    found: list[RetentionConfig | None] = []
    for method in recipe.methods.values():
        gate = getattr(method, "gate", None)
        if (method.kind == "sparse_memory") if memory else (method.kind == "lora" and gate):
            # A gate always has a budget.
            found.append(getattr(method, "retention", None) or (RetentionConfig() if gate else None))
    return found


def encoded(rows: Sequence[Row], base: FrozenBase, prepared: Prepared) -> list[Encoded]:
    """Held-out rows as token ids; the end of a long row is cut.

    Raises:
        NlftError: there are none.
    """
    if not rows:
        raise NlftError("The held-out background has no rows.", "Give other text with --background PATH.")
    return encode_rows(rows, base.tokenizer, prepared.max_length, "truncate")


def vouch(budget: float, rows: Sequence[Encoded]) -> None:
    """Refuses a budget that so few rows cannot vouch for, before anything is computed.

    Raises:
        NlftError: naming what they can vouch for.
    """
    clusters = count_clusters(rows)
    try:
        allowance(budget, clusters)
    except NlftError as error:
        raise NlftError(
            f"{error.message} These {clusters} can vouch for {100 / (clusters + 1):.3g} % at best.", error.hint
        ) from error


def column_value(model: Any, base: FrozenBase, recipe: Recipe, prepared: Prepared, evaluation: Evaluation) -> float:
    """Mean score of one column at the shift that the model has."""
    items = score(
        model,
        base.tokenizer,
        evaluation,
        stage=1,
        condition="on",
        batch_size=recipe.measure.batch_size,
        max_length=prepared.max_length,
        max_new_tokens=recipe.measure.max_new_tokens,
        too_long=prepared.too_long[evaluation.column],
    )
    return counted_mean(items, evaluation.column, evaluation.metric)[1]


def share_right(model: Any, rows: Sequence[Encoded], pad_id: int, batch_size: int) -> float:
    """Share of all targets that the model predicts right; 0 without rows."""
    right = [bool(one) for mask in predictions(model, rows, pad_id, batch_size) for one in mask]
    return sum(right) / max(1, len(right))
