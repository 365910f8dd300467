"""The sections of a report, the same for HTML and Markdown: what stands where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nlft.report.figures import Pictures
from nlft.report.findings import probe_grid, where_grids
from nlft.report.ledger import bound_grids, contamination_grids, cost_grids, integrity_lines, unfinished_lines
from nlft.report.matrices import matrix_grids
from nlft.report.picture import Picture
from nlft.report.rows import LONG, Grid, best_entries, matched_grids, result_grid
from nlft.report.sweep import area_grids, point_grid

Summary = Mapping[str, Any]
TABLES_FIRST = ("matched", "costs")
"""Sections whose pictures come last."""


@dataclass(frozen=True, slots=True)
class Words:
    """A box of sentences, each with its key before it where it has one."""

    lines: list[tuple[str, str]]
    title: str = ""


@dataclass(frozen=True, slots=True)
class Code:
    """Text shown as it is, folded."""

    text: str
    title: str


@dataclass(frozen=True, slots=True)
class Section:
    """One heading and what stands below it."""

    key: str
    title: str
    parts: list[Grid | Picture | Words | Code]


def sections_of(summary: Summary, pictures: Pictures) -> list[Section]:
    """Every section that has something to say, in order."""
    points = any(summary["frontier"]["end"]["points"].values())
    every = [
        Section("result", "Result", [*_results(summary), *_unfinished(summary)]),
        Section("matched", "Forgetting at matched learning", [*matched_grids(summary), *area_grids(summary)]),
        Section("frontiers", "Learning against forgetting", [point_grid(summary)] if points else []),
        Section("where", "Where forgetting happens", [*where_grids(summary)]),
        Section("probes", "Probes: what the base knew", [probe_grid(summary)] if summary["probes"] else []),
        Section("stages", "Stage by stage", [*matrix_grids(summary)]),
        Section("costs", "Costs", [*cost_grids(summary)]),
        Section("bounds", "Bounds", [*bound_grids(summary)]),
        Section("contamination", "Contamination", [*contamination_grids(summary)]),
        Section("integrity", "Integrity", [Words([("", line) for line in integrity_lines(summary)])]),
        Section("definitions", "What the words mean", [Words(list(summary["definitions"].items()))]),
        Section("recipe", "Recipe", [Code(summary["recipe"], "All settings")] if summary["recipe"] else []),
    ]
    found = []
    for one in every:
        parts, drawn = [part for part in one.parts if not _is_empty(part)], pictures.get(one.key, [])
        found.append(Section(one.key, one.title, [*parts, *drawn] if one.key in TABLES_FIRST else [*drawn, *parts]))
    return [one for one in found if one.parts]


def _is_empty(part: Grid | Picture | Words | Code) -> bool:
    return isinstance(part, Grid) and not part.body


def _results(summary: Summary) -> list[Grid]:
    """The table; a long one at the best learning rates, with all of them folded."""
    best = best_entries(summary)
    if len(summary["methods"]) <= LONG or len(best) == len(summary["methods"]):
        return [result_grid(summary)]
    return [result_grid(summary, best), result_grid(summary, title="At every learning rate", folded=True)]


def _unfinished(summary: Summary) -> list[Words]:
    lines = unfinished_lines(summary)
    return [Words([("", line) for line in lines], "Runs that did not finish")] if lines else []
