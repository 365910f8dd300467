"""Pictures of a summary, each a PNG with the CSV of its numbers beside it. Drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlft.report.bars import draw_areas, draw_causes, draw_costs, draw_forest
from nlft.report.frontiers import draw_frontiers
from nlft.report.heat import draw_ablations, draw_overlaps
from nlft.report.matrices import draw_matrices
from nlft.report.picture import Picture
from nlft.report.retention import draw_retention

Pictures = Mapping[str, list[Picture]]
"""Pictures by the section of the report that they belong to."""
DRAWN = {
    "matched": (draw_areas,),
    "frontiers": (draw_frontiers,),
    "where": (draw_causes, draw_ablations, draw_overlaps),
    "probes": (draw_forest,),
    "stages": (draw_retention, draw_matrices),
    "costs": (draw_costs,),
}


def draw_figures(summary: Mapping[str, Any], folder: Path) -> Pictures:
    """Draws everything that the summary has numbers for into `folder`, which is made and emptied of old figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.png"), *folder.glob("*.csv")]:
        old.unlink()  # a picture of an earlier report must not outlive its numbers
    return {
        section: [picture for draw in every for picture in draw(summary, folder)] for section, every in DRAWN.items()
    }
