"""Thresholds with a finite-sample guarantee: conformal risk control on rows that chose nothing else."""

from __future__ import annotations

import math

import torch

from nlft.errors import NlftError

BINS = 1 << 16
"""Bins of `Exceedances`."""


class Exceedances:
    """Weights of scores in fixed bins: how much of a stream lies above any height, in bounded memory.

    Args:
        lowest: scores below count as this; differences of cosines lie inside the default range.
        highest: scores above are above every height but infinity.
    """

    def __init__(self, lowest: float = -2.0, highest: float = 2.0) -> None:
        self.lowest, self.width = lowest, (highest - lowest) / BINS
        self.bins = torch.zeros(BINS, dtype=torch.float64)

    def add(self, scores: torch.Tensor, weights: torch.Tensor) -> None:
        """Takes in scores [N] with weights [N]."""
        place = ((scores.double() - self.lowest) / self.width).floor().long().clamp_(0, BINS - 1)
        self.bins.index_add_(0, place.cpu(), weights.double().cpu())

    def height(self, most: float) -> float:
        """The lowest bin edge above which at most the weight `most` lies; infinity if it is off the range."""
        above = self.bins.flip(0).cumsum(0)
        # A little slack for the rounding of sums of weights.
        kept = int((above <= most + 1e-9).sum())
        return self.lowest + (BINS - kept) * self.width if kept else math.inf


def allowance(budget: float, units: int) -> float:
    """How many of `units` calibration units may fail, so that a new one fails with at most `budget` probability.

    Conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814, theorem 1): with a loss in [0, 1] that
    falls with the threshold, `(sum of losses + 1) / (n + 1) <= budget` on n exchangeable units bounds the expected
    loss of the next one. With losses 0 and 1 this is the split conformal quantile.

    Raises:
        NlftError: so few units cannot vouch for so small a budget.
    """
    slack = 1e-9  # rounding: a budget of 1 % / 3 and 299 units
    allowed = budget * (units + 1) - 1
    if allowed < -slack:
        raise NlftError(
            f"A budget of {budget:.3g} needs at least {math.ceil(1 / budget - slack) - 1} held-out background groups,"
            f" and there are {units}.",
            "Give `background` more rows (about twice as many as are held out), or raise the budget.",
        )
    return max(0.0, allowed)


def naive_height(scores: torch.Tensor, weights: torch.Tensor, most: float) -> float:
    """Twin of `Exceedances.height` without bins: the lowest score above which at most `most` lies."""
    for height in sorted(set(scores.tolist())):
        if float(weights[scores > height].sum()) <= most + 1e-9:
            return height
    return math.inf
