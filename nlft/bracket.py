"""Learning rates beyond the ends of a sweep, where a method learned most at an end of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlft.cells import has_diverged
from nlft.config import Recipe
from nlft.measure.account import method_config, values_of
from nlft.measure.frontier import ceilings
from nlft.measure.items import read_run_items
from nlft.measure.matrix import build_matrix, columns_of

RATIO = 3.0
"""Between a rate and the next where the sweep has one rate, and so no ratio of its own."""


@dataclass(frozen=True)
class Added:
    """A learning rate that no recipe asked for."""

    method: str
    lr: float
    why: str


def rates_beyond(recipe: Recipe, out: Path, rows: Sequence[Mapping[str, Any]]) -> list[Added]:
    """Rates to add to a comparison whose results lie in `out`.

    A point is a learning rate and a number of steps; its value is the mean over runs of normalised learning at the
    end of the sequence.

    Args:
        rows: the lines of the runs, failed ones too.
    """
    rows = [row for row in rows if row["setting"] == "sequence"]
    learned = learning_of(recipe, out, [row["run_id"] for row in rows if row["status"] == "ok"])
    added = []
    for method in recipe.methods:
        own = [row for row in rows if row["method"] == method]
        # A run that failed for another reason says nothing about its rate.
        if any(row["status"] != "ok" and not has_diverged(row) for row in own):
            continue
        points: dict[tuple[float, int], list[float]] = {}
        for row in own:
            point = row["lr"], method_config(row)["steps"]
            points.setdefault(point, []).append(learned.get(row["run_id"], -math.inf))
        best: dict[float, float] = {}
        for (lr, _), values in points.items():
            best[lr] = max(best.get(lr, -math.inf), sum(values) / len(values))
        if 0 in best or any(math.isnan(value) for value in best.values()):
            continue  # no learning rate, or nothing to learn
        added += [Added(method, lr, why) for lr, why in beyond(best)]
    return added


def learning_of(recipe: Recipe, out: Path, run_ids: Sequence[str]) -> dict[str, float]:
    """Normalised learning at the end, by run: 0 is the base, 1 the most that could be learned."""
    items = {name: of_run for name, of_run in read_run_items(out / "items.parquet").items() if name in set(run_ids)}
    tasks = [task.name for task in recipe.tasks]
    metrics = {entry.name: entry.metric for entry in (*recipe.tasks, *recipe.probes)}
    columns = columns_of([item for of_run in items.values() for item in of_run], tasks, metrics)
    matrices = {name: build_matrix(of_run, columns, len(tasks)) for name, of_run in items.items()}
    ceiling = ceilings(list(matrices.values()), columns)
    return {name: values_of(R, columns, tasks, ceiling)["learning"]["end"] for name, R in matrices.items()}


def beyond(learned: Mapping[float, float]) -> list[tuple[float, str]]:
    """Rates beyond the ends of one sweep, each with its reason; none when the best point lies inside.

    The next rate is as far from the end as the rate before it is, as a ratio; a third and three times where there
    is one rate.

    Args:
        learned: by rate; -inf where training diverged, which makes that end an end.
    """
    rates = sorted(learned)
    if not rates:
        return []
    best = max(rates, key=lambda lr: learned[lr])
    if math.isinf(learned[best]):
        return [(_step(rates[0], 1 / _ratio(rates, 0)), f"every rate from {rates[0]:g} on diverged")]
    found = []
    for end, inner, place in ((rates[0], rates[1:], "smallest"), (rates[-1], rates[:-1], "largest")):
        # A tie with a point inside is no reason to go on: there is nothing more to learn out there.
        if all(learned[end] > learned[lr] for lr in inner):
            ratio = _ratio(rates, 0) if place == "smallest" else _ratio(rates, -1)
            lr = _step(end, 1 / ratio if place == "smallest" else ratio)
            found.append((lr, f"most was learned at {end:g}, the {place} rate tried ({learned[end]:.0%})"))
    return found


def _ratio(rates: Sequence[float], end: int) -> float:
    if len(rates) < 2:
        return RATIO
    return rates[1] / rates[0] if end == 0 else rates[-1] / rates[-2]


def _step(lr: float, ratio: float) -> float:
    return float(f"{lr * ratio:.2g}")  # so that a rerun finds the same number
