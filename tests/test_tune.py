"""Tuning a trained adapter: the curve, the chosen point, and what is written."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from nlft.base import load_base
from nlft.cli import main
from nlft.config import BaseConfig
from nlft.data.domain import load_domains
from nlft.data.source import load_rows
from nlft.errors import NlftError
from nlft.pathways.provenance import background_digest
from nlft.pathways.shift import SILENT, shifts
from nlft.prepare import prepare
from nlft.recipes import load_recipe
from nlft.rescore import load_weights
from nlft.run import run_method
from nlft.tune import Tuned, tune_adapter

METHOD = {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 3, "layers": [2, 3]}

GRID = (-0.1, 0.0, 0.1, SILENT)
"""Fewer shifts than are tried by default, for speed."""


@pytest.fixture(scope="session")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Filled by `run_folder`: a run by the settings of its method."""
    return {"root": tmp_path_factory.mktemp("tune")}


@pytest.fixture
def run_folder(
    recipe: Callable[..., Any], trained_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of a run whose method held out half of the background."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nlft.tune.WIDE_COSINES", GRID)
    if "memory" not in trained_runs:
        methods = {"memory": METHOD | {"retention": {"budget": "5%", "of": "predictions"}}}
        trained_runs["memory"] = run_method(recipe(methods=methods), None, trained_runs["root"] / "run", report=False)
    return Path(shutil.copytree(trained_runs["memory"], tmp_path / "run"))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(list(words))
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_writes_the_chosen_point(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = digests(run_folder)
    code, dry, _ = call(capsys, "tune", "run", "--budget", "6%", "--dry-run")
    assert code == 0
    assert "Nothing was written" in dry
    assert digests(run_folder) == before

    code, out, _ = call(capsys, "tune", "run/adapter", "--recipe", "run/config.yaml", "--budget", "0.06")
    assert code == 0
    assert out.replace("Written to run/adapter.", "") == dry.replace("Nothing was written (--dry-run).", "")
    assert not list(run_folder.glob(".adapter*"))
    with (run_folder / "adapter" / "tune.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["shift"]) for line in lines] == list(GRID)
    assert (run_folder / "adapter" / "tune.png").stat().st_size > 5000
    [chosen] = [line for line in lines if line["chosen"] == "1"]
    assert float(chosen["bound"]) <= 0.06
    assert lines[-1]["predictions_lost"] == "0.0"
    assert {"people (exact_match)", "ships (exact_match)", "facts (exact_match)", "text (nll)"} < set(chosen)

    base = load_base(load_recipe("run/config.yaml", []).base)
    shift = float(chosen["shift"])
    assert shifts(load_weights(run_folder / "adapter", base)) == pytest.approx({"people": shift, "ships": shift})
    changed = {path for path, digest in digests(run_folder).items() if before.get(path) != digest}
    assert changed <= {f"adapter/{name}" for name in ("tune.csv", "tune.png", "adapter_model.safetensors", "README.md")}


def test_one_task_into_a_new_folder(run_folder: Path) -> None:
    before = digests(run_folder)
    tuned = tune_adapter("run", None, 0.5, tasks=["ships"], out=Path("new"))
    assert digests(run_folder) == before
    assert_budget_is_used(tuned, 0.5)
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (run_folder / "adapter", Path("new")))
    assert old.keys() == new.keys()
    for name, tensor in new.items():
        if name.endswith("tasks.1.shift"):
            assert float(tensor) == pytest.approx(tuned.shift)
        else:
            assert tensor.equal(old[name])
    with pytest.raises(NlftError, match="new is there already"):
        tune_adapter("run", None, 0.5, out=Path("new"))


def assert_budget_is_used(tuned: Tuned, budget: float) -> None:
    """The chosen point is the best on the train rows among all within the budget."""
    within = [point for point in tuned.points if point.shift >= tuned.smallest]
    assert all(point.bound <= budget for point in within)
    assert all(point.bound > budget for point in tuned.points if point.shift < tuned.smallest)
    [chosen] = [point for point in tuned.points if point.chosen]
    assert chosen.shift == tuned.shift
    assert chosen.learned == max(point.learned for point in within)
    assert all(point.shift <= tuned.shift for point in within if point.learned == chosen.learned)


def test_other_text_by_name(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows that calibration has seen are left out of it."""
    used = load_rows(load_recipe("run/config.yaml", []).background)  # pyright: ignore
    Path("mine.jsonl").write_text(
        "".join(
            f'{{"text": "{text}"}}\n' for text in [used[0].completion, *(f"Ann {i} sees a cat." for i in range(20))]
        )
    )
    out = call(capsys, "tune", "run", "--budget", "9%", "--background", "mine.jsonl", "--dry-run")[1]
    assert "1 of 21 rows of mine.jsonl were used in training or calibration" in out
    assert "the held-out 20 (20 rows)" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "0"], "--budget: 0 is not between 0 and 1."),
        (["--budget", "120%"], "--budget: 120% is not between 0 and 1."),
        (["--budget", "nan"], "--budget: nan is not between 0 and 1."),
        (["--budget", "little"], "--budget: 'little' is no share."),
        (["--budget", "0,5%"], "--budget: '0,5%' is no share."),
        (["--budget", "0.01%"], "A budget of 0.0001 needs at least 9999 held-out background groups"),
        (["--budget", "5%", "--task", "nowhere"], "The adapter has no task 'nowhere'."),
        (["--budget", "5%", "--background", "no.txt"], "--background: There is no file or directory 'no.txt'."),
    ],
)
def test_what_is_wrong_is_said(
    run_folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    before = digests(run_folder)
    code, out, err = call(capsys, "tune", "run", *words)
    assert code == 2
    assert said in err
    assert "chosen" not in out
    assert digests(run_folder) == before


def test_what_is_attainable_is_said(run_folder: Path) -> None:
    with pytest.raises(NlftError, match=r"can vouch for [0-9.]+ % at best"):
        tune_adapter("run", None, 1e-4)


def test_adapters_that_cannot_be_tuned(recipe: Callable[..., Any], tmp_path: Path) -> None:
    methods = {"memory": METHOD, "lora": {"kind": "lora", "lr": 1e-3}}
    tasks = [recipe().tasks[0].model_dump()]
    made = {
        name: run_method(recipe(methods=methods, tasks=tasks, probes=[]), name, tmp_path / name, report=False)
        for name in methods
    }
    with pytest.raises(NlftError, match="No background is known to be held out"):
        tune_adapter(str(made["memory"]), None, 0.05)
    with pytest.raises(NlftError, match="is no adapter of nlft"):
        tune_adapter(str(made["lora"]), None, 0.05)
    with pytest.raises(NlftError, match="brings no tasks and probes"):
        tune_adapter(str(made["memory"] / "adapter"), None, 0.05)


def test_an_unfinished_run_is_not_changed(run_folder: Path) -> None:
    shutil.rmtree(run_folder / "adapter")
    before = digests(run_folder)
    with pytest.raises(NlftError, match=r"stages/2/model is a checkpoint of a run") as caught:
        tune_adapter("run", None, 0.5)
    assert "--out" in caught.value.hint
    tune_adapter("run", None, 0.5, out=Path("new"))
    assert digests(run_folder) == before and shifts(load_weights(Path("new"), load_base(BaseConfig())))


@pytest.mark.slow
def test_the_background_must_be_the_one_that_calibrated(
    run_folder: Path, capsys: pytest.CaptureFixture[str], recipe: Callable[..., Any]
) -> None:
    """The held-out half is found again by the rows, so other rows hold out other ones."""
    words = ["tune", "run", "--budget", "9%", "--dry-run"]
    own = load_recipe("run/config.yaml", [])
    base = load_base(own.base)
    right = background_digest(prepare(own, load_domains(own), base).background)
    for noted, code, said in (
        ([right], 0, ""),
        ([], 0, "does not note which background calibrated it"),
        (["other"], 2, "The guarantee does not hold: the recipe's background is not the one"),
        ([right, "other"], 2, "The guarantee does not hold"),
    ):
        note(run_folder, noted)
        found, out, err = call(capsys, *words)
        assert found == code and said in (err if code else out)
        assert ("does not note" in out) == (not noted)
    Path("mine.jsonl").write_text("".join(f'{{"text": "Ann {i} sees a cat."}}\n' for i in range(20)))
    found, out, _ = call(capsys, *words, "--background", "mine.jsonl")
    assert found == 0 and "the guarantee holds only if there are none" in out
    note(run_folder, [right])
    assert "only if there are none" not in call(capsys, *words, "--background", "mine.jsonl")[1]


def note(run_folder: Path, digests: list[str]) -> None:
    """Writes which backgrounds calibrated the adapter."""
    path = run_folder / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "calibration": {"background_sha256": digests}}))
