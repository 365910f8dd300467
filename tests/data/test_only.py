"""`only`: some records of a file, by the values of a column; and columns inside structures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nlft.config import DataConfig
from nlft.data.source import load, share_choices
from nlft.errors import DataError

RECORDS = [
    {"text": f"row {i}", "label": label, "domain": domain}
    for i, (label, domain) in enumerate([("fly", "travel"), ("pay", "bank"), ("hotel", "travel"), ("pay", "bank")])
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")
    return str(file)


def test_kept_rows_choose_among_all_labels(path: str) -> None:
    source = load(DataConfig.model_validate({"path": path, "only": {"domain": "travel"}}))
    assert [row.completion for row in source.rows] == ["fly", "hotel"]
    assert {row.choices for row in source.rows} == {("fly", "hotel", "pay")}, "class-incremental, not task-incremental"
    shared = share_choices(source.rows, load(DataConfig.model_validate({"path": path, "only": {"label": "pay"}})).rows)
    assert [row.choices[row.gold or 0] for row in shared] == ["pay", "pay"]


def test_columns_must_agree_and_limit_counts_what_is_kept(path: str) -> None:
    both = {"path": path, "only": {"domain": ["travel", "bank"], "label": ["pay"]}}
    assert [row.prompt for row in load(DataConfig.model_validate(both)).rows] == ["row 1", "row 3"]
    one = load(DataConfig.model_validate(both | {"limit": 1}))
    assert len(one.rows) == 1 and one.description.startswith("1 of 2 rows")


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ({"domain": ["travel", "sea"]}, "only.domain: no record of rows.jsonl has 'sea' there"),
        ({"topic": "travel"}, "only.topic: no record of rows.jsonl has 'travel' there"),
        ({"domain": "travel", "label": "pay"}, "no record of rows.jsonl has all of"),
    ],
)
def test_what_selects_nothing_is_an_error(path: str, only: dict, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        load(DataConfig.model_validate({"path": path, "only": only}))


def test_the_world_has_no_columns() -> None:
    with pytest.raises(DataError, match=r"only is .* but has no effect"):
        load(DataConfig.model_validate({"path": "builtin:world/base/probe", "only": {"a": "b"}}))


def test_fields_of_a_structure_are_columns(tmp_path: Path) -> None:
    from datasets import Dataset

    rows = [{"question": "Q", "answer": {"value": "A", "aliases": ["A", "a"]}, "turns": [{"role": "user"}]}]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    columns = {"completion": "answer.value", "answers": "answer.aliases"}
    (row,) = load(DataConfig.model_validate({"path": str(tmp_path / "saved"), "columns": columns})).rows
    assert (row.prompt, row.completion, row.answers) == ("Q", "A", ("A", "a"))
