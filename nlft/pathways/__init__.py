"""Pathways: trainable memories beside the blocks of a frozen base, each a registered PEFT tuner."""

from __future__ import annotations

# Loading PEFT registers every pathway (see nlft/__init__.py). Doing it before any submodule is imported keeps
# the registration from running in the middle of one of them.
import peft  # noqa: F401
