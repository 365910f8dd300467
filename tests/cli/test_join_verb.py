"""`nlft compare RUN RUN`: finished folders are joined; anything else is a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nlft.cli import main
from nlft.measure.items import read_runs

COLUMNS = [("a", "task", "test", "exact_match"), ("g", "probe", "test", "accuracy")]


@pytest.fixture
def folders(planted: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name, method in (("one", "lora"), ("two", "slots")):
        run = {"run_id": method, "method": method, "matrix": [[0.0, 0.9], [0.8, 0.7]], "base_sha256": "f00d"}
        planted([run], COLUMNS).rename(tmp_path / name)
    return ["one", "two"]


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["compare", *words])
    return int(stop.value.code or 0)


def test_folders_are_joined(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*folders) == 0
    assert [row["method"] for row in read_runs(Path("runs/compare-one-two/runs.parquet"))] == ["lora", "slots"]
    assert "Report: runs/compare-one-two/report.html" in capsys.readouterr().out
    assert call(*folders) == 0
    assert Path("runs/compare-one-two-2/report.html").is_file(), "an older report stays"
    assert call(*folders, "--out", "here") == 0 and call(*folders, "--out", "here") == 0


def test_a_folder_and_something_else_are_no_join(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("one", "nothing") == 2
    assert "override nothing: write it as key=value" in capsys.readouterr().err
    assert call("one", "one") == 2
    assert "is given twice" in capsys.readouterr().err
