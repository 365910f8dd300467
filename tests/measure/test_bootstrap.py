"""The bootstrap over runs: against the accounts of the runs, in what it pairs, and by its coverage."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from nlft.measure.account import values_of
from nlft.measure.bootstrap import draw_runs, samples_of
from nlft.measure.curve import read_curves
from nlft.measure.matrix import Column, build_matrix
from nlft.measure.sample import draw_cells, limits_of
from nlft.types import Item

ITEMS = 40
CEILING = np.array([-2.0, -2.0, -1.0])
COLUMNS = [
    Column("a", "a", "task", "test", "nll", ITEMS),
    Column("b", "b", "task", "test", "nll", ITEMS),
    Column("g", "g", "probe", "test", "nll", ITEMS),
]
SLOPES = {"full": 0.6, "memory": 0.2}
"""What a method loses (nats) where it has learned everything; in proportion below."""
LEARNED = {1.0: 0.3, 2.0: 0.7}
Data = tuple[list[dict[str, Any]], dict[str, list[Item]]]


def simulate(generator: np.random.Generator, cells: int = 6, over_cells: float = 0.05, over_items: float = 0.4) -> Data:
    """Runs of two methods at two rates, tasks in turn, with effects of cells, of items and of both."""
    effects = {method: generator.normal(0, over_items, ITEMS) for method in SLOPES}
    runs, items = [], {}
    for cell in range(cells):
        order = ["a", "b"] if cell % 2 else ["b", "a"]
        for method, slope in SLOPES.items():
            luck = generator.normal(0, over_cells)
            for lr, learned in LEARNED.items():
                run_id, own = f"{method}{lr:g}{cell}", []
                own += [score(0, column, 4.0 if column.role == "task" else 1.0, np.zeros(ITEMS)) for column in COLUMNS]
                for place, name in enumerate(order):
                    noise = generator.normal(0, 0.1, ITEMS) + generator.normal(0, over_cells)
                    after = 4.0 - 2.0 * learned + noise
                    column = COLUMNS[0 if name == "a" else 1]
                    own += [score(stage, column, 0.0, after) for stage in range(place + 1, 3)]
                lost = slope * learned + luck + effects[method] + generator.normal(0, 0.1, ITEMS)
                own.append(score(2, COLUMNS[2], 1.0, lost))
                items[run_id] = [item for part in own for item in part]
                runs.append(account(run_id, method, lr, cell, order, items[run_id]))
    return runs, items


def score(stage: int, column: Column, level: float, values: np.ndarray) -> list[Item]:
    condition = "on" if stage else "base"
    name, role, split, metric = column.column, column.role, column.split, column.metric
    return [
        Item(stage, condition, name, role, split, metric, f"{i}", "", level + value, 1.0, "")
        for i, value in enumerate(values.tolist())
    ]


def account(run_id: str, method: str, lr: float, seed: int, order: list[str], items: list[Item]) -> dict[str, Any]:
    values = values_of(build_matrix(items, COLUMNS, 2), COLUMNS, order, CEILING)
    keys = {"run_id": run_id, "method": method, "lr": lr, "steps": 10, "seed": seed, "order": order, "status": "ok"}
    return keys | {"values": values}


def intervals(data: Data, draws: int, seed: int, level: float = 0.5) -> dict[str, tuple[float, float, float]]:
    """Forgetting at a level and the difference of the methods there: (value, low, high)."""
    sample = samples_of(*data, COLUMNS, CEILING, draws, seed)["end"]
    every = np.ones(sample.n_cells, dtype=bool)
    values, drawn = {}, {}
    for method in SLOPES:
        for way, found in (("whole", values), ("draws", drawn)):
            curves = sample.curves(way, method, every)
            assert curves is not None
            found[method] = read_curves(curves, level)
    for found in (values, drawn):
        found["difference"] = found["memory"] - found["full"]
    limits = {name: limits_of(own) for name, own in drawn.items()}
    return {name: (float(values[name][0]), limits[name].low, limits[name].high) for name in values}


def coverage(trials: int, draws: int, **options: Any) -> dict[str, float]:
    truth = {method: slope * 0.5 for method, slope in SLOPES.items()}
    truth["difference"] = truth["memory"] - truth["full"]
    hits = dict.fromkeys(truth, 0)
    generator = np.random.default_rng(5)
    for trial in range(trials):
        for name, (_, low, high) in intervals(simulate(generator, **options), draws, trial).items():
            hits[name] += low <= truth[name] <= high
    return {name: count / trials for name, count in hits.items()}


def test_coverage_is_near_its_level() -> None:
    """Six cells; items count for more than cells, as they do in the built-in world."""
    found = coverage(60, 300)
    assert all(0.85 <= share <= 1.0 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"over_cells": 0.02, "over_items": 0.4}, 0.91),
        ({"over_cells": 0.05, "over_items": 0.2}, 0.90),
        ({"cells": 12, "over_cells": 0.05, "over_items": 0.4}, 0.91),
        # With next to nothing from items, six cells are little to go by: Student's t would be needed for 95 %.
        ({"over_cells": 0.1, "over_items": 0.0}, 0.85),
    ],
)
def test_coverage_with_other_shares_of_cells_and_items(options: dict[str, Any], least: float) -> None:
    found = coverage(400, 1000, **options)
    assert all(least <= share <= 0.995 for share in found.values()), found


@pytest.mark.parametrize("cells", [2, 3, 6])
def test_the_variance_of_a_mean_over_cells_is_unbiased(cells: int) -> None:
    values = np.random.default_rng(0).normal(size=cells)
    counts = draw_cells(cells, 20000)
    means = counts @ values / counts.sum(axis=1)
    assert (counts.sum(axis=1) == cells - 1).all()
    assert means.var() == pytest.approx(values.var(ddof=1) / cells, rel=0.04)


def test_one_draw_of_everything_is_the_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every cluster drawn once, runs come out as in the report."""
    runs, items = simulate(np.random.default_rng(1), 3)
    for name, own in items.items():  # weights and clusters that are not all one
        items[name] = [
            replace(item, weight=1.0 + int(item.item_id) % 3, cluster=f"c{int(item.item_id) % 7}") for item in own
        ]
    again = [account(run["run_id"], run["method"], run["lr"], 0, run["order"], items[run["run_id"]]) for run in runs]
    monkeypatch.setattr("nlft.measure.bootstrap.draw_clusters", lambda n, draws, seed: [np.ones((draws, n))])
    drawn = draw_runs(runs, items, COLUMNS, CEILING, 2)
    for moment in ("now", "end"):
        expected = [run["values"]["learning"][moment] for run in again]
        np.testing.assert_allclose(drawn[moment][1], expected, atol=1e-12)
    np.testing.assert_allclose(drawn["lost"][0], [run["values"]["base_forgetting"] for run in again], atol=1e-12)


def test_a_draw_is_the_same_for_all_runs() -> None:
    """Runs with the same effect of every item move together: their difference has no noise of items."""
    generator = np.random.default_rng(2)
    runs, items = simulate(generator, 6, over_cells=0.0)
    effects = generator.normal(0, 1.0, ITEMS)
    for run in runs:
        place = len(items[run["run_id"]]) - ITEMS
        slope = SLOPES[run["method"]] * LEARNED[run["lr"]]
        items[run["run_id"]][place:] = score(2, COLUMNS[2], 1.0, slope + effects)
        run["values"] = account("", "", 0, 0, run["order"], items[run["run_id"]])["values"]
    found = intervals((runs, items), 300, 0)
    assert found["full"][2] - found["full"][1] > 0.4  # four standard errors of 1 / sqrt(40)
    assert found["difference"][2] - found["difference"][1] < 0.05


def test_items_are_crossed_with_cells() -> None:
    """More cells on the same items take nothing from the noise of the items."""
    widths = []
    for cells in (3, 12):
        data = simulate(np.random.default_rng(3), cells, over_cells=0.0)
        _, low, high = intervals(data, 600, 0)["full"]
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=0.4) and widths[1] > 3 * 0.4 / math.sqrt(ITEMS)


def test_draws_are_seeded_and_leave_the_global_state() -> None:
    data = simulate(np.random.default_rng(4), 3)
    state = np.random.get_state()[1].tolist()  # type: ignore[index]
    assert intervals(data, 100, 0) == intervals(data, 100, 0) != intervals(data, 100, 1)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index]


def test_one_cell_and_failed_runs() -> None:
    runs, items = simulate(np.random.default_rng(6), 1)
    sample = samples_of(runs, items, COLUMNS, CEILING)["now"]
    assert sample.n_cells == 1 and sample.drawn is None and sample.draws(np.ones(1, dtype=bool)) is None
    runs, items = simulate(np.random.default_rng(6), 3)
    runs[-1]["status"] = runs[-2]["status"] = "failed: loss is nan"
    sample = samples_of(runs, items, COLUMNS, CEILING, 50)["now"]
    assert sample.cells_of("memory").tolist() == [True, True, False]
    assert sample.cells_of("full").tolist() == [True] * 3
    assert sample.drawn is not None and sample.drawn[0].shape == (50, 10)
    view = sample.draws(sample.cells_of("memory"))
    assert view is not None and (view.counts[:, 2] == 0).all() and (view.counts.sum(axis=1) == 1).all()


def test_no_interval_where_it_would_rest_on_little() -> None:
    values = np.linspace(0, 1, 1000)
    assert (limits_of(values).low, limits_of(values).high) == (pytest.approx(0.025), pytest.approx(0.975))
    values[:40] = np.nan
    assert math.isfinite(limits_of(values).low)
    values[:60] = np.nan
    assert math.isnan(limits_of(values).low) and limits_of(values).why == "only 94 % of the draws can be read there"
    assert limits_of(None).why == "fewer than two pairs of seed and order"
    assert limits_of(np.full(100, 0.3)).why == "no draw differs, so that they say nothing"


def test_what_was_not_measured_is_nan() -> None:
    runs, items = simulate(np.random.default_rng(7), 2)
    first = runs[0]["run_id"]
    items[first] = [item for item in items[first] if item.column != "g"]
    drawn = draw_runs(runs, items, COLUMNS, CEILING, 20)
    assert np.isnan(drawn["lost"][:, 0]).all() and np.isfinite(drawn["lost"][:, 1:]).all()
    assert np.isfinite(drawn["end"]).all()
    assert np.isnan(draw_runs(runs, items, COLUMNS[:2], CEILING[:2], 20)["lost"]).all()
