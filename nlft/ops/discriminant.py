"""Linear discriminants: the nearest class mean, with one covariance for all classes."""

from __future__ import annotations

import torch
from torch import Tensor

SHRINKAGE = 0.1
"""Part of the average variance that is mixed into every direction's variance."""


def shrunk(covariance: Tensor, shrinkage: float = SHRINKAGE) -> Tensor:
    """`(1 - a) C + a tr(C) / D I` (Ledoit & Wolf 2004, with a fixed), [D, D]."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    average = covariance.diagonal().mean().clamp_min(torch.finfo(covariance.dtype).tiny)
    return (1 - shrinkage) * covariance + shrinkage * average * identity


def nearest_class(features: Tensor, means: Tensor, covariance: Tensor) -> Tensor:
    """The class whose mean is nearest by Mahalanobis distance (Fisher 1936; all classes as likely).

    Args:
        features: [N, D].
        means: [C, D].
        covariance: [D, D] within classes, invertible (see `shrunk`).

    Returns:
        [N] int64, the lowest index among equals.
    """
    solved = torch.linalg.solve(covariance, means.T)  # [D, C]
    return (features @ solved - 0.5 * (means.T * solved).sum(0)).argmax(1)


def naive_nearest_class(features: Tensor, means: Tensor, covariance: Tensor) -> Tensor:
    """The twin of `nearest_class`: every distance from its definition."""
    inverse = torch.linalg.inv(covariance)
    distances = [[float((x - mean) @ inverse @ (x - mean)) for mean in means] for x in features]
    return torch.tensor(distances).argmin(1)
