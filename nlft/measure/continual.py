"""Metrics of continual learning: pure functions of the matrix.

Everywhere R is [T+1, T] float64: row 0 the base, row i after the i-th task; column j the j-th task *in the order
of training*, on rows that were never trained on; more is better (negate a loss first). Below, R[i, j] counts
tasks from 1, so the j-th task is learned in row j.

Definitions differ between tools. These are the ones of Lopez-Paz and Ranzato 2017 (1706.08840) for BWT, Chaudhry
et al. 2018 (1801.10112) for forgetting, with the pretrained base in place of a random model for FWT.
Nothing is padded with zeros: a task without any value is left out, and one missing value makes a mean NaN.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from nlft.measure.matrix import Matrix

DEFINITIONS = {
    "acc": "ACC, mean_j R[T,j]: the mean over all tasks at the end",
    "aia": "AIA, mean_i mean_{j<=i} R[i,j]: the mean over the tasks learned so far, averaged over the stages",
    "bwt": "BWT, mean_{j<T} (R[T,j] - R[j,j]): how the earlier tasks changed after they had been learned; "
    "below zero is forgetting",
    "forgetting": "F(max), mean_{j<T} (max_{j<=l<T} R[l,j] - R[T,j]): loss of the earlier tasks against the best "
    "they ever were before the last stage (Chaudhry et al.); may be below zero",
    "fwt_base": "FWT, mean_{j>1} (R[j-1,j] - R[0,j]): what the tasks before did for a task not yet learned, "
    "against the base",
    "intransigence": "I, mean_j (s_j - R[j,j]): what a task learned in the sequence falls short of s, the same task "
    "learned alone (or of all tasks learned at once)",
}
"""In words, for reports. R[i,j] is task j after the i-th of T tasks, i = 0 is the base."""


def average_accuracy(R: Matrix) -> float:
    """ACC = mean_j R[T, j]."""
    return _mean(R[-1, j] for j in _measured(R))


def average_incremental_accuracy(R: Matrix) -> float:
    """AIA = mean_i mean_{j<=i} R[i, j]; a stage before which no task was measured is left out."""
    tasks = _measured(R)
    stages = [[R[i, j] for j in tasks if j < i] for i in range(1, len(R))]
    return _mean(_mean(stage) for stage in stages if stage)


def backward_transfer(R: Matrix) -> float:
    """BWT = mean_{j<T} (R[T, j] - R[j, j]); NaN with one task."""
    return _mean(R[-1, j] - R[j + 1, j] for j in _earlier(R))


def forgetting(R: Matrix) -> float:
    """F(max) = mean_{j<T} (max_{j<=l<T} R[l, j] - R[T, j]); NaN with one task, may be negative."""
    return _mean(np.max(R[j + 1 : -1, j]) - R[-1, j] for j in _earlier(R))


def forward_transfer(R: Matrix) -> float:
    """FWT_base = mean_{j>1} (R[j-1, j] - R[0, j]): needs the upper triangle; NaN with one task."""
    return _mean(R[j, j] - R[0, j] for j in _measured(R) if j > 0)


def intransigence(R: Matrix, single: Matrix) -> float:
    """I = mean_j (s_j - R[j, j]): what a task learned in the sequence falls short of the same task learned alone.

    Above zero, the tasks before were in the way; below, they helped (Chaudhry et al. 2018). NaN without any task, and
    where a task was measured and its bound was not.

    Args:
        R: [T+1, T].
        single: s [T], what each task reached alone, or in another column of a report all tasks at once.
    """
    learned = np.diagonal(R[1:])
    return _mean(single[j] - learned[j] for j in _measured(R))


def acquisition(R: Matrix) -> Matrix:
    """What each task gained when it was trained, R[j, j] - R[0, j]: [T]."""
    tasks = np.arange(R.shape[1])
    return R[tasks + 1, tasks] - R[0]


def final_acquisition(R: Matrix) -> Matrix:
    """What each task has gained at the end, R[T, j] - R[0, j]: [T]."""
    return R[-1] - R[0]


def task_retention(R: Matrix) -> Matrix:
    """How each task changed after its own stage, R[T, j] - R[j, j]: [T], 0 for the last."""
    tasks = np.arange(R.shape[1])
    return R[-1] - R[tasks + 1, tasks]


def probe_retention(G: Matrix) -> Matrix:
    """How each probe changed from the base to the end, R[S, g] - R[0, g]: [S+1, J] to [J]."""
    return G[-1] - G[0]


def _measured(R: Matrix) -> list[int]:
    return [j for j in range(R.shape[1]) if not np.isnan(R[:, j]).all()]


def _earlier(R: Matrix) -> list[int]:
    return [j for j in _measured(R) if j + 2 < len(R)]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")
