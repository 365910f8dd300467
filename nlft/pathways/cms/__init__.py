"""A continuum memory system (CMS): levels of residual memory, each trained at a period of its own."""

from __future__ import annotations
