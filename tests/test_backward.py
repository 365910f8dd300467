"""No wasted backward: what is frozen has no gradient and no state, and below a pathway there is no graph."""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent / "conformance"))

import subject

from nlft.anatomy import decoder_layers, root_of
from nlft.config import OptimizerConfig
from nlft.data.batch import Batch, collate
from nlft.loss import target_loss
from nlft.optim.build import build_optimizer

FAMILIES = ("llama", "gpt2", "opt")
FIRST_LAYER = 2
"""Of four, the lowest that a pathway stands in."""
PLACES: dict[str, dict[str, Any]] = {
    "hope": {"layers_to_transform": [2, 3]},
    "prototype": {"layers_to_transform": [2, 3]},
    "product_key": {"layers_to_transform": [2, 3]},
    "cms": {"layers_to_transform": [2, 3]},
    "cms_pretrained": {"layers_to_transform": [2, 3], "periods": [1, 2]},
    "gated_lora": {"gate_layer": 2},
}
TRAINED = {
    "hope": None,
    "prototype": {"values"},
    "product_key": {"values"},
    "cms": None,
    "cms_pretrained": None,
    "gated_lora": {"A", "B"},
}
"""Last parts of the names of all that a pathway trains, where keys stand beside it."""


PAIRS = [
    pytest.param((pathway, family), id=f"{pathway}-{family}", marks=[pytest.mark.slow] if family == "opt" else [])
    for pathway in subject.PATHWAYS
    for family in FAMILIES
]


@pytest.fixture(scope="module", params=PAIRS)
def learning(request: pytest.FixtureRequest) -> tuple[str, Any, torch.optim.Optimizer]:
    """A pathway's model and optimiser after two steps of its first task, so that nothing that is trained is zero."""
    pathway, family = request.param
    model = subject.adapted(pathway, subject.build(family), **PLACES[pathway])
    subject.begin(model, pathway)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = build_optimizer(OptimizerConfig(), trained, 0.05, 0.0, model)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        target_loss(model, subject.ROWS).backward()
        optimizer.step()
    return pathway, model, optimizer


def step(model: Any) -> None:
    model.zero_grad()
    target_loss(model, subject.ROWS).backward()


def test_nothing_below_the_first_pathway_is_in_the_graph(learning):
    _, model, _ = learning
    layers = decoder_layers(root_of(model))[1]
    needs: list[bool] = []
    kept: dict[int, int] = dict.fromkeys(range(-1, 4), 0)
    now = [-1]
    handles = []

    def enter(index: int) -> Any:
        return lambda *_: now.__setitem__(0, index)

    def leave(_module: nn.Module, _args: Any, out: Any) -> None:
        needs.append((out[0] if isinstance(out, tuple) else out).requires_grad)

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[now[0]] += 1
        return tensor

    for index, layer in enumerate(layers):
        handles += [layer.register_forward_pre_hook(enter(index)), layer.register_forward_hook(leave)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(model)
    for handle in handles:
        handle.remove()
    assert needs == [False] * FIRST_LAYER + [True] * (4 - FIRST_LAYER)
    assert [kept[index] > 0 for index in range(-1, 4)] == [False, False, False, True, True]


def test_only_what_is_trained_has_a_gradient(learning):
    pathway, model, _ = learning
    step(model)
    assert all((one.grad is not None) == one.requires_grad for one in model.parameters())
    assert not any(one.requires_grad or one.grad is not None for one in model.buffers())
    names = {name.rpartition(".")[2] for name, one in model.named_parameters() if one.requires_grad}
    expected = TRAINED[pathway]
    assert expected is None or names == expected


def test_keys_thresholds_whiteners_and_gates_are_buffers(learning):
    pathway, model, _ = learning
    fixed = {"keys", "thresholds", "shift", "mean", "whitener", "rotations", "half_keys", "others", "drift", "height"}
    parameters = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    buffers = {name.rpartition(".")[2] for name, _ in model.named_buffers()}
    assert not fixed & parameters
    must = {"prototype": "thresholds", "product_key": "half_keys", "gated_lora": "others"}.get(pathway)
    assert must is None or must in buffers


def test_the_optimiser_holds_state_of_exactly_what_is_trained(learning):
    _, model, optimizer = learning
    trained = {id(one): one for one in model.parameters() if one.requires_grad}
    assert {id(one) for one in optimizer.state} == set(trained)
    moments = sum(one.numel() for state in optimizer.state.values() for one in state.values() if one.ndim)
    assert moments == 2 * sum(one.numel() for one in trained.values())


def kept_bytes(model: Any, rows: Batch) -> int:
    """Bytes of storages that wait for the backward pass of a loss, each once, without weights and buffers."""
    own = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *model.buffers()]}
    kept: list[weakref.ref[torch.Tensor]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = target_loss(model.train(), rows)
    storages = [one.untyped_storage() for one in (ref() for ref in kept) if one is not None]
    sizes = {one.data_ptr(): one.nbytes() for one in storages if one.data_ptr() not in own}
    loss.backward()
    return sum(sizes.values())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The bench's models, in a module that is no part of a package."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "eval" / "bench"))
    yield importlib.import_module("model")
    del sys.modules["model"]


def test_slots_in_the_top_half_keep_less_than_lora_everywhere(bench):
    size = bench.Size(128, 344, 4, 4, 4, 512)
    base = bench.random_base(size, torch.device("cpu"), torch.float32)
    rows = collate(bench.random_rows(size, 4, 64, targets=0.5), 0)
    kept = {
        name: kept_bytes(model, rows)
        for name, model in {
            "LoRA": bench.lora(base),
            "slots": bench.slots(base, [2, 3]),
            "slots, top 1": bench.slots(base, [3]),
        }.items()
    }
    half, one = kept["slots"] / kept["LoRA"], kept["slots, top 1"] / kept["LoRA"]
    assert one < half <= 0.5
