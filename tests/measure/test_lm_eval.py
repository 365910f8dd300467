"""lm-eval tasks on adapted models: the scores of lm-eval's own model, whatever the batch, and no trace left behind."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nlft.base import load_base
from nlft.config import BaseConfig, DataConfig, ProbeConfig
from nlft.data import harness
from nlft.data.domain import Domains, harness_probe, load_domains
from nlft.data.source import load_rows
from nlft.errors import NlftError
from nlft.measure.items import read_items
from nlft.measure.score import score
from nlft.prepare import digest_rows
from nlft.rescore import load_weights, weights_of
from nlft.run import run_method
from nlft.types import Evaluation, Item

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval's own

QUIZ = {
    "task": "quiz",
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
TEXT = {
    "task": "tales",
    "dataset_path": "json",
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
ASK = {
    "task": "ask",
    "dataset_path": "json",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[gold]}}",
    "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 8},
    "metric_list": [{"metric": "exact_match"}],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """`tasks(name)` is an inline task on 12 documents of the built-in world."""
    folder = tmp_path_factory.mktemp("tasks")
    facts = load_rows(DataConfig(path="builtin:world/base/probe", limit=12))
    draw = random.Random(0)
    quiz = []
    for row in facts:
        others = [one.completion for one in draw.sample(facts, 3)]
        gold = draw.randrange(4)
        choices = [*others[:gold], row.completion, *others[gold:]]
        quiz.append({"question": row.prompt, "choices": choices, "gold": gold})
    tales = [{"text": row.completion} for row in load_rows(DataConfig(path="builtin:world/text/test", limit=12))]
    for name, records in (("quiz", quiz), ("tales", tales)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    files = {"quiz": (QUIZ, "quiz"), "ask": (ASK, "quiz"), "tales": (TEXT, "tales")}

    def task(name: str) -> dict[str, Any]:
        config, file = files[name]
        return {**config, "dataset_kwargs": {"data_files": {"test": str(folder / f"{file}.jsonl")}}}

    return task


@pytest.fixture(scope="module")
def base() -> Any:
    return load_base(BaseConfig())


def probe(task: Any, **fields: Any) -> Evaluation:
    return harness_probe(ProbeConfig.model_validate({"name": "probe", "lm_eval": task, **fields}))


def ask(model: Any, base: Any, evaluation: Evaluation, batch_size: int = 8) -> list[Item]:
    return score(
        model, base.tokenizer, evaluation, stage=1, condition="on", batch_size=batch_size, max_length=base.context
    )


def numpy_state() -> list[int]:
    state: Any = np.random.get_state()
    return state[1].tolist()


def of(items: list[Item], metric: str) -> list[float]:
    return [item.value for item in items if item.metric == metric]


@pytest.mark.parametrize(
    ("name", "metrics"),
    [("quiz", ["acc", "acc_norm", "margin"]), ("tales", ["bits_per_byte"]), ("ask", ["exact_match"])],
)
def test_scores_are_those_of_hflm(tasks: Any, base: Any, name: str, metrics: list[str]) -> None:
    from lm_eval import evaluator
    from lm_eval import tasks as theirs
    from lm_eval.models import huggingface

    lm_eval: Any = evaluator
    model: Any = huggingface.HFLM
    items = ask(base.model, base, probe(tasks(name)))
    assert list(dict.fromkeys(item.metric for item in items)) == metrics
    assert len({item.item_id for item in items}) == 12
    lm = model(pretrained=base.model, tokenizer=base.tokenizer, batch_size=4, max_length=base.context)
    found: Any = lm_eval.simple_evaluate(
        lm, tasks=[tasks(name)], task_manager=theirs.TaskManager(include_defaults=False), bootstrap_iters=0
    )
    samples = found["samples"][name]
    assert [item.item_id for item in items if item.metric == metrics[0]] == [one["doc_hash"][:16] for one in samples]
    if name == "tales":
        nats = [-one["filtered_resps"][0] for one in samples]
        sizes = [len(one["doc"]["text"].encode()) for one in samples]
        expected = [each / np.log(2) / size for each, size in zip(nats, sizes, strict=True)]
        assert of(items, "bits_per_byte") == pytest.approx(expected, abs=1e-5)
        assert [item.weight for item in items] == sizes
        return
    assert of(items, metrics[0]) == [one[metrics[0]] for one in samples]
    if name == "quiz":
        sums = [[answer[0] for answer in one["filtered_resps"]] for one in samples]
        golds = [one["doc"]["gold"] for one in samples]
        margins = [s[g] - max(s[:g] + s[g + 1 :]) for s, g in zip(sums, golds, strict=True)]
        assert of(items, "margin") == pytest.approx(margins, abs=1e-4)
    else:
        assert [item.prediction for item in items] == [one["filtered_resps"][0] for one in samples]


METHODS = {
    "hope": {"kind": "hope", "lr": 0.02, "heads": 2, "head_width": 8, "chunk": 4, "read": "boundary"},
    "sparse_memory": {"kind": "sparse_memory", "lr": 0.1, "slots": 64, "input_dependent": True},
    "gated_lora": {"kind": "lora", "lr": 0.02, "gate": {"layer": 1}, "retention": "20%"},
}


@pytest.fixture(scope="module", params=METHODS)
def adapted(request: Any, tmp_path_factory: pytest.TempPathFactory, short: Callable[..., Any]) -> tuple[Any, Any]:
    """A base and an adapter on it after two short tasks."""
    recipe = short(methods={"it": METHODS[request.param]})
    out = run_method(recipe, "it", tmp_path_factory.mktemp("runs") / "run", report=False)
    base = load_base(BaseConfig())
    return base, load_weights(weights_of(out), base)


def test_batch_size_and_neighbours_do_not_matter(adapted: Any, tasks: Any) -> None:
    """States of memories and evidence of gates begin anew with every request."""
    base, model = adapted
    for name in ("quiz", "tales", "ask"):
        evaluation = probe(tasks(name))
        by_size = [ask(model, base, evaluation, size) for size in (1, 8, 64)]
        for items in by_size[1:]:
            assert [item.item_id for item in items] == [item.item_id for item in by_size[0]]
            assert [item.prediction for item in items] == [item.prediction for item in by_size[0]]
            assert [item.value for item in items] == pytest.approx([item.value for item in by_size[0]], abs=2e-4)
        few = ask(model, base, probe(tasks(name), limit=3), 64)
        assert [item.value for item in few] == pytest.approx([item.value for item in by_size[0][: len(few)]], abs=2e-4)
    with model.disable_adapter():
        off = ask(model, base, probe(tasks("quiz")))
    assert [item.value for item in off] != [item.value for item in ask(model, base, probe(tasks("quiz")))]


def test_training_does_not_notice(tasks: Any, base: Any) -> None:
    model = base.model
    expected = ask(model, base, probe(tasks("quiz")))
    dropout = torch.nn.Dropout(0.5)
    model.add_module("extra", dropout)
    handle = model.model.layers[2].mlp.register_forward_hook(lambda _module, _args, output: dropout(output))
    try:
        model.train()
        states = random.getstate(), numpy_state(), torch.get_rng_state()
        assert ask(model, base, probe(tasks("quiz"))) == expected
        assert model.training and dropout.training
        assert (random.getstate(), numpy_state()) == states[:2]
        assert torch.equal(torch.get_rng_state(), states[2])
    finally:
        handle.remove()
        del model.extra
        model.eval()


def test_a_run_scores_it_at_every_stage(recipe: Any, tasks: Any, tmp_path: Path) -> None:
    (tmp_path / "quiz.yaml").write_text(json.dumps(tasks("quiz")), encoding="utf-8")
    probes = [{"name": "quiz", "lm_eval": str(tmp_path / "quiz.yaml"), "metric": "acc_norm", "limit": 5}]
    probes += [{"name": "tales", "lm_eval": tasks("tales")}]
    made = recipe(probes=probes, methods={"it": {"kind": "lora", "lr": 0.01}}, measure={"conditions": ["off"]})
    items = read_items(run_method(made, "it", tmp_path / "run") / "items.parquet")
    quiz = [item for item in items if item.column == "quiz"]
    assert {(item.stage, item.condition) for item in quiz} == {(0, "base"), (1, "on"), (2, "on"), (2, "off")}
    assert quiz[0].metric == "acc_norm"
    ids = {place: [i.item_id for i in quiz if (i.stage, i.condition) == place] for place in ((0, "base"), (2, "on"))}
    assert ids[0, "base"] == ids[2, "on"]
    tales = [item for item in items if item.column == "tales"]
    base, off = ([i.value for i in tales if i.condition == word] for word in ("base", "off"))
    assert base == pytest.approx(off, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lm_eval": {"task": "away", "dataset_path": "nobody/nothing", "test_split": "test"}}, "cannot be reached"),
        ({"lm_eval": "gone.yaml"}, "There is no file 'gone.yaml'"),
        ({"lm_eval": "quiz", "metric": "bleu"}, "does not have the metric 'bleu'. It has acc, acc_norm."),
    ],
)
def test_what_cannot_be_scored_is_said_before_training(
    recipe: Any, tasks: Any, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr("nlft.hub.is_reachable", lambda _: False)
    fields = {**fields, "lm_eval": tasks("quiz") if fields["lm_eval"] == "quiz" else fields["lm_eval"]}
    with pytest.raises(NlftError) as error:
        load_domains(recipe(probes=[{"name": "probe", **fields}]))
    assert said in str(error.value)
    assert str(error.value).startswith("probes.probe.lm_eval: ")


def test_without_lm_eval(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    with pytest.raises(NlftError, match=r"pip install -e \.\[lm-eval\]"):
        load_domains(recipe(probes=[{"name": "probe", "lm_eval": "hellaswag"}]))


def test_its_documents_are_part_of_the_rows(tasks: Any) -> None:
    def digest(*names: str) -> str:
        return digest_rows(Domains((), tuple(probe(tasks(name)) for name in names), (), ()))

    assert len({digest(), digest("quiz"), digest("tales")}) == 3 and digest("quiz") == digest("quiz")
