"""What a memory remembers of its keys: never stale, never stored, and the same numbers with and without it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from pathway_models import adapt, build

import nlft.pathways.sparse_memory.layer as layer_file
from nlft.ops.search import clustered, indexed
from nlft.ops.slots import naive_prototype_read
from nlft.pathways.shift import SILENT, set_shift
from nlft.pathways.sparse_memory.model import begin_task, end_task, memories

BLOCK = "model.layers.1.mlp"


@pytest.fixture
def model(monkeypatch):
    """A memory of 420 keys in clusters, which are looked up in groups."""
    monkeypatch.setattr(layer_file, "MANY_KEYS", 200)
    torch.manual_seed(0)
    adapted = adapt(build("llama"), "prototype")
    keys = F.normalize(F.normalize(torch.randn(60, 32), dim=1).repeat(7, 1) + 0.05 * torch.randn(420, 32), dim=1)
    begin_task(adapted, "t", {name: (keys, torch.linspace(0.8, 1.1, 420)) for name in memories(adapted)})
    for core in memories(adapted).values():
        torch.nn.init.normal_(core.newest.values)
    end_task(adapted)
    return adapted


def inputs(core) -> torch.Tensor:
    """Block inputs whose queries are keys, and others."""
    wanted = torch.cat([core.newest.keys[::40], torch.randn(3, 32)])
    return torch.linalg.lstsq(core.whitener.T, wanted.T).solution.T + core.mean


def expected(core, x: torch.Tensor) -> torch.Tensor:
    task = core.newest
    return naive_prototype_read(core.queries(x), task.keys, task.thresholds + task.shift, task.values)


@torch.no_grad()
def agrees(core, x: torch.Tensor) -> bool:
    """Whether all tokens at once, and one by one, add what the twin adds."""
    whole = expected(core, x)
    one_by_one = torch.cat([core(x[n : n + 1]) for n in range(len(x))])
    return all(torch.allclose(out, whole, rtol=1e-4, atol=1e-4) for out in (core(x), one_by_one))


def test_many_keys_are_looked_up_in_groups(model, monkeypatch):
    core = memories(model)[BLOCK]
    x = inputs(core)
    assert agrees(core, x) and bool(expected(core, x).any())
    index = core.newest.look_up.index
    assert index is not None and index.groups is not None and len(index.places) < 420
    made = []
    monkeypatch.setattr(layer_file, "clustered", lambda *args: made.append(1) or clustered(*args))
    for shift in (0.02, -0.02):
        set_shift(model, shift)
        assert agrees(core, x)
        assert (index := core.newest.look_up.index) is not None and index.groups is not None
    assert not made  # no key has moved
    core.newest.keys.copy_(core.newest.keys.flip(0))
    assert agrees(core, x) and made == [1]
    monkeypatch.setattr(layer_file, "indexed", lambda *_: pytest.fail("an index is made once"))
    assert agrees(core, x)


def test_a_change_of_keys_thresholds_or_shift_is_seen(model):
    core = memories(model)[BLOCK]
    x = inputs(core)
    before = expected(core, x)
    assert agrees(core, x)
    core.newest.keys.copy_(core.newest.keys.flip(0))
    assert agrees(core, x) and not torch.equal(expected(core, x), before)
    core.newest.thresholds.add_(-0.5)
    assert agrees(core, x)
    set_shift(model, 0.2)
    assert agrees(core, x)
    set_shift(model, SILENT)
    with torch.no_grad():
        assert torch.equal(core(x), torch.zeros(x.shape)) and torch.equal(core(x[:1]), torch.zeros(x[:1].shape))
    core.newest.keys, core.newest.shift = torch.randn(420, 32) / 32**0.5, torch.zeros(())
    assert agrees(core, x) and bool(expected(core, x).any())


def test_it_is_neither_copied_nor_stored(model):
    core = memories(model)[BLOCK]
    assert agrees(core, inputs(core))
    other = copy.deepcopy(core)
    assert other.newest.look_up.index is None
    assert agrees(other, inputs(other))
    assert not any("look_up" in name for name in core.state_dict())


def test_half_precision_gives_the_same_by_one_index(model, monkeypatch):
    made = []
    monkeypatch.setattr(layer_file, "indexed", lambda *args: made.append(1) or indexed(*args))
    layer = next(module for name, module in model.get_base_model().named_modules() if name == BLOCK)
    core = layer.cores["default"]
    with torch.no_grad():
        core.half()
        rounded = copy.deepcopy(core).float()
        x = inputs(rounded)
        for times in (1, 2):
            for token in x[:, None]:
                torch.testing.assert_close(
                    layer.compute("default", core, token), expected(rounded, token), rtol=1e-4, atol=1e-4
                )
            assert len(made) == times
            for one in (core, rounded):
                one.newest.keys.copy_(one.newest.keys.flip(0))


def test_tensors_of_inference_mode_work(model):
    core = memories(model)[BLOCK]
    with torch.inference_mode():
        core.newest.keys = core.newest.keys * 1
        x = inputs(core)
        assert agrees(core, x) and bool(expected(core, x).any())


def test_what_was_looked_up_in_inference_mode_trains(model):
    core = memories(model)[BLOCK]
    x = inputs(core)
    with torch.no_grad():
        core.newest.thresholds.copy_(torch.linspace(-0.9, 1.1, 420))  # most fire, so that whole blocks are read
    with torch.inference_mode():
        core(x)
    core.newest.thaw()
    core(x).sum().backward()
    gradient = core.newest.values.grad
    assert gradient is not None and gradient.any()


def test_an_index_that_fails_leaves_no_half_of_it(model, monkeypatch):
    core = memories(model)[BLOCK]
    x = inputs(core)
    assert agrees(core, x)
    core.newest.keys.copy_(core.newest.keys.flip(0))
    with monkeypatch.context() as patch:
        patch.setattr(layer_file, "grouped", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            core(x)
    assert agrees(core, x)


def test_a_memory_that_moves_leaves_nothing_behind(model):
    core = memories(model)[BLOCK]
    x = inputs(core)
    assert agrees(core, x)
    core.to("meta")
    assert core.total(x.to("meta")).shape == x.shape  # autocast, which `forward` asks about, knows no such device
    assert core.newest.look_up.known is None
