"""What an adapter that was trained on a float32 base learns and keeps on the same base in 16, 8 and 4 bit.

    python eval/quantized_retention.py runs/quantized

Trains sparse slots, gated LoRA and LoRA on `builtin:tiny` (the tasks of `recipes/demo.yaml`), once on the float32 base
and once on its 4-bit form, and scores each on the base in float32, bfloat16, 8 bit and 4 bit (bitsandbytes). What is
lost is told against the base of the same precision. What fires is counted on the background's rows, for which the
thresholds were set in the precision of training, and on base facts that no calibration saw. Runs that are there are
not trained again. About fifteen minutes on one core.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from nlft.base import FrozenBase, load_base
from nlft.config import BaseConfig, Recipe
from nlft.data.domain import load_domains
from nlft.data.template import Encoded, encode_rows
from nlft.loading import put_on
from nlft.measure.firing import fire
from nlft.pathways.task import TaskPeftConfig
from nlft.prepare import Prepared, prepare
from nlft.recipes import load_recipe
from nlft.rescore import counted_mean
from nlft.run import run_method
from nlft.scoring import measure
from nlft.types import Item

SLOTS = {"kind": "sparse_memory", "lr": 0.03, "layers": [3], "kmeans_steps": 5, "input_dependent": True}
METHODS: dict[str, dict[str, Any]] = {
    "slots with margin 0.1": SLOTS | {"margin": 0.1},
    "slots without margin": SLOTS,
    "gated LoRA": {
        "kind": "lora",
        "lr": 5e-3,
        "peft": {"r": 16},
        "gate": {"layer": 2},
        "retention": 0.15,
        "replay": {"ratio": 0.5},
    },
    "LoRA r8": {"kind": "lora", "lr": 5e-3},
}
PRECISIONS = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "8 bit": {"quantization": "8bit"},
    "4 bit": {"quantization": "4bit"},
}
TRAINED_ON = ("float32", "4 bit")
BACKGROUND_ROWS = 1000
"""Of the background, on which it is counted what fires."""


def recipe_on(precision: str) -> Recipe:
    """The demo's tasks with these methods, on a base in some precision."""
    demo = load_recipe("demo", [])
    data = demo.model_dump(exclude_unset=True) | {"name": "quantized", "methods": METHODS}
    for task in data["tasks"]:
        task.pop("seen", None)
        task["test"]["limit"] = 60
    data["probes"] = [probe for probe in data["probes"] if probe["name"] == "facts"]
    data["base"] = BaseConfig.model_validate(PRECISIONS[precision]).model_dump()
    return Recipe.model_validate(data)


def folder_of(out: Path, method: str, precision: str) -> Path:
    """Where a run lies."""
    return out / f"{method} on {precision}".replace(" ", "-")


def train_all(out: Path) -> None:
    """Every method on every base that is trained on."""
    for precision in TRAINED_ON:
        for method in METHODS:
            folder = folder_of(out, method, precision)
            if not (folder / "adapter").is_dir():
                run_method(recipe_on(precision), method, folder, console=Console(), report=False, keep_stages=False)


def share(model: Any, rows: Sequence[Encoded], pad: int) -> float | None:
    """Share of tokens that read a task, summed over tasks; None for LoRA, which has no gate and always speaks."""
    config = model.active_peft_config
    if not isinstance(config, TaskPeftConfig):
        return None
    found = [fire(model, task, rows, pad) for task in range(len(config.tasks))]
    return sum(one.fired_tokens for one in found) / found[0].tokens


def scores(items: list[Item]) -> dict[str, float]:
    """Exact recall by column."""
    return {column: counted_mean(items, column, "exact_match")[1] for column in {item.column for item in items}}


def score_all(out: Path) -> list[dict[str, Any]]:
    """A line for every run and precision."""
    lines = []
    for precision in PRECISIONS:
        recipe = recipe_on(precision)
        base = load_base(recipe.base)
        prepared = prepare(recipe, load_domains(recipe), base)
        alone = scores(measure(base.model, base, recipe, prepared, 0, "base"))
        for trained_on in TRAINED_ON:
            for method in METHODS:
                if trained_on != "float32" and precision != trained_on:
                    continue
                fresh = load_base(recipe.base)
                line = score_one(folder_of(out, method, trained_on) / "adapter", recipe, prepared, fresh, alone)
                lines.append({"method": method, "trained_on": trained_on, "scored_on": precision, **line})
                print(lines[-1], flush=True)
    return lines


def score_one(
    adapter: Path, recipe: Recipe, prepared: Prepared, base: FrozenBase, alone: dict[str, float]
) -> dict[str, Any]:
    """What one adapter does on a base.

    Args:
        alone: recall of that base by itself.
    """
    model = put_on(adapter, base.model, any_base=True).eval()
    found = scores(measure(model, base, recipe, prepared, 1, "on"))
    tasks = [task.name for task in recipe.tasks]
    [facts] = [one for one in prepared.domains.evaluations if one.name == "facts"]
    probe = encode_rows(facts.rows, base.tokenizer, prepared.max_length, "error")
    return {
        "base_facts": alone["facts"],
        "learned": sum((found[name] - alone[name]) / (1 - alone[name]) for name in tasks) / len(tasks),
        "facts_lost": 100 * (alone["facts"] - found["facts"]),
        "background_fires": share(model, prepared.background[:BACKGROUND_ROWS], prepared.pad_id),
        "facts_fire": share(model, probe, prepared.pad_id),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""

    def percent(value: float | None) -> str:
        return "all" if value is None else f"{value:.3%}"

    head = "| method | trained on | scored on | learned at the end | facts the base knows | facts lost, points |"
    text = [f"{head} background tokens that fire | facts' tokens that fire |", "|---|---|---|" + "---:|" * 5]
    for one in sorted(lines, key=lambda one: (list(METHODS).index(one["method"]), one["trained_on"] != "float32")):
        numbers = f"{one['learned']:.1%} | {one['base_facts']:.1%} | {one['facts_lost']:.1f}"
        fires = f"{percent(one['background_fires'])} | {percent(one['facts_fire'])}"
        text.append(f"| {one['method']} | {one['trained_on']} | {one['scored_on']} | {numbers} | {fires} |")
    return "\n".join(text)


def main(out: Path) -> None:
    """Trains, scores, and prints the table."""
    warnings.filterwarnings("ignore", "MatMul8bitLt")  # that it computes in float16, at every call
    train_all(out)
    lines = score_all(out)
    (out / "quantized.json").write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print(table(lines))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
