"""From a run to an exported directory: what it holds, that it is what was measured, and that else there is nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from exported_run import WEIGHTS, call, failed
from peft import PeftModel
from safetensors.torch import load_file, save_file

import nlft
from nlft.base import load_base
from nlft.config import BaseConfig, Recipe
from nlft.errors import NlftError
from nlft.export import Exported, export
from nlft.manifest import read_manifest, sha256_of
from nlft.measure.items import read_items, read_runs, write_runs
from nlft.recipes import dump_recipe, load_recipe
from nlft.report.card_sources import portable, shown_recipe


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
    assert read_runs(run / "runs.parquet")[0]["adapter_sha256"] == sha256_of(run / "adapter" / WEIGHTS)


def test_no_machine_shows_through(made: tuple[Path, Exported]) -> None:
    run, done = made
    config = json.loads((done.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "builtin:tiny"
    assert leaks(done.folder, str(run.parent), str(Path(nlft.__file__).parent)) == []
    assert load_recipe(str(done.folder / "recipe.yaml")) == load_recipe(str(run))


def leaks(folder: Path, *places: str) -> list[str]:
    """Files that name one of some places, in text or in a table."""
    found = []
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".yaml", ".md", ".parquet"):
            table = path.suffix == ".parquet"
            text = str(pq.read_table(path).to_pylist()) if table else path.read_text(encoding="utf-8")
            found += [path.name for place in places if place in text]
    return found


@pytest.mark.usefixtures("in_process")
def test_nor_does_the_folder_that_a_run_went_on_from(run: Path, tmp_path: Path) -> None:
    """Of a run that went on from an adapter in a folder, with a file of its own and text that looks like a path."""
    [row] = read_runs(run / "runs.parquet")
    start = {"name": str(tmp_path / "first"), "revision": None, "sha256": "0" * 64, "tasks": ["x"], "number": 1}
    write_runs(run / "runs.parquet", [row | {"start": json.dumps({**start, "digest": "1" * 64})}])
    recipe = load_recipe(str(run))
    data = {"path": str(tmp_path / "mine.jsonl"), "join": "/", "only": {"kind": ["~", "/a/b"]}}
    probes = [{"name": "mine", "data": data, "metric": "nll"}]
    (run / "config.yaml").write_text(dump_recipe(recipe.model_copy(update={"adapter": str(tmp_path / "first")})))
    done = export(run, tmp_path / "out", rescore=False)
    assert leaks(done.folder, str(tmp_path)) == []
    assert done.manifest.continued_from is not None and done.manifest.continued_from.name == "first"
    [row] = read_runs(done.folder / "results" / "runs.parquet")
    assert json.loads(row["start"])["name"] == "first"
    written = portable(Recipe.model_validate(recipe.model_dump() | {"probes": probes})).probes[0].data
    assert written is not None
    assert (written.path, written.join, written.only) == ("mine.jsonl", "/", {"kind": ["~", "/a/b"]})
    shown = shown_recipe(Recipe.model_validate(recipe.model_dump() | {"probes": probes}))
    assert "path: mine.jsonl" in shown and "join: /" in shown and "/a/b" in shown


def test_it_loads_as_peft_does_and_by_one_call(made: tuple[Path, Exported]) -> None:
    base = load_base(BaseConfig()).model
    model = PeftModel.from_pretrained(base, str(made[1].folder)).eval()
    one = nlft.load(str(made[1].folder)).eval()
    ids = torch.arange(40).view(2, 20)
    assert torch.equal(model(input_ids=ids).logits, one(input_ids=ids).logits)
    assert nlft.load(made[1].folder, base="builtin:tiny", is_trainable=True).active_adapters == ["default"]


def test_an_adapter_that_does_nothing_is_not_exported(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / WEIGHTS
    tensors = load_file(path)
    silent = {name: torch.zeros_like(one) if name.endswith(".values") else one for name, one in tensors.items()}
    save_file(silent, path, metadata={"format": "pt"})
    with pytest.raises(NlftError, match="computes what its base does on 8 rows"):
        export(run / "adapter", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.usefixtures("in_process")
def test_an_adapter_that_was_changed_after_its_run_is_not_exported(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "adapter" / WEIGHTS
    tensors = load_file(path)
    other = {name: one * 3 if name.endswith(".values") else one for name, one in tensors.items()}
    save_file(other, path, metadata={"format": "pt"})
    assert call("export", str(run), str(tmp_path / "out"), "--no-rescore") == 2
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
    assert done.manifest.rescored == "Not scored again: skipped (--no-rescore)."


@pytest.mark.usefixtures("in_process")
def test_a_number_that_a_dtype_cannot_hold(run: Path, tmp_path: Path) -> None:
    path = run / "adapter" / WEIGHTS
    tensors = {name: one * 1e6 if name.endswith(".values") else one for name, one in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(NlftError, match="that float16 cannot hold"):
        export(run / "adapter", tmp_path / "out", dtype="float16")
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
