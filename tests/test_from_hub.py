"""Adapters from a Hub in use: scored again, and loaded by two lines in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent / "pathways")]
from exported import sealed  # pyright: ignore
from hub_stand_in import HubStandIn, connect, environment  # pyright: ignore
from pathway_models import TASKS, logits, trained  # pyright: ignore

from nlft.errors import NlftError
from nlft.recipes import dump_recipe
from nlft.rescore import evaluate_run
from nlft.run import run_method

ROWS = TASKS["first task"][0]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    with HubStandIn() as stand_in:
        connect(monkeypatch, stand_in, tmp_path)
        yield stand_in


def put(hub: HubStandIn, name: str, folder: Path) -> str:
    """Puts a folder on the stand-in; gives the commit."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return hub.add(name, files, private=True)


def test_an_export_is_scored_again_from_the_hub(hub: HubStandIn, recipe: Callable[..., Any], tmp_path: Path) -> None:
    rows = {name: {"path": f"builtin:world/tasks/people/{name}", "limit": 8} for name in ("train", "test")}
    short = {"methods": {"lora": {"kind": "lora", "lr": 1e-2}}, "probes": []}
    one = recipe(tasks=[{"name": "people"} | rows], **short)
    run = run_method(one, "lora", tmp_path / "run", report=False)
    made = run / "adapter"
    (made / "recipe.yaml").write_text(dump_recipe(one))
    commit = put(hub, "alice/mine", sealed(made, "builtin:tiny"))
    lines = evaluate_run(f"alice/mine@{commit}")
    assert lines == evaluate_run(str(run)) and any(line.adapted != line.base for line in lines)

    missing = {"name": "people", "train": {"path": "away.jsonl"}, "test": {"path": "away.jsonl"}}
    away = recipe(tasks=[missing], **short)
    (made / "recipe.yaml").write_text(dump_recipe(away))
    put(hub, "alice/mine", sealed(made, "builtin:tiny"))
    with pytest.raises(NlftError, match=r"away\.jsonl") as caught:
        evaluate_run("alice/mine")
    assert "alice/mine" in caught.value.hint and "--recipe" in caught.value.hint
    assert evaluate_run("alice/mine", one) == lines, "a recipe that is named goes before"

    hub.add("alice/mine", {"README.md": b"# soon"})
    with pytest.raises(NlftError, match=r"no adapter_config\.json"):
        evaluate_run("alice/mine")


TWO_LINES = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from peft import AutoPeftModelForCausalLM
name, revision, folder = sys.argv[1:]
rows = load_file(folder + "/rows.safetensors")
base = AutoModelForCausalLM.from_pretrained("alice/base")

import nlft
from peft import PeftModel
model = PeftModel.from_pretrained(base, name, revision=revision)

with torch.no_grad():
    found = {"two": model(**rows).logits}
    with model.disable_adapter():
        found["off"] = model(**rows).logits
    found["auto"] = AutoPeftModelForCausalLM.from_pretrained(name, revision=revision)(**rows).logits
    base = AutoModelForCausalLM.from_pretrained("alice/base")
    found["nlft"] = nlft.load(f"{name}@{revision}", base=base)(**rows).logits
save_file({key: value.contiguous() for key, value in found.items()}, folder + "/found.safetensors")
"""


@pytest.mark.slow
def test_two_lines_in_a_process_of_their_own(hub: HubStandIn, tmp_path: Path) -> None:
    """The base is on the same Hub; the pinned revision is not the newest."""
    model = trained("llama", "prototype")
    (tmp_path / "base").mkdir()
    model.peft_config["default"].base_model_name_or_path = "alice/base"
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    wanted = logits(model)
    with model.disable_adapter():
        off = logits(model)
    model.unload().save_pretrained(tmp_path / "base")
    put(hub, "alice/base", tmp_path / "base")
    commit = put(hub, "alice/mine", tmp_path / "adapter")
    hub.add("alice/mine", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"newer, and no adapter"})
    rows = {"input_ids": ROWS.input_ids, "attention_mask": ROWS.attention_mask}
    save_file(rows, tmp_path / "rows.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", TWO_LINES, "alice/mine", commit, str(tmp_path)],
        env=environment(hub, tmp_path / "home"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    assert not torch.equal(wanted, off)
    torch.testing.assert_close(found.pop("off"), off)
    assert set(found) == {"two", "auto", "nlft"}
    for got in found.values():
        torch.testing.assert_close(got, wanted)
    assert hub.count("cdn") > 0 and hub.count(f"resolve/{hub.repositories['alice/mine'].refs['main']}") == 0
