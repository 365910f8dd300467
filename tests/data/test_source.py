"""Data sections become rows: from the Hub, the built-in world, and parts of real files."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from data_rows import PAIRS, failure, failure_of, labelled, rows_of, write_jsonl

from nlft.config import DataConfig
from nlft.data.source import load, load_rows, share_choices
from nlft.types import Row


@pytest.fixture(autouse=True)
def network(monkeypatch) -> None:
    """Tests behave as if the Hub answered, whether or not it does."""
    monkeypatch.setattr("nlft.hub.is_reachable", lambda endpoint: True)


def test_hub(monkeypatch, tmp_path):
    import datasets

    calls = []

    def load_dataset(path: str, **options: Any) -> Any:
        calls.append((path, options["name"], options["split"], options["revision"]))
        return labelled([2, 1])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    config = DataConfig(path="someone/things", split="test", name="plain", revision="v1")
    rows = load_rows(config)
    assert calls == [("someone/things", "plain", "test", "v1")]
    assert [(row.completion, row.source) for row in rows] == [
        ("odd", "someone/things:1"),
        ("bad", "someone/things:2"),
    ]


@pytest.mark.parametrize("kind", ["connection", "missing", "value"])
def test_hub_failure_is_a_sentence(monkeypatch, tmp_path, kind):
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    error = {
        "connection": ConnectionError("no route\nand a long trace"),
        "missing": DatasetNotFoundError("not on the Hub"),
        "value": ValueError("Config name is missing."),
    }[kind]

    def load_dataset(*args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thinks").mkdir()
    message, hint = failure("tasks.a.train", path="things")
    reason = str(error).split("\n")[0]
    assert message == f"tasks.a.train: 'things' is no file or directory here, and the Hub did not give it: {reason}"
    assert hint.startswith("Did you mean 'thinks'?") and "`name`" in hint


def test_without_network_the_cache_alone_is_asked(monkeypatch, tmp_path):
    """The Hub's client would retry for half a minute."""
    import datasets
    from datasets import config as settings
    from huggingface_hub import constants

    def load_dataset(*args: Any, **options: Any) -> Any:
        assert constants.is_offline_mode() and settings.HF_HUB_OFFLINE
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("nlft.hub.is_reachable", lambda endpoint: False)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.chdir(tmp_path)
    message, _ = failure(path="someone/things")
    assert message.endswith("the Hub did not give it: it cannot be reached, and its cache does not hold it.")
    assert not constants.is_offline_mode() and not settings.HF_HUB_OFFLINE


def test_a_name_in_a_folder_that_is_here_is_no_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pets-train").mkdir()
    message, hint = failure(path="data/pets-trian")
    assert message == "There is no file or directory 'data/pets-trian'."
    assert hint == "Did you mean 'data/pets-train'?"


def test_built_in_world():
    world = pytest.importorskip("nlft.data.world")
    source = load(DataConfig(path=f"builtin:world/tasks/{world.TASKS[0]}/train"))
    assert source.rows == world.rows(f"tasks/{world.TASKS[0]}/train")
    assert source.format == "completion"
    message, hint = failure("tasks.a.train", path="builtin:word/x")
    assert message == "tasks.a.train: There is no built-in data 'builtin:word/x'." and "builtin:world/" in hint


def test_share_choices(tmp_path):
    train = rows_of(tmp_path / "a.jsonl", [{"text": "t", "label": label} for label in "dba"])
    test = rows_of(tmp_path / "b.jsonl", [{"text": "t", "label": label} for label in "cb"])
    shared = share_choices(train, test)
    assert [(row.choices, row.gold, row.completion) for row in shared] == [
        (("a", "b", "c", "d"), 2, "c"),
        (("a", "b", "c", "d"), 1, "b"),
    ]
    own = [Row("q", "x", choices=("x", "y"), gold=0), Row("q", "z", choices=("w", "z"), gold=1)]
    assert share_choices(train, own) == own
    assert share_choices(own, test) == test
    assert share_choices([], test) == test


def test_parts_are_disjoint_seeded_and_in_order(tmp_path):
    path = tmp_path / "r.jsonl"
    parts = [rows_of(path, PAIRS, skip=skip, limit=limit) for skip, limit in ((0, 3), (3, 4), (7, None))]
    numbers = [[int(row.source.split(":")[1]) for row in part] for part in parts]
    assert [len(part) for part in numbers] == [3, 4, 3]
    assert sorted(chain.from_iterable(numbers)) == list(range(1, 11))
    assert all(part == sorted(part) for part in numbers)
    assert rows_of(path, PAIRS, skip=3, limit=4) == parts[1]
    others = [rows_of(path, PAIRS, limit=3, sample_seed=seed) for seed in (1, 2, 3)]
    assert any(other != parts[0] for other in others)
    assert [row.source for row in rows_of(path, PAIRS)] == [f"r.jsonl:{i}" for i in range(1, 11)]


def test_parts_are_said_aloud(tmp_path):
    config = DataConfig(path=write_jsonl(tmp_path / "r.jsonl", PAIRS), skip=8, limit=100)
    assert load(config).description.startswith("2 of 10 rows of prompt/completion from r.jsonl")


def test_keys_without_effect_are_refused(tmp_path):
    write_jsonl(tmp_path / "test.jsonl", PAIRS)
    message, hint = failure(path=str(tmp_path), split="test")
    assert message == f"split is 'test', but has no effect on {str(tmp_path)!r}." and "name that file" in hint


def test_skip_beyond_the_end(tmp_path):
    message, _ = failure_of(tmp_path / "r.jsonl", PAIRS, skip=10)
    assert message.startswith("skip is 10, but r.jsonl") and message.endswith("has 10 rows.")


REAL = {
    "classification/banking77_train": (10003, "label"),
    "classification/clinc150_test": (5500, "label"),
    "closed_book_qa/nq_open_dev": (3610, "completion"),
    "closed_book_qa/popqa_dev": (969, "completion"),
    "domains/medical_medquad": (2851, "completion"),
    "domains/finance_tatqa_text_dev": (278, "text"),
    "domains/trace_C-STANCE_test": (100, "completion"),
    "domains/trace_Py150_test": (100, "completion"),
    "skills/hellaswag_val_1k": (1000, "completion"),
    "skills/gsm8k_test": (1319, "completion"),
    "text/wikitext2_test": (2891, "text"),
    "text/tinystories_sample": (2317, "text"),
}


@pytest.mark.parametrize("name", list(REAL))
def test_real_files(shared, name):
    path = shared / "data" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path}")
    source = load(DataConfig(path=str(path)))
    assert (len(source.rows), source.format) == REAL[name]
    assert source.rows[-1].source == f"{path.name}:{len(source.rows)}"
    assert all(row.completion for row in source.rows)
    if name == "skills/hellaswag_val_1k":
        assert all(len(row.choices) == 4 and row.choices[row.gold or 0] == row.completion for row in source.rows)
    if name == "classification/banking77_train":
        assert len(source.rows[0].choices) == 77
    if name == "closed_book_qa/nq_open_dev":
        assert source.rows[0].answers == ("14 December 1972 UTC", "December 1972")
