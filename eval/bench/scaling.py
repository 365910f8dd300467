"""Measured cost curves beside what `cost.py` computes for them; the figures of `scaling.md`.

    python eval/bench/scaling.py [--threads 4] [--rounds 3] [CURVE]...     # float32, CPU; a few minutes

Curves: slots, tasks, layers, first, length, width, depth, calibration, decode. Around one reference, a random Llama of
width 256 with 12 layers, 8 rows of 128 tokens, 500 slots in the upper half, one thing changes at a time. The model has
one free number, the FLOP/s, taken from the frozen forward pass of the reference; `off` is measured over computed time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
    prefix_bytes,
    slots_saved,
    slots_step,
    whitening_flops,
)
from memory import tensor_bytes
from model import SILENT, Candidate, random_base, random_rows, slots
from peft import get_peft_model_state_dict
from rich.console import Console
from rich.table import Table
from step import FLOOR, Setting, Step, measure_steps, named
from timing import default_threads, interleaved

from nlft.calibrate import calibrate_base
from nlft.data.batch import in_batches
from nlft.pathways.prototype import prototype_addresses
from nlft.pathways.sparse_memory.model import memories, set_statistics

REFERENCE = Size(D=256, F=688, L=12, H=4, KV=4, V=4096)
COUNT, TOKENS = 500, 1024
"""Slots a layer, and tokens of a batch."""
DECODED = 24
"""Tokens that are written after a prompt of one row."""


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
    heads = {128: 2, 256: 4, 512: 8, 768: 12}
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
    console = Console(width=170)
    known = curves()
    wanted = args.curves or [*known, "calibration", "decode"]
    speed: float | None = None
    for name in wanted:
        if name == "calibration":
            console.print(calibration_table())
        elif name == "decode":
            console.print(decode_table(args.rounds))
        else:
            points = known[name]
            found = [measured(point, args.rounds) for point in points]
            if speed is None:
                at = next((i for i, one in enumerate(points) if one.size == REFERENCE and one.T == 128), 0)
                speed = TOKENS * forward_flops(points[at].size, points[at].T) / median(floor_of(found[at]).seconds)
                console.print(f"The frozen forward pass runs at {speed / 1e9:.0f} GFLOP/s.")
            console.print(curve_table(name, points, found, speed))


def floor_of(lines: list[Step]) -> Step:
    """The frozen forward pass among measured lines."""
    return named(lines, FLOOR)


def measured(point: Point, rounds: int) -> list[Step]:
    """The floor, the step and the cached step of one point."""
    setting = Setting(point.size, torch.device("cpu"), torch.float32, TOKENS // point.T, point.T, rounds)
    return measure_steps(setting, {"slots": Candidate(point.build, ours=True, cached=True)})


def curve_table(name: str, points: list[Point], found: list[list[Step]], speed: float) -> Table:
    """Times, bytes and what the model says of them."""
    table = Table(
        name, "forward, ms", "off", "step, ms", "off", "cached, ms", "off", "step / forward", "cached / forward",
        "step holds, MB", "computed", "adapter, MB", "Adam, MB", "cache, B a token",
    )  # fmt: skip
    for point, lines in zip(points, found, strict=True):
        floor, whole, cached = lines
        flops = (
            forward_flops(point.size, point.T),
            slots_step(point.size, point.T, point.paper, point.first, False),
            slots_step(point.size, point.T, point.paper, point.first, True),
        )
        times = [median(line.seconds) for line in (floor, whole, cached)]
        cells = []
        for seconds, one in zip(times, flops, strict=True):
            cells += [f"{1e3 * seconds:.0f}", f"{seconds * speed / (TOKENS * one):.2f}"]
        trained = point.paper.trained(point.size)
        table.add_row(
            point.label, *cells, f"{times[1] / times[0]:.2f}", f"{times[2] / times[0]:.2f}",
            f"{whole.step / 1e6:.0f}",
f"{computed_step(point) / 1e6:.0f}",
            f"{point.paper.adapter_bytes(point.size) / 1e6:.1f}", f"{ADAM * trained / 1e6:.1f}",
            f"{prefix_bytes(point.size, 4):,}",
        )  # fmt: skip
    return table


def computed_step(point: Point) -> int:
    """Bytes that a step holds: what is kept for the backward pass, one block of logits, gradients."""
    saved = 4 * TOKENS * slots_saved(point.size, point.paper, point.first)
    return saved + head_bytes(point.size, TOKENS) + 4 * point.paper.trained(point.size)


def calibration_table() -> Table:
    """Statistics and keys of one task, on random text, beside forward passes over the same tokens."""
    table = Table(
        "slots", "tokens", "forward, s", "statistics, s", "/ forward", "FLOPs / forward", "keys, s", "/ forward",
        "FLOPs / forward", title="calibration",
    )  # fmt: skip
    rows = random_rows(REFERENCE, 64, 128)
    batches = in_batches(rows, 64, 0)
    tokens = sum(len(row.ids) for row in rows)
    base = random_base(REFERENCE, torch.device("cpu"), torch.float32)
    for count in (125, 500, 2000):
        point = Point(str(count), M=count)
        model = point.build(base).eval()
        cores = memories(model)
        plain = timed(lambda: forwards(base, batches))
        statistics: dict[str, Any] = {}
        first = timed(lambda: statistics.update(calibrate_base(model, list(cores), batches)))  # noqa: B023
        set_statistics(model, statistics)
        keys = timed(lambda: prototype_addresses(model, cores, batches, batches, [], count, seed=0))  # noqa: B023
        passes = tokens * forward_flops(REFERENCE, 128)
        kmeans = kmeans_flops(replace(point.paper, M=min(count, tokens)), states=min(64, tokens // count))
        table.add_row(
            f"{count:,}", f"{tokens:,}", f"{plain:.2f}", f"{first:.2f}", f"{first / plain:.2f}",
            f"{(1 + whitening_flops(REFERENCE, 6) * tokens / passes):.2f}", f"{keys:.2f}", f"{keys / plain:.2f}",
            f"{(3 + kmeans / passes):.2f}",
        )  # fmt: skip
    return table


def forwards(model: Any, batches: Any) -> None:
    """Plain forward passes."""
    with torch.inference_mode():
        for batch in batches:
            model(**batch.inputs(), use_cache=False)


def timed(run: Callable[[], Any]) -> float:
    """Seconds of the second of two runs."""
    run()
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def decode_table(rounds: int) -> Table:
    """Milliseconds a written token with slots, over the same without them, and bytes as the adapter is saved."""
    table = Table("pathway", "base, ms a token", "with slots", "ratio", "saved, bytes", "computed", title="decode")
    base = random_base(REFERENCE, torch.device("cpu"), torch.float32)
    ids = torch.tensor([random_rows(REFERENCE, 1, 32)[0].ids])
    for point in decode_points():
        model = point.build(base).eval()
        runs = {"on": lambda: written(model, ids), "off": lambda: written(base, ids)}  # noqa: B023
        times = interleaved(runs, 2 * rounds, torch.device("cpu"))
        each = {name: 1e3 * median(seconds) / DECODED for name, seconds in times.items()}
        saved = tensor_bytes(get_peft_model_state_dict(model).values())
        table.add_row(
            point.label, f"{each['off']:.2f}", f"{each['on']:.2f}", f"{each['on'] / each['off']:.2f}", f"{saved:,}",
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


def written(model: Any, ids: torch.Tensor) -> None:
    """Writes tokens greedily with a key-value cache."""
    options = {"max_new_tokens": DECODED, "min_new_tokens": DECODED, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)


if __name__ == "__main__":
    main()
