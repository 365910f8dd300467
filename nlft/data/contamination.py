"""Whether what is scored was trained on: runs of words that rows of both sides share."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nlft.data.example import as_text
from nlft.types import Evaluation, Row, Task

N = 8
"""Words of a run. GPT-3 (Brown et al. 2020, appendix C) takes 8 to 13, by the length of the test set's rows."""
Gram = tuple[str, ...]
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Contamination:
    """Of one column, the shares of rows that hold a run of `n` words of what was read in training."""

    train: float
    """With the train rows of any task."""
    background: float
    """With the background."""
    n: int = N


def words_of(text: str) -> list[str]:
    """Words of a text without case and punctuation."""
    return _WORDS.findall(text.lower())


def grams(words: Sequence[str], n: int = N) -> Iterable[Gram]:
    """Every run of n words; of a shorter text all of it, as one run, which only an equal text shares."""
    return zip(*(words[start:] for start in range(n)), strict=False) if len(words) >= n else [tuple(words)]


def find_contamination(
    evaluations: Sequence[Evaluation],
    tasks: Sequence[Task],
    background: Sequence[Row],
    texts: Mapping[str, Sequence[str]] | None = None,
    n: int = N,
) -> dict[str, Contamination]:
    """Shares of rows with a run of words of the train rows, and of the background, by column.

    The runs of what is scored are kept; the train rows stream past them. So memory goes with the test rows and time
    with all words. Examples in front of a row are no part of it.

    Args:
        texts: what stands in for the rows of a column.
    """
    owners: dict[Gram, list[tuple[str, int]]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for one in evaluations:
        given = (texts or {}).get(one.column)
        scored = [as_text(row) for row in one.rows] if given is None else given
        sizes[one.column] = len(scored)
        for number, text in enumerate(scored):
            for gram in set(grams(words_of(text), n)):
                if gram:
                    owners[gram].append((one.column, number))
    wanted = frozenset(owners)

    def shares(rows: Iterable[Row]) -> dict[str, float]:
        shared: set[Gram] = set()
        for row in rows:
            shared |= wanted.intersection(grams(words_of(as_text(row)), n))
        hit = {owner for gram in shared for owner in owners[gram]}
        return {column: sum(name == column for name, _ in hit) / max(1, size) for column, size in sizes.items()}

    trained = shares(row for task in tasks for row in task.train)
    read = shares(background)
    return {column: Contamination(trained[column], read[column], n) for column in sizes}
