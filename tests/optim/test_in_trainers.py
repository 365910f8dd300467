"""MultiTimescale where others drive it: accelerate, torch's schedulers, Hugging Face's Trainer, and our loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import Trainer, TrainingArguments

from nlft.optim.multi_timescale import MultiTimescale

STEPS = 11


class Regression(nn.Module):
    """Two maps, the second of which steps once in three steps; its loss is a squared error."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.fast, self.slow = nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.slow(torch.tanh(self.fast(x))) - y).square().mean()}


def rows() -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(STEPS * 4, 4, generator=g)
    return [{"x": x, "y": x.sum(dim=0, keepdim=True)} for x in inputs]


def make(model: Regression, period: int = 3, consolidation: float = 0.0) -> tuple[MultiTimescale, Any]:
    groups = [
        {"params": list(model.fast.parameters()), "level": 0},
        {"params": list(model.slow.parameters()), "period": period, "level": 1},
    ]
    inner = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.1)
    optimizer = MultiTimescale(inner, consolidation=consolidation, reinitialise=consolidation > 0)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 40)


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trainer(folder: Path, consolidation: float = 0.0) -> Any:
    model = Regression()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        num_train_epochs=1,
        save_steps=4,
        save_strategy="steps",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return Trainer(model, arguments, train_dataset=rows(), optimizers=make(model, consolidation=consolidation))  # type: ignore


@pytest.mark.parametrize("consolidation", [0.0, 0.5])
def test_trainer_resumes_in_the_middle_of_a_period(tmp_path: Path, consolidation: float) -> None:
    """Checkpoint 4 lies between the boundaries 3 and 6."""
    straight = trainer(tmp_path, consolidation)
    straight.train()
    assert straight.state.global_step == STEPS
    saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert saved["steps"] == 4 and len(saved["sums"]) == 2 and bool(saved["sums"][2].any())
    resumed = trainer(tmp_path, consolidation)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert torch.equal(weights(straight.model), weights(resumed.model))
    assert resumed.optimizer.optimizer.steps == STEPS


def test_trainer_moves_the_slow_group_at_its_boundaries(tmp_path: Path) -> None:
    run = trainer(tmp_path)
    run.train()
    for step, moved in [(4, False), (8, True)]:  # boundaries 3, 6 and 9
        state = torch.load(tmp_path / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
        assert int(state["optimizer"]["state"][2]["step"]) == (2 if moved else 1)
        assert int(state["optimizer"]["state"][0]["step"]) == step


@pytest.mark.filterwarnings("error")
def test_accelerate_and_a_scheduler_change_nothing() -> None:
    plain, prepared = Regression(), Regression()
    optimizer, scheduler = make(plain)
    for row in rows():
        plain(row["x"][None], row["y"][None])["loss"].backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=1)
    model, other, schedule = accelerator.prepare(prepared, *make(prepared))
    for row in rows():
        accelerator.backward(model(row["x"][None], row["y"][None])["loss"])
        other.step()
        schedule.step()
        other.zero_grad()
    assert torch.equal(weights(plain), weights(prepared))
    assert other.optimizer.steps == len(rows())
    assert not torch.equal(weights(plain), weights(Regression()))


def test_scheduled_rates_reach_the_inner_optimizer() -> None:
    model = Regression()
    optimizer, scheduler = make(model)
    for _ in range(10):
        model(rows()[0]["x"][None], rows()[0]["y"][None])["loss"].backward()
        optimizer.step()
        scheduler.step()
    assert [g["lr"] for g in optimizer.optimizer.param_groups] == pytest.approx([0.05 * 0.75] * 2)
    optimizer.load_state_dict(optimizer.state_dict())  # torch replaces the groups here
    scheduler.step()
    assert optimizer.optimizer.param_groups[1]["lr"] == pytest.approx(0.05 * (1 - 11 / 40))


def test_our_loop_drives_it(make_model: Callable[..., Any]) -> None:
    """In `nlft.train` a group of period 4 ends where accumulation over batches four times as large ends: not before."""
    from rich.console import Console

    from nlft.config import FullConfig, TrainConfig
    from nlft.data.template import Encoded
    from nlft.events import Events
    from nlft.methods import build_method
    from nlft.train import train_stage

    taught = [Encoded([1, 5, 9, 4 + i], [-100, -100, 9, 4 + i], 2) for i in range(32)]
    model = make_model("llama").requires_grad_(True)
    method = build_method(FullConfig(kind="full", lr=1e-2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    slow = [p for name, p in model.named_parameters() if "mlp" in name]
    fast = [p for name, p in model.named_parameters() if "mlp" not in name]

    def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        groups = [{"params": fast}, {"params": slow, "period": 4, "lr_scale": 0.0}]
        return MultiTimescale(torch.optim.AdamW(groups, lr=lr, fused=True))

    method.optimizer = optimizer  # type: ignore[method-assign]
    options: dict[str, Any] = {"pad_id": 0, "stage": 1, "label": "t", "events": Events(None)}
    config = TrainConfig(batch_size=8)
    train_stage(model, method, taught, config, steps=4, lr=1e-2, console=Console(quiet=True), **options)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == ("mlp" in name), name
    steps = 3  # with a rate, but one step short of the boundary
    optimizer_at = MultiTimescale(torch.optim.AdamW([{"params": fast}, {"params": slow, "period": 4}], lr=1e-2))
    method.optimizer = lambda model, lr: optimizer_at  # type: ignore[method-assign]
    train_stage(model, method, taught, config, steps=steps, lr=1e-2, console=Console(quiet=True), **options)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if "mlp" in name)
    optimizer_at.flush()
    assert not any(torch.equal(p, before[name]) for name, p in model.named_parameters() if "mlp" in name)
