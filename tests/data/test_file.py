"""Files of every kind become records; a malformed one is named with its line."""

from __future__ import annotations

import json

import pytest
from data_rows import PAIRS, failure, labelled, write_jsonl

from nlft.config import DataConfig
from nlft.data.source import load, load_rows
from nlft.types import Row


def test_jsonl_rows_know_their_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"prompt": "a", "completion": "b\\u2028c"}\r\n\r\n{"prompt": "d", "completion": "e"}')
    source = load(DataConfig(path=str(path)))
    assert source.rows == [
        Row("a", "b\u2028c", join=" ", source="rows.jsonl:1"),
        Row("d", "e", join=" ", source="rows.jsonl:3"),
    ]
    assert source.format == "completion"
    assert source.description == "2 rows of prompt/completion from rows.jsonl (columns prompt, completion)"


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one\u2028two\x85three"}\n', encoding="utf-8")
    assert load_rows(DataConfig(path=str(path))) == [Row("", "one\u2028two\x85three", source="rows.jsonl:1")]


@pytest.mark.parametrize("wrap", [list, lambda records: {"version": 1, "data": records}])
def test_json(tmp_path, wrap):
    (tmp_path / "rows.json").write_text(json.dumps(wrap(PAIRS)))
    rows = load_rows(DataConfig(path=str(tmp_path / "rows.json")))
    assert [row.completion for row in rows] == [pair["completion"] for pair in PAIRS]
    assert rows[9].source == "rows.json:10"


def test_csv_names_the_first_line_of_a_record(tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,completion\n"a\nb",c\n\n"d, e","f ""g"""\n')
    rows = load_rows(DataConfig(path=str(tmp_path / "rows.csv")))
    assert rows == [
        Row("a\nb", "c", join=" ", source="rows.csv:2"),
        Row("d, e", 'f "g"', join=" ", source="rows.csv:5"),
    ]


def test_csv_holds_lists_as_json(tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,choices,gold\nWhich?,"[""x"", ""y""]",1\n')
    (row,) = load_rows(DataConfig(path=str(tmp_path / "rows.csv")))
    assert (row.completion, row.choices, row.gold) == ("y", ("x", "y"), 1)


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"question": "q", "answer": "a", "answers": ["a", "b"]}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    source = load(DataConfig(path=str(tmp_path / "rows.parquet")))
    assert source.rows == [Row("q", "a", ("a", "b"), join=" ", source="rows.parquet:1")]
    assert source.description.endswith("rows.parquet (columns question, answer, answers)")


@pytest.mark.parametrize("kind", ["parquet", "saved", "saved_dict"])
def test_class_labels_become_names(tmp_path, kind):
    from datasets import DatasetDict

    dataset, path = labelled([1, 0, 1]), tmp_path / f"rows.{kind}"
    if kind == "parquet":
        dataset.to_parquet(path)
    elif kind == "saved":
        dataset.save_to_disk(path)
    else:
        DatasetDict({"train": labelled([2]), "test": dataset}).save_to_disk(path)
    rows = load_rows(DataConfig(path=str(path), split="test" if kind == "saved_dict" else "train"))
    assert [(row.completion, row.gold) for row in rows] == [("bad", 0), ("good", 1), ("bad", 0)]
    assert {row.choices for row in rows} == {("bad", "good")}
    assert rows[2].source == f"rows.{kind}:3"


def test_label_without_name(tmp_path):
    labelled([1, -1]).to_parquet(tmp_path / "rows.parquet")
    message, hint = failure(path=str(tmp_path / "rows.parquet"))
    assert message == "rows.parquet:2 has the label -1 in 'label', which names nothing."
    assert "without labels" in hint


def test_directory_is_read_in_order_of_names(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", PAIRS[3:5])
    write_jsonl(tmp_path / "a.jsonl", PAIRS[:3])
    (tmp_path / "README.md").write_text("notes")
    source = load(DataConfig(path=str(tmp_path)))
    assert [row.source for row in source.rows] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "a.jsonl:3",
        "b.jsonl:1",
        "b.jsonl:2",
    ]


def test_missing_file_names_the_nearest(tmp_path):
    write_jsonl(tmp_path / "people.jsonl", PAIRS)
    message, hint = failure("tasks.people.train", path=str(tmp_path / "peple.jsonl"))
    assert message == f"tasks.people.train: There is no file or directory {str(tmp_path / 'peple.jsonl')!r}."
    assert hint == f"Did you mean {str(tmp_path / 'people.jsonl')!r}?"
    message, hint = failure(path=str(tmp_path / "data" / "rows.txt"))
    assert "There is no file" in message and hint == f"Looked for 'data' in {tmp_path}."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b"", "r.jsonl is empty (0 bytes)."),
        ("r.jsonl", b"\n \n", "r.jsonl has no rows."),
        ("r.json", b"[]", "r.json has no rows."),
        ("r.csv", b"prompt,completion\n", "r.csv has no rows."),
        ("r.txt", b"hello", "r.txt has the extension '.txt', which is not supported."),
        (
            "r.jsonl",
            b'{"text": "a"}\n' * 6 + b'{"text": "a" "b"}\n',
            "r.jsonl line 7 is not valid JSON: Expecting ','",
        ),
        ("r.jsonl", b'{"text": "a"}\n["text"]\n', "r.jsonl:2 is a list, not an object with named fields."),
        ("r.jsonl", b"3\n", "r.jsonl:1 is a number, not an object with named fields."),
        (
            "r.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}',
            "r.jsonl line 2 is not UTF-8: byte 0xe9 at offset 24.",
        ),
        ("r.json", b'[{"text":\n }]', "r.json line 2 is not valid JSON: Expecting value (column 2)."),
        ("r.json", b'{"text": "a"}', "r.json is no list of records."),
        ("r.json", b'[{"text": "a"}, null]', "r.json:2 is null, not an object with named fields."),
        (
            "r.csv",
            b"text,label\na,b\nc,d\ne\n",
            "r.csv line 4 has 1 fields, but the header has 2 (text, label).",
        ),
        ("r.csv", b'text,label\n"a\nb",c\nd,e,f\n', "r.csv line 4 has 3 fields, but the header has 2"),
        ("r.csv", b'text,label\n"a"b,c\n', "r.csv line 2 is not valid CSV: "),
        ("r.csv", b"text,text\na,b\n", "r.csv has two columns named 'text'."),
        ("r.parquet", b"PAR1 no", "r.parquet is no readable Parquet file: "),
        (
            "r.jsonl",
            b'{"text": "\\ud800 half"}',
            "r.jsonl:1: 'text' holds half of a surrogate pair at character 0.",
        ),
    ],
)
def test_malformed_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    said, hint = failure("probes.p.data", path=str(tmp_path / name))
    assert said.startswith(f"probes.p.data: {message}")
    assert hint or name == "r.json"


def test_jsonl_named_json(tmp_path):
    (tmp_path / "r.json").write_text('{"text": "a"}\n{"text": "b"}\n')
    assert failure(path=str(tmp_path / "r.json"))[1] == "If it holds one object a line, name it .jsonl."


def test_directories_that_cannot_be_read(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    message, hint = failure(path=str(tmp_path))
    assert "holds no data file (found: notes.md)" in message and ".parquet" in hint
    write_jsonl(tmp_path / "a.jsonl", PAIRS)
    (tmp_path / "b.csv").write_text("text\na\n")
    assert "mixes .csv and .jsonl files" in failure(path=str(tmp_path))[0]


def test_saved_dataset_without_the_split(tmp_path):
    from datasets import DatasetDict

    DatasetDict({"train": labelled([2])}).save_to_disk(tmp_path / "saved")
    message, hint = failure(path=str(tmp_path / "saved"), split="tset")
    assert "has no split 'tset'" in message and hint == "It has: train."
