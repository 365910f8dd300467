"""Product keys in whole runs: modes, choices, and keys that are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nlft.config import SparseMemoryConfig
from nlft.errors import NlftError
from nlft.measure.items import read_runs
from nlft.run import run_method

KEYS = {"kind": "sparse_memory", "addressing": "product_key", "half_keys": 32, "topk": 4, "kmeans_steps": 2}


def learned(out: Path) -> dict[str, Any]:
    config = json.loads((out / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    return {"config": config, "tensors": load_file(out / "adapter" / "adapter_model.safetensors")}


def test_steps_choose_rows_and_keep_their_union(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """The split into micro-batches changes neither the choice nor, but for rounding, the values."""
    results = []
    for name, size in (("whole", None), ("split", 2)):
        changed = recipe(methods={"x": {**KEYS, "lr": 20.0, "slots": 10, "mode": "step", "layers": [2, 3]}})
        train = changed.train.model_copy(update={"micro_batch_size": size})
        out = run_method(changed.model_copy(update={"train": train}), None, tmp_path / name, report=False)
        results.append(learned(out))
        (row,) = read_runs(out / "runs.parquet")
        assert row["status"] == "ok" and row["base_unchanged"] and row["off_equals_base"]
    whole, split = results
    assert whole["config"]["tasks"] == split["config"]["tasks"]
    steps = row["steps"] // 2
    for (_, size), number in zip(whole["config"]["tasks"], (0, 1), strict=True):
        assert 10 < size <= 10 * steps  # more than one step chose
        for layer in (2, 3):
            [rows] = [t for k, t in whole["tensors"].items() if f"layers.{layer}." in k and f"tasks.{number}.rows" in k]
            [values] = [t for k, t in whole["tensors"].items() if f".{layer}." in k and f"tasks.{number}.values" in k]
            assert len(rows) == len(values) == len(rows.unique()) <= size
            assert float(values.abs().sum(dim=1).min()) > 0  # what is kept has moved
    for key, tensor in whole["tensors"].items():
        torch.testing.assert_close(tensor, split["tensors"][key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "choice", ["kl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tf", "random", "all"))]
)
def test_every_choice_trains(recipe: Callable[..., Any], choice: str, tmp_path: Path) -> None:
    changed = recipe(methods={"x": {**KEYS, "lr": 0.3, "slots": 40, "choice": choice, "layers": [2, 3]}})
    found = learned(run_method(changed, None, tmp_path / "run", report=False))
    for _, size in found["config"]["tasks"]:
        assert size > 100 if choice == "all" else size == 40
    values = [tensor for key, tensor in found["tensors"].items() if key.endswith("values")]
    assert len(values) == 4 and all(float(one.abs().max()) > 0 for one in values)


@pytest.mark.slow
def test_hopeless_keys_are_refused_before_training(recipe: Callable[..., Any], tmp_path: Path) -> None:
    # 64 of 256 slots a token: every document reads nearly all.
    saturated = {**KEYS, "lr": 0.3, "slots": 40, "half_keys": 16, "topk": 16, "layers": [2]}
    with pytest.raises(NlftError, match=r"saturated.*`choice: kl`"):
        run_method(recipe(methods={"x": saturated}), None, tmp_path / "refused", report=False)
    assert not (tmp_path / "refused" / "stages" / "1").exists()
    for name, more in (("kl", {"choice": "kl"}), ("ignored", {"health": "ignore"})):
        run_method(recipe(methods={"x": {**saturated, **more}}), None, tmp_path / name, report=False)


@pytest.mark.parametrize("fields", [{"weight_decay": 0.1}, {"addressing": "prototype"}])
def test_steps_have_no_weight_decay_and_need_product_keys(fields: dict[str, Any]) -> None:
    SparseMemoryConfig.model_validate({**KEYS, "lr": 1, "mode": "step"})
    with pytest.raises(ValueError, match="mode: step"):
        SparseMemoryConfig.model_validate({**KEYS, "lr": 1, "mode": "step", **fields})
