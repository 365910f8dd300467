"""What can be exported, the sentence for what cannot, and the LoRA beside it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PromptTuningConfig, get_peft_model

sys.path.append(str(Path(__file__).parent))
from exported import export, sealed  # pyright: ignore

from nlft.cargo import check_linear, find_cargo
from nlft.counterpart import computed, counterpart_of
from nlft.errors import NlftError
from nlft.found_recipe import beside
from nlft.manifest import sha256_of
from nlft.measure.items import read_runs, write_runs
from nlft.merging import merge
from nlft.premises import check_place
from nlft.recipes import dump_recipe


@pytest.fixture
def finished(recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """`finished(method, status="ok", **files)` is a run's folder as training leaves it, without weights."""

    def make(method: dict[str, Any], status: str | None = "ok", files: tuple[str, ...] = ()) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        (run / "config.yaml").write_text(dump_recipe(recipe(methods={"mine": method})))
        for number in (1, 2):
            (run / "stages" / str(number) / "model").mkdir(parents=True)
            (run / "stages" / str(number) / "stage.json").write_text("{}")
        if status is not None:
            row = {"run_id": "run", "method": "mine", "kind": method["kind"], "status": status}
            write_runs(run / "runs.parquet", [row])
        for name in files:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text('["people", "ships"]' if name.endswith("tasks.json") else '{"peft_type": "LORA"}')
        return run

    return make


LORA = {"kind": "lora", "lr": 1e-2}
ADAPTER = ("adapter/adapter_config.json",)


@pytest.mark.parametrize(
    ("method", "files", "said", "hint"),
    [
        ({"kind": "full", "lr": 1e-3}, ("stages/2/model/config.json",), "the base's own weights", "base.model"),
        ({"kind": "full", "lr": 1e-3}, (), "the base's own weights", "A comparison does not keep them"),
        ({**LORA, "tasks": "merged"}, (), "the base's own weights", ""),
        ({**LORA, "peft": {"init_lora_weights": "pissa"}}, (), "the base's own weights", ""),
        ({"kind": "few_shot"}, (), "examples in the prompt", "sparse_memory"),
        ({"kind": "class_means"}, (), "means of the base's states", "sparse_memory"),
        (
            {**LORA, "tasks": "apart"},
            ("adapter/tasks.json", "adapter/task1/adapter_config.json", "adapter/task2/adapter_config.json"),
            "2 adapters, one for each task",
            "adapter/task1 DIR",
        ),
    ],
)
def test_what_is_no_adapter(
    finished: Callable[..., Path], method: dict[str, Any], files: tuple[str, ...], said: str, hint: str
) -> None:
    run = finished(method, files=files)
    with pytest.raises(NlftError, match=said) as caught:
        find_cargo(run)
    assert hint in caught.value.hint
    if "tasks" in method and method["tasks"] == "apart":
        assert find_cargo(run / "adapter" / "task1").row is None
        with pytest.raises(NlftError, match="2 adapters"):
            find_cargo(run / "adapter")


def test_a_run_and_its_adapter_alone(finished: Callable[..., Path]) -> None:
    run = finished(LORA, files=ADAPTER)
    whole, bare = find_cargo(run), find_cargo(run / "adapter")
    assert whole.weights == bare.weights == run / "adapter"
    assert whole.recipe == bare.recipe
    assert whole.recipe is not None
    assert whole.row is not None
    assert (whole.row["method"], bare.row) == ("mine", None)


def test_an_adapter_that_was_changed_after_its_run(finished: Callable[..., Path]) -> None:
    """Its scores are those of another one, whether they are taken again or not."""
    run = finished(LORA, files=(*ADAPTER, "adapter/adapter_model.safetensors"))
    weights, last = run / "adapter" / "adapter_model.safetensors", run / "stages" / "2" / "model"
    assert find_cargo(run).same is None, "nothing says which one was measured"
    (last / weights.name).write_bytes(weights.read_bytes())
    assert find_cargo(run).same is True
    weights.write_bytes(b"pruned")
    with pytest.raises(
        NlftError, match=r"is not what was measured: it was changed after its run, as `nlft tune`"
    ) as no:
        find_cargo(run)
    assert "nlft eval" in no.value.hint and f"nlft export {run / 'adapter'} DIR" in no.value.hint
    assert find_cargo(run / "adapter").row is None
    [row] = read_runs(run / "runs.parquet")
    write_runs(run / "runs.parquet", [row | {"adapter_sha256": sha256_of(weights)}])
    assert find_cargo(run).same is True, "what the run has noted comes first"
    write_runs(run / "runs.parquet", [row | {"adapter_sha256": "0" * 64}])
    with pytest.raises(NlftError, match="is not what was measured"):
        find_cargo(run)


def test_tokens_before_the_text(tmp_path: Path) -> None:
    PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2).save_pretrained(str(tmp_path))
    with pytest.raises(NlftError, match="a PROMPT_TUNING adapter, which puts learned states before the text"):
        find_cargo(tmp_path)
    with pytest.raises(NlftError, match="cannot be merged: it puts learned states before the text"):
        check_linear("mine", tmp_path)


def test_what_is_an_export_already(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """Its `config.yaml` would be a stranger's, and is not believed."""
    made = export(tmp_path / "made")
    with pytest.raises(NlftError, match="is an exported adapter already"):
        find_cargo(made)
    (made / "config.yaml").write_text(dump_recipe(recipe()))
    with pytest.raises(NlftError, match=r"config\.yaml is not in nlft\.json") as caught:
        find_cargo(made)
    assert "delete" in caught.value.hint
    with pytest.raises(NlftError, match=r"config\.yaml is not in nlft\.json"):
        beside(made)
    with pytest.raises(NlftError, match=r"config\.yaml is no file of an export"):
        merge(str(sealed(made)), tmp_path / "out")
    (made / "nlft.json").unlink()
    (made / "recipe.yaml").write_text(dump_recipe(recipe(probes=[{"name": "text", "data": {"path": "/etc/x"}}])))
    with pytest.raises(NlftError, match="lies at a place of its own"):
        find_cargo(made)


@pytest.mark.parametrize("name", ["notes.txt", ".git/config", "results/mine.csv"])
def test_force_deletes_an_export_and_nothing_else(tmp_path: Path, name: str) -> None:
    made = export(tmp_path / "made")
    with pytest.raises(NlftError, match="holds an exported adapter"):
        check_place(made, force=False)
    check_place(made, force=True)
    (made / name).parent.mkdir(exist_ok=True)
    (made / name).write_text("mine")
    with pytest.raises(NlftError, match=f"holds {name.split('/')[0]}.* which --force would delete"):
        check_place(made, force=True)


@pytest.mark.parametrize(("status", "said"), [(None, "is not finished"), ("failed: no memory", "failed: no memory")])
def test_a_run_that_has_not_gone_well(finished: Callable[..., Path], status: str | None, said: str) -> None:
    with pytest.raises(NlftError, match=said):
        find_cargo(finished(LORA, status, ADAPTER))


def test_other_folders(recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(NlftError, match="no folder"):
        find_cargo(tmp_path / "nothing")
    (tmp_path / "config.yaml").write_text(dump_recipe(recipe()))
    with pytest.raises(NlftError, match="a comparison of 5 methods") as caught:
        find_cargo(tmp_path)
    assert "cells/NAME" in caught.value.hint


def entry(run_id: str, learned: float | None, stored: int, **changes: Any) -> dict[str, Any]:
    values = {"learning": {"end": learned}, "costs": {"stored_bytes": stored}}
    return {"run_id": run_id, "kind": "lora", "plain": True, "status": "ok", "values": values, **changes}


def test_the_smallest_lora_that_has_learned_as_much(make_model: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "cells" / "mine"
    run.mkdir(parents=True)
    runs = [
        entry("mine", 0.8, 500, kind="sparse_memory"),
        entry("less", 0.79, 10),
        entry("equal", 0.8, 40),
        entry("more", 0.9, 30),
        entry("larger", 0.95, 60),
        entry("gated", 0.9, 5, plain=False),
        entry("full", 0.9, 5, kind="full"),
        entry("failed", 0.9, 5, status="failed: x"),
        entry("unknown", None, 5),
    ]
    (tmp_path / "summary.json").write_text(json.dumps({"runs": runs}))
    config = make_model("llama").config
    found = counterpart_of(run, config)
    assert found is not None
    assert (found.run_id, found.bytes, found.learning, found.computed) == ("more", 30, 0.9, False)

    runs[0] = entry("mine", 0.96, 500)  # nobody has learned as much
    (tmp_path / "summary.json").write_text(json.dumps({"runs": runs}))
    for place in (run, tmp_path / "alone"):
        other = counterpart_of(place, config)
        assert other is not None
        assert (other.run_id, other.rank, other.computed) == (None, 8, True)
    (tmp_path / "summary.json").write_text("[]")
    assert counterpart_of(run, config) == other


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi"])
def test_the_computed_size_is_that_of_a_real_lora(make_model: Callable[..., Any], family: str, tmp_path: Path) -> None:
    model = make_model(family)
    note = computed(model.config)
    options: dict[str, Any] = {"fan_in_fan_out": True} if family == "gpt2" else {}
    lora = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", **options))
    lora.save_pretrained(str(tmp_path))
    assert note is not None
    assert 0 <= (tmp_path / "adapter_model.safetensors").stat().st_size - note.bytes < 20_000
