"""The search for keys that fire: the same pairs as brute force, whatever is left out."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

import nlft.ops.search as search
from nlft.ops.search import clustered, fired, grouped, indexed, naive_fired

ALL = 1 << 30


def unit(n: int, k: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def in_clusters(centres: int, each: int, k: int, spread: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    middle = unit(centres, k, 1, dtype).repeat(each, 1)
    return F.normalize(middle + spread * unit(centres * each, k, 2, dtype), dim=1)


def pairs(found) -> list[tuple[int, int]]:
    return list(zip(found.tokens.tolist(), found.keys.tolist(), strict=True))


def force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups are used however little they leave out, and by any number of tokens."""
    monkeypatch.setattr(search, "LARGEST_SHARE", 2.0)
    monkeypatch.setattr(search, "MANY", 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("tokens", "centres", "each", "width"), [(1, 1, 1, 1), (1, 7, 9, 5), (8, 5, 13, 3), (23, 9, 11, 6)]
)
def test_every_way_equals_brute_force(monkeypatch, dtype, tokens, centres, each, width):
    force(monkeypatch)
    keys = in_clusters(centres, each, width, 0.3, dtype)
    queries = unit(tokens, width, 3, dtype)
    thresholds = torch.linspace(-1.1, 1.2, len(keys), dtype=dtype)[torch.randperm(len(keys))]
    expected = naive_fired(queries, keys, thresholds)
    index = indexed(keys, thresholds)
    groups = grouped(index, keys)
    assert groups is not None
    assert int(sum(map(len, groups.members))) == len(index.places) <= len(keys)
    monkeypatch.setattr(search, "BLOCK", 40)  # several blocks of tokens
    for chosen in (index, index._replace(groups=groups)):
        found = fired(queries, keys, thresholds, chosen, ALL)
        assert found is not None
        assert pairs(found) == expected
        torch.testing.assert_close(found.cosines, (queries @ keys.T)[found.tokens, found.keys])
    assert expected


def test_ties_with_a_threshold_are_silent_at_both_levels(monkeypatch):
    force(monkeypatch)
    # Corners of a cube: lengths, cosines and thresholds are exact in binary, and most cosines lie on a threshold.
    keys = torch.tensor(list(product((-0.5, 0.5), repeat=4)))
    thresholds = torch.tensor([0.5, 0.0, -0.5, 1.0]).repeat(4)
    index = indexed(keys, thresholds)
    groups = grouped(index, keys, clustered(keys, n_groups=5))
    for queries in (keys, keys[:3], torch.eye(4), torch.zeros(2, 4)):
        expected = naive_fired(queries, keys, thresholds)
        assert pairs(fired(queries, keys, thresholds, index, ALL)) == expected
        assert pairs(fired(queries, keys, thresholds, index._replace(groups=groups), ALL)) == expected


def test_a_key_just_inside_its_threshold_is_found_from_every_side(monkeypatch):
    force(monkeypatch)
    # Adversarial: queries turned away from each centre, through the key, up to the edge of what the key accepts.
    torch.manual_seed(0)
    keys = in_clusters(6, 8, 4, 0.5)
    thresholds = torch.rand(48, dtype=torch.float64) * 1.9 - 0.95
    index = indexed(keys, thresholds)
    groups = grouped(index, keys, clustered(keys, n_groups=6))
    assert groups is not None
    queries = []
    for centre, members in zip(groups.centres.T, groups.members, strict=True):
        for key, threshold in zip(keys[members], thresholds[members], strict=True):
            away = F.normalize(key * (key @ centre) - centre, dim=0)  # leads from the key away from the centre
            angle = threshold.acos() - 1e-6
            queries.append(key * angle.cos() + away * angle.sin())
    queries = torch.stack(queries)
    expected = naive_fired(queries, keys, thresholds)
    assert len(expected) >= len(keys)
    found = fired(queries, keys, thresholds, index._replace(groups=groups), ALL)
    assert pairs(found) == expected
    for n in range(0, len(queries), 7):  # one token at a time takes another way
        found = fired(queries[n : n + 1], keys, thresholds, index._replace(groups=groups), ALL)
        assert [(n, key) for _, key in pairs(found)] == [pair for pair in expected if pair[0] == n]


def test_keys_of_other_lengths_and_zero_queries_are_found(monkeypatch):
    force(monkeypatch)
    keys = unit(30, 5, 1) * torch.linspace(0, 1.5, 30, dtype=torch.float64)[:, None]
    thresholds = torch.linspace(-0.4, 1.4, 30, dtype=torch.float64)
    queries = torch.cat([torch.zeros(1, 5, dtype=torch.float64), unit(9, 5, 2), 0.3 * unit(3, 5, 3)])
    index = indexed(keys, thresholds)
    groups = grouped(index, keys, clustered(keys, n_groups=7))
    assert pairs(fired(queries, keys, thresholds, index._replace(groups=groups), ALL)) == naive_fired(
        queries, keys, thresholds
    )


def test_groups_leave_out_most_keys_where_they_lie_in_clusters_and_are_refused_where_they_do_not():
    keys = in_clusters(40, 12, 64, 0.4)
    near, low = torch.full((480,), 0.9, dtype=torch.float64), torch.full((480,), 0.2, dtype=torch.float64)
    index = indexed(keys, near)
    groups = grouped(index, keys)
    assert groups is not None
    visits = unit(200, 64, 5) @ groups.centres > groups.limits
    assert float(visits.double().mean()) < 0.1
    assert grouped(indexed(keys, low), keys) is None
    scattered = unit(480, 64, 6)
    assert grouped(indexed(scattered, near), scattered) is None


def test_keys_that_nothing_can_fire_are_left_out():
    keys = unit(6, 4, 0)
    index = indexed(keys, torch.tensor([0.5, 1.0, 1.2, torch.inf, -2.0, 0.999], dtype=torch.float64))
    assert index.places.tolist() == [0, 1, 4, 5]  # 1 itself may be passed by rounding
    assert torch.equal(index.columns.T, keys[index.places])
    silent = torch.full((6,), torch.inf, dtype=torch.float64)
    found = fired(keys, keys, silent, indexed(keys, silent), ALL)
    assert found is not None and not len(found.tokens)


def test_more_pairs_than_allowed_are_refused(monkeypatch):
    force(monkeypatch)
    keys = in_clusters(3, 4, 5, 0.2)
    thresholds = torch.full((12,), -0.5, dtype=torch.float64)
    index = indexed(keys, thresholds)
    with_groups = index._replace(groups=grouped(index, keys))
    for queries, chosen in product((keys, keys[:2]), (index, with_groups)):
        number = len(naive_fired(queries, keys, thresholds))
        assert fired(queries, keys, thresholds, chosen, number - 1) is None
        assert fired(queries, keys, thresholds, chosen, number) is not None


def test_clusters_stand_whatever_the_thresholds(monkeypatch):
    force(monkeypatch)
    keys = in_clusters(9, 11, 6, 0.3)
    clusters = clustered(keys)
    queries = unit(23, 6, 3)
    thresholds = torch.linspace(0.2, 0.9, len(keys), dtype=torch.float64)
    for shift in (0.0, 0.4, -0.9, 0.8):
        index = indexed(keys, thresholds + shift)
        groups = grouped(index, keys, clusters)
        assert groups is not None and sum(map(len, groups.members)) == len(index.places)
        found = fired(queries, keys, thresholds + shift, index._replace(groups=groups), ALL)
        assert pairs(found) == naive_fired(queries, keys, thresholds + shift)
    assert grouped(indexed(keys, thresholds + torch.inf), keys, clusters) is None
