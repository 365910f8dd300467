"""Seconds to load an exported adapter, against LoRA r8 on the same base.

    python eval/bench/reload.py [tiny] [llama-100m] [--repeats 7]

One thread, files in the page cache, medians over interleaved repeats. `adapter`: `PeftModel.from_pretrained` onto a
base that is in memory; `with base`: the base is read too. The start of the process is timed apart, in fresh ones. The
adapters hold zeros or random numbers in the sizes of three learned tasks, which takes as long to read as learned ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import nlft  # noqa: F401  (registers the pathways)
from nlft.hub import model_location
from nlft.pathways.cms.config import CmsPeftConfig
from nlft.pathways.hope.config import HopePeftConfig
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig

TASKS: tuple[str, ...] = ("people", "companies", "ships")
STARTS = {"import torch, transformers, peft": "import peft", "… and nlft": "import peft, nlft"}


def base_folder(name: str, where: Path) -> Path:
    """A model on disk: the built-in one, or a random Llama of 110 million weights."""
    if name == "tiny":
        return Path(model_location("builtin:tiny"))
    folder = where / name
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def adapters(depth: int) -> dict[str, PeftConfig]:
    """What is loaded."""
    words: Any = {"task_type": "CAUSAL_LM"}

    def slots(count: int, layers: list[int]) -> PeftConfig:
        tasks = dict.fromkeys(TASKS, count)
        return SparseMemoryPeftConfig(
            slots=count, tasks=tasks, input_dependent=True, layers_to_transform=layers, **words
        )

    return {
        "LoRA r8": LoraConfig(r=8, target_modules="all-linear", **words),
        "slots, 1500 at one layer": slots(1500, [depth // 2]),
        "slots, 1500 at three layers": slots(1500, [depth // 2 - 1, depth // 2, depth // 2 + 1]),
        "slots, 100 at one layer": slots(100, [depth // 2]),
        "CMS, rank 16": CmsPeftConfig(r=16, **words),
        "Hope": HopePeftConfig(layers_to_transform=[depth // 2], **words),
    }


def read_base(folder: Path) -> Any:
    """A base in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def bench(name: str, repeats: int, where: Path) -> None:
    """Prints one base's table."""
    folder = base_folder(name, where)
    base = read_base(folder)
    made: dict[str, Path] = {}
    for label, config in adapters(base.config.num_hidden_layers).items():
        made[label] = where / f"{name}-{len(made)}"
        model = get_peft_model(read_base(folder), config)
        model.save_pretrained(str(made[label]))
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(repeats + 1):
        for label, adapter in made.items():
            for low in (False, True):
                begun = time.perf_counter()
                fresh = read_base(folder)
                read = time.perf_counter()
                PeftModel.from_pretrained(fresh, str(adapter), low_cpu_mem_usage=low)
                done = time.perf_counter()
                taken[label, "low" if low else "plain"].append(done - read)
                if not low:
                    taken[label, "with base"].append(done - begun)
    weights = sum(tensor.numel() for tensor in base.parameters())
    print(f"\n{name}: {weights / 1e6:.1f} million weights, {repeats} repeats; milliseconds, × LoRA in brackets\n")
    print("| adapter | MB | adapter alone | with low_cpu_mem_usage | with its base |\n|---|" + "---:|" * 4)
    middle = {key: 1e3 * median(times[1:]) for key, times in taken.items()}  # the first of each warms up
    for label, adapter in made.items():
        size = (adapter / "adapter_model.safetensors").stat().st_size / 1e6
        cells = [
            f"{middle[label, way]:,.0f} ({middle[label, way] / middle['LoRA r8', way]:.2f})"
            for way in ("plain", "low", "with base")
        ]
        print(f"| {label} | {size:.1f} | {' | '.join(cells)} |", flush=True)


def starts(repeats: int) -> None:
    """Prints how long a process takes to start."""
    print("\n| start of a process | seconds |\n|---|---:|")
    for label, line in STARTS.items():
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", line], check=True, capture_output=True)
            times.append(time.perf_counter() - begun)
        print(f"| {label} | {median(times):.1f} |", flush=True)


def main() -> None:
    """Reads the arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bases", nargs="*", default=["tiny", "llama-100m"])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    starts(3)
    with tempfile.TemporaryDirectory() as where:
        for name in options.bases:
            bench(name, options.repeats, Path(where))


if __name__ == "__main__":
    main()
