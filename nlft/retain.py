"""Retention after training: the smallest shift of a task's thresholds that keeps predictions within a budget.

*Predictions lost* of a row is the share of its target tokens that the base predicts right (greedy, teacher-forced)
and the adapted model predicts wrong; gains are not set off against losses. Rows of one cluster are averaged first,
for clusters are the units that are exchangeable.

The guarantee is that of conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814): for a new cluster, drawn
as the n held-out ones were, the *expected* share lost at the chosen shift is at most the budget. It speaks of the mean
over draws of background and new clusters, not of every row nor of every draw, and of no other kind of text. It needs
rows that decided nothing else (statistics, thresholds, replay, training).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from nlft.capture import inference
from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.frozen_prefix import recalling
from nlft.ops.risk import allowance
from nlft.pathways.shift import SILENT, has_gate, set_shift, shifts_restored
from nlft.types import IGNORE

COSINES = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.32, 0.5, SILENT)
"""Shifts that are tried on slots: thresholds as trained, and higher ones."""
EVIDENCE = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, SILENT)
"""Shifts that are tried on a gate."""
BATCH = 64
"""Rows of a forward pass."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What one shift loses on the held-out background."""

    shift: float
    lost: float
    """Share of predictions lost at this shift, mean over clusters."""
    bound: float
    """`(sum of losses + 1) / (n + 1)`, of each cluster the largest loss at this shift and at all larger ones."""
    clusters: int
    """n."""


@dataclass(frozen=True, slots=True)
class RetentionPoint:
    """The shift that was chosen, and every shift that was tried, from the largest down."""

    shift: float
    curve: tuple[Kept, ...]


def choose_shift(
    model: Any,
    rows: Sequence[Encoded],
    pad_id: int,
    budget: float,
    tasks: Iterable[str] | None = None,
    grid: Iterable[float] | None = None,
    batch_size: int = BATCH,
    adapter: str | None = None,
) -> RetentionPoint:
    """The smallest shift within the budget, searched from silence downwards until one exceeds it.

    Lost is counted against the base, so what other tasks lose counts too. The model is left as it was: set the shift
    with `set_shift`.

    Args:
        model: PEFT model with an nlft adapter.
        rows: held-out background, which decided nothing else.
        budget: most predictions lost, a share.
        tasks: whose thresholds are turned; all when None.
        grid: shifts to try; `COSINES`, or `EVIDENCE` with a gate, when None.

    Raises:
        NlftError: too few clusters to vouch for the budget, or other tasks exceed it alone.
    """
    allowance(budget, count_clusters(rows))
    with closing(retention_curve(model, rows, pad_id, tasks, grid, batch_size, adapter)) as curve:
        return pick(curve, budget)


def retention_curve(
    model: Any,
    rows: Sequence[Encoded],
    pad_id: int,
    tasks: Iterable[str] | None = None,
    grid: Iterable[float] | None = None,
    batch_size: int = BATCH,
    adapter: str | None = None,
) -> Generator[Kept]:
    """What every shift loses, from the largest down. The model has the shift while the caller looks at it, and its
    own shifts again when the iterator is exhausted or closed."""
    names = None if tasks is None else list(tasks)
    if grid is None:
        grid = EVIDENCE if has_gate(model, adapter) else COSINES
    falling = sorted(set(grid), reverse=True)

    def losses() -> Iterator[tuple[float, torch.Tensor]]:
        with model.disable_adapter():
            base = predictions(model, rows, pad_id, batch_size)
        for shift in falling:
            set_shift(model, shift, names, adapter)
            yield shift, cluster_means(rows, lost(base, predictions(model, rows, pad_id, batch_size)))

    with shifts_restored(model, adapter):
        yield from bounded(losses())


def bounded(losses: Iterable[tuple[float, torch.Tensor]]) -> Iterator[Kept]:
    """Conformal bounds of falling shifts and the losses [n] of all clusters at each.

    A loss need not fall with the shift, and the theorem wants one that does; so each cluster counts with the largest
    loss that it has had so far (section 2.3 of the paper), which is never less than its own.
    """
    worst: torch.Tensor | None = None
    for shift, own in losses:
        worst = own if worst is None else torch.maximum(worst, own)
        n = len(own)
        yield Kept(shift, float(own.mean()), (float(worst.sum()) + 1) / (n + 1), n)


def pick(curve: Iterable[Kept], budget: float) -> RetentionPoint:
    """The last point of a curve before the first that exceeds the budget; looks no further than that.

    Raises:
        NlftError: the first exceeds it.
    """
    points: list[Kept] = []
    shift: float | None = None
    for point in curve:
        points.append(point)
        if point.bound > budget + 1e-9:  # the rounding of a sum of shares
            break
        shift = point.shift
    if shift is None:
        first = points[0]
        raise NlftError(
            f"The budget of {budget:.3g} cannot be kept: at the largest shift, {first.shift:g}, the share of"
            f" predictions lost is still {first.lost:.3g} (bound {first.bound:.3g} with {first.clusters} groups of"
            " rows).",
            "Raise the budget, turn all tasks together, or give more held-out background.",
        )
    return RetentionPoint(shift, tuple(points))


def predictions(model: Any, rows: Sequence[Encoded], pad_id: int, batch_size: int = BATCH) -> list[torch.Tensor]:
    """Which targets of every row a model predicts right: greedy, each given the true tokens before it.

    Logits of one batch are held at a time. The model is in eval mode meanwhile.

    Returns:
        In the order of the rows, a bool [targets] on the CPU.
    """
    found: dict[int, torch.Tensor] = {}
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))  # memory runs out at once or never
    with inference(model):
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            batch = collate([rows[i] for i in chosen], pad_id).to(device)
            with recalling(model, batch):
                logits = model(**batch.inputs(), use_cache=False).logits
            likeliest, targets = logits[:, :-1].argmax(dim=-1), batch.labels[:, 1:]
            right, counted = (likeliest == targets).cpu(), (targets != IGNORE).cpu()
            found.update((i, right[b][counted[b]]) for b, i in enumerate(chosen))
    return [found[i] for i in range(len(rows))]


def lost(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> torch.Tensor:
    """Share of each row's targets that were right before and are wrong after, [rows] float64; 0 without targets."""
    shares = [float((was & ~now).sum()) / max(1, len(was)) for was, now in zip(before, after, strict=True)]
    return torch.tensor(shares, dtype=torch.float64)


def cluster_means(rows: Sequence[Encoded], losses: torch.Tensor) -> torch.Tensor:
    """Mean loss of every cluster [n] float64, in the order of their first rows."""
    places = {name: place for place, name in enumerate(dict.fromkeys(row.cluster for row in rows))}
    place = torch.tensor([places[row.cluster] for row in rows])
    sums = torch.zeros(len(places), dtype=torch.float64).index_add_(0, place, losses)
    return sums / torch.bincount(place, minlength=len(places))


def count_clusters(rows: Sequence[Encoded]) -> int:
    """Number of exchangeable units."""
    return len({row.cluster for row in rows})
