"""The decomposition of what a run lost, against numbers worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nlft.measure.matrix import Column
from nlft.measure.where import where_of
from nlft.types import Item

ROW: dict[str, Any] = {
    "run_id": "r",
    "method": "slots",
    "kind": "sparse_memory",
    "lr": 0.1,
    "seed": 0,
    "order": ["a", "b"],
    "setting": None,
    "told_task": False,
    "config": "{}",
    "dissect": None,
}
COLUMNS = [
    Column("a", "a", "task", "test", "exact_match", 10),
    Column("b", "b", "task", "test", "nll", 2),
    Column("p", "p", "probe", "test", "exact_match", 10),
]


def scored(stage: int, condition: str, column: str, right: int, rows: int = 10) -> list[Item]:
    """`right` of the rows answered right."""
    role = "probe" if column == "p" else "task"
    return [
        Item(
            stage,
            condition,
            column,
            role,
            "test",
            "exact_match",
            f"{column}{i}",
            f"{column}{i}",
            float(i < right),
            1,
            "",
        )
        for i in range(rows)
    ]


def nats(stage: int, condition: str, first: float, second: float) -> list[Item]:
    """Two texts of 1 and 3 tokens."""
    return [
        Item(stage, condition, "b", "task", "test", "nll", name, name, value, weight, "")
        for name, value, weight in (("x", first, 1.0), ("y", second, 3.0))
    ]


def test_a_loss_is_overwriting_and_routing() -> None:
    """a: 9 right after its training, 7 when told the task, 4 at the end, 1 with everything open."""
    items = [
        *scored(1, "on", "a", 9),
        *scored(2, "on", "a", 4),
        *scored(2, "oracle", "a", 7),
        *scored(2, "ungated", "a", 1),
        *scored(2, "on", "b", 3),  # of another metric than the column's: not counted
        *nats(2, "on", 2.0, 1.0),
        *nats(2, "oracle", 1.0, 1.0),
        *nats(2, "ungated", 6.0, 1.0),
        *scored(0, "base", "p", 10),
        *scored(2, "off", "p", 10),
        *scored(2, "on", "p", 8),
        *scored(2, "ungated", "p", 3),
    ]
    where = where_of(ROW, items, COLUMNS)
    a, b, p = where["tasks"]["a"], where["tasks"]["b"], where["probes"]["p"]
    assert [a[name] for name in ("snapshot", "oracle", "on", "ungated", "n")] == [0.9, 0.7, 0.4, 0.1, 10]
    assert a["overwriting"] == pytest.approx(0.2)
    assert a["routing"] == pytest.approx(0.3)
    assert a["total"] == pytest.approx(a["overwriting"] + a["routing"]) == pytest.approx(0.5)
    assert a["no_router"] == pytest.approx(0.3)
    assert 0 <= a["intervals"]["total"]["low"] < 0.5 < a["intervals"]["total"]["high"]
    # Less is better in nats, so a rise is a loss: (2 + 3) / 4 against (1 + 3) / 4 is 0.25.
    assert b["routing"] == pytest.approx(0.25) and b["snapshot"] == b["on"] == pytest.approx(1.25)
    assert b["overwriting"] == pytest.approx(-0.25) and b["total"] == 0.0
    assert b["no_router"] == pytest.approx(1.0)
    assert b["intervals"]["no_router"]["low"] <= 1.0 <= b["intervals"]["no_router"]["high"]
    assert (p["base"], p["off"], p["on"], p["ungated"]) == (1.0, 1.0, 0.8, 0.3)
    assert p["leakage"] == pytest.approx(0.2) and p["leakage_ungated"] == pytest.approx(0.7)
    assert {name for name in where if name not in ("run_id", "method", "lr", "seed", "order")} == {"tasks", "probes"}


def test_a_shared_part_is_its_own_oracle_and_an_unmeasured_one_is_unknown() -> None:
    items = [*scored(1, "on", "a", 9), *scored(2, "on", "a", 4), *scored(2, "off", "a", 2)]
    shared = where_of({**ROW, "kind": "lora"}, items, COLUMNS)["tasks"]["a"]
    assert (shared["oracle"], shared["routing"]) == (0.4, 0.0)
    assert shared["overwriting"] == pytest.approx(0.5) == shared["total"]
    assert shared["ungated"] is None and shared["no_router"] is None and "routing" not in shared["intervals"]
    for other in (ROW, {**ROW, "kind": "lora", "config": '{"gate": {"layer": 1}}'}):
        apart = where_of(other, items, COLUMNS)["tasks"]["a"]
        assert apart["total"] == pytest.approx(0.5)
        assert apart["oracle"] is None and apart["overwriting"] is None and apart["routing"] is None


def test_only_the_items_that_both_sides_have_are_compared() -> None:
    """Without the part the five first rows were scored, 2 of them right; with it 4 of these five were."""
    facts = json.dumps({"identity": {"accuracy": 0.9}, "overlap": None, "false_fire": {"p": 0.25}})
    items = [
        *scored(1, "on", "a", 6),
        *scored(2, "on", "a", 4),
        *scored(2, "without:layer 2", "a", 2, rows=5),
        *scored(2, "recovered:a", "a", 5, rows=5),
        *scored(0, "base", "p", 10),
        *scored(2, "on", "p", 9),
        *scored(2, "mixed:a", "p", 3, rows=4),
        *scored(2, "base_mixed:a", "p", 4, rows=4),
    ]
    where = where_of({**ROW, "dissect": facts}, items, COLUMNS)
    assert where["ablation"] == {"layer 2": {"a": pytest.approx(0.8 - 0.4)}}
    assert where["recovery"] == {"a": {"before": 0.8, "after": 1.0, "snapshot": 1.0, "n": 5}}
    assert where["mixed"] == {"p": {"alone": 0.0, "mixed": pytest.approx(-0.25), "n": 4}}
    assert where["false_fire"] == {"p": 0.25} and where["identity"] == {"accuracy": 0.9}
    assert "overlap" not in where and "gate_fire" not in where


def test_a_run_without_further_conditions_has_no_account() -> None:
    items = [*scored(1, "on", "a", 9), *scored(2, "on", "a", 4)]
    assert where_of(ROW, items, COLUMNS) == {}
    items += scored(2, "oracle", "a", 9)
    assert where_of(ROW, items, COLUMNS)["tasks"]["a"]["routing"] == pytest.approx(0.5)
    assert where_of({**ROW, "setting": "single"}, items, COLUMNS) == {}
