"""Checks of TRL's `SFTTrainer`."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
from datasets import Dataset
from integrations_quantised import quantised
from pathway_models import SHAPES
from peft import PeftModel
from subject import PATHWAYS, ROWS, Refused, adapted, begin, build, check, end, logits, refuses
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer
from words import text_of, tokenizer_of_words

WITHOUT_TASKS = ("cms", "cms_pretrained", "hope")
"""Pathways that need no calibration, so that a config is enough to train them."""


def sft(model: Any, folder: str, lr: float, config: Any = None, checkpointing: bool = False) -> SFTTrainer:
    """TRL's loop on prompt and completion rows of the task."""
    rows = [{"prompt": text_of(ids[:4]).strip(), "completion": text_of(ids[4:])} for ids in ROWS.input_ids]
    return sft_on(rows, tokenizer_of_words(), model, folder, lr, config, checkpointing)


def sft_on(
    rows: list[dict[str, str]],
    tokenizer: Any,
    model: Any,
    folder: str,
    lr: float,
    config: Any = None,
    checkpointing: bool = False,
) -> SFTTrainer:
    """TRL's loop on rows of one's own."""
    arguments = SFTConfig(
        folder,
        max_steps=2,
        per_device_train_batch_size=3,
        learning_rate=lr,
        lr_scheduler_type="constant",
        gradient_checkpointing=checkpointing,
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    datasets.disable_progress_bars()
    return SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=config,
    )


def state_of(model: Any) -> dict[str, torch.Tensor]:
    """Copies of all tensors by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def learns(run: SFTTrainer, base: Any, pathway: str, trained: list[str]) -> None:
    """A run moves all that is trained and nothing else, and what it saves loads to the same logits.

    Args:
        base: makes the base that the adapter was trained beside.
        trained: names of what is trained.
    """
    before = state_of(run.model)
    run.train()
    model: Any = run.model
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and moved <= set(trained), f"moved {moved - set(trained)}"
    halves = any(p.dtype == torch.bfloat16 for p in model.parameters() if p.requires_grad)
    assert halves or moved == set(trained), f"stood still: {set(trained) - moved}"  # bfloat16 swallows small moves
    with TemporaryDirectory() as folder:
        run.save_model(folder)
        again = PeftModel.from_pretrained(base(), folder)
    end(model.eval(), pathway)
    found = logits(model)
    assert torch.isfinite(found).all() and not torch.equal(found, logits(base()))
    assert torch.equal(logits(again), found)


def trainable(model: Any) -> list[str]:
    """Names of what takes a gradient."""
    return [name for name, p in model.named_parameters() if p.requires_grad]


@check("TRL", "TRL's `SFTTrainer` trains a ready PEFT model after `begin_task`, and only the pathway moves.", SHAPES)
def is_tuned(pathway: str, family: str) -> None:
    model = adapted(pathway, build(family))
    begin(model, pathway)
    names = trainable(model)
    with TemporaryDirectory() as folder:
        run = sft(model, folder, PATHWAYS[pathway].lr, checkpointing=True)
        learns(run, lambda: build(family), pathway, names)


@check(
    "TRL peft_config",
    "`SFTTrainer(peft_config=…)` trains a pathway without tasks; where a task must be begun first it refuses, instead"
    " of training nothing.",
    SHAPES,
)
def is_tuned_from_a_config(pathway: str, family: str) -> None:
    for checkpointing in (False, True):
        with TemporaryDirectory() as folder:
            adapted(pathway, build(family))  # says so where the pathway cannot stand on the family
            config = PATHWAYS[pathway].config()
            run = sft(build(family), folder, PATHWAYS[pathway].lr, config, checkpointing)
            if pathway in WITHOUT_TASKS:
                learns(run, lambda: build(family), pathway, trainable(run.model))
            else:
                sentence = refuses(run.train, "begin_task")
    if pathway not in WITHOUT_TASKS:
        raise Refused(sentence)  # pyright: ignore[reportPossiblyUnboundVariable]


@check(
    "TRL 4-bit",
    "On a base in 4 bit TRL casts what is trained to bfloat16: it learns all the same, keys and thresholds keep their"
    " bits, and the saved adapter gives the same logits.",
    SHAPES,
)
def is_tuned_beside_4_bit(pathway: str, family: str) -> None:
    model = adapted(pathway, quantised(family, 4))
    begin(model, pathway)
    names = trainable(model)
    with TemporaryDirectory() as folder:
        run = sft(model, folder, PATHWAYS[pathway].lr)
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
        learns(run, lambda: quantised(family, 4), pathway, names)
