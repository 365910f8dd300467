"""The runs of a comparison at one moment, seen in three ways: as they are, cell by cell, and draw by draw.

A number that compares methods is one function of a `View`. Read on the runs as they are it is the estimate, on every
(seed, order) cell by itself it gives the pairs of a sign-flip test, and on the draws of the bootstrap its interval:
so that all three rest on the same cells and mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nlft.measure.curve import Array, Curves, envelopes_of

Sweep = Mapping[str, Sequence[Sequence[int]]]
"""By method, the runs of each point of its sweep."""
Cells = NDArray[np.bool_]
"""Which of the (seed, order) cells are meant, [C]."""
LEAST_READ = 0.95
"""Share of the draws in which a number must exist to have an interval."""


@dataclass(frozen=True, slots=True)
class View:
    """Runs seen D times: `learning` and `lost` [D or 1, N], and how often each cell counts, [D, C]."""

    learning: Array
    lost: Array
    counts: Array


@dataclass(frozen=True, slots=True)
class Limits:
    """A 95 % interval, or why there is none."""

    low: float = math.nan
    high: float = math.nan
    why: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """The finished runs of a comparison at one moment, and what the draws of the bootstrap made of them."""

    learning: Array
    lost: Array
    """[N] each, of the runs as they are."""
    cell_of: NDArray[np.intp]
    """[N]: the cell of every run."""
    sweep: Sweep
    drawn: tuple[Array, Array] | None = None
    """Learning and lost, [D, N] each, of the runs with resampled items; None without a bootstrap."""
    known: dict[tuple[str, str, bytes], Curves] = field(default_factory=dict)
    """Curves made so far."""

    @property
    def n_cells(self) -> int:
        """C: how many pairs of seed and order there are."""
        return int(self.cell_of.max()) + 1 if len(self.cell_of) else 0

    def cells_of(self, *methods: str) -> Cells:
        """The cells in which every one of the methods has a finished run."""
        found = np.ones(self.n_cells, dtype=bool)
        for method in methods:
            found &= np.isin(np.arange(self.n_cells), self.cell_of[[run for own in self.sweep[method] for run in own]])
        return found

    def whole(self, cells: Cells) -> View:
        """The runs of these cells as they are: D is 1."""
        return View(self.learning[None], self.lost[None], cells[None].astype(np.float64))

    def apart(self, cells: Cells) -> View:
        """Each of these cells by itself: D is their number."""
        return View(self.learning[None], self.lost[None], np.eye(self.n_cells)[cells])

    def draws(self, cells: Cells) -> View | None:
        """The draws from these cells; None for fewer than two of them, and without a bootstrap."""
        n = int(cells.sum())
        if self.drawn is None or n < 2:
            return None
        counts = np.zeros((len(self.drawn[0]), self.n_cells))
        counts[:, cells] = draw_cells(n, len(counts))
        return View(*self.drawn, counts)

    def points(self, view: View, method: str) -> tuple[Array, Array]:
        """Learning and forgetting of every point of a method's sweep, [D, P] each: means over the runs that count."""
        groups = self.sweep[method]
        learning, lost = (
            np.stack([_mean(values, view.counts[:, self.cell_of[list(own)]], own) for own in groups], axis=1)
            for values in (view.learning, view.lost)
        )
        return learning, lost

    def curves(self, way: str, method: str, cells: Cells) -> Curves | None:
        """A method's envelopes seen in one way ("whole", "apart" or "draws"); None where there are no draws."""
        key = (way, method, cells.tobytes())
        if key not in self.known:
            view: View | None = getattr(self, way)(cells)
            if view is None:
                return None
            self.known[key] = envelopes_of(*self.points(view, method))
        return self.known[key]


def draw_cells(n: int, draws: int, seed: int = 1) -> Array:
    """How often each of n cells is drawn, [draws, n]: one cell fewer than there are, with replacement.

    So the variance of a mean over the drawn cells is s²/n (Rao and Wu 1988, JASA 83:231); as many cells as there are
    would make it (n-1)/n of that, which is too little where n is small.
    """
    return np.random.default_rng(seed).multinomial(n - 1, np.full(n, 1 / n), size=draws).astype(np.float64)


def limits_of(values: Array | None) -> Limits:
    """The 2.5th and the 97.5th percentile of a number over the draws, if nearly all draws have it.

    Args:
        values: [D], NaN in a draw that does not have the number; None where there were no draws.
    """
    if values is None:
        return Limits(why="fewer than two pairs of seed and order")
    read = np.isfinite(values)
    if read.mean() < LEAST_READ:
        return Limits(why=f"only {100 * read.mean():.0f} % of the draws can be read there")
    if np.ptp(values[read]) <= 1e-12:
        return Limits(why="no draw differs, so that they say nothing")
    low, high = np.percentile(values[read], [2.5, 97.5])
    return Limits(float(low), float(high))


def _mean(values: Array, weights: Array, runs: Sequence[int]) -> Array:
    own = values[:, list(runs)]
    weights = weights * np.isfinite(own)
    total = weights.sum(axis=1)
    return (weights * np.nan_to_num(own)).sum(axis=1) / np.where(total > 0, total, np.nan)
