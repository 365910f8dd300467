"""The bootstrap of a comparison: what its runs would have said with other items, seeds and orders.

A draw takes clusters of items of every column with replacement, and (seed, order) cells with replacement
(`sample.draw_cells`), and works every run's learning and forgetting out again. Both are the same for all methods,
learning rates, steps and stages of a draw, so that everything stays paired.

All cells of a draw share its items: they were scored on the same ones, so that items are crossed with cells, not nested
in them (Owen 2007, 0712.1111). Items drawn anew in every cell would average their noise away, and intervals would cover
too little (tests/measure/test_bootstrap.py holds both).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlft.measure.curve import Array
from nlft.measure.interval import draw_clusters
from nlft.measure.matrix import Column, Matrix
from nlft.measure.sample import Sample
from nlft.measure.unit import pick_unit
from nlft.types import Item

Run = Mapping[str, Any]
DRAWS = 2000
BASE, NOW, END = range(3)


def samples_of(
    runs: Sequence[Run],
    items: Mapping[str, Sequence[Item]],
    columns: Sequence[Column],
    ceiling: Matrix,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Sample]:
    """The samples of a comparison by moment, "now" and "end".

    Args:
        runs: accounts of the runs (`account.account_of`); those that did not finish are left out.
        items: the scores, by run.
        columns: the columns of the matrices.
        ceiling: s [J], oriented (`frontier.ceilings`); it stays as it is in all draws.
        draws: draws of the bootstrap; 0 for none. With fewer than two cells there are none.
        seed: of the draws of items; the global random state is not touched.
    """
    runs = [run for run in runs if run["status"] == "ok"]
    cells = {cell: place for place, cell in enumerate(dict.fromkeys(cell_of(run) for run in runs))}
    groups: dict[str, dict[Any, list[int]]] = {}
    for place, run in enumerate(runs):
        groups.setdefault(run["method"], {}).setdefault((run["lr"], run["steps"]), []).append(place)
    drawn = draw_runs(runs, items, columns, ceiling, draws, seed) if draws and len(cells) > 1 else None
    lost = np.array([run["values"]["base_forgetting"] for run in runs], dtype=np.float64)
    return {
        moment: Sample(
            np.array([run["values"]["learning"][moment] for run in runs], dtype=np.float64),
            lost,
            np.array([cells[cell_of(run)] for run in runs], dtype=np.intp),
            {method: [own[point] for point in sorted(own)] for method, own in groups.items()},
            (drawn[moment], drawn["lost"]) if drawn else None,
        )
        for moment in ("now", "end")
    }


def cell_of(run: Run) -> tuple[Any, ...]:
    """The seed and the order of a run: what runs of several methods share."""
    return (run["seed"], *run["order"])


def draw_runs(
    runs: Sequence[Run],
    items: Mapping[str, Sequence[Item]],
    columns: Sequence[Column],
    ceiling: Matrix,
    draws: int,
    seed: int = 0,
) -> dict[str, Array]:
    """Learning "now" and "end" and what was "lost" of every run, with resampled items: [draws, N] each.

    As `account.values_of` has them of the items as they are.
    """
    tests = [j for j, column in enumerate(columns) if (column.role, column.split) == ("task", "test")]
    probes = [j for j, column in enumerate(columns) if column.role == "probe"]
    unit = pick_unit([columns[j].unit for j in probes])
    probes = [j for j in probes if columns[j].unit == unit]
    sums = _cluster_sums(runs, items, [columns[j] for j in [*tests, *probes]])
    seeds = np.random.SeedSequence(seed).spawn(len(sums))
    shape = (draws, len(runs))
    gained, kept = {NOW: np.zeros(shape), END: np.zeros(shape)}, np.zeros(shape)
    for place, j in enumerate(tests):
        means = columns[j].sign * _means(sums[place], draws, seeds[place])
        learns = np.array([columns[j].name in run["order"] for run in runs])
        room = ceiling[j] - means[..., BASE]
        with np.errstate(invalid="ignore", divide="ignore"):
            counts = ~(room <= 1e-12) & learns  # nothing to learn: left out, as `frontier.normalised_learning` does
            for moment, total in gained.items():
                total += np.where(counts, (means[..., moment] - means[..., BASE]) / room, 0.0)
        kept += counts
    lost = np.zeros(shape)
    for place, j in enumerate(probes, start=len(tests)):
        means = columns[j].sign * _means(sums[place], draws, seeds[place])
        lost += (means[..., BASE] - means[..., END]) / len(probes)
    with np.errstate(invalid="ignore", divide="ignore"):
        learning = [np.where(kept > 0, total / kept, np.nan) for total in gained.values()]
    return {"now": learning[0], "end": learning[1], "lost": lost if probes else np.full(shape, np.nan)}


def _cluster_sums(runs: Sequence[Run], items: Mapping[str, Sequence[Item]], columns: Sequence[Column]) -> list[Array]:
    """Of every column the sums of value * weight and of weight by run, moment (BASE, NOW, END) and cluster:
    [2, N, 3, n]. A probe has no NOW."""
    places = {(column.column, column.metric): j for j, column in enumerate(columns)}
    clusters: list[dict[str, int]] = [{} for _ in columns]
    found: list[list[tuple[int, int, float, float]]] = [[] for _ in columns]  # (run and moment, cluster, sum, weight)
    for n, run in enumerate(runs):
        last = len(run["order"])
        now = [run["order"].index(c.name) + 1 if c.name in run["order"] else -1 for c in columns]
        now = [stage if column.role == "task" else -1 for stage, column in zip(now, columns, strict=True)]
        for item in items.get(run["run_id"], ()):
            j = places.get((item.column, item.metric), -1)
            stage = item.stage
            if j < 0 or item.condition != ("base" if stage == 0 else "on"):
                continue
            if stage and stage != last and stage != now[j]:
                continue
            cluster = clusters[j].setdefault(item.cluster or item.item_id, len(clusters[j]))
            total = item.value * item.weight
            if stage == 0:
                found[j].append((3 * n + BASE, cluster, total, item.weight))
            if stage == now[j]:
                found[j].append((3 * n + NOW, cluster, total, item.weight))
            if stage and stage == last:
                found[j].append((3 * n + END, cluster, total, item.weight))
    sums = []
    for own, names in zip(found, clusters, strict=True):
        size = max(len(names), 1)
        rows, which, *values = (np.array([entry[k] for entry in own]) for k in range(4))
        flat = (rows * size + which).astype(np.intp) if len(own) else np.empty(0, dtype=np.intp)
        each = [np.bincount(flat, value, 3 * len(runs) * size) for value in values]
        sums.append(np.stack(each).reshape(2, len(runs), 3, size))
    return sums


def _means(sums: Array, draws: int, seed: np.random.SeedSequence) -> Array:
    """Means [draws, N, 3] of resampled clusters; NaN of what was not measured."""
    _, runs, moments, n = sums.shape
    flat = sums.reshape(2, runs * moments, n)
    found = []
    for counts in draw_clusters(n, draws, seed):
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((counts @ flat[0].T) / (counts @ flat[1].T))
    return np.concatenate(found).reshape(draws, runs, moments)
