"""Adapter folders: read, changed and written whole, and what their tasks did to each other, on the built-in base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from nlft.adapter import adapter_folder, read_adapter, recipe_of, write_adapter
from nlft.base import load_base
from nlft.config import BaseConfig
from nlft.data.source import load
from nlft.errors import NlftError
from nlft.lifecycle import cross_reads, describe, overlaps
from nlft.pathways.lifecycle import Adapter, with_tasks, without_tasks
from nlft.promotion import effect, examine, objections, promoted
from nlft.pruning import prune
from nlft.run import run_method
from nlft.types import Evaluation, Item

TEXT = "builtin:world/text/test"
RUNS: dict[str, Path] = {}
METHODS: dict[str, Any] = {
    "prototype": {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 1},
    "product_key": {"kind": "sparse_memory", "addressing": "product_key", "lr": 0.3, "slots": 100, "half_keys": 48}
    | {"heads": 2, "topk": 4, "kmeans_steps": 1, "health": "ignore"},
}


@pytest.fixture
def made(recipe: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`made(method)` is a finished run of two short tasks, trained once for all tests."""

    def make(method: str) -> Path:
        if method not in RUNS:
            RUNS[method] = run_method(
                recipe(methods=METHODS), method, tmp_path_factory.mktemp("runs") / method, report=False
            )
        return RUNS[method]

    return make


@pytest.fixture
def adapter(made: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the folder of an adapter with prototype keys, which a test may change."""
    return Path(shutil.copytree(adapter_folder(made("prototype")), tmp_path / "copy"))


def test_tasks_are_listed_without_their_base(adapter: Path) -> None:
    people, ships = describe(read_adapter(adapter))
    assert (people.name, ships.name) == ("people", "ships")
    assert (people.size, people.status, people.rows, people.reads) == ("100", "staged", 64, "not counted")
    assert people.rows_sha256 != ships.rows_sha256 and people.created <= ships.created
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert people.n_bytes == sum(tensor.nbytes for key, tensor in tensors.items() if ".tasks.0." in key)


def test_what_is_no_adapter(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(NlftError, match="nowhere is no adapter: there is no such folder"):
        adapter_folder(tmp_path / "nowhere")
    with pytest.raises(NlftError, match=r"it has no adapter_config.json"):
        adapter_folder(tmp_path)
    base = load_base(BaseConfig())
    get_peft_model(base.model, LoraConfig(target_modules=["o_proj"])).save_pretrained(str(tmp_path / "lora"))
    with pytest.raises(NlftError, match="is a LORA adapter, which does not keep its tasks apart"):
        read_adapter(tmp_path / "lora")
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(NlftError, match=r"adapter_model.safetensors is damaged"):
        read_adapter(adapter)
    weights.unlink()
    with pytest.raises(NlftError, match=r"has no adapter_model.safetensors"):
        read_adapter(adapter)
    weights.write_bytes(whole)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["tasks"].append(["third", 3])
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(NlftError, match=r"settings list 3 tasks, and its tensors hold 2"):
        read_adapter(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(NlftError, match=r"adapter_config.json cannot be read"):
        read_adapter(adapter)


def test_folders_are_written_whole(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_adapter(adapter)
    (adapter / "README.md").write_text("a card")
    out = write_adapter(without_tasks(found, ["people"]), adapter, tmp_path / "out")
    assert list(read_adapter(out).config.tasks) == ["ships"] and (out / "README.md").read_text() == "a card"
    assert list(read_adapter(adapter).config.tasks) == ["people", "ships"]
    with pytest.raises(NlftError, match="is not empty"):
        write_adapter(found, adapter, out)

    def fail(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    import nlft.adapter

    monkeypatch.setattr(nlft.adapter, "save_file", fail)
    with pytest.raises(NlftError, match="the disk is full"):
        write_adapter(without_tasks(found, ["people"]), adapter)
    assert list(read_adapter(adapter).config.tasks) == ["people", "ships"]


def test_removal_and_joining_on_disk(adapter: Path, tmp_path: Path) -> None:
    """Two adapters of one calibration, which are the halves of one, join to it again."""
    found = read_adapter(adapter)
    halves = [write_adapter(without_tasks(found, [name]), adapter, tmp_path / name) for name in found.config.tasks]
    ships, people = map(read_adapter, halves)
    joined = read_adapter(write_adapter(with_tasks(people, ships), adapter, tmp_path / "joined"))
    assert joined.config.to_dict() == found.config.to_dict()
    assert joined.tensors.keys() == found.tensors.keys()
    assert all(torch.equal(tensor, joined.tensors[key]) for key, tensor in found.tensors.items())
    base = load_base(BaseConfig())
    PeftModel.from_pretrained(base.model, str(halves[0]))  # PEFT takes it as any other


@pytest.mark.parametrize("method", ["prototype", pytest.param("product_key", marks=pytest.mark.slow)])
def test_overlaps(made: Callable[[str], Path], recipe: Callable[..., Any], method: str) -> None:
    """Prototypes of earlier tasks are silent on the background, not on later tasks; product keys are always read."""
    folder = adapter_folder(made(method))
    found = read_adapter(folder)
    assert overlaps(found, folder, "ships", recipe()) == []
    [unknown] = overlaps(found, folder, "people", None)
    assert unknown.share is None and "--recipe" in unknown.reason
    [other] = overlaps(found, folder, "people", recipe_of(folder, None))
    assert other.task == "ships" and other.share is not None and other.tokens > 64
    rows = {"path": "builtin:world/tasks/ships/train", "limit": 9}
    tasks = recipe().model_dump()["tasks"]
    changed = recipe(tasks=[tasks[0], {**tasks[1], "train": rows}])
    assert "not those that it was trained on" in overlaps(found, folder, "people", changed)[0].reason
    assert "no task of this name" in overlaps(found, folder, "people", recipe(tasks=tasks[:1]))[0].reason
    found.config.provenance["ships"]["replay"] = True
    assert "replay" in overlaps(found, folder, "people", recipe())[0].reason
    shares = cross_reads(found, folder, recipe(), ["ships"])
    assert {pair[:2] for pair in shares} == {("people", "ships"), ("ships", "people")}
    assert next(share for reader, _, share in shares if reader == "ships") <= other.share


def shaken(adapter: Adapter, name: str, scale: float) -> Adapter:
    """The adapter with other values in one task."""
    number = list(adapter.config.tasks).index(name)
    end = f".tasks.{number}.values"
    return Adapter(adapter.config, {k: t * scale if k.endswith(end) else t for k, t in adapter.tensors.items()})


def test_promotion_needs_both_halves(adapter: Path, recipe: Callable[..., Any], tmp_path: Path) -> None:
    nll = [{**task, "metric": "nll"} for task in recipe().model_dump()["tasks"]]
    text = {"name": "text", "data": {"path": TEXT, "limit": 4}, "metric": "nll"}
    on = recipe(tasks=nll, probes=[text])
    found = read_adapter(adapter)
    good = examine(found, adapter, "people", on, budget=0.9, min_acquisition=0.0)
    assert good.objections == [] == good.remarks and good.acquisition.gain.low > 0
    assert [one.column for one in good.retention] == ["ships", "text"]
    gain = good.acquisition
    assert gain.gain.value == pytest.approx((gain.before - gain.after) / gain.before)
    assert objections(gain, good.retention, 0.9, gain.gain.low) == []
    [said] = objections(gain, good.retention, 0.9, gain.gain.low + 1e-6)
    assert "Acquisition does not hold" in said
    bad = write_adapter(shaken(found, "people", -30), adapter, tmp_path / "bad")
    worse = examine(read_adapter(bad), bad, "people", on, 0.9, 0.0)
    worst = worse.worst.gain
    assert worst.low < worst.value < 0 and "Acquisition does not hold" in worse.objections[0]
    for lenient, least in ((False, -worst.low), (True, -min(one.gain.value for one in worse.retention))):
        tight, loose = (objections(gain, worse.retention, least * f, 0.0, lenient) for f in (0.99, 1.01))
        assert len(tight) == 1 and worse.worst.column in tight[0] and loose == []
    done = promoted(found, "people", good, 0.9)
    again = read_adapter(write_adapter(done, adapter))
    assert [line.status for line in describe(again)] == ["permanent", "staged"]
    assert again.config.provenance["people"]["promoted"]["acquisition"][1] == good.acquisition.gain.low
    some = {**nll[0], "test": {**nll[0]["train"], "limit": 70}}  # of which 64 are train rows
    fewer = examine(found, adapter, "people", recipe(tasks=[some, nll[1]], probes=[text]), 0.9, 0.0)
    assert "64 test rows of 'people' are also train rows" in fewer.remarks[0] and len(fewer.remarks) == 1
    assert fewer.acquisition.gain.n_items == 6
    with pytest.raises(NlftError, match="All 64 test rows of 'people' are also train rows"):
        examine(found, adapter, "people", recipe(tasks=[{**some, "test": nll[0]["train"]}, nll[1]]), 0.9, 0.0)
    with pytest.raises(NlftError, match="no task 'ships'"):
        examine(found, adapter, "ships", recipe(tasks=nll[:1]), 0.01, 0.0)
    with pytest.raises(NlftError, match="retention cannot be measured"):
        examine(found, adapter, "people", recipe(tasks=nll[:1], probes=[]), 0.01, 0.0)


def gain_of(before: list[float], after: list[float], metric: str) -> Any:
    sides = [
        [Item(0, "on", "c", "task", "test", metric, str(i), str(i), v, 1.0 + i, "") for i, v in enumerate(values)]
        for values in (before, after)
    ]
    return effect(Evaluation("c", "task", "test", (), metric), *sides)


def test_effects_are_gains() -> None:
    """Points of a bounded metric, shares of a loss; better is above zero; heavier rows count more."""
    better = gain_of([0, 0, 1], [0, 1, 1], "exact_match")
    assert better.gain.value == pytest.approx(2 / 6) and better.changed == pytest.approx(1 / 3)
    worse = gain_of([2.0, 2.0, 2.0], [2.0, 2.0, 3.0], "nll")
    assert worse.gain.value == pytest.approx(-0.25) and worse.gain.low <= -0.25 <= worse.gain.high
    same = gain_of([1, 0, 1], [1, 0, 1], "exact_match")
    assert same.gain.value == 0 == same.changed and same.gain.low < 0 < same.gain.high


def test_what_few_rows_cannot_show_is_an_objection() -> None:
    better = gain_of([0.0] * 9, [1.0] * 9, "exact_match")
    same = gain_of([1, 0, 1], [1, 0, 1], "exact_match")
    [said] = objections(better, [same], 0.01, 0.0)
    assert "Retention is not shown: 'c' changed by +0.00%" in said and "about 38" in said
    assert objections(better, [same], 0.01, 0.0, lenient=True) == []
    enough = gain_of([1.0] * 385, [1.0] * 385, "exact_match")
    assert objections(better, [enough], 0.01, 0.0) == []
    [said] = objections(better, [gain_of([1.0], [1.0], "nll")], 0.01, 0.0)
    assert "1 rows in 1 group give no interval" in said
    slight = gain_of([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.02], "nll")
    [said] = objections(better, [slight], 0.01, 0.0)
    needed = int(said.split("about ")[1].split(" are")[0])
    many = gain_of([1.0] * 4 * needed, [1.0, 1.0, 1.0, 1.02] * needed, "nll")
    assert needed > 4 and many.gain.n_items == 4 * needed and objections(better, [many], 0.01, 0.0) == []
    assert "a larger budget" in objections(better, [same], 0.0, 0.0)[0]


@pytest.fixture
def traffic(tmp_path: Path) -> str:
    """Twelve rows of text, one of them longer than the base's context."""
    rows = [{"text": f"The sum of {n} and 2 is {n + 2}."} for n in range(11)] + [{"text": "Once upon a time. " * 99}]
    path = tmp_path / "traffic.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("method", ["prototype", pytest.param("product_key", marks=pytest.mark.slow)])
def test_pruning_changes_nothing_on_its_traffic(
    made: Callable[[str], Path], traffic: str, method: str, tmp_path: Path
) -> None:
    folder = adapter_folder(made(method))
    found = read_adapter(folder)
    done = prune(found, folder, traffic, 1, None)
    assert done.silenced < 1e-4 and done.removed < 1e-4
    assert done.silenced == done.removed == 0 or method == "prototype"
    people = done.cuts[0]
    assert 0 < people.removed <= people.unread < people.slots + 1 and people.bytes_after < people.bytes_before
    again = read_adapter(write_adapter(done.adapter, folder, tmp_path / "out"))
    assert [line.reads for line in describe(again)] != ["not counted"] * 2
    more = prune(again, tmp_path / "out", traffic, 1, None)
    blocks = len(found.config.tasks) * len([key for key in found.tensors if key.endswith("tasks.0.values")])
    assert sum(cut.removed for cut in more.cuts) == 0 and sum(cut.unread for cut in more.cuts) <= blocks


def test_pruning_what_is_read_is_measured(adapter: Path, recipe: Callable[..., Any], tmp_path: Path) -> None:
    rows = load(recipe().tasks[0].train).rows[:20]
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps({"prompt": row.prompt, "completion": row.completion}) + "\n" for row in rows))
    done = prune(read_adapter(adapter), adapter, str(path), 10**6, recipe(probes=[]))
    assert done.silenced > 0 and done.removed > 0
    people = done.cuts[0]
    assert people.read_share > 0.1 and people.removed == people.unread - people.slots // 100
    assert [one.column for one in done.effects] == ["people", "ships"]
