"""What an adapter costs in decoding: latency of one token with slots on, against the same model without them.

    python eval/bench/decode.py            # one thread, float32, CPU; about a minute

A random Llama (D = 512, 12 layers, vocabulary 8,192), one sequence, one token after 64 in the cache. `clustered` keys
are as calibration leaves them on the built-in base: thresholds of 0.70 to 1.10, so that a third cannot fire.
`scattered` ones have random directions and a threshold of 0.25, so that nothing can be left out. Times are CPU seconds
of the process, medians over rounds in which all take turns. Decoding is bound by the bytes that a token reads: `bytes`
are those of whiteners and keys, without what is left out, against those of the base's weights.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from lookup import around
from model import SIZES, random_base, same_weights
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import DynamicCache

from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories

LAYERS = {"one": [6], "three": [6, 8, 10], "six": [6, 7, 8, 9, 10, 11]}
ROUNDS, BEFORE = 40, 64


def main() -> None:
    """Prints one table."""
    torch.set_num_threads(1)
    base = random_base(SIZES["small"], torch.device("cpu"), torch.float32)
    models: dict[tuple[str, ...], Any] = {("base",): base}
    for kind in ("clustered", "scattered"):
        for count in (1500, 2000):
            for name, layers in LAYERS.items():
                models[kind, f"{count:,}", name] = adapted(base, kind, count, layers)
    steps = {key: Step(model) for key, model in models.items()}
    off = adapted(base, "scattered", 2000, LAYERS["six"])
    off.base_model.disable_adapter_layers()
    steps["disabled",] = Step(off)
    times: dict[tuple[str, ...], list[float]] = {key: [] for key in steps}
    for _ in range(ROUNDS):
        for key, step in steps.items():
            begun = time.process_time()
            step()
            times[key].append(time.process_time() - begun)
    table = Table("keys", "slots", "layers", "ms a token", "of the base", "ms a layer", "bytes, of the base")
    whole = sum(one.nbytes for one in base.parameters()) - base.get_input_embeddings().weight.nbytes
    plain = median(times["base",])
    for key, found in times.items():
        one = median(found)
        number = len(LAYERS[key[2]]) if len(key) > 1 else 0
        table.add_row(
            *(*key, "", "")[:3],
            f"{1e3 * one:.2f}",
            f"{one / plain:.3f}",
            f"{1e3 * (one - plain) / number:.3f}" if number else "",
            f"{read_bytes(models[key]) / whole:.1%}" if number else "",
        )
    Console(width=120).print(table)


class Step:
    """One token behind a cache that stays as it is."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache = model, DynamicCache()
        generator = torch.Generator().manual_seed(0)
        self.run(torch.randint(3, 8192, (1, BEFORE), generator=generator))
        self.token = torch.randint(3, 8192, (1, 1), generator=generator)
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
    addresses = {}
    for block, core in memories(model).items():
        if kind == "clustered":
            keys = around(torch.randn(count // 8 + 1, core.key_width).repeat(8, 1)[:count], 30)
            thresholds = (0.95 + 0.1 * torch.randn(count)).clamp(0.7, 1.1)
        else:
            keys, thresholds = F.normalize(torch.randn(count, core.key_width), dim=1), torch.full((count,), 0.25)
        addresses[block] = (keys, thresholds)
    begin_task(model, "task", addresses)
    end_task(model)
    return model


def read_bytes(model: Any) -> int:
    """Bytes of the memories that a token of no task reads."""
    total = 0
    for core in memories(model).values():
        index = core.newest.look_up.index
        assert index is not None
        total += core.whitener.nbytes + index.columns.nbytes
    return total


if __name__ == "__main__":
    main()
