"""Comparisons at equal learning: golden numbers, what each rests on, and what is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft.measure.account import is_plain, steps_of
from nlft.measure.summary import summarise

Planted = Callable[..., Path]
ONE = [("a", "task", "test", "exact_match"), ("g", "probe", "test", "accuracy")]
FULL = [(1.0, 0.2, 0.1), (2.0, 0.8, 0.3)]
MEMORY = [(1.0, 0.4, 0.0), (2.0, 0.7, 0.06)]


def swept(method: str, points: list[tuple[float, float, float]], kind: str = "", seeds: int = 1, **fields: Any) -> Any:
    """Runs of one task and one probe: (lr, learned, lost), the same for every seed but for 0.02 a seed of loss."""
    return [
        {"run_id": f"{method}{lr:g}-{seed}", "method": method, "kind": kind or method, "lr": lr, "seed": seed}
        | {"matrix": [[0.0, 0.9], [learned, 0.9 - lost - 0.02 * seed]]}
        | fields
        for seed in range(seeds)
        for lr, learned, lost in points
    ]


def frontier(folder: Path) -> dict[str, Any]:
    return summarise(folder)["frontier"]["end"]


def test_areas_and_budgets_by_hand(planted: Planted) -> None:
    found = frontier(planted(swept("full", FULL) + swept("memory", MEMORY, "sparse_memory"), ONE, 100))
    area = found["hypervolume"]
    assert area["range"] == [pytest.approx(0.4), pytest.approx(0.7)] and area["reference"] == "full"
    # full is 1/6 at 0.4 and 4/15 at 0.7, memory 0 and 0.06: the means of straight lines.
    full, memory = area["methods"]["full"], area["methods"]["memory"]
    assert full["value"] == pytest.approx((1 / 6 + 4 / 15) / 2) and memory["value"] == pytest.approx(0.03)
    against = memory["against_reference"]
    assert against["value"] == pytest.approx(0.03 - 13 / 60) and against["ratio"] == pytest.approx(0.03 * 60 / 13)
    assert (against["n"], against["of"], against["p"], against["low"]) == (1, 1, None, None)
    assert against["range"] == area["range"] and against["why"] == "fewer than two pairs of seed and order"
    assert full["against_reference"] == {}
    one, five, ten = found["within_budget"]
    assert [one["budget"], five["budget"], ten["budget"]] == [0.01, 0.05, 0.1]
    assert one["methods"]["full"]["value"] is None
    assert one["methods"]["full"]["why"] == "lost at least 10 points; add a smaller learning rate"
    assert one["methods"]["memory"]["value"] == pytest.approx(0.45)
    assert five["methods"]["memory"]["value"] == pytest.approx(0.65)
    assert ten["methods"]["full"]["value"] == pytest.approx(0.2)
    assert ten["methods"]["memory"]["value"] == pytest.approx(0.7)
    assert ten["methods"]["memory"]["why"] == "the sweep ends within the budget: it may be more"


def test_without_pairs_there_are_no_intervals(planted: Planted) -> None:
    found = frontier(planted(swept("full", FULL) + swept("memory", MEMORY, "sparse_memory"), ONE, 100))
    point = found["points"]["memory"][0]
    assert {key for key, value in point.items() if value is None} == {
        "learning_low", "learning_high", "forgetting_low", "forgetting_high",
    }  # fmt: skip
    band = found["bands"]["memory"]
    assert len(band) == 21 and (band[0]["learning"], band[-1]["learning"]) == (pytest.approx(0.4), pytest.approx(0.7))
    assert band[10]["forgetting"] == pytest.approx(0.03) and all(place["low"] is None for place in band)
    over = found["matched"][0]["runs"]["memory"]
    assert (over["n"], over["of"], over["cells"], over["p_signflip"]) == (1, 1, 1, None)
    assert over["interval"] == {"low": None, "high": None} and over["why"] == "fewer than two pairs of seed and order"
    assert over["difference"]["value"] == pytest.approx(0.02 - 0.2) and over["difference"]["low"] is None


def test_estimate_interval_and_test_rest_on_the_same_pairs(planted: Planted) -> None:
    """memory lacks seed 0 where full lost least: the ratio is taken over the five seeds that both have."""
    runs = swept("full", FULL, seeds=6) + swept("memory", MEMORY, "sparse_memory", seeds=6)
    for run in runs:
        if run["method"] == "memory" and run["seed"] == 0:
            run["status"] = "failed: loss is nan"
    level = next(level for level in frontier(planted(runs, ONE, 100))["matched"] if level["level"] == 0.5)
    assert level["forgetting"]["full"] == pytest.approx(0.2 + 0.05)  # seeds 0 to 5
    assert level["forgetting"]["memory"] == pytest.approx(0.02 + 0.06)  # seeds 1 to 5
    assert level["ratio"]["memory"] == pytest.approx((0.02 + 0.06) / (0.2 + 0.06))
    over = level["runs"]["memory"]
    assert (over["n"], over["of"], over["cells"], level["runs"]["full"]["cells"]) == (5, 5, 5, 6)
    assert over["p_signflip"] == pytest.approx(2 / 32)
    assert over["difference"]["value"] == pytest.approx(-0.18)
    assert over["difference"]["low"] < -0.18 < over["difference"]["high"] < 0
    assert over["ratio_low"] < level["ratio"]["memory"] < over["ratio_high"] < 1
    assert over["interval"]["low"] < 0.08 < over["interval"]["high"]


def test_pairs_that_cannot_be_read_are_counted(planted: Planted) -> None:
    """Three of six seeds of memory do not reach the level: half of the draws do not, so there is no interval."""
    runs = swept("full", FULL, seeds=6)
    for seed in range(6):
        most = 0.9 if seed < 3 else 0.5
        points = [(1.0, 0.4, 0.0), (2.0, most, 0.06)]
        runs += [run for run in swept("memory", points, "sparse_memory", seeds=6) if run["seed"] == seed]
    level = next(level for level in frontier(planted(runs, ONE, 100))["matched"] if level["level"] == 0.7)
    over = level["runs"]["memory"]
    assert (over["n"], over["of"]) == (3, 6) and over["p_signflip"] == pytest.approx(0.25)
    assert level["ratio"]["memory"] is not None and over["ratio_low"] is None
    assert over["interval"]["low"] is None and "of the draws can be read there" in over["why"]


def test_the_common_level_moves_with_the_draws(planted: Planted) -> None:
    """It lies at the end of a curve, which half of the draws do not reach; read where each draw ends, it has limits."""
    runs = swept("full", FULL, seeds=6)
    for seed in range(6):
        points = [(1.0, 0.4, 0.0), (2.0, 0.6 + 0.03 * seed, 0.06)]
        runs += [run for run in swept("memory", points, "sparse_memory", seeds=6) if run["seed"] == seed]
    found = frontier(planted(runs, ONE, 100))
    level = next(level for level in found["matched"] if level["common"])
    assert level["level"] == pytest.approx(0.675)
    over = level["runs"]["memory"]
    assert over["n"] == 6 and over["interval"]["low"] < 0.11 < over["interval"]["high"] and over["why"] == ""
    area = found["hypervolume"]["methods"]["memory"]
    assert area["low"] < area["value"] < area["high"] and area["against_reference"]["high"] < 0


def test_steps_are_swept_as_learning_rates_are(planted: Planted) -> None:
    runs = []
    for steps, points in ((50, [(1.0, 0.4, 0.1), (2.0, 0.6, 0.2)]), (200, [(1.0, 0.8, 0.3)])):
        runs += swept("lora", points, config=json.dumps({"steps": steps}), run_id="")
    for place, run in enumerate(runs):
        run["run_id"] = f"run{place}"
    summary = summarise(planted(runs, ONE, 100))
    assert [(entry["lr"], entry["steps"]) for entry in summary["methods"]] == [(1.0, 50), (1.0, 200), (2.0, 50)]
    assert [entry["best"] for entry in summary["methods"]] == [False, True, False]
    points = summary["frontier"]["end"]["points"]["lora"]
    assert [(point["steps"], point["learning"]) for point in points] == [
        (50, pytest.approx(0.4)), (200, pytest.approx(0.8)), (50, pytest.approx(0.6)),
    ]  # fmt: skip
    assert summary["frontier"]["end"]["envelopes"]["lora"] == [
        [pytest.approx(learned), pytest.approx(lost)] for learned, lost in ((0.4, 0.1), (0.6, 0.2), (0.8, 0.3))
    ]


def test_a_method_that_is_told_the_task_is_a_bound(planted: Planted) -> None:
    """It would be the reference, and its small range would end the common one."""
    told = swept("apart", [(1.0, 0.1, 0.0), (2.0, 0.45, 0.01)], "lora", told_task=True)
    found = frontier(planted(swept("full", FULL) + swept("memory", MEMORY, "sparse_memory") + told, ONE, 100))
    assert list(found["points"]) == list(found["bands"]) == ["full", "memory", "apart"]
    for level in found["matched"]:
        assert "apart" not in {*level["forgetting"], *level["ratio"], *level["runs"], *level["why"]}
        assert level["reference"] == (None if level["level"] == 0.9 else "full")
    assert found["hypervolume"]["range"] == [pytest.approx(0.4), pytest.approx(0.7)]
    assert list(found["within_budget"][0]["methods"]) == ["full", "memory"]


def test_what_trains_nothing_does_not_end_the_common_range(planted: Planted) -> None:
    shots = swept("few_shot", [(0.0, 0.1, 0.0)])
    found = frontier(planted(swept("full", FULL) + swept("memory", MEMORY, "sparse_memory") + shots, ONE, 100))
    assert [level["level"] for level in found["matched"] if level["common"]] == [pytest.approx(0.7)]
    area = found["hypervolume"]
    assert area["range"] == [pytest.approx(0.4), pytest.approx(0.7)]
    assert area["methods"]["few_shot"]["value"] is None
    assert area["methods"]["few_shot"]["why"] == "learned the same at every point"


def test_a_range_that_nobody_shares_is_said(planted: Planted) -> None:
    low = swept("low", [(1.0, 0.05, 0.0), (2.0, 0.15, 0.1)], "cms")
    found = frontier(planted(swept("full", FULL) + swept("memory", MEMORY, "sparse_memory") + low, ONE, 100))
    area = found["hypervolume"]
    assert area["range"] == [None, None]
    assert area["methods"]["memory"]["value"] is None
    assert area["methods"]["memory"]["why"] == "there is no learning that all methods reached"
    assert area["methods"]["memory"]["against_reference"]["value"] == pytest.approx(0.03 - 13 / 60)
    assert area["methods"]["low"]["against_reference"] == {"why": "they share no learning"}


@pytest.mark.parametrize(
    ("kind", "config", "told", "expected"),
    [
        ("full", {}, False, True),
        ("lora", {"peft_type": "LORA", "tasks": "shared", "gate": None, "replay": None}, None, True),
        ("lora", {"gate": {"kind": "prototype"}}, False, False),
        ("lora", {"replay": {"ratio": 0.5}}, False, False),
        ("full", {"ewc": {"weight": 1.0}}, False, False),
        ("full", {"l2sp": {"weight": 0.1}}, False, False),
        ("lora", {"tasks": "apart"}, False, False),
        ("lora", {"tasks": "orthogonal"}, False, False),
        ("lora", {"peft_type": "OSF"}, False, False),
        ("lora", {}, True, False),
        ("sparse_memory", {}, False, False),
    ],
)
def test_what_is_plain(kind: str, config: dict[str, Any], told: bool | None, expected: bool) -> None:
    assert is_plain({"kind": kind, "config": json.dumps(config), "told_task": told}) is expected


def test_a_gated_lora_is_no_reference(planted: Planted) -> None:
    gated = swept("gated", [(1.0, 0.3, 0.0), (2.0, 0.8, 0.01)], "lora", config='{"gate": {"kind": "prototype"}}')
    level = frontier(planted(swept("full", FULL) + gated, ONE, 100))["matched"][0]
    assert level["reference"] == "full" and level["ratio"]["gated"] < 0.1


def test_steps_of_a_run() -> None:
    row = {"steps": 300, "order": ["a", "b", "c"], "config": json.dumps({"steps": None})}
    assert steps_of(row) == 100 and steps_of(row | {"config": '{"steps": 50}'}) == 50
    assert steps_of(row | {"steps": None}) == 0 and steps_of(row | {"config": '{"steps": 0}'}) == 0


def test_failed_runs_of_older_tables_stay_with_their_rate(planted: Planted) -> None:
    runs = swept("full", FULL, seeds=2, steps=40)
    runs[-1] |= {"status": "failed: loss is nan", "steps": None}
    entries = summarise(planted(runs, ONE, 100))["methods"]
    assert [(entry["steps"], entry["n_runs"], entry["n_finished"]) for entry in entries] == [(40, 2, 2), (40, 2, 1)]


def test_nothing_lost_makes_no_ratio(planted: Planted) -> None:
    runs = swept("full", [(1.0, 0.2, 0.0), (2.0, 0.8, 0.0)]) + swept("memory", MEMORY, "sparse_memory")
    level = frontier(planted(runs, ONE, 100))["matched"][0]
    assert level["ratio"]["memory"] is None and level["runs"]["memory"]["difference"]["value"] == pytest.approx(0.02)
    assert not math.isnan(level["forgetting"]["full"])


def test_intransigence_against_both_bounds(planted: Planted) -> None:
    """Alone, a reaches 0.8 (first in its sequence) and b 0.7; all at once 0.6 and 0.9."""
    columns = [("a", "task", "test", "exact_match"), ("b", "task", "test", "exact_match")]
    runs = [
        {"method": "lora", "matrix": [[0.0, 0.1], [0.8, 0.2], [0.6, 0.5]]},
        {"method": "lora", "order": ["b"], "setting": "single", "matrix": [[0.0, 0.1], [0.0, 0.7]]},
        {"method": "lora", "order": ["a+b"], "setting": "multitask", "matrix": [[0.0, 0.1], [0.6, 0.9]]},
        {"method": "full", "matrix": [[0.0, 0.1], [0.7, 0.2], [0.6, 0.8]]},
    ]
    lora, full = summarise(planted(runs, columns))["methods"]
    assert lora["intransigence"] == {
        "single": pytest.approx((0.0 + 0.2) / 2),
        "multitask": pytest.approx((0.6 - 0.8 + 0.9 - 0.5) / 2),
    }
    assert full["intransigence"] == {"single": None, "multitask": None}


def test_an_area_and_its_interval_rest_on_the_same_cells(planted: Planted) -> None:
    """full forgets much more in seed 3, in which memory has no run."""
    runs = []
    for method, kind, seeds in (("full", "full", 4), ("memory", "sparse_memory", 3)):
        for seed in range(seeds):
            for lr, learned in ((1.0, 0.2), (2.0, 0.8)):
                lost = 0.7 if seed == 3 else 0.1 + 0.02 * seed
                fields = {"run_id": f"{method}{lr:g}-{seed}", "method": method, "kind": kind, "lr": lr, "seed": seed}
                runs.append({**fields, "matrix": [[0.0, 0.9], [learned, 0.9 - lost]]})
    area = frontier(planted(runs, ONE, 100))["hypervolume"]["methods"]["full"]
    assert area["value"] == pytest.approx((0.1 + 0.12 + 0.14 + 0.7) / 4) and area["low"] < area["value"] < area["high"]
