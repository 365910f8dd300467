"""Finished results joined: one base, the same rows, names told apart, nothing invented."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nlft.errors import NlftError
from nlft.joining import join, labels_of, train_remark
from nlft.measure.items import read_items, read_run_items, read_runs

Planted = Callable[..., Path]
COLUMNS = [("a", "task", "test", "exact_match"), ("g", "probe", "test", "accuracy")]
BASE = {"base_model": "m", "base_sha256": "f00d"}


@pytest.fixture
def results(planted: Planted, tmp_path: Path) -> Callable[..., Path]:
    """`results(name, runs, columns=COLUMNS, rows=20)` writes a result folder of that name."""

    def make(name: str, runs: list[dict[str, Any]], columns: Any = COLUMNS, rows: int = 20) -> Path:
        folder = tmp_path / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        return planted([BASE | run for run in runs], columns, rows).rename(folder)

    return make


def run(method: str, learned: float, kept: float, **fields: Any) -> dict[str, Any]:
    return {"run_id": method, "method": method, "matrix": [[0.0, 0.9], [learned, kept]]} | fields


def test_two_folders_become_one_report(results: Callable[..., Path], tmp_path: Path) -> None:
    one = results("one", [run("full", 0.8, 0.5), run("lora", 0.6, 0.8)])
    two = results("two", [run("lora", 0.7, 0.85), run("slots", 0.5, 0.9)])
    out = join([one, two], tmp_path / "both")
    rows = read_runs(out / "runs.parquet")
    assert [(row["run_id"], row["method"]) for row in rows] == [
        ("full", "full"),
        ("lora (one)", "lora (one)"),
        ("lora (two)", "lora (two)"),
        ("slots", "slots"),
    ]
    assert len(read_items(out / "items.parquet")) == len(read_items(one / "items.parquet")) * 2
    summary = json.loads((out / "summary.json").read_text())
    ends = {entry["method"]: entry["matrix"][-1] for entry in summary["methods"]}
    assert ends == {
        "full": pytest.approx([0.8, 0.5]),
        "lora (one)": pytest.approx([0.6, 0.8]),
        "lora (two)": pytest.approx([0.7, 0.85]),
        "slots": pytest.approx([0.5, 0.9]),
    }
    assert (out / "report.html").is_file()
    assert [row["method"] for row in read_runs(one / "runs.parquet")] == ["full", "lora"], "the sources stay"


def test_a_probe_of_one_folder_is_not_measured_in_the_other(results: Callable[..., Path], tmp_path: Path) -> None:
    more = [*COLUMNS, ("h", "probe", "test", "accuracy")]
    one = results("one", [run("full", 0.8, 0.5)])
    two = results("two", [run("lora", 0.6, 0.8) | {"matrix": [[0.0, 0.9, 0.7], [0.6, 0.8, 0.6]]}], more)
    out = join([one, two], tmp_path / "both")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["probes"] == ["g", "h"]
    losses = {entry["method"]: entry["values"]["probes"] for entry in summary["runs"]}
    assert losses["full"]["h"] == {"base": None, "end": None, "change": None}
    assert losses["lora"]["h"]["change"] == pytest.approx(-0.1)
    assert losses["full"]["g"]["change"] == pytest.approx(-0.4)


def test_a_join_is_written_again_over_itself_alone(results: Callable[..., Path], tmp_path: Path) -> None:
    one, two = results("one", [run("full", 0.8, 0.5)]), results("two", [run("lora", 0.6, 0.8)])
    out = join([one, two], tmp_path / "both")
    third = results("three", [run("slots", 0.6, 0.8)])
    join([one, third], out)
    assert set(read_run_items(out / "items.parquet")) == {"full", "slots"}
    with pytest.raises(NlftError, match="holds other results"):
        join([one, two], third)


def test_a_joined_folder_joins_on(results: Callable[..., Path], tmp_path: Path) -> None:
    first = join([results("one", [run("full", 0.8, 0.5)]), results("two", [run("lora", 0.6, 0.8)])], tmp_path / "x")
    out = join([first, results("three", [run("slots", 0.6, 0.8)])], tmp_path / "y")
    assert [row["method"] for row in read_runs(out / "runs.parquet")] == ["full", "lora", "slots"]


@pytest.mark.parametrize(
    ("changed", "columns", "rows", "said"),
    [
        ({"base_sha256": "beef"}, COLUMNS, 20, r"one and two have different bases: m \(f00d\) and m \(beef\)\."),
        ({"base_sha256": None}, COLUMNS, 20, "different bases"),
        ({}, [("b", "task", "test", "exact_match"), COLUMNS[1]], 20, "different tasks: a and b"),
        ({}, COLUMNS, 30, r"different rows of '[ag]': 20 and 30, 20 of them the same"),
        ({}, [COLUMNS[0], ("g", "probe", "test", "nll")], 20, "measure 'g' differently"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    results: Callable[..., Path], tmp_path: Path, changed: dict[str, Any], columns: Any, rows: int, said: str
) -> None:
    one, two = (
        results("one", [run("full", 0.8, 0.5)]),
        results("two", [run("lora", 0.6, 0.8, **changed)], columns, rows),
    )
    with pytest.raises(NlftError, match=said):
        join([one, two], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_different_train_rows_are_remarked(results: Callable[..., Path], tmp_path: Path) -> None:
    one, two, old = (results(name, [run(name, 0.8, 0.5)]) for name in ("one", "two", "old"))
    train = {"path": "a.jsonl", "limit": 64, "skip": 0}
    changes = {one: train, two: train | {"limit": 32}, old: {"path": "a.jsonl", "limit": 64}}
    for folder, section in changes.items():
        (folder / "config.yaml").write_text(yaml.safe_dump({"tasks": [{"name": "a", "train": section}]}))
    assert train_remark([one, old]) == []
    assert "tasks.a.train.limit is 64 in one and 32 in two." in train_remark([one, two])[0]
    joined = join([one, old], tmp_path / "both")
    assert "64 in both and 32 in two" in train_remark([joined, two])[0]


def test_labels_tell_folders_apart() -> None:
    a, b, c = Path("/x/monday/run"), Path("/x/tuesday/run"), Path("/x/other")
    assert labels_of([a, c]) == {a: "run", c: "other"}
    assert list(labels_of([a, b]).values()) == ["monday/run", "tuesday/run"]
    with pytest.raises(NlftError, match="given twice"):
        labels_of([a, b, a])


def test_a_bound_over_all_tasks_at_once_is_no_further_task(results: Callable[..., Path], tmp_path: Path) -> None:
    columns = [("a", "task", "test", "exact_match"), ("b", "task", "test", "exact_match"), COLUMNS[1]]
    matrix = [[0.0, 0.0, 0.9], [0.8, 0.0, 0.8], [0.7, 0.9, 0.7]]
    bound = {"run_id": "all", "order": ["a+b"], "setting": "multitask", "matrix": [matrix[0], matrix[2]]}
    one = results("one", [{"method": "full", "matrix": matrix}, {"method": "full"} | bound], columns)
    both = join([one, results("two", [{"method": "lora", "matrix": matrix}], columns)], tmp_path / "both")
    summary = json.loads((both / "summary.json").read_text())
    assert set(summary["bounds"]["multitask"]["full"]) == {"a", "b"} and len(summary["runs"]) == 2
