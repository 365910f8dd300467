"""From which token on a gate is open."""

from __future__ import annotations

import torch


def accumulate(evidence: torch.Tensor) -> torch.Tensor:
    """Page's cumulative sum (Page 1954): `S_t = max(0, S_{t-1} + e_t)`, evidence since the row last spoke against it.

    Args:
        evidence: [B, T, N], N gates.

    Returns:
        [B, T, N], >= 0. In closed form `C_t - min(0, min_{j <= t} C_j)` with C the running sum.
    """
    if not evidence.shape[1]:
        return evidence
    total = evidence.cumsum(dim=1)
    return total - total.clamp_max(0).cummin(dim=1).values


def naive_accumulate(evidence: torch.Tensor) -> torch.Tensor:
    """Twin of `accumulate`, token by token."""
    state = evidence.new_zeros(evidence.shape[0], evidence.shape[2])
    states = torch.zeros_like(evidence)
    for t in range(evidence.shape[1]):
        states[:, t] = state = (state + evidence[:, t]).clamp_min(0)
    return states


def sticky(fires: torch.Tensor, decay: float) -> torch.Tensor:
    """How far a gate is open at every token: 1 where it fires, falling by `decay` a token afterwards.

    `g_t = max(f_t, decay * g_{t-1})`. A token cannot open the gate for tokens before it.

    Args:
        fires: [B, T, N] bool, N gates.
        decay: 0 leaves every token to itself, 1 keeps a gate open until the end of the row.

    Returns:
        [B, T, N] float32 in [0, 1].
    """
    if decay == 0 or not fires.shape[1]:
        return fires.float()
    at = torch.arange(fires.shape[1], device=fires.device)[:, None]
    last = torch.where(fires, at, -1).cummax(dim=1).values
    return torch.where(last >= 0, torch.pow(decay, (at - last).float()), 0.0)


def naive_sticky(fires: torch.Tensor, decay: float) -> torch.Tensor:
    """Twin of `sticky`, token by token."""
    state = torch.zeros(fires.shape[0], fires.shape[2])
    states = fires.float()
    for t in range(fires.shape[1]):
        states[:, t] = state = torch.maximum(states[:, t], decay * state)
    return states
