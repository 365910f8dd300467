"""Whether a staged task may become permanent: it must help on rows that it never saw, and harm within a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nlft.config import Recipe
from nlft.data.domain import Domains, load_domains
from nlft.errors import NlftError
from nlft.lifecycle import noted, open_model
from nlft.measure.interval import Difference, paired_difference, wilson
from nlft.measure.unit import is_bounded, sign_of, unit_of
from nlft.pathways.lifecycle import Adapter, attach, known, without_tasks
from nlft.pathways.provenance import PERMANENT, digest, now
from nlft.prepare import prepare
from nlft.run import measure
from nlft.types import Evaluation, Item


@dataclass(frozen=True)
class Effect:
    """What a task does to one evaluation: the adapter with it against the adapter without it."""

    column: str
    metric: str
    before: float
    after: float
    gain: Difference
    """Paired over rows, above zero is better: a share for bounded metrics (0.01 is a point), else of the value before
    (0.01 is one percent of the loss)."""
    changed: float
    """Part of the rows whose score is another."""


@dataclass(frozen=True)
class Verdict:
    """Both halves of a promotion, and what speaks against it."""

    acquisition: Effect
    retention: list[Effect]
    objections: list[str]
    """Sentences; empty if the task may become permanent."""
    remarks: list[str]
    """Sentences on what the measurement could not use or tell."""

    @property
    def worst(self) -> Effect:
        """The evaluation that may have lost most: of the lowest lower end."""
        return min(self.retention, key=lambda one: -math.inf if math.isnan(one.gain.low) else one.gain.low)


def examine(
    adapter: Adapter,
    folder: Path,
    name: str,
    recipe: Recipe,
    budget: float,
    min_acquisition: float,
    lenient: bool = False,
) -> Verdict:
    """Scores an adapter with and without one of its tasks.

    Acquisition is the gain on the recipe's test rows of the task, without those that are its train rows too; it holds
    if the lower end of its 95 % interval is above 0 and at least `min_acquisition`. Retention is the loss on every
    probe, and on the test rows of every other task of the adapter; it holds if the upper end of no loss is more than
    `budget`. The budget is that of this promotion alone: those of several add up.

    Args:
        lenient: retention goes by the losses as measured, not by their upper ends.

    Raises:
        NlftError: the adapter or recipe has no such task, the recipe has nothing to measure retention on, or all
            test rows of the task are train rows.
    """
    known(adapter, name)
    domains, seen = without_train_rows(chosen(load_domains(recipe), list(adapter.config.tasks), name), name)
    base, model = open_model(adapter, folder, recipe)
    prepared = prepare(recipe, domains, base)
    remarks = []
    if seen:
        remarks.append(f"{seen} test rows of {name!r} are also train rows of it, and are left out.")
    if adapter.config.provenance.get(name, {}).get("rows_sha256") != digest(prepared.train[name]):
        remarks.append(
            f"The recipe's train rows of {name!r} are not known to be those that it was trained on, so test rows that"
            " it was trained on may be left."
        )
    attach(model, without_tasks(adapter, [name]), "without")
    scores = []
    for stage, active in enumerate(("without", "default")):
        model.set_adapter(active)
        scores.append(measure(model, base, recipe, prepared, stage, "on"))
    effects = [effect(evaluation, *scores) for evaluation in domains.evaluations]
    acquired = next(one for one in effects if one.column == name)
    kept = [one for one in effects if one.column != name]
    return Verdict(acquired, kept, objections(acquired, kept, budget, min_acquisition, lenient), remarks)


def objections(
    acquired: Effect, kept: list[Effect], budget: float, min_acquisition: float, lenient: bool = False
) -> list[str]:
    """What speaks against a promotion, in sentences."""
    found = []
    if not (acquired.gain.low > 0 and acquired.gain.low >= min_acquisition):
        wanted = f"at least {min_acquisition:.2%}" if min_acquisition > 0 else "above 0"
        found.append(
            f"Acquisition does not hold: the gain on {acquired.gain.n_items} rows is {spell(acquired.gain)}, and its"
            f" lower end must be {wanted}."
        )
    for one in kept:
        if not -one.gain.value <= budget:
            found.append(
                f"Retention does not hold: {one.column!r} changed by {spell(one.gain)}, and may lose {budget:.2%}."
            )
        elif not lenient and not -one.gain.low <= budget:
            found.append(
                f"Retention is not shown: {one.column!r} changed by {spell(one.gain)}, and its lower end must not lie"
                f" below {-budget:.2%}. {wanted_rows(one, budget)}"
            )
    return found


def wanted_rows(one: Effect, budget: float) -> str:
    """What would show that a loss keeps within a budget, as a sentence."""
    groups = one.gain.n_clusters
    if not math.isfinite(one.gain.low):
        return f"{one.gain.n_items} rows in {groups} group give no interval: rows in at least 2 groups are needed."
    room = budget + one.gain.value
    if room <= 0:
        return "The change as measured uses all of it, so no number of rows will do: a larger budget is needed."
    if one.changed:
        needed = math.ceil(groups * ((one.gain.value - one.gain.low) / room) ** 2)  # widths fall by the root
    else:
        needed = groups
        while wilson(0, needed)[1] > budget:
            needed += max(1, needed // 100)
    return (
        f"It has {groups} groups of rows; about {needed:,} are needed if the others change alike. With --lenient the"
        " change as measured counts."
    )


def promoted(adapter: Adapter, name: str, verdict: Verdict, budget: float, lenient: bool = False) -> Adapter:
    """The adapter with the task permanent, and what was measured noted beside it."""
    gain, worst = verdict.acquisition.gain, verdict.worst
    facts: dict[str, Any] = {
        "date": now(),
        "acquisition": [gain.value, gain.low, gain.high],
        "worst": worst.column,
        "retention": [worst.gain.value, worst.gain.low, worst.gain.high],
        "budget": budget,
        "lenient": lenient,
    }
    return noted(adapter, name, status=PERMANENT, promoted=facts)


def chosen(domains: Domains, tasks: list[str], name: str) -> Domains:
    """The test rows of the adapter's tasks, and the probes.

    Raises:
        NlftError: the task is not in the recipe, or nothing else is.
    """
    entries = tuple(
        replace(task, evaluations=tuple(e for e in task.evaluations if e.split == "test"))
        for task in domains.tasks
        if task.name in tasks
    )
    if name not in [task.name for task in entries]:
        raise NlftError(
            f"The recipe has no task {name!r}, so there are no rows to measure its acquisition on.",
            f"Its tasks: {', '.join(task.name for task in domains.tasks)}.",
        )
    if len(entries) == 1 and not domains.probes:
        raise NlftError(
            "The recipe has no probe and no other task of the adapter, so retention cannot be measured.",
            "Add `probes`: knowledge that was not used for calibration.",
        )
    return replace(domains, tasks=entries)


def without_train_rows(domains: Domains, name: str) -> tuple[Domains, int]:
    """The rows without those test rows of a task that are its train rows too, and how many these are.

    Raises:
        NlftError: none is left.
    """
    task = next(task for task in domains.tasks if task.name == name)
    trained = {(row.prompt, row.completion, row.messages) for row in task.train}
    [test] = task.evaluations
    rows = tuple(row for row in test.rows if (row.prompt, row.completion, row.messages) not in trained)
    if test.rows and not rows:
        raise NlftError(
            f"All {len(test.rows)} test rows of {name!r} are also train rows of it, so they show no acquisition.",
            f"Give tasks.{name}.test rows that were not trained on.",
        )
    entries = [replace(one, evaluations=(replace(test, rows=rows),)) if one is task else one for one in domains.tasks]
    return replace(domains, tasks=tuple(entries)), len(test.rows) - len(rows)


def effect(evaluation: Evaluation, without: list[Item], with_it: list[Item]) -> Effect:
    """What a task does to one evaluation, paired row by row.

    Raises:
        NlftError: the metric is not scored.
    """
    metric = evaluation.metric
    pairs = [
        [item for item in items if item.column == evaluation.column and item.metric == metric]
        for items in (without, with_it)
    ]
    if not pairs[0]:
        raise NlftError(f"{evaluation.column!r} has no scores of {metric!r}.")
    values = [[item.value for item in items] for items in pairs]
    weights = [[item.weight for item in items] for items in pairs]
    clusters = [item.cluster for item in pairs[0]]
    bounded = is_bounded(unit_of(metric))
    found = paired_difference(values[0], values[1], weights[0], weights[1], clusters, bounded=bounded)
    before, after = (
        sum(v * w for v, w in zip(*side, strict=True)) / sum(side[1]) for side in zip(values, weights, strict=True)
    )
    scale = sign_of(metric) / (1.0 if bounded or not before else abs(before))
    ends = sorted((scale * found.low, scale * found.high))
    changed = sum(one != two for one, two in zip(*values, strict=True)) / len(clusters)
    gain = replace(found, value=scale * found.value, low=ends[0], high=ends[1])
    return Effect(evaluation.column, metric, before, after, gain, changed)


def spell(gain: Difference) -> str:
    """A gain with its interval: `+3.10% [+1.20%, +5.00%]`."""
    value, low, high = (round(each, 4) + 0.0 for each in (gain.value, gain.low, gain.high))  # no -0.00%
    return f"{value:+.2%} [{low:+.2%}, {high:+.2%}]"
