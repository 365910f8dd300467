"""Tables of the sweep: every point, the loss over a range of learning, the most learned within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nlft.measure.unit import change_unit, show_loss
from nlft.report.rows import Grid, label

Summary = Mapping[str, Any]
MOMENTS = {"end": "at the end", "now": "right after training"}
FOLDED = 8
"""Methods from which on a table that says little more is folded."""


def point_grid(summary: Summary) -> Grid:
    """Every point of the frontiers, both moments beside each other."""
    unit = summary["probe_unit"] or ""
    head = ["method", "learned, at the end", "learned, right after training", f"lost ({change_unit(unit)})", "runs"]
    body = []
    entries = {(entry["method"], entry["lr"], entry.get("steps")): entry for entry in summary["methods"]}
    now = {_key(name, point): point for name, own in summary["frontier"]["now"]["points"].items() for point in own}
    for name, own in summary["frontier"]["end"]["points"].items():
        for point in own:
            entry = entries.get(_key(name, point)) or next(e for e in summary["methods"] if e["method"] == name)
            then = now.get(_key(name, point), {})
            body.append(
                [
                    label({**entry, "lr": point["lr"]}, summary),
                    _learned(point),
                    _learned(then),
                    show_loss(point["forgetting"], unit, False) + _between(point, "forgetting", unit),
                    f"{point['n_runs']:g}",
                ]
            )
    words = "Learned: 0 is the base, 1 everything that could be learned. In small print: 95 %, over runs, then items."
    return Grid(head, body, words, "Every point", True)


def _key(name: str, point: Mapping[str, Any]) -> tuple[str, float, Any]:
    return name, point["lr"], point.get("steps")


def _learned(point: Mapping[str, Any]) -> str:
    value = point.get("learning")
    if value is None:
        return "–"
    low, high = point.get("learning_low"), point.get("learning_high")
    return f"{value:.3f}" + ("" if low is None or high is None else f"\n{low:.3f} to {high:.3f}")


def _between(point: Mapping[str, Any], key: str, unit: str) -> str:
    low, high = point.get(f"{key}_low"), point.get(f"{key}_high")
    missing = low is None or high is None
    return "" if missing else f"\n{show_loss(low, unit, False)} to {show_loss(high, unit, False)}"


def area_grids(summary: Summary) -> list[Grid]:
    """Mean forgetting over a range of learning, and the most learned within a budget of forgetting."""
    unit, grids = summary["probe_unit"] or "", []
    for moment, when in MOMENTS.items():
        area = summary["frontier"][moment].get("hypervolume") or {}
        common = None not in (area.get("range") or [None])
        body = [
            [name, *[_area(leaf, unit)] * common, *_against(leaf, unit)]
            for name, leaf in (area.get("methods") or {}).items()
            if leaf.get("value") is not None or (leaf.get("against_reference") or {}).get("value") is not None
        ]
        if body:
            change = change_unit(unit)
            head = ["method", *[f"mean loss ({change})"] * common]
            head += [f"more than {area.get('reference') or 'the reference'} ({change})", "p", "learned, of both"]
            words = (
                "How much more was lost than by the reference, mean over the learning that both reached; below zero "
            )
            words += "is less. Small print: 95 %."
            words += f" Mean loss: over what all methods reached, {_range(area['range'])}." if common else ""
            grids.append(Grid(head, body, words, f"Over a whole range of learning, {when}", len(body) > FOLDED))
        budgets = summary["frontier"][moment].get("within_budget") or []
        if any(leaf.get("value") is not None for one in budgets for leaf in one["methods"].values()):
            names = list(dict.fromkeys(name for one in budgets for name in one["methods"]))
            body = [[name, *[_learned_within(one["methods"].get(name)) for one in budgets]] for name in names]
            head = ["method", *[f"losing at most {show_loss(one['budget'], unit)}" for one in budgets]]
            words = "The largest learning at which no more than that was lost."
            grids.append(Grid(head, body, words, f"Most learned within a budget, {when}", len(body) > FOLDED))
    return grids


def _area(leaf: Mapping[str, Any], unit: str) -> str:
    text = show_loss(leaf.get("value"), unit, False)
    return text if text == "–" else text + _limits(leaf, unit)


def _range(ends: Sequence[float | None] | None) -> str:
    if not ends or None in ends:
        return "–"
    low, high = (100 * end for end in ends if end is not None)
    return f"{low:.0f} to {high:.0f} %"


def _limits(leaf: Mapping[str, Any], unit: str) -> str:
    if leaf.get("low") is None or leaf.get("high") is None:
        return ""
    return f"\n{show_loss(leaf['low'], unit, False)} to {show_loss(leaf['high'], unit, False)}"


def _against(leaf: Mapping[str, Any], unit: str) -> list[str]:
    """More than the reference, p, and the range that both reached."""
    other = leaf.get("against_reference") or {}
    if other.get("value") is None:
        return ["–"] * 3
    small = _limits(other, unit) or (f"\nno interval: {other['why']}" if other.get("why") else "")
    p, pairs = other.get("p"), f"\n{other['n']} pairs" if other.get("n") else ""
    text = show_loss(other["value"], unit, False) + small
    return [text, "–" if p is None else f"{p:.2g}{pairs}", _range(other.get("range"))]


def _learned_within(leaf: Mapping[str, Any] | None) -> str:
    if not leaf or leaf.get("value") is None:
        return "–" + (f"\n{leaf['why']}" if leaf and leaf.get("why") else "")
    low, high = leaf.get("low"), leaf.get("high")
    return f"{100 * leaf['value']:.0f} %" + (
        "" if low is None or high is None else f"\n{100 * low:.0f} to {100 * high:.0f}"
    )
