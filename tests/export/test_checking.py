"""What the check of an export finds: other tensors, another base, other scores, and a process that fails."""

from __future__ import annotations

import json
import subprocess
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_run import WEIGHTS, call, failed, rehashed
from safetensors.torch import load_file, save_file

import nlft
from nlft import verification
from nlft.base import load_base
from nlft.config import BaseConfig
from nlft.errors import NlftError
from nlft.export import export
from nlft.manifest import read_manifest, write_manifest
from nlft.measure.items import read_items, write_items
from nlft.verification import examine, verify


@pytest.mark.usefixtures("in_process")
def test_verify_in_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", str(folder)) == 0
    out = capsys.readouterr().out
    assert "It is what was measured." in out
    assert "0 of 24 answers changed" in out
    assert call("verify", str(folder), "--no-rescore") == 0
    assert "Nothing that was checked failed; not checked: scores." in capsys.readouterr().out
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


def test_a_base_with_another_hash_and_the_same_weights(folder: Path) -> None:
    """As another version of transformers makes it, which computes buffers in another way."""
    manifest = read_manifest(folder)
    assert manifest is not None
    note = manifest.base.model_copy(update={"sha256": "0" * 64})
    write_manifest(folder, manifest.model_copy(update={"base": note}))
    assert failed(folder) == []
    with pytest.warns(UserWarning, match="the weights that the adapter notes of it are the same"):
        nlft.load(folder)


def test_elsewhere_no_more_is_let_pass_than_a_part_of_the_effect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "TOLERANCE", {"float32": 1e9})
    [check] = [check for check in examine(folder, False, False, None, False) if check.name == "logits, on"]
    effect = verification.read_testimony(folder, 10**6).effect
    assert check.wanted == f"within {effect / 4:g} nats of what was exported"


def test_the_base_is_gone_before_another_process_loads_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases: list[Any] = []

    def load(config: BaseConfig) -> Any:
        bases.append(weakref.ref((base := load_base(config)).model))
        return base

    def fresh(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert [one() for one in bases] == [None]
        asked = json.loads(words[-1])
        assert asked["threads"] == torch.get_num_threads()
        monkeypatch.setattr(verification, "examine", full)
        verification.main(*words[4:])
        return subprocess.CompletedProcess(words, 0, "", "")

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 20 GiB")

    monkeypatch.setattr("nlft.export.load_base", load)
    monkeypatch.setattr(verification.subprocess, "run", fresh)
    with pytest.raises(NlftError, match="has too little memory for the base: Tried to allocate 20 GiB"):
        export(run, tmp_path / "out")


def test_a_process_that_dies_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    interpreter = tmp_path / "python"
    interpreter.write_text("#!/bin/sh\necho 'Killed by the kernel' >&2\nexit 137\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(interpreter))
    with pytest.raises(NlftError, match="ended with code 137: Killed by the kernel"):
        verify(folder)
