"""Where the time of one training step goes: torch's profiler, its operations booked under the part they belong to.

An operation belongs to the innermost part around it; one of the backward pass belongs to the part whose forward
operation it undoes. What is left of a step's time is Python, and the launching of operations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from nlft.anatomy import root_of
from nlft.pathways.block import PathwayLayer

MARK = "part: "
STEP, BASE, HEAD, QUERIES, LOOKUP, ADAPTER = "loss", "base", "head", "queries", "look-up and values", "adapter"
OPTIMIZER, PYTHON = "optimiser", "Python, launching"


@contextmanager
def parts_marked(model: Any) -> Iterator[None]:
    """The parts of a model are named for the profiler: decoder, head, the memories and their queries, LoRA's maps."""
    root = root_of(model)
    marked: list[tuple[Any, str]] = []

    def mark(owner: Any, method: str, part: str) -> None:
        inner = getattr(owner, method)

        def named(*args: Any, **kwargs: Any) -> Any:
            with record_function(MARK + part):
                return inner(*args, **kwargs)

        # On the instance, for a hook would make a layer count as listened to.
        object.__setattr__(owner, method, named)
        marked.append((owner, method))

    mark(root.get_decoder(), "forward", BASE)
    mark(root.get_output_embeddings(), "forward", HEAD)
    for module in root.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module, torch.nn.Module):
            mark(module, "forward", ADAPTER)
            mark(module.base_layer, "forward", BASE)
        if isinstance(module, PathwayLayer):
            for core in module.cores.values():
                mark(core, "forward", LOOKUP)
                if hasattr(core, "queries"):
                    mark(core, "queries", QUERIES)
    try:
        yield
    finally:
        for owner, method in marked:
            object.__delattr__(owner, method)


def part_of(event: Any, parts: dict[int, str]) -> tuple[str, bool]:
    """The part that an event belongs to, and whether to its backward pass."""
    above = event
    while above is not None:
        if above.name.startswith(MARK):
            return above.name.removeprefix(MARK), False
        if above.name.startswith("Optimizer."):
            return OPTIMIZER, False
        if above.name.startswith("autograd::engine"):
            return parts.get(above.sequence_nr, STEP), True
        above = above.cpu_parent
    return STEP, False


def book(events: Any) -> dict[str, float]:
    """Seconds by part; those of the CPU, or of the GPU where it did any work."""
    own = [event for event in events if event.device_type.name == "CPU"]
    on_gpu = any(event.self_device_time_total for event in own)
    forward = {}
    for event in own:
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::engine"):
            part, backward = part_of(event, {})
            if not backward:
                forward[event.sequence_nr] = (
                    part  # the last one: before it, operations without gradient bear its number
                )
    seconds: dict[str, float] = defaultdict(float)
    for event in own:
        part, backward = part_of(event, forward)
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if event.name.startswith(MARK) or event.name.startswith("Optimizer."):
            seconds[PYTHON] += event.self_cpu_time_total / 1e6  # between the operations of the part
        else:
            seconds[part + (", backward" if backward else "")] += time / 1e6
    return dict(seconds)


def breakdown(model: Any, step: Callable[[], None], device: torch.device, steps: int = 3) -> dict[str, float]:
    """Seconds of a step by part."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with parts_marked(model), profile(activities=activities) as found:
        for _ in range(steps):
            with record_function(MARK + STEP):
                step()
    return {part: seconds / steps for part, seconds in book(found.events()).items()}


def breakdown_table(found: dict[str, dict[str, float]]) -> Table:
    """Milliseconds by part, one column a method."""
    parts = sorted({part for one in found.values() for part in one}, key=lambda part: (part == PYTHON, part))
    table = Table("ms", *found, title="Where a step goes (under the profiler)")
    for part in parts:
        cells = [f"{1e3 * one[part]:.1f}" if part in one else "" for one in found.values()]
        if any(cell not in ("", "0.0") for cell in cells):
            table.add_row(part, *cells)
    table.add_row("all", *(f"{1e3 * sum(one.values()):.1f}" for one in found.values()), style="bold")
    return table
