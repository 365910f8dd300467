"""Peak memory of tensors: what a function holds at most, beyond what was held when it was called.

On a GPU the allocator counts. On a CPU torch has no counter, but its profiler notes every block that the allocator
gives and takes, by address; the peak is the largest sum of those that are alive. Blocks that were there before do not
count, nor does it count less when they are freed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from nlft.frozen_prefix import prefix_of
from nlft.pathways.sparse_memory.layer import TaskSlots


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that `run` holds at once on a device, beyond those held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return highest((event["ts"], event["args"]) for event in events if event["name"] == "[memory]")


def highest(events: Iterable[tuple[float, dict[str, Any]]]) -> int:
    """The largest sum of bytes alive at once.

    Args:
        events: moment, and `Addr` and `Bytes` (below zero where a block is freed) of each block given or taken.
    """
    alive: dict[int, int] = {}
    now = most = 0
    for _, event in sorted(events, key=lambda pair: (pair[0], pair[1]["Ev Idx"])):
        if event["Bytes"] > 0:
            alive[event["Addr"]] = event["Bytes"]
            now += event["Bytes"]
        else:
            now -= alive.pop(event["Addr"], 0)  # 0: it was there before
        most = max(most, now)
    return most


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def kept_bytes(model: nn.Module, device: torch.device, prefix: bool) -> int:
    """Bytes on a device of what a model keeps to be fast: what look-ups know, with `prefix` its frozen prefix."""
    own = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *model.buffers()]}
    tasks = [one for one in model.modules() if isinstance(one, TaskSlots)]
    found = [tensor for task in tasks for tensor in tensors_in(task.look_up.known)]
    states = prefix_of(model) if prefix else None
    if states is not None:
        found += [states.store.tables[address] for address in {address for address, _ in states.known.values()}]
    here = [one for one in found if one.device.type == device.type]
    return tensor_bytes(one for one in here if one.untyped_storage().data_ptr() not in own)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in tuples of tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for one in value for tensor in tensors_in(one)] if isinstance(value, tuple) else []


def weight_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of what a model keeps frozen (buffers too), and of what it trains."""
    trained = [one for one in model.parameters() if one.requires_grad]
    frozen = [one for one in model.parameters() if not one.requires_grad]
    return tensor_bytes([*frozen, *model.buffers()]), tensor_bytes(trained)
