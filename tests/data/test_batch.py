"""Padding, target counts and the order of rows."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
import torch

from nlft.data.batch import Sampler, collate
from nlft.data.template import Encoded
from nlft.types import IGNORE

ROWS = [Encoded([1, 5, 6, 2], [IGNORE, IGNORE, 6, 2], 3), Encoded([1, 7], [IGNORE, 7], 1)]


def numbered(n: int) -> list[Encoded]:
    return [Encoded([i, i], [IGNORE, i], 1) for i in range(n)]


def numbers(batch: list[Encoded]) -> list[int]:
    return [row.ids[0] for row in batch]


def test_right_padding():
    batch = collate(ROWS, pad_id=9)
    assert batch.input_ids.tolist() == [[1, 5, 6, 2], [1, 7, 9, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE, 6, 2], [IGNORE, 7, IGNORE, IGNORE]]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}


def test_left_padding():
    batch = collate(ROWS, pad_id=9, side="left")
    assert batch.input_ids.tolist() == [[1, 5, 6, 2], [9, 9, 1, 7]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE, 6, 2], [IGNORE, IGNORE, IGNORE, 7]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_targets_are_counted_after_the_shift(side):
    assert collate(ROWS, 9, side).n_targets == 3
    # A label on the first token has no prediction, so it counts only where padding stands before it.
    assert collate([Encoded([3, 4], [3, 4], 2)], 9, side).n_targets == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_target_count_is_that_of_the_loss(side):
    batch = collate(ROWS, 9, side)
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 11, dtype=torch.float64)
    shifted, labels = logits[:, :-1].reshape(-1, 11), batch.labels[:, 1:].reshape(-1)
    cross_entropy = torch.nn.functional.cross_entropy
    total, mean = cross_entropy(shifted, labels, reduction="sum"), cross_entropy(shifted, labels)
    assert torch.allclose(total / batch.n_targets, mean, rtol=1e-12)


def test_to_moves_every_tensor():
    batch = collate(ROWS, 9).to("meta")
    assert {t.device.type for t in (batch.input_ids, batch.attention_mask, batch.labels)} == {"meta"}


@pytest.mark.parametrize(("n", "size"), [(7, 3), (10, 5), (3, 8), (1, 4), (5, 1)])
def test_every_epoch_holds_each_row_once(n, size):
    batches = [numbers(batch) for batch in islice(Sampler(numbered(n), size, seed=0), 3 * n)]
    assert all(len(batch) == size for batch in batches)
    stream = [i for batch in batches for i in batch]
    for epoch in range(3 * size):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert Counter(stream) == dict.fromkeys(range(n), 3 * size)


def test_order_changes_with_epoch_and_seed():
    orders = {tuple(numbers(batch)) for batch in islice(Sampler(numbered(50), 50, seed=0), 4)}
    orders |= {tuple(numbers(next(Sampler(numbered(50), 50, seed)))) for seed in range(1, 5)}
    assert len(orders) == 8


@pytest.mark.parametrize("start", [0, 1, 2, 3, 7, 20])
def test_start_resumes_the_stream(start):
    whole = list(islice(Sampler(numbered(7), 3, seed=5), 30))
    assert list(islice(Sampler(numbered(7), 3, seed=5, start=start), 30 - start)) == whole[start:]


def test_global_random_state_is_untouched():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = numbers(next(Sampler(numbered(20), 20, seed=3)))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert numbers(next(Sampler(numbered(20), 20, seed=3))) == first


def test_nothing_to_draw_from():
    with pytest.raises(ValueError, match="no batches from 0 rows"):
        Sampler([], 2, seed=0)
