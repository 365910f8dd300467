"""Intervals and tests, at two levels that are never mixed: over items of one run, and over runs.

Item level: the same items with and without the adapter, so differences are paired; rows about one thing are one
draw (Miller 2024, 2411.00640). Run level: seeds and orders, by an exact sign-flip test here and the bootstrap of
`bootstrap.py`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nlft.errors import DataError

CHUNK = 2_000_000
"""Draws held at once: bounds the memory of a bootstrap to tens of megabytes."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference of two weighted means, `after - before`, with its interval."""

    value: float
    low: float
    high: float
    n_items: int
    n_clusters: int


def paired_difference(
    before: ArrayLike,
    after: ArrayLike,
    weights_before: ArrayLike,
    weights_after: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    bounded: bool = False,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Difference:
    """Percentile bootstrap over clusters of the difference of two weighted means.

    Each draw takes as many clusters as there are, with replacement, and all items of each; both means are
    ratios of sums within the draw, `sum(value * weight) / sum(weight)`, so that a likelihood stays in nats a
    token. With fewer than two clusters there is no interval (NaN). Where no cluster changed at all, the bootstrap would
    claim certainty; for values in [0, 1] the limit is then Wilson's for 0 of that many clusters.

    Args:
        before: values [N] of the items without the adapter, in any unit; NaN makes the result NaN.
        after: values [N] of the same items, in the same order, with the adapter.
        weights_before, weights_after: weights [N] in the means.
        clusters: what each item is about, N names.
        bounded: whether the values lie in [0, 1].
        level: coverage.
        draws: bootstrap draws.
        seed: of the draws; the global random state is not touched.

    Raises:
        DataError: the items are not paired, or there are none.
    """
    x, y, u, v = (np.asarray(each, dtype=np.float64) for each in (before, after, weights_before, weights_after))
    if not len(x) == len(y) == len(u) == len(v) == len(clusters) or not len(x):
        raise DataError(
            f"{len(x)} items before and {len(y)} after in {len(clusters)} clusters cannot be paired.",
            "Both stages must be scored on the same rows.",
        )
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    places = np.array([names[name] for name in clusters])
    n = len(names)
    sums = np.stack(
        [np.bincount(places, each, n).astype(np.float64) for each in (x * u, u, y * v, v)], axis=1
    )  # [n, 4]
    value = float(_difference(sums.sum(axis=0)[None])[0])
    low, high = math.nan, math.nan
    if n >= 2 and math.isfinite(value):
        if bounded and not np.any(x != y):
            high = wilson(0, n, level)[1]
            low = -high
        else:
            tail = 50 * (1 - level)
            low, high = np.percentile(_resample(sums, draws, seed), [tail, 100 - tail])
    return Difference(value, float(low), float(high), len(x), n)


def wilson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a proportion; (NaN, NaN) of nothing. Unlike a bootstrap, it has a width at 0 and n."""
    from scipy.stats import binomtest

    if not n:
        return math.nan, math.nan
    interval = binomtest(hits, n).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p of paired runs with mean difference 0, by all 2^n changes of sign (scipy's permutation test).

    The smallest p that n pairs can give is 2 / 2^n: .0625 for 5 pairs, .031 for 6. Beyond 13 pairs, 9999 random
    sign changes of a seeded generator stand for all of them. NaN for fewer than two pairs.
    """
    from scipy.stats import permutation_test

    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2 or np.isnan(d).any():
        return math.nan
    # Rounded, so that sums that are equal on paper count as equal.
    result = permutation_test(
        (d,),
        lambda x, axis: np.round(np.mean(x, axis=axis), 12),
        permutation_type="samples",
        n_resamples=9999,
        alternative="two-sided",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _difference(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n, 4] sums of value * weight and weight, before and after, to differences [n]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]


def _resample(sums: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Differences [draws] of resampled clusters."""
    return np.concatenate([_difference(counts @ sums) for counts in draw_clusters(len(sums), draws, seed)])


def draw_clusters(n: int, draws: int, seed: int | np.random.SeedSequence) -> Iterator[NDArray[np.float64]]:
    """How often each of n clusters is drawn when n are drawn with replacement: [draws, n], some rows at a time."""
    if isinstance(seed, int) and n * draws <= CHUNK:
        yield _counts(n, draws, seed)  # the columns of all runs of a comparison have few sizes
        return
    generator = np.random.default_rng(seed)
    step = max(1, CHUNK // n)
    for start in range(0, draws, step):
        yield _some(generator, n, min(step, draws - start))


@lru_cache(maxsize=4)
def _counts(n: int, draws: int, seed: int) -> NDArray[np.float64]:
    counts = _some(np.random.default_rng(seed), n, draws)
    counts.flags.writeable = False
    return counts


def _some(generator: np.random.Generator, n: int, draws: int) -> NDArray[np.float64]:
    chosen = generator.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(chosen.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)
