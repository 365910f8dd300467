"""`report.html`: one file that needs no network and runs no script."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from nlft.report.picture import Picture
from nlft.report.rows import best_entries, cost_grid, integrity_lines, matched_grid, matrix_grid, result_grid

Summary = Mapping[str, Any]


def write_html(summary: Summary, pictures: Sequence[Picture]) -> str:
    """The report as one HTML page; everything that comes from data is escaped, pictures are inside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = (files("nlft.report") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        summary=summary,
        result=result_grid(summary),
        matched=[grid for moment in ("end", "now") if (grid := matched_grid(summary, moment))],
        matrices=[(entry, matrix_grid(summary, entry)) for entry in best_entries(summary)],
        pictures=[(picture, _inside(picture)) for picture in pictures],
        integrity=integrity_lines(summary),
        costs=cost_grid(summary),
        devices=sorted({f"{run['device']}, {run['dtype']}" for run in summary["runs"] if run["device"]}),
        unfinished=[run for run in summary["runs"] if run["status"] != "ok"],
    )


def _inside(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.png.read_bytes()).decode()
