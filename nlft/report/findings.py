"""What was found beside the frontiers: where forgetting happens, and what became of the probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlft.measure.outcome import tasks_of_unit
from nlft.measure.unit import change_unit, show, show_change, show_loss
from nlft.report.rows import LONG, Grid, best_entries, columns_by, label, runs_of

Summary = Mapping[str, Any]
Entry = Mapping[str, Any]
MOST_FACTS = 4
"""Methods that get a sentence each; more would be a table."""
CAUSES = ("total", "overwriting", "routing", "no_router")
CAUSE_WORDS = (
    "Lost since each earlier task was learned ({unit}), mean over these tasks and the runs. Lost = overwriting (its "
    "own part has changed, or no longer fits) + routing (its part does not speak, or others do too). Without a "
    "router: what would be lost besides if every part always answered."
)


def where_of_best(summary: Summary) -> list[tuple[Entry, list[Mapping[str, Any]]]]:
    """Each method at its best learning rate with the accounts of where its runs forgot, if there are any."""
    found = []
    for entry in best_entries(summary):
        names = {run["run_id"] for run in runs_of(summary, entry)}
        own = [one for one in summary.get("where") or [] if one["run_id"] in names]
        if own:
            found.append((entry, own))
    return found


def mean_tree(trees: Sequence[Any]) -> Any:
    """The mean of trees of numbers, leaf by leaf, over those that have the leaf."""
    if not trees:
        return {}
    if isinstance(trees[0], Mapping):
        names = list(dict.fromkeys(name for tree in trees for name in tree))
        return {name: mean_tree([tree[name] for tree in trees if name in tree]) for name in names}
    numbers = [float(leaf) for leaf in trees if isinstance(leaf, int | float)]
    return float(np.mean(numbers)) if numbers else None


def causes_of(summary: Summary) -> dict[str, dict[str, float | None]]:
    """For every method: what its earlier tasks lost in all and by cause, mean over tasks of one unit and over runs."""
    same, found = set(tasks_of_unit(summary)), {}
    orders = {run["run_id"]: run["order"] for run in summary["runs"]}
    for entry, accounts in where_of_best(summary):
        leaves = [
            {key: leaf.get(key) for key in CAUSES}
            for one in accounts
            for task, leaf in (one.get("tasks") or {}).items()
            if task in same and task not in (orders.get(one["run_id"]) or [])[-1:]
        ]
        if leaves and any(leaf["total"] is not None for leaf in leaves):
            found[entry["method"]] = mean_tree(leaves)
    return found


def where_grids(summary: Summary) -> list[Grid]:
    """Causes, leakage, recovery, mixed prompts, false fires and what the prompt gives away: each if measured."""
    unit = summary["task_unit"] or ""
    causes = [
        [name, *[show_loss(own.get(key), unit, False) for key in CAUSES]] for name, own in causes_of(summary).items()
    ]
    words = CAUSE_WORDS.format(unit=change_unit(unit))
    head = ["method", "lost", "by overwriting", "by routing", "without a router: besides"]
    grids = [Grid(head, causes, words, "Earlier tasks")] if causes else []
    for make in (_leakage, _recovery, _mixed, _identity, _false_fire):
        grid = make(summary)
        if grid.body:
            grids.append(grid)
    return grids


def _parts(summary: Summary, key: str) -> list[tuple[str, Any]]:
    """(label, mean over the runs) of the methods of which a part was measured."""
    found = []
    for entry, accounts in where_of_best(summary):
        own = [one[key] for one in accounts if one.get(key)]
        if own:
            found.append((label(entry, summary), mean_tree(own)))
    return found


def _leakage(summary: Summary) -> Grid:
    units = {column["name"]: column["unit"] for column in columns_by(summary, "probe")}
    body = [
        [
            f"{name}: {probe}",
            *[show(leaf.get(key), units.get(probe, "")) for key in ("base", "off", "on", "ungated")],
            *[show_loss(leaf.get(key), units.get(probe, "")) for key in ("leakage", "leakage_ungated")],
        ]
        for name, probes in _parts(summary, "probes")
        for probe, leaf in probes.items()
    ]
    head = ["method: probe", "base", "off", "on", "every part on", "leakage", "leakage, every part on"]
    words = "Leakage: what the probe lost with the adapter on. Off: the adapter switched off, a check only."
    return Grid(head, body, words, "Leakage onto the base's knowledge", len(body) > LONG)


def _recovery(summary: Summary) -> Grid:
    units = {column["name"]: column["unit"] for column in columns_by(summary, "task")}
    body = [
        [f"{name}: {task}", *[show(leaf.get(key), units.get(task, "")) for key in ("snapshot", "before", "after")]]
        for name, tasks in _parts(summary, "recovery")
        for task, leaf in tasks.items()
    ]
    head = ["method: task", "when learned", "at the end", "after a few examples"]
    words = "What comes back with a few examples was not erased, only covered."
    return Grid(head, body, words, "Recovery", len(body) > LONG)


def _mixed(summary: Summary) -> Grid:
    units = {column["column"]: column["unit"] for column in summary["columns"]}
    body = [
        [f"{name}: {column}", *[show_change(leaf.get(key), units.get(column, "")) for key in ("alone", "mixed")]]
        for name, columns in _parts(summary, "mixed")
        for column, leaf in columns.items()
    ]
    words = "What the adapter changes of rows alone, and of the same rows behind a row of another kind."
    return Grid(["method: column", "alone", "mixed"], body, words, "Mixed prompts", len(body) > LONG)


def _identity(summary: Summary) -> Grid:
    found = [one["identity"] for one in summary.get("where") or [] if one.get("identity")][:1]
    body = [[_percent(one["accuracy"]), _percent(one["chance"]), f"{one.get('n') or 0:g}"] for one in found]
    words = "How often the task can be told from the prompt's words alone. Near 100 %, routing is easy here."
    return Grid(["told from the prompt", "chance", "prompts"], body, words, "Task identity")


def _false_fire(summary: Summary) -> Grid:
    found = _parts(summary, "false_fire")
    columns = list(dict.fromkeys(column for _, own in found for column in own))
    body = [[name, *[_percent(own.get(column)) for column in columns]] for name, own in found]
    words = "Share of tokens at which a part of the adapter answered although none should."
    return Grid(["method", *columns], body, words, "False fires")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def probe_grid(summary: Summary) -> Grid:
    """The change of every probe of each method at its best learning rate, with its interval."""
    body = []
    for entry in best_entries(summary):
        for column in columns_by(summary, "probe"):
            leaf = entry["values"]["probes"].get(column["name"])
            if leaf:
                value, low, high = change_of(entry, column["name"])
                limits = [show_change(end, column["unit"], False) for end in (low, high)]
                ends = [show(leaf[key]["value"], column["unit"]) for key in ("base", "end")]
                body.append([label(entry, summary), column["name"], *ends, show_change(value, column["unit"]), *limits])
    words = "Low and high: of a single run the 95 % interval over items, of several the least and largest run."
    return Grid(
        ["method", "probe", "base", "end", "change", "low", "high"], body, words, "Every probe", len(body) > LONG
    )


def change_of(entry: Entry, probe: str) -> tuple[float | None, float | None, float | None]:
    """A probe's change and its limits: over items of a single run, else from run to run."""
    change = entry["values"]["probes"][probe]["change"]
    limits = change if change["n"] > 1 else entry["intervals"].get("probes", {}).get(probe) or {}
    return change["value"], limits.get("low"), limits.get("high")


def short_facts(summary: Summary) -> list[str]:
    """The new facts in a sentence each, for the top of a report and the terminal."""
    unit, facts = summary["task_unit"] or "", []
    causes = {
        name: own
        for name, own in causes_of(summary).items()
        if own["overwriting"] is not None and own["routing"] is not None
    }
    if len(causes) > MOST_FACTS:
        facts.append("What earlier tasks lost by overwriting and by routing stands under “Where forgetting happens”.")
    else:
        for name, own in causes.items():
            by = " and ".join(f"{show_loss(own[cause], unit)} by {cause}" for cause in ("overwriting", "routing"))
            facts.append(f"Earlier tasks of {name}: lost {show_loss(own['total'], unit)}, {by}.")
    told = list(dict.fromkeys(entry["method"] for entry in summary["methods"] if entry.get("told_task")))
    if told:
        verb = "is" if len(told) == 1 else "are"
        facts.append(f"{', '.join(told)} {verb} told each row's task: bounds, not rivals (†).")
    return facts
