"""The standard sequences: what every one of them must hold, and that local ones find their rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlft.cli import main
from nlft.recipes import load_recipe, recipe_files

SETS = ("class-incremental-", "trace", "o-lora-", "facts", "smollm2-", "qwen2.5-", "llama-3.2-")
SEQUENCES = [name for name in recipe_files() if name.startswith(SETS)]
LOCAL = [name for name in SEQUENCES if name.endswith("-local") and not name.startswith("o-lora-")]
LONG = {
    *("mnli", "cb", "wic", "copa", "qqp", "boolqa", "rte", "imdb", "yelp", "amazon", "sst-2", "dbpedia", "agnews"),
    *("multirc", "yahoo"),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sweep_is_fair(name: str) -> None:
    recipe = load_recipe(name)
    methods = recipe.methods.values()
    full = [method for method in methods if method.kind == "full" and method.replay is None]
    if recipe.base.quantization == "none":
        assert any(len(method.lrs) >= 3 and min(method.lrs) <= 1e-4 for method in full), "low rates of full finetuning"
    else:
        assert not full, "weights of 4 bits cannot be trained"
    plain = [method for method in methods if method.kind == "lora" and not method.replay and not method.gate]
    assert any(len(method.lrs) >= 3 for method in plain), "LoRA is swept"
    assert any(getattr(method, "replay", None) for method in methods), "replay is a rival"
    assert recipe.probes and recipe.background


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_head_says_how_to_run_it(name: str) -> None:
    head = recipe_files()[name].read_text(encoding="utf-8").split("\nname:")[0]
    assert f"#   nlft compare {name}" in head and "# Hardware: " in head


def test_the_orders_are_the_papers() -> None:
    standard, local, long = (load_recipe(f"o-lora-{name}").compare for name in ("standard", "standard-local", "long"))
    assert standard.orders == local.orders
    assert [order[0] for order in standard.orders or []] == ["dbpedia", "dbpedia", "yahoo"]
    assert [(order[0], order[-1]) for order in long.orders or []] == [
        ("mnli", "yahoo"),
        ("multirc", "yahoo"),
        ("yelp", "wic"),
    ]
    assert all(set(order) == LONG for order in long.orders or [])


def test_groups_of_classes_are_disjoint_and_whole() -> None:
    for name, column, number in (("clinc150", "intent", 150), ("banking77", "label_text", 77)):
        tasks = load_recipe(f"class-incremental-{name}").tasks
        labels = [label for task in tasks for label in task.train.only[column]]
        assert len(labels) == len(set(labels)) == number
        assert all(task.train.only == task.test.only for task in tasks)


@pytest.mark.parametrize("name", LOCAL)
def test_local_sequences_find_their_rows(
    name: str, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("data", "models"):
        (tmp_path / folder).symlink_to(shared.resolve() / folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["validate", name])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    assert captured.out.endswith("ok\n") and "not looked up" not in captured.out


def test_validate_names_an_lm_eval_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    override = "probes=[{name: piqa, lm_eval: piqa, limit: 9}]"
    with pytest.raises(SystemExit) as stop:
        main(["validate", "demo", override])
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    assert "probes.piqa lm-eval task 'piqa', not looked up" in " ".join(captured.out.split())
    assert "Hub metric" not in captured.out
