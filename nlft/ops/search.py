"""Which keys fire at which tokens, without looking at every pair.

Most slots of a memory are silent at most tokens: a key fires where its cosine to the query is above its own
threshold, and few are. Two things are left out, and the answer stays exact: keys that no query can fire, and, where
queries are few or keys are many, groups of keys that are too far from the query.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from nlft.ops.keys import BLOCK, nearest, spherical_kmeans

FEW, MANY = 8, 256
"""Tokens: up to `FEW` look at the keys of all their groups in one product, from `MANY` on every group at its tokens."""
MANY_KEYS = 1 << 13
"""Fewer keys than this are looked up all at once: 840 keys of a real task in 0.05 ms, in groups in 0.14."""
SAMPLE = 32
"""Keys a group that k-means sees."""
STEPS = 5
"""Iterations of k-means."""
LARGEST_SHARE = 0.25
"""Largest part of the keys that may be left to a second level; with more, all keys at once are faster."""


class Clusters(NamedTuple):
    """Which keys lie near each other, whatever their thresholds."""

    centres: torch.Tensor
    """[G, K] of length 1."""
    group: torch.Tensor
    """[M] int64, the centre of every key."""


class Groups(NamedTuple):
    """Keys that lie near each other, and how far from a query they may be left out."""

    centres: torch.Tensor
    """[K, G] of length 1."""
    limits: torch.Tensor
    """[G]: a query whose cosine to a centre is not above this fires no key of the group."""
    members: tuple[torch.Tensor, ...]
    """By group, its keys: int64, rising."""


class Index(NamedTuple):
    """What is known of keys [M, K] and thresholds [M] before anything is looked up."""

    columns: torch.Tensor
    """[K, m]: those keys that some query can fire, turned, as one query is multiplied with them twice as fast."""
    thresholds: torch.Tensor
    """[m], cosines."""
    places: torch.Tensor
    """[m] int64, which of the keys they are, rising."""
    groups: Groups | None
    """Of the same keys."""


class Fired(NamedTuple):
    """Pairs of a token and a key that it fires, by token and then by key."""

    tokens: torch.Tensor
    """[P] int64."""
    keys: torch.Tensor
    """[P] int64."""
    cosines: torch.Tensor
    """[P]."""


def slack(keys: torch.Tensor) -> float:
    """How far a computed cosine may lie from the true one: K times the spacing of numbers near 1."""
    return keys.shape[1] * torch.finfo(keys.dtype).eps


def indexed(keys: torch.Tensor, thresholds: torch.Tensor) -> Index:
    """An index without groups. Calibration leaves many keys whose threshold is 1 or more, which no query can fire.

    Args:
        keys: [M, K].
        thresholds: [M], cosines.
    """
    places = (thresholds < keys.norm(dim=1) + slack(keys)).nonzero().squeeze(1)
    return Index(keys[places].T.contiguous(), thresholds[places], places, None)


def clustered(keys: torch.Tensor, n_groups: int | None = None) -> Clusters:
    """Clusters of keys by k-means: nearly all the time that `grouped` takes, and no threshold changes them.

    Args:
        keys: [M, K], M >= 1.
        n_groups: 4 sqrt(M) when None, which makes both levels of a look-up about as long.
    """
    generator = torch.Generator().manual_seed(0)
    wanted = max(1, min(len(keys), n_groups or round(4 * len(keys) ** 0.5)))
    sample = torch.randperm(len(keys), generator=generator)[: SAMPLE * wanted].to(keys.device)
    unit = torch.nn.functional.normalize(keys, dim=1)
    centres = spherical_kmeans(unit[sample], wanted, STEPS, generator)
    return Clusters(centres, nearest(unit, centres)[1])


def grouped(index: Index, keys: torch.Tensor, clusters: Clusters | None = None) -> Groups | None:
    """Groups of the keys in an index.

    A query q fires a key k of threshold t where the angle between them is below acos(t). By the triangle inequality
    its angle to a centre c is then below angle(c, k) + acos(t), and the largest of these sums is the group's limit
    (the bound of ball trees, Ram & Gray 2012, with a threshold for each key).

    Args:
        keys: [M, K], of which the index was made.
        clusters: of the same keys; made here when None.

    Returns:
        None where groups are of no use: there are no keys, or a query of any direction would visit more than
        `LARGEST_SHARE` of them, as where keys are scattered at random or thresholds are low.
    """
    if not len(index.places):
        return None
    centres, group = clusters or clustered(keys)
    keys, thresholds, group = keys[index.places], index.thresholds, group[index.places]
    # A group of which no key can fire is never visited.
    limits = torch.full((len(centres),), torch.inf, dtype=torch.float64, device=keys.device)
    for part in torch.arange(len(keys), device=keys.device).split(max(1, BLOCK // keys.shape[1])):
        length = keys[part].double().norm(dim=1)
        centre = centres[group[part]].double()
        # Of a key of length 0 nothing is known but that it fires everywhere or nowhere.
        near = ((keys[part].double() * centre).sum(1) / (length * centre.norm(dim=1))).nan_to_num(-1).clamp(-1, 1)
        limit = ((thresholds[part].double() - slack(keys)) / length).nan_to_num(-1).clamp(-1, 1)
        far = near * limit - ((1 - near**2) * (1 - limit**2)).sqrt()  # cos(acos(near) + acos(limit))
        far[near <= -limit] = -torch.inf  # the sum of both angles is a half turn or more
        limits.scatter_reduce_(0, group[part], far, "amin")
    order = group.argsort(stable=True)
    members = index.places[order].split(torch.bincount(group, minlength=len(centres)).tolist())
    limits -= slack(keys)
    # The cosine of a random direction to a centre is nearly normal with the variance 1 / K.
    visited = torch.special.erfc(limits * (keys.shape[1] / 2) ** 0.5) / 2
    if float(visited[group].mean()) > LARGEST_SHARE:
        return None
    return Groups(centres.T.contiguous(), limits.to(keys.dtype), members)


def fired(queries: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor, index: Index, most: int) -> Fired | None:
    """All pairs of a query and a key with a cosine above the key's threshold.

    At most `BLOCK` cosines exist at once.

    Args:
        queries: [N, K] of length 1 or less.
        keys: [M, K].
        thresholds: [M], cosines.
        index: of these keys and thresholds; with groups, the search has two levels.
        most: pairs that may be found.

    Returns:
        None where more would be found.
    """
    if index.groups is None or FEW < queries.shape[0] < MANY:
        found = all_at_once(queries, index, most)
    elif queries.shape[0] <= FEW:
        found = in_few_groups(queries, keys, thresholds, index, index.groups, most)
    else:
        found = group_by_group(queries, keys, thresholds, index, index.groups, most)
    return None if found is None or found.tokens.shape[0] > most else found


def all_at_once(queries: torch.Tensor, index: Index, most: int) -> Fired | None:
    """`fired` by all cosines, one block of tokens after another."""
    found: list[Fired] = []
    size, total = max(1, BLOCK // max(1, index.places.shape[0])), 0
    for start in range(0, max(1, queries.shape[0]), size):
        block = queries[start : start + size] @ index.columns
        pairs = (block > index.thresholds).nonzero()
        total += pairs.shape[0]
        if total > most:
            return None
        if pairs.shape[0]:
            tokens, columns = pairs.unbind(1)
            found.append(Fired(tokens + start, index.places[columns], block[tokens, columns]))
    return joined(found, queries)


def in_few_groups(
    queries: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor, index: Index, groups: Groups, most: int
) -> Fired | None:
    """`fired` for few tokens: among the keys of all groups that any of them may fire."""
    near = queries @ groups.centres > groups.limits
    visited = (near[0] if near.shape[0] == 1 else near.any(dim=0)).nonzero().squeeze(1).tolist()
    members = torch.cat([groups.members[group] for group in visited]) if visited else index.places[:0]
    if members.shape[0] > 2 * LARGEST_SHARE * index.places.shape[0]:
        return all_at_once(queries, index, most)
    found = among(queries, keys, thresholds, members) if visited else []
    return in_order(joined(found, queries), keys.shape[0])


def group_by_group(
    queries: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor, index: Index, groups: Groups, most: int
) -> Fired | None:
    """`fired` for many keys: every group looks at the tokens that may fire one of its keys."""
    found: list[Fired] = []
    total = 0
    size = max(1, BLOCK // len(groups.members))
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        visits = (part @ groups.centres > groups.limits).T
        if int(visits.sum()) > LARGEST_SHARE * visits.numel():
            whole = all_at_once(part, index, most - total)
            if whole is None:
                return None
            pieces = [whole]
        else:
            pieces = []
            for members, visit in zip(groups.members, visits, strict=True):
                tokens = visit.nonzero().squeeze(1)
                if tokens.shape[0]:
                    piece = among(part[tokens], keys, thresholds, members)
                    pieces += [one._replace(tokens=tokens[one.tokens]) for one in piece]
        found += [piece._replace(tokens=piece.tokens + start) for piece in pieces]
        total += sum(piece.tokens.shape[0] for piece in pieces)
        if total > most:
            return None
    return in_order(joined(found, queries), keys.shape[0])


def among(queries: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor, members: torch.Tensor) -> list[Fired]:
    """`fired` for some of the keys, [m] int64; an empty list where none fires."""
    block = queries @ keys[members].T
    pairs = (block > thresholds[members]).nonzero()
    if not pairs.shape[0]:
        return []
    tokens, columns = pairs.unbind(1)
    return [Fired(tokens, members[columns], block[tokens, columns])]


def joined(found: list[Fired], queries: torch.Tensor) -> Fired:
    """All pairs in one."""
    if len(found) == 1:
        return found[0]
    if not found:
        none = torch.empty(0, dtype=torch.int64, device=queries.device)
        return Fired(none, none, queries.new_empty(0))
    return Fired(*map(torch.cat, zip(*found, strict=True)))


def in_order(found: Fired, n_keys: int) -> Fired:
    """Pairs by token and then by key."""
    if found.tokens.shape[0] < 2:
        return found
    order = (found.tokens * n_keys + found.keys).argsort()
    return Fired(*(tensor[order] for tensor in found))


def naive_fired(queries: torch.Tensor, keys: torch.Tensor, thresholds: torch.Tensor) -> list[tuple[int, int]]:
    """Twin of `fired`, pair by pair: the (token, key) pairs alone."""
    return [
        (n, m)
        for n, query in enumerate(queries)
        for m, (key, threshold) in enumerate(zip(keys, thresholds, strict=True))
        if float((query * key).sum()) > float(threshold)
    ]
