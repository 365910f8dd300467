"""Several processes, more of it: methods, resume, errors, `accelerate launch`, and a sharded base."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parent))

from launched import SLOTS, assert_same, both, run_together  # pyright: ignore

from nlft.cli import main
from nlft.measure.items import read_items
from nlft.recipes import dump_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
STEPS = {"steps": 4}
SGD = {"optimizer": {"kind": "sgd"}, "lr": 0.05}
KEYS = {"kind": "sparse_memory", "addressing": "product_key", "lr": 0.3, "slots": 100, "half_keys": 32, "topk": 4}


@pytest.mark.parametrize(
    ("method", "train"),
    [
        pytest.param({"kind": "lora", **SGD}, {"batch_size": 1}, id="one row a step"),
        pytest.param(
            {"kind": "lora", **SGD, "l2sp": {"weight": 10.0}}, {"batch_size": 7, "micro_batch_size": 2}, id="l2sp"
        ),
        pytest.param(
            {"kind": "lora", **SGD, "replay": {"source": "tasks", "ratio": 0.5}}, {"batch_size": 3}, id="replay"
        ),
        pytest.param({"kind": "full", **SGD, "lr": 1e-3}, {"batch_size": 3}, id="full"),
        pytest.param(
            {"kind": "lora", "lr": 0.05, "optimizer": {"kind": "delta_gradient_descent"}}, {"batch_size": 1}, id="dgd"
        ),
        pytest.param({**KEYS, "mode": "step"}, {"batch_size": 3}, id="rows chosen by step"),
        pytest.param(
            {**SLOTS, "gate": "prototype", "retention": {"budget": 0.05}},
            {"batch_size": 3},
            id="gate",
        ),
    ],
)
def test_methods_train_the_same(recipe: Callable[..., Any], method: Any, train: Any, tmp_path: Path) -> None:
    one, two = both(recipe(methods={"one": method}, train={**STEPS, **train}), tmp_path)
    assert_same(one, two)


def test_resume_in_two_processes_is_bit_equal(recipe: Callable[..., Any], tmp_path: Path) -> None:
    file, words = tmp_path / "recipe.yaml", ["--out", str(tmp_path / "two")]
    file.write_text(dump_recipe(recipe(methods={"slots": SLOTS}, train={"steps": 3, "batch_size": 3})))
    assert [one.code for one in run_together(["train", str(file), *words], tmp_path)] == [0, 0]
    whole = load_file(tmp_path / "two/adapter/adapter_model.safetensors")
    items = read_items(tmp_path / "two/items.parquet")
    for name in ("stages/2", "adapter"):
        shutil.rmtree(tmp_path / "two" / name)
    for name in ("items.parquet", "runs.parquet", "summary.json"):
        (tmp_path / "two" / name).unlink()
    ended = run_together(["resume", str(tmp_path / "two")], tmp_path)
    assert [one.code for one in ended] == [0, 0], ended
    assert "Going on after stage 1 of 2" in ended[0].out and ended[1].out == ""
    again = load_file(tmp_path / "two/adapter/adapter_model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert read_items(tmp_path / "two/items.parquet") == items


def test_what_all_find_wrong_is_said_once(recipe: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe(methods={"lora": {"kind": "lora", "lr": 1e30}}, train={"warmup": 0})))
    first, second = run_together(["train", str(file), "--out", str(tmp_path / "two")], tmp_path)
    said = first.err + second.err
    assert first.code == second.code == 2 and said.count("so training diverged") == 1 and "Traceback" not in said


FAILING = """
import os, sys
from nlft.cli import main
when, *words = sys.argv[1:]
if os.environ["RANK"] == "1":
    words.append({"early": "measure.batch_size=0", "other": "train.clip=1e-9"}.get(when, "train.clip=1.0"))
    if when == "late":
        import nlft.train
        nlft.train.learning_rate = lambda *of: 1e-9
main(words)
"""


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("early", "measure.batch_size"),
        ("other", "were given different recipes"),
        ("late", "the processes have trained different weights"),
    ],
)
def test_what_one_finds_wrong_ends_all(recipe: Callable[..., Any], when: str, said: str, tmp_path: Path) -> None:
    """Through `accelerate launch`, which ends the others; its own traceback comes after, and is not ours."""
    file, script = tmp_path / "recipe.yaml", tmp_path / "failing.py"
    file.write_text(dump_recipe(recipe(methods={"lora": {"kind": "lora", "lr": 1e-2}}, train={"steps": 3})))
    script.write_text(FAILING)
    ended = launch([str(script), when, "train", str(file), "--out", str(tmp_path / "two")])
    assert ended.returncode != 0
    assert ended.stderr.count("nlft: ") == 1 and said in ended.stderr, ended.stderr


def test_accelerate_launch(recipe: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe(methods={"slots": SLOTS}, train={"steps": 3, "batch_size": 3})))
    ended = launch(["-m", "nlft", "train", str(file), "--out", str(tmp_path / "two")])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Report: ") == 1 and ended.stdout.count("people learned in") == 1
    with pytest.raises(SystemExit):
        main(["train", str(file), "--out", str(tmp_path / "one")])
    assert_same(tmp_path / "one", tmp_path / "two")


def launch(words: list[str]) -> subprocess.CompletedProcess[str]:
    config = ["--config_file", str(ROOT / "examples/accelerate/cpu.yaml"), "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *config, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)


GATED = {"kind": "lora", **SGD, "gate": {"layer": 2}, "layers": [4], "retention": {"budget": 0.2}}


@pytest.mark.parametrize(
    ("method", "size", "depth"),
    [(SLOTS, 1, 2), (SLOTS, 3, 2), ({"kind": "lora", **SGD}, 1, 0), ({"kind": "lora", **SGD}, 3, 0), (GATED, 3, 2)],
    ids=["slots 1", "slots 3", "lora 1", "lora 3", "gated lora 3"],
)
def test_a_sharded_base_trains_the_same(
    recipe: Callable[..., Any], method: Any, size: int, depth: int, tmp_path: Path
) -> None:
    """FSDP2 over gloo; with one row a step a process has none, and still passes one, for the other waits for it. The
    frozen prefix ends below the first layer that is adapted or that a gate reads."""
    train = {"steps": 3, "batch_size": size, "gradient_checkpointing": size == 3}
    one, two = both(recipe(methods={"one": method}, train=train), tmp_path, **FSDP)
    assert_same(one, two)
    [said] = [path.read_text() for path in tmp_path.glob("*-0.out")]
    assert (f"The first {depth} of 6 layers give constants" in said) is (depth > 0), said


def test_a_sharded_base_is_not_trained(recipe: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe(methods={"full": {"kind": "full", "lr": 1e-3}})))
    first, second = run_together(["train", str(file), "--out", str(tmp_path / "two")], tmp_path, **FSDP)
    assert first.code == second.code == 2
    assert (first.err + second.err).count("methods.full trains the base's own weights") == 1
