"""The built-in world: a small set of facts, sums and stories in plain English, made from one seed.

`rows(path)` gives these rows:

- `base/background`, `base/probe`: facts that the built-in base knows, in six wordings; three entities in four
  are background.
- `base/background-text`: background facts as statements, known sums and stories, as plain text for
  calibration and replay.
- `arithmetic/train`, `arithmetic/test`: addition and subtraction of numbers up to 99; the base was trained on
  the 85 % in `train`.
- `text/train`, `text/test`: short stories; the base was trained on `train`.
- `tasks/<kind>/train`, `.../seen`, `.../test`: facts about 40 new entities in four wordings (train, and seen,
  which is the same rows again) and in two others (test). A kind is one of `TASKS`.

The base knows 80 entities of every kind but `comets`, which it has never seen. `tasks/ships-2/...`,
`tasks/ships-3/...` up to `MAX_TASKS` are further tasks, disjoint from all others. Names of new entities are
new combinations of the parts of which the base's names are made.

Pure Python; the same rows on every machine and in every Python version.
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Iterator
from functools import cache, lru_cache

from nlft.data.story import tell
from nlft.data.vocabulary import ANSWERS, PARTS
from nlft.data.wording import RELATIONS
from nlft.errors import DataError
from nlft.types import Row

SEED = "nlft-world-1"
KINDS = ("people", "companies", "ships", "drugs", "towns", "books")
"""Kinds of entity that the built-in base knows."""
UNKNOWN = "comets"
"""The kind that the built-in base has never seen."""
TASKS = (*KINDS, UNKNOWN)
"""Names of the default tasks."""

BASE_ENTITIES = 80
PROBE_ENTITIES = 20
TASK_ENTITIES = 40
ANSWER_NAMES = 40
MAX_TASKS = (40 * 40 - BASE_ENTITIES - ANSWER_NAMES) // TASK_ENTITIES
TRAIN_WORDINGS = (0, 1, 2, 3)
TEST_WORDINGS = (4, 5)
STORIES_TRAIN = 4000
STORIES_TEST = 600
HELD_OUT_SUMS = 0.15
BACKGROUND_SUMS = 2000
"""Sums in `base/background-text`; with all of them the facts would drown."""

_FIXED = (
    "base/background",
    "base/probe",
    "base/background-text",
    "arithmetic/train",
    "arithmetic/test",
)
_FIXED += ("text/train", "text/test")
_TASK_PATH = re.compile(r"tasks/([a-z]+)(?:-([1-9][0-9]*))?/(train|seen|test)")


def rows(path: str) -> list[Row]:
    """Rows of one part of the world, in a fixed order. Raises DataError for a path that does not exist."""
    return list(_rows(path.strip("/")))


def paths() -> list[str]:
    """Every path without a number; `tasks/<kind>-<number>/...` exist besides."""
    return [
        *_FIXED,
        *(f"tasks/{task}/{part}" for task in TASKS for part in ("train", "seen", "test")),
    ]


@lru_cache(maxsize=64)
def _rows(path: str) -> tuple[Row, ...]:
    task = _TASK_PATH.fullmatch(path)
    if path in _FIXED:
        area, part = path.split("/")
        if area == "base":
            parts = {
                "background": _background,
                "probe": _probe,
                "background-text": _background_text,
            }
            made = parts[part]()
        else:
            made = _sums(part) if area == "arithmetic" else _stories(part)
    elif task and task[1] in TASKS and 1 <= int(task[2] or 1) <= MAX_TASKS:
        made = _task(task[1], int(task[2] or 1), task[3])
    else:
        raise _unknown(path, task)
    return tuple(
        Row(
            prompt=prompt,
            completion=completion,
            join=" " if prompt else "",
            source=f"world/{path}:{number}",
            cluster=cluster,
            meta=meta,
        )
        for number, (prompt, completion, cluster, meta) in enumerate(made, start=1)
    )


_Made = Iterator[tuple[str, str, str, dict[str, str]]]
"""Prompt, completion, cluster and meta."""


def _unknown(path: str, task: re.Match[str] | None) -> DataError:
    if task and task[1] in TASKS:
        return DataError(
            f"builtin:world/{path}: the world has {MAX_TASKS} tasks of the kind {task[1]!r}.",
            f"Number them from {task[1]} (the first) to {task[1]}-{MAX_TASKS}.",
        )
    near = difflib.get_close_matches(path, paths(), n=1, cutoff=0.0)[0]
    return DataError(
        f"builtin:world/{path}: there is no such part of the world.",
        f"Did you mean builtin:world/{near}?",
    )


@cache
def _names(kind: str) -> tuple[str, ...]:
    """All 1,600 names of a kind: the base's 80, every part twice, then all others, shuffled."""
    firsts, seconds, between = PARTS[kind]
    rng = random.Random(f"{SEED}/names/{kind}")
    turn = rng.sample(range(len(seconds)), len(seconds))
    pairs = [(i, turn[(i + shift) % len(turn)]) for shift in (0, 1) for i in range(len(firsts))]
    rng.shuffle(pairs)
    known = set(pairs)
    others = [(i, j) for i in range(len(firsts)) for j in range(len(seconds)) if (i, j) not in known]
    rng.shuffle(others)
    return tuple(f"{firsts[i]}{between}{seconds[j]}" for i, j in [*pairs, *others])


def _answers(name: str) -> tuple[str, ...]:
    """A closed set of answers. Names come from the end of their list, which no task reaches."""
    kinds = {"person": "people", "company": "companies"}
    return _names(kinds[name])[-ANSWER_NAMES:] if name in kinds else ANSWERS[name]


def _entities(kind: str, number: int) -> tuple[str, ...]:
    """Names of the entities of task `number` (from 1); number 0 is the base."""
    if number == 0:
        return _names(kind)[:BASE_ENTITIES]
    start = BASE_ENTITIES + (number - 1) * TASK_ENTITIES
    return _names(kind)[start : start + TASK_ENTITIES]


def _facts(kind: str, entities: tuple[str, ...], wordings: tuple[int, ...]) -> _Made:
    for entity in entities:
        for relation, answers, templates in RELATIONS[kind]:
            answer = random.Random(f"{SEED}/facts/{kind}/{relation}/{entity}").choice(_answers(answers))
            for wording in wordings:
                meta = {"kind": kind, "relation": relation, "wording": str(wording)}
                yield templates[wording].format(e=entity), answer, entity, meta


def _background() -> _Made:
    for kind in KINDS:
        yield from _facts(kind, _entities(kind, 0)[PROBE_ENTITIES:], TRAIN_WORDINGS + TEST_WORDINGS)


def _probe() -> _Made:
    for kind in KINDS:
        yield from _facts(kind, _entities(kind, 0)[:PROBE_ENTITIES], TRAIN_WORDINGS + TEST_WORDINGS)


def _task(kind: str, number: int, part: str) -> _Made:
    yield from _facts(
        kind,
        _entities(kind, number),
        TEST_WORDINGS if part == "test" else TRAIN_WORDINGS,
    )


@cache
def _all_sums() -> tuple[tuple[str, str, str], ...]:
    """Prompt, answer and operation of every sum, shuffled."""
    pairs = [(a, b) for a in range(100) for b in range(100)]
    sums = [(f"{a} + {b} =", str(a + b), "addition") for a, b in pairs]
    sums += [(f"{a} - {b} =", str(a - b), "subtraction") for a, b in pairs if a >= b]
    random.Random(f"{SEED}/sums").shuffle(sums)
    return tuple(sums)


def _sums(part: str) -> _Made:
    sums = _all_sums()
    cut = round(len(sums) * HELD_OUT_SUMS)
    for prompt, answer, operation in sums[:cut] if part == "test" else sums[cut:]:
        yield prompt, answer, prompt, {"kind": operation}


@cache
def _all_stories() -> tuple[str, ...]:
    rng = random.Random(f"{SEED}/stories")
    stories: dict[str, None] = {}
    while len(stories) < STORIES_TRAIN + STORIES_TEST:
        stories[tell(rng)] = None
    return tuple(stories)


def _stories(part: str) -> _Made:
    stories = _all_stories()
    for number, story in enumerate(stories[:STORIES_TRAIN] if part == "train" else stories[STORIES_TRAIN:]):
        yield "", story, f"story {part} {number}", {"kind": "story"}


def _background_text() -> _Made:
    """All in one shuffled list, so that any cut of it holds every kind of text."""
    texts = [("", f"{p} {c}", cluster, meta) for p, c, cluster, meta in _background()]
    texts += [("", f"{p} {c}", cluster, meta) for p, c, cluster, meta in list(_sums("train"))[:BACKGROUND_SUMS]]
    texts += _stories("train")
    random.Random(f"{SEED}/background-text").shuffle(texts)
    yield from texts
