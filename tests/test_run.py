"""Runs from end to end on the built-in base and world: results, integrity, resume, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nlft.errors import CheckpointError, NlftError, RecipeError
from nlft.measure.items import read_items, read_runs
from nlft.rescore import evaluate_run
from nlft.run import run_method

METHODS = (
    "full",
    "lora",
    "prototype",
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("product_key", "lora_replay")),
)


def lora_with(**peft: Any) -> dict[str, Any]:
    return {"methods": {"x": {"kind": "lora", "lr": 1, "peft": peft}}}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_everything_behind(recipe: Callable[..., Any], method: str, tmp_path: Path) -> None:
    out = run_method(recipe(), method, tmp_path / "run")
    for name in (
        "config.yaml",
        "events.jsonl",
        "items.parquet",
        "runs.parquet",
        "summary.json",
        "report.html",
        "report.md",
    ):
        assert (out / name).stat().st_size > 0, name
    assert list((out / "figures").glob("*.png"))
    items, (row,) = read_items(out / "items.parquet"), read_runs(out / "runs.parquet")
    counted = {(item.stage, item.condition, item.column) for item in items}
    assert counted == {
        (stage, "base" if stage == 0 else "on", column)
        for stage in range(3)
        for column in ("people", "ships", "facts", "text")
    }
    assert sum(item.column == "facts" and item.metric == "exact_match" for item in items) == 3 * 24
    assert (row["status"], row["method"], row["order"]) == ("ok", method, ["people", "ships"])
    trained_base = method == "full"
    assert row["base_unchanged"] is (None if trained_base else True)
    assert row["off_equals_base"] is (None if trained_base else True)
    assert (out / "adapter" / "adapter_config.json").exists() is not trained_base
    assert row["trainable_params"] > 0 and row["stored_bytes"] > 0 and row["steps"] == 12
    assert len(row["task_bytes"]) == 2 and row["task_bytes"][1] == row["stored_bytes"]
    assert row["optimizer_bytes"] > 8 * row["trainable_params"]  # two moments in float32, and the step
    assert trained_base is (row["latency_ratio"] is None)
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] != "step"] == [
        "start", "stage", "measured", "stage", "measured", "end",
    ]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_resume_is_bit_equal(recipe: Callable[..., Any], method: str, tmp_path: Path) -> None:
    """Killed in the second stage and resumed, a run ends with the same bits and scores."""
    whole = run_method(recipe(), method, tmp_path / "whole", report=False)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("adapter", "stages/2"):
        shutil.rmtree(cut / name, ignore_errors=True)
    for name in ("items.parquet", "runs.parquet"):
        (cut / name).unlink()
    run_method(recipe(), method, cut, resume=True, report=False)
    files = sorted((whole / "stages" / "2" / "model").rglob("*.safetensors"))
    assert files
    for file in files:
        first, second = load_file(file), load_file(cut / file.relative_to(whole))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_items(whole / "items.parquet") == read_items(cut / "items.parquet")


def test_sparse_memory_learns_and_a_later_task_keeps_the_first(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """The slots of a finished task are bit-equal after the next task."""
    out = run_method(recipe(train={"steps": 40, "batch_size": 16}), "prototype", tmp_path / "run", report=False)
    first = load_file(next((out / "stages" / "1" / "model").glob("*.safetensors")))
    second = load_file(next((out / "stages" / "2" / "model").glob("*.safetensors")))
    kept = [name for name in first if name.endswith("tasks.0.values")]
    assert len(kept) == 5
    assert all(torch.equal(first[name], second[name]) for name in kept)
    assert all(float(first[name].abs().max()) > 0 for name in kept)
    nll = {item.stage: 0.0 for item in read_items(out / "items.parquet")}
    for item in read_items(out / "items.parquet"):
        if item.column == "people" and item.metric == "nll":
            nll[item.stage] += item.value * item.weight
    assert nll[1] < 0.8 * nll[0]


def test_rescoring_agrees_with_the_run(recipe: Callable[..., Any], tmp_path: Path) -> None:
    out = run_method(recipe(), "prototype", tmp_path / "run", report=False)
    lines = evaluate_run(str(out))
    stored = read_items(out / "items.parquet")
    for line in lines:
        for stage, value in ((0, line.base), (2, line.adapted)):
            chosen = [i for i in stored if (i.stage, i.column, i.metric) == (stage, line.column, line.metric)]
            mean = sum(i.value * i.weight for i in chosen) / sum(i.weight for i in chosen)
            assert value == pytest.approx(mean, abs=1e-6), line


def test_a_folder_with_another_run_is_refused(recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(NlftError, match="holds another run"):
        run_method(recipe(), "lora", tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
    with pytest.raises(NlftError, match=r"no config\.yaml"):
        run_method(recipe(), "lora", tmp_path / "run", resume=True)


def test_resume_with_another_recipe_is_refused(recipe: Callable[..., Any], tmp_path: Path) -> None:
    run_method(recipe(), "lora", tmp_path / "run", report=False)
    with pytest.raises(NlftError, match="started with another recipe"):
        run_method(recipe(train={"steps": 7, "batch_size": 8}), "lora", tmp_path / "run", resume=True)


def test_resume_with_other_rows_is_refused(recipe: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"the number {n} is", "completion": f"{n + 1}"} for n in range(12)]
    for name, part in (("train", rows[:8]), ("test", rows[8:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in part))
    task = {"name": "n", "train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
    out = run_method(recipe(tasks=[task]), "lora", tmp_path / "run", report=False)
    rows[0]["completion"] = "another"
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows[:8]))
    with pytest.raises(NlftError, match="begun with other inputs: the data differ"):
        run_method(recipe(tasks=[task]), "lora", out, resume=True)


def test_a_changed_base_is_a_failure(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nlft.methods.lora import Lora

    def end_task(self: Lora, model: Any) -> None:
        with torch.no_grad():
            model.get_base_model().model.norm.weight[0] += 1e-3

    monkeypatch.setattr(Lora, "end_task", end_task)
    with pytest.raises(NlftError, match="The base was changed by 'lora'"):
        run_method(recipe(), "lora", tmp_path / "run", report=False)
    (row,) = read_runs(tmp_path / "run" / "runs.parquet")
    assert row["status"].startswith("failed: the base was changed")
    assert (row["base_unchanged"], row["off_equals_base"]) == (False, False)


@pytest.mark.parametrize(
    ("method", "changes", "sentence"),
    [
        (None, {}, "The recipe has 5 methods"),
        ("ewc", {}, "no method 'ewc'"),
        ("full", {"methods": {"full": {"kind": "full", "lr": [1e-3, 1e-4]}}}, "lists 2 learning rates"),
        (
            "x",
            {"methods": {"x": {"kind": "lora", "lr": 1, "peft_type": "LORAX"}}},
            "'LORAX' is no PEFT method",
        ),
        ("x", {"methods": {"x": {"kind": "lora", "lr": 1, "peft": {"rank": 8}}}}, "has no field 'rank'"),
        ("x", lora_with(r=0), r"methods\.x: PEFT cannot adapt this base"),
        ("x", lora_with(r="abc"), r"methods\.x: PEFT cannot adapt this base"),
        ("x", lora_with(target_modules=["foo"]), r"methods\.x: .*foo"),
        ("x", {"methods": {"x": {"kind": "sparse_memory", "lr": 1, "layers": [9]}}}, r"methods\.x"),
        ("lora", {"base": {"model": "builtin:none"}}, "no built-in model"),
        ("lora", {"base": {"device": "banana"}}, "torch cannot use 'banana'"),
        ("lora", {"train": {"max_length": 5}}, r"tasks\.people\.train: .* more than the limit of 5"),
        (
            "lora",
            {"probes": [{"name": "p", "data": {"path": "builtin:world/base/probe", "limit": 4}, "metric": "accuracy"}]},
            "has 0 choices",
        ),
        (
            "lora",
            {"probes": [{"name": "p", "data": {"path": "builtin:world/text/test", "limit": 4}}]},
            "plain text without a prompt",
        ),
    ],
)
def test_what_cannot_run_leaves_nothing(
    recipe: Callable[..., Any], method: str | None, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(NlftError, match=sentence):
        run_method(recipe(**changes), method, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hint_that_several_rows_share_is_said_once(recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        run_method(recipe(train={"max_length": 5}), "lora", tmp_path / "run")
    assert len(caught.value.problems) > 3
    assert str(caught.value).count("Set too_long to") == 1


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/nlft"])
def test_a_folder_that_cannot_be_is_a_sentence(recipe: Callable[..., Any], place: str, tmp_path: Path) -> None:
    from nlft.compare import compare

    (tmp_path / "file").write_text("mine")
    for call in (lambda: run_method(recipe(), "lora", tmp_path / place), lambda: compare(recipe(), tmp_path / place)):
        with pytest.raises(NlftError, match=r"is a file, not a folder|cannot be (made|read)") as caught:
            call()
        assert "--out" in caught.value.hint


def test_a_process_killed_at_its_first_file_does_not_block(recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml.partial").write_text("name: ha")
    run_method(recipe(), "lora", tmp_path / "run", report=False)
    assert not (tmp_path / "run" / "config.yaml.partial").exists()


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden"])
def test_a_method_name_is_no_path(recipe: Callable[..., Any], name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        recipe(methods={name: {"kind": "lora", "lr": 1e-3}})


def test_all_data_errors_come_at_once(recipe: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    broken = {"path": str(tmp_path / "empty.jsonl")}
    missing = {"path": str(tmp_path / "none.jsonl")}
    tasks = [{"name": "a", "train": broken, "test": missing}]
    with pytest.raises(RecipeError) as caught:
        run_method(recipe(tasks=tasks), "lora", tmp_path / "run")
    assert len(caught.value.problems) == 2
    assert "tasks.a.train" in str(caught.value) and "tasks.a.test" in str(caught.value)


def test_full_disk_keeps_the_last_stage(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the second stage is saved; the run can go on afterwards."""
    import errno

    from nlft.methods.lora import Lora

    save = Lora.save

    def fail(self: Lora, model: Any, folder: Path) -> None:
        if folder.parts[-2] == ".2.nlft-partial":
            folder.mkdir(parents=True)
            (folder / "half").write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, model, folder)

    monkeypatch.setattr(Lora, "save", fail)
    with pytest.raises(CheckpointError, match=r"stage 2 \(ships\) could not be saved .* the disk is full"):
        run_method(recipe(), "lora", tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "stages").iterdir()) == ["0", "1"]
    monkeypatch.setattr(Lora, "save", save)
    out = run_method(recipe(), "lora", tmp_path / "run", resume=True, report=False)
    assert read_runs(out / "runs.parquet")[0]["status"] == "ok"
