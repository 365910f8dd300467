"""Units of metrics: which way is better, and how a value is written for people.

Values are kept in the metric's own unit. A *change* or a *loss* is always signed as better = more: a rise of
the negative log-likelihood by 0.2 nats is a change of -0.2 and a loss of 0.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlft.measure.metric import metric_spec

CHANGE_UNITS = {"fraction": "points"}
"""What differences are counted in, where it is not the unit itself: 1.00 - 0.97 is 3 points."""


def unit_of(metric: str) -> str:
    """The unit of a metric's values: "fraction", "nats/token", "bits/byte", or the metric's name if unknown."""
    unit = metric_spec(metric).unit
    return metric if unit == "score" else unit


def change_unit(unit: str) -> str:
    """The unit of a difference of two values, as it is written."""
    return CHANGE_UNITS.get(unit, unit)


def is_bounded(unit: str) -> bool:
    """Whether 1 is the best value there is."""
    return unit == "fraction"


def sign_of(metric: str) -> int:
    """+1 where more is better, -1 where less is (negative log-likelihood)."""
    return 1 if metric_spec(metric).higher_is_better else -1


def pick_unit(units: Sequence[str]) -> str | None:
    """The one unit in which a mean is taken where columns mix several: a bounded one first, else the commonest.

    Means over different units mean nothing, so the columns of other units are reported one by one only.
    """
    ranked = sorted(dict.fromkeys(units), key=lambda unit: (not is_bounded(unit), -list(units).count(unit)))
    return ranked[0] if ranked else None


def show(value: float | None, unit: str, with_unit: bool = True) -> str:
    """A value as text: `97.6 %`, `1.386`, `–` where nothing was measured."""
    if _missing(value):
        return "–"
    assert value is not None
    if is_bounded(unit):
        return f"{_signless(100 * value, 1)}{' %' if with_unit else ''}"
    return f"{_signless(value, 3)}{' ' + unit if with_unit else ''}"


def show_change(value: float | None, unit: str, with_unit: bool = True) -> str:
    """A change as text, with its sign: `−2.4 points`, `+0.008 nats/token`."""
    text = show_loss(value, unit, with_unit)
    return text if text.startswith(("–", "−", "0.0 ", "0.000 ")) or text in ("0.0", "0.000") else f"+{text}"


def show_loss(value: float | None, unit: str, with_unit: bool = True) -> str:
    """A difference as text, without a plus: `2.4 points`, `0.008 nats/token`; below zero is a gain."""
    if _missing(value):
        return "–"
    assert value is not None
    number = _signless(100 * value, 1) if is_bounded(unit) else _signless(value, 3)
    return f"{number} {change_unit(unit)}" if with_unit else number


def show_level(share: float) -> str:
    """A level of normalised learning as text: `50 %`, `9.5 %`."""
    return f"{_signless(100 * share, 1).removesuffix('.0')} %"


def count(value: float | None) -> str:
    """A count in three digits: 950, 12.3 k, 1.46 M."""
    return "–" if value is None else _scaled(value, 1000, ("", " k", " M", " G", " T"))


def size(value: float | None) -> str:
    """Bytes in three digits."""
    return "–" if value is None else _scaled(value, 1024, (" B", " KiB", " MiB", " GiB", " TiB"))


def _missing(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


def _signless(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def _scaled(value: float, step: int, names: Sequence[str]) -> str:
    place = 0
    while abs(value) >= step and place < len(names) - 1:
        value, place = value / step, place + 1
    digits = 0 if place == 0 or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{names[place]}"
