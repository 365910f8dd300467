"""Times of several candidates that take turns in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


def default_threads() -> int:
    """Four, or as many cores as this process may use."""
    return min(4, len(os.sched_getaffinity(0)))


def settle(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(runs: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, the first round, which warms up, left out.

    All take one turn after another, so that a machine that gets slower or faster does so for all.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            settle(device)
            begun = time.perf_counter()
            run()
            settle(device)
            if number:
                times[name].append(time.perf_counter() - begun)
    return times
