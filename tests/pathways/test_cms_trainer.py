"""Levels in transformers' own training loop: several clocks, saved and gone on with in the middle of a period."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cms_models import FIELDS, cms
from pathway_models import build
from transformers import Trainer, TrainerCallback, TrainingArguments

from nlft.optim.multi_timescale import MultiTimescale
from nlft.pathways.cms.model import levels_of

DATA = [
    {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}
    for ids in torch.randint(3, 97, (24, 8), generator=torch.Generator().manual_seed(2))
]
PERIODS = (1, 2, 4)


def tensors_of(model: Any) -> list[dict[str, torch.Tensor]]:
    return [{name: p.detach().clone() for name, p in level.items()} for level in levels_of(model)]


class Watch(TrainerCallback):
    """Keeps the weights behind every step."""

    def __init__(self, model: Any) -> None:
        self.model, self.seen = model, [tensors_of(model)]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(tensors_of(self.model))


def trainer(kind: str, folder: Path, checkpointing: bool = False) -> tuple[Trainer, Watch]:
    model = cms(build("llama"), kind)
    groups = [
        {"params": list(level.values()), "level": number, "period": period}
        for number, (level, period) in enumerate(zip(levels_of(model), PERIODS, strict=True))
    ]
    nested = kind == "nested"
    clock = MultiTimescale(
        torch.optim.AdamW(groups, lr=1e-2), consolidation=0.5 if nested else 0.0, reinitialise=nested
    )
    options: dict[str, Any] = dict(use_cpu=True, report_to=[], disable_tqdm=True, seed=0, data_seed=0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=7,
        per_device_train_batch_size=3,
        save_steps=3,  # in the middle of the periods 2 and 4
        lr_scheduler_type="linear",
        learning_rate=1e-2,
        gradient_checkpointing=checkpointing,
        logging_strategy="no",
        **options,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(clock, lambda step: 1 - step / 10)
    watch = Watch(model)
    data: Any = DATA
    made = Trainer(model=model, args=arguments, train_dataset=data, optimizers=(clock, schedule), callbacks=[watch])
    return made, watch


@pytest.mark.parametrize(
    "kind", [pytest.param(one, marks=pytest.mark.slow if one != "nested" else ()) for one in FIELDS]
)
@pytest.mark.filterwarnings("ignore")
def test_trainer_keeps_the_clocks_and_resumes_bit_equal(kind: str, tmp_path: Path) -> None:
    straight, watch = trainer(kind, tmp_path)
    straight.train()
    assert len(watch.seen) == 8
    for level, period in enumerate(PERIODS):
        for step in range(1, 8):
            for name, tensor in watch.seen[step][level].items():
                moved = not torch.equal(tensor, watch.seen[step - 1][level][name])
                assert moved == (step % period == 0) or not moved, name
                assert moved or step % period or ("A" in name.rpartition(".")[2] and step == period), name
    cut, other = trainer(kind, tmp_path)
    cut.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert len(other.seen) == 5
    for ours, theirs in zip(watch.seen[-1], other.seen[-1], strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    again, third = trainer(kind, tmp_path / "recomputed", checkpointing=True)
    again.train()
    for ours, theirs in zip(watch.seen[-1], third.seen[-1], strict=True):
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
