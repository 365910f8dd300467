"""One matrix, one word, several numbers: what tools call forgetting and backward transfer, on small matrices.

    python eval/golden.py

Ours are the functions of `nlft.measure.continual`; the others are written here from the formulas of their sources, as
read in 2026. A is the example on which they differ; B has negative log-likelihoods, where a score that was not measured
must not become 0; C has tasks that were better before their own stage.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from nlft.measure.continual import backward_transfer, forgetting

Matrix = NDArray[np.float64]
NAN = float("nan")
A = np.array([[0.80, NAN, NAN], [0.85, 0.70, NAN], [0.90, 0.60, 0.75]])
B = -np.array([[2.0, NAN, NAN], [2.2, 2.1, NAN], [2.4, 2.3, 1.9]])
C = np.array([[0.50, 0.90, 0.40], [0.45, 0.60, 0.80], [0.40, 0.55, 0.70]])
MATRICES = {"A": A, "B": B, "C": C}
"""[T, T], a row after each task, columns in the order of training; NaN was not measured."""


def with_base(R: Matrix) -> Matrix:
    """The same with a row for the base in front, as nlft has it; here it was not measured."""
    return np.vstack([np.full((1, R.shape[1]), NAN), R])


def chaudhry(R: Matrix) -> float:
    """Chaudhry et al. 2018 (1801.10112), eq. 3: the best of the rows j … T-1 less the last."""
    return float(np.mean([np.max(R[j:-1, j]) - R[-1, j] for j in range(len(R) - 1)]))


def sapt(R: Matrix) -> float:
    """SAPT score.py `Fgt`: the best of all rows but the last, less the last."""
    return float(np.mean([np.nanmax(R[:-1, j]) - R[-1, j] for j in range(len(R) - 1)]))


def mammoth(R: Matrix) -> float:
    """Mammoth utils/metrics.py `forgetting`: the best of all rows, the last among them; zero padding."""
    S = np.nan_to_num(R)
    return float(np.mean([np.max(S[:, j]) - S[-1, j] for j in range(len(S) - 1)]))


def avalanche(R: Matrix) -> float:
    """Avalanche forgetting_bwt.py: the first value after training less the last."""
    return float(np.mean([R[j, j] - R[-1, j] for j in range(len(R) - 1)]))


def lopez_paz(R: Matrix) -> float:
    """Lopez-Paz and Ranzato 2017 (1706.08840), BWT; Mammoth's `backward_transfer` is the same."""
    return float(np.mean([R[-1, j] - R[j, j] for j in range(len(R) - 1)]))


def sapt_bwt(R: Matrix) -> float:
    """SAPT score.py `Bwt`: the same sum by T, where T - 1 tasks are in it."""
    return float(np.sum([R[-1, j] - R[j, j] for j in range(len(R) - 1)]) / len(R))


DEFINITIONS: tuple[tuple[str, str, Callable[[Matrix], float]], ...] = (
    ("nlft", "F(max): best of rows j … T-1, less the last", lambda R: forgetting(with_base(R))),
    ("Chaudhry et al.", "the same", chaudhry),
    ("SAPT", "best of rows 1 … T-1, less the last", sapt),
    ("Mammoth", "best of rows 1 … T, less the last; zero padding", mammoth),
    ("Avalanche", "first after training, less the last", avalanche),
    ("nlft", "BWT: last less first after training", lambda R: backward_transfer(with_base(R))),
    ("Lopez-Paz, Mammoth", "the same", lopez_paz),
    ("SAPT", "the same sum, divided by T", sapt_bwt),
)
"""(tool, definition, function of a matrix); the first five are called forgetting, the others backward transfer."""


def table() -> list[list[str]]:
    """Rows of tool, definition and its value on each matrix."""
    return [
        [tool, words, *[f"{round(own(R), 6) + 0.0:.3f}" for R in MATRICES.values()]] for tool, words, own in DEFINITIONS
    ]


def main() -> None:
    rows = [["tool", "definition", *MATRICES], ["---"] * (2 + len(MATRICES)), *table()]
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))


if __name__ == "__main__":
    main()
