"""The read of prototype slots: by pairs and by blocks the same as its twin, with gradients, compiled and in parts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

import nlft.ops.prototype_read as prototype_read_file
import nlft.ops.search as search
from nlft.ops.prototype_read import BlockedRead, compact_read, prototype_read
from nlft.ops.search import grouped, indexed
from nlft.ops.slots import SMALLEST_ROOM, naive_prototype_read, product_read, product_topk, stable_product_topk

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def drawn(n: int, m: int, k: int, d: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Queries, keys, thresholds, values and inputs; the first key fires at the first token."""
    torch.manual_seed(0)
    queries, keys = (F.normalize(torch.randn(rows, k, dtype=dtype), dim=1) for rows in (n, m))
    keys[0] = queries[0]
    thresholds = torch.rand(m, dtype=dtype) * 0.8 - 0.4
    thresholds[0] = 0.9
    return queries, keys, thresholds, torch.randn(m, d, dtype=dtype), torch.randn(m, k, dtype=dtype)


def naive(queries, keys, thresholds, values, inputs) -> torch.Tensor:
    """Twin with inputs: every pair by itself."""
    rows = []
    for query in queries:
        row = values.new_zeros(values.shape[1])
        for key, threshold, value, vector in zip(keys, thresholds, values, inputs, strict=True):
            excess = (query * key).sum() - threshold
            if excess > 0:
                score = excess / max(1 - float(threshold), SMALLEST_ROOM)
                row = row + score * (1 + (query * vector).sum()) * value
        rows.append(row)
    return torch.stack(rows)


def ways(keys, thresholds):
    """Without and with an index, and in two levels."""
    index = indexed(keys, thresholds)
    yield prototype_read
    yield partial(prototype_read, index=index)
    yield partial(prototype_read, index=index._replace(groups=grouped(index, keys)))


@pytest.fixture
def by_pairs(monkeypatch):
    """Pairs are worth it however many fire; counts the reads that were computed by them."""
    called = []

    def counted(*args):
        called.append(1)
        return compact_read(*args)

    monkeypatch.setattr(prototype_read_file, "compact_read", counted)
    monkeypatch.setattr(prototype_read_file, "DENSEST", 1)
    monkeypatch.setattr(prototype_read_file, "DENSEST_INPUTS", 1)
    return called


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize(("n", "m", "k", "d"), [(1, 1, 1, 1), (5, 7, 3, 2), (13, 1, 4, 9), (11, 31, 8, 5)])
def test_every_way_equals_the_twin_with_gradients(monkeypatch, by_pairs, dtype, with_inputs, n, m, k, d):
    monkeypatch.setattr(search, "LARGEST_SHARE", 2.0)
    monkeypatch.setattr(search, "MANY", 0)
    monkeypatch.setattr(search, "BLOCK", 4 * m)  # several blocks of tokens
    queries, keys, thresholds, values, inputs = drawn(n, m, k, d, dtype)
    weight = torch.randn(n, d, dtype=dtype)
    twin = [values.clone().requires_grad_(), inputs.clone().requires_grad_()]
    if with_inputs:
        expected = naive(queries, keys, thresholds, *twin)
    else:
        expected = naive_prototype_read(queries, keys, thresholds, twin[0])
    (expected * weight).sum().backward()
    for number, read in enumerate((*ways(keys, thresholds), BlockedRead.apply)):
        if number == 3:
            monkeypatch.setattr(prototype_read_file, "BLOCK", 4 * m)
        learned = [values.clone().requires_grad_(), inputs.clone().requires_grad_()]
        out = read(queries, keys, thresholds, learned[0], learned[1] if with_inputs else None)
        assert len(by_pairs) == min(number + 1, 3)
        (out * weight).sum().backward()
        torch.testing.assert_close(out, expected, rtol=0, atol=9 * m * TOLERANCE[dtype])
        assert float(out.detach().abs().max()) > 0
        for one, other in zip(learned[: 1 + with_inputs], twin, strict=False):
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=9 * n * m * TOLERANCE[dtype])
            assert one.grad is not None and one.grad.count_nonzero()


@pytest.mark.parametrize("with_inputs", [False, True])
def test_silence_is_exactly_zero_and_still_has_gradients(with_inputs):
    queries, keys, _, values, inputs = drawn(9, 14, 5, 3, torch.float32)
    thresholds = torch.full((14,), 1.5)
    for read in (*ways(keys, thresholds), BlockedRead.apply):
        learned = [(-values.abs()).requires_grad_(), inputs.clone().requires_grad_()]
        out = read(queries, keys, thresholds, learned[0], learned[1] if with_inputs else None)
        assert torch.equal(out, torch.zeros(9, 3))
        out.sum().backward()
        assert all(not one.grad.any() for one in learned[: 1 + with_inputs])  # pyright: ignore
        with torch.no_grad():
            out = read(queries, keys, thresholds, values, inputs if with_inputs else None)
        assert torch.equal(out, torch.zeros(9, 3))


def test_where_most_pairs_fire_blocks_take_over(monkeypatch):
    queries, keys, _, values, inputs = drawn(400, 70, 6, 4, torch.float64)
    thresholds = torch.full((70,), -0.5, dtype=torch.float64)
    called = []
    monkeypatch.setattr(prototype_read_file, "compact_read", lambda *a: called.append(1))
    monkeypatch.setattr(prototype_read_file, "fired", lambda *a: pytest.fail("a few tokens tell that too many fire"))
    for chosen in (None, inputs):
        out = prototype_read(queries, keys, thresholds, values, chosen)
        torch.testing.assert_close(out, BlockedRead.apply(queries, keys, thresholds, values, chosen))
    assert not called


def test_gradient_mode_does_not_change_a_bit():
    queries, keys, thresholds, values, inputs = drawn(40, 31, 8, 16, torch.float32)
    thresholds += 0.5
    for chosen in (None, inputs):
        with torch.no_grad():
            frozen = prototype_read(queries, keys, thresholds, values, chosen)
        trained = prototype_read(queries, keys, thresholds, values.clone().requires_grad_(), chosen)
        assert torch.equal(frozen, trained) and frozen.any()


def test_memory_of_a_read_does_not_grow_with_tokens_times_slots():
    queries, keys, _, values, inputs = drawn(600, 2000, 16, 4, torch.float32)
    thresholds = torch.full((2000,), 0.97)
    for chosen in (None, inputs.requires_grad_()):
        kept = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = prototype_read(queries, keys, thresholds, values.clone().requires_grad_(), chosen)
        assert out.any()
        assert kept < 600 * 2000 * 4 / 4


@pytest.mark.parametrize("with_inputs", [False, True])
def test_memory_of_a_read_is_bounded_where_as_many_pairs_fire_as_are_worth_it(monkeypatch, with_inputs):
    """Just below one pair in 16 (64 with inputs) at a block's worth of pairs and at eight times that."""
    block, slots, width = 4096, 128, 4
    for file in (search, prototype_read_file):
        monkeypatch.setattr(file, "BLOCK", block)
    ratio = 64 if with_inputs else 16
    worth = block // width if with_inputs else block
    for tokens, pairs in ((worth * ratio // slots, True), (8 * worth * ratio // slots, False)):
        queries, keys, _, values, inputs = drawn(tokens, slots, width, 1, torch.float32)
        cosines = queries @ keys.T
        thresholds = cosines.quantile(1 - 0.75 / ratio, dim=0)
        share = float((cosines > thresholds).float().mean())
        assert 0.5 < share * ratio < 1
        sizes, found = [], []
        monkeypatch.setattr(
            prototype_read_file, "compact_read", lambda *a, found=found: found.append(1) or compact_read(*a)
        )

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        chosen = inputs.requires_grad_() if with_inputs else None
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            prototype_read(queries, keys, thresholds, values.requires_grad_(), chosen)
        assert bool(found) == pairs
        assert max(sizes) <= max(block, tokens * width)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.compile
def test_reads_compile_whole():
    queries, keys, thresholds, values, inputs = drawn(40, 31, 8, 16, torch.float32)
    for chosen in (None, inputs):
        learned = [values.clone().requires_grad_() for _ in range(2)]
        compiled = torch.compile(prototype_read, fullgraph=True)(queries, keys, thresholds, learned[0], chosen)
        plain = prototype_read(queries, keys, thresholds, learned[1], chosen)
        torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-4)
        compiled.square().sum().backward()
        plain.square().sum().backward()
        torch.testing.assert_close(learned[0].grad, learned[1].grad, rtol=1e-4, atol=1e-3)
    scores, rows = torch.randn(20, 2, 2, 9), torch.arange(0, 81, 4)

    def look_up(scores, values):
        found, slots = product_topk(scores, 5)
        return product_read(slots.flatten(1), found.flatten(1), rows, values)

    values = torch.randn(len(rows), 3)
    compiled = torch.compile(look_up, fullgraph=True)(scores, values)
    torch.testing.assert_close(compiled, look_up(scores, values))
    assert compiled.any()


def test_the_way_without_data_dependent_shapes_finds_the_same_slots():
    scores = torch.randint(0, 4, (50, 2, 7), generator=torch.Generator().manual_seed(0)).float()
    for one, other in zip(product_topk(scores, 6), stable_product_topk(scores, 6), strict=True):
        assert torch.equal(one, other)
