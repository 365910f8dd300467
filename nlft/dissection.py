"""A finished run is taken apart: what `measure.conditions` and `measure.dissect` would have measured at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from nlft.base import load_base
from nlft.config.measure import Analysis
from nlft.data.domain import load_domains
from nlft.dissect.findings import dissect, facts_of
from nlft.dissect.study import Study
from nlft.errors import NlftError
from nlft.found_recipe import own_recipe
from nlft.measure.items import read_items, read_runs, write_items, write_runs
from nlft.measure.matrix import columns_of
from nlft.measure.where import OWN, where_of
from nlft.methods import build_method
from nlft.plan import single_method
from nlft.prepare import prepare
from nlft.rescore import weights_of
from nlft.scoring import measure
from nlft.stage import check_inputs

CONDITIONS = ("off", "oracle", "ungated")
KINDS = get_args(Analysis)


@dataclass(frozen=True)
class Dissected:
    """A run taken apart."""

    where: dict[str, Any]
    """As `nlft.measure.where.where_of` gives it."""
    folder: Path


def dissect_run(path: str, console: Console | None = None) -> Dissected:
    """Runs all analyses on a run that has been trained, and adds what they find to its results.

    Scores are added to `items.parquet`, in the place of older ones under the same conditions; the rest is written to
    `dissect.json` and into `runs.parquet`. What the run had measured stays as it is.

    Args:
        path: a result folder of `nlft train`, or the folder of one cell of a comparison.

    Raises:
        NlftError: the folder is no such run, is not finished, or its base or rows are no longer what they were.
    """
    console = console or Console(quiet=True)
    folder = Path(path)
    weights = weights_of(folder)
    if not all((folder / name).is_file() for name in ("config.yaml", "runs.parquet", "items.parquet")):
        raise NlftError(
            f"{path} is no finished run: it needs config.yaml, runs.parquet and items.parquet.",
            "Give the folder that `nlft train` wrote; go on with an unfinished one by --resume.",
        )
    [row, *others] = read_runs(folder / "runs.parquet")
    if others or row["status"] != "ok":
        what = f"{1 + len(others)} runs" if others else f"a run that is not ok ({row['status']})"
        raise NlftError(f"{path} holds {what}.", "Give the folder of one finished run.")
    if row["setting"] not in OWN:
        raise NlftError(
            f"{path} is a run of the setting {row['setting']!r}: nothing was learned after anything else.",
            "Give the folder of a run that learned its tasks one after another.",
        )
    recipe, name = single_method(own_recipe(folder / "config.yaml", console), row["method"])
    domains = load_domains(recipe).in_order(list(row["order"]))
    base = load_base(recipe.base)
    prepared = prepare(recipe, domains, base)
    first = folder / "stages" / "0" / "stage.json"
    if first.is_file():
        check_inputs(first, {"base_sha256": base.fingerprint, "rows_sha256": prepared.rows_sha256})
    learner = build_method(recipe.methods[name])
    model = learner.load(base, weights)
    items, last = read_items(folder / "items.parquet"), len(domains.tasks)
    recipe = recipe.model_copy(
        update={"measure": recipe.measure.model_copy(update={"conditions": list(CONDITIONS), "dissect": list(KINDS)})}
    )
    found = []
    for condition in CONDITIONS:
        console.print(f"{condition} …", style="dim", highlight=False)
        found += measure(model, base, recipe, prepared, last, condition, learner)
    found += dissect(Study(learner, model, base, recipe, prepared, last), KINDS, folder / "dissect.json", console)
    items = [item for item in items if item.condition in ("base", "on")] + found
    row["dissect"] = facts_of(folder)
    write_items(folder / "items.parquet", row["run_id"], items)
    write_runs(folder / "runs.parquet", [row])
    metrics = {one.name: one.metric for one in domains.evaluations}
    return Dissected(where_of(row, items, columns_of(items, list(row["order"]), metrics)), folder)
