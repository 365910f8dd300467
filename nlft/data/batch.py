"""Batches: padding, and the order in which rows are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nlft.data.template import Encoded
from nlft.types import IGNORE

TOKENS = {"cpu": 2048}
"""Tokens of a pass by kind of device: what is computed then stays in a processor's caches."""
MOST_TOKENS = 32768
"""The same where the device is not named: a bound on the logits, which are [tokens, vocabulary]."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded rows: int64 tensors [B, T]; labels are not shifted and are `IGNORE` where nothing is learned."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    rows: tuple[Encoded, ...] = ()
    """What it was made of."""
    places: tuple[tuple[int, int], ...] = ()
    """Line and column of the batch at which each of these rows begins."""
    position_ids: Tensor | None = None
    """[B, T] places of tokens in their rows, where several rows share a line; None where each has its own."""

    def inputs(self, width: int | None = None) -> dict[str, Tensor]:
        """What a model is called with, of the first `width` columns.

        Rows that share a line are told apart by their positions alone: a mask would hide only padding.
        """
        if self.position_ids is not None:
            return {"input_ids": self.input_ids[:, :width], "position_ids": self.position_ids[:, :width]}
        return {"input_ids": self.input_ids[:, :width], "attention_mask": self.attention_mask[:, :width]}

    @property
    def n_targets(self) -> int:
        """Tokens that a causal loss counts: labels that are set, after the shift by one."""
        return int((self.labels[:, 1:] != IGNORE).sum())

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        positions = None if self.position_ids is None else self.position_ids.to(device)
        ids, mask, labels = (tensor.to(device) for tensor in (self.input_ids, self.attention_mask, self.labels))
        return Batch(ids, mask, labels, self.rows, self.places, positions)


def collate(encoded: Sequence[Encoded], pad_id: int, side: Literal["left", "right"] = "right") -> Batch:
    """Pad rows to the longest: ids with `pad_id`, the mask with 0, labels with `IGNORE`."""
    width = max(len(row.ids) for row in encoded)
    ids, mask, labels, places = [], [], [], []
    for line, row in enumerate(encoded):
        pad = width - len(row.ids)
        left, right = (pad, 0) if side == "left" else (0, pad)
        places.append((line, left))
        ids.append([pad_id] * left + row.ids + [pad_id] * right)
        mask.append([0] * left + [1] * len(row.ids) + [0] * right)
        labels.append([IGNORE] * left + row.labels + [IGNORE] * right)
    return Batch(torch.tensor(ids), torch.tensor(mask), torch.tensor(labels), tuple(encoded), tuple(places))


def by_length(lengths: Sequence[int], batch_size: int, most: int | None = None) -> Iterator[list[int]]:
    """Indices of sequences in batches of like length, longest first: memory runs out at once or never.

    Args:
        most: tokens of a batch, padding included; one sequence may have more.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    at = 0
    while at < len(order):
        size = batch_size if most is None else min(batch_size, max(1, most // max(1, lengths[order[at]])))
        yield order[at : at + size]
        at += size


def tokens_a_pass(device: torch.device) -> int:
    """Most tokens, padding included, that a forward pass without gradient should take at once."""
    return TOKENS.get(device.type, MOST_TOKENS)


def in_batches(encoded: Sequence[Encoded], batch_size: int, pad_id: int) -> list[Batch]:
    """Every row once, in batches of similar length, so that little is padded; no order is kept."""
    rows = sorted(encoded, key=lambda row: len(row.ids))
    return [collate(rows[i : i + batch_size], pad_id) for i in range(0, len(rows), batch_size)]


class Sampler(Iterator[list[Encoded]]):
    """Endless batches of exactly `batch_size` rows, in an order that `seed` alone decides.

    Every epoch is a new shuffle and holds each row once; a batch may hold the end of one epoch and the start
    of the next, so no row is dropped and no batch is short. `start` begins at that batch (counted from 0), as
    if the ones before had been drawn: a run that resumes sees what it would have seen. Global random state is
    neither read nor changed.
    """

    def __init__(self, encoded: Sequence[Encoded], batch_size: int, seed: int, start: int = 0) -> None:
        if not encoded or batch_size < 1 or start < 0:
            raise ValueError(f"no batches from {len(encoded)} rows, batch_size {batch_size}, start {start}")
        self._encoded = encoded
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        epochs, self._next = divmod(start * batch_size, len(encoded))
        for _ in range(epochs + 1):
            self._order = self._shuffle()

    def __next__(self) -> list[Encoded]:
        batch: list[Encoded] = []
        while len(batch) < self._batch_size:
            if self._next == len(self._order):
                self._order, self._next = self._shuffle(), 0
            chosen = self._order[self._next : self._next + self._batch_size - len(batch)]
            batch += [self._encoded[i] for i in chosen]
            self._next += len(chosen)
        return batch

    def _shuffle(self) -> list[int]:
        return torch.randperm(len(self._encoded), generator=self._generator).tolist()
