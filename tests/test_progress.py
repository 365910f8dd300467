"""What a comparison says before and while it runs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nlft.base import load_base
from nlft.data.domain import load_domains
from nlft.executor import Ended
from nlft.pace import PACED, SEEN, Pace, Span, clock, expected, kind_of, measure_pace, train_tokens
from nlft.plan import plan_cells
from nlft.prepare import prepare
from nlft.progress import Progress, last_event, sentence

METHODS = {"full": {"kind": "full", "lr": [1e-4, 1e-3]}, "lora": {"kind": "lora", "lr": 1e-2}}


def test_expected_time_is_reckoned_from_both_sources(recipe: Callable[..., Any]) -> None:
    cells = plan_cells(recipe(methods=METHODS, compare={"bounds": {"multitask": ["lora"]}}))
    walls = {kind_of(cells[0]): [10.0, 14.0]}
    # Two full runs of 12 s; lora: two tasks of 6 steps of 0.5 s and 2 s of scoring; both tasks at once, 12 steps.
    span = expected(cells, walls, Pace(0.5, 2.0), jobs=2)
    assert span.value == pytest.approx((12 + 12 + 2 * (3 + 2) + (6 + 2)) / 2)
    assert span.low == pytest.approx((24 * SEEN[0] + 18 * PACED[0]) / 2)
    assert span.high == pytest.approx((24 * SEEN[1] + 18 * PACED[1]) / 2)
    assert expected(cells[:1], {}, Pace(0.5, 2.0), jobs=8).value == 10.0, "one run has no use for eight jobs"
    assert str(Span(600, 40, 9000)) == "about 10 min (40 s to 2.5 h)" and clock(89.4) == "89 s"


def test_tokens_and_pace_are_of_the_rows(recipe: Callable[..., Any]) -> None:
    chosen = recipe(methods=METHODS, compare={"bounds": {"multitask": ["lora"]}})
    domains, base = load_domains(chosen), load_base(chosen.base)
    prepared = prepare(chosen, domains, base)
    cells = plan_cells(chosen)
    lengths = [sum(len(row.ids) for row in prepared.train[name]) for name in ("people", "ships")]
    # 64 rows a task, 6 steps of 8 rows: three quarters of every token once.
    assert train_tokens(cells[:1], prepared) == round(0.75 * sum(lengths))
    assert train_tokens(cells[-1:], prepared) == round(0.75 * sum(lengths))
    pace = measure_pace(base, chosen, prepared)
    assert 0 < pace.step_s < 60 and 0 < pace.score_s < 600
    assert base.is_unchanged(base.model)


def test_the_table_counts_and_shows_the_newest_line(recipe: Callable[..., Any], tmp_path: Path) -> None:
    cells = plan_cells(recipe(methods=METHODS))
    _, running, failed = cells
    said = io.StringIO()
    console = Console(file=said, width=160)
    progress = Progress(cells, [running, failed], tmp_path, 100.0, console)
    assert 90 < progress.time_left() <= 100
    for cell in (running, failed):
        (tmp_path / "cells" / cell.name).mkdir(parents=True)
    lines = [{"event": "stage", "task": "people"}, {"time": 1.0, "event": "step", "stage": 2, "step": 31, "loss": 0.5}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "cells" / running.name / "events.jsonl").write_text(text + '{"half": ')
    (tmp_path / "cells" / failed.name / "events.jsonl").write_text(text)
    progress.note(Ended(failed, "training diverged"))
    assert f"[1/2] {failed.name} failed: training diverged; about 0 s left" in said.getvalue()
    said.truncate(0)
    console.print(progress.table())
    rows = [[part.strip() for part in line.split("│")[1:-1]] for line in said.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["full", "2", "1", "1", "0", f"{running.name.rpartition('-')[0]}: task 2, step 31, loss 0.500"],
        ["lora", "1", "0", "0", "1", ""],
    ]


def test_events_are_read_from_the_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("x" * 9000 + "\n" + '{"event": "measured", "task": "law"}\n')
    assert sentence(last_event(path)) == "has learned law"
    path.write_text("")
    assert last_event(path) == {} and sentence({}) == ""
