"""Going on: a further task from what has been learned, and an interrupted run to its end. Mixing them up is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from nlft import cli
from nlft.compare import compare
from nlft.config import Recipe
from nlft.continuing import continued_from, next_recipe, resume
from nlft.errors import NlftError
from nlft.manifest import sha256_of
from nlft.measure.items import read_items, read_runs
from nlft.measure.summary import summary_of
from nlft.run import run_method
from tests.conftest import SHORT_METHODS, short_recipe, world_rows

WEIGHTS = "adapter_model.safetensors"
QUIET = Console(quiet=True)
KEPT = {
    **{name: SHORT_METHODS[name] for name in ("prototype", "product_key", "lora", "lora_replay")},
    "budget": {**SHORT_METHODS["prototype"], "retention": "10%"},
    "gated_lora": {"kind": "lora", "lr": 1e-2, "gate": "prototype", "retention": "10%"},
    "cms": {"kind": "cms", "lr": 1e-2, "periods": [1, 4]},
    "hope": {"kind": "hope", "lr": 1e-2},
}


def task(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "train": world_rows(f"tasks/{name}/train", 32),
        "test": world_rows(f"tasks/{name}/test", 4),
        "seen": world_rows(f"tasks/{name}/seen", 2),
    }


def recipe_of(*tasks: str, method: str = "prototype", **changes: Any) -> Recipe:
    few = {
        "probes": [{"name": "facts", "data": world_rows("base/probe", 4)}],
        "background": world_rows("base/background-text", 100),
        "measure": {"max_new_tokens": 4},
        "train": {"steps": 2, "batch_size": 4},
    }
    return short_recipe(tasks=[task(name) for name in tasks], methods={method: KEPT[method]}, **few | changes)


def same_tensors(one: Path, other: Path) -> bool:
    first, second = load_file(one / WEIGHTS), load_file(other / WEIGHTS)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def values(folder: Path, stage: int) -> dict[tuple[str, str, str], float]:
    """Scores of a stage by column, metric and row."""
    items = [item for item in read_items(folder / "items.parquet") if item.stage == stage]
    return {(item.column, item.metric, item.item_id): item.value for item in items}


def cut(folder: Path, stage: int) -> None:
    """Leaves what a run has on disk when it is killed in a stage."""
    for name in ("adapter", f"stages/{stage}"):
        shutil.rmtree(folder / name)
    for name in ("items.parquet", "runs.parquet"):
        (folder / name).unlink()


@pytest.fixture(scope="module", autouse=True)
def untimed() -> Iterator[None]:
    """Timing a decoded token takes most of so short a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nlft.run.latency_ratio", lambda *_: None)
        yield


class Runs(NamedTuple):
    whole: Path
    """people and ships in one run."""
    alone: Path
    """people."""
    further: Path
    """From there ships."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    place = tmp_path_factory.mktemp("runs")
    whole = run_method(recipe_of("people", "ships"), None, place / "whole", report=False)
    alone = run_method(recipe_of("people"), None, place / "alone", report=False)
    (place / "ships.yaml").write_text(yaml.safe_dump(task("ships")))
    new = next_recipe(str(alone), [str(place / "ships.yaml")], ["train.warmup=0.05"])
    return Runs(whole, alone, run_method(new, None, place / "further", report=False))


def test_two_runs_end_with_the_bits_of_one(runs: Runs) -> None:
    """people, then ships in a run of its own, is people and ships in one run."""
    assert same_tensors(runs.whole / "stages" / "2" / "model", runs.further / "stages" / "1" / "model")
    wanted = values(runs.whole, 1)
    found = values(runs.further, 0)
    assert found == wanted  # row 0 is the adapted model, not the base
    assert values(runs.further, 1) == values(runs.whole, 2)


def test_earlier_tasks_are_probes(runs: Runs) -> None:
    summary = summary_of(runs.further)
    [entry] = summary["methods"]
    assert (summary["tasks"], summary["probes"]) == (["ships"], ["people", "facts"])
    columns = {column["column"]: (column["role"], column["split"]) for column in summary["columns"]}
    assert columns["people"] == ("probe", "test") and columns["people/seen"] == ("task", "seen")
    lost = [-entry["values"]["probes"][name]["change"]["value"] for name in ("people", "facts")]
    assert entry["values"]["base_forgetting"]["value"] == pytest.approx(sum(lost) / 2)
    assert set(entry["values"]["tasks"]) == {"ships"}
    assert (summary["base"]["adapter"], summary["base"]["learned"]) == (str(runs.alone), ["people"])
    assert summary["outcome"].startswith(
        f"Started from builtin:tiny + adapter {runs.alone}, which had learned people: row 0"
    )
    assert "adapter" not in summary_of(runs.alone)["outcome"].partition(";")[0]


def test_a_run_knows_what_it_went_on_from(runs: Runs) -> None:
    expected = {"name": str(runs.alone), "revision": None, "sha256": sha256_of(runs.alone / "adapter" / WEIGHTS)}
    assert continued_from(runs.further) == expected and continued_from(runs.alone) is None
    [row] = read_runs(runs.further / "runs.parquet")
    assert (row["base_unchanged"], row["off_equals_base"], row["order"]) == (True, True, ["ships"])
    start = json.loads((runs.further / "events.jsonl").read_text().splitlines()[0])["start"]
    assert (start["sha256"], start["tasks"], start["number"]) == (expected["sha256"], ["people"], 1)
    again = next_recipe(str(runs.further), ["books=builtin:world/books/a,builtin:world/books/b"], ["train.steps=3"])
    assert [entry.name for entry in again.earlier] == ["people", "ships"]
    assert (again.name, again.adapter, again.train.steps) == ("further-continued", str(runs.further), 3)
    assert (again.methods, again.probes) == (recipe_of("people").methods, recipe_of("people").probes)


@pytest.mark.slow
def test_a_continued_run_resumes_bit_for_bit(runs: Runs, tmp_path: Path) -> None:
    further = recipe_of("ships", "drugs", adapter=str(runs.alone), earlier=[task("people")])
    whole, folder = run_method(further, None, tmp_path / "whole", report=False), tmp_path / "further"
    shutil.copytree(whole, folder)
    cut(folder, 2)
    assert resume(str(folder), None, QUIET) == folder
    assert same_tensors(whole / "adapter", folder / "adapter")
    assert [item.value for item in read_items(whole / "items.parquet")] == [
        item.value for item in read_items(folder / "items.parquet")
    ]
    assert continued_from(folder) == continued_from(whole) == continued_from(runs.further)


@pytest.mark.slow
@pytest.mark.parametrize("method", KEPT)
def test_every_method_goes_on_with_the_bits_of_one_run(method: str, tmp_path: Path) -> None:
    """From the checkpoint after people, whose share of a budget is that of a run of two tasks."""
    whole = run_method(recipe_of("people", "ships", method=method), None, tmp_path / "whole", report=False)
    again = recipe_of("ships", method=method, adapter=str(whole / "stages" / "1" / "model"), earlier=[task("people")])
    further = run_method(again, None, tmp_path / "further", report=False)
    assert same_tensors(whole / "adapter", further / "adapter")
    assert {key: values(further, 0)[key] for key in values(whole, 1)} == values(whole, 1)
    assert {key: values(further, 1)[key] for key in values(whole, 2)} == values(whole, 2)


def test_a_run_is_resumed_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Relative paths are those of the place where it was begun; finished, nothing is left to do."""
    home, away = tmp_path / "home", tmp_path / "away"
    for folder in (home, away):
        folder.mkdir()
    monkeypatch.chdir(home)
    for name, first in (("a", 0), ("b", 20)):
        rows = [{"prompt": f"{n} is before", "completion": f"{n + 1}"} for n in range(first, first + 12)]
        Path(f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks = [{"name": name, "train": f"{name}.jsonl", "test": f"{name}.jsonl"} for name in ("a", "b")]
    recipe = short_recipe(tasks=tasks, probes=[], methods={"lora": KEPT["lora"]}, train={"steps": 2, "batch_size": 4})
    whole = run_method(recipe, None, Path("run"), report=False)
    shutil.copytree(whole, "cut")
    cut(home / "cut", 2)
    monkeypatch.chdir(away)
    monkeypatch.setattr("nlft.run.write_report", lambda folder: (folder / "summary.json").write_text("{}"))
    folder = resume("../home/cut", None, QUIET)
    assert same_tensors(whole / "adapter", folder / "adapter") and Path.cwd() == away
    resume(str(folder), None, Console())
    assert "is finished: there is nothing to resume" in capsys.readouterr().out
    found = next_recipe(str(folder), ["c=x.jsonl,y.jsonl"])
    assert [entry.train.path for entry in (*found.earlier, *found.tasks)] == [
        str(home / "a.jsonl"), str(home / "b.jsonl"), "x.jsonl",
    ]  # fmt: skip


def test_mixing_up_is_refused(runs: Runs, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs.alone, unfinished)
    (unfinished / "runs.parquet").unlink()
    with pytest.raises(NlftError, match=r"is not finished.*`nlft resume .*unfinished` finishes it"):
        next_recipe(str(unfinished), ["ships=a,b"])
    with pytest.raises(NlftError, match=r"started with another recipe.*nlft resume.*nlft continue"):
        run_method(recipe_of("ships"), None, unfinished, resume=True)
    with pytest.raises(NlftError, match=r"holds another run.*nlft resume.*nlft continue"):
        run_method(recipe_of("ships"), None, runs.alone)
    for folder in (runs.alone / "adapter", "user/name"):
        with pytest.raises(NlftError, match=r"that is no run.*nlft continue"):
            resume(str(folder), None, QUIET)
    with pytest.raises(NlftError, match="no run: there is no such folder"):
        resume(str(tmp_path / "nothing"), None, QUIET)


def test_new_tasks_are_said_in_full(runs: Runs, tmp_path: Path) -> None:
    for tasks, said in (
        ([], "no task to go on with"),
        (["ships=train.jsonl"], "ships has no test rows"),
        ([str(runs.alone)], "every task of that recipe has been learned"),
        (["people=a,b"], "earlier: 'people' has been learned already"),
    ):
        with pytest.raises(NlftError, match=said):
            next_recipe(str(runs.alone), tasks)
    bare = tmp_path / "bare"
    shutil.copytree(runs.alone / "adapter", bare)
    (bare / "config.yaml").write_text((runs.alone / "config.yaml").read_text())  # found beside an adapter: not a run's
    with pytest.raises(NlftError, match="brings no recipe"):
        next_recipe(str(bare), ["ships=a,b"])
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(recipe_of("people", "ships").model_dump()))
    two = str(tmp_path / "two.yaml")
    for start, recipe in ((str(bare), two), (str(runs.alone), None)):
        found = next_recipe(start, [two], ["earlier=[]"], recipe)
        assert ([one.name for one in found.tasks], found.earlier) == (["ships"], [])


@pytest.mark.slow
def test_a_comparison_goes_on_from_an_adapter(runs: Runs, tmp_path: Path) -> None:
    """Every cell starts from the adapter, and an interrupted comparison is resumed by its folder."""
    chosen = recipe_of("ships", adapter=str(runs.alone), earlier=[task("people")])
    chosen = chosen.model_copy(
        update={"methods": {"prototype": chosen.methods["prototype"].model_copy(update={"lr": [0.1, 0.3]})}}
    )
    out = compare(chosen, tmp_path / "comparison")
    cells = sorted((out / "cells").iterdir())
    assert [same_tensors(runs.whole / "adapter", cell / "adapter") for cell in cells] == [False, True]
    assert all(json.loads(row["start"])["tasks"] == ["people"] for row in read_runs(out / "runs.parquet"))
    shutil.rmtree(cells[1])
    resume(str(out), 1, QUIET)
    assert same_tensors(runs.whole / "adapter", cells[1] / "adapter")
    with pytest.raises(NlftError, match=r"one run of a comparison.*nlft resume"):
        resume(str(cells[0]), None, QUIET)


def test_the_verbs(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    begun: list[Any] = []
    monkeypatch.setattr("nlft.run.run_method", lambda recipe, method, out, **_: begun.append((recipe, method, out)))
    monkeypatch.setattr("nlft.cli.report.print_report", lambda folder, console: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        cli.main(["continue", str(runs.alone), "train.steps=3", "--task", "ships=a.jsonl,b.jsonl"])
    [(recipe, method, out)] = begun
    assert (recipe.train.steps, recipe.tasks[0].test.path, method, out) == (
        3,
        "b.jsonl",
        None,
        Path("runs/alone-continued"),
    )
    for words, said in ((["resume", str(runs.alone / "adapter")], "that is no run"), (["continue", "x"], "no task")):
        with pytest.raises(SystemExit, match="2"):
            cli.main(words)
        assert said in capsys.readouterr().err
