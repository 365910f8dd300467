"""Health of a table, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nlft.ops.health import (
    core_set,
    divergence_from_uniform,
    frequency_deciles,
    jaccard,
    median_frequency,
    top_share,
    usage,
)


def test_even_reads():
    counts = torch.full((200,), 3)
    assert usage(counts) == 1.0
    assert divergence_from_uniform(counts) == pytest.approx(0.0, abs=1e-12)
    assert top_share(counts) == pytest.approx(0.01)


def test_one_hub():
    counts = torch.zeros(200, dtype=torch.int64)
    counts[7] = 5
    assert usage(counts) == 0.005
    assert divergence_from_uniform(counts) == pytest.approx(math.log(200))
    assert top_share(counts) == 1.0


def test_uneven_reads_by_hand():
    counts = torch.tensor([6, 2, 0, 2])
    assert usage(counts) == 0.75
    assert divergence_from_uniform(counts) == pytest.approx(0.6 * math.log(2.4) + 0.4 * math.log(0.8))
    assert top_share(counts) == 0.6  # a part of a slot is a slot
    assert top_share(counts, 0.5) == 0.8
    nothing = torch.zeros(4, dtype=torch.int64)
    assert (usage(nothing), divergence_from_uniform(nothing), top_share(nothing)) == (0.0, 0.0, 0.0)


def test_document_frequencies_by_hand():
    frequency = torch.tensor([0, 1, 2, 2, 10, 0, 20])
    assert median_frequency(frequency, 20) == 0.1
    assert frequency_deciles(frequency, 20) == [3, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    assert median_frequency(torch.zeros(3), 5) == 0.0
    assert sum(frequency_deciles(torch.zeros(3), 5)) == 0


def test_core_sets_by_hand():
    assert jaccard({1, 2, 3}, {2, 3, 4}) == 0.5
    assert jaccard(set(), set()) == 0.0
    overlap, core = core_set([{1, 2, 3}, {2, 3, 4}, {3, 9}])
    assert overlap == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert core == 1
    assert core_set([{1}, {2}]) == (0.0, 0)
