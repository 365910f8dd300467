"""Packing: the rows of a micro-batch in few lines, told apart by positions that begin anew at every row.

A packed batch holds the rows and the targets of the padded one, so the loss is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nlft.data.batch import Batch
from nlft.data.template import Encoded
from nlft.types import IGNORE

EVEN = 256
"""Tokens of a line whose attention costs as much as all else: a token attends to its own row, but is compared with all
of its line. Right for a width of about 100 (`eval/bench/packing.py`); wider bases bear longer lines."""


def pack(encoded: Sequence[Encoded], pad_id: int, width: int | None = None) -> Batch:
    """Rows side by side in as few lines as a simple rule finds; no row is cut.

    Padding stands behind the last row of a line and is counted on from it, as in a padded batch: it reads that row, and
    nothing reads it. No position is larger than in a padded batch. The first token of a row has no label, for the token
    in front of it belongs to another row.

    Args:
        pad_id: of padding.
        width: most tokens of a line, at least the longest row; once or twice the longest row when None.
    """
    lengths = [len(row.ids) for row in encoded]
    lines = choose_lines(lengths) if width is None else fill_lines(lengths, width)
    width, places = line_width(lines, lengths), [(0, 0)] * len(encoded)
    ids, mask, labels, positions = [], [], [], []
    for line, numbers in enumerate(lines):
        own: tuple[list[int], list[int], list[int]] = ([], [], [])
        for number in numbers:
            places[number] = (line, len(own[0]))
            own[0].extend(encoded[number].ids)
            own[1].extend((IGNORE, *encoded[number].labels[1:]))
            own[2].extend(range(lengths[number]))
        end = len(own[0])
        pad, first = width - end, own[2][-1] + 1
        ids.append(own[0] + [pad_id] * pad)
        mask.append([1] * end + [0] * pad)
        labels.append(own[1] + [IGNORE] * pad)
        positions.append(own[2] + [place % max(lengths) for place in range(first, first + pad)])
    tensors = torch.tensor(ids), torch.tensor(mask), torch.tensor(labels)
    return Batch(*tensors, tuple(encoded), tuple(places), torch.tensor(positions))


def choose_lines(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of rows by line. Lines are at most once or twice as long as the longest row, whichever is less work."""

    def work(lines: list[list[int]]) -> int:
        width = line_width(lines, lengths)
        return len(lines) * width * (EVEN + width)

    return min((fill_lines(lengths, times * max(lengths)) for times in (1, 2)), key=work)


def fill_lines(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Indices of rows by line, at most `width` tokens a line: the longest first, each into the fullest line with room.

    Best fit decreasing makes at most 11/9 of the fewest lines, and four more (Johnson et al. 1974, *Worst-Case
    Performance Bounds for Simple One-Dimensional Packing Algorithms*).

    Raises:
        ValueError: a row is longer than a line.
    """
    lines: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if lengths[row] > width:
            raise ValueError(f"a row of {lengths[row]} tokens in lines of {width}")
        fitting = [line for line, left in enumerate(room) if left >= lengths[row]]
        if not fitting:
            fitting = [len(lines)]
            lines.append([])
            room.append(width)
        line = min(fitting, key=room.__getitem__)
        lines[line].append(row)
        room[line] -= lengths[row]
    return lines


def line_width(lines: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """Tokens of the fullest line."""
    return max(sum(lengths[row] for row in rows) for rows in lines)
