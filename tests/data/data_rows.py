"""Rows and failures of data sections, written short for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nlft.config import DataConfig
from nlft.data.source import load, load_rows
from nlft.errors import DataError
from nlft.types import Row

PAIRS = [{"prompt": f"What is {i}?", "completion": f"It is {i * i}."} for i in range(10)]


def write_jsonl(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def rows_of(path: Path, records: list[Any], **fields: Any) -> list[Row]:
    return load_rows(DataConfig(path=write_jsonl(path, records), **fields))


def failure(where: str = "", **fields: Any) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        load(DataConfig(**fields), where)
    return caught.value.message, caught.value.hint


def failure_of(path: Path, records: list[Any], **fields: Any) -> tuple[str, str]:
    return failure(path=write_jsonl(path, records), **fields)


def labelled(values: list[int]) -> Any:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["good", "bad", "odd"])})
    return Dataset.from_dict({"text": [f"t{i}" for i in range(len(values))], "label": values}, features=features)
