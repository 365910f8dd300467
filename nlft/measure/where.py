"""Where forgetting happens: what one run lost, taken apart by the conditions under which it was scored.

Scores are in the metric's own unit. Differences are signed so that above zero is lost, and paired over items, with 95 %
intervals over what the items are about:

    tasks {task: {snapshot      right after the task's own training, with the adapter on
                  oracle, on, ungated     after the last task (`nlft.measure.condition`)
                  overwriting   snapshot - oracle: the task's own part has changed, or no longer fits
                  routing       oracle - on: the part is as it was and does not speak, or others speak too
                  total         snapshot - on, which is overwriting + routing
                  no_router     on - ungated: what would be lost if nothing decided which part speaks
                  intervals {difference: {low, high}}, n}}
    probes {probe: {base, off, on, ungated, leakage (base - on), leakage_ungated (base - ungated), intervals, n}}
    ablation {part: {column: drop}}     on - without that part, on the rows that were scored without it
    recovery {task: {before, after, snapshot, n}}       `before` and `after` ten of its train rows again
    mixed {column: {alone, mixed, n}}   change by the adapter, on - base, better is above zero: of the rows alone, and
                                        behind a row of another kind (task rows in front of probes, and the reverse)
    identity, overlap, false_fire, gate_fire    what is no score, as `nlft.dissect` found it

The router's errors may be there right after training already, so overwriting may lie below zero. A part that was
trained while earlier ones spoke may need them; alone it then does less, which shows as overwriting above zero and
routing below zero by as much. One part that all
tasks share has no oracle of its own: told the task's name it does what it does, so its whole loss is overwriting.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlft.measure.interval import paired_difference
from nlft.measure.matrix import Column
from nlft.types import Item

Found = Mapping[str, Item]
"""Scores of one column at one stage under one condition, by item."""
Pick = Callable[[int, str, Column], Found]
"""The scores at a stage, under a condition, of a column."""
FACTS = ("identity", "overlap", "false_fire", "gate_fire")
"""What a dissection finds that is no score, under the names that it has in a summary."""
DRAWS = 1000
"""Of a bootstrap: there are many differences in a comparison."""


def where_of(row: Mapping[str, Any], items: Sequence[Item], columns: Sequence[Column]) -> dict[str, Any]:
    """The account of one run; empty if it was scored under no further condition.

    Args:
        row: the run's line of `runs.parquet`.
        items: its scores.
        columns: the columns of the matrix.
    """
    facts = json.loads(row.get("dissect") or "{}")
    order = list(row["order"] or [])
    last = len(order)
    plain = not facts and {item.condition for item in items} <= {"base", "on"}
    if plain or row.get("setting") not in OWN:
        return {}
    table: dict[tuple[int, str, str, str], dict[str, Item]] = {}
    for item in items:
        table.setdefault((item.stage, item.condition, item.column, item.metric), {})[item.item_id] = item

    def pick(stage: int, condition: str, column: Column) -> Found:
        return table.get((stage, condition, column.column, column.metric), {})

    tests = {column.name: column for column in columns if (column.role, column.split) == ("task", "test")}
    probes = [column for column in columns if column.role == "probe"]
    apart = keeps_apart(row)
    found: dict[str, Any] = {name: row[name] for name in ("run_id", "method", "lr", "seed")}
    found["order"] = order
    found["tasks"] = {
        name: task_losses(pick, tests[name], stage, last, apart)
        for stage, name in enumerate(order, start=1)
        if name in tests and pick(last, "on", tests[name])
    }
    found["probes"] = {column.name: probe_losses(pick, column, last) for column in probes if pick(last, "on", column)}
    conditions = {item.condition: None for item in items if item.stage == last}
    more = {
        "ablation": ablation_of(pick, [*tests.values(), *probes], last, list(conditions)),
        "recovery": recovery_of(pick, tests, order),
        "mixed": mixed_of(table, [*tests.values(), *probes], last),
        **{name: facts[name] for name in FACTS if facts.get(name)},
    }
    return found | {name: part for name, part in more.items() if part}


OWN = (None, "sequence")
"""Settings of runs that learn tasks one after another."""


def keeps_apart(row: Mapping[str, Any]) -> bool:
    """Whether the method has a part for each task, so that an oracle that was not measured is not known."""
    config = json.loads(row.get("config") or "{}")
    own = row["kind"] == "sparse_memory" or bool(config.get("gate")) or config.get("tasks") in ("apart", "orthogonal")
    return own or bool(row.get("told_task"))


def task_losses(pick: Pick, column: Column, stage: int, last: int, apart: bool) -> dict[str, Any]:
    """The decomposition of one task's loss."""
    snapshot, on = pick(stage, "on", column), pick(last, "on", column)
    oracle, ungated = pick(last, "oracle", column), pick(last, "ungated", column)
    shared = not oracle and not apart
    if shared:
        oracle = on
    levels = {"snapshot": snapshot, "oracle": oracle, "on": on, "ungated": ungated}
    pairs = {
        "overwriting": (snapshot, oracle),
        "routing": (oracle, on),
        "total": (snapshot, on),
        "no_router": (on, ungated),
    }
    found = account(column, levels, pairs)
    if shared:  # 0 by definition, so it has no interval
        found["intervals"].pop("routing", None)
    return found


def probe_losses(pick: Pick, column: Column, last: int) -> dict[str, Any]:
    """What leaks into one probe."""
    levels = {"base": pick(0, "base", column)} | {name: pick(last, name, column) for name in ("off", "on", "ungated")}
    pairs = {
        "leakage": (levels["base"], levels["on"]),
        "leakage_ungated": (levels["base"], levels["ungated"]),
    }
    return account(column, levels, pairs)


def account(column: Column, levels: dict[str, Found], pairs: dict[str, tuple[Found, Found]]) -> dict[str, Any]:
    """Scores, losses and intervals of one column; null where a side of a difference was not measured."""
    losses = {name: lost(column, *pair) for name, pair in pairs.items()}
    return {
        **{name: mean(found) for name, found in levels.items()},
        **{name: None if loss is None else loss[0] for name, loss in losses.items()},
        "intervals": {name: {"low": loss[1], "high": loss[2]} for name, loss in losses.items() if loss is not None},
        "n": len(levels["on"]),
    }


def lost(column: Column, before: Found, after: Found) -> tuple[float, float, float] | None:
    """What the same items score less afterwards, and its interval; None if there are none."""
    both = [name for name in before if name in after]
    if not both:
        return None
    x, y = [before[name] for name in both], [after[name] for name in both]
    found = paired_difference(
        [item.value for item in x],
        [item.value for item in y],
        [item.weight for item in x],
        [item.weight for item in y],
        [item.cluster for item in x],
        bounded=column.bounded,
        draws=DRAWS,
    )
    low, high = (found.low, found.high) if column.sign < 0 else (-found.high, -found.low)
    return -column.sign * found.value + 0.0, low + 0.0, high + 0.0  # no -0.0


def ablation_of(pick: Pick, columns: Sequence[Column], last: int, conditions: Sequence[str]) -> dict[str, Any]:
    """What each column loses without each part."""
    found = {}
    for condition in (one for one in conditions if one.startswith("without:")):
        drops = {
            column.column: drop(column, pick(last, "on", column), pick(last, condition, column)) for column in columns
        }
        found[condition.partition(":")[2]] = {name: value for name, value in drops.items() if value is not None}
    return found


def drop(column: Column, before: Found, after: Found) -> float | None:
    """How much less the items of `after` score than under `before`; None if there are none."""
    before = {name: before[name] for name in after if name in before}
    one, two = mean(before), mean(after)
    return None if one is None or two is None else column.sign * (one - two) + 0.0  # no -0.0


def recovery_of(pick: Pick, tests: Mapping[str, Column], order: Sequence[str]) -> dict[str, Any]:
    """Scores of each earlier task before and after it was shown a few rows again."""
    found = {}
    for stage, name in enumerate(order, start=1):
        after = pick(len(order), f"recovered:{name}", tests[name]) if name in tests else {}
        if not after:
            continue
        before, snapshot = pick(len(order), "on", tests[name]), pick(stage, "on", tests[name])
        found[name] = {
            "before": mean({one: before[one] for one in after if one in before}),
            "after": mean(after),
            "snapshot": mean({one: snapshot[one] for one in after if one in snapshot}),
            "n": len(after),
        }
    return found


def mixed_of(table: Mapping[tuple[int, str, str, str], Found], columns: Sequence[Column], last: int) -> dict[str, Any]:
    """What the adapter changes of rows alone, and of the same rows behind a row of another kind."""
    found = {}
    for column in columns:
        pools: dict[str, dict[str, Item]] = {"mixed": {}, "base_mixed": {}}
        for (stage, condition, name, metric), items in table.items():
            pool = pools.get(condition.partition(":")[0])
            if pool is not None and (stage, name, metric) == (last, column.column, column.metric):
                pool.update(items)
        both = [name for name in pools["mixed"] if name in pools["base_mixed"]]
        if not both:
            continue
        base, on = (
            {name: table[key][name] for name in both if name in table.get(key, {})}
            for key in ((0, "base", column.column, column.metric), (last, "on", column.column, column.metric))
        )
        alone, mixed = drop(column, on, base), drop(column, pools["mixed"], pools["base_mixed"])
        found[column.column] = {"alone": alone, "mixed": mixed, "n": len(both)}
    return found


def mean(found: Found) -> float | None:
    """Weighted mean; None of nothing."""
    total = sum(item.weight for item in found.values())
    return sum(item.value * item.weight for item in found.values()) / total if total else None
