"""Examples in the prompt: what in-context learning makes of the rows that other methods train on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nlft.base import FrozenBase
from nlft.config import FewShotConfig
from nlft.data.template import encode_rows
from nlft.errors import NlftError
from nlft.methods.protocol import Ask, TaskContext
from nlft.methods.untrained import Untrained
from nlft.types import Condition, Evaluation, Item, Message, Row

SHOTS = "shots.json"
ROOM = 8
"""Tokens left free for an answer that is longer than the right one."""
NO_LIMIT = 1 << 30


class FewShot(Untrained):
    """Examples of every task so far stand in front of every row, whatever the row is: nothing is told.

    `oracle`: examples of the row's own task alone, none on probes; `off`: none. A row gets as many as fit into the
    context, dealt from the tasks in turn, so that all tasks lose alike. Conversations get them as earlier turns, other
    rows as text with an empty line behind each; a plain text is read behind them as well.
    """

    def __init__(self, config: FewShotConfig) -> None:
        self.config = config
        self.shots: dict[str, list[Row]] = {}
        """Examples by task, in the order of learning."""
        self.max_length: int | None = None

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Draws the task's examples."""
        order = torch.randperm(len(context.rows), generator=torch.Generator().manual_seed(context.seed))
        chosen = [context.rows[i] for i in order[: self.config.shots].tolist()]
        self.shots[context.name] = [replace(row, choices=(), gold=None, meta={}) for row in chosen]
        self.max_length = context.max_length

    def score(self, model: Any, evaluation: Evaluation, condition: Condition, ask: Ask) -> list[Item]:
        """The base on the rows with their examples.

        Raises:
            NlftError: there is room for an example in front of no row.
        """
        if condition not in ("on", "off", "oracle"):
            return []
        own = self.shots.get(evaluation.name, []) if evaluation.role == "task" else []
        dealt = [row for turn in zip_longest(*self.shots.values()) for row in turn if row is not None]
        examples = {"on": dealt, "oracle": own, "off": []}[condition]
        return ask(model, replace(evaluation, rows=self.shown(evaluation, examples)))

    def shown(self, evaluation: Evaluation, examples: Sequence[Row]) -> tuple[Row, ...]:
        """The rows of a column, each with as many examples as fit.

        Raises:
            NlftError: none fits in front of any prompt.
        """
        limit = min(self.max_length or self.base.context, self.base.context) - ROOM
        counts = dict.fromkeys(range(len(evaluation.rows)), len(examples))
        given: dict[int, Row] = {}
        while counts:
            tried = {at: replace(evaluation.rows[at], examples=tuple(examples[:n])) for at, n in counts.items()}
            lengths = dict(zip(tried, self.lengths(list(tried.values())), strict=True))
            given |= {at: row for at, row in tried.items() if lengths[at] <= limit or not row.examples}
            counts = {at: fewer(counts[at], lengths[at], limit) for at in tried if at not in given}
        if examples and is_asked(evaluation.rows[0]) and not any(row.examples for row in given.values()):
            raise NlftError(
                f"few_shot: no example fits in front of any row of {evaluation.column!r}: a row and an example take"
                f" more than {limit} tokens.",
                "Use a base with a longer context, or shorter rows.",
            )
        return tuple(given[at] for at in range(len(evaluation.rows)))

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Tokens of rows with their examples; of a row with choices those of its longest."""
        longest = [replace(row, completion=max(row.choices, key=len)) if row.choices else row for row in rows]
        return [len(one.ids) for one in encode_rows(longest, self.base.tokenizer, NO_LIMIT)]

    def held_bytes(self) -> dict[str, int]:
        """The examples are rows that are kept: their UTF-8 bytes."""
        return super().held_bytes() | {"replay_bytes": len(self.text().encode())}

    def text(self) -> str:
        """The examples as JSON."""
        rows = {
            name: [
                [row.prompt, row.join, row.completion, [[said.role, said.content] for said in row.messages], row.source]
                for row in rows
            ]
            for name, rows in self.shots.items()
        }
        return json.dumps(rows, ensure_ascii=False)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes the examples."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SHOTS).write_text(self.text(), encoding="utf-8")

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads them back."""
        found = json.loads((folder / SHOTS).read_text(encoding="utf-8"))
        self.shots = {
            name: [
                Row(prompt, completion, join=join, messages=tuple(Message(*said) for said in messages), source=source)
                for prompt, join, completion, messages, source in rows
            ]
            for name, rows in found.items()
        }
        return self.attach(base, 0)


def fewer(count: int, length: int, limit: int) -> int:
    """A smaller number of examples: what their mean length lets fit, at least one less."""
    return max(0, min(count - 1, count * limit // length))


def is_asked(row: Row) -> bool:
    """Whether something is answered; plain text is only read."""
    return bool(row.prompt or row.messages)
