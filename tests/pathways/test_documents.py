"""Rows that share a line, as gates and keepers of state find them."""

from __future__ import annotations

import pytest
import torch

from nlft.pathways.forward_pass import Documents, find_documents

POSITIONS = torch.tensor([[0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5], [3, 4, 0, 1, 0, 0]])
ROWS = [[0, 1, 2], [3], [4, 5], [6, 7, 8, 9, 10, 11], [12, 13], [14, 15], [16], [17]]
"""Tokens of the flattened lines by document."""


def found(positions: torch.Tensor, lines: int = 3, tokens: int = 6) -> Documents:
    documents = find_documents(positions, lines, tokens)
    assert documents is not None
    return documents


def test_documents_begin_where_positions_do():
    documents = found(POSITIONS)
    assert [row[real].tolist() for row, real in zip(documents.places, documents.attended, strict=True)] == ROWS
    assert documents.places.shape == (8, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 2, 4)])
def test_apart_and_together(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * 4).to(dtype)
    documents = found(POSITIONS)
    rows = documents.apart(x)
    for row, places in zip(rows, ROWS, strict=True):
        assert torch.equal(row[: len(places)], x.flatten(0, 1)[places])
        assert not row[len(places) :].any()
    assert torch.equal(documents.together(rows), x)


def test_gradients_come_back_to_their_tokens():
    x = torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 6, 4, dtype=torch.float64)
    documents = found(POSITIONS)
    (documents.together(documents.apart(x) ** 2) * weights).sum().backward()
    assert x.grad is not None and torch.allclose(x.grad, 2 * x.detach() * weights, rtol=1e-15)


def test_one_row_a_line_is_nothing_special():
    for positions in (None, torch.arange(6)[None], torch.arange(6).expand(3, 6), torch.arange(18).view(3, 6)):
        assert find_documents(positions, 3, 6) is None
    assert find_documents(torch.zeros(3, 3, 6), 3, 6) is None  # only places in images: nobody tells rows apart
    assert find_documents(torch.zeros(1, 0), 3, 0) is None


def test_one_row_of_positions_is_for_all_lines():
    documents = found(torch.tensor([[0, 1, 0, 1, 2, 0]]), lines=2)
    assert documents.attended.sum(dim=1).tolist() == [2, 3, 1] * 2


def test_text_comes_first_among_four_kinds_of_positions():
    four = torch.stack([POSITIONS, *[torch.zeros_like(POSITIONS)] * 3])
    assert torch.equal(found(four).places, found(POSITIONS).places)
