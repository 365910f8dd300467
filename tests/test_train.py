"""The loop: token-correct accumulation, exact repetition, schedules, and errors that say what to do."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from nlft.config import FullConfig, ReplayConfig, TrainConfig
from nlft.data.batch import collate
from nlft.data.template import Encoded
from nlft.errors import NlftError
from nlft.events import Events
from nlft.loss import target_loss
from nlft.methods import build_method
from nlft.methods.protocol import TaskContext
from nlft.train import learning_rate, train_stage
from nlft.types import IGNORE


def ragged_rows(count: int, seed: int = 0) -> list[Encoded]:
    """Rows of 3 to 9 tokens, of which 1 to 4 are targets."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [1, *(rng.randrange(3, 97) for _ in range(rng.randint(2, 8)))]
        n_targets = rng.randint(1, min(4, len(ids) - 1))
        rows.append(Encoded(ids, [IGNORE] * (len(ids) - n_targets) + ids[-n_targets:], n_targets))
    return rows


def run_stage(model: Any, rows: list[Encoded], events: Events | None = None, **options: Any) -> Any:
    method_config = options.pop("method", FullConfig(kind="full", lr=1e-2))
    steps, lr = options.pop("steps", 4), options.pop("lr", 1e-2)
    background = options.pop("background", [])
    method = build_method(method_config)
    model.requires_grad_(options.pop("trainable", True))
    method.begin_task(model, TaskContext("t", rows, [], background, 1, 1, 8, 0, 0))
    config = TrainConfig(batch_size=8, **options)
    return train_stage(
        model,
        method,
        rows,
        config,
        steps=steps,
        lr=lr,
        pad_id=0,
        stage=1,
        label="full: t",
        events=events or Events(None),
        console=Console(quiet=True),
    )


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 8])
def test_accumulation_equals_one_batch(
    make_model: Callable[..., Any], dtype: torch.dtype, tolerance: float, micro_batch_size: int
) -> None:
    rows = ragged_rows(24)
    whole, split = make_model("llama").to(dtype), make_model("llama").to(dtype)
    one = run_stage(whole, rows)
    many = run_stage(split, rows, micro_batch_size=micro_batch_size)
    assert (weights(whole) - weights(make_model("llama").to(dtype))).abs().max() > 1e-3, "it must have trained"
    torch.testing.assert_close(weights(split), weights(whole), atol=tolerance, rtol=0)
    assert one.final_loss == pytest.approx(many.final_loss, abs=1e-4)
    assert one.tokens == many.tokens


def test_loss_is_the_mean_over_target_tokens(make_model: Callable[..., Any]) -> None:
    model, rows = make_model("llama"), ragged_rows(5)
    batch = collate(rows, 0)
    total, count = 0.0, 0
    with torch.no_grad():
        summed = float(target_loss(model, batch))
        for row in rows:
            log_p = model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            for place, label in enumerate(row.labels):
                if label != IGNORE:
                    total -= float(log_p[place - 1, label])
                    count += 1
    assert count == batch.n_targets
    assert summed == pytest.approx(total, rel=1e-5)


def test_repetition_is_bit_equal_and_leaves_the_generators_alone(make_model: Callable[..., Any]) -> None:
    rows = ragged_rows(24)
    states = torch.get_rng_state(), random.getstate()
    first, second, other = make_model("llama"), make_model("llama"), make_model("llama")
    run_stage(first, rows)
    torch.rand(7)
    run_stage(second, rows)
    run_stage(other, rows, seeds={"data": 1})
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))
    torch.set_rng_state(states[0])
    run_stage(make_model("llama"), rows)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]


def test_dropout_seed_is_its_own(make_model: Callable[..., Any]) -> None:
    rows = ragged_rows(24)

    def trained(**seeds: int) -> torch.Tensor:
        model = make_model("llama")
        model.config.attention_dropout = 0.5
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.5
        run_stage(model, rows, seeds=seeds)
        return weights(model)

    assert torch.equal(trained(dropout=0), trained(dropout=0))
    assert not torch.equal(trained(dropout=0), trained(dropout=1))


@pytest.mark.parametrize(
    ("step", "schedule", "rate"),
    [
        (0, "constant", 1 / 3),
        (1, "constant", 2 / 3),
        (2, "constant", 1.0),
        (9, "constant", 1.0),
        (2, "linear", 1.0),
        (6, "linear", 0.5),
        (9, "linear", 0.125),
        (6, "cosine", 0.5),
        (4, "cosine", 0.8535533905932737),
    ],
)
def test_learning_rate(step: int, schedule: str, rate: float) -> None:
    assert learning_rate(step, 10, 1.0, 0.2, schedule) == pytest.approx(rate)


def test_penalty_pulls(make_model: Callable[..., Any]) -> None:
    """Replay of background rows keeps their loss lower than training without it."""
    rows, old = ragged_rows(24), ragged_rows(8, seed=1)
    replay = FullConfig(kind="full", lr=1e-2, replay=ReplayConfig(source="background", ratio=1.0))
    batch = collate(old, 0)

    def loss_of_old(**options: Any) -> float:
        model = make_model("llama")
        run_stage(model, rows, steps=20, **options)
        with torch.no_grad():
            nats = target_loss(model, batch)
        return float(nats) / batch.n_targets

    assert loss_of_old(method=replay, background=old) < 0.5 * loss_of_old()


def test_divergence_is_a_sentence(make_model: Callable[..., Any]) -> None:
    with pytest.raises(NlftError, match=r"full: t: the loss of step \d+ is (nan|inf)") as caught:
        run_stage(make_model("llama"), ragged_rows(24), lr=1e30, steps=20, warmup=0)
    assert "Lower the learning rate" in caught.value.hint


def test_nothing_to_train_is_a_sentence(make_model: Callable[..., Any]) -> None:
    with pytest.raises(NlftError, match="left nothing to train"):
        run_stage(make_model("llama"), ragged_rows(4), trainable=False)


def test_events_tell_the_losses(make_model: Callable[..., Any], tmp_path: Path) -> None:
    cost = run_stage(make_model("llama"), ragged_rows(24), Events(tmp_path / "events.jsonl"), steps=12)
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 11, 12]
    assert lines[-1]["loss"] == pytest.approx(cost.final_loss)
    assert lines[-1]["tokens"] == cost.tokens


def test_gradient_checkpointing_trains_the_same(make_model: Callable[..., Any]) -> None:
    rows = ragged_rows(24)
    plain, saving = make_model("llama"), make_model("llama")
    run_stage(plain, rows)
    run_stage(saving, rows, gradient_checkpointing=True)
    torch.testing.assert_close(weights(saving), weights(plain), atol=1e-6, rtol=0)
