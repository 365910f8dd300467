"""What is odd about the rows of a recipe is said aloud."""

from __future__ import annotations

from data_rows import write_jsonl

from nlft.config import Recipe
from nlft.data.domain import load_domains, remarks


def domains(tmp_path, train: list, test: list):
    task = {"name": "pets", "metric": "accuracy"}
    task |= {"train": write_jsonl(tmp_path / "a.jsonl", train), "test": write_jsonl(tmp_path / "b.jsonl", test)}
    fields = {"name": "r", "tasks": [task], "methods": {"full": {"kind": "full", "lr": 1}}}
    return load_domains(Recipe.model_validate(fields))


def labels(text: str, names: str) -> list[dict[str, str]]:
    return [{"text": f"{text}{number}", "label": name} for number, name in enumerate(names)]


def test_a_label_that_is_never_trained_is_said(tmp_path):
    assert remarks(domains(tmp_path, labels("a", "xyx"), labels("b", "xzz"))) == [
        "2 of 3 test rows of task 'pets' have a label that no train row has ('z')."
    ]
    assert remarks(domains(tmp_path, labels("a", "xyx"), labels("b", "xyy"))) == []


def test_other_rows_have_no_labels(tmp_path):
    pairs = [{"prompt": f"p{n}", "completion": f"c{n}"} for n in range(4)]
    assert remarks(domains(tmp_path, pairs[:2], pairs[2:])) == []
    assert remarks(domains(tmp_path, pairs[:2], pairs[1:])) == [
        "1 of 3 test rows of task 'pets' are also train rows.",
        "Rows of 'pets' that share 8 words in a row, or all of fewer: 33.3% with train rows.",
    ]
