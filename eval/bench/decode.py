"""What an adapter costs in decoding: latency of one token with it on, against the same base without it.

    python eval/bench/decode.py            # one thread, float32, CPU; about a minute

A random Llama (D = 512, 12 layers, vocabulary 8,192), one token of every row after 64 in the cache. Keys of slots are
`clustered` as calibration leaves them, or `scattered` so that nothing can be left out (`model.addresses`). Times are
medians over rounds in which all take turns, CPU seconds of the process where one thread works. Decoding is bound by the
bytes that a token reads: `bytes` are those of whiteners and keys, without what is left out, against those of the base's
weights.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from statistics import median
from typing import Any

import torch
from model import SIZES, addresses, candidates, random_base, same_weights
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from step import RIVAL, Setting
from timing import CPU, interleaved
from transformers import DynamicCache
from verdict import Verdict, marked

from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories

ROUNDS, BEFORE = 40, 64
BASE, TARGET = "base", 1.05
"""The base's name in the table, and most that a token may take with slots on, in times of the base."""
OTHERS = ("product keys", "CMS", "Hope")
"""How the names of other methods begin that decode."""


def main() -> None:
    """Prints one table."""
    torch.set_num_threads(1)
    setting = Setting(SIZES["small"], CPU, torch.float32)
    tables, _ = decode(setting, (1500, 2000), (1,), disabled=True)
    Console(width=140).print(*tables)


def decode(
    setting: Setting, counts: Iterable[int] = (2000,), rows: Iterable[int] = (1, 8), disabled: bool = False
) -> tuple[list[Table], list[Verdict]]:
    """Steps of one token behind a cache, adapter on over the bare base.

    Args:
        counts: slots a layer.
        rows: how many are decoded together, one after the other.
        disabled: also slots that are switched off.
    """
    base = random_base(setting.size, setting.device, setting.dtype)
    models: dict[tuple[str, ...], Any] = {(BASE,): base}
    places: dict[tuple[str, ...], int] = {}
    for kind in ("clustered", "scattered"):
        for count in counts:
            for layers in upper(setting.size.L):
                key = (f"slots, {kind}", f"{count:,}", str(len(layers)))
                models[key], places[key] = adapted(base, kind, count, layers), len(layers)
    if disabled:
        models["slots, disabled",] = adapted(base, "scattered", 2000, upper(setting.size.L)[-1])
        models["slots, disabled",].base_model.disable_adapter_layers()
    for name, candidate in candidates(setting.size).items():
        if name == RIVAL or name.startswith(OTHERS):
            models[name,] = candidate.build(base).eval()
    alone = setting.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    whole = sum(one.nbytes for one in base.parameters()) - base.get_input_embeddings().weight.nbytes
    tables, found = [], []
    for number in rows:
        steps = {key: Step(model, number) for key, model in models.items()}
        named = {str(key): step for key, step in steps.items()}
        times = interleaved(named, ROUNDS, setting.device, clock)
        plain = times[str((BASE,))]
        table = Table(
            "method", "slots", "layers", "ms a step", "/ base", "ms a layer", "bytes / base",
            title=f"Decoding one token behind {BEFORE}, rows: {number}",
        )  # fmt: skip
        for key, model in models.items():
            seconds = times[str(key)]
            over = median(a / b for a, b in zip(seconds, plain, strict=True))
            target = TARGET if key in places else None
            cells = ["", ""]
            if key in places:
                cells = [f"{1e3 * (median(seconds) - median(plain)) / places[key]:.3f}"]
                read = read_bytes(model)
                cells.append("" if read is None else f"{read / whole:.1%}")
                what = f"{key[0]} {key[1]}, layers: {key[2]}, rows: {number}"
                found.append(Verdict(f"decode / base: {what}", over, TARGET))
            table.add_row(*(*key, "", "")[:3], f"{1e3 * median(seconds):.2f}", marked(over, target), *cells)
        tables.append(table)
    return tables, found


def upper(L: int) -> list[list[int]]:
    """Places of a memory: the first layer of the upper half, every second one, and all: of 12 layers 1, 3 and 6."""
    half = list(range(L - L // 2, L))
    return [half[:1], half[::2], half]


class Step:
    """One token of every row behind a cache that stays as it is."""

    def __init__(self, model: Any, rows: int = 1) -> None:
        self.model, self.cache = model, DynamicCache()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, model.config.vocab_size, (rows, BEFORE + 1), generator=generator).to(model.device)
        self.run(ids[:, :-1])
        self.token = ids[:, -1:]
        self()

    def __call__(self) -> None:
        """Reads the token and takes it back."""
        self.run(self.token)
        self.cache.crop(-1)

    def run(self, ids: torch.Tensor) -> None:
        """A forward pass."""
        with torch.inference_mode():
            self.model(input_ids=ids, past_key_values=self.cache, use_cache=True)


def adapted(base: Any, kind: str, count: int, layers: list[int]) -> Any:
    """A model with one finished task."""
    model = get_peft_model(
        same_weights(base), SparseMemoryPeftConfig(task_type="CAUSAL_LM", layers_to_transform=layers)
    ).eval()
    torch.manual_seed(0)
    begin_task(
        model, "task", {block: addresses(kind, count, core.key_width) for block, core in memories(model).items()}
    )
    end_task(model)
    return model


def read_bytes(model: Any) -> int | None:
    """Bytes of the memories that a token of no task reads; None where there is no index (not on a CPU)."""
    total = 0
    for core in memories(model).values():
        index = core.newest.look_up.index
        if index is None:
            return None
        total += core.whitener.nbytes + index.columns.nbytes
    return total


if __name__ == "__main__":
    main()
