"""The optimiser that a recipe names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import nn

from nlft.config import OptimizerConfig
from nlft.errors import NlftError
from nlft.optim.build import build_optimizer
from nlft.optim.joined import Joined
from nlft.optim.multi_timescale import MultiTimescale
from nlft.optim.muon import Muon

KINDS = get_args(OptimizerConfig.model_fields["kind"].annotation)


def config(kind: str, **fields: Any) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"kind": kind, **fields})


def teach(model: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    ids = torch.arange(24).view(4, 6) + 3
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_learns_at_several_clocks_and_resumes(kind: str, make_model: Callable[..., Any]) -> None:
    """Loss falls; groups keep `lr_scale`, `period` and `level`; a copy of the state goes on with the same bits."""
    model = make_model("llama").requires_grad_(True)

    def make(model: nn.Module) -> MultiTimescale:
        slow = [p for name, p in model.named_parameters() if "mlp" in name]
        fast = [p for name, p in model.named_parameters() if "mlp" not in name]
        groups = [{"params": fast, "level": 0}, {"params": slow, "period": 2, "level": 1, "lr_scale": 0.5}]
        lr = {"sgd": 0.3, "delta_gradient_descent": 0.3}.get(kind, 0.01)
        return MultiTimescale(build_optimizer(config(kind), groups, lr, 0.01, model))

    optimizer = make(model)
    assert {g["lr"] / optimizer.param_groups[0]["lr"] for g in optimizer.param_groups} == {1.0, 0.5}
    losses = teach(model, optimizer, 9)
    assert losses[-1] < losses[0] - 0.02
    twin = copy.deepcopy(model)
    resumed = make(twin)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch's own would share its tensors
    assert teach(model, optimizer, 4) == teach(twin, resumed, 4)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_default_is_fused_adamw() -> None:
    (p,) = (nn.Parameter(torch.ones(3, 2)),)
    optimizer = build_optimizer(OptimizerConfig(), [p], 0.1, 0.2, nn.Identity())
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["fused"], group["lr"], group["weight_decay"]) == (True, 0.1, 0.2)


def test_muon_takes_hidden_matrices_and_adamw_the_rest(make_model: Callable[..., Any]) -> None:
    model = make_model("llama").requires_grad_(True)
    optimizer = build_optimizer(config("muon", momentum=0.8), model.parameters(), 0.01, 0.0, model)
    assert isinstance(optimizer, Joined)
    muon, adamw = optimizer.optimizers
    assert isinstance(muon, Muon) and isinstance(adamw, torch.optim.AdamW)
    names = {p: name for name, p in model.named_parameters()}
    matrices = {names[p] for p in muon.param_groups[0]["params"]}
    rest = {names[p] for p in adamw.param_groups[0]["params"]}
    assert rest == {name for name in names.values() if "norm" in name or "embed" in name or "lm_head" in name}
    assert matrices == set(names.values()) - rest
    assert muon.param_groups[0]["momentum"] == 0.8
    vectors = [p for p in model.parameters() if p.ndim == 1]
    assert isinstance(build_optimizer(config("muon"), vectors, 0.01, 0.0, model), torch.optim.AdamW)
    with pytest.raises(NlftError, match="no further groups"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_joined_equals_its_parts(make_model: Callable[..., Any]) -> None:
    first, second = (make_model("llama").requires_grad_(True) for _ in range(2))
    joined = build_optimizer(config("muon"), first.parameters(), 0.01, 0.1, first)
    parts = build_optimizer(config("muon"), second.parameters(), 0.01, 0.1, second)
    assert isinstance(parts, Joined)
    teach(first, joined, 3)
    ids = torch.arange(24).view(4, 6) + 3
    second.train()
    for _ in range(3):
        second(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(second.parameters(), 1.0)
        for part in parts.optimizers:
            part.step()
            part.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert set(joined.state) == set(first.parameters())


def test_momentum_and_options_reach_the_optimizer() -> None:
    p = nn.Parameter(torch.ones(3, 2))
    built = {kind: build_optimizer(config(kind), [p], 0.1, 0.0, nn.Identity()) for kind in ("sgd", "deep_momentum")}
    assert all(o.param_groups[0]["momentum"] == 0.9 for o in built.values())
    m3 = build_optimizer(config("m3", options={"frequency": 5, "decay": False}), [p], 0.1, 0.0, nn.Identity())
    assert (m3.param_groups[0]["frequency"], m3.param_groups[0]["decay"]) == (5, False)
    adamw = build_optimizer(config("adamw", options={"betas": [0.5, 0.9]}), [p], 0.1, 0.0, nn.Identity())
    assert tuple(adamw.param_groups[0]["betas"]) == (0.5, 0.9)


def test_mistakes_are_sentences() -> None:
    p = nn.Parameter(torch.ones(3, 2))
    with pytest.raises(NlftError, match=r"m3 has no option 'frequenzy'.*frequency"):
        build_optimizer(config("m3", options={"frequenzy": 5}), [p], 0.1, 0.0, nn.Identity())
    with pytest.raises(NlftError, match="adamw has no momentum"):
        build_optimizer(config("adamw", momentum=0.5), [p], 0.1, 0.0, nn.Identity())
    with pytest.raises(NlftError, match=r"adamw refuses its options: Invalid beta"):
        build_optimizer(config("adamw", options={"betas": [2.0, 0.9]}), [p], 0.1, 0.0, nn.Identity())
