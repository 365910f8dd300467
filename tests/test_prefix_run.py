"""The frozen prefix in runs and comparisons: the same bits after an interruption and for any --jobs, and no trace."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from nlft.checkpoint import holds_nothing
from nlft.compare import compare
from nlft.config.prefix import FOLDER
from nlft.errors import NlftError
from nlft.measure.items import read_items, read_runs
from nlft.run import run_method

MEMORY = {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 3, "layers": [3]}
LORA = {"kind": "lora", "lr": 1e-2, "peft": {"layers_to_transform": [3, 4]}}
METHODS = {
    "memory": MEMORY,
    "product_key": {**MEMORY, "addressing": "product_key", "half_keys": 32, "topk": 4, "kmeans_steps": 2},
    "lora": LORA,
    "replay": {**LORA, "replay": {"source": "background", "ratio": 0.5}},
    "gated": {"kind": "lora", "lr": 1e-2, "gate": {"layer": 3}, "layers": [3, 4], "retention": {"budget": 0.2}},
}
FILES = {"memory_gb": 0}
NARROW = {"memory_gb": 0.0001, "disk_gb": 0.00016}
"""Less than a run asks for, so that some tables are not kept."""


def bits_of(out: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the last stage."""
    files = sorted((out / "stages" / "2" / "model").rglob("*.safetensors"))
    return {f"{file.name} {name}": one for file in files for name, one in load_file(file).items()}


@pytest.mark.parametrize(
    "method, prefix",
    [
        ("memory", FILES),
        *(pytest.param(name, {}, marks=pytest.mark.slow) for name in METHODS),
        *(pytest.param(name, NARROW, marks=pytest.mark.slow) for name in METHODS),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    recipe: Callable[..., Any], method: str, prefix: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = {"path": "builtin:world/base/background-text", "limit": 80}
    chosen = recipe(methods={method: METHODS[method]}, prefix=prefix, background=text)
    said = io.StringIO()
    whole = run_method(chosen, method, tmp_path / "whole", report=False, console=Console(file=said, width=200))
    assert said.getvalue().count("The first 3 of 6 layers give constants: ") == 1
    assert ("(prefix.memory_gb 0.0001" in said.getvalue()) is (prefix == NARROW)

    cut, stages = tmp_path / "cut", []

    def stop(*args: Any, **options: Any) -> Any:
        stages.append(options["stage"])
        if options["stage"] == 2:
            raise KeyboardInterrupt
        return train(*args, **options)

    import nlft.run

    train = nlft.run.train_stage
    monkeypatch.setattr("nlft.run.train_stage", stop)
    with pytest.raises(KeyboardInterrupt):
        run_method(chosen, method, cut, report=False)
    monkeypatch.setattr("nlft.run.train_stage", train)
    assert stages == [1, 2] and (cut / FOLDER).is_dir() is (prefix != {})
    run_method(chosen, method, cut, resume=True, report=False)
    one, two = bits_of(whole), bits_of(cut)
    assert one and one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert read_items(whole / "items.parquet") == read_items(cut / "items.parquet")
    assert not (whole / FOLDER).exists() and not (cut / FOLDER).exists()


@pytest.mark.slow
def test_switched_off_the_scores_are_the_same_up_to_rounding(recipe: Callable[..., Any], tmp_path: Path) -> None:
    found = []
    short = {"tasks": recipe().model_dump()["tasks"][:1], "background": None, "train": {"steps": 3, "batch_size": 4}}
    for enabled in (True, False):
        chosen = recipe(methods={"lora": LORA}, prefix={"enabled": enabled}, **short)
        said = io.StringIO()
        out = run_method(chosen, "lora", tmp_path / f"{enabled}", report=False, console=Console(file=said, width=200))
        assert ("give constants" in said.getvalue()) is enabled
        found.append([item for item in read_items(out / "items.parquet") if item.metric == "nll"])
    assert len(found[0]) == len(found[1]) > 0
    for one, two in zip(*found, strict=True):
        assert (one.stage, one.item_id) == (two.stage, two.item_id)
        assert one.value == pytest.approx(two.value, rel=1e-3, abs=1e-4)


@pytest.mark.slow
def test_cells_are_the_same_for_any_number_of_jobs(recipe: Callable[..., Any], tmp_path: Path) -> None:
    methods = {"memory": MEMORY, "lora": {**LORA, "lr": [1e-3, 1e-2]}}
    found = []
    for jobs in (1, 2):
        out = compare(recipe(methods=methods), tmp_path / f"{jobs}", jobs=jobs)
        assert [row["status"] for row in read_runs(out / "runs.parquet")] == ["ok"] * 3
        assert not (out / FOLDER).exists() and not list(out.glob(f"cells/*/{FOLDER}"))
        found.append({path.parent.name: read_items(path) for path in out.glob("cells/*/items.parquet")})
    assert len(found[0]) == 3 and found[0] == found[1]


def test_a_run_that_failed_leaves_no_states_and_a_refused_one_those_of_others(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(methods={"lora": LORA}, prefix=FILES)
    seen = []

    def diverge(*_: Any, **__: Any) -> Any:
        seen.append(list((tmp_path / "run" / FOLDER).iterdir()))
        raise NlftError("training diverged")

    monkeypatch.setattr("nlft.run.train_stage", diverge)
    with pytest.raises(NlftError, match="diverged"):
        run_method(chosen, "lora", tmp_path / "run", report=False)
    assert seen[0] and not (tmp_path / "run" / FOLDER).exists()
    (tmp_path / "run" / FOLDER).mkdir()
    states = tmp_path / "run" / FOLDER / f"{'0' * 64}.safetensors"
    states.write_text("")
    with pytest.raises(NlftError, match="holds another run"):
        run_method(chosen, "lora", tmp_path / "run", report=False)
    assert states.exists()


def test_states_alone_are_no_result_for_a_run_and_nothing_to_delete_for_an_export(tmp_path: Path) -> None:
    own = tmp_path / FOLDER
    own.mkdir()
    for name in (f"{'0' * 64}.safetensors", f".{'0' * 64}.{'0' * 32}"):
        (own / name).write_text("")
    assert holds_nothing(tmp_path, but_states=True) and not holds_nothing(tmp_path)
    (own / "mine").write_text("")
    assert not holds_nothing(tmp_path, but_states=True), "somebody else's"


def test_a_folder_called_prefix_is_the_users(tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    assert not holds_nothing(tmp_path) and not holds_nothing(tmp_path, but_states=True)
