"""Rules that choose slots, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from nlft.ops.choice import Background, best_rows, choose, kl, share, tfidf

COUNTS = torch.tensor([6, 2, 0, 2])
BACKGROUND = Background(torch.tensor([10, 0, 5, 1]), torch.tensor([9, 0, 3, 1]), 9)


def chosen(choice, slots, counts=COUNTS, seed=0):
    return choose(choice, counts, BACKGROUND, slots, torch.Generator().manual_seed(seed)).tolist()


def test_tfidf_by_hand():
    scores = tfidf(COUNTS, torch.tensor([9, 0, 0, 4]), 9)
    expected = torch.tensor([0.6 * math.log(10 / 10), 0.2 * math.log(10), 0.0, 0.2 * math.log(2)], dtype=torch.float64)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-15)
    assert torch.equal(tfidf(torch.zeros(2, dtype=torch.int64), torch.zeros(2), 3), torch.zeros(2, dtype=torch.float64))


def test_kl_by_hand():
    # The background is smoothed to 11, 1, 6 and 2 of 20 reads.
    expected = [0.6 * math.log(0.6 / 0.55), 0.2 * math.log(0.2 / 0.05), 0.0, 0.2 * math.log(0.2 / 0.1)]
    torch.testing.assert_close(kl(COUNTS, BACKGROUND.counts).tolist(), expected, rtol=0, atol=1e-15)
    own = torch.tensor([1, 3])
    assert kl(own, torch.tensor([0, 9]))[1] < 0 < kl(own, torch.tensor([9, 0]))[1]


def test_share_by_hand():
    assert share(COUNTS).tolist() == [0.6, 0.2, 0.0, 0.2]
    assert share(torch.zeros(3, dtype=torch.int64)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("choice", "slots", "expected"),
    [
        ("tfidf", 1, [1]),  # 0.46; slot 0 is in every document, slot 3 has 0.32
        ("tfidf", 2, [1, 3]),
        ("tfidf", 9, [0, 1, 3]),  # slot 2 is never read
        ("kl", 1, [1]),  # 0.277 before 0.139 and 0.052
        ("kl", 2, [1, 3]),
        ("tf", 1, [0]),
        ("tf", 2, [0, 1]),  # 1 and 3 tie
        ("all", 1, [0, 1, 3]),
        ("random", 9, [0, 1, 3]),
    ],
)
def test_choices_by_hand(choice, slots, expected):
    assert chosen(choice, slots) == expected


def test_a_slot_that_the_background_prefers_still_comes_before_one_that_is_not_read():
    background = Background(torch.tensor([0, 90, 0]), torch.tensor([0, 9, 0]), 9)
    counts = torch.tensor([9, 1, 0])
    assert float(kl(counts, background.counts)[1]) < 0
    assert choose("kl", counts, background, 2, torch.Generator()).tolist() == [0, 1]


def test_random_is_uniform_over_what_is_read_and_follows_the_seed():
    counts = torch.tensor([1, 0, 50, 3, 7])
    drawn = [chosen("random", 2, counts, seed) for seed in range(600)]
    assert drawn[5] == chosen("random", 2, counts, 5)
    assert all(slots == sorted(set(slots)) and len(slots) == 2 for slots in drawn)
    often = torch.bincount(torch.tensor(drawn).flatten(), minlength=5)
    assert often[1] == 0
    # Each of four slots in half of 600 draws; 4 standard deviations are 49.
    assert all(abs(int(often[slot]) - 300) < 49 for slot in (0, 2, 3, 4))


def test_best_rows_are_sorted_and_ties_go_to_the_lowest():
    assert best_rows(torch.tensor([0.0, 2.0, 1.0, 2.0, 1.0]), 3).tolist() == [1, 2, 3]
    assert best_rows(torch.zeros(6), 2).tolist() == [0, 1]
    assert best_rows(torch.tensor([1.0, 3.0]), 9).tolist() == [0, 1]
