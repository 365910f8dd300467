"""Scores a finished run or a PEFT adapter again, against its base, in one process and with the same settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nlft.base import UNREADABLE, FrozenBase, load_base
from nlft.checkpoint import finished_stages
from nlft.config import FullConfig, Recipe
from nlft.data.domain import Domains, load_domains
from nlft.errors import NlftError, reason
from nlft.found_recipe import EXPORTED, beside
from nlft.loading import put_on
from nlft.manifest import whole_manifest
from nlft.measure.items import read_runs
from nlft.methods import build_method
from nlft.methods.full import Full
from nlft.prepare import prepare
from nlft.remote import CONFIG, fetch_adapter
from nlft.run import measure
from nlft.types import Item


@dataclass(frozen=True)
class Rescored:
    """One column, scored with the adapter on and on the base."""

    column: str
    metric: str
    base: float
    adapted: float
    n_rows: int


def evaluate_run(
    path: str, recipe: Recipe | None = None, console: Console | None = None, any_base: bool = False
) -> list[Rescored]:
    """Scores a run folder or an adapter folder on the evaluations of a recipe.

    Args:
        path: a result folder of `nlft train`, one cell of a comparison, what `nlft export` wrote, a PEFT adapter
            folder, or USER/NAME[@REVISION] on the Hub.
        recipe: evaluations and base; a run brings its own, and so does an exported directory.
        any_base: take an adapter onto another base than it was made for.

    Returns:
        One line a column and metric, base beside adapted.

    Raises:
        NlftError: the folder holds neither, an adapter comes without a recipe, or the data that its own recipe names
            is not on this machine.
    """
    console = console or Console(quiet=True)
    folder = fetch_adapter(path)
    file, own = None, False
    if recipe is not None:
        whole_manifest(folder)
    elif (found := beside(folder, console)) is not None:
        (file, recipe), own = found, True
    weights = weights_of(folder)
    if recipe is None:
        raise NlftError(f"{path} is an adapter and brings no evaluations.", "Name a recipe with --recipe.")
    foreign = file is not None and file.name == EXPORTED
    domains = load_foreign(recipe, path) if foreign else load_domains(recipe)
    base = load_base(recipe.base)
    prepared = prepare(recipe, domains, base)
    adapter = (weights / CONFIG).is_file()
    if not adapter and (not own or next(iter(recipe.methods.values())).kind == "full"):
        base.model.float()  # as full finetuning does, so that both columns are of one dtype
    before = measure(base.model, base, recipe, prepared, 0, "base")
    if own and not adapter:  # only the method knows what it saved, and how it is scored
        [method] = recipe.methods.values()
        learner = build_method(method)
        with readable(weights, base):
            model = learner.load(base, weights)
        after = measure(model, base, recipe, prepared, 1, "on", learner)
    else:
        after = measure(load_weights(weights, base, any_base), base, recipe, prepared, 1, "on")
    lines = side_by_side(before, after)
    return [Rescored(column, metric, one, two, count) for column, metric, count, one, two in lines]


def load_foreign(recipe: Recipe, path: str) -> Domains:
    """Reads the data that the recipe of an exported directory names; it may have been made on another machine.

    Raises:
        NlftError: it is not here.
    """
    try:
        return load_domains(recipe)
    except NlftError as error:
        hint = f"The recipe that {path} brings names data that this machine does not have: name one with --recipe."
        raise NlftError(error.message, hint) from error


def scored_domains(recipe: Recipe, source: str) -> Domains:
    """The recipe's rows. Where train rows are not here test rows stand for them, since nothing is trained.

    Raises:
        NlftError: test rows are not here either.
    """
    try:
        return load_domains(recipe)
    except NlftError:
        parts = {
            name: [task.model_copy(update={"train": task.test}) for task in getattr(recipe, name)]
            for name in ("tasks", "earlier")
        }
    try:
        return load_domains(recipe.model_copy(update={**parts, "background": None}))
    except NlftError as error:
        hint = f"Name a recipe whose rows are here with --recipe, or merge {source} without scoring it: --no-rescore."
        raise NlftError(error.message, hint) from error


def weights_of(folder: Path) -> Path:
    """The folder with the weights of a run or adapter.

    Raises:
        NlftError: there are none.
    """
    for candidate in (folder, folder / "adapter"):
        if (candidate / CONFIG).is_file():
            return candidate
    stages = finished_stages(folder)
    if stages and (stages[-1] / "model").is_dir():
        return stages[-1] / "model"
    if (folder / "adapter").is_dir():
        return folder / "adapter"
    hint = "Give the folder that `nlft train` wrote, one with adapter_config.json, or a cell of a comparison."
    if not folder.is_dir():
        raise NlftError(f"There is no folder {str(folder)!r}.", hint)
    if (folder / "cells").is_dir():
        names = sorted(path.name for path in (folder / "cells").iterdir())
        raise NlftError(
            f"{folder} is a comparison of {len(names)} run{'s' * (len(names) != 1)}.",
            f"Give one of them, as {folder}/cells/{names[0]}." if names else hint,
        )
    if (folder / "runs.parquet").is_file():
        again = f"`nlft train {folder / 'config.yaml'} --out FOLDER` trains them again and keeps them."
        if any(row["base_unchanged"] is not None for row in read_runs(folder / "runs.parquet")):  # it had an adapter
            raise NlftError(f"{folder} has no folder `adapter`, where the weights of its run were.", again)
        raise NlftError(
            f"{folder} holds no weights: a comparison does not keep those of full finetuning, which are as large as"
            " the base.",
            again,
        )
    if (folder / "config.yaml").is_file():
        raise NlftError(
            f"The run in {folder} has no weights yet: it has finished no task.", "Go on with `nlft train … --resume`."
        )
    raise NlftError(f"{folder} holds neither a run with weights nor a PEFT adapter.", hint)


def load_weights(weights: Path, base: FrozenBase, any_base: bool = False) -> Any:
    """The adapted model: what lies in the folder decides how, a PEFT adapter or the weights of full finetuning.

    Args:
        any_base: take an adapter onto another base than it was made for.

    Raises:
        NlftError: they are damaged, or made for another base.
    """
    with readable(weights, base):
        if not (weights / CONFIG).is_file():
            return Full(FullConfig(kind="full", lr=1.0)).load(base, weights)
        model: Any = put_on(weights, base.model, any_base)
    config = model.active_peft_config
    made_for = None if any_base else getattr(config, "base_fingerprint", None)
    # A sample of weights has been compared by value. The hash also covers buffers that transformers computes, which
    # another version may do in another way.
    if made_for not in (None, base.fingerprint) and not config.base_sample:
        raise NlftError(
            f"{weights} was made for a base with other weights than {base.name!r}.",
            "Score it on its own base: set base.model in the recipe.",
        )
    return model


@contextmanager
def readable(weights: Path, base: FrozenBase) -> Iterator[None]:
    """Turns what libraries say about weights that do not load into a sentence.

    Raises:
        NlftError: they are damaged, or made for another base.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UNREADABLE as error:
        raise NlftError(
            f"The weights in {weights} do not load onto {base.name!r}: {reason(error)}",
            "Score them on the base that they were made for (base.model in the recipe), and check that the files"
            " are whole.",
        ) from error


def side_by_side(before: Sequence[Item], after: Sequence[Item]) -> Iterator[tuple[str, str, int, float, float]]:
    """Column, metric, number of rows, and the mean before and after, of every column and metric."""
    for column, metric in dict.fromkeys((item.column, item.metric) for item in after):
        count, mean = counted_mean(after, column, metric)
        yield column, metric, count, counted_mean(before, column, metric)[1], mean


def counted_mean(items: Sequence[Item], column: str, metric: str) -> tuple[int, float]:
    """Number of rows and weighted mean of one column, which has rows."""
    chosen = [item for item in items if item.column == column and item.metric == metric]
    total = sum(item.weight for item in chosen)
    return len(chosen), sum(item.value * item.weight for item in chosen) / total
