"""ls, cp, show, demo: recipes go out and come back in."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from nlft.cli import main
from nlft.config import Recipe
from nlft.measure.items import write_runs
from nlft.recipes import find_recipe, load_recipe, recipe_files
from nlft.suites import suite_files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out + captured.err


def test_ls_says_what_each_recipe_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(capsys, "ls")
    assert code == 0
    recipes, _, suites = out.partition("\n\n")
    assert [line.split()[0] for line in recipes.splitlines()] == list(recipe_files())
    assert "demo" in recipe_files()
    head, *rest = suites.splitlines()
    assert "suite: NAME" in head
    assert [line.split()[0] for line in rest] == list(suite_files())
    for line in [*recipes.splitlines(), *rest]:
        assert line.endswith(".")
        assert len(line.split()) > 3


@pytest.mark.parametrize("name", list(recipe_files()))
def test_head_comments_name_the_command(name: str) -> None:
    head = find_recipe(name).read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "nlft " in head
    assert "Hardware: " in head


def test_cp_never_overwrites(capsys: pytest.CaptureFixture[str]) -> None:
    original = find_recipe("demo").read_bytes()
    assert call(capsys, "cp", "demo")[0] == 0
    assert Path("demo.yaml").read_bytes() == original
    Path("demo.yaml").write_text("mine", encoding="utf-8")
    code, said = call(capsys, "cp", "demo")
    assert code == 2
    assert "demo.yaml is there already." in said
    assert Path("demo.yaml").read_text(encoding="utf-8") == "mine"
    assert call(capsys, "cp", "demo", "--force")[0] == 0
    assert Path("demo.yaml").read_bytes() == original


def test_cp_on_a_full_disk_leaves_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def write_bytes(path: Path, data: bytes) -> None:
        path.open("wb").close()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    code, said = call(capsys, "cp", "demo")
    assert code == 2
    assert "demo.yaml cannot be written: No space left on device." in said
    assert list(Path().iterdir()) == []


def test_cp_into_folders(capsys: pytest.CaptureFixture[str]) -> None:
    Path("there").mkdir()
    assert call(capsys, "cp", "demo", "there")[0] == 0
    assert call(capsys, "cp", "demo", "new/mine.yaml")[0] == 0
    assert Path("there/demo.yaml").read_bytes() == Path("new/mine.yaml").read_bytes()
    assert load_recipe("new/mine.yaml") == load_recipe("demo")


def test_show_prints_a_recipe_that_loads(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = call(capsys, "show", "demo", "train.steps=7")
    assert code == 0
    Path("shown.yaml").write_text(out, encoding="utf-8")
    assert load_recipe("shown.yaml") == load_recipe("demo", ["train.steps=7"])
    assert load_recipe("shown.yaml").train.steps == 7


def test_show_raw_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "show", "demo", "--raw") == (0, find_recipe("demo").read_text(encoding="utf-8"))
    assert call(capsys, "show", "demo", "--raw", "train.steps=7")[0] == 2


def test_demo_never_writes_into_an_old_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[int, Path]] = []

    def compare(recipe: Recipe, out: Path, *, console: object, **options: object) -> Path:
        calls.append((recipe.train.steps, out))
        out.mkdir(parents=True)
        (out / "summary.json").write_text(json.dumps({"folder": str(out), "runs": []}))
        write_runs(out / "runs.parquet", [{"run_id": "full", "status": "ok"}])
        return out

    monkeypatch.setitem(sys.modules, "nlft.compare", types.SimpleNamespace(compare=compare))
    report = types.SimpleNamespace(table=lambda summary: f"table of {summary['folder']}", write_report=None)
    monkeypatch.setitem(sys.modules, "nlft.report", report)
    for number in (1, 2, 3):
        code, out = call(capsys, "demo", f"train.steps={number}")
        assert code == 0, out
        assert f"table of {calls[-1][1]}" in out
    assert calls == [(1, Path("runs/demo")), (2, Path("runs/demo-2")), (3, Path("runs/demo-3"))]
