"""Methods that train nothing: examples in the prompt, and class means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nlft.base import FrozenBase, load_base
from nlft.config import BaseConfig, ClassMeansConfig, FewShotConfig
from nlft.data.template import encode, preview
from nlft.errors import NlftError, RecipeError
from nlft.measure.items import read_items, read_runs
from nlft.measure.score import item_ids
from nlft.methods.class_means import ClassMeans, answered, prompt_states
from nlft.methods.few_shot import FewShot
from nlft.methods.protocol import TaskContext
from nlft.ops.discriminant import naive_nearest_class, nearest_class, shrunk
from nlft.run import run_method
from nlft.types import Evaluation, HarnessTask, Item, Message, Row

SHIP = Row("The Royal Seal sails from", "London", join=" ")
TEXT = Row("", "It rained all day.")
CHAT = Row("", "", messages=(Message("user", "Where is Greta?"), Message("assistant", "in Vienna")))


@pytest.fixture(scope="module")
def base() -> FrozenBase:
    return load_base(BaseConfig(device="cpu"))


def task(name: str, rows: Sequence[Row], number: int = 1) -> TaskContext:
    return TaskContext(name, [], [], [], number, 2, 8, 0, number, rows=rows)


def column(*rows: Row, name: str = "ships", role: Any = "task") -> Evaluation:
    return Evaluation(name, role, "test", rows, "nll")


def shown(method: FewShot, condition: str, evaluation: Evaluation) -> list[tuple[Row, ...]]:
    """The examples that the base is asked with."""
    seen: list[Evaluation] = []
    method.score(None, evaluation, condition, lambda _model, one: seen.append(one) or [])
    return [row.examples for row in seen[0].rows] if seen else []


TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_examples_are_read_and_neither_learned_nor_scored(base: FrozenBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """In front of a prompt, a text and a conversation; the targets stay those of the row alone."""
    monkeypatch.setattr(base.tokenizer, "chat_template", TEMPLATE)
    for row, text in (
        (SHIP, "It rained all day.\n\nThe Royal Seal sails from⟦ London"),
        (replace(TEXT, examples=(SHIP,)), "The Royal Seal sails from London\n\n⟦It rained all day."),
        (CHAT, "in Vienna"),
    ):
        given = row if row.examples else replace(row, examples=(TEXT,) if row is SHIP else (SHIP, TEXT))
        (alone,), (whole,) = (encode(one, base.tokenizer, base.context) for one in (replace(row, examples=()), given))
        assert text in preview(whole, base.tokenizer), row
        targets, both = (base.tokenizer.decode([i for i in one.labels if i >= 0]) for one in (alone, whole))
        assert len(whole.ids) > len(alone.ids) and both.strip() == targets.strip() != ""
        assert whole.n_bytes == alone.n_bytes
        assert item_ids([given]) == item_ids([replace(row, examples=())])
    system = (Message("system", "Be brief."), *CHAT.messages)
    (chat,) = encode(replace(CHAT, messages=system, examples=(SHIP, TEXT)), base.tokenizer, base.context)
    said = preview(chat, base.tokenizer)
    order = ["Be brief.", "user: The Royal", "assistant: London", "user: Where", "⟦", "in Vienna"]
    assert [said.index(part) for part in order] == sorted(said.index(part) for part in order)
    assert "rained" not in said  # nobody asked for it


def test_examples_of_all_tasks_unless_told(base: FrozenBase) -> None:
    method = FewShot(FewShotConfig(kind="few_shot", shots=2))
    model = method.attach(base, 0)
    ships = [replace(SHIP, completion=f"port {n}") for n in range(9)]
    people = [replace(SHIP, completion=f"{n} years") for n in range(9)]
    method.begin_task(model, task("ships", ships))
    first = shown(method, "on", column(SHIP))
    method.begin_task(model, task("people", people, 2))
    (dealt,) = shown(method, "on", column(SHIP))
    assert [row.completion.split()[-1] for row in dealt[::2]] == [row.completion.split()[-1] for row in first[0]]
    assert ["years" in row.completion for row in dealt] == [False, True, False, True]
    assert shown(method, "on", column(SHIP, name="facts", role="probe")) == [dealt]
    assert shown(method, "oracle", column(SHIP)) == first
    assert shown(method, "oracle", column(SHIP, name="facts", role="probe")) == [()]
    assert shown(method, "off", column(SHIP)) == [()]
    assert shown(method, "ungated", column(SHIP)) == []


def test_a_task_of_lm_eval_is_asked_of_the_base(base: FrozenBase) -> None:
    """It has no rows of its own, so there is nothing to put examples in front of and no class to choose."""
    quiz = Evaluation("quiz", "probe", "test", (), "acc", harness=HarnessTask("quiz"))
    shots, means = FewShot(FewShotConfig(kind="few_shot")), ClassMeans(ClassMeansConfig(kind="class_means"))
    items = [Item(1, "on", "quiz", "probe", "test", "acc", "1", "1", 1.0, 1.0, "x")]
    for method in (shots, means):
        model = method.attach(base, 0)
        method.begin_task(model, task("ships", [replace(SHIP, choices=("London", "Rome"), gold=0)] * 4))
        for condition in ("on", "off", "oracle"):
            asked: list[Evaluation] = []
            assert method.score(model, quiz, condition, lambda _m, one, to=asked: to.append(one) or items) == items
            assert asked == [quiz]


def test_a_margin_stays_the_base_s(base: FrozenBase) -> None:
    rows = [replace(SHIP, choices=("London", "Rome"), gold=0)] * 4
    method = ClassMeans(ClassMeansConfig(kind="class_means"))
    model = method.attach(base, 0)
    method.begin_task(model, task("ships", rows))
    items = [
        Item(1, "on", "ships", "task", "test", m, "1", "1", 0.5, 1.0, "") for m in ("margin", "accuracy") for _ in rows
    ]
    asked = replace(column(*rows), metric="margin")
    assert method.score(model, asked, "on", lambda *_: items) == items
    answers = method.score(model, replace(asked, metric="accuracy"), "on", lambda *_: items)
    assert [(one.metric, one.value) for one in answers] == [("accuracy", 1.0)] * 4


def test_as_many_examples_as_fit(base: FrozenBase, tmp_path: Path) -> None:
    """Every row on its own; one more would be too long."""
    method = FewShot(FewShotConfig(kind="few_shot", shots=30))
    method.begin_task(method.attach(base, 0), task("ships", [SHIP] * 30))
    long = replace(SHIP, prompt="The old ship, which nobody in town had ever seen before, sails from")
    few, many = (len(examples) for examples in shown(method, "on", column(long, SHIP)))
    assert 0 < few < many < 30
    for row, count in ((long, few), (SHIP, many)):
        fits, more = (method.lengths([replace(row, examples=(SHIP,) * n)])[0] for n in (count, count + 1))
        assert fits <= base.context - 8 < more
    (all_but_last,) = method.shown(column(SHIP), [SHIP, SHIP, SHIP, replace(SHIP, prompt="far " * 200 + "from")])
    assert len(all_but_last.examples) == 3, "one long example takes no room from the others"
    with pytest.raises(NlftError, match="no example fits"):
        shown(method, "on", column(replace(SHIP, prompt="far " * 118 + "from")))
    method.max_length = 60
    method.save(torch.nn.Module(), tmp_path)
    again = FewShot(method.config)
    again.load(base, tmp_path)
    assert 0 < len(shown(method, "on", column(SHIP))[0]) < many
    assert shown(again, "on", column(SHIP)) == shown(method, "on", column(SHIP)), "no longer than in the run"
    # A text that fills the context is read without.
    assert shown(method, "on", column(Row("", "far " * 125))) == [()]


def test_nearest_class_is_by_mahalanobis_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    features, means = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (50, 6))
    mix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = shrunk(mix @ mix.T)
    found = nearest_class(features, means, covariance)
    assert torch.equal(found, naive_nearest_class(features, means, covariance))
    assert not torch.equal(found, torch.cdist(features, means).argmin(1))
    assert torch.allclose(shrunk(torch.diag(torch.tensor([1.0, 3.0]))), torch.diag(torch.tensor([1.1, 2.9])))


def test_states_of_a_prompt_do_not_depend_on_its_batch(base: FrozenBase) -> None:
    prompts = [[1, 9, 30, 12], [1, 40], [1, 8, 8, 8, 8, 9]]
    for kind in ("mean", "last"):
        together = prompt_states(base.model, prompts, 0, kind)
        alone = torch.cat([prompt_states(base.model, [prompt], 0, kind) for prompt in prompts])
        assert torch.allclose(together, alone, atol=1e-5)
    with torch.no_grad():
        hidden = base.model(input_ids=torch.tensor([prompts[0]]), output_hidden_states=True).hidden_states[-1][0]
    assert torch.allclose(prompt_states(base.model, prompts[:1], 0, "mean")[0].float(), hidden.mean(0), atol=1e-5)
    assert torch.allclose(prompt_states(base.model, prompts[:1], 0, "last")[0].float(), hidden[-1], atol=1e-5)


def test_answers_take_the_place_of_the_base_s() -> None:
    rows = [Row("a", "x", choices=("x", "y"), gold=0), Row("b", "y", choices=("x", "y"), gold=1)]
    items = [Item(1, "on", "c", "task", "test", m, m, m, 0.5, 1.0, "") for _ in rows for m in ("accuracy", "nll")]
    assert [(one.value, one.prediction, one.metric) for one in answered(items, rows, ["x", "x"])] == [
        (1.0, "x", "accuracy"),
        (0.0, "x", "accuracy"),
    ]


WORDS = {"sea": ["ship", "sail", "harbour"], "sky": ["cloud", "rain", "storm"], "land": ["farm", "cow", "field"],
         "home": ["chair", "lamp", "bed"]}  # fmt: skip


def classified(tmp_path: Path, labels: Sequence[str], name: str) -> dict[str, Any]:
    """A task of texts and labels that single words give away."""
    for part, tail in (("train", ("is here", "was old", "came back")), ("test", ("is gone",))):
        rows = [{"text": f"The {word} {end}.", "label": label} for label in labels for word in WORDS[label]
                for end in tail]  # fmt: skip
        (tmp_path / f"{name}-{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"name": name, "metric": "accuracy"} | {p: str(tmp_path / f"{name}-{p}.jsonl") for p in ("train", "test")}


def test_class_means_learn_classes_task_by_task(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """Among all classes so far; what was learned first stays as it was but for new rivals; resumed bit-equal."""
    tasks = [classified(tmp_path, ("sea", "sky"), "first"), classified(tmp_path, ("land", "home"), "second")]
    setting = recipe(tasks=tasks, methods={"means": {"kind": "class_means"}}, measure={"conditions": ["oracle"]})
    whole = run_method(setting, None, tmp_path / "whole", report=False)
    (row,) = read_runs(whole / "runs.parquet")
    assert (row["status"], row["lr"], row["steps"], row["off_equals_base"]) == ("ok", 0.0, 0, True)
    assert row["stored_bytes"] > 0
    answers: dict[tuple[int, str, str], list[tuple[float, str]]] = {}
    for item in read_items(whole / "items.parquet"):
        answers.setdefault((item.stage, item.condition, item.column), []).append((item.value, item.prediction))
    assert {said for _, said in answers[1, "on", "first"]} <= {"sea", "sky"}
    assert {said for _, said in answers[1, "on", "second"]} <= {"sea", "sky"}  # no other class is known yet
    assert sum(value for value, _ in answers[2, "on", "second"]) > sum(v for v, _ in answers[1, "on", "second"]) == 0
    shares = {key: sum(value for value, _ in found) / len(found) for key, found in answers.items()}
    assert shares[2, "oracle", "second"] >= shares[2, "on", "second"] > 0.5
    assert answers[2, "on", "text"] == answers[0, "base", "text"]

    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "stages" / "2")
    for name in ("items.parquet", "runs.parquet"):
        (cut / name).unlink()
    run_method(setting, None, cut, resume=True, report=False)
    assert read_items(whole / "items.parquet") == read_items(cut / "items.parquet")


def test_class_means_need_classes(base: FrozenBase) -> None:
    method = ClassMeans(ClassMeansConfig(kind="class_means"))
    with pytest.raises(NlftError, match="no train row of task 'ships' has choices"):
        method.begin_task(method.attach(base, 0), task("ships", [SHIP]))


def test_what_trains_nothing_takes_no_rate(recipe: Callable[..., Any]) -> None:
    with pytest.raises((ValueError, RecipeError), match="less than or equal to 0"):
        recipe(methods={"x": {"kind": "few_shot", "lr": 1e-3}})
    assert recipe(methods={"x": {"kind": "few_shot"}}).methods["x"].step_counts(300) == [0]
