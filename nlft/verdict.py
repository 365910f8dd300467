"""Whether a finished run has kept and learned enough: what `nlft gate` judges."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nlft.errors import NlftError

Summary = Mapping[str, Any]
Run = Mapping[str, Any]
ROUNDING = 1e-9
"""A loss of 0.9 - 0.89 is a point, whatever floating point makes of it."""


@dataclass(frozen=True)
class Limits:
    """What a run must keep to."""

    drop: float = 0.01
    """Most that a probe with values in [0, 1] may lose; 0.01 is a point."""
    nats: float | None = None
    """Most that any other probe may lose, in its own unit (nats a token, bits a byte); such probes need it."""
    learned: float | None = None
    """Least normalised learning at the end."""
    confident: bool = False
    """Whether the upper end of a loss's 95 % interval must keep to the limit, too."""


@dataclass(frozen=True)
class Finding:
    """One number of one run, and whether it keeps to its limit."""

    run_id: str
    method: str
    lr: float
    what: str
    """Name of the probe, or "learned"."""
    unit: str
    value: float | None
    """What the probe has lost since the base (below zero: gained), or what was learned; None: not measured."""
    low: float | None
    high: float | None
    """95 % interval of a loss over items, paired; None where there is none."""
    limit: float
    holds: bool | None
    """None: it cannot be said."""


def judge(summary: Summary, limits: Limits, probes: Sequence[str] = (), methods: Sequence[str] = ()) -> list[Finding]:
    """Findings on every run of every method at its best learning rate; the runs of other rates are left out.

    A loss is that of the paired difference to the base over items, at the last stage, with the adapter on. Runs are
    judged one by one, so that an interval over items is never mistaken for one over seeds.

    Args:
        summary: as `measure.summary` makes it.
        limits: what must be kept to.
        probes: names; all when empty.
        methods: names; all when empty.

    Raises:
        NlftError: an unknown name, no probes, no finished run, or a probe without a limit.
    """
    columns = {column["name"]: column for column in summary["columns"] if column["role"] == "probe"}
    if not columns:
        raise NlftError(
            "There are no probes, so that what was kept was not measured.", "Add `probes` to the recipe and run it."
        )
    chosen = [columns[name] for name in _known(probes, list(columns), "probe")]
    names = list(dict.fromkeys(entry["method"] for entry in summary["methods"]))
    if limits.nats is None and any(not column["bounded"] for column in chosen):
        name, unit = next((column["name"], column["unit"]) for column in chosen if not column["bounded"])
        raise NlftError(
            f"The probe {name!r} is measured in {unit}, where --max-drop has no meaning.",
            "Give --max-nats for such probes, or choose others with --probe.",
        )
    found = []
    for method in _known(methods, names, "method"):
        best = next((entry for entry in summary["methods"] if entry["method"] == method and entry["best"]), None)
        if best is None:
            raise NlftError(f"No run of {method} has finished, so that nothing was measured.", "Run it again.")
        for run in summary["runs"]:
            # How many steps a failed run was to take may not be known; it must not slip through.
            if (run["method"], run["lr"]) == (method, best["lr"]) and run["steps"] in (None, 0, best["steps"]):
                found += [_kept(run, column, limits) for column in chosen]
                if limits.learned is not None:
                    found.append(_learned(run, limits.learned))
    return found


def excess(one: Finding) -> float:
    """By how many times its limit a broken finding is beyond it: what is learned, lost, or may be lost at most."""
    assert one.value is not None
    if one.what == "learned":
        beyond = one.limit - one.value
    else:
        certain = one.high is None or one.value > one.limit + ROUNDING
        beyond = (one.value if certain else one.high) - one.limit  # pyright: ignore
    return beyond / one.limit if one.limit else math.inf


def _known(wanted: Sequence[str], there: Sequence[str], kind: str) -> list[str]:
    for name in wanted:
        if name not in there:
            raise NlftError(f"There is no {kind} {name!r}.", f"There are {', '.join(there)}.")
    return list(dict.fromkeys(wanted)) or list(there)


def _kept(run: Run, column: Mapping[str, Any], limits: Limits) -> Finding:
    limit = limits.drop if column["bounded"] else limits.nats
    assert limit is not None
    change = run["intervals"]["probes"].get(column["name"]) if run["status"] == "ok" else None
    value, low, high = ((change or {}).get(key) for key in ("value", "low", "high"))
    # A change is signed as better = more: the largest loss is at its lower end.
    lost, least, most = (None if end is None else -end for end in (value, high, low))
    decisive = most if limits.confident and lost is not None and lost <= limit + ROUNDING else lost
    holds = None if decisive is None else decisive <= limit + ROUNDING
    name, unit = column["name"], column["unit"]
    return Finding(run["run_id"], run["method"], run["lr"], name, unit, lost, least, most, limit, holds)


def _learned(run: Run, limit: float) -> Finding:
    value = run["values"]["learning"]["end"] if run["status"] == "ok" else None
    holds = None if value is None else value >= limit - ROUNDING
    return Finding(run["run_id"], run["method"], run["lr"], "learned", "fraction", value, None, None, limit, holds)
