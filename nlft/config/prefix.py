"""The frozen prefix."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field

from nlft.config.section import Section

FOLDER = ".frozen-prefix"
"""Of a result folder, for what is kept in files; it is there until a run or comparison has come to its end."""
OWN = re.compile(r"[0-9a-f]{64}\.safetensors|\.[0-9a-f]{64}\.[0-9a-f]{32}")
"""Names of its files, and of those that are not whole yet."""


class PrefixConfig(Section):
    """What the base computes below the first layer that a method touches: kept by row instead of computed again."""

    enabled: bool = True
    """Whether it is kept. Scores are the same up to rounding."""
    memory_gb: float = Field(default=1.0, ge=0)
    """Most memory that it takes in each process, in 10^9 bytes; what is beyond lies in files. What calibration reads
    several times takes half as much beside it."""
    disk_gb: float = Field(default=8.0, ge=0)
    """Most room that its files take in the output folder, in 10^9 bytes; what is beyond is computed in every pass."""
    dtype: Literal["base", "bfloat16"] = "base"
    """How it is kept: as the base computes, or rounded to bfloat16, half as large as float32."""
