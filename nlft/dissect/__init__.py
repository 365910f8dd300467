"""Analyses at the end of a run, of where its forgetting happens."""

from __future__ import annotations
