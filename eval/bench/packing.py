"""What packing saves: padding in the batches of a recipe, and the time of a training step.

    python eval/bench/packing.py [RECIPE] [KEY=VALUE]...     # `demo` when no recipe is named

One thread, processor time, medians over interleaved rounds; LoRA r16 at all linear maps, on the recipe's base and on a
random Llama of width 256 that reads rows of the same lengths. `1 x` and `2 x`: lines of at most once and twice the
longest row; `packed` chooses.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch
from model import Size, lora, random_base
from rich.console import Console
from rich.table import Table
from timing import interleaved

from nlft.base import load_base
from nlft.data.batch import Batch, Sampler, collate
from nlft.data.domain import load_domains
from nlft.data.packing import pack
from nlft.data.template import Encoded
from nlft.loss import target_loss
from nlft.prepare import prepare
from nlft.recipes import load_recipe

MIDDLE = Size(256, 688, 6, 8, 8, 4096)
BATCHES, ROUNDS = 40, 20
"""Batches of which padding is counted, and steps that are timed."""


def lines_of(times: int) -> Callable[[Sequence[Encoded], int], Batch]:
    """Packs into lines of `times` times the longest row."""
    return lambda rows, pad_id: pack(rows, pad_id, width=times * max(len(row.ids) for row in rows))


WAYS: dict[str, Callable[[Sequence[Encoded], int], Batch]] = {
    "padded": collate,
    "1 x": lines_of(1),
    "2 x": lines_of(2),
    "packed": pack,
}


def padding(batches: Sequence[Batch]) -> float:
    """Part of the tokens that are padding."""
    real = sum(int(batch.attention_mask.sum()) for batch in batches)
    return 1 - real / sum(batch.attention_mask.numel() for batch in batches)


def steps(model: Any, batches: dict[str, list[Batch]]) -> dict[str, float]:
    """Median seconds of a step by way, in turns over the same rows."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-4, fused=True)
    model.train()

    def step(turns: Iterator[Batch]) -> None:
        batch = next(turns)
        (target_loss(model, batch) / batch.n_targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    runs = {way: partial(step, cycle(those)) for way, those in batches.items()}
    return {way: median(found) for way, found in interleaved(runs, ROUNDS, clock=time.process_time).items()}


def gathering(drawn: Sequence[Sequence[Encoded]]) -> dict[str, float]:
    """Median seconds to make a batch, by way."""

    def collect(gather: Callable[[Sequence[Encoded], int], Batch], turns: Iterator[Sequence[Encoded]]) -> None:
        gather(next(turns), 0)

    runs = {way: partial(collect, gather, cycle(drawn)) for way, gather in WAYS.items()}
    return {way: median(found) for way, found in interleaved(runs, len(drawn), clock=time.process_time).items()}


def drawn_anew(rows: Sequence[Encoded], vocabulary: int) -> list[Encoded]:
    """Rows of the same lengths and targets, of other tokens."""
    found = []
    for row in rows:
        ids = torch.randint(3, vocabulary, (len(row.ids),)).tolist()
        labels = [one if label >= 0 else label for one, label in zip(ids, row.labels, strict=True)]
        found.append(replace(row, ids=ids, labels=labels))
    return found


def main(name: str, overrides: list[str]) -> None:
    """Prints a table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    recipe = load_recipe(name, overrides)
    base = load_base(recipe.base)
    prepared = prepare(recipe, load_domains(recipe), base)
    models = {
        str(recipe.base.model): (lora(base.model), lambda rows: rows),
        "random d=256": (
            lora(random_base(MIDDLE, base.device, torch.float32)),
            lambda rows: drawn_anew(rows, MIDDLE.V),
        ),
    }
    table = Table(title=f"{name}: batches of {recipe.train.batch_size} rows")
    for head in ("task", "", *WAYS):
        table.add_column(head)
    for task, rows in prepared.train.items():
        drawn = list(islice(Sampler(rows, recipe.train.batch_size, 0), BATCHES))
        batches = {way: [gather(one, prepared.pad_id) for one in drawn] for way, gather in WAYS.items()}
        table.add_row(task, "padding", *(f"{padding(those):.1%}" for those in batches.values()))
        table.add_row("", "tokens a line", *(f"{median(b.input_ids.shape[1] for b in v):g}" for v in batches.values()))
        for label, (model, change) in models.items():
            own = [change(one) for one in drawn]
            found = steps(model, {way: [gather(one, 0) for one in own] for way, gather in WAYS.items()})
            cells = [f"{1e3 * found[way]:.1f} ms, {found[way] / found['padded']:.2f}" for way in WAYS]
            table.add_row("", f"step, {label}", *cells)
        table.add_row("", "making the batch", *(f"{1e3 * one:.2f} ms" for one in gathering(drawn).values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    chosen = arguments.pop(0) if arguments and "=" not in arguments[0] else "demo"
    main(chosen, arguments)
