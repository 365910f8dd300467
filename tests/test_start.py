"""What a run starts from: an adapter that fits the recipe, the base and the method, or a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from nlft.compare import compare
from nlft.config import Recipe
from nlft.data.domain import load_domains
from nlft.errors import NlftError, RecipeError
from nlft.plan import address_of, plan_cells
from nlft.run import run_method
from nlft.start import find_start
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
    found = find_start(recipe_of("ships", adapter="user/people@main"))
    assert found is not None
    assert (found.start.name, found.start.revision) == (f"user/people@{'ab' * 20}", "ab" * 20)


def test_the_address_of_a_cell_holds_the_adapter() -> None:
    """Whatever it is called; and recipes without one keep the addresses that they had before there were adapters."""
    from_base, [one], [other] = (
        plan_cells(recipe_of("ships", **changes)) for changes in ({}, {"adapter": "x"}, {"adapter": "y"})
    )
    assert address_of(one, "b", "r", "1") == address_of(other, "b", "r", "1") != address_of(one, "b", "r", "2")
    fields = from_base[0].recipe.model_dump(mode="json")
    assert address_of(from_base[0], "b", "r") not in (address_of(one, "b", "r", "1"), "")
    assert fields["adapter"] is None and fields["earlier"] == []
