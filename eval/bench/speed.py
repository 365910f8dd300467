"""The one table of ratios: what nlft costs beside PEFT's LoRA, full finetuning, lm-eval and the base itself.

    python eval/bench/speed.py                                    # all parts, float32, CPU; about six minutes
    python eval/bench/speed.py step decode --threads 2            # some parts
    python eval/bench/speed.py step --profile                     # and where the time of a step goes
    python eval/bench/speed.py --device cuda --dtype bfloat16 --size 1b --rows 8 --tokens 512

One process, pinned threads, medians over repeats in which all take turns. Bases are Llamas of random weights, by
default D = 512, 12 layers, 8 heads, a vocabulary of 8,192 and 8 rows of 128 tokens. A ratio that has a target is green
where it is met and has a ! where it is missed; the last table lists all targets.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from calibration import calibration
from decode import decode
from harness import evaluation
from lookup import lookup
from model import SIZES
from rich.console import Console
from rich.table import Table
from step import Setting, steps, where_a_step_goes
from timing import default_threads
from verdict import Verdict, verdict_table

PARTS: dict[str, Callable[[Setting], tuple[list[Table], list[Verdict]]]] = {
    "step": steps,
    "decode": decode,
    "evaluation": evaluation,
    "calibration": calibration,
    "lookup": lookup,
}


def main() -> None:
    """Runs the chosen parts and prints their tables, and all targets at the end."""
    ask = argparse.ArgumentParser(description="Ratios of time and memory.")
    ask.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all when none is named")
    ask.add_argument("--threads", type=int, default=default_threads())
    ask.add_argument("--device", default="cpu")
    ask.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    ask.add_argument("--size", choices=tuple(SIZES), default="small")
    ask.add_argument("--rows", type=int, default=8)
    ask.add_argument("--tokens", type=int, default=128)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--profile", action="store_true", help="also show where the time of a step goes")
    args = ask.parse_args()
    odd = sorted(set(args.parts) - set(PARTS))
    if odd:
        ask.error(f"there is no part {odd[0]!r}; choose from {', '.join(PARTS)}")
    torch.set_num_threads(args.threads)
    setting = Setting(
        SIZES[args.size], torch.device(args.device), getattr(torch, args.dtype), args.rows, args.tokens, args.rounds
    )
    console = Console(width=170, highlight=False)
    on = torch.cuda.get_device_name(setting.device) if setting.device.type == "cuda" else f"{args.threads} threads"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    console.print(
        f"{on}, {args.dtype}, {setting.size}, {args.rows} x {args.tokens} tokens; {versions}; load of the machine"
        f" {os.getloadavg()[0]:.1f}"
    )
    verdicts: list[Verdict] = []
    for part in args.parts or PARTS:
        begun = time.perf_counter()
        tables, found = PARTS[part](setting)
        verdicts += found
        console.print(*tables, f"{part}: {time.perf_counter() - begun:.0f} s", sep="\n")
    if args.profile:
        console.print(where_a_step_goes(setting))
    console.print(verdict_table(verdicts))


if __name__ == "__main__":
    main()
