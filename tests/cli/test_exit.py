"""What the command line says and returns when something goes wrong."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlft.recipes
from nlft.cli import main

RECIPE = """\
name: small
tasks: [{name: law, train: law.jsonl, test: law.jsonl}]
methods: {lora: {kind: lora, lr: 1e-3}}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("law.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    Path("r.yaml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(list(args))
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("verb", ["validate", "train", "compare", "show"])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.stepz=3", "override train.stepz=3: train.stepz: unknown key; did you mean 'steps'?"),
        (
            "methods.lora.kind=lore",
            "allowed: full, lora, sparse_memory, cms, hope, few_shot, class_means. Did you mean 'lora'?",
        ),
        ("train.steps=0", "override train.steps=0: train.steps: must be 1 or more, not 0."),
        ("steps", "override steps: write it as key=value, for instance train.steps=50."),
    ],
)
def test_a_bad_recipe_is_said_before_anything_runs(
    capsys: pytest.CaptureFixture[str], verb: str, override: str, said: str
) -> None:
    code, out, err = call(capsys, verb, "r.yaml", override)
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert err.endswith("Correct the recipe; nothing has run.\n")
    assert not Path("runs").exists()


def test_missing_data_is_said_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "validate", "r.yaml", "tasks.law.test=lew.jsonl")
    assert code == 2
    assert "override tasks.law.test=lew.jsonl: tasks.law.test: There is no file or directory 'lew.jsonl'." in err
    assert "law.jsonl" in err.split("lew.jsonl'.")[1]
    Path("law.jsonl").unlink()
    code, _, err = call(capsys, "validate", "r.yaml")
    assert code == 2
    assert err.count("nlft: ") == 0
    assert err.count("r.yaml:2: tasks.law.t") == 2


def test_a_bad_row_and_a_missing_base_are_found_together(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt":\n', encoding="utf-8")
    code, _, err = call(capsys, "validate", "r.yaml", "tasks.0.train=bad.jsonl", "base.model=./nowhere")
    assert code == 2
    assert "override base.model=./nowhere: base.model: there is no directory './nowhere'." in err
    assert "tasks.law.train: bad.jsonl line 2 is not valid JSON" in err


def test_validate_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "validate", "r.yaml", "methods.lora.lr=[1e-3,2e-3]", "tasks.0.seen=org/set")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "ok"
    assert any(line.startswith("tasks.law.train ") and "1 row of prompt/completion" in line for line in lines)
    assert any(line.startswith("tasks.law.seen ") and "a Hub dataset, not looked up" in line for line in lines)
    assert lines[-2].split() == ["compare", "2", "runs"]
    out = call(capsys, "validate", "r.yaml", "methods.few={kind: few_shot}")[1]
    assert ["methods.few", "few_shot"] in [line.split() for line in out.splitlines()], "no learning rate"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            2,
            "No space left on the disk while writing /x/y.\nFree some space, then run the same command again.\n",
        ),
        (
            ValueError("the sum is wrong\nand more"),
            1,
            "nlft: ValueError: the sum is wrong\nRun again with --debug",
        ),
        (
            ValueError("it is one of:\n(1) this,\n(2) or that.\nand more"),
            1,
            "nlft: ValueError: it is one of: (1) this, (2) or that.\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_other_failures(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    said: str,
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(nlft.recipes, "recipe_files", fail)
    found, _, err = call(capsys, "ls")
    assert found == code
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("args", [("--debug", "show", "nothing"), ("show", "nothing", "--debug")])
def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], args: tuple[str, ...]) -> None:
    code, _, err = call(capsys, *args)
    assert code == 2
    assert "Traceback" in err
    assert "There is no recipe called 'nothing'." in err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("base.model=builtin:big", "there is no built-in model 'builtin:big'"),
        ("base.model=law.jsonl", "is a file, not a model's directory"),
        ("base.model=.", "'.' is no model: it has no config.json"),
        ("tasks.law.metric=accuracy", "law.jsonl:1 has 0 choices"),
        ("tasks.law.metric=exactmatch", "the metric 'exactmatch' is unknown. Did you mean 'exact_match'?"),
        ("tasks.law.test=text.jsonl", "text.jsonl:1 is plain text without a prompt"),
        ("methods.lora.peft.rank=3", "methods.lora: LoraConfig has no field 'rank'"),
        ("methods.lora.peft_type=LORAX", "peft_type 'LORAX' is no PEFT method"),
        ("methods.m={kind: sparse_memory, lr: 1, layers: [9]}", "methods.m.layers: 9 is no layer of 'builtin:tiny'"),
        ("methods.m={kind: hope, lr: 1, layers: [6]}", "methods.m.layers: 6 is no layer of 'builtin:tiny'"),
        ("methods.m={kind: cms, lr: 1, gate: {layer: 8}}", "methods.m.gate.layer: 8 is no layer of 'builtin:tiny'"),
        ("methods.m={kind: cms, lr: 1, gate: {layer: 2}, layers: [1, 2]}", "layer 1 lies in front of the gate"),
        ("methods.m={kind: cms, lr: 1, variant: nested}", "set `consolidation` above 0"),
    ],
)
def test_validate_refuses_what_train_refuses(capsys: pytest.CaptureFixture[str], override: str, said: str) -> None:
    Path("text.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    code, out, err = call(capsys, "validate", "r.yaml", "background=text.jsonl", override)
    assert (code, out) == (2, "")
    assert said in err and override in err


def test_interrupted_verbs_say_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import nlft.compare
    import nlft.run

    def stop(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nlft.run, "run_method", stop)
    monkeypatch.setattr(nlft.compare, "compare", stop)
    again = "Interrupted. Go on with: nlft train r.yaml train.steps=3 --method lora --out runs/small-lora"
    code, _, err = call(capsys, "train", "r.yaml", "train.steps=3")
    assert (code, err) == (130, f"{again}\n")

    def begin(*args: object, **options: object) -> None:
        Path("runs/small-lora").mkdir(parents=True)
        Path("runs/small-lora/config.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(nlft.run, "run_method", begin)
    assert call(capsys, "train", "r.yaml", "train.steps=3")[::2] == (130, f"{again} --resume\n")
    code, _, err = call(capsys, "compare", "r.yaml", "--out", "c")
    assert (code, err) == (130, "Interrupted. Go on with: nlft compare r.yaml --out c\n")


def test_peft_says_nothing_about_what_it_corrects(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import warnings

    from peft import LoraConfig, get_peft_model

    from nlft.cli.argument import open_console

    monkeypatch.setattr("os.environ", {**os.environ})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        open_console()
        get_peft_model(make_model("gpt2"), LoraConfig(target_modules=["c_proj"], task_type="CAUSAL_LM"))
    assert [str(one.message) for one in said if "fan_in_fan_out" in str(one.message)] == []


def test_a_comparison_with_a_failed_run_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    import nlft.compare
    import nlft.report
    from nlft.measure.items import write_runs

    def compare(recipe: object, out: Path, *, console: object, **options: object) -> Path:
        out.mkdir()
        bound = {"run_id": "b", "status": "failed: it diverged", "setting": "multitask"}
        write_runs(out / "runs.parquet", [{"run_id": "a", "status": "ok"}, bound])
        (out / "summary.json").write_text(json.dumps({"runs": [{"run_id": "a", "status": "ok"}]}))
        return out

    monkeypatch.setattr(nlft.compare, "compare", compare)
    monkeypatch.setattr(nlft.report, "table", lambda summary: "table")
    code, out, _ = call(capsys, "compare", "r.yaml", "--out", "c")
    assert code == 1
    assert "1 of 2 runs failed: b." in out and "Report: c/report.html" in out


def test_unknown_options_and_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "train", "--nonsense")[0] == 2
    assert call(capsys, "nonsense")[0] == 2
    assert call(capsys, "train")[0] == 2


def test_report_and_eval_need_results(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "report", "nowhere")
    assert code == 2
    assert "nowhere holds no results: there is no items.parquet." in err


def test_train_needs_one_method(capsys: pytest.CaptureFixture[str]) -> None:
    two = "methods.full={kind: full, lr: 1e-4}"
    code, _, err = call(capsys, "train", "r.yaml", two)
    assert code == 2
    assert "--method" in err
    code, _, err = call(capsys, "train", "r.yaml", "--method", "lorra")
    assert code == 2
    assert "'lorra'" in err
