"""Summaries of planted results: every number comes out, nothing missing becomes a number, failures stay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft.errors import DataError
from nlft.measure.comparison import combine
from nlft.measure.items import write_runs
from nlft.measure.summary import plain, summarise

Planted = Callable[..., Path]
COLUMNS = [
    ("a", "task", "test", "exact_match"),
    ("b", "task", "test", "exact_match"),
    ("a", "task", "seen", "exact_match"),
    ("g", "probe", "test", "accuracy"),
    ("t", "probe", "test", "nll"),
]
MATRIX = [[0.0, 0.2, 0.1, 0.9, 1.5], [0.8, 0.3, 0.9, 0.8, 1.6], [0.6, 0.7, 0.5, 0.75, 1.75]]


def swept(name: str, rows: list[tuple[float, float, float]], kind: str = "", **fields: Any) -> list[dict[str, Any]]:
    """Runs of one task and one probe: (lr, learned, lost)."""
    shared = {"method": name, "kind": kind or name} | fields
    return [
        {"run_id": f"{name}{lr:g}{fields.get('seed', 0)}", "lr": lr, "matrix": [[0.0, 0.9], [a, 0.9 - f]]} | shared
        for lr, a, f in rows
    ]


FAILED = {"run_id": "x", "method": "lora", "kind": "lora", "lr": 9.0, "status": "failed: loss is nan"}
ONE = [("a", "task", "test", "exact_match"), ("g", "probe", "test", "accuracy")]


def test_a_single_run(planted: Planted) -> None:
    folder = planted([{"method": "lora", "matrix": MATRIX, "base_unchanged": True, "train_s": 8.0}], COLUMNS)
    summary = summarise(folder)
    assert json.loads((folder / "summary.json").read_text()) == summary
    (run,) = summary["runs"]
    assert run["matrix"] == [pytest.approx(row) for row in MATRIX]
    values = run["values"]
    now, end = (0.8 + 0.5 / 0.8) / 2, (0.6 + 0.5 / 0.8) / 2
    assert values["learning"] == {"now": pytest.approx(now), "end": pytest.approx(end)}
    assert values["base_forgetting"] == pytest.approx(0.15) and summary["probe_unit"] == "fraction"
    expected = {"base": 0.1, "learned": 0.75, "acc": 0.65, "seen": 0.5, "aia": (0.8 + 0.65) / 2}
    expected |= {"bwt": -0.2, "forgetting": 0.2, "fwt_base": 0.1}
    assert values["continual"] == {key: pytest.approx(value) for key, value in expected.items()}
    task = {"base": 0.0, "now": 0.8, "end": 0.6, "gained_now": 0.8, "gained_end": 0.6, "change": -0.2}
    task |= {"seen_base": 0.1, "seen_now": 0.9, "seen_end": 0.5}
    assert values["tasks"]["a"] == {key: pytest.approx(value) for key, value in task.items()}
    text = {"base": 1.5, "end": 1.75, "change": -0.25}
    assert values["probes"]["t"] == {key: pytest.approx(value) for key, value in text.items()}
    assert values["costs"]["train_s"] == 8.0 and values["costs"]["peak_bytes"] is None
    interval = run["intervals"]["probes"]["g"]
    assert interval["value"] == pytest.approx(-0.15) and interval["n_items"] == 20
    assert interval["low"] == pytest.approx(-0.3) and interval["high"] == pytest.approx(0.0)
    shifted = run["intervals"]["probes"]["t"]  # every item moved by the same
    assert [shifted[end] for end in ("low", "high")] == [pytest.approx(-0.25), pytest.approx(-0.25)]
    assert set(run["intervals"]["tasks"]) == {"a"} and run["intervals"]["tasks"]["a"]["value"] == pytest.approx(-0.2)
    assert run["integrity"]["base_unchanged"] is True and run["integrity"]["off_equals_base"] is None
    assert summary["frontier"]["end"]["matched"] == []


def test_one_stage_has_nothing_earlier(planted: Planted) -> None:
    summary = summarise(planted(swept("lora", [(0.1, 0.5, 0.1)]), ONE))
    continual = summary["runs"][0]["values"]["continual"]
    assert (continual["bwt"], continual["forgetting"], continual["fwt_base"]) == (None, None, None)
    assert summary["outcome"] == (
        "lora (lr 0.1) took the tasks from 0.0 % to 50.0 % on a; with the adapter on, the probes changed by "
        "−10.0 points on g (95 % interval −25.0 to 0.0)."
    )


def test_likelihoods_keep_their_unit_and_losses_are_positive(planted: Planted) -> None:
    columns = [("a", "task", "test", "nll"), ("b", "task", "test", "nll"), ("t", "probe", "test", "nll")]
    weak = [[4.0, 8.0, 1.4], [3.0, 7.0, 1.5], [3.5, 4.0, 1.6]]
    strong = [[4.0, 8.0, 1.4], [2.0, 8.5, 2.0], [3.0, 2.0, 2.4]]
    runs = [{"method": "full", "matrix": weak}, {"method": "lora", "matrix": strong}]
    summary = summarise(planted(runs, columns))
    assert [column["ceiling"] for column in summary["columns"]] == pytest.approx([2.0, 2.0, 1.4])
    first, second = (run["values"] for run in summary["runs"])
    assert first["learning"]["now"] == pytest.approx((0.5 + 4 / 6) / 2)
    assert second["learning"] == {"now": pytest.approx(1.0), "end": pytest.approx(0.75)}
    assert second["base_forgetting"] == pytest.approx(1.0)
    assert first["continual"]["acc"] == pytest.approx(3.75) and first["continual"]["bwt"] == pytest.approx(-0.5)
    assert second["continual"]["forgetting"] == pytest.approx(1.0)


def test_tasks_of_two_units_are_not_averaged(planted: Planted) -> None:
    columns = [("a", "task", "test", "nll"), ("b", "task", "test", "f1"), ("c", "task", "test", "f1")]
    matrix = [[4.0, 0.0, 0.0], [2.0, 0.0, 0.0], [3.0, 0.8, 0.0], [3.5, 0.6, 0.4]]
    summary = summarise(planted([{"method": "lora", "matrix": matrix}], columns))
    continual = summary["runs"][0]["values"]["continual"]
    assert summary["task_unit"] == "fraction" and summary["probe_unit"] is None
    assert continual["learned"] == pytest.approx(0.6) and continual["acc"] == pytest.approx(0.5)
    assert continual["bwt"] == pytest.approx(-0.2) and continual["seen"] is None
    assert summary["runs"][0]["values"]["tasks"]["a"]["change"] == pytest.approx(-1.5)
    assert "no probes, so what the base has forgotten is not known" in summary["outcome"]


def test_forgetting_at_matched_learning(planted: Planted) -> None:
    runs = swept("full", [(1, 0.4, 0.1), (2, 0.8, 0.3)]) + swept("lora", [(1, 0.6, 0.4), (2, 0.9, 0.5)])
    runs += swept("memory", [(1, 0.5, 0.0), (2, 0.7, 0.05)], "sparse_memory")
    summary = summarise(planted(runs, ONE, 100))
    matched = {round(level["level"], 6): level for level in summary["frontier"]["end"]["matched"]}
    assert list(matched) == [0.5, 0.7, 0.9] and matched[0.7]["common"]
    assert matched[0.5]["forgetting"] == {"full": pytest.approx(0.15), "lora": None, "memory": pytest.approx(0.0)}
    assert matched[0.5]["why"] == {"lora": "learned at least 60 %; add a smaller learning rate"}
    level = matched[0.7]
    assert level["forgetting"] == pytest.approx({"full": 0.25, "lora": 0.4 + 0.1 / 3, "memory": 0.05})
    assert level["reference"] == "full" and level["ratio"]["memory"] == pytest.approx(0.2)
    assert matched[0.9]["forgetting"]["memory"] is None and matched[0.9]["reference"] == "lora"
    assert summary["outcome"] == (
        "Where all methods had learned 70 % of what could be learned (at the end), memory lost 5.0 points, full lost "
        "25.0 points and lora lost 43.3 points on the probe g; memory forgot less than full (×0.2)."
    )
    assert [entry["lr"] for entry in summary["methods"] if entry["best"]] == [2.0, 2.0, 2.0]


def test_the_sentence_says_who_loses(planted: Planted) -> None:
    runs = swept("full", [(1, 0.4, 0.0), (2, 0.8, 0.1)]) + swept(
        "memory", [(1, 0.3, 0.1), (2, 0.6, 0.3)], "sparse_memory"
    )
    assert summarise(planted(runs, ONE, 100))["outcome"] == (
        "Where all methods had learned 60 % of what could be learned (at the end), full lost 5.0 points and memory "
        "lost 30.0 points on the probe g; memory forgot more than full (×6)."
    )


def test_what_cannot_be_compared_is_said(planted: Planted) -> None:
    runs = swept("full", [(1, 0.8, 0.2)]) + swept("memory", [(1, 0.5, -0.05)], "sparse_memory")
    assert summarise(planted(runs, ONE, 100))["outcome"] == (
        "There is no level of learning (10 % or more) at which the methods can be compared: full (lr 1) ended at "
        "80.0 % (from 0.0 %) and lost 20.0 points and memory (lr 1) ended at 50.0 % (from 0.0 %) and gained 5.0 points "
        "on the probe g."
    )


@pytest.mark.parametrize(
    ("full", "memory", "words"),
    [
        (-0.10, -0.02, "memory kept less than full."),
        (0.10, -0.02, "memory kept more than full."),
        (0.1000, 0.1001, "memory kept about the same as full."),
        (0.10, 0.05, "memory forgot less than full (×0.5)."),
        (0.05, 0.10, "memory forgot more than full (×2)."),
    ],
)
def test_who_gained_has_not_forgotten(planted: Planted, full: float, memory: float, words: str) -> None:
    rows = 10_000 if memory == 0.1001 else 100
    runs = swept("full", [(1, 0.3, full), (2, 0.8, full)])
    runs += swept("memory", [(1, 0.3, memory), (2, 0.8, memory)], "sparse_memory")
    assert summarise(planted(runs, ONE, rows))["outcome"].endswith(f"on the probe g; {words}")


def test_full_finetuning_has_no_adapter(planted: Planted) -> None:
    said = summarise(planted(swept("full", [(0.1, 0.5, 0.1)]), ONE))["outcome"]
    assert "50.0 % on a; after training, the probes changed by −10.0 points on g" in said and "adapter" not in said


MIXED = [("a", "task", "test", "nll"), ("b", "task", "test", "f1"), ("g", "probe", "test", "accuracy")]
MIXED_MATRIX = [[4.0, 0.0, 0.9], [2.0, 0.0, 0.8], [3.0, 0.8, 0.7]]


def test_tasks_behind_a_mean_are_named(planted: Planted) -> None:
    said = summarise(planted([{"method": "lora", "matrix": MIXED_MATRIX}], MIXED))["outcome"]
    assert "took the task b from 0.0 % to 80.0 % right after its training and 80.0 % at the end; with" in said


def test_tasks_of_another_unit_are_named_where_nothing_compares(planted: Planted) -> None:
    little = [[4.0, 0.0, 0.9], [4.0, 0.0, 0.8], [4.0, 0.05, 0.7]]
    runs = [{"method": "full", "matrix": MIXED_MATRIX}, {"method": "lora", "matrix": little}]
    assert summarise(planted(runs, MIXED))["outcome"] == (
        "There is no level of learning (10 % or more) at which the methods can be compared: full (lr 0.1) ended at "
        "80.0 % on the task b (from 0.0 %) and lost 20.0 points and lora (lr 0.1) ended at 5.0 % on the task b "
        "(from 0.0 %) and lost 20.0 points on the probe g."
    )


def test_the_unit_of_tasks_is_the_same_in_every_order(planted: Planted) -> None:
    columns = [("a", "task", "test", "nll"), ("b", "task", "test", "bits_per_byte")]
    matrix = [[4.0, 2.0], [3.0, 1.5], [3.5, 1.0]]
    runs = [{"method": "lora", "matrix": matrix, "order": order} for order in (["a", "b"], ["b", "a"])]
    summary = summarise(planted(runs, columns))
    assert summary["task_unit"] == "nats/token"
    assert [run["values"]["continual"]["acc"] for run in summary["runs"]] == [pytest.approx(3.5), pytest.approx(3.5)]


def test_the_ceiling_of_a_likelihood_is_what_a_run_learned(planted: Planted) -> None:
    columns = [("a", "task", "test", "nll"), ("g", "probe", "test", "accuracy")]
    runs = []
    for method, kind, lost in (("full", "full", 0.4), ("memory", "sparse_memory", 0.1)):
        for lr, end in ((1.0, 3.0), (2.0, 2.0)):
            runs.append({"method": method, "kind": kind, "lr": lr, "matrix": [[4.0, 0.9], [end, 0.9 - lost]]})
    assert summarise(planted(runs, columns, 100))["outcome"] == (
        "Where all methods had learned 100 % of the most that any run learned (at the end), memory lost 10.0 points "
        "and full lost 40.0 points on the probe g; memory forgot less than full (×0.25)."
    )


def test_methods_are_compared_without_a_reference(planted: Planted) -> None:
    runs = swept("full", [(1, 0.1, 0.1), (2, 0.2, 0.3)])
    runs += swept("memory", [(1, 0.4, 0.1), (2, 0.8, 0.1)], "sparse_memory")
    runs += swept("replay", [(1, 0.4, 0.2), (2, 0.7, 0.2)], "lora", config='{"replay": {"ratio": 0.5}}')
    said = summarise(planted(runs, ONE, 100))["outcome"]
    assert said.startswith("Where memory and replay had learned 70 % of what could be learned (at the end), memory ")
    assert "full (learned at most 20 %) cannot be read there; there is no full finetuning or LoRA without" in said


def test_a_method_without_a_finished_run_is_named(planted: Planted) -> None:
    runs = swept("memory", [(1, 0.4, 0.1), (2, 0.8, 0.1)], "sparse_memory")
    runs += swept("product", [(1, 0.4, 0.2), (2, 0.8, 0.2)], "sparse_memory")
    said = summarise(planted([*runs, FAILED], ONE, 100))["outcome"]
    assert said.startswith("Where memory and product had learned 80 % of what could be learned (at the end), memory")
    assert said.endswith(" there. lora has no finished run. 1 of 5 runs failed.")


def test_two_of_three_methods_may_share_a_level(planted: Planted) -> None:
    runs = swept("full", [(1, 0.5, 0.1), (2, 0.8, 0.3)]) + swept("lora", [(1, 0.5, 0.2), (2, 0.8, 0.4)])
    runs += swept("memory", [(1, 0.2, 0.0)], "sparse_memory")
    said = summarise(planted(runs, ONE, 100))["outcome"]
    assert said.startswith("There is no level of learning (10 % or more) at which all methods can be compared: full")


def test_replay_is_no_reference(planted: Planted) -> None:
    runs = swept("full", [(1, 0.3, 0.2), (2, 0.8, 0.4)])
    runs += swept("replay", [(1, 0.3, 0.0), (2, 0.8, 0.1)], "full", config='{"replay": {"ratio": 0.5}}')
    summary = summarise(planted(runs, ONE, 100))
    assert [run["replay"] for run in summary["runs"]] == [False, False, True, True]
    level = summary["frontier"]["end"]["matched"][0]
    assert level["reference"] == "full" and level["ratio"]["replay"] == pytest.approx(0.04 / 0.28)


def test_seeds_are_averaged_and_paired(planted: Planted) -> None:
    runs = []
    for seed in range(6):
        for lr, learned in ((1, 0.3), (2, 0.7)):
            runs += swept("full", [(lr, learned, 0.2 + 0.01 * seed)], seed=seed)
            runs += swept("memory", [(lr, learned, 0.02 + 0.01 * seed)], "sparse_memory", seed=seed)
    summary = summarise(planted(runs, ONE, 100))
    entry = next(entry for entry in summary["methods"] if entry["method"] == "memory")
    assert (entry["n_runs"], entry["n_finished"], entry["intervals"]) == (6, 6, {})
    lost = entry["values"]["base_forgetting"]
    assert lost == {"value": pytest.approx(0.045), "low": pytest.approx(0.02), "high": pytest.approx(0.07), "n": 6}
    over = summary["frontier"]["now"]["matched"][0]["runs"]
    assert over["memory"]["n"] == 6 and over["memory"]["p_signflip"] == pytest.approx(2 / 64)
    assert over["memory"]["high"] == pytest.approx(0.07) and over["full"]["p_signflip"] is None


def test_failed_runs_stay(planted: Planted) -> None:
    failed = FAILED | {"method": "full", "kind": "full"}
    summary = summarise(planted([*swept("full", [(1, 0.8, 0.2)]), failed], ONE, 100))
    bad = summary["runs"][1]
    assert bad["status"] == "failed: loss is nan" and bad["matrix"] == [[None, None], [None, None]]
    assert summary["methods"][1]["n_finished"] == 0 and summary["methods"][1]["values"] == {}
    assert summary["outcome"].endswith("1 of 2 runs failed.")


def test_only_failed_runs(tmp_path: Path, planted: Planted) -> None:
    failed = FAILED | {"method": "full", "kind": "full", "order": ["a"]}
    folder = planted([{**failed, "matrix": []}], ONE)
    summary = summarise(folder)
    assert summary["outcome"] == "The run did not finish (failed: loss is nan)." and summary["columns"] == []
    write_runs(folder / "runs.parquet", [{**failed, "run_id": "y"}])
    assert summarise(folder)["outcome"] == "None of the 2 runs finished (failed: loss is nan)."


def test_without_a_recipe_the_runs_name_the_tasks(planted: Planted) -> None:
    folder = planted([{"method": "lora", "matrix": MATRIX}], COLUMNS)
    (folder / "config.yaml").unlink()
    summary = summarise(folder)
    assert summary["tasks"] == ["a", "b"] and summary["name"] == "planted" and summary["recipe"] == ""
    assert [column["metric"] for column in summary["columns"]] == [metric for *_, metric in COLUMNS]


def test_another_order_reads_its_own_diagonal(planted: Planted) -> None:
    run = {"method": "lora", "order": ["b", "a"], "matrix": MATRIX}
    values = summarise(planted([run], COLUMNS))["runs"][0]["values"]
    assert (values["tasks"]["b"]["now"], values["tasks"]["a"]["now"]) == (pytest.approx(0.3), pytest.approx(0.6))
    assert values["continual"]["bwt"] == pytest.approx(0.4)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no runs\.parquet"):
        summarise(tmp_path)


def test_json_has_no_nan_and_means_skip_what_is_missing() -> None:
    assert plain({"a": (math.nan, math.inf, 1.5), "b": None}) == {"a": [None, None, 1.5], "b": None}
    tree = combine([{"x": 1.0, "y": math.nan}, {"x": 3.0, "y": None}])
    assert tree["x"] == {"value": 2.0, "low": 1.0, "high": 3.0, "n": 2}
    assert tree["y"]["n"] == 0 and math.isnan(tree["y"]["value"])
