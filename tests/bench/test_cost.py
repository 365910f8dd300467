"""The cost model on paper: against sums by hand, and against what torch counts on a small model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nlft.head
from nlft.config import PrefixConfig
from nlft.data.batch import collate
from nlft.frozen_prefix import install_prefix, keep_prefix
from nlft.loss import naive_target_loss
from nlft.prefix_store import PrefixStore

BENCH = Path(__file__).parents[2] / "eval" / "bench"
CPU = torch.device("cpu")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the bench, which lie beside each other and are no package."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("cost", "model", "paper")})
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]


def test_by_hand(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cost = bench.cost
    size = cost.Size(D=4, F=10, L=3, H=2, KV=1, V=7)
    assert size.layer_weights == 16 + 8 + 8 + 16 + 3 * 40  # q, k, v, o; the block
    assert size.weights == 3 * (168 + 8) + 2 * 28 + 4
    # 5 tokens: 2 * 168 for the maps, and 2 * 5 * 4 for half a square of two products.
    assert cost.layer_flops(size, 5) == 336 + 40
    assert cost.forward_flops(size, 5, first=1) == 2 * 376 + 56
    assert cost.backward_flops(size, 5, 2) == 2 * (336 + 80) + 56
    assert cost.backward_flops(size, 5, 3, weights=True) == 3 * (672 + 80) + 112
    slots = cost.Slots(layers=2, M=6, K=3, S=2)
    assert slots.flops(size) == 2 * (2 * 4 * 3 + 2 * (2 * 6 * 3 + 2 * 6 * 4) + 2 * 6 * 3 + 2 * 6 * 4)
    few = cost.Slots(layers=2, M=6, K=3, S=2, reads=1)
    assert few.flops(size) == 2 * (2 * 4 * 3 + 2 * (2 * 6 * 3 + 2 * 4) + 2 * 4)
    assert slots.trained(size) == 48
    # The gradient passes layer 2 and the head; layer 1's memory is its end.
    whole = 3 * 376 + 56 + (336 + 80) + 56 + slots.flops(size)
    assert cost.slots_step(size, 5, slots, 1, cached=False) == whole
    assert cost.slots_step(size, 5, slots, 1, cached=True) == whole - 376
    maps = 2 * (4 + 4) + 2 * (4 + 2) + 3 * (4 + 10)
    assert cost.lora_weights(size, 2) == 3 * 2 * maps
    assert cost.lora_step(size, 5, R=2) == 3 * 376 + 56 + 3 * 416 + 56 + 6 * 3 * 2 * maps
    assert cost.saved_numbers(size) == 6 * 4 + 3 * 10
    assert cost.slots_saved(size, slots, 1) == 54 + 6
    assert cost.head_bytes(size, 5) == 3 * 4 * 35
    monkeypatch.setattr(nlft.head, "FEWEST", 2)
    monkeypatch.setitem(nlft.head.BLOCK, "cpu", 8)
    assert cost.head_bytes(size, 5) == 3 * 4 * 2 * 7  # one token's logits fill a block, and two is the least
    monkeypatch.setitem(nlft.head.BLOCK, "cpu", 4 * 7 + 6)
    assert cost.head_bytes(size, 5) == 3 * 4 * 4 * 7
    assert cost.kmeans_flops(cost.Slots(2, 6, 3), rounds=4, states=5) == 2 * 4 * 2 * 30 * 6 * 3
    assert cost.whitening_bytes(size, 2) == 2 * 16 * 8
    assert cost.prefix_bytes(size) == 8


def test_the_large_bases_have_the_weights_of_their_names(bench: Any) -> None:
    weights = {name: size.weights / 1e9 for name, size in bench.paper.BASES.items()}
    assert weights == pytest.approx({"8B": 8.03, "70B": 70.55}, rel=1e-3)


class Shifted(nn.Module):
    """A block that adds a trained vector: a memory that costs no product."""

    def __init__(self, block: nn.Module, width: int) -> None:
        super().__init__()
        self.block, self.vector = block, nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x) + self.vector


@pytest.mark.parametrize("cached", [False, True])
def test_torch_counts_the_same(bench: Any, cached: bool) -> None:
    cost, model = bench.cost, bench.model
    size, rows, tokens, first = cost.Size(D=32, F=48, L=4, H=4, KV=4, V=64), 3, 8, 1
    base = model.random_base(size, CPU, torch.float32)
    assert size.weights == sum(one.numel() for one in base.parameters())
    for layer in (base.model.layers[first], base.model.layers[3]):
        layer.mlp = Shifted(layer.mlp, size.D)
    batch = collate(model.random_rows(size, rows, tokens), 0)
    if cached:
        config = PrefixConfig()
        install_prefix(base, "random", config, PrefixStore(None, config))
        keep_prefix(base, batch.rows, 0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        naive_target_loss(base, batch).backward()
    # This kernel computes whole squares.
    forward_layers, backward_layers = size.L - (first if cached else 0), size.L - first - 1
    more = (forward_layers + 2 * backward_layers) * 2 * tokens * size.D
    nothing = cost.Slots(layers=0, M=0)
    expected = cost.slots_step(size, tokens, nothing, first, cached) + more
    assert counted.get_total_flops() == rows * tokens * expected


def test_an_adapter_has_the_bytes_on_paper(bench: Any) -> None:
    size = bench.model.SIZES["tiny"]
    adapted = bench.model.slots(bench.model.random_base(size, CPU, torch.float32), [1, 3], count=10, tasks=2)
    saved = sum(one.nbytes for one in get_peft_model_state_dict(adapted).values())
    assert saved == bench.cost.Slots(layers=2, M=10, K=64, S=2).adapter_bytes(size)
