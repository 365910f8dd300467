"""How tokens are laid into cells that end where chunks end."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nlft.ops.chunk_grid import ChunkGrid, unit


@pytest.mark.parametrize("chunk", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 24])
@pytest.mark.parametrize("counts", [[0, 0, 0], [0, 5, 2], [6, 6, 6]])
@pytest.mark.parametrize("padded", [False, True])
def test_no_cell_crosses_a_chunk_and_every_token_comes_back(chunk, length, counts, padded):
    count = torch.tensor(counts)
    attended = torch.rand(3, length, generator=torch.Generator().manual_seed(0)) < 0.6 if padded else None
    real = torch.ones(3, length, dtype=torch.bool) if attended is None else attended
    grid = ChunkGrid(count, length, chunk, attended)
    ids = torch.arange(1, 3 * length + 1).view(3, 1, length).double()
    cells = grid.lay(ids)
    assert cells.shape == (3, 1, grid.number, grid.width)
    torch.testing.assert_close(grid.lift(cells), ids * real[:, None])
    vectors = torch.stack([ids, -ids], dim=-1)
    torch.testing.assert_close(grid.lift(grid.lay(vectors)), vectors * real[:, None, :, None])
    assert torch.equal(grid.count, count + real.sum(dim=1))
    for row in range(3):
        number = count[row] + real[row].cumsum(0) - 1  # of every real token in its sequence
        found = [cell[cell != 0] for cell in cells[row, 0]]
        assert torch.equal(torch.cat(found), ids[row, 0, real[row]])
        for n, cell in enumerate(found):
            places = number[(ids[row, 0, :, None] == cell).any(dim=1)] // chunk
            assert len(set(places.tolist())) <= 1 and (places == count[row] // chunk + n).all()


def test_rows_of_length_one():
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(unit(x), functional.normalize(x, dim=-1))
    assert unit(x.bfloat16()).dtype == torch.float32 and unit(x.double()).dtype == torch.float64
    zero = torch.zeros(2, 3, requires_grad=True)
    unit(zero).sum().backward()
    assert not unit(zero).any() and zero.grad is not None and bool(torch.isfinite(zero.grad).all())
