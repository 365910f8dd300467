"""Gated LoRA and gated memory from a recipe to a finished run on the built-in base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nlft.config import GateConfig, LoraConfig, SparseMemoryConfig
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.measure.items import read_items, read_runs
from nlft.methods import build_method
from nlft.methods.calibration import retention_of, split_context
from nlft.methods.gated_lora import GatedLora
from nlft.methods.lora import Lora
from nlft.methods.protocol import TaskContext
from nlft.run import run_method

GATED = {"gate": {"kind": "prototype", "slots": 32}, "retention": "10%"}
METHODS: dict[str, dict[str, Any]] = {
    "gated_lora": {"kind": "lora", "lr": 1e-2, "replay": {"source": "background"}, **GATED},
    "gated_memory": {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 2, **GATED},
    "gated_product_key": {
        "kind": "sparse_memory",
        "addressing": "product_key",
        "lr": 0.3,
        "slots": 100,
        "half_keys": 24,
        "topk": 8,
        "kmeans_steps": 2,
        **GATED,
    },
    "budgeted_memory": {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 2, "retention": "10%"},
}
RARE = ("gated_memory", "gated_product_key", "budgeted_memory")
"""Near relations of other kinds, run with the slow tests."""


@pytest.mark.parametrize("method", [pytest.param(name, marks=[pytest.mark.slow] * (name in RARE)) for name in METHODS])
def test_a_run_keeps_the_base_and_resumes_bit_equal(recipe: Callable[..., Any], method: str, tmp_path: Path) -> None:
    whole = run_method(recipe(methods=METHODS), method, tmp_path / "whole", report=False)
    (row,) = read_runs(whole / "runs.parquet")
    assert (row["status"], row["base_unchanged"], row["off_equals_base"]) == ("ok", True, True)
    assert row["trainable_params"] > 0 and row["stored_bytes"] > 0
    nats = dict.fromkeys(range(3), 0.0)
    for item in read_items(whole / "items.parquet"):
        if (item.column, item.metric) == ("people", "nll"):
            nats[item.stage] += item.value * item.weight
    assert nats[1] < nats[0]  # six steps

    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("adapter", "stages/2"):
        shutil.rmtree(cut / name)
    for name in ("items.parquet", "runs.parquet"):
        (cut / name).unlink()
    run_method(recipe(methods=METHODS), method, cut, resume=True, report=False)
    weights = "stages/2/model/adapter_model.safetensors"
    first, second = load_file(whole / weights), load_file(cut / weights)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_items(whole / "items.parquet") == read_items(cut / "items.parquet")
    earlier = load_file(whole / "stages/1/model/adapter_model.safetensors")
    frozen = [name for name in earlier if ".tasks.0." in name]
    assert frozen and all(torch.equal(earlier[name], first[name]) for name in frozen)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"retention": "0.1%"}, "needs at least 1999 held-out background groups"),
        ({"layers": [0, 1], "gate": {"layer": 1}}, "layer 0 lies in front of the gate"),
        ({"gate": {"layer": 99}}, "gate.layer: 99 is no layer of this base"),
        ({"peft": {"r": 4, "lora_dropout": 0.1}}, "peft.lora_dropout cannot be put behind a gate"),
        ({"peft": {"r": 0}}, "r: 0 is no rank"),
        ({"peft": {"r": "many"}}, "settings do not fit this base"),
        ({"peft": {"lora_alpha": "much"}}, "settings do not fit this base"),
        ({"peft_type": "IA3", "peft": {}}, "peft_type 'IA3' cannot be put behind a gate"),
    ],
)
def test_what_cannot_be_gated(recipe: Callable[..., Any], fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    method = {"kind": "lora", "lr": 1e-2, **GATED, **fields}
    with pytest.raises(NlftError, match=said):
        run_method(recipe(methods={"x": method}), "x", tmp_path / "run", report=False)


def test_memory_in_front_of_its_gate_is_refused(recipe: Callable[..., Any], tmp_path: Path) -> None:
    method = {**METHODS["gated_memory"], "layers": [0, 2], "gate": {"layer": 2}}
    with pytest.raises(NlftError, match="layer 0 lies in front of the gate"):
        run_method(recipe(methods={"x": method}), "x", tmp_path / "run", report=False)


def test_which_method_a_section_builds() -> None:
    plain = LoraConfig(kind="lora", lr=1)
    assert isinstance(build_method(plain), Lora)
    assert isinstance(build_method(plain.model_copy(update={"gate": GateConfig()})), GatedLora)
    gated = SparseMemoryConfig(kind="sparse_memory", lr=1, gate=GateConfig())
    assert gated.retention is None and build_method(gated).retention.budget == 0.01  # pyright: ignore
    assert build_method(SparseMemoryConfig(kind="sparse_memory", lr=1)).retention is None  # pyright: ignore


def test_all_tasks_share_the_budget_and_the_halves_of_the_background() -> None:
    rows = [Encoded([1, 2, 3], [1, 2, 3], 0, cluster=str(i // 2)) for i in range(40)]
    config = retention_of(LoraConfig(kind="lora", lr=1, gate=GateConfig(), retention="8%"))  # pyright: ignore

    def context(name: str) -> TaskContext:
        return TaskContext(name, rows[:4], rows[4:6], rows, number=1, n_tasks=4, batch_size=2, pad_id=0, seed=len(name))

    one, other = (split_context(context(name), config) for name in ("a", "another"))
    assert one.budget == pytest.approx(0.02) and one.unit == "rows"
    assert one.held_out_rows == other.held_out_rows and len(one.held_out_rows) == 20
    assert sum(len(part.input_ids) for part in one.background) == 20
    whole = split_context(context("a"), None)
    assert not whole.held_out_rows and sum(len(part.input_ids) for part in whole.background) == 40
