"""Layouts are recognised; a row that does not fit is an error that names it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from data_rows import PAIRS, failure_of, rows_of, write_jsonl

from nlft.config import DataConfig
from nlft.data.source import load
from nlft.types import Message, Row


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "q", "answer": "a"}, Row("q", "a")),
        ({"instruction": "do", "output": "o"}, Row("do", "o")),
        ({"instruction": "do", "input": "this", "response": "o"}, Row("do\nthis", "o")),
        ({"instruction": "do", "input": "", "output": "o", "text": "all of it"}, Row("do", "o")),
        ({"prompt": "q", "answers": ["a", "b"]}, Row("q", "a", ("a", "b"))),
        ({"prompt": "q", "choices": ["x", "y"], "gold": 1}, Row("q", "y", choices=("x", "y"), gold=1)),
        (
            {"prompt": "q", "completion": "x", "choices": ["x", "y"]},
            Row("q", "x", choices=("x", "y"), gold=0),
        ),
        ({"prompt": "q", "completion": "a", "cluster": 7}, Row("q", "a", cluster="7")),
        ({"prompt": "q", "input": 5, "completion": "a"}, Row("q", "a")),
    ],
)
def test_completion_layouts(tmp_path, record, expected):

    rows = rows_of(tmp_path / "r.jsonl", [record])
    assert rows == [replace(expected, join=" ", source="r.jsonl:1")]


@pytest.mark.parametrize(
    ("prompt", "completion", "join"),
    [("a", "b", " "), ("a ", "b", ""), ("a\n", "b", ""), ("a", " b", ""), ("a", "\tb", ""), ("a:", "b", " ")],
)
def test_join_only_where_no_white_space_is(tmp_path, prompt, completion, join):
    (row,) = rows_of(tmp_path / "r.jsonl", [{"prompt": prompt, "completion": completion}])
    assert row.join == join
    (row,) = rows_of(tmp_path / "r.jsonl", [{"prompt": prompt, "completion": completion}], join=" => ")
    assert row.join == (" => " if join else "")


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], "prompt": "hi"},
    ],
)
def test_messages(tmp_path, record):
    source = load(DataConfig(path=write_jsonl(tmp_path / "r.jsonl", [record])))
    assert source.rows == [
        Row("", "", messages=(Message("user", "hi"), Message("assistant", "ho")), source="r.jsonl:1")
    ]
    assert source.format == "messages"


def test_labels_are_sorted_choices_of_the_whole_file(tmp_path):
    records = [{"text": f"t{i}", "label": label} for i, label in enumerate(["c", "a", "b", "a", 7])]
    rows = rows_of(tmp_path / "r.jsonl", records, limit=2)
    assert len(rows) == 2 and {row.choices for row in rows} == {("7", "a", "b", "c")}
    rows = rows_of(tmp_path / "r.jsonl", records)
    assert [(row.prompt, row.completion, row.gold) for row in rows] == [
        ("t0", "c", 3),
        ("t1", "a", 1),
        ("t2", "b", 2),
        ("t3", "a", 1),
        ("t4", "7", 0),
    ]


def test_plain_text_says_what_it_leaves_out(tmp_path):
    source = load(DataConfig(path=write_jsonl(tmp_path / "r.jsonl", [{"text": "once", "url": "u"}])))
    assert source.rows == [Row("", "once", source="r.jsonl:1")]
    assert source.description == "1 row of plain text from r.jsonl (columns text; not used: url)"


def test_own_columns_and_format(tmp_path):
    records = [{"text": "t", "label": "l", "id": 3, "said": "s"}]
    (row,) = rows_of(tmp_path / "r.jsonl", records, columns={"prompt": "text", "completion": "said", "cluster": "id"})
    assert row == Row("t", "s", join=" ", source="r.jsonl:1", cluster="3")
    (row,) = rows_of(tmp_path / "r.jsonl", records, format="text")
    assert row == Row("", "t", source="r.jsonl:1")


def test_a_column_that_is_taken_has_no_second_meaning(tmp_path):
    records = [{"question": "Who wrote it?", "instruction": "Ask for the author."}]
    (row,) = rows_of(tmp_path / "r.jsonl", records, columns={"completion": "question"})
    assert (row.prompt, row.completion) == ("Ask for the author.", "Who wrote it?")


GOOD = {"prompt": "p", "completion": "c"}


USER, BOT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "p"}, " has no 'completion'."),
        ({"prompt": "p", "completion": None}, " has no 'completion'."),
        ({"prompt": "p", "completion": ""}, ": 'completion' is empty."),
        ({"prompt": " ", "completion": "c"}, ": 'prompt' is empty."),
        ({"prompt": "p", "completion": 3}, ": 'completion' must be text, but is 3."),
        ({"prompt": ["p"], "completion": "c"}, ": 'prompt' must be text, but is ['p']."),
        ({**GOOD, "answers": []}, ": 'answers' must be a list of texts, but is []."),
        (
            {**GOOD, "answers": {"text": ["c"]}},
            ": 'answers' must be a list of texts, but is {'text': ['c']}.",
        ),
        ({**GOOD, "choices": ["c", "d"], "gold": 2}, ": 'gold' is 2, but must index its 2 choices."),
        ({**GOOD, "choices": ["c", "d"], "gold": True}, ": 'gold' is True, but must index its 2 choices."),
        ({**GOOD, "choices": ["c", "d"], "gold": 1}, ": gold is 1, which is 'd', but the completion is 'c'."),
        ({**GOOD, "choices": ["d", "e"], "gold": None}, ": 'gold' is missing, but must index its 2 choices."),
    ],
)
def test_bad_completion_rows(tmp_path, record, message):
    records = [{**GOOD, "answers": ["c"], "choices": ["c", "d"], "gold": 0}, record]
    assert failure_of(tmp_path / "r.jsonl", records)[0] == f"r.jsonl:2{message}"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, ": 'messages' must be a list of turns, but is missing."),
        ([], ": 'messages' must be a list of turns, but is []."),
        ([USER], " ends with a turn of 'user', so nothing there can be learned."),
        ([USER, BOT, USER], " ends with a turn of 'user', so nothing there can be learned."),
        ([USER, {"role": "assistant", "content": " "}], ": turn 2 of the assistant is empty."),
        ([USER, {"role": "assistant"}], ": turn 2 is {'role': 'assistant'}."),
        (["hi", BOT], ": turn 1 is 'hi'."),
    ],
)
def test_bad_conversations(tmp_path, messages, message):
    records = [{"messages": [USER, BOT]}, {"messages": messages}]
    assert failure_of(tmp_path / "r.jsonl", records)[0] == f"r.jsonl:2{message}"


def test_bad_labels(tmp_path):
    for label, message in ((None, " has no 'label'."), (True, ": 'label' must be text, but is True.")):
        records = [{"text": "t", "label": "l"}, {"text": "t", "label": label}]
        assert failure_of(tmp_path / "r.jsonl", records)[0] == f"r.jsonl:2{message}"


def test_completion_outside_of_choices(tmp_path):
    message, _ = failure_of(tmp_path / "r.jsonl", [{**GOOD, "choices": ["d", "e"]}])
    assert message == "r.jsonl:1: the completion 'c' is none of the choices."


def test_unknown_layout_lists_columns_and_layouts(tmp_path):
    message, hint = failure_of(tmp_path / "r.jsonl", [{"frage": "f", "antwort": "a"}])
    assert message == "r.jsonl (columns frage, antwort): The layout of the columns is unknown."
    assert "text + label" in hint and "columns: {prompt: my_column}" in hint
    message, hint = failure_of(tmp_path / "r.jsonl", PAIRS, format="messages")
    assert "format is 'messages', but the columns for messages are not there." in message


def test_wrong_columns(tmp_path):
    records = [{"frage": "f", "antwort": "a"}]
    message, hint = failure_of(tmp_path / "r.jsonl", records, columns={"prompt": "fragen"})
    assert message.endswith("columns.prompt is 'fragen', but the columns are frage, antwort.")
    assert hint == "Did you mean 'frage'?"
    message, hint = failure_of(tmp_path / "r.jsonl", records, columns={"promt": "frage"})
    assert message.endswith("columns: 'promt' is no column that nlft reads.") and hint == "Did you mean 'prompt'?"


def test_an_unknown_role_is_an_error(tmp_path):
    turns = [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]
    message, hint = failure_of(tmp_path / "r.jsonl", [{"messages": turns}])
    assert message == "r.jsonl:1: turn 2 has the unknown role 'asistant'. Did you mean 'assistant'?"
    assert "system" in hint
