"""Whether the budget holds on text never used: realised against promised false fire, for a gate and for slots.

    python eval/false_fire.py recipes/real-domains.yaml     # in the folder that holds its model and data

Two thirds of the background's documents are calibrated on, the other third is the new text. Nothing is trained.
Intervals are exact binomial (Clopper & Pearson 1934) over documents.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

from nlft.base import load_base
from nlft.config import GateConfig, LoraConfig, RetentionConfig, SparseMemoryConfig
from nlft.data.domain import load_domains
from nlft.data.template import Encoded
from nlft.measure.firing import fire
from nlft.methods import build_method
from nlft.methods.protocol import TaskContext
from nlft.prepare import prepare
from nlft.recipes import load_recipe

BUDGETS = (0.01, 0.02, 0.05)
METHODS: dict[str, Any] = {
    "gate": LoraConfig(kind="lora", lr=1e-2, peft={"r": 8}, gate=GateConfig(layer=1)),
    "slots": SparseMemoryConfig(kind="sparse_memory", lr=0.1, slots=500, layers=[1, 2], kmeans_steps=5),
}


def main(path: str) -> None:
    """Calibrates on the first half of the background's documents and counts on the second."""
    recipe = load_recipe(path, [])
    recipe = recipe.model_copy(update={"tasks": recipe.tasks[:1], "methods": {"gate": METHODS["gate"]}})
    domains = load_domains(recipe)
    grid = Table("keys", "promised for", "budget", "realised", "95 % interval", "documents")
    for name, config in METHODS.items():
        for unit in ("rows", "tokens"):
            for budget in BUDGETS:
                base = load_base(recipe.base)
                prepared = prepare(recipe, domains, base)
                documents = list(dict.fromkeys(row.cluster for row in prepared.background))
                known = set(documents[: len(documents) * 2 // 3])
                seen = [row for row in prepared.background if row.cluster in known]
                new = [row for row in prepared.background if row.cluster not in known]
                task = domains.tasks[0].name
                learner = build_method(config.model_copy(update={"retention": RetentionConfig(budget=budget, of=unit)}))
                model = learner.attach(base, 0)
                context = TaskContext(task, prepared.train[task][:400], [], seen, 1, 1, 16, prepared.pad_id, 0)
                learner.begin_task(model, context)
                shares = document_shares(model, new, unit, prepared.pad_id)
                rate = sum(shares) / len(shares)
                interval = binomtest(round(sum(shares)), len(shares)).proportion_ci()
                limits = f"{interval.low:.2%} to {interval.high:.2%}" if unit == "rows" else "-"
                grid.add_row(name, unit, f"{budget:.1%}", f"{rate:.2%}", limits, str(len(shares)))
    Console(width=120).print(grid)


def document_shares(model: Any, rows: list[Encoded], unit: str, pad_id: int) -> list[float]:
    """For every document the share of its rows, or of its tokens, that fire."""
    fired: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for row in rows:
        found = fire(model, 0, [row], pad_id)
        fired[row.cluster] += found.fired_rows if unit == "rows" else found.fired_tokens
        total[row.cluster] += 1 if unit == "rows" else found.tokens
    return [fired[name] / total[name] for name in total]


if __name__ == "__main__":
    main(sys.argv[1])
