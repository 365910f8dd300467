"""Hope: memory that learns from the sequence it reads, beside MLP blocks, and levels of slower memory behind it."""

from __future__ import annotations
