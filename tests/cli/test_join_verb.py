"""`nlft compare RUN RUN`: finished folders are joined; anything else is a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

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
    for name, limit in zip(folders, (64, 32), strict=True):
        path = Path(name, "config.yaml")
        recipe = yaml.safe_load(path.read_text())
        recipe["tasks"][0]["train"] = {"path": "a.jsonl", "limit": limit}
        path.write_text(yaml.safe_dump(recipe))
    assert call(*folders) == 0
    assert [row["method"] for row in read_runs(Path("runs/compare-one-two/runs.parquet"))] == ["lora", "slots"]
    said = capsys.readouterr().out
    assert "Report: runs/compare-one-two/report.html" in said
    assert "different train rows, so that learning compares rows too: tasks.a.train.limit is 64 in one and 32" in said
    assert call(*folders) == 0
    assert Path("runs/compare-one-two-2/report.html").is_file(), "an older report stays"
    assert call(*folders, "--out", "here") == 0 and call(*folders, "--out", "here") == 0


def test_a_folder_and_something_else_are_no_join(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    for words, said in (
        (("one", "nothing"), "'nothing' does not exist."),
        (("one", "empty"), "'empty' holds no finished run: it has no runs.parquet."),
        (("nothing", "two"), "'nothing' does not exist."),
        (("one", "two", "--jobs", "0"), "--jobs: 0 is no number of runs."),
    ):
        assert call(*words) == 2
        assert said in capsys.readouterr().err
    assert not Path("runs").exists()
    assert call("one", "one") == 2
    assert "is given twice" in capsys.readouterr().err
