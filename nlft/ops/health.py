"""Health: how evenly a table is read, and how much reads have in common."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

TOP = 0.01
"""Part of the slots whose share of all reads shows hubs."""


def usage(counts: torch.Tensor) -> float:
    """Part of the slots that are read at all; counts [n_slots]."""
    return float((counts > 0).double().mean())


def divergence_from_uniform(counts: torch.Tensor) -> float:
    """KL divergence of the reads from equal use of every slot, in nats: 0 to log(n_slots).

    Args:
        counts: [n_slots], reads; 0 is returned if there are none.
    """
    shares = counts.double() / max(1, int(counts.sum()))
    return float(torch.special.xlogy(shares, shares * len(counts)).sum())


def top_share(counts: torch.Tensor, top: float = TOP) -> float:
    """Share of all reads that the most read slots take.

    Args:
        counts: [n_slots], reads.
        top: part of the slots, rounded up to whole slots.
    """
    kept = max(1, math.ceil(top * len(counts)))
    return float(counts.topk(kept).values.sum()) / max(1, int(counts.sum()))


def median_frequency(frequency: torch.Tensor, n_documents: int) -> float:
    """Median (the lower one) of df / |B| over the slots that are read; 0 if none is.

    Where it is near 1, TF-IDF tells nothing apart.

    Args:
        frequency: [n_slots], documents that read the slot.
        n_documents: |B|.
    """
    read = frequency[frequency > 0].double()
    return float(read.median()) / n_documents if len(read) else 0.0


def frequency_deciles(frequency: torch.Tensor, n_documents: int) -> list[int]:
    """How many slots are read by 0-10 %, 10-20 % ... 90-100 % of the documents; unread slots are left out."""
    read = frequency[frequency > 0].double()
    decile = (read * 10 / max(1, n_documents)).ceil().long().clamp(1, 10) - 1
    return torch.bincount(decile, minlength=10).tolist()


def jaccard(first: set[int], second: set[int]) -> float:
    """Part of the slots in either set that is in both; 0 for two empty sets."""
    either = len(first | second)
    return len(first & second) / either if either else 0.0


def core_set(wordings: Sequence[set[int]]) -> tuple[float, int]:
    """What the wordings of one fact read in common (the core set of Lin et al. 2025, arXiv 2510.15103).

    Args:
        wordings: slots that each wording reads; two or more.

    Returns:
        The mean Jaccard index over pairs, and the number of slots that all wordings read.
    """
    pairs = list(itertools.combinations(wordings, 2))
    return sum(jaccard(a, b) for a, b in pairs) / len(pairs), len(set.intersection(*wordings))
