"""Comparisons: every cell once, the same rows for all, failures kept as rows."""

from __future__ import annotations

import io
import json
import multiprocessing
import re
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from nlft.compare import compare
from nlft.data.domain import load_domains
from nlft.errors import NlftError
from nlft.executor import Work, run_cells, set_up
from nlft.measure.items import read_items, read_runs
from nlft.plan import plan_cells

SMALL = {
    "full": {"kind": "full", "lr": [1e-4, 1e-3]},
    "memory": {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 3},
}


@pytest.fixture
def unreported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons write no report, which takes longer than a small run."""
    monkeypatch.setattr("nlft.compare.write_report", lambda out: None)


def stamps(out: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cells/*/runs.parquet")}


def test_a_comparison_reports_all_cells_and_repeats_none(recipe: Callable[..., Any], tmp_path: Path) -> None:
    compare(recipe(methods=SMALL), tmp_path / "c", dry_run=True)
    assert not (tmp_path / "c").exists()
    out = compare(recipe(methods=SMALL), tmp_path / "c")
    rows = read_runs(out / "runs.parquet")
    assert [(row["method"], row["lr"], row["status"]) for row in rows] == [
        ("full", 1e-4, "ok"),
        ("full", 1e-3, "ok"),
        ("memory", 0.3, "ok"),
    ]
    assert all(row["run_id"].endswith(row["cell"][:12]) and len(row["cell"]) == 64 for row in rows)
    assert (out / "report.html").stat().st_size > 10_000
    summary = json.loads((out / "summary.json").read_text())
    base_rows = {json.dumps(run["matrix"][0]) for run in summary["runs"]}
    assert len(base_rows) == 1, "row 0 is the base, the same for all"
    before, said = stamps(out), io.StringIO()
    compare(recipe(methods=SMALL), out, console=Console(file=said))
    assert "3 of them are done already" in said.getvalue()
    assert stamps(out) == before


@pytest.mark.slow
def test_an_edited_recipe_uses_again_what_is_finished(recipe: Callable[..., Any], tmp_path: Path) -> None:
    lora = {"kind": "lora", "lr": [1e-3, 1e-2]}
    out = compare(recipe(methods={"lora": lora}), tmp_path / "c")
    before, said = stamps(out), io.StringIO()
    # With one rate less, and with the bounds.
    changes = {"methods": {"lora": {"kind": "lora", "lr": 1e-2}}}
    bounds = {"bounds": {"single": ["lora"], "multitask": ["lora"]}}
    compare(recipe(**changes, compare=bounds), out, console=Console(file=said, width=200))
    assert "1 of them are done already" in said.getvalue() and "1 other run in the folder" in said.getvalue()
    assert {name: stamps(out)[name] for name in before} == before
    rows = read_runs(out / "runs.parquet")
    assert [(row["setting"], row["lr"], row["order"], row["steps"]) for row in rows] == [
        ("sequence", 1e-2, ["people", "ships"], 12),
        ("single", 1e-2, ["ships"], 6),
        ("multitask", 1e-2, ["people+ships"], 12),
    ]
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["runs"]) == 1
    assert set(summary["bounds"]["single"]["lora"]) == {"people", "ships"}
    assert summary["bounds"]["multitask"]["lora"]["people"]["n"] == 1


@pytest.mark.slow
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
    cells = plan_cells(chosen)[:1]
    thread = threading.Thread(target=kill)
    thread.start()
    ended = list(run_cells(cells, Work(tmp_path, load_domains(chosen), None), 2, Console(quiet=True)))
    thread.join()
    assert killed
    assert sorted((end.cell.name, end.problem) for end in ended) == sorted((cell.name, "") for cell in cells)


@pytest.mark.slow
def test_workers_warn_of_what_their_parent_warns_of() -> None:
    filters = [("error", re.compile("x"), FutureWarning, None, 0)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=set_up, initargs=(None, 1, filters)) as pool:  # pyright: ignore
        with pytest.raises(FutureWarning, match="x"):
            pool.submit(warnings.warn, "x", FutureWarning).result()
        assert pool.submit(warnings.warn, "other", FutureWarning).result() is None


def begin_cells(recipe: Any, out: Path) -> None:
    # Two jobs and one cell: one worker.
    list(run_cells(plan_cells(recipe)[:1], Work(out, load_domains(recipe), None), 2, Console(quiet=True)))


@pytest.mark.slow
def test_cells_end_with_the_process_that_began_them(recipe: Callable[..., Any], tmp_path: Path) -> None:
    chosen = recipe(methods=SMALL, train={"steps": 5000, "batch_size": 8})
    parent = multiprocessing.get_context("spawn").Process(target=begin_cells, args=(chosen, tmp_path))
    parent.start()
    until = time.monotonic() + 120
    while not list((tmp_path / "cells").glob("*")) and time.monotonic() < until:
        time.sleep(0.05)
    [server] = [child for child in psutil.Process(parent.pid).children() if "forkserver" in " ".join(child.cmdline())]
    workers = server.children()
    assert len(workers) == 1
    parent.kill()
    parent.join()
    assert psutil.wait_procs(workers, timeout=30)[1] == []


def test_a_diverged_cell_is_a_row_and_an_end_of_the_sweep(recipe: Callable[..., Any], tmp_path: Path) -> None:
    methods = {"full": {"kind": "full", "lr": [1e-5, 1e-3, 1e30]}}
    changes = {"methods": methods, "train": {"steps": 20, "batch_size": 8, "warmup": 0.0}, "compare": {"widen": 1}}
    out = compare(recipe(**changes), tmp_path / "c")
    rows = read_runs(out / "runs.parquet")
    assert [(row["lr"], row["status"]) for row in rows[:2]] == [(1e-5, "ok"), (1e-3, "ok")]
    assert rows[2]["status"].startswith("failed: full: people: the loss of step")
    assert "failed" in (out / "report.md").read_text()
    assert json.loads((out / "added.json").read_text()) == [], "1e-3 learned most, and lies inside"
    before = stamps(out)
    compare(recipe(**changes), out)
    assert stamps(out) == before, "it would diverge again"


@pytest.mark.slow
@pytest.mark.usefixtures("unreported")
def test_a_best_point_at_an_end_gets_a_rate_beyond(recipe: Callable[..., Any], tmp_path: Path) -> None:
    changes = {"methods": {"full": {"kind": "full", "lr": [1e-5, 1e-3]}}, "train": {"steps": 40, "batch_size": 8}}
    said = io.StringIO()
    console = Console(file=said, width=200)
    out = compare(recipe(**changes, compare={"widen": 1}), tmp_path / "c", console=console)
    (added,) = json.loads((out / "added.json").read_text())
    assert (added["method"], added["lr"]) == ("full", 0.1)  # 1e-3 * (1e-3 / 1e-5)
    assert "Added full lr 0.1: most was learned at 0.001, the largest rate tried" in said.getvalue()
    assert [row["lr"] for row in read_runs(out / "runs.parquet")] == [1e-5, 1e-3, 0.1]
    before = stamps(out)
    assert "Up to 1 round of" in said.getvalue()
    said = io.StringIO()
    compare(recipe(**changes, compare={"widen": 1}), out, console=Console(file=said, width=200))
    assert "Added full lr 0.1" in said.getvalue() and "other run" not in said.getvalue(), "its run is of the plan"
    assert stamps(out) == before and len(read_runs(out / "runs.parquet")) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("unreported")
def test_damaged_cells_run_again_and_stop_nothing(recipe: Callable[..., Any], tmp_path: Path) -> None:
    changes = {"methods": {"lora": {"kind": "lora", "lr": [1e-3, 1e-2]}}}
    out = compare(recipe(**changes), tmp_path / "c")
    whole, before = read_items(out / "items.parquet"), stamps(out)
    first, second = (out / "cells" / row["run_id"] for row in read_runs(out / "runs.parquet"))
    (first / "items.parquet").write_bytes((first / "items.parquet").read_bytes()[:100])
    # An interrupted cell whose stage is no table.
    for name in ("runs.parquet", "items.parquet"):
        (second / name).unlink()
    (second / "stages" / "0").mkdir(parents=True)
    (second / "stages" / "0" / "stage.json").write_text("{")
    (second / "stages" / "1").mkdir()
    (second / "stages" / "1" / "stage.json").write_text("{")
    compare(recipe(**changes), out)
    assert read_items(out / "items.parquet") == whole
    assert all(stamps(out)[cell.name] != before[cell.name] for cell in (first, second))


@pytest.mark.usefixtures("unreported")
def test_what_nobody_foresaw_ends_one_cell(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlft import cells

    real = cells.run_method

    def break_one(chosen: Any, *args: Any, **kwargs: Any) -> Any:
        if chosen.methods["lora"].lr == 1e-3:
            raise ZeroDivisionError("a bug")
        return real(chosen, *args, **kwargs)

    monkeypatch.setattr(cells, "run_method", break_one)
    out = compare(recipe(methods={"lora": {"kind": "lora", "lr": [1e-3, 1e-2]}}), tmp_path / "c")
    good, bad = read_runs(out / "runs.parquet")
    assert bad["status"] == "failed: ZeroDivisionError: a bug See traceback.txt in its folder."
    assert "break_one" in (out / "cells" / bad["run_id"] / "traceback.txt").read_text()
    assert good["status"] == "ok"


def test_what_is_no_comparison_is_refused(recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("name: other\n")
    with pytest.raises(NlftError, match="holds another run, and no comparison"):
        compare(recipe(methods=SMALL), tmp_path / "c")
    (tmp_path / "c" / "cells").mkdir()
    with pytest.raises(NlftError, match="the comparison of another recipe, called 'other' and not 'short'"):
        compare(recipe(methods=SMALL), tmp_path / "c")
    assert (tmp_path / "c" / "config.yaml").read_text() == "name: other\n"
