"""Methods beside each other where they have learned the same: points, bands, matched levels, areas, budgets.

Every number here comes with what it rests on. `n` of `of` pairs: runs of one seed and order of both methods, of which
`n` could be read and made the sign-flip test; ratio and difference and their intervals rest on all `of`. What cannot be
read is null, and `why` says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nlft.measure.curve import NEAR, Array, Curves, learned_within, mean_of_curves, read_curves
from nlft.measure.frontier import (
    LEVELS,
    Point,
    common_level,
    common_range,
    lower_envelope,
    mean_between,
    most_within,
    ratio_to,
    read_envelope,
    reference_of,
)
from nlft.measure.interval import sign_flip_p
from nlft.measure.sample import Cells, Limits, Sample, limits_of

Entry = Mapping[str, Any]
Envelopes = Mapping[str, Sequence[Point]]
Number = Callable[[str, Cells], Array | None]
"""A number of a method, seen in one way ("whole", "apart", "draws") over some cells: [D], None without draws."""
BUDGETS = (0.01, 0.05, 0.1)
"""Losses that may be thought bearable: 1, 5 and 10 points of a score in [0, 1], or so many nats or bits."""
GRID = 21
"""Levels of learning of a band."""


def frontiers(entries: Sequence[Entry], moment: str, sample: Sample, unit: str) -> dict[str, Any]:
    """Points, envelopes, bands and comparisons, with learning taken at one moment; keys as in `summary.py`.

    A method that is told each row's task is a bound: it has points, an envelope and a band, and is compared with none.

    Args:
        entries: `comparison.compare_methods` of the runs.
        moment: "now" (right after each task's training) or "end" (after the last task).
        sample: the runs at that moment.
        unit: of forgetting, as `unit.pick_unit` picks it of the probes'; empty without probes.
    """
    done: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry["n_finished"]:
            done.setdefault(entry["method"], []).append(entry)
    points = {method: _points(own, moment, sample, method) for method, own in done.items()}
    envelopes = {
        method: lower_envelope([(point["learning"], point["forgetting"]) for point in own])
        for method, own in points.items()
    }
    rivals = {method: envelopes[method] for method, own in done.items() if not own[0]["told_task"]}
    plain = [method for method in rivals if done[method][0]["plain"]]
    trained = {method: own for method, own in rivals.items() if any(point["lr"] > 0 for point in points[method])}
    found = {"points": points, "envelopes": envelopes, "bands": _bands(envelopes, sample)}
    if len(rivals) < 2:
        return found | {
            "matched": [],
            "hypervolume": {},
            "within_budget": _budgets(rivals, list(trained), sample, unit),
        }
    common = common_level(trained)
    levels: list[float] = sorted({*LEVELS} if math.isnan(common) else {*LEVELS, common})
    return found | {
        "matched": [_matched(level, level == common, rivals, plain, list(trained), sample) for level in levels],
        "hypervolume": _areas(rivals, plain, sample),
        "within_budget": _budgets(rivals, list(trained), sample, unit),
    }


def _points(own: Sequence[Entry], moment: str, sample: Sample, method: str) -> list[dict[str, Any]]:
    view = sample.draws(sample.cells_of(method))
    learning, lost = sample.points(view, method) if view else (None, None)
    found = []
    for place, entry in enumerate(own):
        across, up = (limits_of(None if drawn is None else drawn[:, place]) for drawn in (learning, lost))
        found.append(
            {
                "lr": entry["lr"],
                "steps": entry["steps"],
                "learning": entry["values"]["learning"][moment]["value"],
                "forgetting": entry["values"]["base_forgetting"]["value"],
                "n_runs": entry["n_finished"],
                "learning_low": across.low,
                "learning_high": across.high,
                "forgetting_low": up.low,
                "forgetting_high": up.high,
            }
        )
    return found


def _bands(envelopes: Envelopes, sample: Sample) -> dict[str, list[dict[str, float]]]:
    bands: dict[str, list[dict[str, float]]] = {}
    for method, envelope in envelopes.items():
        bands[method] = []
        if not envelope:
            continue
        drawn = sample.curves("draws", method, sample.cells_of(method))
        first, last = envelope[0][0], envelope[-1][0]
        for level in np.linspace(first, last, GRID if last - first > NEAR else 1).tolist():
            limits = limits_of(None if drawn is None else read_curves(drawn, level))
            value = read_envelope(envelope, level).value
            bands[method].append({"learning": level, "forgetting": value, "low": limits.low, "high": limits.high})
    return bands


def _matched(
    level: float, common: bool, rivals: Envelopes, plain: Sequence[str], trained: Sequence[str], sample: Sample
) -> dict[str, Any]:
    readings = {method: read_envelope(envelope, level) for method, envelope in rivals.items()}
    reference = reference_of(readings, plain)

    def number(method: str) -> Number:
        def read(way: str, cells: Cells) -> Array | None:
            curves = sample.curves(way, method, cells)
            # The largest level that all reach is another one in every draw and cell, and is read there.
            at = _span(sample, way, trained, cells)[1] if common else level
            return None if curves is None else read_curves(curves, at)

        return read

    ratios, runs = {}, {}
    for method, reading in readings.items():
        ratios[method], runs[method] = math.nan, {}
        if math.isnan(reading.value):
            continue
        own = sample.cells_of(method)
        limits = limits_of(number(method)("draws", own))
        against = _against(sample, method, reference, number) if reference and method != reference else {}
        alone = number(method)("apart", own)
        seen = against.pop("values", alone[np.isfinite(alone)] if alone is not None else np.empty(0))
        ratios[method] = 1.0 if method == reference else against.get("ratio", math.nan)
        runs[method] = {
            "n": len(seen),
            "of": against.get("of", int(own.sum())),
            "cells": int(own.sum()),
            "low": min(seen, default=math.nan),
            "high": max(seen, default=math.nan),
            "interval": {"low": limits.low, "high": limits.high},
            "difference": against.get("difference", {"value": math.nan, "low": math.nan, "high": math.nan}),
            "ratio_low": against.get("ratio_low", math.nan),
            "ratio_high": against.get("ratio_high", math.nan),
            "p_signflip": against.get("p", math.nan),
            "why": limits.why or against.get("why", ""),
        }
    return {
        "level": level,
        "common": common,
        "forgetting": {method: reading.value for method, reading in readings.items()},
        "why": {
            method: reading.why if method in trained else _without_hint(reading.why)
            for method, reading in readings.items()
            if reading.why
        },
        "reference": reference,
        "ratio": ratios,
        "runs": runs,
    }


def _without_hint(why: str) -> str:
    """The reason alone: who trains nothing has no learning rate to change."""
    return why.partition(";")[0]


def _against(sample: Sample, method: str, reference: str, number: Callable[[str], Number]) -> dict[str, Any]:
    """One method against the reference, over the cells that both have finished: estimate, interval and test."""
    cells = sample.cells_of(method, reference)
    (own, other), (own_apart, other_apart), (own_drawn, other_drawn) = (
        (number(method)(way, cells), number(reference)(way, cells)) for way in ("whole", "apart", "draws")
    )
    assert own is not None and other is not None and own_apart is not None and other_apart is not None
    pairs = np.isfinite(own_apart) & np.isfinite(other_apart)
    found: dict[str, Any] = {
        "of": int(cells.sum()),
        "n": int(pairs.sum()),
        "values": own_apart[pairs],
        "p": sign_flip_p((own_apart - other_apart)[pairs]),
        "ratio": ratio_to(float(own[0]), float(other[0])),
    }
    drawn = None if own_drawn is None or other_drawn is None else own_drawn - other_drawn
    limits = limits_of(drawn)
    ratio = _ratio_limits(own_drawn, other_drawn) if not math.isnan(found["ratio"]) else Limits()
    return found | {
        "difference": {"value": float(own[0] - other[0]), "low": limits.low, "high": limits.high},
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
        "why": limits.why or ratio.why,
    }


def _ratio_limits(own: Array | None, other: Array | None) -> Limits:
    if own is None or other is None:
        return limits_of(None)
    if np.any(other[np.isfinite(other)] <= 0):
        return Limits(why="the reference forgot nothing in some of the draws")
    return limits_of(own / other)


def _span(sample: Sample, way: str, methods: Sequence[str], cells: Cells) -> tuple[Array, Array]:
    """From the largest least to the smallest most learning of the methods, [D] each; NaN where they do not meet."""
    made = [sample.curves(way, method, cells) for method in methods]
    curves = [one for one in made if one is not None]
    if len(curves) < len(methods) or not curves:
        return np.array([math.nan]), np.array([math.nan])
    low, high = np.max([one.least for one in curves], axis=0), np.min([one.most for one in curves], axis=0)
    with np.errstate(invalid="ignore"):
        meet = high >= low
    return np.where(meet, low, np.nan), np.where(meet, high, np.nan)


def _areas(rivals: Envelopes, plain: Sequence[str], sample: Sample) -> dict[str, Any]:
    """Mean forgetting over the learning that all swept rivals span, and over what each shares with the reference."""
    swept = {name: own for name, own in rivals.items() if own and own[-1][0] - own[0][0] > NEAR}
    low, high = common_range(swept)
    plain = [name for name in plain if name in swept]
    reference = _area_reference({name: swept[name] for name in plain})
    methods = {}
    for method, envelope in rivals.items():
        mine = _mean_over(sample, list(swept))(method)
        limits = Limits(why="learned the same at every point" if method not in swept else "")
        value = math.nan
        if method in swept:
            value = mean_between(envelope, low, high)
            if math.isnan(value):
                limits = Limits(why="there is no learning that all methods reached")
            else:
                limits = limits_of(mine("draws", sample.cells_of(method)))  # the cells of the value
        methods[method] = {"value": value, "low": limits.low, "high": limits.high, "why": limits.why}
        methods[method]["against_reference"] = (
            _area_against(sample, method, reference, swept) if reference and method in swept else {}
        )
    return {"range": [low, high], "reference": reference, "methods": methods}


def _mean_over(sample: Sample, methods: Sequence[str]) -> Callable[[str], Number]:
    """Mean forgetting of a method over the learning that these methods span."""

    def number(method: str) -> Number:
        def read(way: str, cells: Cells) -> Array | None:
            curves: Curves | None = sample.curves(way, method, cells)
            return None if curves is None else mean_of_curves(curves, *_span(sample, way, methods, cells))

        return read

    return number


def _area_reference(plain: Envelopes) -> str | None:
    """The plain method that forgets least over the learning that the plain ones share, else that learns most."""
    areas = {name: mean_between(own, *common_range(plain)) for name, own in plain.items()}
    known = [name for name, area in areas.items() if not math.isnan(area)]
    return min(known, key=areas.__getitem__) if known else max(plain, key=lambda name: plain[name][-1][0], default=None)


def _area_against(sample: Sample, method: str, reference: str, swept: Envelopes) -> dict[str, Any]:
    pair = {name: swept[name] for name in (method, reference)}
    if method == reference or math.isnan(mean_between(pair[method], *common_range(pair))):
        return {} if method == reference else {"why": "they share no learning"}
    found = _against(sample, method, reference, _mean_over(sample, list(pair)))
    return found["difference"] | {
        "ratio": found["ratio"],
        "ratio_low": found["ratio_low"],
        "ratio_high": found["ratio_high"],
        "p": found["p"],
        "n": found["n"],
        "of": found["of"],
        "range": list(common_range(pair)),
        "why": found["why"],
    }


def _budgets(rivals: Envelopes, trained: Sequence[str], sample: Sample, unit: str) -> list[dict[str, Any]]:
    found = []
    for budget in BUDGETS:
        methods = {}
        for method, envelope in rivals.items():
            reading, limits = most_within(envelope, budget, unit), Limits()
            if not math.isnan(reading.value):
                curves = sample.curves("draws", method, sample.cells_of(method))
                limits = limits_of(None if curves is None else learned_within(curves, budget))
            methods[method] = {"value": reading.value, "low": limits.low, "high": limits.high}
            why = reading.why if method in trained else _without_hint(reading.why)
            methods[method]["why"] = why or limits.why
        found.append({"budget": budget, "methods": methods})
    return found
