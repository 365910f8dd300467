"""Mixed contexts: a row of one kind in front of a row of another, where no router can decide for the whole sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nlft.dissect.study import ROWS, Study, spread, whole_text
from nlft.measure.score import item_ids
from nlft.prepare import Prepared
from nlft.scoring import measure
from nlft.types import Evaluation, Item, Row

BETWEEN = "\n\n"
"""Between the two rows."""


def mixed_contexts(study: Study) -> list[Item]:
    """Scores of few rows of every column, each behind a row of another kind, with the adapter and on the base.

    In front of a probe's rows stand train rows of the tasks in turn, in front of a task's rows those of the probes in
    turn. A context that grows too long loses its beginning. The base reads the same, so what the longer context does by
    itself can be taken off. Columns of conversations are left out.
    """
    fronts = {
        "probe": [(task.name, spread(task.train, ROWS)) for task in study.prepared.domains.tasks],
        "task": [(probe.name, spread(probe.rows, ROWS)) for probe in study.prepared.domains.probes],
    }
    names: dict[tuple[str, str], tuple[str, str]] = {}

    def mix(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
        found = []
        for one in evaluations:
            others = [
                (name, texts) for name, rows in fronts[one.role] if (texts := list(filter(None, map(whole_text, rows))))
            ]
            rows = spread([row for row in one.rows if not row.messages], ROWS)
            if one.split != "test" or not rows or not others:
                continue
            behind, before = [], []
            for number, row in enumerate(rows):
                name, texts = others[number % len(others)]
                behind.append(put_before(texts[number // len(others) % len(texts)], row))
                before.append(name)
            for new, old, name in zip(item_ids(behind), item_ids(rows), before, strict=True):
                names[one.column, new] = (old, name)
            found.append(replace(one, rows=tuple(behind)))
        return tuple(found)

    prepared = study.with_columns(mix)
    columns = [one.column for one in prepared.domains.evaluations]
    prepared = replace(prepared, too_long=dict.fromkeys(columns, "truncate"))

    def renamed(items: list[Item], word: str) -> list[Item]:
        return [
            replace(item, item_id=old, condition=f"{word}:{name}")
            for item in items
            for old, name in [names[item.column, item.item_id]]
        ]

    return renamed(study.score(prepared, "mixed"), "mixed") + renamed(base_scores(study, prepared), "base_mixed")


def put_before(text: str, row: Row) -> Row:
    """The row with a text in front of it; plain text becomes the continuation of that text."""
    return replace(row, prompt=text + BETWEEN + row.prompt)


def base_scores(study: Study, prepared: Prepared) -> list[Item]:
    """The same rows on the base."""
    if not study.learner.changes_base:
        return study.score(prepared, "base_mixed", under="off")
    fresh = study.untouched
    return measure(fresh.model, fresh, study.recipe, prepared, study.stage, "base_mixed")
