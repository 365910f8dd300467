"""A method with its model, for a training loop of one's own: Hugging Face's Trainer, TRL's, or plain torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from nlft.base import freeze
from nlft.config import NAME
from nlft.config.recipe import Method as MethodConfig
from nlft.data.file import Record
from nlft.data.format import detect_format, find_columns, to_rows
from nlft.data.template import Encoded, encode_rows, pad_id
from nlft.document import Document
from nlft.errors import NlftError
from nlft.methods import build_method
from nlft.methods.calibration import check_budget
from nlft.methods.protocol import TaskContext
from nlft.problem import problems

Rows = Sequence[Mapping[str, Any]]
"""Records as a recipe's files hold them: prompt and completion, messages, text and label, or text."""
JOIN = " "
"""Between prompt and completion, as in a recipe."""


class Learner:
    """A model that a method has readied, and the places where tasks begin and end.

    What `nlft train` does around its loop, for those who bring another loop.

    Args:
        base: a causal language model of transformers; it is frozen.
        section: the method as a recipe writes it, such as `kind="sparse_memory", slots=500`.

    Attributes:
        model: the PEFT model; give it to a trainer.
        method: `nlft.methods.protocol.Method`.

    Raises:
        NlftError: the fields are wrong or do not fit the base, or base and tokenizer are none.
    """

    def __init__(self, base: Any, tokenizer: Any, *, seed: int = 0, **section: Any) -> None:
        self.config = read_section(section)
        check_kinds(base, tokenizer)
        self.base = freeze(base, tokenizer, str(getattr(base, "name_or_path", "") or type(base).__name__))
        self.method = build_method(self.config)
        self.seed = seed
        self.model: Any = self.method.attach(self.base, seed)
        self.learned: dict[str, list[Encoded]] = {}
        """Rows of the tasks so far, which later ones are calibrated against."""
        self.at_work = False
        """Whether a task is open."""

    @contextmanager
    def task(self, name: str, train: Rows, background: Rows = (), n_tasks: int = 1) -> Iterator[Any]:
        """Calibrates a task's part of the memory, leaves it trainable meanwhile, and freezes it at the end.

        If training fails, the task stays open and the model is to be thrown away.

        Args:
            name: a task that has not been learned yet.
            train: what will be trained on.
            background: general text of which the model should stay as it is; memories and gates need some.
            n_tasks: tasks that will share a retention budget.

        Yields:
            The model, in training mode.

        Raises:
            DataError: rows cannot be read.
            NlftError: the name is none, the method needs background, or the task has been learned already.
        """
        if not re.fullmatch(NAME, name):
            raise NlftError(
                f"The task's name {name!r} cannot be used: it becomes part of the names of tensors.",
                "Begin with a letter or digit, and use letters, digits, spaces and any of _ . - after it.",
            )
        if len(train) == 0:
            raise NlftError(f"The task {name!r} has no rows to learn.", "Give `train` at least one row.")
        encoded, general = self.encode(train), self.encode(background) if background else []
        if not general and (self.config.kind == "sparse_memory" or getattr(self.config, "gate", None)):
            raise NlftError(
                f"The task {name!r} of a {self.config.kind} method needs `background`, and there is none.",
                "Give rows of general text, against which its keys are calibrated.",
            )
        number = len(self.learned) + 1
        check_budget(self.config, general, max(number, n_tasks))
        context = TaskContext(
            name=name,
            train=encoded,
            earlier=[row for rows in self.learned.values() for row in rows],
            background=general,
            number=number,
            n_tasks=max(number, n_tasks),
            batch_size=len(encoded),
            pad_id=pad_id(self.base.tokenizer),
            seed=self.seed + 1000 * number,
            begin_id=self.base.tokenizer.bos_token_id,
            max_length=self.base.context,
        )
        self.method.begin_task(self.model, context)
        self.model.train()
        self.at_work = True
        yield self.model
        self.at_work = False
        self.model.eval()
        self.method.end_task(self.model)
        self.learned[name] = encoded

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        """The method's own optimiser over what is trainable now: levels need theirs, other methods take any.

        Raises:
            NlftError: no task is open, so nothing is trainable.
        """
        if not self.at_work:
            raise NlftError(
                "No task is open, so there is nothing that an optimizer could train.",
                "Make it inside the task: with learner.task(name, rows) as model: optimizer = learner.optimizer(lr)",
            )
        return self.method.optimizer(self.model, lr)

    def encode(self, rows: Rows) -> list[Encoded]:
        """Rows as token ids and labels; only completions and whole texts are targets.

        Raises:
            DataError: a row's layout is unknown, or it is too long.
        """
        records = [Record(f"row {number}", dict(row)) for number, row in enumerate(rows)]
        columns = find_columns(list(rows[0]) if len(rows) else [], {})
        made = to_rows(records, detect_format(columns), columns, JOIN)
        return encode_rows(made, self.base.tokenizer, self.base.context)

    def dataset(self, rows: Rows) -> list[dict[str, list[int]]]:
        """Rows as Hugging Face's Trainer takes them: `input_ids` and `labels`; pad with DataCollatorForSeq2Seq."""
        return [{"input_ids": row.ids, "labels": row.labels} for row in self.encode(rows)]


def check_kinds(base: Any, tokenizer: Any) -> None:
    """Refuses what is no model or no tokenizer of transformers.

    Raises:
        NlftError: saying what it is instead.
    """
    hint = "Learner(AutoModelForCausalLM.from_pretrained(NAME), AutoTokenizer.from_pretrained(NAME), kind=…)"
    if isinstance(base, str | Path):
        raise NlftError(f"The base is the name {str(base)!r}, and not the model itself.", f"Load it: {hint}.")
    if hasattr(base, "get_vocab") and isinstance(tokenizer, nn.Module):
        raise NlftError("Base and tokenizer are swapped.", f"The model comes first: {hint}.")
    if not isinstance(base, nn.Module) or not hasattr(base, "config"):
        raise NlftError(f"The base is a {type(base).__name__}, and no model of transformers.", f"Give one: {hint}.")
    if not hasattr(tokenizer, "get_vocab"):
        raise NlftError(
            f"The tokenizer is a {type(tokenizer).__name__}, and none of transformers.", f"Give one: {hint}."
        )


def read_section(section: Mapping[str, Any]) -> MethodConfig:
    """A method's section of a recipe from its fields, without `lr`: the loop has its own.

    Raises:
        NlftError: naming every field that is wrong.
    """
    if "lr" in section:
        raise NlftError(
            "lr is no field of a Learner: the learning rate is your loop's.",
            "Give it to the trainer, or to learner.optimizer(lr).",
        )
    document = Document("Learner", {"methods": {"learner": {"lr": 1e-3, **section}}})
    try:
        return TypeAdapter(dict[str, dict[str, MethodConfig]]).validate_python(document.data)["methods"]["learner"]
    except ValidationError as failure:
        said = [line.removeprefix("Learner: methods.learner.") for line in problems(failure, document)]
        raise NlftError(
            "\n".join(f"Learner: {line}" for line in said),
            "The fields are those of a method in a recipe, such as kind='sparse_memory', slots=500.",
        ) from failure
