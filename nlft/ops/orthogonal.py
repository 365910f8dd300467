"""Orthogonalisation of matrices by a Newton–Schulz iteration, many at once."""

from __future__ import annotations

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x -> a x + b x^3 + c x^5 (Jordan 2024, Muon): steep at zero; singular values end between 0.7 and 1.2."""


def orthogonalised(matrices: torch.Tensor, steps: int = 5, eps: float = 1e-7) -> torch.Tensor:
    """The nearest orthogonal matrices, roughly: U S V^T becomes U p(S) V^T with p(S) near 1.

    torch's own (in `torch.optim.Muon`) is private, takes one matrix and computes in bfloat16, which is slow on a CPU.

    Args:
        matrices: [..., M, N], float32 or float64.
        steps: of the iteration.
        eps: least Frobenius norm; a zero matrix stays zero.

    Returns:
        [..., M, N], of the same type.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def naive_orthogonalised(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The twin of `orthogonalised`: the same polynomial of the singular values, by a decomposition."""
    a, b, c = COEFFICIENTS
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag_embed(s) @ vh
