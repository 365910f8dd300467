"""What a run starts from: an adapter that fits the recipe, the base and the method, or a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nlft import train
from nlft.compare import compare
from nlft.config import Recipe
from nlft.data.domain import load_domains
from nlft.errors import NlftError, RecipeError
from nlft.origin import stages_behind
from nlft.plan import address_of, plan_cells
from nlft.recipes import dump_recipe
from nlft.run import run_method
from nlft.start import as_begun, find_start
from tests.conftest import SHORT_METHODS
from tests.test_continuing import KEPT, recipe_of, task, untimed  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of people, of one step."""
    recipe = recipe_of("people", probes=[], train={"steps": 1, "batch_size": 4})
    return run_method(recipe, None, tmp_path_factory.mktemp("runs") / "alone", report=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "lora"}, "methods.lora: it trains a LORA adapter, and .* is a NLFT_SPARSE_MEMORY adapter"),
        ({"method": "product_key"}, "methods.product_key: addressing is product_key, and .* made with prototype"),
        ({"earlier": [task("books")]}, "earlier.books: .* has not learned a task 'books'. It holds people"),
        ({"tasks": [task("people")]}, "tasks.people: .* has learned 'people' already"),
        ({"base": {"dtype": "bfloat16"}}, "made for a base with other weights"),
    ],
)
def test_what_does_not_fit_is_refused(alone: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    recipe = recipe_of("ships", method=changes.pop("method", "prototype"), adapter=str(alone))
    recipe = Recipe.model_validate({**recipe.model_dump(), **changes})
    with pytest.raises(NlftError, match=said):
        run_method(recipe, None, tmp_path / "run", report=False)
    assert not (tmp_path / "run").exists()


def test_methods_without_an_adapter_are_refused(alone: Path, tmp_path: Path) -> None:
    kinds = {
        "full": SHORT_METHODS["full"],
        "apart": {"kind": "lora", "lr": 0.1, "tasks": "apart"},
        "slots": {**KEPT["prototype"], "layers": [2]},
    }
    recipe = recipe_of("ships", adapter=str(alone)).model_dump() | {"methods": kinds}
    with pytest.raises(RecipeError) as caught:
        compare(Recipe.model_validate(recipe), tmp_path / "comparison")
    assert [line.split(":")[0] for line in caught.value.problems] == ["methods.full", "methods.apart", "methods.slots"]
    assert "layers is [2]" in caught.value.problems[2]


def test_missing_rows_of_earlier_tasks_are_all_named(alone: Path) -> None:
    lost = {**task("people"), "train": "gone.jsonl", "test": "away.jsonl"}
    with pytest.raises(RecipeError) as caught:
        load_domains(recipe_of("ships", adapter="x", earlier=[lost], background="no.jsonl"))
    assert [line.split(":")[0] for line in caught.value.problems] == [
        "earlier.people.train", "earlier.people.test", "background",
    ]  # fmt: skip
    assert ["silent on them" in line and "earlier=[]" in line for line in caught.value.problems] == [True, True, False]
    with pytest.raises(ValueError, match="name that adapter by `adapter`"):
        recipe_of("ships", earlier=[task("people")])


def test_an_adapter_on_the_hub_is_pinned(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "snapshots" / ("ab" * 20)
    shutil.copytree(alone / "adapter", snapshot)
    monkeypatch.setattr("nlft.start.fetch_adapter", lambda name: snapshot)
    monkeypatch.setattr("nlft.adapter.load_file", None)  # PEFT reads the tensors, once
    found = find_start(recipe_of("ships", adapter="user/people@main"))
    assert found is not None
    assert (found.start.name, found.start.revision) == (f"user/people@{'ab' * 20}", "ab" * 20)


@pytest.mark.parametrize(
    ("named", "resumed"),
    [
        ("user/people", "user/people@" + "ab" * 20),
        ("user/people@main", "user/people@" + "ab" * 20),
        ("user/people@" + "ab" * 20, "user/people@" + "ab" * 20),
        ("user/people@" + "cd" * 20, "user/people@" + "cd" * 20),
        ("user/ships", "user/ships"),
        ("/srv/people", "/srv/people"),
    ],
)
def test_a_run_is_resumed_with_the_commit_that_it_noted(named: str, resumed: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(dump_recipe(recipe_of("ships", adapter="user/people@" + "ab" * 20)))
    assert as_begun(recipe_of("ships", adapter=named), tmp_path).adapter == resumed


def test_the_digest_knows_what_is_computed(alone: Path, tmp_path: Path) -> None:
    """Not where the adapter lies or who wrote it."""
    folder = tmp_path / "copy"
    shutil.copytree(alone / "adapter", folder)
    file = folder / "adapter_config.json"
    settings = json.loads(file.read_text())

    def digest(**fields: Any) -> str:
        file.write_text(json.dumps({**settings, **fields}, sort_keys=bool(fields)))
        found = find_start(recipe_of("ships", adapter=str(folder)))
        assert found is not None
        return found.start.digest

    known = digest()
    assert known == digest(base_model_name_or_path="/srv/x", revision="ab", nlft_version="9", inference_mode=False)
    assert known == digest(target_modules=settings["target_modules"][::-1])
    assert known != digest(gate_decay=0.5)


def test_an_adapter_that_does_not_say_what_it_has_learned_is_counted_by_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or seeds would be drawn from twice. Events count the stages of the run itself."""
    seen: list[int] = []
    sampler = train.Sampler
    monkeypatch.setattr(
        "nlft.train.Sampler", lambda rows, size, seed: seen.append(seed // 1000) or sampler(rows, size, seed)
    )
    few: dict[str, Any] = {"probes": [], "background": None, "train": {"steps": 1, "batch_size": 2}, "method": "lora"}
    first = run_method(recipe_of("people", "ships", **few), None, tmp_path / "first", report=False)
    second = recipe_of("drugs", adapter=str(first), **few)
    out = run_method(second, None, tmp_path / "second", report=False)
    assert seen == [1, 2, 3]
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    assert {event["stage"] for event in events if "stage" in event} == {1}
    assert stages_behind(out / "adapter") == 3
    assert [stages_behind(first / "stages" / str(stage) / "model") for stage in (1, 2)] == [1, 2]
    assert stages_behind(out / "stages" / "1" / "model") == 3 and stages_behind(tmp_path) == 0


def test_the_address_of_a_cell_holds_the_adapter() -> None:
    """Whatever it is called; and recipes without one keep the addresses that they had before there were adapters."""
    from_base, [one], [other] = (
        plan_cells(recipe_of("ships", **changes)) for changes in ({}, {"adapter": "x"}, {"adapter": "y"})
    )
    assert address_of(one, "b", "r", "1") == address_of(other, "b", "r", "1") != address_of(one, "b", "r", "2")
    assert address_of(from_base[0], "b", "r") not in (address_of(one, "b", "r", "1"), "")
    plain = {"tasks": [{"name": "ships", "train": "a.jsonl", "test": "b.jsonl"}]}
    plain |= {"name": "pinned", "methods": {"lora": {"kind": "lora", "lr": 0.1}}}
    [cell] = plan_cells(Recipe.model_validate(plain))
    known = "1cbcdbc8721daa020f435083b5f6f80ebc8ff952a770f77adc8df86f3b9c4a5e"  # as nlft had it then
    assert address_of(cell, "b", "r") == known
