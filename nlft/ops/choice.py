"""Which slots of a product-key table are trained, from how often the task and the background read them."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

Choice = Literal["tfidf", "kl", "tf", "random", "all"]
"""A rule by which slots are chosen; see `choose`."""


class Background(NamedTuple):
    """What general text reads of one table."""

    counts: torch.Tensor
    """[n_slots] int64, reads."""
    frequency: torch.Tensor
    """[n_slots] int64, documents that read the slot."""
    n_documents: int
    """|B|."""


def tfidf(counts: torch.Tensor, frequency: torch.Tensor, n_documents: int) -> torch.Tensor:
    """Read often by the task, in few documents of the background (Lin et al. 2025, arXiv 2510.15103, section 3).

    `c_i / sum(c) * log((|B| + 1) / (df_i + 1))`.

    Args:
        counts: [n_slots], reads of the task.
        frequency: [n_slots], background documents that read the slot.
        n_documents: |B|, background documents.

    Returns:
        [n_slots] float64, >= 0.
    """
    return share(counts) * (math.log(n_documents + 1) - torch.log(frequency.double() + 1))


def kl(counts: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """Each slot's part of the divergence of the task's reads from the background's (Goyal et al., arXiv 2604.05248;
    Gupta et al., arXiv 2605.03229).

    `p_i * log(p_i / q_i)` with `p_i = c_i / sum(c)` and `q_i = (b_i + 1) / (sum(b) + n_slots)`. The background alone
    is smoothed, so a slot that the task never reads scores 0 and not what smoothing adds to it. It needs no
    documents, so it cannot saturate as a document frequency can.

    Args:
        counts: [n_slots], reads of the task.
        background: [n_slots], reads of the background.

    Returns:
        [n_slots] float64; below 0 where the background reads more.
    """
    smoothed = (background.double() + 1) / (float(background.sum()) + len(background))
    return torch.special.xlogy(share(counts), share(counts) / smoothed)


def share(counts: torch.Tensor) -> torch.Tensor:
    """Each slot's part of all reads, [n_slots] float64 (term frequency)."""
    return counts.double() / max(1, int(counts.sum()))


def choose(
    choice: Choice, counts: torch.Tensor, background: Background, slots: int, generator: torch.Generator
) -> torch.Tensor:
    """The slots to train, all of them slots that the task reads.

    - `tfidf`, `kl`, `tf`: those with the highest score; the lowest slots at ties.
    - `random`: drawn uniformly. Among the slots that are read, because a value that is not read takes no gradient:
      drawn from the whole table the rule would train fewer values than the others at the same `slots`.
    - `all`: every slot that the task reads, whatever `slots` says.

    Args:
        choice: the rule.
        counts: [n_slots], reads of the task (or of one optimiser step).
        background: of the same table.
        slots: how many.
        generator: a CPU generator, used by `random`.

    Returns:
        [M] int64 in rising order; M is `slots` unless fewer are read.
    """
    read = counts.nonzero().squeeze(1)
    if choice == "all":
        return read
    if choice == "random":
        drawn = torch.randperm(len(read), generator=generator)[:slots]
        return read[drawn.to(read.device)].sort().values
    if choice == "tfidf":
        scores = tfidf(counts, background.frequency, background.n_documents)
    else:
        scores = kl(counts, background.counts) if choice == "kl" else share(counts)
    return read[best_rows(scores[read], slots)]


def best_rows(scores: torch.Tensor, n_rows: int) -> torch.Tensor:
    """The slots with the highest scores, [min(n_rows, n_slots)] int64 in rising order; the lowest at ties."""
    order = scores.sort(descending=True, stable=True).indices
    return order[:n_rows].sort().values
