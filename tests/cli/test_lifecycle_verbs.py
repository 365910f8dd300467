"""`nlft tasks`, `promote` and `prune` from training to a smaller adapter, and what they say when something is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft.cli import main
from nlft.cli.tasks import _spelled
from nlft.lifecycle import Overlap
from nlft.recipes import dump_recipe
from nlft.run import run_method

RUN: dict[str, Path] = {}
BUDGET = "The retention budget was set for the adapter as it was; check it with `nlft tune`."


@pytest.fixture
def run(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of a finished run whose tasks are scored by likelihood, trained once."""
    if not RUN:
        tasks = [{**task, "metric": "nll"} for task in recipe().model_dump()["tasks"]]
        probe = {"name": "text", "data": {"path": "builtin:world/text/test", "limit": 4}, "metric": "nll"}
        method = {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 1}
        short = recipe(tasks=tasks, probes=[probe], methods={"memory": method})
        RUN["run"] = run_method(short, None, tmp_path_factory.mktemp("runs") / "run", report=False)
        (RUN["run"].parent / "alone.yaml").write_text(
            dump_recipe(short.model_copy(update={"tasks": short.tasks[:1], "probes": []}))
        )
    return Path(shutil.copytree(RUN["run"], tmp_path / "run"))


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(arg) for arg in args])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_from_staged_to_removed(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    code, out, _ = call(capsys, "tasks", run)
    assert code == 0 and out.count("staged") == 2 and "not counted" in out
    before = (run / "adapter" / "adapter_config.json").read_bytes()
    code, out, err = call(capsys, "promote", run, "people", "--min-acquisition", "99%")
    assert code == 3 and "nlft:" not in err
    assert "Acquisition does not hold" in out and "nothing was written" in out
    assert (run / "adapter" / "adapter_config.json").read_bytes() == before
    code, out, _ = call(capsys, "promote", run, "people", "--budget", "0%")
    assert code == 3 and "Retention" in out
    code, out, _ = call(capsys, "promote", run, "people", "--budget", "90%")
    assert (
        code == 0 and "losses of several add up" in out and "'people' is permanent" in out and "Acquisition: +" in out
    )
    traffic = tmp_path / "traffic.jsonl"
    traffic.write_text('{"text": "Once upon a time there was a ship."}\n' * 3)
    code, out, _ = call(capsys, "prune", run, "--traffic", traffic, "--dry-run")
    assert code == 0 and "0 with the removed slots silent" in out and "Nothing was written" in out
    code, out, _ = call(capsys, "prune", run, "--traffic", traffic, "--out", tmp_path / "small")
    assert code == 0 and f"Written to {tmp_path / 'small'}" in out and BUDGET in out
    small, whole = (path / "adapter_model.safetensors" for path in (tmp_path / "small", run / "adapter"))
    assert small.stat().st_size < whole.stat().st_size / 2
    code, out, _ = call(capsys, "tasks", tmp_path / "small")
    assert code == 0 and "permanent" in out and "tokens" in out
    for kept, gone in (("ships", "people"), ("people", "ships")):
        code, out, _ = call(capsys, "tasks", run, "--remove", gone, "--out", tmp_path / kept)
        assert code == 0 and f"Removed '{gone}'" in out and BUDGET in out and "exact" not in out
        assert ("tokens of its train rows" in out) == (gone == "people") and "not known" not in out
    code, out, _ = call(capsys, "tasks", tmp_path / "people", "--add", tmp_path / "ships", "--out", tmp_path / "both")
    assert code == 0 and "Added 'ships'." in out and "not calibrated against each other" in out
    assert BUDGET in out and "unknown whether" not in out
    code, out, _ = call(capsys, "tasks", tmp_path / "people", "--remove", "people")
    assert code == 0 and BUDGET not in out
    assert "no tasks" in call(capsys, "tasks", tmp_path / "people")[1]


def test_what_is_wrong_is_a_sentence(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    adapter = run / "adapter"
    other = Path(shutil.copytree(adapter, tmp_path / "other"))
    alone = RUN["run"].parent / "alone.yaml"
    for args, said in (
        (("tasks", tmp_path / "nowhere"), "is no adapter: there is no such folder"),
        (("tasks", tmp_path), "is no adapter: it has no adapter_config.json"),
        (("tasks", run, "--remove", "law"), "no task 'law'"),
        (("tasks", run, "--remove", "people", "--add", "x"), "cannot be used at once"),
        (("tasks", run, "--out", "x"), "--out has no effect"),
        (("tasks", run, "--add", other), "Both adapters hold a task 'people'"),
        (("tasks", run, "--remove", "people", "--out", other), "is not empty"),
        (("promote", run, "law"), "no task 'law'"),
        (("promote", other, "people"), "Name a recipe with --recipe"),
        (("promote", run, "people", "--budget", "much"), "--budget: 'much' is no share"),
        (("promote", run, "ships", "--recipe", alone), "The recipe has no task 'ships'"),
        (("promote", run, "people", "--recipe", alone), "retention cannot be measured"),
        (("prune", run, "--traffic", tmp_path / "none.jsonl"), "There is no file or directory"),
        (("prune", run, "--traffic", "x", "--dry-run", "--out", "y"), "--out has no effect"),
    ):
        code, _, err = call(capsys, *args)
        assert (code, said in err, "Traceback" in err) == (2, True, False), err
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for args in (("tasks", run), ("promote", run, "people"), ("prune", run, "--traffic", "x")):
        code, _, err = call(capsys, *args)
        assert code == 2 and "adapter_model.safetensors is damaged" in err


@pytest.mark.parametrize("gated", [False, True])
def test_silence_in_training_is_called_no_more_than_that(gated: bool) -> None:
    said = _spelled("law", Overlap("ships", 0.0, 1234), gated)
    assert "none of the 1,234 tokens of its train rows reads 'law'" in said
    assert "its training read nothing of it; its calibration may have" in said
    assert ("gate reads states in front of every pathway" in said) == gated and "exact" not in said
    assert "2.00%" in _spelled("law", Overlap("ships", 0.02, 100), gated)
