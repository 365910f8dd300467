"""Times of several candidates that take turns in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

CPU = torch.device("cpu")


def default_threads() -> int:
    """Four, or as many cores as this process may use."""
    return min(4, len(os.sched_getaffinity(0)))


def settle(device: torch.device) -> None:
    """Waits until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device = CPU,
    clock: Callable[[], float] = time.perf_counter,
    least: float = 0.0,
) -> dict[str, list[float]]:
    """Seconds of a call of every candidate in every round, the first round, which warms up, left out.

    All take one turn after another, so that a machine that gets slower or faster does so for all.

    Args:
        clock: gives seconds; `time.process_time` counts what this process computes, whoever else does.
        least: seconds of a turn; a call that is shorter is repeated.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            settle(device)
            calls, begun = 0, clock()
            while True:
                run()
                settle(device)
                calls += 1
                if clock() - begun >= least:
                    break
            if number:
                times[name].append((clock() - begun) / calls)
    return times
