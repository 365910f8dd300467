"""The first paragraph: the same words whoever wins, and nothing said that was not measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nlft.measure.summary import summarise

Planted = Callable[..., Path]
ONE = [("a", "task", "test", "exact_match"), ("g", "probe", "test", "accuracy")]


def swept(method: str, points: list[tuple[float, float, float]], kind: str = "", seeds: int = 1, **fields: Any) -> Any:
    shared = {"method": method, "kind": kind or method} | fields
    return [
        {"run_id": f"{method}{lr:g}-{seed}", "lr": lr, "seed": seed}
        | {"matrix": [[0.0, 0.9], [learned, 0.9 - lost - 0.01 * seed]]}
        | shared
        for seed in range(seeds)
        for lr, learned, lost in points
    ]


GENTLE, HARSH = [(1.0, 0.4, 0.1), (2.0, 0.8, 0.1)], [(1.0, 0.4, 0.3), (2.0, 0.9, 0.3)]


def said(planted: Planted, *runs: list[dict[str, Any]], columns: Any = ONE) -> str:
    return summarise(planted([run for own in runs for run in own], columns, 100))["paragraph"]


def test_who_learned_who_lost_how_sure_and_what_it_costs(planted: Planted) -> None:
    costs = {"stored_bytes": 2_500_000, "train_s": 30.0}
    memory = swept("memory", GENTLE, "sparse_memory", **costs)
    text = said(planted, swept("full", HARSH, stored_bytes=5_000_000, train_s=240.0), memory)
    assert text == (
        "2 methods learned 1 task in sequence; at the end, full had learned most (90.0 % on the tasks, from 0.0 %) and "
        "memory least (80.0 %). Of the 2 that can be read where 80 % was learned (at the end), memory lost 10.0 points "
        "(least) and full lost 30.0 points (most, the reference) on the probe g. All this rests on one seed and one "
        "order, so that nothing is known of others. A run costs: memory 2.5 MB stored and 30 s of training; full 5 MB "
        "stored and 4 min of training."
    )


def test_the_words_are_the_same_whoever_wins(planted: Planted, tmp_path: Path) -> None:
    def swapped(first: Any, second: Any) -> str:
        return said(planted, swept("full", first, seeds=6), swept("memory", second, "sparse_memory", seeds=6))

    ours = swapped([(1.0, 0.4, 0.3), (2.0, 0.8, 0.3)], GENTLE)
    for file in ("items.parquet", "runs.parquet"):
        (tmp_path / "planted" / file).unlink()
    theirs = swapped(GENTLE, [(1.0, 0.4, 0.3), (2.0, 0.8, 0.3)])
    assert "memory lost 20.0 points less than full (95 % " in ours and "; 6 pairs of runs, p = 0.031)." in ours
    assert "memory lost 20.0 points more than full (95 % " in theirs and "; 6 pairs of runs, p = 0.031)." in theirs
    assert "memory lost 12.5 points (least, 95 % " in ours
    assert "full lost 32.5 points (most, the reference, 95 % " in ours
    assert "full lost 12.5 points (least, the reference, 95 %" in theirs and "memory lost 32.5 points (most, " in theirs


def test_a_difference_that_may_be_none_is_said(planted: Planted) -> None:
    close = [(1.0, 0.4, 0.3), (2.0, 0.9, 0.29)]
    text = said(planted, swept("full", HARSH, seeds=3), swept("memory", close, "sparse_memory", seeds=3))
    assert "so either may be the better; 3 pairs of runs, p = 0.25)." in text


def test_nothing_is_compared_where_nothing_can_be(planted: Planted) -> None:
    far = said(planted, swept("full", [(1.0, 0.8, 0.1)]), swept("memory", [(1.0, 0.5, 0.0)], "sparse_memory"))
    assert far.endswith("at which they can be compared, so none can be said to forget less.")


def test_without_probes(planted: Planted) -> None:
    blind = [
        {"run_id": name, "method": name, "kind": kind, "matrix": [[0.0], [0.5]]}
        for name, kind in (("full", "full"), ("memory", "sparse_memory"))
    ]
    text = said(planted, blind, columns=ONE[:1])
    assert text.endswith("There were no probes, so what the base has forgotten is not known.")


def test_one_method_has_its_outcome_and_costs(planted: Planted) -> None:
    summary = summarise(planted(swept("lora", [(1.0, 0.5, 0.1)], train_s=12.0), ONE))
    assert summary["paragraph"] == f"{summary['outcome']} A run costs: lora 12 s of training."


def test_only_failed_runs(planted: Planted) -> None:
    summary = summarise(planted([{"method": "full", "status": "failed: x", "order": ["a"], "matrix": []}], ONE))
    assert summary["paragraph"] == summary["outcome"] == "The run did not finish (failed: x)."
