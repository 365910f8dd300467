"""The nouns that flow through nlft, free of torch.

Shapes everywhere are written in one alphabet:
B batch, T tokens, D model width, H heads, M memory slots, K key width, R rank, L layers, S stages, J evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["task", "probe"]
Split = Literal["test", "seen"]
Condition = str
"""Under what a model was scored; `measure/condition.py` lists the words."""

IGNORE = -100
"""Label of a position that is no target (the value that torch's cross entropy skips)."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One example: a prompt that is read and a completion that is learned or scored."""

    prompt: str
    completion: str
    answers: tuple[str, ...] = ()
    """Accepted answers; empty means the completion alone."""
    choices: tuple[str, ...] = ()
    """Candidate completions, scored by likelihood."""
    gold: int | None = None
    """Index of the right choice."""
    messages: tuple[Message, ...] = ()
    """A conversation, rendered by the tokenizer's chat template; `prompt` and `completion` are then empty."""
    join: str = ""
    """Text between prompt and completion."""
    source: str = ""
    """Where the row came from, as `file:line`, for error messages."""
    cluster: str = ""
    """Rows with one cluster are about the same thing; intervals treat them as one draw."""
    meta: Mapping[str, str] = field(default_factory=dict)
    examples: tuple[Row, ...] = ()
    """Solved rows that are read in front of this one; neither learned nor scored, and no part of what it is."""

    @property
    def references(self) -> tuple[str, ...]:
        """Accepted answers as text, never empty."""
        return self.answers or (self.completion or (self.messages[-1].content if self.messages else ""),)


@dataclass(frozen=True, slots=True)
class HarnessTask:
    """A task of lm-evaluation-harness, which brings its own documents and asks its own questions."""

    task: str
    """A task's or group's name, the path of a YAML file, or a task's settings as JSON."""
    limit: int | None = None
    """Documents of each task, from the first on; all when None."""
    num_fewshot: int | None = None
    """Worked examples in front of each document; the task's own number when None."""
    filter: str = ""
    """Which of the task's filters reads the answers; its first when empty."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One column of the matrix: rows and the metric that scores them."""

    name: str
    role: Role
    split: Split
    rows: tuple[Row, ...]
    metric: str
    stop: str = ""
    """Text that ends a generated answer, where it goes on; nothing when empty."""
    harness: HarnessTask | None = None
    """A task that stands in for rows, of which there are then none; `metric` is one of its own."""

    @property
    def column(self) -> str:
        """Name of the column: the task's or probe's name, with `/seen` for rows in wordings that were trained."""
        return self.name if self.split == "test" else f"{self.name}/{self.split}"


@dataclass(frozen=True, slots=True)
class Task:
    """One domain: rows to train on and the evaluations that measure it."""

    name: str
    train: tuple[Row, ...]
    evaluations: tuple[Evaluation, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """The score of one row, at one stage, under one condition: a line of `items.parquet`.

    The value of a column is `sum(value * weight) / sum(weight)`; weight is 1 but for likelihoods, where it
    is the number of target tokens (nats per token) or of target bytes (bits per byte).
    """

    stage: int
    condition: Condition
    column: str
    role: Role
    split: Split
    metric: str
    item_id: str
    cluster: str
    value: float
    weight: float
    prediction: str
