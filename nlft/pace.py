"""What a comparison will take, before it runs: tokens, and hours from a short warm-up or from what is finished."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

import torch

from nlft.base import FrozenBase
from nlft.config import Recipe
from nlft.data.batch import Sampler, collate
from nlft.data.domain import Domains
from nlft.data.harness import count_documents
from nlft.plan import Cell
from nlft.prepare import Prepared
from nlft.scoring import measure
from nlft.types import Evaluation

FORWARDS = 3
"""Forward passes that a training step takes the time of: one, and a backward pass of two."""
PACED = (0.5, 4.0)
"""From the warm-up's estimate to the least and the most expected: it knows nothing of calibration and replay."""
SEEN = (0.8, 1.5)
"""The same where runs of the same method are finished."""


@dataclass(frozen=True)
class Pace:
    """How fast this machine trains and scores."""

    step_s: float
    """Seconds of a training step, of plain finetuning."""
    score_s: float
    """Seconds to score everything once."""


@dataclass(frozen=True)
class Span:
    """An expected time in seconds, with the least and the most."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"about {clock(self.value)} ({clock(self.low)} to {clock(self.high)})"


def measure_pace(base: FrozenBase, recipe: Recipe, prepared: Prepared) -> Pace:
    """Takes the time of two batches of train rows and one batch of every evaluation, on the base as it is."""
    rows = next(iter(prepared.train.values()))
    batches = Sampler(rows, recipe.train.batch_size, 0)
    size = recipe.train.micro_batch_size or recipe.train.batch_size
    seconds = []
    for chosen, _ in zip(batches, range(3), strict=False):
        begun = time.perf_counter()
        for start in range(0, len(chosen), size):
            batch = collate(chosen[start : start + size], prepared.pad_id).to(base.device)
            with torch.inference_mode():
                base.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.sum().item()
        seconds.append(time.perf_counter() - begun)
    parts = beginnings(prepared.domains, recipe.measure.batch_size)
    score_s = 0.0
    for evaluation, whole in zip(parts.evaluations, prepared.domains.evaluations, strict=True):
        alone = replace(prepared, domains=replace(parts, tasks=(), probes=(evaluation,)))
        begun = time.perf_counter()
        measure(base.model, base, recipe, alone, 0, "base")
        score_s += (time.perf_counter() - begun) * rows_of(whole) / rows_of(evaluation)
    return Pace(FORWARDS * mean(seconds[1:]), score_s)


def rows_of(evaluation: Evaluation) -> int:
    """How many rows or documents are scored."""
    return len(evaluation.rows) if evaluation.harness is None else count_documents(evaluation.harness)


def beginnings(domains: Domains, count: int) -> Domains:
    """The same domains with the first `count` rows of every evaluation."""

    def cut(evaluations: tuple[Evaluation, ...]) -> tuple[Evaluation, ...]:
        return tuple(cut_one(evaluation) for evaluation in evaluations)

    def cut_one(evaluation: Evaluation) -> Evaluation:
        if evaluation.harness is None:
            return replace(evaluation, rows=evaluation.rows[:count])
        few = min(count, evaluation.harness.limit or count)
        return replace(evaluation, harness=replace(evaluation.harness, limit=few))

    tasks = tuple(replace(task, evaluations=cut(task.evaluations)) for task in domains.tasks)
    return replace(domains, tasks=tasks, probes=cut(domains.probes))


def train_tokens(cells: Sequence[Cell], prepared: Prepared) -> int:
    """Expected input tokens that the cells train on, padding and replay apart."""
    total = 0.0
    for cell in cells:
        lengths = [[len(row.ids) for row in prepared.train[task.name]] for task in cell.recipe.tasks]
        rows = cell.steps * cell.recipe.train.batch_size
        if cell.setting == "multitask":
            total += rows * mean(length for of_task in lengths for length in of_task)
        else:
            total += rows * sum(mean(of_task) for of_task in lengths)
    return round(total)


def expected(cells: Sequence[Cell], walls: Mapping[str, Sequence[float]], pace: Pace, jobs: int) -> Span:
    """Time that the cells will take, `jobs` of them side by side without slowing each other.

    Args:
        walls: seconds of finished runs, by `kind_of`.
    """
    value, low, high = 0.0, 0.0, 0.0
    for cell in cells:
        seen = walls.get(kind_of(cell), ())
        stages = 1 if cell.setting == "multitask" else len(cell.recipe.tasks)
        seconds = mean(seen) if seen else stages * (cell.steps * pace.step_s + pace.score_s)
        least, most = SEEN if seen else PACED
        value, low, high = value + seconds, low + least * seconds, high + most * seconds
    jobs = min(jobs, max(len(cells), 1))
    return Span(value / jobs, low / jobs, high / jobs)


def kind_of(cell: Cell) -> str:
    """Cells of one kind take about the same time."""
    return f"{cell.method} {cell.setting} {cell.steps}"


def clock(seconds: float) -> str:
    """`40 s`, `12 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
