"""Newton–Schulz against the same polynomial of the singular values."""

from __future__ import annotations

import pytest
import torch

from nlft.ops.orthogonal import naive_orthogonalised, orthogonalised


def matrices(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (3, 5), (4, 8, 8), (2, 3, 7, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
def test_values_and_gradients_equal_the_twin(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    first, second = (matrices(*shape, dtype=dtype).requires_grad_() for _ in range(2))
    out, twin = orthogonalised(first), naive_orthogonalised(second)
    torch.testing.assert_close(out, twin, atol=tolerance, rtol=0)
    weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
    (out * weights).sum().backward()
    (twin * weights).sum().backward()
    torch.testing.assert_close(
        first.grad, second.grad, atol=100 * tolerance, rtol=1e-3 if dtype.itemsize == 4 else 1e-9
    )


def test_singular_values_are_near_one_and_scale_is_lost() -> None:
    x = matrices(6, 16, 32)
    values = torch.linalg.svdvals(orthogonalised(x))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.25
    torch.testing.assert_close(orthogonalised(1e-3 * x), orthogonalised(x), atol=1e-9, rtol=0)


def test_each_matrix_by_itself_and_zero_stays_zero() -> None:
    x = matrices(3, 4, 6)
    x[1] = 0
    out = orthogonalised(x)
    torch.testing.assert_close(out[2], orthogonalised(x[2]), atol=1e-14, rtol=0)
    assert torch.equal(out[1], torch.zeros(4, 6, dtype=x.dtype))
