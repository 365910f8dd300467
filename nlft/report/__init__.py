"""Reports: a folder of results in, `summary.json`, `report.md`, `report.html` and figures out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nlft.measure.summary import summarise
from nlft.report.terminal import table

__all__ = ["table", "write_report"]


def write_report(folder: Path) -> dict[str, Any]:
    """Writes summary, figures and both reports of a run or a comparison into its folder.

    Returns:
        The summary; keys in `nlft.measure.summary`.

    Raises:
        DataError: the folder has no results, or results that do not fit together.
    """
    from nlft.report.figures import draw_figures
    from nlft.report.html import write_html
    from nlft.report.markdown import write_markdown

    summary = summarise(folder)
    pictures = draw_figures(summary, folder / "figures")
    for name, text in (
        ("report.md", write_markdown(summary, pictures)),
        ("report.html", write_html(summary, pictures)),
    ):
        partial = folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / name)
    return summary
