"""Slots: reads and look-ups against their twins, with gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nlft.ops.slots import (
    count_accesses,
    document_numbers,
    half_queries,
    half_scores,
    naive_product_read,
    naive_product_topk,
    naive_prototype_read,
    product_read,
    product_topk,
    prototype_scores,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "m", "k", "d"), [(1, 1, 1, 1), (5, 7, 3, 2), (13, 1, 4, 9), (6, 31, 8, 5)])
def test_prototype_read_equals_its_twin_with_gradients(dtype, n, m, k, d):
    torch.manual_seed(0)
    queries = F.normalize(torch.randn(n, k, dtype=dtype), dim=1)
    keys = F.normalize(torch.randn(m, k, dtype=dtype), dim=1)
    keys[0] = queries[0]
    thresholds = torch.rand(m, dtype=dtype) * 0.8 - 0.4
    thresholds[0] = -0.9
    values, twin_values = (torch.ones(m, d, dtype=dtype).cumsum(0).requires_grad_() for _ in range(2))
    out = prototype_scores(queries, keys, thresholds) @ values
    twin = naive_prototype_read(queries, keys, thresholds, twin_values)
    torch.testing.assert_close(out, twin, rtol=0, atol=m * m * TOLERANCE[dtype])
    weight = torch.randn(n, d, dtype=dtype)
    (out * weight).sum().backward()
    (twin * weight).sum().backward()
    torch.testing.assert_close(values.grad, twin_values.grad, rtol=0, atol=m * TOLERANCE[dtype])
    assert values.grad is not None and float(values.grad.abs().sum()) > 0


def test_prototype_scores_by_hand():
    queries = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    keys = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    scores = prototype_scores(queries, keys, torch.tensor([0.5, 0.6, 1.5, 0.995]))
    expected = torch.tensor([[1.0, 1.0, 0.0, 0.5], [0.2, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
    assert torch.equal(scores == 0, expected == 0)  # silence is exact


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("n", "topk"), [(2, 1), (2, 4), (3, 5), (5, 5), (7, 3), (8, 64), (13, 20), (16, 16), (128, 16)]
)
def test_product_topk_equals_brute_force(dtype, n, topk):
    scores = torch.randn(11, 3, 2, n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    found, slots = product_topk(scores, topk)
    expected, every = naive_product_topk(scores, topk)
    assert torch.equal(found, expected)
    assert torch.equal(slots, every)


@pytest.mark.parametrize(("n", "topk"), [(2, 3), (4, 4), (5, 7), (9, 9), (12, 40)])
def test_product_topk_breaks_ties_by_the_lowest_slot(n, topk):
    # Sums of small integers tie often and are exact.
    scores = torch.randint(0, 3, (200, 2, n), generator=torch.Generator().manual_seed(0)).float()
    found, slots = product_topk(scores, topk)
    expected, every = naive_product_topk(scores, topk)
    assert torch.equal(found, expected)
    assert torch.equal(slots, every)
    assert slots[0].unique().numel() == topk
    tied = product_topk(torch.zeros(2, n), topk)[1]
    assert torch.equal(tied, torch.arange(topk))


def test_half_queries_and_scores_by_hand():
    queries = torch.tensor([[3.0, 4.0, 0.0, 5.0]])
    rotations = torch.stack([torch.eye(4), torch.eye(4).flip(0)])
    halves = half_queries(queries, rotations)
    expected = torch.tensor([[[[0.6, 0.8], [0.0, 1.0]], [[1.0, 0.0], [0.8, 0.6]]]])
    torch.testing.assert_close(halves, expected)
    half_keys = torch.tensor([1.0, 0.0]).expand(2, 2, 3, 2)
    assert torch.allclose(half_scores(queries, rotations, half_keys), expected[..., :1].expand(1, 2, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "reads", "table", "m"), [(1, 1, 4, 1), (7, 6, 25, 9), (5, 12, 49, 49), (9, 3, 400, 5)])
def test_product_read_equals_its_twin_with_gradients(dtype, n, reads, table, m):
    torch.manual_seed(0)
    rows = torch.randperm(table)[:m].sort().values
    slots = torch.randint(0, table, (n, reads))
    slots[0, 0], slots[-1, -1] = rows[0], rows[-1]
    weights = torch.rand(n, reads, dtype=dtype)
    values = torch.randn(m, 3, dtype=dtype, requires_grad=True)
    twin_values = values.detach().clone().requires_grad_()
    out, twin = (
        product_read(slots, weights, rows, values),
        naive_product_read(slots, weights, rows, twin_values),
    )
    torch.testing.assert_close(out, twin, rtol=0, atol=reads * TOLERANCE[dtype])
    weight = torch.randn(n, 3, dtype=dtype)
    (out * weight).sum().backward()
    (twin * weight).sum().backward()
    assert values.grad is not None and values.grad.shape == (m, 3)
    torch.testing.assert_close(values.grad, twin_values.grad, rtol=0, atol=n * reads * TOLERANCE[dtype])


def test_product_read_equals_the_dense_table():
    torch.manual_seed(0)
    rows, slots = torch.tensor([1, 4, 7]), torch.randint(0, 9, (20, 5))
    weights, values = torch.rand(20, 5), torch.randn(3, 2, requires_grad=True)
    table = torch.zeros(9, 2).index_copy(0, rows, values.detach()).requires_grad_()
    dense = (weights[..., None] * table[slots]).sum(1)
    out = product_read(slots, weights, rows, values)
    torch.testing.assert_close(out, dense)
    out.square().sum().backward()
    dense.square().sum().backward()
    assert table.grad is not None
    torch.testing.assert_close(values.grad, table.grad[rows])


def test_product_read_of_absent_slots_is_exactly_zero():
    values = torch.full((2, 4), -1.0, requires_grad=True)
    out = product_read(torch.tensor([[0, 8]]), torch.ones(1, 2), torch.tensor([3, 5]), values)
    assert torch.equal(out, torch.zeros(1, 4))
    assert not torch.signbit(out).any()
    out.sum().backward()
    assert torch.equal(values.grad, torch.zeros(2, 4))  # pyright: ignore


def test_count_accesses_equals_a_loop_and_adds_up():
    slots = torch.randint(0, 12, (30, 4), generator=torch.Generator().manual_seed(0))
    documents = torch.arange(30) // 7
    counts, frequency = count_accesses(slots, documents, 12)
    for slot in range(12):
        assert int(counts[slot]) == int((slots == slot).sum())
        assert int(frequency[slot]) == len({int(d) for d, row in zip(documents, slots, strict=True) if slot in row})
    first, rest = (
        count_accesses(slots[:14], documents[:14], 12),
        count_accesses(slots[14:], documents[14:], 12),
    )
    assert torch.equal(first[0] + rest[0], counts)
    assert torch.equal(first[1] + rest[1], frequency)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 99])
def test_documents_are_pieces_of_rows(tokens):
    rows = torch.tensor([0, 0, 0, 0, 0, 2, 2, 5, 5, 5])
    expected, place, document = [], 0, -1
    for before, row in zip([-1, *rows.tolist()], rows.tolist(), strict=False):
        place = place + 1 if row == before else 0
        document += place % tokens == 0
        expected.append(document)
    assert document_numbers(rows, tokens).tolist() == expected
    assert document_numbers(rows[:0], tokens).tolist() == []
