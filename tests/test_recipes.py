"""Recipes are read with overrides, and every error is a sentence with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlft.document import dump, parse, scalar
from nlft.errors import RecipeError
from nlft.recipes import dump_recipe, find_recipe, load_recipe, recipe_files

GOOD = """\
name: small
tasks:
  - name: law
    train: law.jsonl
    test: {path: test.jsonl, limit: 5}
background: text.jsonl
methods:
  lora:
    kind: lora
    lr: 1e-3
  memory:
    kind: sparse_memory
    lr: [1e-3, 3e-3]
train:
  steps: 50
"""

A_NAME = "a name holds letters, digits, spaces, '_', '.' and '-', and begins with a letter or digit"
KINDS = "allowed: full, lora, sparse_memory, cms, hope, few_shot, class_means."
SCHEDULES = "allowed: constant, linear, cosine."
TWICE = "this key is written twice, first in line"


@pytest.fixture
def recipe_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(GOOD, encoding="utf-8")
    return "r.yaml"


def problems_of(text: str, overrides: list[str] | None = None) -> list[str]:
    Path("r.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("r.yaml", overrides)
    return caught.value.problems


def test_values_arrive(recipe_path: str) -> None:
    recipe = load_recipe(recipe_path)
    assert recipe.methods["lora"].lr == 1e-3
    assert recipe.methods["memory"].lrs == [1e-3, 3e-3]
    assert recipe.tasks[0].train.path == "law.jsonl"
    assert recipe.train.steps == 50
    assert recipe.train.batch_size == 16


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("train.steps=7", lambda r: r.train.steps == 7),
        ("train.steps=1e3", lambda r: r.train.steps == 1000),
        ("methods.lora.lr=2e-4", lambda r: r.methods["lora"].lr == 2e-4),
        ("methods.lora.lr=[1e-3,3e-3]", lambda r: r.methods["lora"].lr == [1e-3, 3e-3]),
        ("tasks.0.name=tax", lambda r: r.tasks[0].name == "tax"),
        ("tasks.law.test.limit=9", lambda r: r.tasks[0].test.limit == 9),
        (
            "tasks.0.train.limit=3",
            lambda r: (r.tasks[0].train.path, r.tasks[0].train.limit) == ("law.jsonl", 3),
        ),
        ("train.seeds.data=4", lambda r: r.train.seeds.data == 4),
        ("methods.lora.replay.ratio=2", lambda r: r.methods["lora"].replay.ratio == 2.0),
        ("methods.full={kind: full, lr: 1e-5}", lambda r: r.methods["full"].lr == 1e-5),
        ("base.revision=a=b", lambda r: r.base.revision == "a=b"),
        ("train.max_length=", lambda r: r.train.max_length is None),
        (
            "methods.lora.gate=prototype",
            lambda r: (r.methods["lora"].gate.kind, r.methods["lora"].gate.decay) == ("prototype", 1),
        ),
        ("methods.memory.gate.layer=2", lambda r: r.methods["memory"].gate.layer == 2),
        ("methods.memory.retention=1%", lambda r: r.methods["memory"].retention.budget == 0.01),
        ("methods.memory.retention=0.5 %", lambda r: r.methods["memory"].retention.budget == 0.005),
        ("methods.memory.retention=0.02", lambda r: r.methods["memory"].retention.budget == 0.02),
        (
            "methods.memory.retention={budget: 2%, of: tokens}",
            lambda r: (r.methods["memory"].retention.budget, r.methods["memory"].retention.of) == (0.02, "tokens"),
        ),
    ],
)
def test_overrides(recipe_path: str, override: str, read) -> None:
    assert read(load_recipe(recipe_path, [override]))


def test_later_overrides_win(recipe_path: str) -> None:
    assert load_recipe(recipe_path, ["train.steps=1", "train={}", "train.steps=3"]).train.steps == 3


@pytest.mark.parametrize("name", list(recipe_files()))
def test_builtin_recipes_load_and_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["base.revision='1e-4'", "train.steps=3"])
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(str(copy)) == recipe
    assert recipe.base.revision == "1e-4"


def test_a_result_folder_is_a_recipe(recipe_path: str) -> None:
    recipe = load_recipe(recipe_path)
    Path("run").mkdir()
    Path("run/config.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe("run") == recipe


@pytest.mark.parametrize(
    "value", ["1e-4", "no", "2024-01-01", "1:30", "010", "null", "true", "", "é: #x", "1_0", "0x1f"]
)
def test_text_stays_text(value: str) -> None:
    assert parse(dump({"a": value}), "").data == {"a": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("12", 12),
        ("-0", 0),
        ("true", True),
        ("~", None),
    ],
)
def test_scalars(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_words_of_yaml_1_1_are_text() -> None:
    assert [scalar(text) for text in ("no", "on", "1:30", "2024-01-01", "010")] == [
        "no",
        "on",
        "1:30",
        "2024-01-01",
        "010",
    ]


def test_merge_keys_and_anchors(recipe_path: str) -> None:
    text = GOOD.replace("  lora:\n", "  lora: &lora\n").replace(
        "train:\n  s", "  two:\n    <<: *lora\n    lr: 5e-3\ntrain:\n  s"
    )
    Path(recipe_path).write_text(text, encoding="utf-8")
    method = load_recipe(recipe_path).methods["two"]
    assert (method.kind, method.lr) == ("lora", 5e-3)


def test_all_errors_at_once(recipe_path: str) -> None:
    text = GOOD.replace("steps: 50", "stepz: 50").replace("kind: lora", "kind: loraa").replace("limit: 5", "limit: 0")
    found = problems_of(text, ["measure.batch_size=no", "tasks.4.name=x", "nonsense"])
    assert found == [
        "override tasks.4.name=x: tasks has the entries 0 (law), and no '4'.",
        "override nonsense: write it as key=value, for instance train.steps=50.",
        "r.yaml:5: tasks.0.test.limit: must be 1 or more, not 0.",
        f"r.yaml:9: methods.lora.kind: 'loraa' is not possible; {KINDS} Did you mean 'lora'?",
        "r.yaml:15: train.stepz: unknown key; did you mean 'steps'?",
        "override measure.batch_size=no: measure.batch_size: must be a whole number, not 'no'.",
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "problem"),
    [
        ("lr: 1e-3", "lr: -1", 10, "methods.lora.lr: must be greater than 0, not -1."),
        ("lr: 1e-3", "lr: fast", 10, "methods.lora.lr: must be a number, not 'fast'."),
        ("lr: 1e-3", "lr: []", 10, "methods.lora.lr: must be a list with at least 1 entry, not []."),
        ("lr: 1e-3", "lr: .nan", 10, "methods.lora.lr: must be a finite number, not nan."),
        ("[1e-3, 3e-3]", "[1e-3, 0]", 13, "methods.memory.lr.1: must be greater than 0, not 0."),
        ("lr: 1e-3", "lr: 1e-3\n    lrr: 2", 11, "methods.lora.lrr: unknown key; did you mean 'lr'?"),
        ("steps: 50", "steps: true", 15, "train.steps: must be a number, not true."),
        ("steps: 50", "schedule: cosin", 15,
         f"train.schedule: 'cosin' is not possible; {SCHEDULES} Did you mean 'cosine'?"),
        ("name: law", "name: 7", 3, "tasks.0.name: must be text; put it in quotes, not 7."),
        ("name: law", "name: a/b", 3, f"tasks.0.name: {A_NAME}, not 'a/b'."),
        ("train:\n  steps: 50", "train:", 14, "train: must be a section of `key: value` lines, not empty."),
        ("steps: 50", "steps: 50\n  steps: 6", 16, f"train.steps: {TWICE} 15; keep one."),
        ("    kind: lora\n", "", 8, f"methods.lora.kind: this key is missing; {KINDS}"),
        ("  steps: 50", "  stpes: 50\ntrain:\n  steps: 6", 16, f"train: {TWICE} 14; keep one."),
    ],
)  # fmt: skip
def test_one_error(recipe_path: str, old: str, new: str, line: int, problem: str) -> None:
    assert old in GOOD
    assert problems_of(GOOD.replace(old, new, 1))[0] == f"r.yaml:{line}: {problem}"


def test_errors_across_sections(recipe_path: str) -> None:
    needs = "methods.memory: needs `background`: general text for its statistics or replay."
    assert problems_of(GOOD.replace("background: text.jsonl\n", "")) == [f"r.yaml:10: {needs}"]
    twice = "'law' is the name of a task and of a probe; rename one."
    assert problems_of(GOOD, ["probes=[{name: law, data: x}]"]) == [
        f"r.yaml and override probes=[{{name: law, data: x}}]: {twice}"
    ]
    again = "tasks: the name 'law' is used twice; give every entry a name of its own."
    assert problems_of(GOOD.replace("background", "  - {name: law, train: x, test: y}\nbackground")) == [
        f"r.yaml:2: {again}"
    ]


def test_problems_of_both_copies_of_a_section_are_found(recipe_path: str) -> None:
    assert len(problems_of(GOOD + "train:\n  stepz: 1\n  batch_size: 0\n")) == 3


def test_missing_key_is_explained(recipe_path: str) -> None:
    (problem,) = problems_of(GOOD.replace("    test: {path: test.jsonl, limit: 5}\n", ""))
    assert problem.startswith("r.yaml:3: tasks.0.test: this key is missing. It holds: Rows that are never trained on")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "r.yaml is empty."),
        ("- a\n", "r.yaml is not made of `key: value` lines."),
        ("name: [1\ntrain: 2\n", "r.yaml:2: this is not valid YAML:"),
        ("name: x\n\ttrain: 1\n", "r.yaml:2: this is not valid YAML:"),
        ("a: &a [*a]\n", "r.yaml:1: this is not valid YAML: an alias that contains itself"),
        ("? [a]\n: 1\n", "r.yaml:1: this is not valid YAML: a key must be one word"),
        (
            "a: !!python/object:os.system 1\n",
            "r.yaml:1: this is not valid YAML: could not determine a constructor",
        ),
    ],
)
def test_text_that_is_no_recipe(recipe_path: str, text: str, problem: str) -> None:
    (found,) = problems_of(text)
    assert found.startswith(problem)


def test_a_binary_file_is_refused(recipe_path: str) -> None:
    Path(recipe_path).write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RecipeError, match="is not a text file"):
        load_recipe(recipe_path)


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"no recipe called 'dmeo'\. Did you mean 'demo'"):
        load_recipe("dmeo")
    with pytest.raises(RecipeError, match=r"no file 'x/demo\.yaml'.*recipe is called demo"):
        load_recipe("x/demo.yaml")
    with pytest.raises(RecipeError, match=r"without a config\.yaml"):
        load_recipe(".")
    assert find_recipe("demo").name == "demo.yaml"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tasks.law.name=two", "r.yaml:2 and override tasks.law.name=two: tasks: the name 'two' is used twice"),
        ("methods.x.lr=1", "override methods.x.lr=1: methods.x.kind: this key is missing"),
    ],
)
def test_a_mistake_of_an_override_names_it(recipe_path: str, override: str, said: str) -> None:
    two = GOOD.replace("background:", "  - {name: two, train: a.jsonl, test: a.jsonl}\nbackground:")
    (problem,) = problems_of(two, ["train.steps=5", override])
    assert problem.startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("methods.memory.gate=prototyp", "methods.memory.gate.kind: 'prototyp' is not possible"),
        ("methods.memory.gate.decay=1.5", "methods.memory.gate.decay: must be 1 or less, not 1.5"),
        ("methods.memory.gate.layer=-1", "methods.memory.gate.layer: must be 0 or more, not -1"),
        ("methods.memory.gate.slot=5", "methods.memory.gate.slot: unknown key; did you mean 'slots'?"),
        ("methods.memory.retention=0%", "methods.memory.retention.budget: must be greater than 0"),
        ("methods.memory.retention=100%", "methods.memory.retention.budget: must be less than 1"),
        ("methods.memory.retention=1", "methods.memory.retention.budget: must be less than 1"),
        ("methods.memory.retention=a lot", "methods.memory.retention.budget: must be a number, not 'a lot'"),
        ("methods.memory.retention=1.2.3%", "methods.memory.retention.budget: must be a number, not '1.2.3%'"),
        ("methods.memory.retention=[1%]", "methods.memory.retention.budget: must be a number"),
        ("methods.memory.retention.of=row", "methods.memory.retention.of: 'row' is not possible"),
        ("methods.lora.retention=1%", "methods.lora: `retention` and `layers` belong to a gate; add `gate: prototype`"),
        ("methods.lora.layers=[1]", "methods.lora: `retention` and `layers` belong to a gate; add `gate: prototype`"),
    ],
)
def test_gates_and_budgets(recipe_path: str, override: str, said: str) -> None:
    [problem] = problems_of(GOOD, [override])
    assert said in problem


def test_a_gate_needs_a_background(recipe_path: str) -> None:
    lora = GOOD.replace("  memory:\n    kind: sparse_memory\n    lr: [1e-3, 3e-3]\n", "").replace(
        "background: text.jsonl\n", ""
    )
    (problem,) = problems_of(lora, ["methods.lora.gate=prototype"])
    assert "methods.lora: needs `background`" in problem
