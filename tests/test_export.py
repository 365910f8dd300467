"""From a run to an exported directory: what it holds, that it is what was measured, and that else there is nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import nlft
from nlft import verification
from nlft.base import load_base
from nlft.cli import main
from nlft.config import BaseConfig
from nlft.errors import NlftError
from nlft.export import Exported, export
from nlft.manifest import describe_files, read_manifest, write_manifest
from nlft.measure.items import read_items, write_items
from nlft.recipes import load_recipe
from nlft.run import run_method
from nlft.verification import examine, verify

WEIGHTS = "adapter_model.safetensors"
SLOTS = {"kind": "sparse_memory", "lr": 0.3, "slots": 40, "kmeans_steps": 1, "layers": [2]}
MADE: dict[str, Any] = {}


@pytest.fixture
def made(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    """A run of two short tasks and its export, verified in a process of its own; made once for all tests."""
    if not MADE:
        root = tmp_path_factory.mktemp("export")
        run = run_method(recipe(methods={"slots": SLOTS}), None, root / "run", report=False)
        MADE.update(run=run, exported=export(run, root / "out"))
    return MADE["run"], MADE["exported"]


@pytest.fixture
def run(made: tuple[Path, Exported], tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(made[0], tmp_path / "run"))


@pytest.fixture
def folder(made: tuple[Path, Exported], tmp_path: Path) -> Path:
    """A copy of the export."""
    return Path(shutil.copytree(made[1].folder, tmp_path / "exported"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a fresh process would do is done here, since its start costs ten seconds."""

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert words[1:3] == ["-m", "nlft.verification"]
        verification.main(*words[3:])
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(verification.subprocess, "run", run)


def rehashed(folder: Path) -> Path:
    """As somebody would leave it who changes a file and the manifest with it."""
    manifest = read_manifest(folder)
    assert manifest is not None
    write_manifest(folder, manifest.model_copy(update={"files": describe_files(folder)}))
    return folder


def call(*words: str) -> int:
    try:
        main(list(words))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def failed(folder: Path, rescore: bool = False) -> list[str]:
    return [check.name for check in examine(folder, rescore, False, None, False) if check.ok is False]


def test_an_export_holds_what_was_measured(made: tuple[Path, Exported]) -> None:
    run, done = made
    names = {path.relative_to(done.folder).as_posix() for path in done.folder.rglob("*") if path.is_file()}
    assert names == {
        *("adapter_config.json", WEIGHTS, "README.md", "nlft.json", "recipe.yaml", "witness.safetensors", "matrix.png"),
        *(f"results/{name}" for name in ("items.parquet", "runs.parquet", "summary.json")),
    }
    checks = {check.name: check for check in done.verified.checks}
    assert all(check.ok for check in checks.values())
    assert checks["logits, on"].found == "the same bits"
    assert checks["score facts (exact_match)"].found.endswith("0 of 24 answers changed")
    assert done.manifest.rescored is not None
    assert done.manifest.rescored.startswith("A fresh process scored 8 of 8")

    before, after = (load_file(place / WEIGHTS) for place in (run / "adapter", done.folder))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    learned = sum(tensor.nbytes for name, tensor in after.items() if name.endswith(".values"))
    assert done.manifest.learned_bytes == learned > 0
    assert done.manifest.calibration_bytes == sum(tensor.nbytes for tensor in after.values()) - learned
    assert done.parts["learned: values"] == learned
    assert sum(done.parts.values()) < sum(path.stat().st_size for path in done.folder.rglob("*") if path.is_file())

    manifest = read_manifest(done.folder)
    assert manifest is not None
    assert manifest == done.manifest
    assert (manifest.method, manifest.tasks, manifest.dtype) == ("slots", ["people", "ships"], "float32")
    assert manifest.base.sha256 == load_base(BaseConfig()).fingerprint
    assert manifest.lora is not None
    assert (manifest.lora.computed, manifest.lora.rank) == (True, 8)
    assert read_items(done.folder / "results" / "items.parquet") == read_items(run / "items.parquet")


def test_no_machine_shows_through(made: tuple[Path, Exported]) -> None:
    run, done = made
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "builtin:tiny"
    for path in done.folder.rglob("*"):
        if path.suffix in (".json", ".yaml", ".md"):
            for place in (str(run.parent), str(Path(nlft.__file__).parent)):
                assert place not in path.read_text(encoding="utf-8"), path
    assert load_recipe(str(done.folder / "recipe.yaml")) == load_recipe(str(run))


def test_it_loads_as_peft_does_and_by_one_call(made: tuple[Path, Exported]) -> None:
    base = load_base(BaseConfig()).model
    model = PeftModel.from_pretrained(base, str(made[1].folder)).eval()
    one = nlft.load(str(made[1].folder)).eval()
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(model(input_ids=ids).logits, one(input_ids=ids).logits)
    assert nlft.load(made[1].folder, base="builtin:tiny", is_trainable=True).active_adapters == ["default"]


@pytest.mark.usefixtures("in_process")
def test_verify_in_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", str(folder)) == 0
    out = capsys.readouterr().out
    assert "is what was measured" in out
    assert "0 of 24 answers changed" in out
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"slots": 40', '"slots": 41'))
    assert call("verify", str(folder)) == 2
    assert "adapter_config.json is not the file that was exported" in capsys.readouterr().err
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:500])
    rehashed(folder)
    assert call("verify", str(folder)) == 2  # the other process says it
    assert WEIGHTS in capsys.readouterr().err


def test_a_flipped_bit_is_found(folder: Path) -> None:
    weights = bytearray((folder / WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(NlftError, match=f"{WEIGHTS} is not the file that was exported"):
        verify(folder)


def test_another_value_of_a_learned_row_is_found(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("tasks.0.values"))
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert failed(rehashed(folder)) == ["logits, on"]


def test_another_threshold_is_found(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("tasks.0.thresholds"))
    tensors[name] = tensors[name] + 1e-6
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert "calibration" in failed(rehashed(folder))


def test_another_base_is_refused(folder: Path, tmp_path: Path) -> None:
    base = load_base(BaseConfig())
    next(base.model.parameters()).data.mul_(1.01)
    base.model.save_pretrained(tmp_path / "other")
    base.tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(NlftError, match="other weights"):
        nlft.load(folder, base=str(tmp_path / "other"))
    assert nlft.load(folder, base=str(tmp_path / "other"), any_base=True).peft_config


def test_scores_that_were_not_measured_are_found(folder: Path) -> None:
    path = folder / "results" / "items.parquet"
    items = read_items(path)
    edited = [
        replace(item, value=1.0) if (item.column, item.metric) == ("people", "exact_match") else item for item in items
    ]
    assert edited != items
    write_items(path, "run", edited)
    assert failed(rehashed(folder), rescore=True) == ["score people (exact_match)"]


def test_an_adapter_that_does_nothing_is_not_exported(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / WEIGHTS
    tensors = load_file(path)
    silent = {name: torch.zeros_like(one) if name.endswith(".values") else one for name, one in tensors.items()}
    save_file(silent, path, metadata={"format": "pt"})
    with pytest.raises(NlftError, match="computes what its base does on 8 rows"):
        export(run, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.usefixtures("in_process")
def test_an_adapter_that_was_changed_after_its_run_is_not_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "adapter" / WEIGHTS
    tensors = load_file(path)
    other = {name: one * 3 if name.endswith(".values") else one for name, one in tensors.items()}
    save_file(other, path, metadata={"format": "pt"})
    assert call("export", str(run), str(tmp_path / "out")) == 2
    assert "not what was measured" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


@pytest.mark.usefixtures("in_process")
def test_a_shorter_dtype_is_for_learned_rows_alone(made: tuple[Path, Exported], tmp_path: Path) -> None:
    run, whole = made
    done = export(run, tmp_path / "out", dtype="bfloat16", rescore=False)
    before, after = (load_file(place / WEIGHTS) for place in (whole.folder, done.folder))
    for name, tensor in before.items():
        if name.endswith(".values"):
            assert after[name].dtype == torch.bfloat16
            assert torch.equal(after[name], tensor.bfloat16())
        else:
            assert torch.equal(after[name], tensor), name
    assert done.manifest.learned_bytes * 2 == whole.manifest.learned_bytes
    assert done.manifest.calibration_sha256 == whole.manifest.calibration_sha256
    assert done.manifest.rescored == "Not scored again: nobody asked for it."


@pytest.mark.usefixtures("in_process")
def test_a_number_that_a_dtype_cannot_hold(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / WEIGHTS
    tensors = {name: one * 1e6 if name.endswith(".values") else one for name, one in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(NlftError, match="that float16 cannot hold"):
        export(run, tmp_path / "out", dtype="float16")
    with pytest.raises(NlftError, match="'int64' is none of"):
        export(run, tmp_path / "out", dtype="int64")


@pytest.mark.usefixtures("in_process")
def test_an_adapter_alone_comes_without_results(run: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(run / "adapter", tmp_path / "bare"))
    done = export(bare, tmp_path / "out")
    names = {path.name for path in done.folder.iterdir()}
    assert names == {"adapter_config.json", WEIGHTS, "README.md", "nlft.json", "witness.safetensors"}
    assert (done.manifest.method, done.manifest.rescored) == (None, None)
    assert done.manifest.tasks == ["people", "ships"]
    assert done.rows_note.startswith("4 rows of fixed tokens")
    assert failed(done.folder) == []
    with pytest.raises(NlftError, match="holds an exported adapter"):
        export(bare, tmp_path / "out")
    with pytest.raises(NlftError, match="is not empty"):
        export(bare, run, force=True)
    assert (run / "runs.parquet").is_file()


@pytest.mark.usefixtures("in_process")
def test_rows_that_are_gone_are_said_to_be_gone(run: Path, tmp_path: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("builtin:world/base/probe", "/nowhere/mine.jsonl"))
    done = export(run, tmp_path / "out")
    assert "the recipe's rows are not here" in done.rows_note
    assert done.manifest.rescored is not None
    assert done.manifest.rescored.startswith("Not scored again: the rows are not here")
    assert "/nowhere" not in (done.folder / "recipe.yaml").read_text()
    assert "path: mine.jsonl" in (done.folder / "recipe.yaml").read_text()
    assert load_recipe(str(done.folder / "recipe.yaml")).probes[0].data is not None


def test_a_process_that_dies_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 'Killed by the kernel' >&2\nexit 137\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(interpreter))
    with pytest.raises(NlftError, match="ended with code 137: Killed by the kernel"):
        verify(folder)
