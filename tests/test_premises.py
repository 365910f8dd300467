"""Plain mistakes about folders are said at once, before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft.cargo import check_kind
from nlft.errors import NlftError
from nlft.premises import check_folder, finished_line
from nlft.recipes import dump_recipe

SLOW = """
import sys
from nlft.cli import main
for words in {words!r}:
    try:
        main(words)
    except SystemExit as stop:
        assert stop.code == 2, words
print([name for name in ("torch", "peft", "transformers") if name in sys.modules])
"""


def test_no_verb_imports_torch_for_a_plain_mistake(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "here").mkdir()
    one = "methods={lora: {kind: lora, lr: 0.1}}"
    mistakes = {
        ("export", "nowhere", "out"): "There is no folder 'nowhere'.",
        ("export", "here", "full"): "full is not empty.",
        ("verify", "nowhere"): f"There is no folder '{tmp_path}/nowhere'.",
        ("verify", "here"): "here has no nlft.json.",
        ("merge", "nowhere", "out"): "There is no folder 'nowhere'.",
        ("merge", "here", "full"): "full is not empty.",
        ("resume", "nowhere"): "nowhere is no run: there is no such folder.",
        ("continue", "here"): "There is no task to go on with.",
        ("continue", "nowhere", "--task", "a=b,c"): "There is no folder 'nowhere'.",
        ("train", "demo", one, "--out", "full"): "full holds another run.",
        ("train", "demo", one, "--out", "here", "--resume"): "it has no config.yaml.",
    }
    script = SLOW.format(words=[list(words) for words in mistakes])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for said in mistakes.values():
        assert said in done.stderr


def test_another_recipe_is_told_by_its_keys(recipe: Callable[..., Any], tmp_path: Path) -> None:
    begun = recipe()
    (tmp_path / "config.yaml").write_text(dump_recipe(begun))
    check_folder(tmp_path, begun, resume=True)
    other = begun.model_copy(update={"train": begun.train.model_copy(update={"batch_size": 3})})
    said = rf"train\.batch_size was {begun.train.batch_size} and is 3\."
    with pytest.raises(NlftError, match=said):
        check_folder(tmp_path, other, resume=True)
    with pytest.raises(NlftError, match=r"tasks was 2 entries and is 1 entries"):
        check_folder(tmp_path, begun.model_copy(update={"tasks": begun.tasks[:1]}), resume=True)
    with pytest.raises(NlftError, match="holds another run"):
        check_folder(tmp_path, begun, resume=False)


def test_a_cell_of_full_finetuning_leads_on(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """Its weights are no adapter wherever they lie, so the hint ends with what can be done with them."""
    chosen = recipe(methods={"full": {"kind": "full", "lr": 1e-4}})
    with pytest.raises(NlftError, match="changed the base's own weights") as caught:
        check_kind(tmp_path, chosen)
    assert "base.model can name" in caught.value.hint and f"{tmp_path / 'config.yaml'} --out" in caught.value.hint


def test_a_comparison_is_never_finished_by_its_files(tmp_path: Path) -> None:
    for name in ("runs.parquet", "summary.json"):
        assert finished_line(tmp_path, "a") is None
        (tmp_path / name).touch()
    assert "nothing to resume" in str(finished_line(tmp_path, "a"))
    (tmp_path / "cells").mkdir()
    assert finished_line(tmp_path, "a") is None
