"""Keys: whitening, k-means and the largest cosine, against their twins."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from nlft.ops import keys as ops
from nlft.ops.keys import (
    largest_cosine,
    largest_excess,
    naive_spherical_kmeans,
    nearest,
    spherical_kmeans,
    upper_cosine,
    whitened,
)


def unit(n: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_whitened_is_centred_scaled_and_of_length_one():
    states = torch.tensor([[3.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
    out = whitened(states, torch.tensor([1.0, 1.0]), torch.diag(torch.tensor([2.0, 5.0])))
    assert torch.equal(out, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))


@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 1), (7, 3, 5), (37, 11, 6), (64, 64, 3)])
def test_nearest_and_largest_cosine_equal_the_full_table(monkeypatch, n, m, width):
    states, keys = unit(n, width), unit(m, width, seed=1)
    table = states @ keys.T
    monkeypatch.setattr(ops, "BLOCK", 2 * m + 1)  # two states at a time
    cosine, index = nearest(states, keys)
    torch.testing.assert_close(cosine, table.max(dim=1).values, rtol=0, atol=1e-14)
    assert torch.equal(index, table.max(dim=1).indices)
    torch.testing.assert_close(largest_cosine(keys, states), table.max(dim=0).values, rtol=0, atol=1e-14)


def test_largest_cosine_of_nothing_is_minus_one():
    assert torch.equal(largest_cosine(unit(3, 4), unit(0, 4)), -torch.ones(3, dtype=torch.float64))


def test_largest_cosine_folds_over_a_stream():
    keys, states = unit(5, 4), unit(23, 4, seed=1)
    folded = torch.full((5,), -1.0, dtype=torch.float64)
    for part in states.split(7):
        folded = torch.maximum(folded, largest_cosine(keys, part))
    torch.testing.assert_close(folded, largest_cosine(keys, states), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_kmeans_equals_its_twin(dtype):
    states = unit(60, 5, dtype=dtype)
    first = spherical_kmeans(states, 4, 0, generator())
    found = spherical_kmeans(states, 4, 5, generator())
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, naive_spherical_kmeans(states, first, 5), rtol=0, atol=tolerance)


def test_kmeans_objective_never_falls_even_with_empty_keys():
    # Many copies of few directions: most of the drawn keys coincide and become empty.
    states = torch.cat([unit(3, 6).repeat(30, 1), unit(40, 6, seed=1)])
    objective = [
        float(nearest(states, spherical_kmeans(states, 25, steps, generator(3)))[0].mean()) for steps in range(8)
    ]
    assert all(b >= a - 1e-12 for a, b in itertools.pairwise(objective))
    assert objective[-1] > objective[0] + 0.01


def test_kmeans_moves_an_empty_key_to_the_state_served_worst():
    states = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.01], [0.0, 1.0]]), dim=1)
    seed = next(  # a draw that misses the odd state
        s for s in range(99) if 3 not in torch.randperm(4, generator=generator(s))[:2].tolist()
    )
    found = spherical_kmeans(states, 2, 3, generator(seed))
    assert float((found @ states[3]).max()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_kmeans_with_few_states_returns_each_of_them(n):
    states = unit(n, 7)
    found = spherical_kmeans(states, 5, 10, generator())
    assert found.shape == (n, 7)
    assert torch.equal(found.sort(dim=0).values, states.sort(dim=0).values)


def test_kmeans_keys_have_length_one_and_follow_the_seed():
    states = unit(50, 6)
    found = spherical_kmeans(states, 9, 4, generator(1))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(9, dtype=torch.float64))
    assert torch.equal(found, spherical_kmeans(states, 9, 4, generator(1)))
    assert not torch.equal(found, spherical_kmeans(states, 9, 4, generator(2)))


@pytest.mark.parametrize(("n", "m", "width"), [(1, 1, 2), (7, 3, 5), (37, 11, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_largest_excess_equals_the_full_table(monkeypatch, n, m, width, dtype):
    states, keys = unit(n, width, dtype=dtype), unit(m, width, seed=1, dtype=dtype)
    thresholds = torch.linspace(-0.5, 1.2, m, dtype=dtype)
    monkeypatch.setattr(ops, "BLOCK", 2 * m + 1)
    expected = torch.stack(
        [torch.stack([s @ k - t for k, t in zip(keys, thresholds, strict=True)]).max() for s in states]
    )
    torch.testing.assert_close(largest_excess(states, keys, thresholds), expected, rtol=0, atol=1e-6)
    assert len(largest_excess(states[:0], keys, thresholds)) == 0


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 1.0, 3.0])
def test_upper_cosine_is_reached_by_the_share(monkeypatch, share):
    states, keys = unit(61, 6), unit(9, 6, seed=1)
    monkeypatch.setattr(ops, "BLOCK", 4 * 61)  # four keys at a time
    found = upper_cosine(keys, states, share)
    reached = (keys @ states.T >= found[:, None] - 1e-12).sum(dim=1)
    assert set(reached.tolist()) == {min(61, max(1, round(61 * share)))}
