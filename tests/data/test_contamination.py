"""Shared runs of words, counted by hand."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from data_rows import write_jsonl

from nlft.data.contamination import Contamination, find_contamination, grams, words_of
from nlft.data.domain import load_domains, remarks
from nlft.errors import NlftError
from nlft.types import Evaluation, Row, Task

SENTENCE = "one two three four five six seven eight nine"


def column(name: str, *texts: str) -> Evaluation:
    return Evaluation(name, "probe", "test", tuple(Row("", text) for text in texts), "nll")


def task(*texts: str) -> Task:
    return Task("a", tuple(Row("", text) for text in texts), ())


def test_runs_of_words() -> None:
    assert words_of("The Eiffel-Tower's 3rd floor, Köln!") == ["the", "eiffel", "tower", "s", "3rd", "floor", "köln"]
    assert list(grams(["a", "b", "c", "d"], 3)) == [("a", "b", "c"), ("b", "c", "d")]
    assert list(grams(["a", "b"], 3)) == [("a", "b")]


def test_shares_by_hand() -> None:
    """Eight of nine words count, seven do not; short rows count when they are the same as a whole."""
    scored = column(
        "probe",
        f"Said: {SENTENCE.upper()}!",  # holds both runs of the train row
        "two three four five six seven eight nine ten",  # holds one
        "three four five six seven eight nine ten eleven",  # seven words alone
        "Yes, it is.",  # as short as a train row, and equal
        "it is",  # a part of a short train row
    )
    found = find_contamination([scored, column("clean", "nothing")], [task(SENTENCE, "yes it is")], [Row("", "It is!")])
    assert found == {"probe": Contamination(0.6, 0.2, 8), "clean": Contamination(0.0, 0.0, 8)}


def test_a_prompt_and_its_answer_are_one_text() -> None:
    row = Row("one two three four", "five six seven eight", join=" ")
    shown = Row("", "other words", examples=(Row("", SENTENCE),))
    rows = Evaluation("probe", "probe", "test", (row, shown), "nll")
    assert find_contamination([rows], [task(SENTENCE)], [])["probe"].train == 0.5


def test_texts_stand_in_for_rows() -> None:
    found = find_contamination([column("probe")], [task(SENTENCE)], [], {"probe": [SENTENCE, "else"]})
    assert found["probe"].train == 0.5


def test_many_rows_take_seconds() -> None:
    rows = [Row("", " ".join(f"w{(i * 7 + k) % 5000}" for k in range(40))) for i in range(20_000)]
    begun = time.process_time()
    found = find_contamination([column("probe", rows[3].completion, "no")], [Task("a", tuple(rows), ())], [])
    assert found["probe"].train == 0.5
    assert time.process_time() - begun < 5  # about 0.6 s


@pytest.fixture
def fields(tmp_path: Any) -> dict[str, Any]:
    train = write_jsonl(tmp_path / "train.jsonl", [{"prompt": f"{SENTENCE} p{n}", "completion": "x"} for n in range(4)])
    test = write_jsonl(tmp_path / "test.jsonl", [{"prompt": f"q{n}?", "completion": "x"} for n in range(8)])
    tasks = [{"name": "a", "train": train, "test": {"path": test, "limit": 2}}]
    probes = [{"name": "p", "data": {"path": test, "limit": 4}}]
    return {"name": "r", "tasks": tasks, "probes": probes, "methods": {"full": {"kind": "full", "lr": 1}}}


def load(fields: dict[str, Any]) -> Any:
    from nlft.config import Recipe

    return load_domains(Recipe.model_validate(fields))


def test_it_is_said_and_kept(fields: dict[str, Any], tmp_path: Any) -> None:
    fields["background"] = write_jsonl(tmp_path / "b.jsonl", [{"text": "q0? x"}, {"text": SENTENCE}])
    fields["probes"][0]["data"] = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "q0?", "completion": "x"}] * 1)
    domains = load(fields)
    assert domains.contamination["p"] == Contamination(0.0, 1.0, 8)
    said = "Rows of 'p' that share 8 words in a row, or all of fewer: 100.0% with the background."
    assert said in remarks(domains)


def test_a_run_keeps_it(recipe: Any, tmp_path: Any) -> None:
    from nlft.measure.items import read_runs
    from nlft.run import run_method

    out = run_method(recipe(), "lora", tmp_path / "run", report=False)
    found = json.loads(read_runs(out / "runs.parquet")[0]["overlap"])
    assert set(found) == {"people", "ships", "facts", "text"}
    assert all(set(of_column) == {"train", "background", "n"} for of_column in found.values())


def test_shots_stand_in_front_of_every_row(fields: dict[str, Any]) -> None:
    path = fields["probes"][0]["data"]["path"]
    fields["probes"][0] |= {"shots": 2, "shots_from": {"path": path, "skip": 4}}
    probe = load(fields).probes[0]
    assert probe.stop == "\n\n"
    prompts = [[example.prompt for example in row.examples] for row in probe.rows]
    assert len(prompts) == 4 and all(of_row == prompts[0] for of_row in prompts)
    assert len(prompts[0]) == 2 and not {row.prompt for row in probe.rows} & set(prompts[0])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shots": 9}, "shots is 9, and there are 4 rows."),
        ({"shots_from": {"limit": 4}}, "is also a row to be scored."),
    ],
)
def test_shots_that_do_not_fit(fields: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    probe = fields["probes"][0]
    own = {"path": probe["data"]["path"], **changes.get("shots_from", {"skip": 4})}
    probe |= {"shots": 2, **changes, "shots_from": own}
    with pytest.raises(NlftError) as error:
        load(fields)
    assert said in str(error.value) and "probes.p.shots_from" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shots": 2}, "go together"),
        ({"limit": 3}, "write data.limit"),
        ({"lm_eval": "piqa"}, "either `data` (rows) or `lm_eval` (a task)"),
        ({"data": None}, "either `data` (rows) or `lm_eval` (a task)"),
        ({"metric": "kl", "shots": 1, "shots_from": "a.jsonl"}, "leave shots out"),
        ({"data": None, "lm_eval": "piqa", "shots": 1}, "write num_fewshot"),
    ],
)
def test_keys_that_do_not_go_together(fields: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    fields["probes"][0] |= changes
    with pytest.raises(ValueError) as error:
        load(fields)
    assert said in str(error.value)
