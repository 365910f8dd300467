"""Taking a run apart: planted forgetting is found where it was planted, and nothing is left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nlft.base import load_base
from nlft.data.batch import in_batches
from nlft.data.domain import load_domains
from nlft.data.template import encode
from nlft.dissect.ablation import grouped, parts_of
from nlft.dissect.findings import dissect
from nlft.dissect.mixed import mixed_contexts
from nlft.dissect.study import Study
from nlft.dissection import KINDS, dissect_run
from nlft.errors import NlftError
from nlft.measure.firing import fire
from nlft.measure.items import read_items, read_runs
from nlft.measure.likelihood import likelihoods
from nlft.measure.score import item_ids
from nlft.measure.summary import summarise
from nlft.methods import build_method
from nlft.pathways.lifecycle import attach, stored, without_tasks
from nlft.pathways.reads import count_reads
from nlft.pathways.shift import SILENT, set_shift
from nlft.pathways.voices import alone, replaced, silence, voices_of, wide_open
from nlft.plan import single_method
from nlft.prepare import prepare
from nlft.run import run_method
from nlft.scoring import measure
from nlft.witness import logits_digest
from tests.conftest import short_recipe, world_rows

GATED = {"gate": {"kind": "prototype", "slots": 32}, "retention": "10%"}
SLOTS = {"kind": "sparse_memory", "lr": 0.3, "slots": 100, "kmeans_steps": 2, "layers": [2, 3]}
METHODS: dict[str, dict[str, Any]] = {
    "slots": SLOTS,
    "product_key": {**SLOTS, "addressing": "product_key", "half_keys": 24, "topk": 8},
    "gated_lora": {"kind": "lora", "lr": 1e-2, "layers": [2, 3], **GATED},
    "gated_cms": {"kind": "cms", "lr": 1e-2, "periods": [1, 2], "online_chunk": 8, "layers": [2, 3], **GATED},
    "cms": {"kind": "cms", "lr": 1e-2, "periods": [1, 2], "layers": [2, 3]},
    "hope": {"kind": "hope", "lr": 1e-2, "periods": [1, 2], "layers": [2, 3]},
    "lora": {"kind": "lora", "lr": 1e-2},
    "full": {"kind": "full", "lr": 1e-3},
}
APART = ("slots", "product_key", "gated_lora", "gated_cms")


def small_recipe(**changes: Any) -> Any:
    """Scored in nats, so that a small change shows and nothing is generated."""
    tasks = [
        {
            "name": n,
            "train": world_rows(f"tasks/{n}/train", 64),
            "test": world_rows(f"tasks/{n}/test", 12),
            "metric": "nll",
        }
        for n in ("people", "ships")
    ]
    probes = [{"name": "facts", "data": world_rows("base/probe", 12), "metric": "nll"}]
    return short_recipe(tasks=tasks, probes=probes, methods=METHODS, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`trained(method)` is the folder of a finished run of two tasks, made once."""
    folder = tmp_path_factory.mktemp("runs")

    def run(method: str) -> Path:
        out = folder / method
        return out if out.exists() else run_method(small_recipe(), method, out, report=False)

    return run


def study_of(folder: Path) -> Study:
    """The finished run, loaded again."""
    recipe, name = single_method(small_recipe(), folder.name)
    base = load_base(recipe.base)
    prepared = prepare(recipe, load_domains(recipe), base)
    learner = build_method(recipe.methods[name])
    return Study(learner, learner.load(base, folder / "stages" / "2" / "model"), base, recipe, prepared, 2)


def logits(study: Study) -> torch.Tensor:
    """What the model computes for a train row of each task."""
    rows = [study.prepared.train[name][0].ids for name in ("people", "ships")]
    with torch.no_grad():
        return torch.cat([study.model(torch.tensor([ids])).logits[0] for ids in rows])


def where_now(study: Study, folder: Path) -> dict[str, Any]:
    """The decomposition with the model as it is now in place of the one that the run measured at its end."""
    from nlft.measure.matrix import columns_of
    from nlft.measure.where import where_of

    items = [item for item in read_items(folder / "items.parquet") if item.stage < 2]
    for condition in ("on", "oracle", "ungated"):
        items += measure(study.model, study.base, study.recipe, study.prepared, 2, condition, study.learner)
    [row] = read_runs(folder / "runs.parquet")
    return where_of(
        row, items, columns_of(items, ["people", "ships"], dict.fromkeys(("people", "ships", "facts"), "nll"))
    )


@pytest.mark.parametrize("method", APART)
def test_alone_is_the_adapter_without_the_other_tasks(trained: Callable[[str], Path], method: str) -> None:
    """Twin: the other task is taken out of the stored adapter, and of what is left everything is opened."""
    study = study_of(trained(method))
    before = logits(study)
    attach(study.model, without_tasks(stored(study.model), ["ships"]), "twin")
    for task, gone in (("people", "ships"), ("ships", "people")):
        with replaced(alone(study.model, task)):
            told = logits(study)
        attach(study.model, without_tasks(stored(study.model), [gone]), f"{task} alone")
        study.model.set_adapter(f"{task} alone")
        with replaced(wide_open(study.model, f"{task} alone") if "gated" in method else []):
            twin = logits(study)
        study.model.set_adapter("default")
        assert torch.equal(told, twin), task
        assert not torch.equal(told, before)
    assert torch.equal(logits(study), before)


@pytest.mark.parametrize("method", ["slots", "gated_lora", "gated_cms"])
def test_planted_forgetting_is_found_where_it_was_planted(trained: Callable[[str], Path], method: str) -> None:
    folder = trained(method)
    study = study_of(folder)
    clean = where_now(study, folder)["tasks"]["people"]
    spoilt = [(tensor, -2 * tensor) for voice in voices_of(study.model) if voice.task == 0 for tensor in voice.tensors]
    with replaced(spoilt[:1] if method == "slots" else spoilt):  # one layer's slots, or all levels
        overwritten = where_now(study, folder)["tasks"]["people"]
    set_shift(study.model, SILENT, ["people"])
    shut = where_now(study, folder)["tasks"]["people"]
    set_shift(study.model, 0.0, ["people"])
    assert overwritten["overwriting"] > clean["overwriting"] + 0.01
    assert abs(overwritten["total"] - overwritten["overwriting"] - overwritten["routing"]) < 1e-9
    assert shut["routing"] > clean["routing"] + 0.01
    assert shut["overwriting"] == clean["overwriting"]
    assert shut["total"] > clean["total"] + 0.01
    assert where_now(study, folder)["tasks"]["people"] == clean


@pytest.mark.parametrize("method", METHODS)
def test_everything_is_afterwards_as_before(trained: Callable[[str], Path], method: str, tmp_path: Path) -> None:
    study = study_of(trained(method))
    before, random = logits_digest(study.model, study.base, study.prepared), torch.get_rng_state()
    state = {name: tensor.clone() for name, tensor in study.model.state_dict().items()}
    trainable = [name for name, one in study.model.named_parameters() if one.requires_grad]
    items = dissect(study, KINDS, tmp_path / "dissect.json")
    for condition in ("oracle", "ungated", "off"):
        items += measure(study.model, study.base, study.recipe, study.prepared, 2, condition, study.learner)
    assert logits_digest(study.model, study.base, study.prepared) == before
    after = study.model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    assert [name for name, one in study.model.named_parameters() if one.requires_grad] == trainable
    assert all(one.grad is None for one in study.model.parameters())
    assert torch.equal(torch.get_rng_state(), random)

    found = {item.condition.partition(":")[0] for item in items}
    wanted = {"without", "recovered", "mixed", "base_mixed"}
    wanted |= {"oracle"} if method in APART else set()
    wanted |= {"ungated"} if method in APART and method != "product_key" else set()
    assert found == wanted | (set() if method == "full" else {"off"})
    facts = json.loads((tmp_path / "dissect.json").read_text())
    assert set(facts["false_fire"]) == {"facts"} and 0 <= facts["false_fire"]["facts"] <= 1
    assert (facts["overlap"] is not None) == (facts["gate_fire"] is not None) == (method in APART)
    if method in APART:
        assert facts["overlap"]["jaccard"][0][0] == 1.0 and facts["overlap"]["jaccard"][0][1] < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_without_all_parts_the_model_is_the_base(trained: Callable[[str], Path], method: str) -> None:
    study = study_of(trained(method))
    row = torch.tensor([study.prepared.train["people"][0].ids])
    changes = [change for name, part in parts_of(study).items() if name.startswith(("layer", "emb")) for change in part]
    with torch.no_grad():
        on, base = study.model(row).logits, load_base(study.recipe.base).model(row).logits
        with replaced(changes):
            off = study.model(row).logits
    assert torch.equal(off, base) and not torch.equal(on, base)
    if method not in ("lora", "full"):
        with replaced(silence(voices_of(study.model))), torch.no_grad():
            assert torch.equal(study.model(row).logits, base)


def test_names_of_parts(trained: Callable[[str], Path]) -> None:
    layers = ["layer 2", "layer 3"]
    assert list(parts_of(study_of(trained("gated_lora")))) == ["task people", "task ships", *layers]
    assert list(parts_of(study_of(trained("cms")))) == ["level 0", "level 1", *layers]
    assert list(parts_of(study_of(trained("hope")))) == ["level 0", "level 1", "memory", *layers]
    assert list(parts_of(study_of(trained("full")))) == [
        "layers 0 to 1", "layers 2 to 3", "layers 4 to 5", "embeddings and head",
    ]  # fmt: skip
    assert grouped([4, 5, 7], 8) == [("layer 4", [4]), ("layer 5", [5]), ("layer 7", [7])]


def test_ten_rows_bring_back_what_was_out_of_reach(trained: Callable[[str], Path], tmp_path: Path) -> None:
    study = study_of(trained("lora"))
    items = {item.item_id: item for item in dissect(study, ["recovery"], tmp_path / "dissect.json")}
    on = measure(study.model, study.base, study.recipe, study.prepared, 2, "on", study.learner)
    both = [(item, items[item.item_id]) for item in on if item.column == "people" and item.metric == "nll"]
    assert {item.condition for item in items.values()} == {"recovered:people"}
    assert sum(after.value - before.value for before, after in both) < 0


def test_mixed_rows_stand_behind_a_row_of_another_kind(trained: Callable[[str], Path]) -> None:
    """Twin: the contexts are written by hand and scored one by one."""
    study = study_of(trained("lora"))
    domains = study.prepared.domains
    found = [one for one in mixed_contexts(study) if (one.column, one.metric) == ("facts", "nll")]
    items = {(one.condition, one.item_id): one for one in found}
    for number, (row, name) in enumerate(
        zip(domains.probes[0].rows[:4], item_ids(domains.probes[0].rows), strict=False)
    ):
        front = domains.tasks[number % 2].train[number // 2]
        text = f"{front.prompt}{front.join}{front.completion}\n\n{row.prompt}{row.join}{row.completion}"
        [whole] = encode(replace(row, prompt=text.removesuffix(row.join + row.completion)), study.base.tokenizer, 999)
        for word, context in (("mixed", nullcontext()), ("base_mixed", study.model.disable_adapter())):
            with context:
                nll = likelihoods(study.model.eval(), [whole], 0, 1)[0]
            item = items[f"{word}:{domains.tasks[number % 2].name}", name]
            assert item.value == pytest.approx(nll.nats / nll.tokens, abs=1e-5)


@pytest.mark.parametrize("method", ["slots", "gated_lora"])
def test_reads_on_probes_are_those_of_all_tasks_together(trained: Callable[[str], Path], method: str) -> None:
    study = study_of(trained(method))
    rows = [row for name in ("people", "ships") for row in study.prepared.train[name][:20]]
    reads = count_reads(study.model, in_batches(rows, 8, 0))
    each = [fire(study.model, task, rows, 0).fired_tokens for task in (0, 1)]
    assert list(reads.tokens.values()) == each
    assert 0 < max(each) <= reads.fired <= sum(each)
    with replaced(wide_open(study.model)):
        assert count_reads(study.model, in_batches(rows, 8, 0)).fired == reads.total


def test_a_recipe_asks_for_it_and_the_summary_has_it(tmp_path: Path) -> None:
    """A run that is killed after its last stage goes on without doing it again."""
    recipe = small_recipe(measure={"conditions": ["off", "oracle", "ungated"], "dissect": list(KINDS)})
    out = run_method(recipe, "slots", tmp_path / "run", report=False)
    first = summarise(out)["where"]
    assert [entry["run_id"] for entry in first] == ["run"]
    assert {"tasks", "probes", "ablation", "recovery", "mixed", "identity", "overlap", "false_fire"} < set(first[0])
    for name in ("items.parquet", "runs.parquet"):
        (out / name).unlink()
    run_method(recipe, "slots", out, resume=True, report=False)
    assert summarise(out)["where"] == first
    matrix = summarise(out)["runs"][0]["matrix"]
    run_method(small_recipe(), "slots", tmp_path / "plain", report=False)
    assert matrix == summarise(tmp_path / "plain")["runs"][0]["matrix"]


@pytest.mark.slow
def test_the_verb_adds_it_to_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nlft.cli import main

    out = run_method(small_recipe(), "gated_lora", tmp_path / "run", report=False)
    before = read_items(out / "items.parquet")
    main_done(main, ["dissect", str(out)])
    said = capsys.readouterr().out
    for word in ("overwriting", "without", "task people", "ten rows again", "Jaccard", "dissect.json"):
        assert word in said, word
    items = read_items(out / "items.parquet")
    assert [item for item in items if item.condition in ("base", "on")] == before
    again = dissect_run(str(out))  # takes the place of what was there
    assert read_items(out / "items.parquet") == items
    assert summarise(out)["where"][0]["tasks"].keys() == again.where["tasks"].keys() == {"people", "ships"}
    (out / "runs.parquet").unlink()
    with pytest.raises(NlftError, match="no finished run"):
        dissect_run(str(out))


def main_done(main: Callable[..., None], words: list[str]) -> None:
    """Runs a command line that must not fail."""
    try:
        main(words)
    except SystemExit as end:
        assert end.code in (0, None)
