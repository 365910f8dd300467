"""Whether a gate's budget holds on text never used: realised against promised false fire.

    python eval/false_fire.py recipes/real-domains.yaml     # in the folder that holds its model and data

Two thirds of the background's documents calibrate the gate of the recipe's first task, the other third is the new
text. Nothing is trained. Intervals: bootstrap over documents, whose rows are alike.
"""

from __future__ import annotations

import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from nlft.base import load_base
from nlft.config import GateConfig, LoraConfig, RetentionConfig
from nlft.data.domain import load_domains
from nlft.methods import build_method
from nlft.methods.protocol import TaskContext
from nlft.pathways.evidence import let_through
from nlft.prepare import prepare
from nlft.recipes import load_recipe

BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1)
BATCH = 64


def main(path: str) -> None:
    """Calibrates a gate for every budget and counts the new rows that open it."""
    recipe = load_recipe(path, [])
    config = LoraConfig(kind="lora", lr=1e-2, peft={"r": 8}, gate=GateConfig(layer=1))
    recipe = recipe.model_copy(update={"tasks": recipe.tasks[:1], "methods": {"gate": config}})
    domains = load_domains(recipe)
    grid = Table("budget (documents' mean share of rows)", "realised", "95 % interval", "task rows that open it")
    for budget in BUDGETS:
        base = load_base(recipe.base)
        prepared = prepare(recipe, domains, base)
        documents = list(dict.fromkeys(row.cluster for row in prepared.background))
        known = set(documents[: len(documents) * 2 // 3])
        seen = [row for row in prepared.background if row.cluster in known]
        new = [row for row in prepared.background if row.cluster not in known]
        task = domains.tasks[0].name
        learner = build_method(config.model_copy(update={"retention": RetentionConfig(budget=budget)}))
        model = learner.attach(base, 0)
        train, pad = prepared.train[task], prepared.pad_id
        learner.begin_task(model, TaskContext(task, train[:-200], [], seen, 1, 1, 16, pad, 0))
        opened = {id(row) for row in let_through(model, "default", new, pad, BATCH)}
        shares: dict[str, list[bool]] = {}
        for row in new:
            shares.setdefault(row.cluster, []).append(id(row) in opened)
        means = np.array([np.mean(rows) for rows in shares.values()])
        draws = np.random.default_rng(0).integers(len(means), size=(4000, len(means)))
        low, high = np.percentile(means[draws].mean(axis=1), [2.5, 97.5])
        known_rows = len(let_through(model, "default", train[-200:], pad, BATCH)) / 200
        grid.add_row(f"{budget:.1%}", f"{means.mean():.2%}", f"{low:.2%} to {high:.2%}", f"{known_rows:.0%}")
    Console(width=120).print(grid)


if __name__ == "__main__":
    main(sys.argv[1])
