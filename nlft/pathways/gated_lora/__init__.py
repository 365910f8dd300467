"""LoRA behind a gate: every task has a low-rank part of its own, which is on where the gate says so."""

from __future__ import annotations
