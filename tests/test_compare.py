"""Comparisons: every cell once, the same rows for all, failures kept as rows."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nlft.compare import compare, plan_cells
from nlft.errors import NlftError
from nlft.measure.items import read_runs

SMALL = {
    "full": {"kind": "full", "lr": [1e-4, 1e-3]},
    "memory": {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 3},
}


def test_cells_are_the_product(recipe: Callable[..., Any]) -> None:
    cells = plan_cells(
        recipe(methods=SMALL, compare={"seeds": [0, 3], "orders": [["people", "ships"], ["ships", "people"]]})
    )
    assert len(cells) == 3 * 2 * 2
    assert len({cell.name for cell in cells}) == 12
    last = cells[-1].recipe
    assert [task.name for task in last.tasks] == ["ships", "people"]
    assert (last.train.seeds.data, last.train.seeds.init, last.train.seeds.dropout) == (3, 3, 3)
    assert last.methods["memory"].lr == 0.3 and list(last.methods) == ["memory"]


def test_a_comparison_reports_all_cells_and_repeats_none(recipe: Callable[..., Any], tmp_path: Path) -> None:
    out = compare(recipe(methods=SMALL), tmp_path / "c")
    rows = read_runs(out / "runs.parquet")
    assert [(row["method"], row["lr"], row["status"]) for row in rows] == [
        ("full", 1e-4, "ok"),
        ("full", 1e-3, "ok"),
        ("memory", 0.3, "ok"),
    ]
    assert (out / "report.html").stat().st_size > 10_000
    summary = json.loads((out / "summary.json").read_text())
    base_rows = {json.dumps(run["matrix"][0]) for run in summary["runs"]}
    assert len(base_rows) == 1, "row 0 is the base, the same for all"
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/runs.parquet")}
    said = io.StringIO()
    compare(recipe(methods=SMALL), out, console=Console(file=said))
    assert said.getvalue().count("done before") == 3
    assert {path: path.stat().st_mtime_ns for path in out.glob("cells/*/runs.parquet")} == stamps


def test_a_diverged_cell_is_a_row(recipe: Callable[..., Any], tmp_path: Path) -> None:
    methods = {"full": {"kind": "full", "lr": [1e-3, 1e30]}}
    changes = {"methods": methods, "train": {"steps": 20, "batch_size": 8, "warmup": 0.0}}
    out = compare(recipe(**changes), tmp_path / "c")
    rows = read_runs(out / "runs.parquet")
    assert rows[0]["status"] == "ok"
    assert rows[1]["status"].startswith("failed: full: people: the loss of step")
    assert "failed" in (out / "report.md").read_text()


def test_another_comparison_is_refused(recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("name: other\n")
    with pytest.raises(NlftError, match="holds another run or comparison"):
        compare(recipe(methods=SMALL), tmp_path / "c")
