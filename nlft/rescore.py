"""Scores a finished run or a PEFT adapter again, against its base, in one process and with the same settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from nlft.base import FrozenBase, load_base
from nlft.checkpoint import finished_stages
from nlft.config import Recipe
from nlft.data.domain import load_domains
from nlft.errors import NlftError
from nlft.methods import build_method
from nlft.prepare import prepare
from nlft.recipes import load_recipe
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


def evaluate_run(path: str, recipe: Recipe | None = None, console: Console | None = None) -> list[Rescored]:
    """Scores a run folder or an adapter folder on the evaluations of a recipe.

    Args:
        path: a result folder of `nlft train`, one cell of a comparison, or a PEFT adapter folder.
        recipe: evaluations and base; a run folder brings its own.

    Returns:
        One line a column and metric, base beside adapted.

    Raises:
        NlftError: the folder holds neither, or an adapter comes without a recipe.
    """
    console = console or Console(quiet=True)
    folder = Path(path)
    if (folder / "config.yaml").is_file():
        recipe = recipe or load_recipe(str(folder / "config.yaml"), [])
    weights = weights_of(folder)
    if recipe is None:
        raise NlftError(f"{path} is an adapter and brings no evaluations.", "Name a recipe with --recipe.")
    domains = load_domains(recipe)
    base = load_base(recipe.base)
    prepared = prepare(recipe, domains, base)
    if not (weights / "adapter_config.json").is_file():
        base.model.float()  # as full finetuning does, so that both columns are of one dtype
    before = measure(base.model, base, recipe, prepared, 0, "base")
    after = measure(load_weights(weights, recipe, base), base, recipe, prepared, 1, "on")
    lines = []
    for column, metric in dict.fromkeys((item.column, item.metric) for item in after):
        n_rows, adapted = counted_mean(after, column, metric)
        lines.append(Rescored(column, metric, counted_mean(before, column, metric)[1], adapted, n_rows))
    return lines


def weights_of(folder: Path) -> Path:
    """The folder with the weights of a run or adapter.

    Raises:
        NlftError: there are none.
    """
    for candidate in (folder, folder / "adapter"):
        if (candidate / "adapter_config.json").is_file():
            return candidate
    stages = finished_stages(folder)
    if stages and (stages[-1] / "model").is_dir():
        return stages[-1] / "model"
    raise NlftError(
        f"{folder} holds neither a run with weights nor a PEFT adapter.",
        "Give the folder that `nlft train` wrote, one with adapter_config.json, or a cell of a comparison.",
    )


def load_weights(weights: Path, recipe: Recipe, base: FrozenBase) -> Any:
    """The adapted model; any PEFT adapter loads the same way, full finetuning by its own method."""
    if (weights / "adapter_config.json").is_file():
        from peft import PeftModel

        model = PeftModel.from_pretrained(base.model, str(weights))
        made_for = getattr(model.active_peft_config, "base_fingerprint", None)
        if made_for not in (None, base.fingerprint):
            raise NlftError(
                f"{weights} was made for a base with other weights than {base.name!r}.",
                "Score it on its own base: set base.model in the recipe.",
            )
        return model
    method = next(iter(recipe.methods.values()))
    return build_method(method).load(base, weights)


def counted_mean(items: list[Item], column: str, metric: str) -> tuple[int, float]:
    """Number of rows and weighted mean of one column."""
    chosen = [item for item in items if item.column == column and item.metric == metric]
    total = sum(item.weight for item in chosen)
    return len(chosen), sum(item.value * item.weight for item in chosen) / total
