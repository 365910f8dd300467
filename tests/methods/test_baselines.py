"""The baselines from a recipe to a finished run on the built-in base, killed and resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nlft.measure.items import read_items, read_runs
from nlft.rescore import evaluate_run
from nlft.run import run_method

SELF = {"source": "self", "rows": 8, "length": 12}
METHODS: dict[str, dict[str, Any]] = {
    "full_l2sp_ewc": {
        "kind": "full",
        "lr": 1e-3,
        "l2sp": 0.01,
        "ewc": {"weight": 10, "of": ["background", "tasks"], "rows": 12},
        "replay": {"source": "tasks", "keep": "10%"},
    },
    "lora_ewc": {"kind": "lora", "lr": 1e-2, "ewc": {"weight": 10, "rows": 12}, "l2sp": 0.01, "replay": SELF},
    "cms_l2sp": {
        "kind": "cms",
        "periods": [1, 2],
        "rank": 8,
        "lr": 1e-2,
        "l2sp": 0.01,
        "ewc": {"weight": 1, "rows": 4},
    },
    "slots_l2sp": {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 2, "l2sp": 0.01},
    "apart": {"kind": "lora", "lr": 1e-2, "tasks": "apart"},
    "orthogonal": {"kind": "lora", "lr": 1e-2, "tasks": "orthogonal", "orthogonality": 0.1},
    "merged": {"kind": "lora", "lr": 1e-2, "tasks": "merged", "l2sp": 0.01},
    "osf": {"kind": "lora", "lr": 1e-3, "peft_type": "OSF", "peft": {"effective_rank": 0.5}},
    "osf_merged": {"kind": "lora", "lr": 1e-3, "peft_type": "OSF", "peft": {"effective_rank": 0.5}, "tasks": "merged"},
    "corda": {
        "kind": "lora",
        "lr": 1e-3,
        "peft": {"r": 8, "target_modules": "all-linear", "init_lora_weights": "corda"},
    },
    "pissa": {"kind": "lora", "lr": 1e-3, "peft": {"target_modules": "all-linear", "init_lora_weights": "pissa"}},
    "ia3": {"kind": "lora", "lr": 1e-1, "peft_type": "IA3", "peft": {}},
    "few_shot": {"kind": "few_shot", "shots": 2},
}
RARE = ("cms_l2sp", "slots_l2sp", "osf_merged", "pissa", "ia3", "lora_ewc", "osf", "merged", "corda", "apart")
"""Near relations of other kinds, run with the slow tests."""
CHANGING = ("full_l2sp_ewc", "merged", "osf_merged", "corda", "pissa")


def nats(out: Path, column: str) -> dict[int, float]:
    """Mean nats a token of a column after every stage, `on`."""
    found: dict[int, list[float]] = {}
    for item in read_items(out / "items.parquet"):
        if (item.column, item.metric) == (column, "nll") and item.condition in ("base", "on"):
            sums = found.setdefault(item.stage, [0.0, 0.0])
            sums[0] += item.value * item.weight
            sums[1] += item.weight
    return {stage: total / weight for stage, (total, weight) in found.items()}


def cut_and_resumed(whole: Path, cut: Path, recipe: Any, method: str) -> Path:
    """A copy of a run without its second stage, gone on with."""
    shutil.copytree(whole, cut)
    for name in ("adapter", "stages/2"):
        shutil.rmtree(cut / name, ignore_errors=True)
    for name in ("items.parquet", "runs.parquet"):
        (cut / name).unlink()
    return run_method(recipe, method, cut, resume=True, report=False)


@pytest.mark.parametrize("method", [pytest.param(name, marks=[pytest.mark.slow] * (name in RARE)) for name in METHODS])
def test_a_run_learns_and_resumes_bit_equal(recipe: Callable[..., Any], method: str, tmp_path: Path) -> None:
    setting = recipe(methods=METHODS)
    whole = run_method(setting, method, tmp_path / "whole", report=False)
    (row,) = read_runs(whole / "runs.parquet")
    kept = None if method in CHANGING else True
    assert (row["status"], row["base_unchanged"], row["off_equals_base"]) == ("ok", kept, kept)
    assert nats(whole, "people")[1] < nats(whole, "people")[0]
    if method != "few_shot":
        assert nats(whole, "ships")[2] < nats(whole, "ships")[1]

    cut = cut_and_resumed(whole, tmp_path / "cut", setting, method)
    assert read_items(whole / "items.parquet") == read_items(cut / "items.parquet")
    for file in sorted((whole / "stages" / "2" / "model").rglob("*.safetensors")):
        first, second = load_file(file), load_file(cut / file.relative_to(whole))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first), file


@pytest.mark.parametrize(("method", "told"), [("apart", True), ("orthogonal", False)])
def test_adapters_of_tasks_load_with_peft(recipe: Callable[..., Any], method: str, told: bool, tmp_path: Path) -> None:
    from peft import PeftModel

    from nlft.base import load_base
    from nlft.config import BaseConfig

    measure = {"conditions": ["oracle", "ungated"]}
    out = run_method(recipe(methods=METHODS, measure=measure), method, tmp_path / "run", report=False)
    assert read_runs(out / "runs.parquet")[0]["told_task"] is told
    assert json.loads((out / "adapter" / "tasks.json").read_text()) == ["people", "ships"]
    base = load_base(BaseConfig(device="cpu"))
    ids = torch.arange(4, 20)[None]
    plain = base.model(input_ids=ids).logits
    model = PeftModel.from_pretrained(base.model, str(out / "adapter" / "task2"), adapter_name="task2")
    assert not torch.equal(model(input_ids=ids).logits, plain)

    values: dict[tuple[int, str, str], list[float]] = {}
    for item in read_items(out / "items.parquet"):
        if item.metric == "nll":
            values.setdefault((item.stage, item.condition, item.column), []).append(item.value)
    # Nothing of the first task is overwritten: told the task, it answers as it did right after learning.
    assert values[2, "oracle", "people"] == values[1, "on", "people"]
    assert values[2, "oracle", "facts"] == values[0, "base", "facts"]
    assert (values[2, "on", "facts"] == values[0, "base", "facts"]) is told
    assert (values[2, "on", "people"] == values[1, "on", "people"]) is told
    assert (values[2, "ungated", "people"] == values[2, "on", "people"]) is not told


@pytest.mark.parametrize("method", ["apart", pytest.param("corda", marks=pytest.mark.slow), "few_shot"])
def test_a_run_is_scored_again_as_its_method_is(recipe: Callable[..., Any], method: str, tmp_path: Path) -> None:
    out = run_method(recipe(methods=METHODS), method, tmp_path / "run", report=False)
    stored = read_items(out / "items.parquet")
    for line in evaluate_run(str(out)):
        for stage, value in ((0, line.base), (2, line.adapted)):
            chosen = [i for i in stored if (i.stage, i.column, i.metric) == (stage, line.column, line.metric)]
            mean = sum(i.value * i.weight for i in chosen) / sum(i.weight for i in chosen)
            assert value == pytest.approx(mean, abs=1e-6), line


def test_what_is_held_is_counted(recipe: Callable[..., Any], tmp_path: Path) -> None:
    setting = recipe(methods=METHODS)
    rows = {name: run_method(setting, name, tmp_path / name, report=False) for name in ("full_l2sp_ewc", "few_shot")}
    full, shots = (read_runs(out / "runs.parquet")[0] for out in rows.values())
    # Starts, Fisher diagonals and centres: three float32 values a parameter.
    assert full["regulariser_bytes"] == 3 * 4 * full["trainable_params"]
    kept = load_file(rows["full_l2sp_ewc"] / "stages" / "1" / "model" / "penalties.safetensors")
    assert len(kept["replay.lengths"]) == 6  # a tenth of 64 rows
    assert full["replay_bytes"] == 4 * (2 * int(kept["replay.lengths"].sum()) + 6)
    assert (
        full["stored_bytes"] == (rows["full_l2sp_ewc"] / "stages" / "2" / "model" / "model.safetensors").stat().st_size
    )
    assert (shots["regulariser_bytes"], shots["steps"], shots["trainable_params"]) == (0, 0, 0)
    assert shots["replay_bytes"] > 100
    out = rows["full_l2sp_ewc"]
    (out / "runs.parquet").unlink()
    run_method(setting, "full_l2sp_ewc", out, resume=True, report=False)  # nothing was left but to write the results
    (again,) = read_runs(out / "runs.parquet")
    for name in ("replay_bytes", "regulariser_bytes"):
        assert again[name] == full[name]


@pytest.mark.slow
def test_a_base_of_low_precision_is_scored_again_as_it_was(recipe: Callable[..., Any], tmp_path: Path) -> None:
    low = {"model": "builtin:tiny", "dtype": "bfloat16", "device": "cpu"}
    probes = [{"name": "text", "data": {"path": "builtin:world/text/test", "limit": 4}, "metric": "nll"}]
    setting = recipe(base=low, probes=probes, methods=METHODS)
    stored = read_items(run_method(setting, "few_shot", tmp_path / "run", report=False) / "items.parquet")
    chosen = [i for i in stored if (i.stage, i.column, i.metric) == (0, "text", "nll")]
    (line,) = (one for one in evaluate_run(str(tmp_path / "run")) if (one.column, one.metric) == ("text", "nll"))
    mean = sum(i.value * i.weight for i in chosen) / sum(i.weight for i in chosen)
    assert line.base == pytest.approx(mean, abs=1e-7)
