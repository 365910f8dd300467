"""Bytes of adapters against LoRA's at equal learning.

    nlft compare adapter-bytes
    python eval/adapter_bytes.py measure runs/adapter-bytes   # bytes by part; scores of adapters rounded to bfloat16
    python eval/adapter_bytes.py table runs/adapter-bytes     # the tables, as Markdown

`measure` loads every adapter and scores those that had learned enough once more, with their learned rows in bfloat16
as `nlft export --dtype bfloat16` writes them; it writes `bytes.json` beside the results. `table` needs no adapters.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from nlft.base import load_base
from nlft.data.domain import load_domains
from nlft.export import shorten
from nlft.loading import put_on
from nlft.measure.summary import summary_of
from nlft.prepare import prepare
from nlft.recipes import load_recipe
from nlft.rescore import counted_mean
from nlft.scoring import measure
from nlft.verification import stored_tensors

ENOUGH = 0.9
"""Learning (0 the base, 1 all) at which bytes are compared."""
FAMILIES = {
    "lora": "LoRA, one for all tasks",
    "slots": "sparse slots, input-dependent",
    "values": "sparse slots, values only",
    "gated": "gated LoRA + replay",
    "cms": "CMS, new levels",
    "pretrained": "CMS, `init: pretrained`",
    "hope": "Hope",
}


def runs_of(folder: Path) -> list[dict[str, Any]]:
    """Finished runs, with what they learned and lost."""
    return [run for run in summary_of(folder)["runs"] if run["status"] == "ok"]


def learned(run: dict[str, Any], moment: str) -> float:
    """Normalised learning `now` (right after each domain) or at the `end`."""
    return run["values"]["learning"][moment]


def lost(run: dict[str, Any]) -> float:
    """Points of exact recall of the base's facts that are gone at the end."""
    return 0.0 - 100 * run["values"]["probes"]["facts"]["change"]


def measure_all(folder: Path) -> None:
    """Writes `bytes.json`."""
    recipe = load_recipe(str(folder), [])
    domains = load_domains(recipe)
    tasks = [task.name for task in recipe.tasks]
    found: dict[str, dict[str, Any]] = {}
    for run in runs_of(folder):
        base = load_base(recipe.base)
        model = put_on(folder / "cells" / run["run_id"] / "adapter", base.model)
        rows, rest = stored_tensors(model)
        entry: dict[str, Any] = {
            "learned": sum(tensor.nbytes for tensor in rows.values()),
            "calibrated": sum(tensor.nbytes for tensor in rest.values()),
            "learned_bfloat16": sum(2 * tensor.numel() for tensor in rows.values()),
        }
        if learned(run, "now") >= ENOUGH:
            shorten(model, "bfloat16")
            items = measure(model, base, recipe, prepare(recipe, domains, base), len(tasks), "on")
            scores = {name: counted_mean(items, name, "exact_match")[1] for name in (*tasks, "facts")}
            gains = [
                (scores[name] - run["values"]["tasks"][name]["base"]) / (1 - run["values"]["tasks"][name]["base"])
                for name in tasks
            ]
            entry["end_bfloat16"] = sum(gains) / len(gains)
            entry["lost_bfloat16"] = 100 * (run["values"]["probes"]["facts"]["base"] - scores["facts"])
        found[run["run_id"]] = entry
        print(run["method"], run["lr"], entry, flush=True)
    (folder / "bytes.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def table(folder: Path) -> None:
    """Prints the smallest adapter of every family that learned enough, then every run."""
    sizes = json.loads((folder / "bytes.json").read_text(encoding="utf-8"))
    runs = sorted(runs_of(folder), key=lambda run: sum(sizes[run["run_id"]][k] for k in ("learned", "calibrated")))

    def total(run: dict[str, Any], short: bool = False) -> int:
        own = sizes[run["run_id"]]
        return own["learned_bfloat16" if short else "learned"] + own["calibrated"]

    reached: dict[str, dict[str, Any]] = {}
    for run in runs:
        if learned(run, "now") >= ENOUGH:
            reached.setdefault(run["method"].partition("-")[0], run)
    reference = total(reached["lora"])
    print(
        "| family | smallest that learned | kB | of these learned | keys, thresholds, whitening | × LoRA | kB in"
        " bfloat16 | × LoRA's in bfloat16 | learned, right after | at the end | facts lost | in bfloat16: at the end |"
        " facts lost |\n|---|---|" + "---:|" * 11
    )
    short = total(reached["lora"], short=True)
    for family, title in FAMILIES.items():
        if family not in reached:
            best = max((run for run in runs if run["method"].startswith(family)), key=lambda run: learned(run, "now"))
            print(f"| {title} | none; {best['method']} {learned(best, 'now'):.0%} |" + " |" * 11)
            continue
        run = reached[family]
        own = sizes[run["run_id"]]
        cells = [
            f"{run['method']}, lr {run['lr']:g}",
            f"{total(run) / 1e3:,.0f}",
            f"{own['learned'] / 1e3:,.0f}",
            f"{own['calibrated'] / 1e3:,.0f}",
            f"{total(run) / reference:.1f}",
            f"{total(run, short=True) / 1e3:,.0f}",
            f"{total(run, short=True) / short:.1f}",
            f"{learned(run, 'now'):.1%}",
            f"{learned(run, 'end'):.1%}",
            f"{lost(run):.1f}",
            f"{own['end_bfloat16']:.1%}",
            f"{own['lost_bfloat16']:.1f}",
        ]
        print(f"| {title} | {' | '.join(cells)} |")
    print("\n| run | lr | kB | learned, right after | at the end | facts lost |\n|---|" + "---:|" * 5)
    for run in runs:
        numbers = f"{learned(run, 'now'):.1%} | {learned(run, 'end'):.1%} | {lost(run):.1f}"
        print(f"| {run['method']} | {run['lr']:g} | {total(run) / 1e3:,.0f} | {numbers} |")


if __name__ == "__main__":
    verbs = {"measure": measure_all, "table": table}
    if len(sys.argv) != 3 or sys.argv[1] not in verbs:
        sys.exit(__doc__)
    verbs[sys.argv[1]](Path(sys.argv[2]))
