"""Peak memory between two moments: of the process, and on the GPU."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Peak:
    """Most memory held at once, bytes; None where the machine does not tell."""

    process: int | None
    """Resident memory of the whole process, libraries included."""
    gpu: int | None
    """Tensors on the device."""


def reset_peak(device: torch.device) -> None:
    """Forgets earlier peaks. The kernel's counter is reset by what proc(5) says of `clear_refs`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # not Linux, or not allowed: `read_peak` then says None
        (PROCESS / "clear_refs").write_text("5")


def read_peak(device: torch.device) -> Peak:
    """The peaks since `reset_peak`; None for a counter that could not be reset."""
    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    if not os.access(PROCESS / "clear_refs", os.W_OK):
        return Peak(None, gpu)
    lines = [line.split() for line in (PROCESS / "status").read_text().splitlines() if line.startswith("VmHWM:")]
    return Peak(1024 * int(lines[0][1]) if lines else None, gpu)
