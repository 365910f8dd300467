"""Upper bounds against numbers reckoned by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from nlft.measure.bounds import bounds_of
from nlft.measure.matrix import Column

A = Column("a", "a", "task", "test", "exact_match", 10)
B = Column("b", "b", "task", "test", "nll", 10)
COLUMNS = [A, B, Column("a/seen", "a", "task", "seen", "exact_match", 10)]
NAN = float("nan")


def row(run_id: str, order: list[str], lr: float, setting: str | None = None, **changes: Any) -> dict[str, Any]:
    config = json.dumps({"steps": changes.pop("steps", 10)})
    fields = {"method": "full", "status": "ok", "setting": setting, "config": config}
    return {"run_id": run_id, "order": order, "lr": lr} | fields | changes


def matrix(first: list[float], stages: int = 2) -> Any:
    """Row 0 the base, row 1 as given; later rows hold what must not be read."""
    return np.array([[0.0, 5.0, 0.0], [*first, 0.9], *([[0.99, 0.01, 0.99]] * (stages - 1))])


def test_the_first_stage_of_a_sequence_is_a_task_alone() -> None:
    rows = [
        row("s0", ["a", "b"], 0.1),
        row("s1", ["a", "b"], 0.1),
        row("s2", ["a", "b"], 0.3, setting="sequence"),
        row("s3", ["b"], 0.3, setting="single"),
        row("s4", ["b"], 0.1, setting="single"),
        row("s5", ["b"], 0.9, setting="single", status="failed: no"),
    ]
    matrices = {
        "s0": matrix([0.5, 4.0]),
        "s1": matrix([0.7, 4.0]),
        "s2": matrix([0.4, 4.0]),
        "s3": matrix([NAN, 2.0], 1),
        "s4": matrix([NAN, 3.0], 1),
        "s5": matrix([NAN, 0.0], 1),
    }
    assert bounds_of(rows, matrices, COLUMNS) == {
        "single": {
            "full": {
                "a": {"value": pytest.approx(0.6), "lr": 0.1, "steps": 10, "n": 2},  # (0.5 + 0.7) / 2 > 0.4
                "b": {"value": 2.0, "lr": 0.3, "steps": 10, "n": 1},  # fewer nats are better
            }
        },
        "multitask": {},
    }


def test_all_tasks_at_once_bound_every_task_by_its_own_best_point() -> None:
    rows = [
        row("m0", ["a+b"], 0.1, setting="multitask", steps=20),
        row("m1", ["a+b"], 0.1, setting="multitask", steps=40),
        row("m2", ["a+b"], 0.1, setting="multitask", method="lora"),
    ]
    matrices = {"m0": matrix([0.8, 3.0], 1), "m1": matrix([0.6, 1.0], 1), "m2": matrix([0.2, NAN], 1)}
    found = bounds_of(rows, matrices, COLUMNS)
    assert found["single"] == {}
    assert found["multitask"] == {
        "full": {
            "a": {"value": 0.8, "lr": 0.1, "steps": 20, "n": 1},
            "b": {"value": 1.0, "lr": 0.1, "steps": 40, "n": 1},
        },
        "lora": {"a": {"value": 0.2, "lr": 0.1, "steps": 10, "n": 1}},
    }
