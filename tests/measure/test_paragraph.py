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
        "order, so that nothing is known of others. A run costs: memory 2.38 MiB stored and 30 s of training; full "
        "4.77 MiB stored and 4 min of training."
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


def test_who_shares_a_place_is_not_alone_in_it(planted: Planted) -> None:
    """Values that print alike are one place: the most learned, the least, the least lost."""
    near = [(1.0, 0.4, 0.1), (2.0, 0.8, 0.1001)]
    gentle = [swept("memory", GENTLE, "sparse_memory"), swept("slots", near, "sparse_memory")]
    text = said(planted, swept("full", HARSH), *gentle, swept("cms", GENTLE, "cms"))
    assert "full had learned most (90.0 % on the tasks, from 0.0 %) and memory and 2 others least (80.0 %)." in text
    assert "memory lost 10.0 points (least with 2 others) and full lost 30.0 points (most, the reference)" in text


def test_who_learned_the_same_has_no_rank(planted: Planted) -> None:
    text = said(planted, swept("full", GENTLE), swept("memory", GENTLE, "sparse_memory"))
    assert "at the end, memory and full had learned the same (80.0 % on the tasks, from 0.0 %)." in text
    assert "full lost 10.0 points (the reference) and memory lost 10.0 points on" in text


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


def seventeen() -> list[Any]:
    """full, two memories, thirteen with replay of which the first lose least, and one that trains nothing."""
    runs = swept("full", [(1.0, 0.3, 0.2), (2.0, 0.8, 0.2)]) + swept("gifted", [(0.0, 0.75, 0.0)], "few_shot")
    for name, lost in (("memory", 0.4), ("slots", 0.1)):
        runs += swept(name, [(1.0, 0.3, lost), (2.0, 0.8, lost)], "sparse_memory")
    for number in range(13):
        points = [(1.0, 0.3, 0.01 * number), (2.0, 0.8, 0.01 * number)]
        runs += swept(f"r{number}", points, "lora", config='{"replay": {"ratio": 0.5}}')
    return runs


def test_of_many_methods_the_outcome_names_some(planted: Planted) -> None:
    summary = summarise(planted(seventeen(), ONE, 100))
    assert summary["outcome"] == (
        "Where 16 of 17 methods had learned 80 % of what could be learned (at the end), r0 lost 0.0 points, r1 lost "
        "1.0 points, slots lost 10.0 points, full lost 20.0 points, memory lost 40.0 points and 11 more lost 2.0 to "
        "12.0 points on the probe g; slots forgot less than full (×0.5); memory forgot more than full (×2); 1 of them "
        "cannot be read there."
    )
    (level,) = (level for level in summary["frontier"]["end"]["matched"] if level["common"])
    assert level["why"] == {"gifted": "learned at most 75 %"}
    lower = next(level for level in summary["frontier"]["end"]["matched"] if level["level"] == 0.5)
    assert lower["why"] == {"gifted": "learned at least 75 %"}, "who trains nothing has no rate to make smaller"


def test_of_many_methods_that_share_no_learning_some_are_named(planted: Planted) -> None:
    runs = swept("full", [(1.0, 0.3, 0.2)], train_s=3.0)
    for number in range(7):
        runs += swept(f"r{number}", [(1.0, 0.4 + 0.05 * number, 0.1)], "lora", config='{"replay": 1}', train_s=3.0)
    summary = summarise(planted(runs, ONE, 100))
    said = summary["outcome"]
    named = [name for name in ("full", *(f"r{number}" for number in range(7))) if f"{name} (lr" in said]
    assert named == ["full", "r3", "r4", "r5", "r6"] and said.endswith("on the probe g. 3 more are in the table.")
    assert summary["paragraph"].endswith("r6 3 s of training; 3 more are in the table.")


def test_a_run_that_failed_early_does_not_say_what_its_method_is(planted: Planted) -> None:
    """A run that failed before it began has no `told_task`; the bound must not become a rival by it."""
    told = swept("apart", GENTLE, "lora", seeds=2, told_task=True)
    told[0] |= {"status": "failed: out of memory", "told_task": None}
    summary = summarise(planted(swept("full", HARSH) + told, ONE, 100))
    assert [entry["told_task"] for entry in summary["methods"] if entry["method"] == "apart"] == [True, True]
    assert summary["frontier"]["end"]["matched"] == [], "full is the only rival"


def test_bytes_of_every_task_become_one_cost(planted: Planted) -> None:
    point = [(1.0, 0.5, 0.1)]
    runs = swept("grows", point, task_bytes=[10, 30, 70]) + swept("once", point, task_bytes=[10])
    grows, once = summarise(planted(runs, ONE))["runs"]
    assert grows["values"]["costs"]["task_bytes"] == 30 and once["values"]["costs"]["task_bytes"] is None
