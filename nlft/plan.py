"""What is run of a recipe: the runs of a comparison, each with an address that says everything that decides its
result, or one method alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from nlft.config import CompareConfig, Recipe
from nlft.errors import NlftError

RESULTS = 1
"""Part of every address; raised when the same recipe would give other results than before."""
ORDER_WIDTH = 40
"""Characters of an order in a cell's name."""

Setting = Literal["sequence", "single", "multitask"]
"""Tasks one after another; one task alone; all tasks at once."""
Rates = Mapping[str, Sequence[float]]
"""Learning rates by method."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    name: str
    """Readable; with the address at its end once that is known: the name of the cell's folder."""
    method: str
    setting: Setting
    recipe: Recipe
    """The recipe with this method, learning rate, number of steps, seed and order alone."""
    address: str = ""
    """sha256 of everything that decides the result."""

    @property
    def lr(self) -> float:
        """Its learning rate; 0 for a method without one."""
        return self.recipe.methods[self.method].lrs[0]

    @property
    def steps(self) -> int:
        """Its optimiser steps a task."""
        return self.recipe.methods[self.method].step_counts(self.recipe.train.steps)[0]


def plan_cells(recipe: Recipe, added: Rates | None = None) -> list[Cell]:
    """Every run of a comparison, in a fixed order: the sequences, then the bounds.

    Args:
        added: learning rates beside the recipe's.

    Raises:
        NlftError: a rate, seed or order is there twice.
    """
    tasks = [task.name for task in recipe.tasks]
    orders = recipe.compare.orders_of(tasks)
    chosen, bounds = list(recipe.methods), recipe.compare.bounds
    cells = [*_cells(recipe, chosen, orders, "sequence", added or {})]
    alone = [[task] for task in tasks if task not in {order[0] for order in orders}]
    cells += _cells(recipe, bounds.single, alone, "single", added or {})
    cells += _cells(recipe, bounds.multitask, [tasks], "multitask", added or {})
    addresses = [address_of(cell, "", "") for cell in cells]
    times = Counter(addresses)
    twice = next((cell.name for cell, own in zip(cells, addresses, strict=True) if times[own] > 1), None)
    if twice:
        raise NlftError(f"Two runs of the comparison would be {twice!r}.", "List every rate, seed and order once.")
    return cells


def _cells(
    recipe: Recipe, methods: Sequence[str], orders: Sequence[list[str]], setting: Setting, added: Rates
) -> Iterator[Cell]:
    tasks = {task.name: task for task in recipe.tasks}
    seeds = recipe.train.seeds
    for order in orders:
        for seed in recipe.compare.seeds:
            moved = {field: getattr(seeds, field) + seed for field in type(seeds).model_fields}
            for method in methods:
                config = recipe.methods[method]
                for steps in config.step_counts(recipe.train.steps):
                    for lr in [*config.lrs, *added.get(method, ())]:
                        total = steps * len(order) if setting == "multitask" else steps
                        words = [method, *([f"lr{lr:g}"] if lr else []), f"steps{total}", f"seed{moved['data']}"]
                        words += [] if setting == "sequence" else [setting]
                        name = "-".join([*words, ".".join(order)[:ORDER_WIDTH].rstrip(" .")]).replace(" ", "_")
                        update = {
                            "name": name,
                            "out": None,
                            "compare": CompareConfig(),
                            "tasks": [tasks[task] for task in order],
                            "methods": {method: config.model_copy(update={"lr": lr, "steps": total})},
                            "train": recipe.train.model_copy(update={"seeds": seeds.model_copy(update=moved)}),
                        }
                        yield Cell(name, method, setting, recipe.model_copy(update=update))


def address_of(cell: Cell, base_sha256: str, rows_sha256: str, adapter_sha256: str = "") -> str:
    """sha256 over all that decides a cell's result: its recipe but for names of folders, its base, its rows.

    Args:
        rows_sha256: of the cell's own rows, in its order of tasks.
        adapter_sha256: of the adapter from which it goes on, whatever that is called; empty if it begins at the base.
    """
    left_out = {"name", "out", "compare", "adapter", "prefix"} | ({"earlier"} if not cell.recipe.earlier else set())
    dumped = cell.recipe.model_dump(mode="json", exclude=left_out)
    if cell.recipe.prefix.enabled and cell.recipe.prefix.dtype != "base":
        dumped["prefix"] = {"dtype": cell.recipe.prefix.dtype}
    if not cell.recipe.train.packing:  # so that addresses stay which were given before there was packing
        del dumped["train"]["packing"]
    decides: dict[str, Any] = {
        "results": RESULTS,
        "setting": cell.setting,
        "recipe": dumped,
        "base_sha256": base_sha256,
        "rows_sha256": rows_sha256,
    }
    if adapter_sha256:
        decides["adapter_sha256"] = adapter_sha256
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def addressed(
    cells: Sequence[Cell], base_sha256: str, rows: Callable[[list[str]], str], adapter_sha256: str = ""
) -> list[Cell]:
    """The cells with their addresses, the first twelve digits of which end their names.

    Args:
        rows: gives the sha256 of the rows for tasks in an order.
        adapter_sha256: of the adapter from which they go on, if they do.
    """
    known: dict[tuple[str, ...], str] = {}
    found = []
    for cell in cells:
        order = tuple(task.name for task in cell.recipe.tasks)
        if order not in known:
            known[order] = rows(list(order))
        address = address_of(cell, base_sha256, known[order], adapter_sha256)
        found.append(replace(cell, name=f"{cell.name}-{address[:12]}", address=address))
    return found


def single_method(recipe: Recipe, method: str | None) -> tuple[Recipe, str]:
    """The recipe with one method and one learning rate.

    Raises:
        NlftError: the choice is not clear.
    """
    names = list(recipe.methods)
    if method is None:
        if len(names) > 1:
            raise NlftError(
                f"The recipe has {len(names)} methods: {', '.join(names)}.", "Choose one with --method NAME."
            )
        method = names[0]
    if method not in recipe.methods:
        raise NlftError(f"The recipe has no method {method!r}.", f"It has {', '.join(names)}.")
    config = recipe.methods[method]
    if len(config.lrs) > 1:
        raise NlftError(
            f"methods.{method}.lr lists {len(config.lrs)} learning rates, and one run takes one.",
            f"Add methods.{method}.lr={config.lrs[0]:g}, or run `nlft compare`.",
        )
    steps = config.step_counts(recipe.train.steps)
    if len(steps) > 1:
        raise NlftError(
            f"methods.{method}.steps lists {len(steps)} numbers of steps, and one run takes one.",
            f"Add methods.{method}.steps={steps[0]}, or run `nlft compare`.",
        )
    update = {"lr": config.lrs[0]} | ({"steps": steps[0]} if isinstance(config.steps, list) else {})
    chosen = config.model_copy(update=update)
    return recipe.model_copy(update={"methods": {method: chosen}}), method
