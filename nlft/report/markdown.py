"""`report.md`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nlft.report.picture import Picture
from nlft.report.rows import Grid, best_entries, cost_grid, integrity_lines, matched_grid, matrix_grid, result_grid

Summary = Mapping[str, Any]


def write_markdown(summary: Summary, pictures: Sequence[Picture]) -> str:
    """The report as Markdown; pictures are linked beside it, text from files is escaped."""
    base = summary["base"]
    parts = [
        f"# {_text(summary['name'])}",
        f"**{_text(summary['outcome'])}**",
        f"Base: {_text(base['model'])}" + (f", revision {_text(base['revision'])}" if base["revision"] else "") + ".",
        "## Result",
        _grid(result_grid(summary)),
    ]
    unfinished = [run for run in summary["runs"] if run["status"] != "ok"]
    if unfinished:
        parts.append("### Runs that did not finish")
        parts.append("\n".join(f"- {_text(run['run_id'])}: {_text(run['status'])}" for run in unfinished))
    matched = [grid for moment in ("end", "now") if (grid := matched_grid(summary, moment))]
    if matched:
        parts += ["## Forgetting at matched learning", *[_grid(grid) for grid in matched]]
    parts.append("## Scores after every task")
    for entry in best_entries(summary):
        parts += [f"### {_text(entry['method'])}, lr {entry['lr']:g}", _grid(matrix_grid(summary, entry))]
    parts += (
        ["## Figures", *[f"![{_text(p.title)}](figures/{p.png.name})\n\n{p.words}" for p in pictures]]
        if pictures
        else []
    )
    parts += ["## What the words mean", "\n".join(f"- {_text(words)}." for words in summary["definitions"].values())]
    parts += ["## Integrity", "\n".join(f"- {_text(line)}" for line in integrity_lines(summary))]
    parts += ["## Costs", _grid(cost_grid(summary))]
    if summary["recipe"]:
        parts += ["## Recipe", _fenced(summary["recipe"].rstrip())]
    return "\n\n".join(parts) + "\n"


def _grid(grid: Grid) -> str:
    lines = [_line(grid.head), "|---" + "|---:" * (len(grid.head) - 1) + "|", *[_line(row) for row in grid.body]]
    return "\n".join(lines) + (f"\n\n{_text(grid.caption)}" if grid.caption else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(text: str | None) -> str:
    """Text that Markdown and HTML renderers show as it is, on one line."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)


def _fenced(text: str) -> str:
    """A code block that the text cannot end."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}\n{fence}"
