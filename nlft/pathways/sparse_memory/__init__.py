"""Sparse memory: slots beside the MLP blocks, read by few tokens and trained row by row."""

from __future__ import annotations
