"""Calibration beside plain forward passes, and look-ups beside brute force and dense maps."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from model import SILENT, random_base, random_rows, same_weights, slots
from peft import get_peft_model
from rich.table import Table
from step import Setting
from timing import interleaved
from torch import nn
from verdict import Verdict, marked

from nlft.config import PrefixConfig, SparseMemoryConfig
from nlft.data.batch import in_batches
from nlft.frozen_prefix import install_prefix
from nlft.methods.protocol import TaskContext
from nlft.methods.sparse_memory import SparseMemory
from nlft.ops.slots import prototype_scores
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import memories
from nlft.prefix_store import PrefixStore

CALIBRATION = 0.9
"""Least speed of calibration, in parts of that of forward passes over the same rows."""
TASK, BACKGROUND = 16, 80
"""Rows that calibration reads: few, to be quick; `calibration.py` reads more, in a task that comes later too."""
SLOTS = 500
MANY = (2_000, 20_000)


def calibration(setting: Setting) -> tuple[list[Table], list[Verdict]]:
    """What begins a task (statistics, keys, thresholds) beside one forward pass over each of its rows."""
    base = random_base(setting.size, setting.device, setting.dtype)
    half = list(range(setting.size.L - setting.size.L // 2, setting.size.L))
    task = random_rows(setting.size, TASK, setting.tokens, seed=1)
    background = random_rows(setting.size, BACKGROUND, setting.tokens, seed=2)
    context = TaskContext("task", task, (), background, 1, 1, setting.rows, 0, 0)
    batches = in_batches([*task, *background], 16, 0)

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                base(**batch.to(setting.device).inputs(), use_cache=False)

    def begin(prefix: bool) -> None:
        config = SparseMemoryPeftConfig(task_type="CAUSAL_LM", layers_to_transform=half, slots=SLOTS)
        model = get_peft_model(same_weights(base), config).eval()
        if prefix:
            kept = PrefixConfig(memory_gb=8)
            install_prefix(model, "random", kept, PrefixStore(None, kept))
        SparseMemory(SparseMemoryConfig(kind="sparse_memory", lr=1e-3, slots=SLOTS)).begin_task(model, context)

    kinds = {"prefix off": partial(begin, False), "prefix on": partial(begin, True)}
    times = interleaved({"forward": forward, **kinds}, max(2, setting.rounds // 2), setting.device)
    title = f"Calibration of {SLOTS} slots, top {len(half)}, {TASK + BACKGROUND} rows"
    table = Table("", "s", "speed / forward", title=title)
    table.add_row("forward", f"{median(times['forward']):.2f}", "1.00")
    found = []
    for name in kinds:
        speed = median(a / b for a, b in zip(times["forward"], times[name], strict=True))
        table.add_row(name, f"{median(times[name]):.2f}", marked(speed, CALIBRATION, at_most=False))
        found.append(Verdict(f"calibration / forward: {name}", speed, CALIBRATION, at_most=False))
    return [table], found


def lookup(setting: Setting) -> tuple[list[Table], list[Verdict]]:
    """One layer's memory without gradients, beside all scores at once and beside two dense maps with as many units."""
    table = Table("slots", "tokens", "us a token", "brute force", "dense maps", title="Look-ups: times as fast")
    base = random_base(setting.size, setting.device, torch.float32)
    for count in MANY:
        model: Any = slots(base, [setting.size.L - 1], count)
        [core] = memories(model).values()
        part = core.newest
        dense = nn.Sequential(nn.Linear(core.width, count), nn.ReLU(), nn.Linear(count, core.width)).to(setting.device)
        for tokens in (1, 1024):
            x = F.normalize(torch.randn(tokens, core.width, generator=torch.Generator().manual_seed(0)), dim=1)
            x = x.to(setting.device)
            runs = {
                "own": lambda: core(x),  # noqa: B023
                "brute": lambda: brute(core, part, x),  # noqa: B023
                "dense": lambda: dense(x),  # noqa: B023
            }
            with torch.no_grad():
                times = interleaved(runs, 4 * setting.rounds, setting.device)
            each = {name: median(found) for name, found in times.items()}
            table.add_row(
                f"{count:,}", f"{tokens:,}", f"{1e6 * each['own'] / tokens:.1f}", f"{each['brute'] / each['own']:.2f}",
                f"{each['dense'] / each['own']:.2f}",
            )  # fmt: skip
    table.caption = f"A slot is read from a cosine of {SILENT} on: about 16 of 2,000."
    return [table], []


def brute(core: Any, part: Any, x: torch.Tensor) -> torch.Tensor:
    """All scores [N, M] at once, and a product with all values."""
    return prototype_scores(core.queries(x), part.keys, part.thresholds + part.shift) @ part.values
