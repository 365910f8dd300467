"""The continuum memory system as a method: its clocks, its controls, and whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from safetensors.torch import load_file

from nlft.base import FrozenBase, load_base
from nlft.config import BaseConfig, CmsConfig, TrainConfig
from nlft.data.batch import Batch
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.events import Events
from nlft.loss import target_loss
from nlft.measure.items import read_items, read_runs
from nlft.methods.cms import Cms, dealt, level_groups
from nlft.methods.protocol import TaskContext
from nlft.optim.multi_timescale import MultiTimescale
from nlft.pathways.cms.model import levels_of
from nlft.rescore import load_weights
from nlft.run import run_method
from nlft.train import train_stage

GATED = {"gate": {"kind": "prototype", "slots": 32}, "retention": "10%"}
SMALL: dict[str, Any] = {"kind": "cms", "lr": 1e-2, "rank": 4, "periods": [1, 2, 4]}
METHODS: dict[str, dict[str, Any]] = {
    "headwise": {**SMALL, "weight_decay": 0.1, "replay": {"source": "background"}},
    "sequential": {**SMALL, "variant": "sequential", "consolidation": 0.3, "at_end": "drop"},
    "nested": {**SMALL, "variant": "nested", "consolidation": 0.5},
    "pretrained": {**SMALL, "init": "pretrained"},
    "rate": {**SMALL, "slowness": "rate"},
    "shuffled": {**SMALL, "slowness": "shuffled"},
    "online": {**SMALL, "online_chunk": 8},
    "gated": {**SMALL, **GATED},
    "gated_pretrained": {**SMALL, "init": "pretrained", "replay": {"source": "background"}, **GATED},
}
RARE = ("rate", "shuffled", "gated_pretrained", "pretrained", "sequential", "gated", "online", "nested")
"""Near relations of other kinds, run with the slow tests."""
ROWS = [Encoded([5 + i, 9, 20 + i, 31, 7 + i, 40], [0, 9, 20 + i, 31, 7 + i, 40], 1) for i in range(12)]


def config(**fields: Any) -> CmsConfig:
    return CmsConfig.model_validate({**SMALL, **fields})


@pytest.mark.parametrize("method", [pytest.param(name, marks=[pytest.mark.slow] * (name in RARE)) for name in METHODS])
def test_a_run_keeps_the_base_and_resumes_bit_equal(recipe: Callable[..., Any], method: str, tmp_path: Path) -> None:
    whole = run_method(recipe(methods=METHODS), method, tmp_path / "whole", report=False)
    (row,) = read_runs(whole / "runs.parquet")
    assert (row["status"], row["base_unchanged"], row["off_equals_base"]) == ("ok", True, True)
    assert row["trainable_params"] > 0 and row["stored_bytes"] > 0
    nats = dict.fromkeys(range(3), 0.0)
    for item in read_items(whole / "items.parquet"):
        if (item.column, item.metric) == ("people", "nll"):
            nats[item.stage] += item.value * item.weight
    assert nats[1] < nats[0]  # six steps

    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("adapter", "stages/2"):
        shutil.rmtree(cut / name)
    for name in ("items.parquet", "runs.parquet"):
        (cut / name).unlink()
    run_method(recipe(methods=METHODS), method, cut, resume=True, report=False)
    weights = "stages/2/model/adapter_model.safetensors"
    first, second = load_file(whole / weights), load_file(cut / weights)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_items(whole / "items.parquet") == read_items(cut / "items.parquet")

    earlier = load_file(whole / "stages/1/model/adapter_model.safetensors")
    part = [name for name in earlier if ".tasks.0." in name]
    kept = [torch.equal(earlier[name], first[name]) for name in part]
    assert part and (all(kept) if "gate" in METHODS[method] else not any(kept))
    load_weights(whole / "adapter", load_base(BaseConfig()))


class Plain(Cms):
    """The same levels under a plain AdamW of one group."""

    def optimizer(self, model: Any, lr: float) -> torch.optim.Optimizer:
        every = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(every, lr=lr, weight_decay=self.weight_decay, fused=True)


def learner(kind: type[Cms] = Cms, **fields: Any) -> tuple[Cms, FrozenBase, Any]:
    """A method, its base, and the model with one task begun."""
    method, base = kind(config(**fields)), load_base(BaseConfig())
    model = method.attach(base, seed=3)
    context = TaskContext("law", ROWS, [], [], number=1, n_tasks=1, batch_size=4, pad_id=0, seed=5)
    method.begin_task(model, context)
    return method, base, model


def tensors_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for level in levels_of(model) for name, p in level.items()}


def stage(method: Cms, model: Any, folder: Path, steps: int = 6) -> dict[str, torch.Tensor]:
    """Trained weights by name after one stage."""
    train = TrainConfig(steps=steps, batch_size=4, warmup=0.3, schedule="cosine")
    options: dict[str, Any] = dict(events=Events(folder / "events.jsonl"), console=Console(quiet=True))
    train_stage(model, method, ROWS, train, steps=steps, lr=1e-2, pad_id=0, stage=1, label="x", **options)
    return tensors_of(model)


@pytest.mark.parametrize("fields", [{}, {"variant": "sequential"}, {"init": "pretrained"}], ids=str)
def test_period_one_is_plain_adamw_bit_for_bit(fields: dict[str, Any], tmp_path: Path) -> None:
    found = {}
    for kind in (Cms, Plain):
        method, _, model = learner(kind, periods=[1, 1, 1], weight_decay=0.1, **fields)
        found[kind] = stage(method, model, tmp_path)
        method.end_task(model)
        assert all(torch.equal(tensor, found[kind][name]) for name, tensor in tensors_of(model).items())
    start = tensors_of(learner(periods=[1, 1, 1], **fields)[2])
    assert found[Cms].keys() == found[Plain].keys()
    assert all(torch.equal(tensor, found[Plain][name]) for name, tensor in found[Cms].items())
    assert not any(torch.equal(tensor, start[name]) for name, tensor in found[Cms].items())


def steps_of(
    method: Cms, model: Any, steps: int, lr: float = 1e-2
) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]], torch.optim.Optimizer]:
    """Weights before the first step and after each, gradients of each, and the optimiser."""
    optimizer = method.optimizer(model, lr)
    weights, gradients = [tensors_of(model)], []
    for step in range(steps):
        ids = torch.tensor([row.ids for row in ROWS[step : step + 4]])
        target_loss(model, Batch(ids, torch.ones_like(ids), ids)).backward()
        gradients.append({n: p.grad.clone() for level in levels_of(model) for n, p in level.items()})  # pyright: ignore
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        weights.append(tensors_of(model))
    return weights, gradients, optimizer


@pytest.mark.parametrize("fields", [{}, {"variant": "sequential"}, {"init": "pretrained"}], ids=str)
def test_levels_rest_between_their_boundaries(fields: dict[str, Any]) -> None:
    method, _, model = learner(weight_decay=0.1, **fields)
    weights, gradients, _ = steps_of(method, model, 8)
    for level, period in zip(levels_of(model), (1, 2, 4), strict=True):
        assert level
        for name in level:
            for step in range(1, 9):
                moved = not torch.equal(weights[step][name], weights[step - 1][name])
                # A has no gradient until B has moved, but it decays.
                assert moved == (step % period == 0), (name, step)
            if period == 4:  # one AdamW step on the mean of four gradients, decayed four times as much
                twin = torch.nn.Parameter(weights[4][name].clone())
                plain = torch.optim.AdamW([twin], lr=1e-2, weight_decay=0.4, fused=True)
                for window, start in ((range(4), weights[0]), (range(4, 8), weights[4])):
                    twin.data.copy_(start[name])
                    twin.grad = sum(gradients[step][name] for step in window) / 4  # pyright: ignore
                    plain.step()
                    assert torch.equal(twin.detach(), weights[window[-1] + 1][name])


def test_the_end_of_a_task_flushes_or_drops_what_waits() -> None:
    found = {}
    for at_end in ("flush", "drop"):
        method, _, model = learner(at_end=at_end)
        weights, _, _ = steps_of(method, model, 5)
        method.end_task(model)
        for level, (tensors, period) in enumerate(zip(levels_of(model), (1, 2, 4), strict=True)):
            for name, p in tensors.items():
                waits = 5 % period != 0 and at_end == "flush"
                assert torch.equal(p.detach(), weights[-1][name]) != waits, (at_end, level)
        found[at_end] = tensors_of(model)
        method.end_task(model)  # and nothing waits any more
        assert all(torch.equal(tensor, found[at_end][name]) for name, tensor in tensors_of(model).items())


def test_consolidation_in_numbers() -> None:
    """At the boundary of a slower level it takes a part of what the faster one has moved since its last boundary."""
    runs = {}
    for rho in (0.0, 0.25):
        method, _, model = learner(periods=[1, 2], consolidation=rho)
        runs[rho] = steps_of(method, model, 4)[0], levels_of(model)
    (plain, _), (ours, levels) = runs[0.0], runs[0.25]
    for fast, slow in zip(levels[0], levels[1], strict=True):
        assert fast.replace("A0", "A1").replace("B0", "B1") == slow
        assert torch.equal(ours[1][fast], plain[1][fast]) and torch.equal(ours[1][slow], plain[1][slow])
        moved = 0.25 * (ours[2][fast] - ours[0][fast])
        torch.testing.assert_close(ours[2][slow], plain[2][slow] + moved, rtol=0, atol=1e-7)
        assert float(moved.abs().max()) > 1e-4 and torch.equal(ours[2][fast], plain[2][fast])


def test_nested_reinitialisation_in_numbers() -> None:
    """At the boundary of the slower level the faster one starts again, from a state that follows it by rho."""
    method, _, model = learner(periods=[1, 3], variant="nested", consolidation=0.25)
    twin, _, other = learner(periods=[1, 3], variant="sequential")
    ours, _, optimizer = steps_of(method, model, 6)
    plain, _, _ = steps_of(twin, other, 3)
    assert isinstance(optimizer, MultiTimescale)
    fast, slow = levels_of(model)
    for name in fast:
        assert torch.equal(ours[2][name], plain[2][name])
        expected = plain[0][name] + 0.25 * (plain[3][name] - plain[0][name])
        torch.testing.assert_close(ours[3][name], expected, rtol=0, atol=1e-7)
        assert not torch.allclose(ours[3][name], plain[3][name], rtol=0, atol=1e-4)
        torch.testing.assert_close(optimizer.anchors[fast[name]], ours[6][name], rtol=0, atol=0)
        assert not torch.equal(ours[6][name], ours[3][name])
    for name in slow:
        assert torch.equal(ours[3][name], plain[3][name])


def test_groups_of_the_controls() -> None:
    levels = [{f"block.A{level}": torch.nn.Parameter(torch.zeros(1))} for level in range(3)]
    keys = ("period", "lr_scale", "weight_decay")
    fields = {
        "period": [(1, 1.0, 0.5), (8, 1.0, 4.0), (64, 1.0, 32.0)],
        "rate": [(1, 1.0, 0.5), (1, 1 / 8, 4.0), (1, 1 / 64, 32.0)],
        "shuffled": [(1, 1.0, 0.5), (8, 1.0, 4.0), (64, 1.0, 32.0)],
    }
    for slowness, expected in fields.items():
        groups = level_groups(levels, config(periods=[1, 8, 64], slowness=slowness), 0.5, seed=0)
        assert [tuple(group[key] for key in keys) for group in groups] == expected
        assert [group["level"] for group in groups] == [0, 1, 2]
        order = dealt(levels, 0) if slowness == "shuffled" else levels
        assert (order == levels) == (slowness != "shuffled")
        assert [group["params"] for group in groups] == [list(one.values()) for one in order]
    assert [group["level"] for group in level_groups([levels[0], {}, levels[2]], config(), 0.5, 1)] == [0, 2]


def test_periods_are_dealt_anew_at_every_block() -> None:
    def parameter() -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.zeros(1))

    blocks = [f"layers.{index}.tasks.0" for index in range(20)]
    levels = [{f"{block}.{one}{level}": parameter() for block in blocks for one in "AB"} for level in range(3)]
    found, again, other = dealt(levels, 1), dealt(levels, 1), dealt(levels, 2)
    assert [list(one) for one in found] == [list(one) for one in again] != [list(one) for one in other]
    orders = set()
    for block in blocks:
        there = [[name for name in one if name.startswith(f"{block}.")] for one in found]
        assert all(len(names) == 2 and names[0][-1] == names[1][-1] for names in there)
        orders.add("".join(names[0][-1] for names in there))
    assert len(orders) > 3 and all(sorted(order) == ["0", "1", "2"] for order in orders)
    assert all(tensor is levels[int(name[-1])][name] for one in found for name, tensor in one.items())

    alone = [{f"{block}.{one}": parameter() for block in part for one in "AB"} for part in (blocks[:10], blocks[10:])]
    found = dealt(alone, 1)
    assert [len(one) for one in found] == [20, 20]
    assert 0 < len(set(found[0]) & set(alone[0])) < 20 and set(found[0]) | set(found[1]) == set(alone[0] | alone[1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variant": "nested"}, "starts again from a state that nothing would move"),
        ({"consolidation": 0.5, "init": "pretrained"}, "the levels are different blocks"),
        ({"consolidation": 0.5, "slowness": "rate"}, "there is none"),
        ({"consolidation": 0.5, "periods": [4]}, "there is none"),
    ],
)
def test_consolidation_needs_two_clocks_of_one_block(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        config(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": [0, 1], "gate": {"layer": 1}, "retention": "10%"}, "layer 0 lies in front of the gate"),
        ({"layers": [77]}, "names layer 77"),
        ({"init": "pretrained", "layers": [1, 2]}, "3 levels for 2 layers"),
        ({"periods": [8, 1]}, "do not begin with the fastest"),
    ],
)
def test_what_does_not_fit_the_base(
    recipe: Callable[..., Any], fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(NlftError, match=said):
        run_method(recipe(methods={"x": {**SMALL, **fields}}), "x", tmp_path / "run", report=False)
    assert not (tmp_path / "run").exists()
