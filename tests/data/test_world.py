"""The built-in world: the same rows everywhere, parts that do not overlap, and a base that knows its part."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import nlft
from nlft.data.vocabulary import ANSWERS, PARTS
from nlft.data.wording import RELATIONS
from nlft.data.world import KINDS, MAX_TASKS, TASKS, UNKNOWN, _rows, paths, rows
from nlft.errors import DataError, NlftError

TINY = Path(nlft.__file__).parent / "builtin" / "tiny"
SIZES = {
    "base/background": 6480,
    "base/probe": 2160,
    "base/background-text": 12480,
    "arithmetic/train": 12792,
    "arithmetic/test": 2258,
    "text/train": 4000,
    "text/test": 600,
}
MANY = [task if number == 1 else f"{task}-{number}" for task in TASKS for number in range(1, 18)]


def digest(path: str) -> str:
    text = "\n".join(f"{row.prompt}|{row.join}|{row.completion}|{row.cluster}|{row.source}" for row in rows(path))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entities(path: str) -> set[str]:
    return {row.cluster for row in rows(path)}


def test_rows_are_the_same_in_every_process():
    assert digest("base/background") == "0dbe364416277d13"
    assert digest("base/background-text") == "50ebe35b03e27427"
    assert digest("arithmetic/test") == "6ffbff01dd6168eb"
    assert digest("text/test") == "3444d084f995bfd0"
    assert digest("tasks/comets/train") == "ae2670c25e01a2f4"
    assert digest("tasks/ships-16/test") == "61549df434a16a63"


def test_a_second_call_gives_equal_rows_in_a_list_of_its_own():
    first = rows("tasks/towns/train")
    _rows.cache_clear()
    second = rows("tasks/towns/train")
    assert first == second
    first.clear()
    assert len(rows("tasks/towns/train")) == 480


def test_sizes():
    assert {path: len(rows(path)) for path in SIZES} == SIZES
    for task in MANY:
        assert [len(rows(f"tasks/{task}/{part}")) for part in ("train", "seen", "test")] == [480, 480, 240]
        assert len(entities(f"tasks/{task}/train")) == 40
    assert len(paths()) == len(SIZES) + 3 * len(TASKS)


def test_every_fact_of_the_base_has_six_wordings_and_one_answer():
    some = rows("base/background") + rows("base/probe")
    answers: dict[tuple[str, str], set[str]] = {}
    for row in some:
        answers.setdefault((row.cluster, row.meta["relation"]), set()).add(row.completion)
    assert len(answers) == 6 * 80 * 3
    assert all(len(found) == 1 for found in answers.values())
    assert len({row.prompt for row in some}) == len(some) == 6 * 6 * 80 * 3
    assert all(row.cluster in row.prompt and row.join == " " for row in some)


def test_entities_of_base_and_of_all_tasks_are_disjoint():
    for kind in KINDS:
        own = [task for task in MANY if task.split("-")[0] == kind]
        groups = [entities(f"tasks/{task}/train") for task in own]
        groups += [
            {row.cluster for row in rows(f"base/{part}") if row.meta["kind"] == kind}
            for part in ("background", "probe")
        ]
        assert all(not one & two for one, two in combinations(groups, 2))
        assert len(set.union(*groups)) == 17 * 40 + 80
    assert not set.intersection(entities("base/background"), entities("base/probe"))
    everything = [{task.split("-")[0] + name for name in entities(f"tasks/{task}/train")} for task in MANY]
    assert len(set.union(*everything)) == len(MANY) * 40


def test_names_of_new_entities_are_made_of_parts_that_the_base_knows():
    known = " ".join(row.prompt for row in rows("base/background") + rows("base/probe"))
    for kind in KINDS:
        firsts, seconds, between = PARTS[kind]
        assert len(set(firsts)) == len(set(seconds)) == 40
        assert len({first + between + second for first in firsts for second in seconds}) == 1600
        assert all(re.search(rf"\b{part}", known) for part in firsts)
        assert all(re.search(rf"{part}\b", known) for part in seconds)


def test_names_that_are_answers_are_no_entities():
    used = set.union(
        *(entities(f"tasks/{task}/train") for task in MANY),
        entities("base/background"),
        entities("base/probe"),
    )
    answers = {
        row.completion for row in rows("base/background") if row.meta["relation"] in ("leader", "author", "seller")
    }
    assert len(answers) == 70
    assert not answers & used


def test_wordings_of_train_and_test_differ_and_test_asks_the_same_facts():
    for task in (*TASKS, "books-9"):
        train, test = rows(f"tasks/{task}/train"), rows(f"tasks/{task}/test")
        assert Counter(row.meta["wording"] for row in train) == {str(wording): 120 for wording in range(4)}
        assert Counter(row.meta["wording"] for row in test) == {"4": 120, "5": 120}
        assert not {row.prompt for row in train} & {row.prompt for row in test}
        facts = [{(row.cluster, row.meta["relation"], row.completion) for row in part} for part in (train, test)]
        assert facts[0] == facts[1]
        seen = rows(f"tasks/{task}/seen")
        assert [(row.prompt, row.completion) for row in seen] == [(row.prompt, row.completion) for row in train]


def test_guessing_an_answer_is_hard():
    assert all(len(set(answers)) == len(answers) >= 30 for answers in ANSWERS.values())
    for kind in KINDS:
        for relation, _, _ in RELATIONS[kind]:
            known = [
                row for row in rows("base/background") if (row.meta["kind"], row.meta["relation"]) == (kind, relation)
            ]
            commonest = Counter(row.completion for row in known).most_common(1)[0][1] / len(known)
            assert commonest <= 0.12


def test_the_unknown_kind_is_unknown_to_the_base():
    material = [*rows("base/background"), *rows("base/probe"), *rows("arithmetic/train"), *rows("text/train")]
    known = {word.lower() for row in material for word in re.findall(r"\w+", f"{row.prompt} {row.completion}")}
    assert UNKNOWN[:-1] not in known
    for _, _, templates in RELATIONS[UNKNOWN]:
        for template in templates:
            assert {word.lower() for word in re.findall(r"\w+", template.replace("{e}", ""))} - known, template
    assert not entities(f"tasks/{UNKNOWN}/train") & entities("base/background")
    assert all(row.meta["kind"] != UNKNOWN for row in material)


def test_sums_are_right_and_held_out():
    train, test = rows("arithmetic/train"), rows("arithmetic/test")
    assert not {row.prompt for row in train} & {row.prompt for row in test}
    for row in train + test:
        a, sign, b, _ = row.prompt.split()
        assert int(row.completion) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) >= 0
        assert max(int(a), int(b)) <= 99
    assert len(train) + len(test) == 10_000 + 5050


def test_stories_are_held_out_and_background_text_holds_nothing_of_the_probe():
    train, test = ({row.completion for row in rows(f"text/{part}")} for part in ("train", "test"))
    assert (len(train), len(test)) == (4000, 600)
    assert not train & test
    background = rows("base/background-text")
    assert all(row.prompt == row.join == "" for row in background)
    assert Counter(row.meta["kind"] for row in background) == dict.fromkeys(KINDS, 1080) | {
        "story": 4000, "addition": Counter(row.meta["kind"] for row in background)["addition"],
        "subtraction": 2000 - Counter(row.meta["kind"] for row in background)["addition"],
    }  # fmt: skip
    texts = " ".join(row.completion for row in background)
    assert not any(re.search(rf"\b{name}\b", texts) for name in entities("base/probe"))
    assert not {row.completion for row in background} & test


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("base/probes", "builtin:world/base/probe?"),
        ("task/ships/train", "builtin:world/tasks/ships/train?"),
        ("tasks/ship/test", "builtin:world/tasks/ships/test?"),
        ("tasks/ships-2/tset", "builtin:world/tasks/ships/test?"),
        ("tasks/ships-0/test", "builtin:world/tasks/ships/test?"),
        (f"tasks/ships-{MAX_TASKS + 1}/test", f"to ships-{MAX_TASKS}."),
    ],
)
def test_an_unknown_path_names_the_nearest(path: str, near: str):
    with pytest.raises(DataError) as error:
        rows(path)
    assert isinstance(error.value, NlftError)
    assert path in error.value.message
    assert near in error.value.hint


def test_row_source_names_path_and_number():
    assert [row.source for row in rows("tasks/drugs-3/test")[:2]] == [
        "world/tasks/drugs-3/test:1",
        "world/tasks/drugs-3/test:2",
    ]


def test_the_files_of_the_base_are_small():
    names = {path.name for path in TINY.iterdir() if path.is_file()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (TINY / "model.safetensors").stat().st_size <= 6_000_000


@pytest.fixture(scope="module")
def tiny():
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(TINY)


def test_the_tokenizer_starts_with_bos_adds_no_eos_and_ends_a_token_before_every_answer(tiny):
    model, tokenizer = tiny
    assert 1_000_000 <= model.num_parameters() <= 4_000_000
    assert len(tokenizer) <= 2048
    assert tokenizer("Ada Crane").input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in tokenizer("37 + 45 = 82").input_ids
    assert tokenizer.decode(tokenizer("The job, she said, is: 4 + 5!").input_ids, skip_special_tokens=True) == (
        "The job, she said, is: 4 + 5!"
    )
    some = [
        *rows("base/probe"),
        *rows("arithmetic/test"),
        *(row for task in TASKS for row in rows(f"tasks/{task}/test")),
    ]
    whole = tokenizer([f"{row.prompt} {row.completion}" for row in some]).input_ids
    for row, ids, prompt in zip(some, whole, tokenizer([row.prompt for row in some]).input_ids, strict=True):
        assert ids[: len(prompt)] == prompt
        assert 1 <= len(ids) - len(prompt) <= 4, row
    for task in TASKS:
        assert {len(tokenizer.tokenize(name)) for name in entities(f"tasks/{task}/test")} == {2}


def test_the_base_knows_its_world_and_no_task(tiny):
    import torch

    model, tokenizer = tiny

    def recall(some) -> float:
        prompts = [tokenizer(row.prompt).input_ids for row in some]
        whole = [[*tokenizer(f"{row.prompt} {row.completion}").input_ids, tokenizer.eos_token_id] for row in some]
        width = max(map(len, whole))
        ids = torch.tensor([line + [0] * (width - len(line)) for line in whole])
        with torch.no_grad():
            guess = model(ids).logits.argmax(-1).tolist()
        return sum(
            guessed[len(prompt) - 1 : len(line) - 1] == line[len(prompt) :]
            for guessed, prompt, line in zip(guess, prompts, whole, strict=True)
        ) / len(some)

    rng = random.Random(0)
    assert recall(rng.sample(rows("base/background"), 200)) >= 0.98
    assert recall(rng.sample(rows("base/probe"), 200)) >= 0.98
    assert recall(rng.sample(rows("arithmetic/test"), 200)) >= 0.95
    for task in TASKS:
        assert recall(rng.sample(rows(f"tasks/{task}/test"), 60)) <= 0.1
