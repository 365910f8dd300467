"""Keys: whitened queries, spherical k-means, and the largest cosine of a key to states it must ignore."""

from __future__ import annotations

import torch
import torch.nn.functional as F

BLOCK = 1 << 22
"""Most cosines held at once (elements of one [states, keys] block)."""


def whitened(states: torch.Tensor, mean: torch.Tensor, whitener: torch.Tensor) -> torch.Tensor:
    """Centred, whitened and normalised states: the queries of a memory.

    Hidden states share a large common offset and a few loud dimensions; without this every state has a cosine
    near 1 to every other and all tokens read the same slots.

    Args:
        states: [N, D].
        mean: [D].
        whitener: [D, K].

    Returns:
        [N, K] of length 1 (0 where a state equals the mean).
    """
    projected = (states - mean) @ whitener
    # F.normalize in fewer calls: this is a part of every decoded token.
    return projected / torch.linalg.vector_norm(projected, dim=-1, keepdim=True).clamp_min_(1e-12)


def nearest(states: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The key with the largest cosine to each state.

    Args:
        states: [N, K] of length 1.
        keys: [M, K] of length 1.

    Returns:
        cosine [N] and key [N] int64, the lowest index among equals. At most `BLOCK` cosines exist at once.
    """
    cosines, indices = [], []
    for part in states.split(max(1, BLOCK // len(keys))):
        cosine, index = (part @ keys.T).max(dim=1)
        cosines.append(cosine)
        indices.append(index)
    return torch.cat(cosines), torch.cat(indices)


def largest_cosine(keys: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The largest cosine of every key to any of the states; a stream is folded by `torch.maximum`.

    Args:
        keys: [M, K] of length 1.
        states: [N, K] of length 1; N may be 0.

    Returns:
        [M], -1 where there is no state.
    """
    largest = keys.new_full((len(keys),), -1.0)
    for part in states.split(max(1, BLOCK // len(keys))):
        if len(part):
            largest = torch.maximum(largest, (keys @ part.T).amax(dim=1))
    return largest


def largest_excess(states: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """How far the key that fires most is above its threshold, at every state; below zero at silence.

    Args:
        states: [N, K] of length 1.
        keys: [M, K] of length 1.
        thresholds: [M], cosines.

    Returns:
        [N], `max_i cos_i - tau_i`. At most `BLOCK` cosines exist at once.
    """
    parts = states.split(max(1, BLOCK // len(keys)))
    return torch.cat([(part @ keys.T - thresholds).amax(dim=1) for part in parts])


def upper_cosine(keys: torch.Tensor, states: torch.Tensor, share: float) -> torch.Tensor:
    """For every key the cosine that this share of the states reach, [M].

    Args:
        keys: [M, K] of length 1.
        states: [N, K] of length 1, N >= 1.
        share: of the states, above 0.
    """
    kept = max(1, min(len(states), round(share * len(states))))
    parts = keys.split(max(1, BLOCK // len(states)))
    return torch.cat([(part @ states.T).topk(kept, dim=1).values[:, -1] for part in parts])


def spherical_kmeans(states: torch.Tensor, n_keys: int, steps: int, generator: torch.Generator) -> torch.Tensor:
    """Spherical k-means (Dhillon & Modha 2001): unit keys that maximise the mean cosine of each state to its
    key.

    Starts from states drawn without replacement. A key that no state chose is moved to the state that is
    served worst, so the objective never falls.

    Args:
        states: [N, K] of length 1, N >= 1.
        n_keys: number of keys wanted.
        steps: iterations; 0 returns the drawn states.
        generator: a CPU generator; the draw is the only randomness.

    Returns:
        [min(n_keys, N), K] of length 1. With N <= n_keys these are the states themselves.
    """
    order = torch.randperm(len(states), generator=generator)
    keys = states[order[:n_keys].to(states.device)].clone()
    if len(states) <= n_keys:
        return keys
    before: torch.Tensor | None = None
    for _ in range(steps):
        cosine, index = nearest(states, keys)
        if before is not None and torch.equal(index, before):
            break  # no state has changed its key, so no key would move
        totals = torch.zeros_like(keys).index_add_(0, index, states)
        size = torch.bincount(index, minlength=len(keys))
        # States that cancel out leave no direction: their key stays.
        keys = torch.where(totals.norm(dim=1, keepdim=True) > 1e-6, F.normalize(totals, dim=1), keys)
        empty = (size == 0).nonzero().squeeze(1)
        before = None if len(empty) else index
        if len(empty):
            worst = cosine.sort(stable=True).indices[: len(empty)]
            keys[empty] = states[worst]
    return keys


def naive_spherical_kmeans(states: torch.Tensor, keys: torch.Tensor, steps: int) -> torch.Tensor:
    """Twin of `spherical_kmeans` from given first keys [M, K], state by state; no key may become empty."""
    keys = keys.clone()
    for _ in range(steps):
        chosen = [max(range(len(keys)), key=lambda m: float(state @ keys[m])) for state in states]
        for m in range(len(keys)):
            total = sum((state for state, c in zip(states, chosen, strict=True) if c == m), torch.zeros_like(keys[m]))
            keys[m] = total / total.norm()
    return keys
