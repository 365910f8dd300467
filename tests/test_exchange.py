"""Exports: every documented field, numbers worked out by hand, nothing that was not measured."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from nlft.cli import main
from nlft.errors import NlftError
from nlft.exchange import export
from nlft.exchange.every_eval_ever import standard_error
from nlft.types import Item

Planted = Callable[..., Path]
COLUMNS = [
    ("a", "task", "test", "exact_match"),
    ("b", "task", "test", "exact_match"),
    ("a", "task", "seen", "exact_match"),
    ("g", "probe", "test", "accuracy"),
    ("t", "probe", "test", "nll"),
]
MATRIX = [[0.0, 0.2, 0.1, 0.9, 1.5], [0.8, 0.3, 0.9, 0.8, 1.6], [0.6, 0.7, 0.5, 0.75, 1.75]]
RUN = {
    "run_id": "lora one",
    "method": "lora",
    "matrix": MATRIX,
    "base_model": "org/base",
    "base_revision": "abc",
    "base_sha256": "f00d",
    "lr": 0.01,
    "seed": 3,
    "steps": 40,
    "train_tokens": 5000,
    "train_s": 8.5,
    "wall_s": 20.25,
    "stored_bytes": 4096,
    "trainable_params": 128,
    "dtype": "float32",
    "device": "x86_64 CPU",
    "created_at": "2026-11-21T05:41:16+00:00",
    "versions": json.dumps({"nlft": "0.9", "torch": "2.13", "peft": "0.21"}),
    "config": json.dumps({"kind": "lora", "peft_type": "LORA", "peft": {"r": 4}, "weight_decay": 0.1}),
}
FAILED = {"run_id": "x", "method": "full", "status": "failed: loss is nan"}


@pytest.fixture(scope="module")
def schema() -> ModuleType:
    spec = importlib.util.spec_from_file_location("exchange_schema", Path(__file__).with_name("exchange_schema.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for model in (module.PeftResult, module.Record):
        model.model_rebuild(_types_namespace=vars(module))
    return module


@pytest.fixture
def folder(planted: Planted) -> Path:
    folder = planted([RUN, FAILED], COLUMNS)
    recipe = yaml.safe_load((folder / "config.yaml").read_text())
    recipe["train"] = {"batch_size": 8, "schedule": "cosine"}
    recipe["tasks"][0]["test"] = {"path": "org/set", "split": "test", "name": "small"}
    recipe["tasks"][1]["test"] = {"path": "b.jsonl", "split": "train"}
    (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def exported(folder: Path, name: str) -> dict[str, Any]:
    def no_constant(text: str) -> None:
        raise AssertionError(f"{text} is no JSON")

    texts = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "export" / name).glob("*.json")}
    return {stem: json.loads(text, parse_constant=no_constant) for stem, text in texts.items()}


def test_peft_results(folder: Path, schema: ModuleType) -> None:
    assert [path.name for path in export(folder, "peft")] == ["lora-one.json", "x.json"]
    found = exported(folder, "peft")
    for result in found.values():
        schema.PeftResult.model_validate(result)
    one = found["lora-one"]
    assert one["run_info"]["experiment_name"] == "lora/lora one"
    assert one["run_info"]["total_time"] == 20.25
    assert one["run_info"]["peft_config"] == {"peft_type": "LORA", "r": 4}
    config = one["run_info"]["train_config"]
    assert (config["model_id"], config["max_steps"], config["eval_steps"], config["seed"]) == ("org/base", 40, 20, 3)
    assert config["optimizer_kwargs"] == {"lr": 0.01, "weight_decay": 0.1}
    train = one["train_info"]
    assert (train["status"], train["file_size"], train["num_trainable_params"]) == ("success", 4096, 128)
    assert train["accelerator_memory_max"] is None, "a CPU has none"
    assert train["metrics"] == [
        {
            "step": 40,
            "test accuracy": pytest.approx((0.6 + 0.7) / 2),
            "train loss": None,
            "train samples": 40 * 8,
            "train total tokens": 5000,
            "forgetting": pytest.approx(0.25),  # 1.75 - 1.5 on the one probe of text
        }
    ]
    assert one["meta_info"]["package_info"]["torch-version"] == "2.13"
    assert one["meta_info"]["package_info"]["bitsandbytes-version"] is None
    continual = one["continual"]
    assert continual["matrix"] == [pytest.approx(row) for row in MATRIX]
    assert continual["columns"] == ["a", "b", "a/seen", "g", "t"]
    assert continual["backward_transfer"] == pytest.approx(0.6 - 0.8)
    assert continual["forward_transfer"] == pytest.approx(0.3 - 0.2)
    assert continual["forgetting"] == pytest.approx(0.2)
    assert continual["forgetting_per_task"] == {"a": pytest.approx(0.2), "b": 0.0}
    assert continual["probe_change"] == {"g": pytest.approx(-0.15), "t": pytest.approx(-0.25)}
    assert continual["loss_rise_after_each_task"] == {"t": pytest.approx([0.1, 0.25])}
    failed = found["x"]
    assert failed["run_info"]["error_msg"] == "failed: loss is nan" and failed["run_info"]["peft_config"] is None
    assert (failed["train_info"]["status"], failed["train_info"]["metrics"]) == ("failed", [])
    assert failed["continual"]["matrix"] is None and failed["continual"]["average_accuracy"] is None


def test_the_adapters_own_config_goes_first(folder: Path) -> None:
    own = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (folder / "cells" / "lora one" / "adapter").mkdir(parents=True)
    (folder / "cells" / "lora one" / "adapter" / "adapter_config.json").write_text(json.dumps(own))
    export(folder, "peft")
    assert exported(folder, "peft")["lora-one"]["run_info"]["peft_config"] == own


def test_every_eval_ever(folder: Path, schema: ModuleType) -> None:
    assert [path.name for path in export(folder, "every-eval-ever")] == ["lora-one.json"], "a failed run has no scores"
    record = exported(folder, "every-eval-ever")["lora-one"]
    schema.Record.model_validate(record)
    assert record["evaluation_id"] == "planted/nlft/planted-lora one/1795239676"
    assert record["eval_library"] == {"name": "nlft", "version": "0.9"}
    assert record["model_info"]["additional_details"]["order"] == '["a", "b"]'
    results = {result["evaluation_name"]: result for result in record["evaluation_results"]}
    assert list(results) == ["a", "b", "a/seen", "g", "t"]
    scores = {name: result["score_details"]["score"] for name, result in results.items()}
    assert scores == {"a": 0.6, "b": 0.7, "a/seen": 0.5, "g": 0.75, "t": pytest.approx(1.75)}
    assert results["g"]["metric_config"]["max_score"] == 1.0
    assert results["t"]["metric_config"] == {
        "evaluation_description": "probe of a sequence of 2 tasks, after the last one",
        "metric_id": "nll",
        "metric_name": "nll",
        "metric_unit": "nats/token",
        "lower_is_better": True,
    }
    details = results["g"]["score_details"]["details"]
    assert float(details["base"]) == 0.9 and float(details["change_since_base_value"]) == pytest.approx(-0.15)
    assert float(results["a"]["score_details"]["details"]["change_since_trained_value"]) == pytest.approx(-0.2)
    assert set(results["a/seen"]["score_details"]["details"]) == {"base"}, "its interval is not the test rows'"
    # 15 of 20 are right: the standard error of a mean of single rows is sd / sqrt(n).
    error = results["g"]["score_details"]["uncertainty"]
    expected = math.sqrt((15 * 0.25**2 + 5 * 0.75**2) / 19) / math.sqrt(20)
    assert error == {"standard_error": {"value": pytest.approx(expected), "method": "analytic, clustered"}} | {
        "num_samples": 20
    }
    assert results["a"]["source_data"] == {
        "dataset_name": "a",
        "source_type": "hf_dataset",
        "hf_repo": "org/set",
        "hf_split": "test",
        "hf_config": "small",
    }
    assert results["b"]["source_data"] == {
        "dataset_name": "b",
        "source_type": "other",
        "additional_details": {"path": "b.jsonl"},
    }


def test_what_was_not_measured_is_null_or_absent(planted: Planted, schema: ModuleType) -> None:
    gap = planted([RUN | {"matrix": [*MATRIX[:2], [0.6, 0.7, 0.5, 0.75, math.nan]]}], COLUMNS)
    export(gap, "peft")
    result = exported(gap, "peft")["lora-one"]
    schema.PeftResult.model_validate(result)
    assert result["train_info"]["metrics"][0]["forgetting"] is None
    assert result["continual"]["matrix"][2][4] is None
    export(gap, "every-eval-ever")
    record = exported(gap, "every-eval-ever")["lora-one"]
    schema.Record.model_validate(record)
    assert "t" not in [result["evaluation_name"] for result in record["evaluation_results"]]


def test_standard_error_takes_a_cluster_as_one_draw() -> None:
    def items(*parts: tuple[float, float, str]) -> list[Item]:
        return [Item(1, "on", "t", "probe", "test", "nll", f"{i}", c, v, w, "") for i, (v, w, c) in enumerate(parts)]

    # Mean 0.5, residuals ±0.5: alone sqrt(4 · 0.25 · 4/3) / 4; in two equal pairs sqrt(2 · 1 · 2) / 4.
    assert standard_error(items((1, 1, "a"), (1, 1, "b"), (0, 1, "c"), (0, 1, "d"))) == pytest.approx(1 / math.sqrt(12))
    assert standard_error(items((1, 1, "a"), (1, 1, "a"), (0, 1, "b"), (0, 1, "b"))) == pytest.approx(0.5)
    # Weights 1 and 3 of 2 and 4: mean 3.5, sums -1.5 and 1.5, sqrt(2 · 2.25 · 2) / 4.
    assert standard_error(items((2, 1, "a"), (4, 3, "b"))) == pytest.approx(0.75)
    assert standard_error(items((2, 1, "a"), (4, 3, "a"))) is None
    assert standard_error(items((math.nan, 1, "a"), (4, 3, "b"))) is None


def test_the_verb_exports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["report", str(folder), "--export", "peft", "--export", "every-eval-ever"])
    said = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0, said
    assert "Exported: 2 runs to" in said and "Exported: 1 run to" in said
    with pytest.raises(SystemExit) as stop:
        main(["report", str(folder), "--export", "csv"])
    assert stop.value.code == 2
    assert "There is no export 'csv'." in capsys.readouterr().err
    with pytest.raises(NlftError, match="There are peft, every-eval-ever"):
        export(folder, "csv")
