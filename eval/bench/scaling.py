"""Measured cost curves beside what `cost.py` computes for them; the figures of `scaling.md`.

    python eval/bench/scaling.py [--threads 4] [--rounds 3] [CURVE]...     # float32, CPU; several minutes

Curves: slots, tasks, layers, first, length, width, depth, calibration, decode. Around one reference, a random Llama of
width 256 with 12 layers, 8 rows of 128 tokens, 500 slots in the upper half, one thing changes at a time. Every ratio is
the median of those of rounds in which all take turns, with the least and the largest of them; `off` is that median over
the ratio that the model computes, so that no number is fitted. Tables are Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist, median
from typing import Any

import torch
from cost import (
    ADAM,
    Size,
    Slots,
    forward_flops,
    head_bytes,
    kmeans_flops,
    slots_saved,
    slots_step,
    whitening_flops,
)
from decode import Step as OneToken
from memory import tensor_bytes
from model import DENSITY, SILENT, Candidate, random_base, random_rows, slots
from peft import get_peft_model_state_dict
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from step import Setting, Step, measure_steps
from timing import CPU, default_threads, interleaved

from nlft.calibrate import calibrate_base
from nlft.data.batch import in_batches
from nlft.pathways.prototype import prototype_addresses
from nlft.pathways.sparse_memory.model import memories, set_statistics

REFERENCE = Size(D=256, F=688, L=12, H=4, KV=4, V=4096)
COUNT, TOKENS = 500, 1024
"""Slots a layer, and tokens of a batch."""
DECODED = 10
"""Tokens that are decoded for each round of another curve."""


@dataclass(frozen=True)
class Point:
    """One thing that is measured: a pathway at layers of a base."""

    label: str
    size: Size = REFERENCE
    first: int = 6
    layers: tuple[int, ...] | None = None
    """With a memory; all from `first` on when None."""
    M: int = COUNT
    S: int = 1
    T: int = 128

    @property
    def places(self) -> list[int]:
        """Layers with a memory."""
        return list(range(self.first, self.size.L)) if self.layers is None else list(self.layers)

    @property
    def paper(self) -> Slots:
        """The same for the cost model."""
        width = min(256, self.size.D)
        # Cosines of random keys are normal around 0, with 1 / K for a variance.
        part = NormalDist().cdf(-SILENT * width**0.5)
        return Slots(len(self.places), self.M, width, self.S, round(part * self.M))

    def build(self, base: Any) -> Any:
        """The adapted model."""
        return slots(base, self.places, self.M, self.S)


def curves() -> dict[str, list[Point]]:
    """Points by curve; the reference is one of each."""
    L = REFERENCE.L
    heads = {128: 2, 256: 4, 512: 8}
    wide = [replace(REFERENCE, D=d, F=43 * d // 16, H=h, KV=h, V=16 * d) for d, h in heads.items()]
    return {
        "slots": [Point(f"{m:,}", M=m) for m in (125, COUNT, 2000, 8000)],
        "tasks": [Point(str(s), S=s) for s in (1, 2, 4, 8, 16)],
        "layers": [Point(f"top {n}", first=L - n) for n in (1, 3, 6, 9, 11)],
        "first": [Point(str(n), first=n, layers=(n,)) for n in (1, 3, 6, 9, 11)],
        "length": [Point(str(t), T=t) for t in (64, 128, 256, 512)],
        "width": [Point(str(size.D), size=size) for size in wide],
        "depth": [Point(str(n), size=replace(REFERENCE, L=n), first=n // 2) for n in (4, 8, 12, 24)],
    }


def main() -> None:
    """Prints one table a curve."""
    ask = argparse.ArgumentParser()
    ask.add_argument("curves", nargs="*", metavar="CURVE")
    ask.add_argument("--threads", type=int, default=default_threads())
    ask.add_argument("--rounds", type=int, default=3)
    args = ask.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(width=200, highlight=False)
    known = curves()
    offs: list[float] = []
    for name in args.curves or [*known, "calibration", "decode"]:
        if name == "calibration":
            table = calibration_table(args.rounds)
        elif name == "decode":
            table = decode_table(args.rounds)
        else:
            table, found = curve_table(name, known[name], args.rounds)
            offs += found
        console.print(table)
    if offs:
        console.print(f"Measured over computed ratios of steps: {min(offs):.2f} to {max(offs):.2f}.")
    console.print(DENSITY)


def over(some: Sequence[float], others: Sequence[float]) -> list[float]:
    """Ratios of two candidates' times, round by round."""
    return [a / b for a, b in zip(some, others, strict=True)]


def spread(found: Sequence[float]) -> str:
    """Median, and the least and the largest."""
    return f"{median(found):.2f} ({min(found):.2f}..{max(found):.2f})"


def measured(point: Point, rounds: int) -> list[Step]:
    """The floor, the step and the cached step of one point."""
    setting = Setting(point.size, CPU, torch.float32, TOKENS // point.T, point.T, rounds)
    return measure_steps(setting, {"slots": Candidate(point.build, ours=True, cached=True)})


def curve_table(name: str, points: list[Point], rounds: int) -> tuple[Table, list[float]]:
    """Times, bytes and what the model says of them; also how far ratios lie off."""
    table = Table(
        name, "forward, ms", "GFLOP/s", "step / forward", "off", "cached / forward", "off", "step holds, MB",
        "computed", "adapter, MB", "AdamW, MB", box=MARKDOWN,
    )  # fmt: skip
    offs = []
    for point in points:
        floor, whole, cached = measured(point, rounds)
        forward = forward_flops(point.size, point.T)
        seconds = median(floor.seconds)
        cells = []
        for line in (whole, cached):
            ratios = over(line.seconds, floor.seconds)
            computed = slots_step(point.size, point.T, point.paper, point.first, line.prefix) / forward
            offs.append(median(ratios) / computed)
            cells += [spread(ratios), f"{offs[-1]:.2f}"]
        table.add_row(
            point.label, f"{1e3 * seconds:.0f}", f"{TOKENS * forward / seconds / 1e9:.0f}", *cells,
            f"{whole.step / 1e6:.0f}", f"{computed_step(point) / 1e6:.0f}",
            f"{point.paper.adapter_bytes(point.size) / 1e6:.1f}",
            f"{ADAM * point.paper.trained(point.size) / 1e6:.1f}",
        )  # fmt: skip
    return table, offs


def computed_step(point: Point) -> int:
    """Bytes that a step holds: what is kept for the backward pass, one block of logits, gradients."""
    saved = 4 * TOKENS * slots_saved(point.size, point.paper, point.first)
    return saved + head_bytes(point.size, TOKENS) + 4 * point.paper.trained(point.size)


def calibration_table(rounds: int) -> Table:
    """Statistics and keys of one task, on random text, beside forward passes over the same tokens."""
    table = Table(
        "slots", "tokens", "forward, s", "statistics / forward", "FLOPs / forward", "keys / forward",
        "FLOPs / forward", title="calibration", box=MARKDOWN,
    )  # fmt: skip
    batches = in_batches(random_rows(REFERENCE, 32, 128), 32, 0)
    tokens = sum(batch.input_ids.numel() for batch in batches)
    base = random_base(REFERENCE, CPU, torch.float32)
    for count in (125, 500, 2000):
        point = Point(str(count), M=count)
        model = point.build(base).eval()
        cores = memories(model)
        set_statistics(model, calibrate_base(model, list(cores), batches))
        runs = {
            "forward": partial(forwards, base, batches),
            "statistics": partial(calibrate_base, model, list(cores), batches),
            "keys": partial(prototype_addresses, model, cores, batches, batches, [], count, seed=0),
        }
        times = interleaved(runs, rounds)
        passes = tokens * forward_flops(REFERENCE, 128)
        kmeans = kmeans_flops(replace(point.paper, M=min(count, tokens)), states=min(64, tokens // count))
        table.add_row(
            f"{count:,}", f"{tokens:,}", f"{median(times['forward']):.2f}",
            spread(over(times["statistics"], times["forward"])),
            f"{1 + whitening_flops(REFERENCE, 6) * tokens / passes:.2f}",
            spread(over(times["keys"], times["forward"])), f"{3 + kmeans / passes:.2f}",
        )  # fmt: skip
    return table


def forwards(model: Any, batches: Any) -> None:
    """Plain forward passes."""
    with torch.inference_mode():
        for batch in batches:
            model(**batch.inputs(), use_cache=False)


def decode_table(rounds: int) -> Table:
    """A token behind a cache with slots over the same without them, and bytes as the adapter is saved."""
    table = Table("decode", "base, ms", "slots / base", "saved, bytes", "computed", box=MARKDOWN)
    base = random_base(REFERENCE, CPU, torch.float32)
    for point in decode_points():
        model = point.build(base).eval()
        times = interleaved({"on": OneToken(model), "off": OneToken(base)}, DECODED * rounds)
        ratios = over(times["on"], times["off"])
        saved = tensor_bytes(get_peft_model_state_dict(model).values())
        table.add_row(
            point.label, f"{1e3 * median(times['off']):.2f}", spread(ratios), f"{saved:,}",
            f"{point.paper.adapter_bytes(point.size):,}",
        )  # fmt: skip
    return table


def decode_points() -> Iterator[Point]:
    """Pathways that differ in what a token has to look up."""
    for count in (125, 500, 2000, 8000):
        yield Point(f"top 6, {count:,} slots", M=count)
    for tasks in (4, 16):
        yield Point(f"top 6, {tasks} tasks of 500", S=tasks)
    for layers in (1, 3):
        yield Point(f"top {layers}, 500 slots", first=12 - layers)


if __name__ == "__main__":
    main()
