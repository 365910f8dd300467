"""A LoRA for every task: apart with the task told, all at work and orthogonal, or merged when the task ends."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from nlft.base import FrozenBase
from nlft.methods.lora import Lora, insert
from nlft.methods.penalty import total
from nlft.methods.protocol import Ask, TaskContext
from nlft.methods.trainable import Trainable
from nlft.methods.weights import check_whole, load_weights, save_weights
from nlft.types import Condition, Evaluation, Item

TASKS = "tasks.json"
"""Names of the tasks in the order of their adapters, beside the adapters' folders."""
OVERLAP = 0.5
"""Weight of the overlap where the recipe names none: that of the paper's authors."""


def adapter_of(number: int) -> str:
    """The adapter of a task, counted from 1; names of tasks may hold what names of modules may not."""
    return f"task{number}"


class ApartLora(Lora):
    """One LoRA a task, at work where a row is said to belong to the task; elsewhere the base speaks.

    `on` and `oracle` are the same. `ungated`, nothing told and nothing asked: all adapters at once, their changes
    summed.
    """

    told_task = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.tasks: list[str] = []
        """By name, in the order of their adapters."""

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts the first task's adapter, drawn from `seed`."""
        return insert(base, deepcopy(self.peft_config), seed, adapter_of(1))

    def begin_task(self, model: Any, context: TaskContext) -> None:
        """Adds the task's adapter, drawn from the task's seed; the first one is there."""
        self.tasks.append(context.name)
        own = adapter_of(len(self.tasks))
        if own not in model.peft_config:
            add(model, self.peft_config, own, context.seed)
        super().begin_task(model, context)
        self.set_at_work(model, own)

    def set_at_work(self, model: Any, own: str) -> None:
        """What speaks while the task is trained: its adapter alone."""
        model.base_model.set_adapter([own])

    def speakers(self, evaluation: Evaluation, condition: Condition) -> list[str] | None:
        """The adapters that speak; none is the base, None is a condition that means nothing here."""
        every = [adapter_of(number) for number in range(1, len(self.tasks) + 1)]
        known = evaluation.role == "task" and evaluation.name in self.tasks
        own = [adapter_of(self.tasks.index(evaluation.name) + 1)] if known else []
        return {"on": own, "oracle": own, "off": [], "ungated": every}.get(condition)

    def score(self, model: Any, evaluation: Evaluation, condition: Condition, ask: Ask) -> list[Item]:
        """The adapters that the condition names."""
        chosen = self.speakers(evaluation, condition)
        if chosen is None:
            return []
        with at_work(model, chosen):
            return ask(model, evaluation)

    def save(self, model: Any, folder: Path) -> None:
        """Writes a PEFT directory for each adapter, `task1`, `task2` …, and which task each is of."""
        super().save(model, folder)
        (folder / TASKS).write_text(json.dumps(self.tasks), encoding="utf-8")

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads them all onto the base, the last one at work."""
        self.remember(folder)
        self.tasks = [str(name) for name in json.loads((folder / TASKS).read_text(encoding="utf-8"))]
        first, *others = (adapter_of(number) for number in range(1, len(self.tasks) + 1))
        model: Any = PeftModel.from_pretrained(base.model, str(folder / first), adapter_name=first, is_trainable=True)
        for name in others:
            model.load_adapter(str(folder / name), adapter_name=name, is_trainable=True)
        self.set_at_work(model, adapter_of(len(self.tasks)))
        return model.eval()


class OrthogonalLora(ApartLora):
    """A LoRA a task on top of the frozen ones of earlier tasks, all at work (O-LoRA, Wang et al. 2023).

    Each is kept away from the directions that the earlier ones read: the loss gets `weight * sum |A_i A_t^T|` over all
    earlier tasks i, adapted matrices and entries, where A [R, D] is a LoRA's first map. The paper (equation 8) writes
    squares of the entries of O = A_i^T A_t, its A being ours transposed; absolute values are what its authors' code
    takes. Nothing is told: `on` and `ungated` are all adapters. `oracle` is those of the tasks up to the row's own,
    which is what spoke when that task had just been learned; the base on probes.
    """

    told_task = False

    def set_at_work(self, model: Any, own: str) -> None:
        """All adapters; the newest alone is trained."""
        model.base_model.set_adapter([adapter_of(number) for number in range(1, len(self.tasks) + 1)])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{own}." in name)

    def speakers(self, evaluation: Evaluation, condition: Condition) -> list[str] | None:
        """The adapters that speak."""
        every = super().speakers(evaluation, "ungated") or []
        own = super().speakers(evaluation, "oracle") or []
        upto = every[: every.index(own[0]) + 1] if own else []
        return {"on": every, "ungated": every, "oracle": upto, "off": []}.get(condition)

    def penalty(self, model: nn.Module) -> Tensor | None:
        """The overlap with earlier adapters, beside what all methods have."""
        weight = OVERLAP if self.config.orthogonality is None else self.config.orthogonality
        found = overlap(model, [adapter_of(number) for number in range(1, len(self.tasks) + 1)])
        return total([super().penalty(model), None if found is None else weight * found])


class MergedLora(Lora):
    """A LoRA a task, merged into the weights when its task ends; the next one begins at no change.

    With PEFT's OSF in LoRA's place every task keeps the main directions of the weights that the tasks before it left.
    Weights stay in the base's dtype, so a change smaller than its rounding is lost.
    """

    changes_base = True

    def attach(self, base: FrozenBase, seed: int) -> nn.Module:
        """Inserts the first task's adapter.

        Raises:
            BaseModelError: the base is quantised.
        """
        check_whole(base, "Merging an adapter into the weights")
        return insert(base, deepcopy(self.peft_config), seed, adapter_of(1))

    def begin_task(self, model: Any, context: TaskContext) -> None:
        """Puts a new adapter, drawn from the task's seed, in the place of what there is."""
        if context.number > 1:
            self.put_new(model, adapter_of(context.number), context.seed)
        super().begin_task(model, context)

    def end_task(self, model: Any) -> None:
        """Merges the adapter; a new one that changes nothing stands in its place."""
        super().end_task(model)
        with torch.no_grad():
            model.base_model.merge_adapter()
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merged_adapters.clear()  # PEFT would take it out again before it adds another
        self.put_new(model, "next", 0)

    def put_new(self, model: Any, name: str, seed: int) -> None:
        """Adds an adapter and deletes all others."""
        others = list(model.peft_config)
        add(model, self.peft_config, name, seed)
        model.set_adapter(name)
        for other in others:
            model.delete_adapter(other)

    def save(self, model: Any, folder: Path) -> None:
        """Writes the whole model, and what the penalties remember."""
        save_weights(model, folder)
        Trainable.save(self, model, folder)

    def load(self, base: FrozenBase, folder: Path) -> nn.Module:
        """Reads the weights into the base's module, with an adapter that changes nothing."""
        self.remember(folder)
        load_weights(base, folder)
        return self.attach(base, 0).eval()


def add(model: Any, config: PeftConfig, name: str, seed: int) -> None:
    """Adds an adapter with PEFT's own initialisation, drawn from `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(name, deepcopy(config))


@contextmanager
def at_work(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Lets some adapters speak, the base if none; afterwards the same ones as before speak and are trained."""
    before = list(model.base_model.active_adapters)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.base_model.set_adapter(list(names) or before)
    try:
        with nullcontext() if names else model.disable_adapter():
            yield
    finally:
        model.base_model.set_adapter(before)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])  # PEFT sets it for all that speak


def overlap(model: nn.Module, names: Sequence[str]) -> Tensor | None:
    """Sum of |A_i A_t^T| over adapted matrices and the adapters before the last, scalar; None if there are none."""
    *earlier, own = names
    terms = []
    for layer in model.modules():
        if earlier and isinstance(layer, LoraLayer) and own in layer.lora_A:
            maps: Any = layer.lora_A
            before = torch.cat([maps[name].weight for name in earlier])
            terms.append((before @ maps[own].weight.T).abs().sum())
    return torch.stack(terms).sum() if terms else None
