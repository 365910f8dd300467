"""Comparisons: every cell once, the same rows for all, failures kept as rows."""

from __future__ import annotations

import io
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from nlft.cells import plan_cells
from nlft.compare import compare
from nlft.data.domain import load_domains
from nlft.errors import NlftError
from nlft.executor import Work, run_cells
from nlft.measure.items import read_items, read_runs
from nlft.recipes import dump_recipe

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
    assert "3 of them are done already" in said.getvalue()
    assert {path: path.stat().st_mtime_ns for path in out.glob("cells/*/runs.parquet")} == stamps


def test_side_by_side_is_one_after_another(recipe: Callable[..., Any], tmp_path: Path) -> None:
    one, two = (compare(recipe(methods=SMALL), tmp_path / str(jobs), jobs=jobs) for jobs in (1, 2))
    assert read_items(one / "items.parquet") == read_items(two / "items.parquet")


def test_the_cells_of_a_killed_process_run_again(recipe: Callable[..., Any], tmp_path: Path) -> None:
    killed = []

    def kill() -> None:
        while not killed:
            time.sleep(0.05)
            begun = list((tmp_path / "cells").glob("*"))
            if begun and (workers := multiprocessing.active_children()):
                workers[0].kill()
                killed.append(workers[0].pid)

    chosen = recipe(methods=SMALL)
    cells = plan_cells(chosen)
    thread = threading.Thread(target=kill)
    thread.start()
    ended = list(run_cells(cells, Work(tmp_path, load_domains(chosen), None), 2, Console(quiet=True)))
    thread.join()
    assert killed
    assert sorted((end.cell.name, end.problem) for end in ended) == sorted((cell.name, "") for cell in cells)


def test_cells_end_with_the_process_that_began_them(recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe(methods=SMALL, train={"steps": 5000, "batch_size": 8})))
    command = [sys.executable, "-m", "nlft", "compare", "r.yaml", "--jobs", "2", "--out", "c"]
    parent = psutil.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not len(list((tmp_path / "c" / "cells").glob("*"))) == 2 and time.monotonic() < until:
        time.sleep(0.1)
    workers = [child for child in parent.children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    assert psutil.wait_procs(workers, timeout=30)[1] == []


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
