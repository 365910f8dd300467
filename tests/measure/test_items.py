"""Result tables: what is written is read, nothing is left half written, nothing missing becomes a number."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nlft.errors import DataError
from nlft.measure.items import (
    ITEMS_SCHEMA,
    RUNS_SCHEMA,
    join_results,
    read_items,
    read_run_items,
    read_runs,
    write_items,
    write_runs,
)
from nlft.types import Item

ITEM = Item(1, "on", "people/seen", "task", "seen", "exact_match", "a1", "ada", 0.1 + 0.2, 3.0, 'Köln "x"\n<b>')


def test_items_come_back_equal(tmp_path: Path) -> None:
    items = [ITEM, replace(ITEM, stage=0, condition="base", value=-2.5, weight=7.0, prediction="")]
    write_items(tmp_path / "items.parquet", "run", items)
    assert read_items(tmp_path / "items.parquet") == items
    assert pq.read_schema(tmp_path / "items.parquet").equals(ITEMS_SCHEMA)
    assert ITEMS_SCHEMA.names == ["run_id", *Item.__slots__]
    assert [path.name for path in tmp_path.iterdir()] == ["items.parquet"]


def test_a_value_that_was_not_measured_is_null_and_comes_back_nan(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    write_items(path, "run", [replace(ITEM, value=math.nan), replace(ITEM, value=math.inf)])
    assert pq.read_table(path).column("value").null_count == 1
    first, second = read_items(path)
    assert math.isnan(first.value) and second.value == math.inf


def test_writing_again_replaces_the_run_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    write_items(path, "a", [ITEM, ITEM])
    write_items(path, "b", [replace(ITEM, value=5.0)])
    write_items(path, "a", [replace(ITEM, value=6.0)])
    found = {run: [item.value for item in items] for run, items in read_run_items(path).items()}
    assert found == {"b": [5.0], "a": [6.0]}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "items.parquet"
    write_items(path, "a", [ITEM])

    def full(table: object, partial: Path, **options: object) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space"):
        write_items(path, "b", [ITEM])
    assert list(read_run_items(path)) == ["a"]


def test_runs_come_back_with_null_for_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "runs.parquet"
    row = {"run_id": "r", "method": "full", "lr": 1e-4, "order": ["b", "a"], "base_unchanged": None, "status": "ok"}
    write_runs(path, [row, {"run_id": "s", "status": "failed: oom"}])
    first, second = read_runs(path)
    assert {key: first[key] for key in row} == row
    assert first["train_s"] is None and second["order"] is None and set(first) == set(RUNS_SCHEMA.names)
    write_runs(path, [{**row, "lr": 2e-4}])
    assert [(run["run_id"], run["lr"]) for run in read_runs(path)] == [("s", None), ("r", 2e-4)]


@pytest.mark.parametrize(
    ("row", "words"), [({"run_id": "r", "lrs": 1}, "no column 'lrs'"), ({"lr": 1.0}, "no `run_id`")]
)
def test_a_wrong_run_is_refused(row: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        write_runs(tmp_path / "runs.parquet", [row])
    assert not list(tmp_path.iterdir())


def test_joining_keeps_every_run_and_the_failed_ones(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_items(tmp_path / name / "items.parquet", name, [ITEM])
        write_runs(tmp_path / name / "runs.parquet", [{"run_id": name, "status": "ok"}])
    folders = [tmp_path / "a", tmp_path / "b"]
    for _ in range(2):  # a second call adds nothing
        join_results(tmp_path, folders, [{"run_id": "c", "status": "failed: nan"}])
    assert [(run["run_id"], run["status"]) for run in read_runs(tmp_path / "runs.parquet")] == [
        ("a", "ok"),
        ("b", "ok"),
        ("c", "failed: nan"),
    ]
    assert {run: len(items) for run, items in read_run_items(tmp_path / "items.parquet").items()} == {"a": 1, "b": 1}
    with pytest.raises(DataError, match="Two runs are called 'a'"):
        join_results(tmp_path, folders, [{"run_id": "a"}])


def test_what_is_no_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no items\.parquet"):
        read_items(tmp_path / "items.parquet")
    (tmp_path / "items.parquet").write_text("text")
    with pytest.raises(DataError, match="is no table of items"):
        read_items(tmp_path / "items.parquet")
    write_runs(tmp_path / "runs.parquet", [{"run_id": "r"}])
    (tmp_path / "runs.parquet").replace(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="is no table of items"):
        read_items(tmp_path / "items.parquet")


def test_files_are_compressed_well(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs.parquet", [{"run_id": "a"}])
    assert pq.ParquetFile(tmp_path / "runs.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
