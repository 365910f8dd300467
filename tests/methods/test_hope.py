"""The method Hope in the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from nlft.base import load_base
from nlft.calibrate import block_inputs
from nlft.config import BaseConfig, HopeConfig
from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.methods import build_method
from nlft.methods.hope import Hope
from nlft.methods.protocol import TaskContext
from nlft.optim.multi_timescale import MultiTimescale
from nlft.pathways.hope.model import hope_cores

IDS = torch.arange(5, 17)[None]


def method(**fields: Any) -> Any:
    small = {"kind": "hope", "lr": 1e-2, "heads": 2, "head_width": 8, "chunk": 4, "rank": 3}
    return build_method(HopeConfig.model_validate({**small, **fields}))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


def context(seed: int = 0) -> TaskContext:
    return TaskContext("first", [], [], [], 1, 1, 2, 0, seed)


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("periods", [[], [1, 3]])
def test_attach_train_save_and_load(periods, tmp_path):
    base, hope = load_base(BaseConfig(model="builtin:tiny")), method(periods=periods)
    assert isinstance(hope, Hope) and not hope.changes_base
    expected = logits(base.model)
    model = hope.attach(base, seed=3)
    assert torch.equal(logits(model), expected)
    assert model.peft_config["default"].base_fingerprint == base.fingerprint  # pyright: ignore
    hope.begin_task(model, context())
    optimizer = hope.optimizer(model, 1e-2)
    assert isinstance(optimizer, MultiTimescale) == bool(periods)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == trained
    slow = [p for name, p in model.named_parameters() if name.endswith("levels.B1")]
    for number in range(4):
        step(model, optimizer)
        assert all(bool(p.any()) == (number >= 2) for p in slow)
    assert base.is_unchanged(model) and not torch.equal(logits(model), expected)
    before = [p.detach().clone() for p in slow]
    hope.end_task(model)  # the slow level's fourth gradient moves it
    assert all(not torch.equal(p, old) for p, old in zip(slow, before, strict=True))
    hope.save(model, tmp_path)
    again = method(periods=periods).load(load_base(BaseConfig(model="builtin:tiny")), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert {name for name, p in again.named_parameters() if p.requires_grad}


def test_seeds_and_options_reach_the_adapter():
    bases = [load_base(BaseConfig(model="builtin:tiny")) for _ in range(3)]
    models = [method().attach(base, seed) for base, seed in zip(bases, (1, 1, 2), strict=True)]
    drawn = [next(p for n, p in model.named_parameters() if n.endswith("project.weight")) for model in models]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    fields = dict(layers=[2], memory="mlp", read="boundary", objective="l2", bptt_chunks=2, initial="learned")
    config = method(**fields).peft_config
    assert {name: getattr(config, name) for name in fields if name != "layers"} == {
        name: value for name, value in fields.items() if name != "layers"
    }
    assert config.layers_to_transform == [2]


def test_pending_gradients_may_be_dropped():
    base, hope = load_base(BaseConfig(model="builtin:tiny")), method(periods=[1, 3], at_end="drop")
    model = hope.attach(base, seed=0)
    hope.begin_task(model, context())
    step(model, hope.optimizer(model, 1e-2))
    hope.end_task(model)
    assert not any(bool(p.any()) for name, p in model.named_parameters() if name.endswith("levels.B1"))


def test_the_first_task_whitens_what_the_memories_see():
    base = load_base(BaseConfig(model="builtin:tiny"))
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 2000, (60, 20), generator=draw).tolist()
    rows = [Encoded(one, one, 0) for one in ids]
    hope = method(layers=[1, 4], head_width=16)
    model = hope.attach(base, seed=0)
    expected = logits(model)
    hope.begin_task(model, TaskContext("first", rows, [], [], 1, 2, 2, 0, 0))
    assert torch.equal(logits(model), expected)
    cores = hope_cores(model)
    [inputs] = block_inputs(model, list(cores), [collate(rows, 0)])
    for block, core in cores.items():
        queries, keys, values = core.project(inputs.states[block]).detach().chunk(3, dim=-1)
        assert torch.equal(queries, keys)
        assert not torch.allclose(queries, values)
        for part in (queries, values):
            assert float(part.mean(dim=0).abs().max()) < 1e-3
            assert float((part.T.cov().diagonal() - 1).abs().max()) < 0.2
    before = {block: core.project.weight.clone() for block, core in cores.items()}
    hope.begin_task(model, TaskContext("second", rows[:20], rows, [], 2, 2, 2, 0, 0))
    assert all(torch.equal(core.project.weight, before[block]) for block, core in cores.items())


def test_a_fresh_memory_finds_what_followed_a_token():
    core = hope_cores(method(layers=[0]).attach(load_base(BaseConfig(model="builtin:tiny")), seed=0))
    [core] = core.values()
    x = torch.randn(1, 12, 128, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x[:, 4:5]], dim=1)  # token 4 once more, behind which token 5 stood
    queries, keys, values = core.convolve(x, core.fresh(1)["tail"], None)[0]
    assert torch.equal(keys[:, :, 1:], queries[:, :, :-1])
    near = torch.einsum("bhm,bhtm->bht", queries[:, :, -1], keys[:, :, :-1])
    assert near.argmax(dim=-1).tolist() == [[5, 5]]
    torch.testing.assert_close(values[:, :, 5], core.convolve(x[:, 5:6], core.fresh(1)["tail"], None)[0][2][:, :, 0])


def test_what_forms_memories_moves_at_a_tenth_of_the_rate():
    model = (hope := method(periods=[1, 3])).attach(load_base(BaseConfig(model="builtin:tiny")), seed=0)
    scales = {
        id(p): group.get("lr_scale", 1.0) for group in hope.optimizer(model, 1.0).param_groups for p in group["params"]
    }
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert scales[id(p)] == (1.0 if "output" in name or "levels" in name else 0.1), name
