"""Scoring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

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

    @field_validator("conditions", "dissect")
    @classmethod
    def once(cls, entries: list[str]) -> list[str]:
        """What is listed twice would be counted twice."""
        twice = sorted({entry for entry in entries if entries.count(entry) > 1})
        if twice:
            raise ValueError(f"{twice[0]!r} is listed twice; once is enough")
        return entries
