"""Packed batches: every row once, in few lines, with its own positions, labels and states."""

from __future__ import annotations

import random
from itertools import combinations

import pytest
import torch

from nlft.data.batch import collate
from nlft.data.packing import EVEN, choose_lines, fill_lines, line_width, pack
from nlft.data.template import Encoded
from nlft.types import IGNORE


def rows_of(*lengths: int) -> list[Encoded]:
    """Rows of these lengths, all of whose tokens differ and but for the first are targets."""
    starts = [sum(lengths[:i]) + 1 for i in range(len(lengths))]
    ids = [list(range(start, start + length)) for start, length in zip(starts, lengths, strict=True)]
    return [Encoded(own, [IGNORE, *own[1:]], 0) for own in ids]


def test_a_packed_batch():
    batch = pack(rows_of(2, 5, 3, 4), pad_id=0, width=6)
    assert batch.input_ids.tolist() == [[3, 4, 5, 6, 7, 0], [11, 12, 13, 14, 1, 2], [8, 9, 10, 0, 0, 0]]
    assert batch.attention_mask.tolist() == [[1] * 5 + [0], [1] * 6, [1, 1, 1, 0, 0, 0]]
    assert batch.position_ids is not None
    # Padding counts on from the row before it, and never beyond the longest row.
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0], [0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 0]]
    i = IGNORE
    assert batch.labels.tolist() == [[i, 4, 5, 6, 7, i], [i, 12, 13, 14, i, 2], [i, 9, 10, i, i, i]]
    assert batch.places == ((1, 4), (0, 0), (2, 0), (1, 0))
    assert set(batch.inputs()) == {"input_ids", "position_ids"}
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels, batch.position_ids)} == {torch.int64}


def test_the_first_token_of_a_row_is_never_a_target():
    rows = [Encoded([5, 6], [5, 6], 0), Encoded([7, 8, 9], [7, 8, 9], 0), Encoded([3], [3], 0)]
    batch = pack(rows, pad_id=0, width=6)
    assert batch.labels.tolist() == [[IGNORE, 8, 9, IGNORE, 6, IGNORE]]
    assert batch.n_targets == collate(rows, 0).n_targets == 3


def test_lines_are_trimmed_to_the_fullest():
    assert pack(rows_of(2, 3), pad_id=0, width=50).input_ids.shape == (1, 5)
    assert pack(rows_of(7), pad_id=0).input_ids.shape == (1, 7)


def test_every_row_is_there_once_and_nothing_else():
    rng = random.Random(0)
    for _ in range(50):
        rows = rows_of(*(rng.randint(1, 20) for _ in range(rng.randint(1, 17))))
        batch, padded = pack(rows, pad_id=0), collate(rows, 0)
        assert batch.position_ids is not None and batch.rows == tuple(rows)
        seen = torch.zeros_like(batch.attention_mask)
        for row, (line, start) in zip(rows, batch.places, strict=True):
            part = slice(start, start + len(row.ids))
            assert batch.input_ids[line, part].tolist() == row.ids
            assert batch.labels[line, part].tolist() == row.labels
            assert batch.position_ids[line, part].tolist() == list(range(len(row.ids)))
            seen[line, part] += 1
        assert torch.equal(seen, batch.attention_mask)
        assert bool((batch.labels[seen == 0] == IGNORE).all()) and bool((batch.input_ids[seen == 0] == 0).all())
        assert int(batch.position_ids.max()) < padded.input_ids.shape[1]
        assert batch.n_targets == padded.n_targets
        assert batch.input_ids.numel() <= padded.input_ids.numel()


def fewest_lines(lengths: list[int], width: int) -> int:
    """By trying everything."""
    if not lengths:
        return 0
    first, rest = lengths[0], lengths[1:]
    found = len(lengths)
    for size in range(len(rest) + 1):
        for beside in combinations(range(len(rest)), size):
            if first + sum(rest[i] for i in beside) <= width:
                left = [rest[i] for i in range(len(rest)) if i not in beside]
                found = min(found, 1 + fewest_lines(left, width))
    return found


def test_lines_are_nearly_as_few_as_can_be():
    rng = random.Random(1)
    for _ in range(30):
        width = rng.randint(5, 20)
        lengths = [rng.randint(1, width) for _ in range(7)]
        lines = fill_lines(lengths, width)
        assert sorted(row for line in lines for row in line) == list(range(7))
        assert all(sum(lengths[row] for row in line) <= width for line in lines)
        assert len(lines) <= fewest_lines(lengths, width) * 11 / 9 + 1


def test_a_row_longer_than_a_line_is_refused():
    with pytest.raises(ValueError, match="7 tokens in lines of 6"):
        fill_lines([3, 7], 6)


def test_lines_grow_only_where_it_pays():
    lengths = [10, 6, 6, 6, 6, 6]  # no two fit into a line of 10
    assert line_width(choose_lines(lengths), lengths) == 18
    lengths = [10, 4, 6, 5, 5]
    assert [sum(lengths[row] for row in line) for line in choose_lines(lengths)] == [10, 10, 10]
    # Attention over long lines is dear: the same shape of rows, and a tenth fewer tokens for twice the length.
    assert choose_lines([10, 8, 8, 8]) == [[0, 1], [2, 3]]
    assert choose_lines([10 * EVEN, *[8 * EVEN] * 3]) == [[0], [1], [2], [3]]
