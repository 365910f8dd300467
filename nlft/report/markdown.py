"""`report.md`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nlft.report.figures import Pictures
from nlft.report.findings import short_facts
from nlft.report.picture import Picture
from nlft.report.rows import Grid
from nlft.report.sections import Code, Words, sections_of

Summary = Mapping[str, Any]


def write_markdown(summary: Summary, pictures: Pictures) -> str:
    """The report as Markdown; pictures are linked beside it, text from files is escaped."""
    base = summary["base"]
    parts = [f"# {plain_text(summary['name'])}", f"**{plain_text(summary.get('paragraph') or summary['outcome'])}**"]
    parts += [plain_text(fact) for fact in short_facts(summary)]
    parts.append(
        f"Base: {plain_text(base['model'])}"
        + (f" + adapter {plain_text(base['adapter'])}" if base.get("adapter") else "")
        + (f", revision {plain_text(base['revision'])}." if base["revision"] else ".")
    )
    for section in sections_of(summary, pictures):
        parts.append(f"## {section.title}")
        parts += [_part(part) for part in section.parts]
    return "\n\n".join(parts) + "\n"


def _part(part: Grid | Picture | Words | Code) -> str:
    if isinstance(part, Picture):
        return f"![{plain_text(part.title)}](figures/{part.png.name})\n\n{plain_text(part.words)}"
    title = f"### {plain_text(part.title)}\n\n" if part.title else ""
    if isinstance(part, Grid):
        return title + grid_text(part)
    if isinstance(part, Code):
        return title + fenced_text(part.text.rstrip())
    return title + "\n".join(f"- {plain_text(_stop(line))}" for _, line in part.lines)


def _stop(line: str) -> str:
    """A sentence with its full stop."""
    return line if line.endswith((".", "!", "?")) else f"{line}."


def grid_text(grid: Grid) -> str:
    """A table with its caption."""
    lines = [_line(grid.head), "|---" + "|---:" * (len(grid.head) - 1) + "|", *[_line(row) for row in grid.body]]
    return "\n".join(lines) + (f"\n\n{plain_text(grid.caption)}" if grid.caption else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(plain_text(cell) for cell in cells)} |"


def plain_text(text: str | None) -> str:
    """Text that Markdown and HTML renderers show as it is, on one line."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", line)


def fenced_text(text: str, language: str = "yaml") -> str:
    """A code block that the text cannot end."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
