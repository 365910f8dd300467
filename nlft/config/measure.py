"""Scoring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nlft.config.section import Section

Analysis = Literal["ablation", "recovery", "mixed", "identity", "overlap", "false_fire"]
"""Analyses of where forgetting happens."""


class MeasureConfig(Section):
    """Scoring."""

    batch_size: int = Field(default=64, ge=1)
    """Rows a forward pass."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest generated answer; the longest reference and four more tokens when empty."""
    conditions: list[Literal["off", "oracle", "ungated"]] = Field(default_factory=list)
    """Further conditions under which everything is scored after the last task: with the adapter `off`; with the part
    of the right task alone (`oracle`); with every gate and threshold wide open (`ungated`)."""
    dissect: list[Analysis] = Field(default_factory=list)
    """Further analyses after the last task, of where forgetting happens: each part left out in turn (`ablation`); each
    earlier task after ten of its train rows again (`recovery`); probes and tasks in one context (`mixed`); whether
    a prompt tells its task (`identity`); what two tasks read in common (`overlap`); how many tokens of the probes the
    adapter changes (`false_fire`)."""
