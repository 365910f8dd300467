"""Heads, captions and notes: what a reader of the page and of the terminal is told about the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlft.measure.summary import summarise
from nlft.report import table
from nlft.report.html import write_html
from nlft.report.matrices import draw_matrix, matrix_grid
from nlft.report.rows import matched_grid
from nlft.report.sweep import area_grids

Planted = Callable[..., Path]
ONE = [("a", "task", "test", "exact_match"), ("g", "probe", "test", "accuracy")]
TWO = [("a", "task", "test", "exact_match"), ("b", "task", "test", "exact_match"), *ONE[1:]]


def swept(name: str, points: list[tuple[float, float, float]], kind: str = "") -> list[dict[str, Any]]:
    """Runs of one task and one probe: (lr, learned, lost)."""
    return [
        {"run_id": f"{name}{lr:g}", "method": name, "kind": kind or name, "lr": lr}
        | {"matrix": [[0.0, 0.9], [learned, 0.9 - lost]]}
        for lr, learned, lost in points
    ]


@pytest.mark.parametrize(("most", "shown"), [(0.0952, "9.5 %"), (0.0996, "10 %"), (0.112, "11.2 %")])
def test_a_level_counts_as_it_is_printed(planted: Planted, most: float, shown: str) -> None:
    """9.5 % is not 10 %, in the sentence as in the table; what prints as 10 % is."""
    runs = swept("full", [(1, 0.0, 0.0), (2, most, 0.1)]) + swept("memory", [(1, 0.0, 0.0), (2, 0.4, 0.1)], "cms")
    summary = summarise(planted(runs, ONE, 2_500))
    grid = matched_grid(summary, "end")
    assert grid and grid.head[1] == f"lost at the largest that all reached, {shown}"
    said = (
        "There is no level of learning (10 % or more)" if shown == "9.5 %" else f"Where all methods had learned {shown}"
    )
    assert summary["outcome"].startswith(said)
    assert f"learned at most {shown}" in grid.body[0][2], "under a head of 50 %"


def test_reasons_have_the_unit_of_their_column(planted: Planted) -> None:
    runs = swept("full", [(1, 0.2, 0.0125), (2, 0.6, 0.2)]) + swept("memory", [(1, 0.1, 0.0), (2, 0.6, 0.1)], "cms")
    (grid,) = (one for one in area_grids(summarise(planted(runs, ONE, 10_000))) if "budget, at the end" in one.title)
    assert grid.head[1] == "losing at most 1.0 points"
    assert grid.body[0][1] == "–\nlost at least 1.25 points; add a smaller learning rate"


def test_a_matrix_of_one_order_of_several_says_so(planted: Planted, tmp_path: Path) -> None:
    first, other = (
        [[0.0, 0.2, 0.9], [0.8, 0.3, 0.8], [0.6, 0.7, 0.7]],
        [[0.0, 0.2, 0.9], [0.1, 0.9, 0.5], [0.5, 0.5, 0.5]],
    )
    every = [(0, ["a", "b"], first), (1, ["a", "b"], first), (0, ["b", "a"], other)]
    runs = [
        {"run_id": f"{place}", "method": "lora", "seed": seed, "order": order, "matrix": R}
        for place, (seed, order, R) in enumerate(every)
    ]
    summary = summarise(planted(runs, TWO))
    words = "Mean over the 2 runs of the order a → b; other orders differ."
    entry = summary["methods"][0]
    assert matrix_grid(summary, entry).caption == words
    assert draw_matrix(summary, entry, tmp_path).words.startswith(f"{words} Rows: ")
    assert " · tasks: a, b (2 orders)\n" in write_html(summary, {})


def test_one_order_is_shown_as_it_was(planted: Planted) -> None:
    matrix = [[0.0, 0.2, 0.9], [0.1, 0.9, 0.5], [0.5, 0.5, 0.5]]
    summary = summarise(planted([{"method": "lora", "order": ["b", "a"], "matrix": matrix}], TWO))
    assert matrix_grid(summary, summary["methods"][0]).caption == ""
    assert " · tasks in order: b → a\n" in write_html(summary, {})


@pytest.mark.parametrize(
    ("metrics", "head", "note"),
    [
        (("accuracy", "nll", "accuracy", "nll", "f1"), "3 of 5 probes", "the mean of those in points; the others are"),
        (("accuracy", "accuracy", "f1", "f1"), "4 probes", ""),
    ],
)
def test_the_terminal_says_which_probes_a_mean_is_of(
    planted: Planted, metrics: tuple[str, ...], head: str, note: str
) -> None:
    probes = [(f"p{i}", "probe", "test", metric) for i, metric in enumerate(metrics)]
    before = [1.0 if metric == "nll" else 0.9 for metric in metrics]
    after = [3.0 if metric == "nll" else 0.6 for metric in metrics]
    runs = [{"method": "lora", "matrix": [[0.0, *before], [0.8, *after]]}]
    drawn = table(summarise(planted(runs, [*ONE[:1], *probes])))
    assert str(drawn.columns[3].header) == f"{head}\nΔ points"
    assert [str(cell) for cell in drawn.columns[3].cells] == ["−30.0"]
    assert ("in the report" in str(drawn.caption)) is bool(note) and note in str(drawn.caption)


@pytest.mark.parametrize(("rates", "noted"), [((1.0,), False), ((1.0, 2.0), True)])
def test_the_terminal_explains_its_mark(planted: Planted, rates: tuple[float, ...], noted: bool) -> None:
    drawn = table(summarise(planted(swept("lora", [(lr, 0.4 * lr, 0.1) for lr in rates]), ONE)))
    cells = list(drawn.columns[1].cells)
    assert any("•" in str(cell) for cell in cells) is noted
    assert str(drawn.caption).endswith("• best rate of its method.") is noted
