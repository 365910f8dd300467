"""A recipe that came with an adapter runs nobody's code and reads nobody's files; one's own is as it was."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nlft.adapter import own_recipe, recipe_of
from nlft.config import Recipe
from nlft.errors import RecipeError
from nlft.found_recipe import LARGEST, recipe_file
from nlft.recipes import dump_recipe


@pytest.fixture
def exported(recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe of an exported directory; the current folder is another one, with rows and a link to others."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "recipe.yaml").write_text(dump_recipe(recipe()))
    (tmp_path / "here").mkdir()
    (tmp_path / "secret.jsonl").write_text('{"text": "mine"}\n')
    (tmp_path / "here" / "rows.jsonl").write_text('{"text": "a row"}\n')
    (tmp_path / "here" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "adapter" / "recipe.yaml"


def probe(**fields: Any) -> dict[str, Any]:
    return {"probes": [{"name": "text", **fields}]}


def data(path: str) -> dict[str, Any]:
    return probe(metric="nll", data={"path": path})


def lora(**peft: Any) -> dict[str, Any]:
    return {"methods": {"lora": {"kind": "lora", "lr": 0.1, "peft": peft}}}


def test_what_an_export_writes_is_read(recipe: Callable[..., Recipe], exported: Path) -> None:
    assert own_recipe(exported) == recipe() == recipe_of(exported.parent, None)


@pytest.mark.parametrize(
    "fields", [data("rows.jsonl"), data("./rows.jsonl"), data("org/set"), data("set"), probe(lm_eval="arc_easy")]
)
def test_what_an_exported_recipe_may_ask_for(
    recipe: Callable[..., Recipe], exported: Path, fields: dict[str, Any]
) -> None:
    exported.write_text(dump_recipe(recipe(**fields)))
    assert own_recipe(exported) == recipe(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (data("/etc/passwd"), "probes.0.data.path: '/etc/passwd' lies at a place of its own"),
        (data("~/.ssh/id_rsa"), "lies at a place of its own"),
        (data(r"C:\Users\me\x.jsonl"), "lies at a place of its own"),
        (data("hf://datasets/org/x"), "lies at a place of its own"),
        (data("../secret.jsonl"), "leads out of the current folder or to hidden files"),
        (data("a/../../secret.jsonl"), "leads out of the current folder"),
        (data(".ssh/id_rsa"), "or to hidden files"),
        (data("link.jsonl"), "is a link that leads out of the current folder"),
        (probe(data={"path": "x"}, shots=1, shots_from={"path": "/etc/x"}), "probes.0.shots_from.path: '/etc/x'"),
        (probe(data={"path": "x"}, metric="org/metric"), "probes.0.metric: 'org/metric' is none of nlft's metrics"),
        (probe(data={"path": "x"}, metric="./evil.py"), "so it is code"),
        (probe(lm_eval="./evil.yaml"), "probes.0.lm_eval: './evil.yaml' is no task of lm-eval's own"),
        (probe(lm_eval={"task": "x", "doc_to_text": "{{1}}"}), "probes.0.lm_eval: a task written out is no task"),
        ({"background": {"path": "/etc/passwd"}}, "background.path: '/etc/passwd'"),
        ({"base": {"model": "/srv/model"}}, "base.model: '/srv/model' lies at a place of its own"),
        ({"base": {"model": "../model"}}, "base.model: '../model' leads out of the current folder"),
        (lora(target_modules="(a+)+b"), "methods.lora.peft.target_modules: '(a+)+b' is a pattern"),
        (lora(target_modules=["q_proj"], exclude_modules=".*x"), "methods.lora.peft.exclude_modules: '.*x' is a"),
    ],
)
def test_what_it_must_not_ask_for(
    recipe: Callable[..., Recipe], exported: Path, fields: dict[str, Any], said: str
) -> None:
    text = dump_recipe(recipe(**fields))
    exported.write_text(text)
    with pytest.raises(RecipeError) as caught:
        own_recipe(exported)
    assert said in caught.value.message and f"--recipe {exported}" in caught.value.hint
    assert recipe_of(exported.parent, str(exported)) == recipe(**fields)  # named, so it is wanted
    own = exported.with_name("config.yaml")  # of a run that was made here
    own.write_text(text)
    assert own_recipe(own) == recipe(**fields)


def test_all_problems_are_said_at_once(recipe: Callable[..., Recipe], exported: Path) -> None:
    tasks = recipe().model_dump()["tasks"]
    tasks[1] |= {"metric": "x.py", "train": {"path": "/a"}, "seen": {"path": "~/b"}}
    exported.write_text(dump_recipe(recipe(tasks=tasks, **data("/c"))))
    with pytest.raises(RecipeError) as caught:
        own_recipe(exported)
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        "tasks.1.metric",
        "tasks.1.train.path",
        "tasks.1.seen.path",
        "probes.0.data.path",
    ]


def test_code_of_the_base_and_a_place_to_write_are_left_off(recipe: Callable[..., Recipe], exported: Path) -> None:
    asked = recipe(base={"model": "builtin:tiny", "trust_remote_code": True}, out="/etc")
    exported.write_text(dump_recipe(asked))
    text = StringIO()
    assert own_recipe(exported, Console(file=text, width=300)) == recipe()
    assert "asks for base.trust_remote_code, which is left off" in text.getvalue()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [1, 1]\nb: *a\n", "has aliases"),
        ("[" * 40_000, "is nested too deeply"),
        ("- " * 40_000, "is nested too deeply"),
        ("\x00", "cannot be read"),
        ("probes: [{suite: ../x.yaml}]", "the suite '../x.yaml' is none of nlft's, and would be read from a file"),
        ("#" * (LARGEST + 1), "has 1,048,577 bytes, and a recipe at most 1,048,576"),
        ("name: <script>\n", "name"),
        ("!!python/object/apply:os.system [ls]", "is not made of"),
    ],
)
def test_text_that_no_export_writes(exported: Path, text: str, said: str) -> None:
    exported.write_text(text)
    with pytest.raises(RecipeError, match=said):
        own_recipe(exported)


def test_a_recipe_of_a_run_counts_in_its_folder_alone(exported: Path, tmp_path: Path) -> None:
    run, snapshot = tmp_path / "run", tmp_path / "snapshots" / ("ab" * 20)
    for folder in (run, snapshot):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(exported.read_text())
    assert recipe_file(run) == run / "config.yaml" and recipe_file(snapshot) is None
    for beside in ("adapter_config.json", "nlft.json"):
        (run / beside).write_text("{}")
        assert recipe_file(run) is None
        (run / "recipe.yaml").write_text(exported.read_text())
        assert recipe_file(run) == run / "recipe.yaml"
        for name in (beside, "recipe.yaml"):
            (run / name).unlink()


def test_a_link_is_not_followed(exported: Path, tmp_path: Path) -> None:
    exported.rename(tmp_path / "other.yaml")
    exported.symlink_to(tmp_path / "other.yaml")
    with pytest.raises(RecipeError, match=r"recipe.yaml is a link to .*other.yaml"):
        own_recipe(exported)
