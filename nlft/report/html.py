"""`report.html`: one file that needs no network; its one script sorts tables and shows a chart's values."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from nlft.report.chart import MARKER_PATHS, charts_of
from nlft.report.figures import Pictures
from nlft.report.findings import short_facts
from nlft.report.picture import Picture
from nlft.report.rows import Grid
from nlft.report.sections import sections_of

Summary = Mapping[str, Any]


def write_html(summary: Summary, pictures: Pictures) -> str:
    """The report as one HTML page; everything that comes from data is escaped, pictures are inside."""
    environment = Environment(
        loader=FunctionLoader(_source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inside"] = _inside
    environment.globals["shade_of"] = _shade_of
    style, script = _source("report.css"), _source("report.js")
    charts = charts_of(summary)
    sections = sections_of(summary, _without_twins(pictures, bool(charts)))
    return environment.get_template("report.html.j2").render(
        summary=summary,
        paragraph=summary.get("paragraph") or summary["outcome"],
        facts=short_facts(summary),
        tasks=_tasks(summary),
        sections=sections,
        charts=charts,
        paths=MARKER_PATHS,
        devices=sorted({f"{run['device']}, {run['dtype']}" for run in summary["runs"] if run["device"]}),
        # Our own files, not data: the only text that is not escaped. The policy lets nothing else run.
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}; "
        "base-uri 'none'; form-action 'none'",
    )


def _tasks(summary: Summary) -> str:
    """The tasks in the order in which they were trained, or in how many orders."""
    orders = list(dict.fromkeys(tuple(run["order"]) for run in summary["runs"] if run["status"] == "ok"))
    if len(orders) > 1:
        return f"tasks: {', '.join(summary['tasks'])} ({len(orders)} orders)"
    return f"tasks in order: {' → '.join(orders[0] if orders else summary['tasks'])}"


def _without_twins(pictures: Pictures, charted: bool) -> Pictures:
    """Pictures that the page does not have in another form: the chart and the shaded tables take their place."""
    return {
        section: [
            one
            for one in own
            if not one.png.stem.startswith("matrix-") and not (charted and one.png.stem == "learning-forgetting")
        ]
        for section, own in pictures.items()
    }


def _shade_of(grid: Grid, i: int, j: int) -> str:
    """Classes of a cell: s0 to s9, and framed."""
    level = grid.shades[i][j]
    shade = "" if level is None else f"s{min(max(round(9 * level), 0), 9)}"
    return f"{shade} framed".strip() if (i, j) in grid.framed else shade


def _source(name: str) -> str:
    return (files("nlft.report") / "templates" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """How a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inside(picture: Picture) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.png.read_bytes()).decode()
