"""Classes by the nearest mean of the frozen base's states: a classifier that cannot forget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nlft.base import FrozenBase
from nlft.calibrate import Moments
from nlft.capture import inference
from nlft.config import ClassMeansConfig
from nlft.data.batch import collate
from nlft.data.template import Encoded, encode_rows, pad_id, prompt_ids
from nlft.errors import NlftError
from nlft.frozen_prefix import keep_prefix, recalling
from nlft.methods.protocol import Ask, TaskContext
from nlft.methods.untrained import Untrained
from nlft.ops.discriminant import nearest_class, shrunk
from nlft.types import IGNORE, Condition, Evaluation, Item, Row

BATCH = 64
"""Rows of a forward pass."""
WEIGHTS, CLASSES = "class_means.safetensors", "classes.json"
ANSWERED = ("accuracy", "accuracy_norm", "exact_match")
"""Metrics of which a chosen class is an answer."""


class ClassMeans(Untrained):
    """Every task adds the means of its classes; one covariance within classes is shared by all.

    A column whose rows all have choices is answered by the class that is nearest to the prompt, among all classes of
    all tasks so far, whether or not the row offers it; told the task (`oracle`), among the task's own. Other columns,
    and other metrics, are the base's.
    """

    def __init__(self, config: ClassMeansConfig) -> None:
        self.config = config
        self.classes: list[tuple[str, str]] = []
        """Task and label of every class."""
        self.means = torch.zeros(0, 0, dtype=torch.float64)
        """[C, D] float64."""
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)
        """[D, D] float64: sum of the squares within classes."""
        self.count = 0
        """Rows behind it."""

    def begin_task(self, model: nn.Module, context: TaskContext) -> None:
        """Adds the classes of the task.

        Raises:
            NlftError: none of its rows has choices.
        """
        by_label: dict[str, list[Row]] = {}
        for row in context.rows:
            if row.choices:
                by_label.setdefault(label_of(row), []).append(row)
        if not by_label:
            raise NlftError(
                f"class_means: no train row of task {context.name!r} has choices.",
                "Give rows `choices` and `gold`, or text and label; or leave the method out.",
            )
        for label, rows in by_label.items():
            moments = Moments()
            moments.add(self.features(model, rows))
            self.classes.append((context.name, label))
            self.means = torch.cat([self.means.view(-1, len(moments.mean)), moments.mean[None]])
            self.scatter = moments.scatter if not self.count else self.scatter + moments.scatter
            self.count += moments.count

    def features(self, model: Any, rows: Sequence[Row]) -> Tensor:
        """States of the prompts of rows, [N, D] float64 on the CPU; the start of a prompt that is too long goes."""
        encoded = encode_rows(rows, self.base.tokenizer, self.base.context, "truncate")
        prompts = [prompt_ids(one) for one in encoded]
        return prompt_states(model, prompts, pad_id(self.base.tokenizer), self.config.states)

    def score(self, model: Any, evaluation: Evaluation, condition: Condition, ask: Ask) -> list[Item]:
        """The base's items, with the nearest class for an answer."""
        if condition not in ("on", "off", "oracle"):
            return []
        items = ask(model, evaluation)
        known = [at for at, (task, _) in enumerate(self.classes) if condition == "on" or task == evaluation.name]
        rows = evaluation.rows  # none for a task of lm-eval
        classes = evaluation.metric in ANSWERED and bool(rows) and all(row.choices for row in rows)
        if condition == "off" or not known or not classes:
            return items
        covariance = shrunk(self.scatter / self.count)
        found = nearest_class(self.features(model, rows), self.means[known], covariance)
        labels = [self.classes[known[at]][1] for at in found.tolist()]
        return answered(items, rows, labels)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Writes means, scatter and names of the classes."""
        folder.mkdir(parents=True, exist_ok=True)
        count = torch.tensor(self.count)
        save_file({"means": self.means, "scatter": self.scatter, "count": count}, folder / WEIGHTS)
        (folder / CLASSES).write_text(json.dumps(self.classes), encoding="utf-8")

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads them back."""
        tensors = load_file(folder / WEIGHTS)
        self.means, self.scatter, self.count = tensors["means"], tensors["scatter"], int(tensors["count"])
        self.classes = [(task, label) for task, label in json.loads((folder / CLASSES).read_text(encoding="utf-8"))]
        return self.attach(base, 0)


def label_of(row: Row) -> str:
    """The right choice of a row."""
    return row.choices[row.gold] if row.gold is not None else row.completion


def answered(items: Sequence[Item], rows: Sequence[Row], labels: Sequence[str]) -> list[Item]:
    """Items of a column with these answers, one a row; items of other metrics are left out."""
    found = []
    for metric in ANSWERED:
        own = [item for item in items if item.metric == metric]
        for item, row, label in zip(own, rows, labels, strict=False):
            found.append(replace(item, value=float(label == label_of(row)), prediction=label))
    return found


def prompt_states(model: Any, prompts: Sequence[list[int]], pad: int, states: str = "mean") -> Tensor:
    """The decoder's last hidden states of prompts, [N, D] float64 on the CPU.

    Args:
        model: a causal language model.
        prompts: token ids.
        pad: id to pad with.
        states: `mean` over the prompt, or the one of the `last` token.
    """
    found = []
    device = next(model.parameters()).device
    every = [Encoded(ids, [IGNORE] * len(ids), 0) for ids in prompts]
    keep_prefix(model, every, pad)
    with inference(model):
        for at in range(0, len(prompts), BATCH):
            rows = every[at : at + BATCH]
            batch = collate(rows, pad).to(device)
            with recalling(model, batch):
                output = model.get_decoder()(**batch.inputs(), use_cache=False)
            hidden, mask = output.last_hidden_state.double(), batch.attention_mask[..., None].double()
            if states == "last":
                ends = batch.attention_mask.sum(1) - 1
                found.append(hidden[torch.arange(len(rows), device=device), ends].cpu())
            else:
                found.append(((hidden * mask).sum(1) / mask.sum(1)).cpu())
    return torch.cat(found)
