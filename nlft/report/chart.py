"""The learning–forgetting chart as geometry for an inline SVG, whose points say their values when pointed at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from nlft.measure.outcome import probes_meant
from nlft.measure.unit import change_unit, show_loss
from nlft.report.frontiers import LIMITS, points_of
from nlft.report.picture import COLOURS, looks_of, scale_of
from nlft.report.rows import setting
from nlft.report.sweep import MOMENTS

Summary = Mapping[str, Any]
Point = Mapping[str, Any]
WIDTH, HEIGHT = 520, 380
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 24, 44
MARGIN = 0.06
"""Space around the points, in parts of their span."""
MARKER_PATHS = {
    "o": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0z",
    "s": "M-4,-4h8v8h-8z",
    "D": "M0,-5.4l5.4,5.4l-5.4,5.4l-5.4,-5.4z",
    "^": "M0,-5.2l5,9h-10z",
    "v": "M0,5.2l5,-9h-10z",
    "P": "M-1.7,-5h3.4v3.3h3.3v3.4h-3.3v3.3h-3.4v-3.3h-3.3v-3.4h3.3z",
    "X": "M-5,-3l2,-2l3,3l3,-3l2,2l-3,3l3,3l-2,2l-3,-3l-3,3l-2,-2l3,-3z",
    "*": "M0,-6l1.5,4.1h4.3l-3.4,2.7l1.2,4.2l-3.6,-2.5l-3.6,2.5l1.2,-4.2l-3.4,-2.7h4.3z",
}
"""Outlines of matplotlib's markers around 0, 0, in units of the picture."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point: place, error bars as (x1, y1, x2, y2), and what it says."""

    x: float
    y: float
    bars: list[tuple[float, float, float, float]]
    words: str


@dataclass(frozen=True, slots=True)
class Series:
    """A method: number, class of its colour, marker; `line` and `band` are points of SVG, perhaps empty."""

    number: int
    name: str
    colour: int
    marker: str
    told: bool
    line: str
    band: str
    marks: list[Mark]


@dataclass(frozen=True, slots=True)
class Chart:
    """One moment's panel. Ticks are (place, text)."""

    title: str
    across: str
    up: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    zero: float
    series: list[Series]


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers to places in the picture, and back for no one."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a number lies; numbers outside lie at the edge."""
        inside = min(max(value, self.low), self.high)
        return round(self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers inside, with their texts."""
        values = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        inside = [float(value) for value in values if self.low <= value <= self.high]
        return [(self.place(value), f"{value:.6g}".replace("-", "−")) for value in inside]


def charts_of(summary: Summary) -> list[Chart]:
    """Both moments with the same vertical scale; none where there are fewer than two points."""
    unit = summary["probe_unit"]
    moments = {moment: points_of(summary, moment) for moment in MOMENTS}
    every = [(moment, point) for moment, own in moments.items() for _, point in own]
    if len(every) < 3:
        return []
    ys = [scale_of(unit) * value for _, point in every for value in _known(point, "forgetting")]
    upright = _scale([0.0, *ys], HEIGHT - BOTTOM, TOP)
    charts = []
    for moment, own in moments.items():
        if own:
            across = _scale(
                [0.0, 1.0, *[value for _, point in own for value in _known(point, "learning")]], LEFT, WIDTH - RIGHT
            )
            charts.append(_chart(summary, moment, own, across, upright))
    return charts


def _known(point: Point, key: str) -> list[float]:
    """A coordinate and the ends of its error bar, if it has one."""
    values = [point.get(name) for name in (key, f"{key}_low", f"{key}_high")]
    return [value for value in values if value is not None]


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    low, high = min(values), max(values)
    room = MARGIN * ((high - low) or 1.0)
    return Scale(low - room, high + room, start, end)


def _chart(summary: Summary, moment: str, own: Sequence[tuple[str, Point]], across: Scale, upright: Scale) -> Chart:
    looks, frontier = looks_of(summary), summary["frontier"][moment]
    unit = summary["probe_unit"] or ""

    def pair(x: float, y: float) -> str:
        return f"{across.place(x)},{upright.place(scale_of(unit) * y)}"

    series = []
    for number, (name, look) in enumerate(looks.items()):
        points = [point for who, point in own if who == name]
        band = [one for one in (frontier.get("bands") or {}).get(name, []) if None not in one.values()]
        upper = [pair(one["learning"], one["high"]) for one in band]
        lower = [pair(one["learning"], one["low"]) for one in reversed(band)]
        line = [pair(*one) for one in frontier["envelopes"].get(name, []) if None not in one]
        marks = [_mark(summary, name, point, across, upright) for point in points]
        colour = COLOURS.index(look.colour)
        series.append(
            Series(
                number, name, colour, look.marker, look.told, " ".join(line) if len(line) > 1 else "",
                " ".join(upper + lower) if len(band) > 1 else "", marks,
            )
        )  # fmt: skip
    return Chart(
        f"{MOMENTS[moment]}".capitalize(),
        f"learned, {MOMENTS[moment]} (0: the base, 1: everything)",
        f"lost on {probes_meant(summary)} ({change_unit(unit)})",
        across.ticks(),
        upright.ticks(),
        upright.place(0.0),
        series,
    )


def _mark(summary: Summary, name: str, point: Point, across: Scale, upright: Scale) -> Mark:
    unit = summary["probe_unit"] or ""
    factor = scale_of(unit)
    x, y = across.place(point["learning"]), upright.place(factor * point["forgetting"])
    words = f"{setting({**point, 'method': name}, summary, ', ')}: learned {point['learning']:.3f}"
    bars = []
    if None not in [point.get(key) for key in LIMITS]:
        left, right, low, high = (point[key] for key in LIMITS)
        bars = [
            (across.place(left), y, across.place(right), y),
            (x, upright.place(factor * low), x, upright.place(factor * high)),
        ]
        words += f" (95 % {left:.3f} to {right:.3f})"
    words += f", lost {show_loss(point['forgetting'], unit)}"
    if bars:
        words += f" (95 % {show_loss(low, unit, False)} to {show_loss(high, unit, False)})"
    words += f"; {point['n_runs']:g} run{'s' if point['n_runs'] != 1 else ''}"
    return Mark(x, y, bars, words)
