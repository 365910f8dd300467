"""Hope in Hugging Face's Trainer, straight after `get_peft_model`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hope_models import hope
from pathway_models import build, logits
from transformers import Trainer, TrainingArguments


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_trains_and_resumes(checkpointing, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows: Any = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 97, (16, 12), generator=generator)]

    def trainer(folder: str, steps: int) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path / folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            gradient_checkpointing=checkpointing,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            seed=0,
        )
        return Trainer(hope(build("llama"), chunk=4), arguments, train_dataset=rows)

    whole = trainer("whole", 4)
    whole.train()
    trainer("half", 2).train()
    again = trainer("half", 4)
    again.train(resume_from_checkpoint=True)
    models: list[Any] = [one.model.eval() for one in (whole, again)]  # pyright: ignore
    assert torch.equal(logits(models[0]), logits(models[1]))
    assert not torch.equal(logits(models[0]), logits(build("llama")))
