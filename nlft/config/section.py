"""What the parts of a recipe's schema share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

NAME = r"^[A-Za-z0-9][A-Za-z0-9 _.-]*$"
"""Names become columns of tables and parts of file names."""


class Section(BaseModel):
    """A part of a recipe: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def parse_share(value: Any) -> Any:
    """`1%` is 0.01. A sign is read, so that `-1%` is out of range, and not no number."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*%\s*", value):
        return float(value.strip().rstrip("% ")) / 100
    return value


Share = Annotated[float, BeforeValidator(parse_share)]
"""A number between 0 and 1, or a percentage."""
