"""Whether a prompt tells by its words which task it belongs to: if it does, a router has an easy time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Tokens = Sequence[Sequence[int]]
"""Token ids of each text."""


@dataclass(frozen=True, slots=True)
class Identity:
    """How well a text tells its class."""

    accuracy: float
    """Mean over the classes of the share that is told right."""
    chance: float
    """1 / number of classes."""
    n: int
    """Texts that were told."""
    recall: dict[str, float]
    """Share told right, by class."""


def tell_classes(train: Mapping[str, Tokens], test: Mapping[str, Tokens]) -> Identity | None:
    """A multinomial naive Bayes classifier over bags of tokens (Manning et al. 2008, section 13.2).

    All classes are as likely before the text is read, whatever their numbers of rows; counts are smoothed by 1.

    Args:
        train: texts by class.
        test: other texts of the same classes.

    Returns:
        None for fewer than two classes with train and test rows.
    """
    classes = [name for name in train if len(train[name]) and len(test.get(name, ()))]
    if len(classes) < 2:
        return None
    every = [ids for part in (train, test) for name in classes for ids in part[name] if len(ids)]
    size = 1 + max((max(ids) for ids in every), default=0)
    counts = np.stack([bag([one for ids in train[name] for one in ids], size) for name in classes])  # [C, V]
    weights = np.log(counts + 1) - np.log((counts + 1).sum(axis=1, keepdims=True))
    recall = {
        name: float(np.mean([told(weights[:, list(ids)].sum(axis=1)) == number for ids in test[name]]))
        for number, name in enumerate(classes)
    }
    n = sum(len(test[name]) for name in classes)
    return Identity(float(np.mean(list(recall.values()))), 1 / len(classes), n, recall)


def bag(ids: Sequence[int], size: int) -> np.ndarray:
    """How often each token occurs, [V]."""
    return np.bincount(np.asarray(ids, dtype=np.int64), minlength=size)


def told(scores: np.ndarray) -> int:
    """The class of the largest score; -1 where two are equal, as for a text without tokens."""
    best = np.flatnonzero(np.isclose(scores, scores.max(), rtol=0, atol=1e-9))
    return int(best[0]) if len(best) == 1 else -1
