"""Training steps: time and peak memory of nlft's methods, PEFT's LoRA, full finetuning and the frozen forward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import cycle
from statistics import median
from typing import Any

import torch
from breakdown import breakdown, breakdown_table
from cost import Size
from memory import kept_bytes, peak_bytes, tensor_bytes, weight_bytes
from model import DENSITY, Candidate, candidates, random_base, random_rows
from rich.table import Table
from timing import interleaved
from verdict import Verdict, marked

from nlft.config import PrefixConfig
from nlft.data.batch import Batch, collate
from nlft.data.template import Encoded
from nlft.frozen_prefix import install_prefix, keep_prefix
from nlft.loss import target_loss
from nlft.prefix_store import PrefixStore

RIVAL = "LoRA r16, all-linear"
"""What time and memory are compared with."""
FLOOR = "frozen forward"
BATCHES = 4
"""Batches that take turns, so that no step finds its states in a processor's cache."""
UNCACHED, CACHED, MEMORY = 0.65, 0.40, 0.60
"""Largest share of the rival's step and peak memory that nlft's methods may take."""
Loss = Callable[[Any, Batch], torch.Tensor]


@dataclass
class Setting:
    """What all candidates have in common."""

    size: Size
    device: torch.device
    dtype: torch.dtype
    rows: int = 8
    tokens: int = 128
    rounds: int = 5
    targets: float = 1.0
    """Part of the tokens that is learned."""

    def autocast(self) -> AbstractContextManager[Any]:
        """As training does it: bfloat16 where the base is."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def encoded(self) -> list[Encoded]:
        """Rows of all batches."""
        return random_rows(self.size, BATCHES * self.rows, self.tokens, self.targets)

    def batches(self) -> list[Batch]:
        """What takes turns."""
        rows = self.encoded()
        parts = [rows[at : at + self.rows] for at in range(0, len(rows), self.rows)]
        return [collate(part, 0).to(self.device) for part in parts]


@dataclass
class Step:
    """One line of the table."""

    name: str
    prefix: bool
    ours: bool
    frozen: int = 0
    """Bytes of frozen weights."""
    state: int = 0
    """Bytes of what is trained and of the optimiser's state."""
    kept: int = 0
    """Bytes of what is kept to be fast: the indices of look-ups, and states of the frozen prefix."""
    step: int = 0
    """Most bytes that a step holds beyond these: activations, gradients, temporaries."""
    seconds: list[float] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Bytes in all."""
        return self.frozen + self.state + self.kept + self.step


def train(model: Any, batches: list[Batch], loss: Loss, setting: Setting) -> tuple[Callable[[], None], Any]:
    """A function that takes one training step, and its optimiser."""
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
    turns = cycle(batches)

    def step() -> None:
        model.train()
        batch = next(turns)
        with setting.autocast():
            nats = loss(model, batch)
        (nats / batch.n_targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, optimizer


def mean_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Hugging Face's own loss, as LoRA's users call it; brought to a sum."""
    output = model(**batch.inputs(), labels=batch.labels, use_cache=False)
    return output.loss * batch.n_targets


def forgetful(batches: list[Batch]) -> list[Batch]:
    """Batches that do not know their rows, so that nothing is recalled for them."""
    return [replace(batch, rows=(), places=()) for batch in batches]


def measure_steps(setting: Setting, chosen: dict[str, Candidate] | None = None, rival: bool = True) -> list[Step]:
    """Times and bytes of the candidates, with and without the frozen prefix; also of the floor.

    Args:
        chosen: the candidates; those of `model.candidates` when None.
        rival: measure LoRA with Hugging Face's loss too.
    """
    base = random_base(setting.size, setting.device, setting.dtype)
    batches, config = setting.batches(), PrefixConfig(memory_gb=8)
    store = PrefixStore(None, config)
    whole = forgetful(batches)
    turns = cycle(whole)

    def forward() -> None:
        with torch.no_grad(), setting.autocast():
            target_loss(base, next(turns))

    lines = [Step(FLOOR, False, False, *weight_bytes(base))]
    runs: list[Callable[[], None]] = [forward]
    models: list[Any] = [base]
    optimizers: list[Any] = [None]
    for name, candidate in (candidates(setting.size) if chosen is None else chosen).items():
        model = candidate.build(base)
        versions: list[tuple[str, bool, list[Batch], Loss]] = [(name, False, whole, target_loss)]
        if name == RIVAL and rival:
            versions.append((f"{name}, Hugging Face's loss", False, whole, mean_loss))
        if candidate.cached:
            install_prefix(model, "random", config, store)
            keep_prefix(model, setting.encoded(), 0)
            versions.append((name, True, batches, target_loss))
        for title, prefix, those, loss in versions:
            step, optimizer = train(model, those, loss, setting)
            lines.append(Step(title, prefix, candidate.ours, *weight_bytes(model)))
            runs.append(step)
            models.append(model)
            optimizers.append(optimizer)
    for line, run, model, optimizer in zip(lines, runs, models, optimizers, strict=True):
        run()  # the first step makes the optimiser's state
        line.step = peak_bytes(run, setting.device)
        line.kept = kept_bytes(model, setting.device, line.prefix)
        if optimizer is not None:
            state = [value for one in optimizer.state.values() for value in one.values()]
            line.state += tensor_bytes(value for value in state if isinstance(value, torch.Tensor))
    numbered = {str(number): run for number, run in enumerate(runs)}
    for number, seconds in interleaved(numbered, setting.rounds, setting.device).items():
        lines[int(number)].seconds = seconds
    return lines


def ratio(line: Step, other: Step) -> float:
    """Median of the ratios of two lines' times, round by round."""
    return median(a / b for a, b in zip(line.seconds, other.seconds, strict=True))


def named(lines: list[Step], name: str) -> Step:
    """The uncached line of a candidate."""
    return next(line for line in lines if line.name == name and not line.prefix)


def step_table(lines: list[Step], title: str) -> Table:
    """One line a candidate."""
    floor, rival = named(lines, FLOOR), named(lines, RIVAL)
    table = Table(
        "method", "frozen prefix", "ms", "x forward", "x LoRA", "frozen", "trained + Adam", "kept", "step", "peak MB",
        "x LoRA", "without frozen", title=title, caption=DENSITY,
    )  # fmt: skip
    for line in lines:
        table.add_row(
            line.name,
            "kept" if line.prefix else "",
            f"{1e3 * median(line.seconds):.1f}",
            f"{ratio(line, floor):.2f}",
            marked(ratio(line, rival), (CACHED if line.prefix else UNCACHED) if line.ours else None),
            *(f"{one / 1e6:.0f}" for one in (line.frozen, line.state, line.kept, line.step, line.peak)),
            marked(line.peak / rival.peak, MEMORY if line.ours else None),
            f"{(line.peak - line.frozen) / (rival.peak - rival.frozen):.2f}",
        )
    return table


def some(size: Size) -> dict[str, Candidate]:
    """The few candidates that are measured with prompts too."""
    ours = [name for name in candidates(size) if name.startswith("slots") and not name.endswith("top 1")]
    return {name: one for name, one in candidates(size).items() if name in (RIVAL, *ours)}


def steps(setting: Setting) -> tuple[list[Table], list[Verdict]]:
    """Training steps: every token learned, then the last third of every row."""
    every = measure_steps(setting)
    tables = [step_table(every, "Training step, every token is a target")]
    third = replace(setting, targets=1 / 3)
    part = measure_steps(third, some(setting.size))
    tables.append(step_table(part, "Training step, a third of the tokens are targets"))
    return tables, [*step_verdicts(every, ""), *step_verdicts(part, ", a third targets")]


def step_verdicts(lines: list[Step], suffix: str) -> list[Verdict]:
    """The targets of a step for slots in several layers, which are what they are about."""
    rival, found = named(lines, RIVAL), []
    for line in lines:
        if line.name.startswith("slots") and not line.name.endswith("top 1"):
            what = f"{line.name}{', cached' if line.prefix else ''}{suffix}"
            found.append(Verdict(f"step / LoRA: {what}", ratio(line, rival), CACHED if line.prefix else UNCACHED))
            found.append(Verdict(f"peak memory / LoRA: {what}", line.peak / rival.peak, MEMORY))
    return found


def where_a_step_goes(setting: Setting) -> Table:
    """The profile of LoRA's step and of those of nlft's methods, without the frozen prefix."""
    base = random_base(setting.size, setting.device, setting.dtype)
    parts = {}
    for name, candidate in candidates(setting.size).items():
        if name == RIVAL or candidate.ours:
            model = candidate.build(base)
            step, _ = train(model, forgetful(setting.batches()), target_loss, setting)
            step()
            parts[name] = breakdown(model, step, setting.device)
    return breakdown_table(parts)
