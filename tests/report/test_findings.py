"""What newer summaries hold is drawn when it is there, and older ones still give a report."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nlft.report import table, write_report
from nlft.report.chart import charts_of
from nlft.report.figures import draw_figures
from nlft.report.findings import causes_of, change_of, short_facts, where_grids
from nlft.report.heat import draw_ablations
from nlft.report.html import write_html
from nlft.report.ledger import bound_grids, contamination_grids, cost_grids
from nlft.report.markdown import write_markdown
from nlft.report.picture import looks_of
from nlft.report.retention import draw_retention, panels_of
from nlft.report.rows import label, matched_grid
from nlft.report.sections import sections_of

Enrich = Callable[[Mapping[str, Any]], dict[str, Any]]
COLUMNS = [
    ("people", "task", "test", "exact_match"),
    ("ships", "task", "test", "exact_match"),
    ("facts", "probe", "test", "accuracy"),
    ("text", "probe", "test", "nll"),
]
MATRIX = [[0.0, 0.2, 0.9, 1.5], [0.8, 0.3, 0.8, 1.6], [0.6, 0.7, 0.75, 1.75]]
LOWER = [[0.0, 0.2, 0.9, 1.5], [0.8, 0.3, 0.9, 1.5], [0.8, 0.5, 0.85, 1.5]]
NEW = ("bands", "hypervolume", "within_budget")


@pytest.fixture
def summary(planted: Callable[..., Path]) -> dict[str, Any]:
    """lora at two seeds, memory at one."""
    rows = [
        {"run_id": "a", "method": "lora", "lr": 1e-3, "matrix": MATRIX, "stored_bytes": 5 << 20},
        {"run_id": "b", "method": "lora", "lr": 1e-3, "seed": 1, "matrix": LOWER, "stored_bytes": 5 << 20},
        {"run_id": "c", "method": "memory", "kind": "sparse_memory", "lr": 0.3, "matrix": MATRIX, "stored_bytes": 99},
    ]
    return write_report(planted(rows, COLUMNS))


def older(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary as version 0.1 wrote it."""
    old = copy.deepcopy(summary)
    for key in ("where", "bounds", "paragraph"):
        old.pop(key, None)
    for moment in old["frontier"].values():
        for key in NEW:
            moment.pop(key, None)
        for own in moment["points"].values():
            own[:] = [{key: point[key] for key in ("lr", "learning", "forgetting", "n_runs")} for point in own]
    for run in old["runs"]:
        run.pop("overlap", None)
    for entry in old["methods"]:
        for key in ("told_task", "plain", "steps"):
            entry.pop(key, None)
        costs = entry["values"]["costs"]
        entry["values"]["costs"] = {key: costs[key] for key in ("trainable_params", "stored_bytes", "train_s")}
    return old


def both(summary: dict[str, Any], folder: Path) -> tuple[str, str, list[str]]:
    """The page, the Markdown and the names of the figures."""
    pictures = draw_figures(summary, folder)
    Console(width=100, quiet=True).print(table(summary))
    return (
        write_html(summary, pictures),
        write_markdown(summary, pictures),
        sorted(p.stem for p in folder.glob("*.png")),
    )


def test_an_older_summary_gives_a_report(summary: dict[str, Any], tmp_path: Path) -> None:
    old = older(summary)
    page, text, names = both(old, tmp_path)
    assert names == ["learning-forgetting", "matrix-lora", "matrix-memory", "probes", "retention"]
    keys = [section.key for section in sections_of(old, {})]
    assert keys == ["result", "matched", "frontiers", "probes", "stages", "costs", "integrity", "definitions", "recipe"]
    for part in (page, text):
        assert summary["outcome"] in part.replace("\\", "") and "Where forgetting happens" not in part


def test_everything_new_is_drawn_and_told(summary: dict[str, Any], enrich: Enrich, tmp_path: Path) -> None:
    full = enrich(summary) | {"paragraph": "A manager can read this."}
    page, text, names = both(full, tmp_path)
    assert {"ablation-memory", "areas", "causes", "overlap-memory"} <= set(names)
    keys = [section.key for section in sections_of(full, {})]
    assert " ".join(keys) == (
        "result matched frontiers where probes stages costs bounds contamination integrity definitions recipe"
    )
    assert page.index("A manager can read this.") < page.index("<table") and "**A manager can read this.**" in text
    for fact in (
        "22.0", "8.0", "11.0", "95.0 %", "88.0 %", "2.5 %", "97.0 %", "12.3 %", "×1.25", "2.00 KiB", "42 %", "77.0 %",
        "0.031", "−35.0 points", "31.0",
    ):  # fmt: skip
        assert fact in page and fact in text, fact


def test_causes_are_means_over_earlier_tasks_and_runs(summary: dict[str, Any], enrich: Enrich, tmp_path: Path) -> None:
    full = enrich(summary)
    # The last task has lost nothing by definition and would halve the mean.
    assert causes_of(full)["memory"] == {"total": 0.30, "overwriting": 0.22, "routing": 0.08, "no_router": 0.11}
    second = copy.deepcopy(full["where"][0])
    second["tasks"]["people"] |= {"total": 0.1, "overwriting": 0.0, "routing": 0.1, "no_router": None}
    full["where"].append(second)
    means = {"total": 0.2, "overwriting": 0.11, "routing": 0.09, "no_router": 0.11}
    assert causes_of(full)["memory"] == {key: pytest.approx(value) for key, value in means.items()}
    assert "Earlier tasks of memory: lost 20.0 points, 11.0 points by overwriting and 9.0 points by routing." in (
        short_facts(full)
    )
    assert where_grids(full)[0].body == [["memory", "20.0", "11.0", "9.0", "11.0"]]
    draw_figures(full, tmp_path)
    with (tmp_path / "causes.csv").open() as file:
        assert [round(float(x), 6) for x in list(csv.reader(file))[1][1:]] == [0.2, 0.11, 0.09, 0.11]


def test_many_methods_get_no_sentence_each(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"total": 0.2, "overwriting": 0.1, "routing": 0.1, "no_router": None}
    summary: dict[str, Any] = {"task_unit": "fraction", "methods": []}
    for count, facts in ((4, 4), (5, 1)):
        monkeypatch.setattr("nlft.report.findings.causes_of", lambda _, n=count: {f"m{i}": own for i in range(n)})
        assert len(short_facts(summary)) == facts


def test_ablations_hold_their_numbers(summary: dict[str, Any], enrich: Enrich, tmp_path: Path) -> None:
    (picture,) = draw_ablations(enrich(summary), tmp_path)
    with picture.csv.open() as file:
        assert list(csv.reader(file)) == [
            ["without", "people", "ships"],
            ["people", "0.44", "0.0"],
            ["ships", "-0.02", "0.51"],
        ]


def test_retention_has_its_band_and_bounds(summary: dict[str, Any], enrich: Enrich, tmp_path: Path) -> None:
    full = enrich(summary)
    probes, sofar, changed = panels_of(full)
    lora = probes.lines[0]
    assert (lora.values, lora.low, lora.high) == (
        pytest.approx([0.9, 0.85, 0.8]), pytest.approx([0.9, 0.8, 0.75]), pytest.approx([0.9, 0.9, 0.85])
    )  # fmt: skip
    assert [(round(value, 6), style) for value, _, style in sofar.levels] == [(0.1, "--"), (0.9, ":")]
    assert changed.lines[0].low == pytest.approx([0.0, -0.2]) and changed.lines[0].high == pytest.approx([0.0, 0.0])
    full["bounds"]["multitask"]["lora"]["ships"] = {"value": 0.72, "lr": 1e-3, "n": 1}
    assert (pytest.approx(0.8), "-.") in [(value, style) for value, _, style in panels_of(full)[1].levels]
    (picture,) = draw_retention(full, tmp_path)
    assert "dotted: each task alone, best method" in picture.words


def test_a_change_has_the_interval_of_its_runs(summary: dict[str, Any]) -> None:
    lora, memory = summary["methods"]
    assert change_of(lora, "facts") == (pytest.approx(-0.1), pytest.approx(-0.15), pytest.approx(-0.05))
    value, low, high = change_of(memory, "facts")
    interval = memory["intervals"]["probes"]["facts"]
    assert value == pytest.approx(-0.15) and (low, high) == (interval["low"], interval["high"])
    assert low is not None and high is not None and low < -0.15 < high


def test_who_is_told_the_task_is_marked(summary: dict[str, Any], enrich: Enrich) -> None:
    full = enrich(summary)
    looks = looks_of(full)
    assert (looks["memory"].face, looks["memory"].line) == ("white", "--")
    assert (looks["lora"].face, looks["lora"].line) == (looks["lora"].colour, "-")
    assert label(full["methods"][1], full) == "memory lr 0.3 †" and label(full["methods"][0], full) == "lora lr 0.001"
    grid = matched_grid(full, "end")
    assert grid and "memory †" in [row[0] for row in grid.body]
    assert short_facts(full)[-1] == "memory is told each row's task: bounds, not rivals (†)."
    assert [series.told for series in charts_of(full)[0].series] == [False, True]


def test_no_two_methods_look_alike() -> None:
    looks = looks_of({"methods": [{"method": str(i)} for i in range(64)]})
    assert len({(look.colour, look.marker) for look in looks.values()}) == 64


def test_many_methods_get_a_panel_each(summary: dict[str, Any], tmp_path: Path) -> None:
    many = copy.deepcopy(summary)
    for i in range(9):
        for key in ("methods", "runs"):
            many[key] += [{**one, "method": f"m{i}"} for one in summary[key] if one["method"] == "memory"]
        for moment in ("now", "end"):
            for key in ("points", "envelopes"):
                many["frontier"][moment][key][f"m{i}"] = summary["frontier"][moment][key]["memory"]
    draw_figures(many, tmp_path)
    names = {path.stem for path in tmp_path.glob("*.png")}
    each = {"frontier-each", "retention-probes", "retention-tasks-so-far", "retention-earlier-tasks", "costs"}
    assert each <= names and "retention" not in names
    with (tmp_path / "retention-probes.csv").open() as file:
        assert len({row["method"] for row in csv.DictReader(file)}) == 11


def test_costs_bounds_and_contamination_are_tables(summary: dict[str, Any], enrich: Enrich) -> None:
    full = enrich(summary)
    means, every = cost_grids(full)
    assert (means.head[1:], means.body[0][1:]) == (
        ["trainable", "stored", "optimiser", "training tokens", "training", "latency"],
        ["–", "5.00 MiB", "2.00 KiB", "–", "–", "×1.25"],
    )
    assert "stored a task" in every.head and every.body[0][4] == "1.50 MiB" and every.folded
    (bounds,) = bound_grids(full)
    assert bounds.body[2:] == [
        ["lora, each task alone", "95.0 %\nlr 0.001, 2 runs", "85.0 %\nlr 0.001, 2 runs"],
        ["lora, all at once", "88.0 %\nlr 0.001", "–"],
    ]
    (shared,) = contamination_grids(full)
    assert (shared.head, shared.body) == (
        ["scored on", "in train rows", "in the background"],
        [["facts", "2.5 %", "–"]],
    )
    old = older(summary)
    assert bound_grids(old) == contamination_grids(old) == where_grids(old) == []
