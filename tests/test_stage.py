"""Stages on disk: what a resumed run reads back, and what it says of a damaged one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft.errors import CheckpointError
from nlft.measure.items import read_runs
from nlft.run import run_method


@pytest.fixture
def cut(recipe: Callable[..., Any], tmp_path: Path) -> Path:
    """A run that was stopped after its first stage."""
    out = run_method(recipe(), "lora", tmp_path / "run", report=False)
    for name in ("adapter", "stages/2"):
        shutil.rmtree(out / name)
    for name in ("items.parquet", "runs.parquet"):
        (out / name).unlink()
    return out


def test_a_resumed_run_counts_the_seconds_before(recipe: Callable[..., Any], cut: Path) -> None:
    for stage in (0, 1):
        path = cut / "stages" / str(stage) / "stage.json"
        facts = json.loads(path.read_text())
        assert 0 < facts["eval_s"] < facts["wall_s"]
        path.write_text(json.dumps(facts | {"eval_s": 100.0, "wall_s": 1000.0}))
    out = run_method(recipe(), "lora", cut, resume=True, report=False)
    (row,) = read_runs(out / "runs.parquet")
    assert 200 < row["eval_s"] < 300
    assert 2000 < row["wall_s"] < 3000


@pytest.mark.parametrize("name", ["stage.json", "items.parquet", "model/adapter_model.safetensors"])
def test_a_damaged_stage_is_a_sentence_with_a_way_out(recipe: Callable[..., Any], cut: Path, name: str) -> None:
    path = cut / "stages" / "1" / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=r"The stage in .*stages/1 is damaged") as caught:
        run_method(recipe(), "lora", cut, resume=True, report=False)
    assert f"Delete {cut / 'stages' / '1'}" in caught.value.hint
    shutil.rmtree(cut / "stages" / "1")
    out = run_method(recipe(), "lora", cut, resume=True, report=False)
    assert read_runs(out / "runs.parquet")[0]["status"] == "ok"
