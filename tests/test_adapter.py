"""Adapters on disk: what is replaced and what stays, what is refused, and what a recipe found beside one may ask."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from nlft.adapter import check_no_stage, own_recipe, read_adapter, recipe_of, write_adapter
from nlft.base import load_base
from nlft.cli import main
from nlft.config import BaseConfig
from nlft.errors import CheckpointError, NlftError
from nlft.pathways.lifecycle import without_tasks
from nlft.recipes import dump_recipe
from nlft.rescore import evaluate_run, load_weights
from nlft.run import run_method

RUN: dict[str, Path] = {}
METHOD = {"kind": "sparse_memory", "lr": 0.3, "slots": 20, "kmeans_steps": 1}


@pytest.fixture
def adapter(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of an adapter of two tasks with things beside it that are not nlft's; trained once."""
    if not RUN:
        out = tmp_path_factory.mktemp("runs") / "run"
        RUN["run"] = run_method(recipe(methods={"memory": METHOD}, probes=[]), None, out, report=False)
    folder = Path(shutil.copytree(RUN["run"] / "adapter", tmp_path / "run" / "adapter"))
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    shutil.copytree(RUN["run"] / "adapter", folder / "second")
    (tmp_path / "secret").write_text("mine")
    (folder / "link.txt").symlink_to(tmp_path / "secret")
    (folder / "card.md").write_text("a card")
    return folder


def everything(folder: Path) -> dict[str, str | bytes]:
    """By name: the bytes of a file, or where a link points."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_in_place_all_else_stays(adapter: Path) -> None:
    before = everything(adapter)
    write_adapter(without_tasks(read_adapter(adapter), ["people"]), adapter)
    after = everything(adapter)
    assert after.keys() == before.keys() and list(read_adapter(adapter).config.tasks) == ["ships"]
    assert {name for name in after if after[name] != before[name]} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_link_is_replaced_and_not_followed(adapter: Path, tmp_path: Path) -> None:
    """As in the Hub's cache, where a file is a link to a blob that others share."""
    weights = adapter / "adapter_model.safetensors"
    (tmp_path / "blobs").mkdir()
    blob = weights.rename(tmp_path / "blobs" / "sha256")
    weights.symlink_to(blob)
    before = blob.read_bytes()
    write_adapter(without_tasks(read_adapter(adapter), ["people"]), adapter)
    assert blob.read_bytes() == before and not weights.is_symlink()


def test_another_folder_gets_files_alone(adapter: Path, tmp_path: Path) -> None:
    before = everything(adapter)
    out = write_adapter(read_adapter(adapter), adapter, tmp_path / "out")
    found = {path.name for path in out.iterdir()}
    assert {"card.md", "adapter_config.json", "adapter_model.safetensors"} <= found
    assert not found & {"link.txt", ".git", "second"}
    assert everything(adapter) == before


def test_a_full_disk_leaves_what_was_there(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = everything(adapter)

    def fail(partial: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="the disk is full"):
        write_adapter(without_tasks(read_adapter(adapter), ["people"]), adapter, None, fail)
    assert everything(adapter) == before


def test_checkpoints_of_a_run_are_not_changed(tmp_path: Path) -> None:
    folder = RUN["run"] / "stages" / "1" / "model"
    with pytest.raises(NlftError, match="is a checkpoint of a run"):
        check_no_stage(folder)
    with pytest.raises(NlftError, match="is a checkpoint of a run") as caught:
        write_adapter(read_adapter(folder), folder)
    assert "--out" in caught.value.hint
    write_adapter(read_adapter(folder), folder, tmp_path / "out")


@pytest.mark.parametrize("read", ["read_adapter", "load_weights"])
def test_damage_is_found_before_anything_is_made(adapter: Path, read: str) -> None:
    def fails(said: str) -> None:
        with pytest.raises(CheckpointError, match=said):
            read_adapter(adapter) if read == "read_adapter" else load_weights(adapter, load_base(BaseConfig()))

    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors, settings = load_file(weights), json.loads(config.read_text())
    key = next(key for key in tensors if key.endswith("tasks.0.values"))
    save_file({**tensors, key: tensors[key] * torch.nan}, weights)
    fails(r"tasks.0.values holds a number that is not finite")
    save_file(tensors, weights)
    config.write_text(json.dumps({**settings, "tasks": [["people", 10**7], ["ships", 20]]}))
    fails(r"has the shape \[20.*\], and \[10000000.*\] is needed")
    config.write_text(json.dumps({**settings, "tasks": [["people\x1b[2J", 20], ["ships", 20]]}))
    fails(r"adapter_config.json: tasks: .* is no name of a task")
    provenance = {"people": {"status": "[bold]", "reads": 3}}
    config.write_text(json.dumps({**settings, "provenance": provenance}))
    fails("'reads' is 3, which nlft never writes")


def test_markup_in_names_is_printed_as_it_is(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = adapter / "adapter_config.json"
    settings = json.loads(config.read_text())
    settings["tasks"][0][0] = "[link=http://x]a[/link]"
    settings["provenance"]["[link=http://x]a[/link]"] = {"status": "[red]good[/]", "created": "[/]"}
    config.write_text(json.dumps(settings))
    with pytest.raises(SystemExit) as stop:
        main(["tasks", str(adapter)])
    out = capsys.readouterr().out
    assert not stop.value.code and "[link=http://x]a[/link]" in out and "[red]good[/]" in out


def test_a_recipe_that_was_found_runs_no_code(recipe: Callable[..., Any], adapter: Path) -> None:
    trusting = recipe(base={"model": "builtin:tiny", "trust_remote_code": True})
    file = adapter.parent / "config.yaml"
    file.write_text(dump_recipe(trusting))
    text = StringIO()
    console = Console(file=text, width=300)
    for found in (own_recipe(file, console), recipe_of(adapter, None, console)):
        assert found is not None and not found.base.trust_remote_code
        assert found == recipe()
    assert text.getvalue().count("asks for base.trust_remote_code, which is left off") == 2
    named = recipe_of(adapter, str(file), console)
    assert named is not None and named.base.trust_remote_code


@pytest.mark.parametrize("verb", ["eval", "tune"])
def test_verbs_run_no_code_for_a_found_recipe(
    recipe: Callable[..., Any], adapter: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    import nlft.rescore
    import nlft.tune

    asked = []

    def stop(config: BaseConfig) -> None:
        asked.append(config.trust_remote_code)
        raise NlftError("stopped")

    monkeypatch.setattr(nlft.rescore, "load_base", stop)
    monkeypatch.setattr(nlft.tune, "load_base", stop)
    trusting = recipe(base={"model": "builtin:tiny", "trust_remote_code": True})
    (adapter.parent / "config.yaml").write_text(dump_recipe(trusting))
    with pytest.raises(NlftError, match="stopped"):
        evaluate_run(str(adapter.parent)) if verb == "eval" else nlft.tune.tune_adapter(str(adapter.parent), None, 0.1)
    with pytest.raises(NlftError, match="stopped"):
        if verb == "eval":
            evaluate_run(str(adapter.parent), trusting)
        else:
            nlft.tune.tune_adapter(str(adapter.parent), trusting, 0.1)
    assert asked == [False, True]
