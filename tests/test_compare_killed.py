"""A comparison that is killed with its workers, at any time, and begun again equals one that ran through."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from nlft.compare import compare
from nlft.executor import Work, run_cells
from nlft.measure.items import read_run_items, read_runs
from nlft.plan import plan_cells
from nlft.recipes import dump_recipe

MACHINE = {"train_s", "eval_s", "wall_s", "created_at", "latency_ratio", "peak_rss", "peak_bytes"}
METHODS = {
    "full": {"kind": "full", "lr": 1e-3},
    "memory": {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 3},
}


def runs_of(out: Path) -> list[dict[str, Any]]:
    rows = read_runs(out / "runs.parquet")
    return [{key: value for key, value in row.items() if key not in MACHINE} for row in rows]


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Here and in processes begun from here: sums over another number of threads end in other bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_killed_and_begun_again_equals_uninterrupted(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setattr("nlft.compare.write_report", lambda out: None)
    chosen = recipe(methods=METHODS, train={"steps": 20, "batch_size": 8})
    (tmp_path / "r.yaml").write_text(dump_recipe(chosen))
    cut = tmp_path / "cut"
    command = [sys.executable, "-m", "nlft", "compare", "r.yaml", "--out", str(cut)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # In the second task of the first cell.
    until = time.monotonic() + 100
    while not list(cut.glob("cells/*/stages/1/stage.json")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    (begun,) = (cut / "cells").iterdir()
    assert not (begun / "runs.parquet").exists() and not list((begun / "stages").glob("2"))
    compare(chosen, cut, jobs=2)
    whole = compare(chosen, tmp_path / "whole")
    assert '"resume": true' in (begun / "events.jsonl").read_text()
    assert runs_of(cut) == runs_of(whole)
    first, second = (read_run_items(out / "items.parquet") for out in (whole, cut))
    assert len(first) == 2 and repr(first) == repr(second), "bit for bit"


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


@pytest.mark.slow
def test_processes_that_die_before_a_cell_began_do_not_go_on_forever(
    recipe: Callable[..., Any], tmp_path: Path
) -> None:
    cells = plan_cells(recipe(methods=METHODS))
    work = Work(tmp_path, cast(Any, Deadly()), None)
    ended = list(run_cells(cells, work, len(cells), Console(quiet=True)))
    assert sorted(end.cell.name for end in ended) == sorted(cell.name for cell in cells)
    assert all("was killed" in end.problem for end in ended) and not (tmp_path / "cells").exists()
