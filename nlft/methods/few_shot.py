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
    rows as text with an empty line behind each; a plain text is read behind them as well. A task of lm-eval asks its
    own questions, so there the base answers.
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
        rows = self.shown(evaluation, examples) if evaluation.rows else ()
        return ask(model, replace(evaluation, rows=rows))

    def shown(self, evaluation: Evaluation, examples: Sequence[Row]) -> tuple[Row, ...]:
        """The rows of a column, each with as many examples as fit.

        Raises:
            NlftError: none fits in front of any prompt.
        """
        limit = min(self.max_length or self.base.context, self.base.context) - ROOM
        rows = evaluation.rows
        least, most = [0] * len(rows), [len(examples)] * len(rows)
        tried = dict.fromkeys(range(len(rows)), len(examples))  # all of them, then by halves
        while tried:
            lengths = self.lengths([replace(rows[at], examples=tuple(examples[:n])) for at, n in tried.items()])
            for (at, n), length in zip(tried.items(), lengths, strict=True):
                if length <= limit:
                    least[at] = n
                else:
                    most[at] = n - 1
            tried = {at: (least[at] + most[at] + 1) // 2 for at in tried if least[at] < most[at]}
        if examples and is_asked(rows[0]) and not any(least):
            raise NlftError(
                f"few_shot: no example fits in front of any row of {evaluation.column!r}: a row and an example take"
                f" more than {limit} tokens.",
                "Use a base with a longer context, or shorter rows.",
            )
        return tuple(replace(row, examples=tuple(examples[:n])) for row, n in zip(rows, least, strict=True))

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
        text = f'{{"max_length": {json.dumps(self.max_length)}, "shots": {self.text()}}}'
        (folder / SHOTS).write_text(text, encoding="utf-8")

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads them back."""
        held = json.loads((folder / SHOTS).read_text(encoding="utf-8"))
        found, self.max_length = held["shots"], held["max_length"]
        self.shots = {
            name: [
                Row(prompt, completion, join=join, messages=tuple(Message(*said) for said in messages), source=source)
                for prompt, join, completion, messages, source in rows
            ]
            for name, rows in found.items()
        }
        return self.attach(base, 0)


def is_asked(row: Row) -> bool:
    """Whether something is answered; plain text is only read."""
    return bool(row.prompt or row.messages)
