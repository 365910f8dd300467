"""Suites of probes in recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlft.errors import RecipeError
from nlft.recipes import dump_recipe, load_recipe, open_recipe
from nlft.suites import suite_files

RECIPE = """
name: r
tasks:
  - {name: people, train: a.jsonl, test: b.jsonl}
  - {name: text, train: a.jsonl, test: b.jsonl}
probes:
  - {name: own, data: c.jsonl}
  - {suite: SUITE}
  - {name: last, data: d.jsonl}
methods: {full: {kind: full, lr: 1e-4}}
"""
SUITE = """# Two probes.
probes:
  - {name: text, metric: nll, data: t.jsonl}
  - name: facts
    data: {path: f.jsonl, limit: 50}
"""


@pytest.fixture
def write(tmp_path: Path):
    """`write(suite, recipe)` writes both and gives the recipe's path."""

    def both(suite: str = SUITE, recipe: str = RECIPE) -> str:
        (tmp_path / "mine.yaml").write_text(suite, encoding="utf-8")
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe.replace("SUITE", str(tmp_path / "mine.yaml")), encoding="utf-8")
        return str(path)

    return both


def test_probes_take_the_place_of_a_suite(write, tmp_path: Path) -> None:
    recipe, document = open_recipe(write())
    assert [probe.name for probe in recipe.probes] == ["own", "mine-text", "facts", "last"]
    assert recipe.probes[1].metric == "nll"
    assert document.where(("probes", 2, "data", "limit")) == f"{tmp_path / 'mine.yaml'}:5"
    assert document.where(("probes", 3, "name")).endswith("recipe.yaml:9")
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(again)) == recipe


def test_a_limit_is_for_all_of_them(write) -> None:
    recipe = load_recipe(write(recipe=RECIPE.replace("SUITE}", "SUITE, limit: 60}")))
    assert [probe.data and probe.data.limit for probe in recipe.probes] == [None, 60, 50, None]


def test_overrides_reach_into_a_suite_and_name_one(write) -> None:
    path = write()
    recipe = load_recipe(path, ["probes.facts.data.limit=7", "probes.own.metric=nll"])
    assert recipe.probes[2].data and recipe.probes[2].data.limit == 7
    assert recipe.probes[0].metric == "nll"
    assert [probe.name for probe in load_recipe(path, ["probes=[{suite: world, limit: 9}]"]).probes] == [
        "facts", "sums", "stories", "stories-kl",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("suite", "entry", "said"),
    [
        (SUITE, "{suite: wrld}", "There is no suite 'wrld'. Did you mean 'world'?"),
        (SUITE, "{suite: 3}", "a suite is a name or a path, not 3"),
        (SUITE, "{suite: SUITE, only: [facts]}", "a suite takes suite and limit, not 'only'"),
        (SUITE, "{suite: SUITE, limit: 0}", "limit must be a whole number of 1 or more, not 0"),
        ("probes: []\n", "{suite: SUITE}", "has no list `probes`"),
        ("probes: [a\n", "{suite: SUITE}", "cannot be read as YAML"),
        ("name: x\n" + SUITE, "{suite: SUITE}", "holds 'name'"),
        ("probes: [{suite: world}]\n", "{suite: SUITE}", "names another suite"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, suite: str, entry: str, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(suite, RECIPE.replace("{suite: SUITE}", entry) + "trian: 3\n"))
    assert len(error.value.problems) == 2, "the other mistake is said as well"
    assert said in error.value.problems[0]
    assert "recipe.yaml:8: probes.1.suite: " in error.value.problems[0]


def test_a_mistake_in_a_suite_has_the_suites_line(write, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(SUITE.replace("metric: nll", "metrc: nll")))
    assert error.value.problems == [f"{tmp_path / 'mine.yaml'}:3: probes.1.metrc: unknown key; did you mean 'metric'?"]


def test_what_is_no_name_and_no_number_is_said(write) -> None:
    suite = "probes:\n  - {name: [a], data: t.jsonl}\n  - {name: b, data: {path: t.jsonl, limit: x}}\n"
    with pytest.raises(RecipeError) as error:
        load_recipe(write(suite, RECIPE.replace("{suite: SUITE}", "{suite: SUITE, limit: 5}")))
    said = "\n".join(error.value.problems)
    assert "probes.1.name" in said and "probes.2.data.limit" in said


@pytest.mark.parametrize("name", list(suite_files()))
def test_built_in_suites_are_probes(write, name: str) -> None:
    recipe = load_recipe(write(recipe=RECIPE.replace("{suite: SUITE}", f"{{suite: {name}, limit: 4}}")))
    assert len(recipe.probes) > 5
    assert {"world", "knowledge", "local-small", "lm-eval-core"} <= set(suite_files())


def test_the_world_suite_loads_and_the_base_knows_it() -> None:
    import yaml

    from nlft.config import Recipe
    from nlft.data.domain import load_domains
    from nlft.suites import suite_files

    probes = yaml.safe_load(suite_files()["world"].read_text(encoding="utf-8"))["probes"]
    part = {"path": "builtin:world/tasks/people/train", "limit": 4}
    task = {"name": "people", "train": part, "test": {**part, "path": "builtin:world/tasks/people/test"}}
    fields = {"name": "r", "tasks": [task], "probes": probes, "methods": {"full": {"kind": "full", "lr": 1}}}
    domains = load_domains(Recipe.model_validate(fields))
    assert [len(probe.rows) for probe in domains.probes] == [240, 60, 50, 50]
