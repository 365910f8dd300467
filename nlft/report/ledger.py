"""Tables about the runs themselves: costs, bounds, contamination, and what was verified of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlft.measure.unit import count, show, size
from nlft.report.rows import LONG, Grid, columns_by, label, seconds

Summary = Mapping[str, Any]
COSTS = (
    ("trainable_params", "trainable", count),
    ("stored_bytes", "stored", size),
    ("task_bytes", "stored a task", size),
    ("replay_bytes", "replay buffer", size),
    ("regulariser_bytes", "regulariser", size),
    ("optimizer_bytes", "optimiser", size),
    ("peak_rss", "peak memory", size),
    ("peak_bytes", "peak GPU memory", size),
    ("steps", "steps", count),
    ("train_tokens", "training tokens", count),
    ("train_s", "training", seconds),
    ("eval_s", "scoring", seconds),
    ("wall_s", "in all", seconds),
    ("latency_ratio", "latency", lambda value: "–" if value is None else f"×{value:.2f}"),
)
"""Key of `costs`, name of the column, how it is written."""
COST_WORDS = (
    "Stored: adapter files, or the whole model, after the last task; a task: their mean growth from stage to stage. "
    "Replay buffer, regulariser: what must be kept besides. Optimiser: its state, at most. Latency: seconds a "
    "generated token over the base's. –: not measured, or there is none."
)


def cost_grids(summary: Summary) -> list[Grid]:
    """What a method at each point of its sweep cost, mean over its runs; and every run."""
    runs = [{**run, **run["values"]["costs"]} for run in summary["runs"]]
    means = []
    for entry in summary["methods"]:
        if entry["n_finished"]:
            costs = {
                key: leaf.get("value") for key, leaf in entry["values"]["costs"].items() if isinstance(leaf, Mapping)
            }
            means.append(([label(entry, summary)], costs))
    every = [([run["run_id"], run["status"].split(":")[0]], run) for run in runs]
    grids = []
    if len(runs) > len(means) > 0:
        grids.append(_costs(["method"], means, "A method", len(means) > LONG))
    return [*grids, _costs(["run", "status"], every, "Every run", bool(grids) or len(every) > LONG)]


def _costs(head: list[str], rows: Sequence[tuple[list[str], Mapping[str, Any]]], title: str, folded: bool) -> Grid:
    """Columns of which nothing was measured are left out, but for the ones every report has."""
    always = {"trainable_params", "stored_bytes", "train_tokens", "train_s"}
    shown = [
        (key, name, write)
        for key, name, write in COSTS
        if key in always or any(costs.get(key) is not None for _, costs in rows)
    ]
    body = [[*names, *[write(costs.get(key)) for key, _, write in shown]] for names, costs in rows]
    return Grid([*head, *[name for _, name, _ in shown]], body, COST_WORDS, title, folded)


def bound_grids(summary: Summary) -> list[Grid]:
    """What each method reached on a task alone and on all tasks at once, beside the sequence."""
    bounds = summary.get("bounds") or {}
    columns = columns_by(summary, "task")
    body = []
    for entry in summary["methods"]:
        name = entry["method"]
        if not entry["best"] or not any(name in (bounds.get(key) or {}) for key in ("single", "multitask")):
            continue
        scores = entry["values"]["tasks"]
        for key, words in (("now", "right after its training"), ("end", "at the end")):
            row = [show(scores.get(column["name"], {}).get(key, {}).get("value"), column["unit"]) for column in columns]
            body.append([f"{label(entry, summary)}, {words}", *row])
        for key, words in (("single", "each task alone"), ("multitask", "all at once")):
            own = (bounds.get(key) or {}).get(name)
            if own:
                body.append(
                    [f"{name}, {words}", *[_bound(own.get(column["name"]), column["unit"]) for column in columns]]
                )
    if not body:
        return []
    words = (
        "In each metric's own unit. Alone and all at once: the best over the learning rates, in small print that rate; "
        "chosen for each task by itself, so they are bounds that no single run need reach."
    )
    head = ["method", *[column["name"] for column in columns]]
    return [Grid(head, body, words, "", len(body) > LONG)]


def _bound(leaf: Mapping[str, Any] | None, unit: str) -> str:
    if not leaf or leaf.get("value") is None:
        return "–"
    small = [f"lr {leaf['lr']:g}"] if leaf.get("lr") else []
    small += [f"{leaf['n']} runs"] if (leaf.get("n") or 0) > 1 else []
    return show(leaf["value"], unit) + (f"\n{', '.join(small)}" if small else "")


def contamination_grids(summary: Summary) -> list[Grid]:
    """Of every column, the share of rows that hold a run of words of what was read in training."""
    found = next((run["overlap"] for run in summary["runs"] if run.get("overlap")), None)
    if not found:
        return []
    body = [[column, _share(own.get("train")), _share(own.get("background"))] for column, own in found.items()]
    longest = next(iter(found.values())).get("n")
    words = f"Share of rows that hold {longest} words in a row that also stand in what was read in training."
    return [Grid(["scored on", "in train rows", "in the background"], body, words, "", len(body) > LONG)]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def integrity_lines(summary: Summary) -> list[str]:
    """What was verified about the base, a sentence for each finding."""
    adapters = [
        run for run in summary["runs"] if run["status"] == "ok" and run["integrity"]["base_unchanged"] is not None
    ]
    full = list(dict.fromkeys(run["method"] for run in summary["runs"] if run["kind"] == "full"))
    lines = []
    broken = [run["run_id"] for run in adapters if not run["integrity"]["base_unchanged"]]
    if broken:
        lines.append(f"BASE WEIGHTS CHANGED in {', '.join(broken)}: this is a defect.")
    elif adapters:
        lines.append(f"Base weights unchanged (verified by hash) in {_of(adapters)}.")
    off = [run for run in adapters if run["integrity"]["off_equals_base"] is not None]
    differs = [run["run_id"] for run in off if not run["integrity"]["off_equals_base"]]
    if differs:
        lines.append(f"With the adapter off, the outputs DIFFER from the base's in {', '.join(differs)}.")
    elif off:
        lines.append(f"With the adapter off, the outputs equal the base's bit for bit in {_of(off)}.")
    if full:
        lines.append(f"{', '.join(full)}: trains the base itself, so its weights change.")
    lines.append("Everything else here is measured with the adapter on: unchanged weights alone keep nothing.")
    if summary["base"]["sha256"]:
        lines.append(f"sha256 of the base's weights: {summary['base']['sha256']}")
    return lines


def _of(runs: Sequence[Any]) -> str:
    return "one run with an adapter" if len(runs) == 1 else f"all {len(runs)} runs with an adapter"


def unfinished_lines(summary: Summary) -> list[str]:
    """Runs that did not finish, and why."""
    return [f"{run['run_id']}: {run['status']}" for run in summary["runs"] if run["status"] != "ok"]
