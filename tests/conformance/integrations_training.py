"""Checks of training loops: gradient checkpointing, `torch.compile`, and transformers' `Trainer`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as functional
from pathway_models import SHAPES
from peft import PeftModel
from subject import PATHWAYS, ROWS, adapted, begin, build, check, end, logits, refuses, train, trained
from transformers import Trainer, TrainingArguments

from nlft.pathways.block import PathwayLayer

STEPS = 4
"""Of a whole run of the `Trainer`; the cut one is resumed after half of them."""
ASKS_THE_DATA = ("product_key", "hope")
"""Pathways that decide in Python what a tensor says (ties between slots, ends of chunks): each break in the graph is
run as it stands."""


def ready(pathway: str, family: str) -> Any:
    """A model in the middle of its task, with values that are not zero any more."""
    model = adapted(pathway, build(family))
    begin(model, pathway)
    train(model, pathway, steps=1)
    return model


def trainable(model: Any) -> dict[str, torch.Tensor]:
    """Copies of what is trained, by name."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: Any, run: Any) -> dict[str, torch.Tensor]:
    """Of all that is trained, after one backward pass through `run` with the same dropout at every call."""
    model.zero_grad()
    torch.manual_seed(0)
    # Without a cache, as checkpointing has it: keys from a cache lie in other places of memory and round otherwise.
    found = run(input_ids=ROWS.input_ids, attention_mask=ROWS.attention_mask, use_cache=False).logits
    # Behind the model, for transformers' own loss may log, which no graph can hold.
    functional.cross_entropy(found[:, :-1].flatten(0, 1), ROWS.labels[:, 1:].flatten()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def note(entered: list[int], *ignored: Any) -> None:
    """A hook that counts how often a module is entered."""
    entered.append(1)


@check(
    "checkpointing", "Gradient checkpointing, reentrant and not, computes blocks twice and gives the same gradients."
)
def recomputes(pathway: str, family: str) -> None:
    plain = ready(pathway, family).train()
    expected = gradients(plain, plain)
    assert expected and any(float(gradient.abs().max()) > 0 for gradient in expected.values())
    for reentrant in (True, False):
        model = ready(pathway, family).train()
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        entered: list[int] = []
        layer = next(module for module in model.modules() if isinstance(module, PathwayLayer))
        layer.register_forward_pre_hook(partial(note, entered))
        found = gradients(model, model)
        assert len(entered) == 2, f"entered {len(entered)} times"
        assert found.keys() == expected.keys()
        assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


@check(
    "compile",
    "`torch.compile` gives the logits and gradients of the eager model to 1e-5, in one graph except for product keys"
    " and Hope; switched off it gives the base's logits, and on again its own.",
    ("llama",),  # 15 to 60 seconds each
)
def is_compiled(pathway: str, family: str) -> None:
    model = ready(pathway, family)
    expected, slopes, plain = logits(model), gradients(model, model), logits(build(family))
    torch._dynamo.reset()
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=pathway not in ASKS_THE_DATA)
    torch.testing.assert_close(logits(compiled), expected, rtol=0, atol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(logits(compiled), plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(compiled), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients(model, compiled), slopes, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def trainer(pathway: str, model: Any, folder: str, steps: int = STEPS, **options: Any) -> Trainer:
    """transformers' own loop on eight rows of the task; `model` has an open task if the pathway has tasks."""
    data: Any = [{"input_ids": ids, "labels": ids} for ids in ROWS.input_ids.clamp(min=60)] * 2
    arguments = TrainingArguments(
        folder,
        max_steps=steps,
        per_device_train_batch_size=3,
        learning_rate=PATHWAYS[pathway].lr,
        lr_scheduler_type="constant",
        save_steps=STEPS // 2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        seed=0,
        **options,
    )
    return Trainer(model, arguments, train_dataset=data)


def opened(pathway: str, family: str) -> Any:
    """A calibrated model with an open task, as the `Trainer` wants it: `begin_task` comes before `train`."""
    model = adapted(pathway, build(family))
    begin(model, pathway)
    return model


@check(
    "Trainer",
    "transformers' `Trainer` trains it after `begin_task`, with checkpointing to the same bits, and saves.",
    SHAPES,
)
def is_trained(pathway: str, family: str) -> None:
    plain = logits(build(family))
    with TemporaryDirectory() as folder:
        run = trainer(pathway, opened(pathway, family), f"{folder}/plain")
        run.train()
        model: Any = run.model
        moved = trainable(model)
        run.save_model(f"{folder}/saved")
        model.eval()
        expected = logits(model)
        assert float((expected - plain).abs().max()) > 1e-2
        end(model, pathway)
        assert torch.equal(logits(model), expected)
        assert torch.equal(logits(PeftModel.from_pretrained(build(family), f"{folder}/saved")), expected)
        again = trainer(pathway, opened(pathway, family), f"{folder}/recomputed", gradient_checkpointing=True)
        again.train()
        model = again.model
        recomputed = trainable(model)
    assert moved.keys() == recomputed.keys() and moved
    assert all(torch.equal(tensor, recomputed[name]) for name, tensor in moved.items())


@check(
    "resume",
    "A `Trainer` run that is cut, reloaded from its checkpoint and resumed ends with the same bits.",
    SHAPES,
)
def is_resumed(pathway: str, family: str) -> None:
    with TemporaryDirectory() as folder:
        whole = trainer(pathway, opened(pathway, family), f"{folder}/whole")
        whole.train()
        trainer(pathway, opened(pathway, family), f"{folder}/cut", STEPS // 2).train()
        [checkpoint] = Path(folder, "cut").glob("checkpoint-*")
        reloaded = PeftModel.from_pretrained(build(family), str(checkpoint), is_trainable=True)
        again = trainer(pathway, reloaded, f"{folder}/cut")
        again.train(resume_from_checkpoint=True)
    assert whole.state.global_step == again.state.global_step == STEPS
    models: list[Any] = [whole.model, again.model]
    expected, found = map(trainable, models)
    assert expected.keys() == found.keys() and expected
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@check(
    "nothing to train",
    "Without an open task, or loaded for inference, training is refused instead of doing nothing.",
    SHAPES,
)
def refuses_to_train_nothing(pathway: str, family: str) -> None:
    with TemporaryDirectory() as folder:
        trained(pathway, family).save_pretrained(f"{folder}/adapter")
        for number, checkpointing in enumerate((False, True)):
            model = PeftModel.from_pretrained(build(family), f"{folder}/adapter")
            run = trainer(pathway, model, f"{folder}/{number}", gradient_checkpointing=checkpointing)
            refuses(run.train, "Nothing would be trained")
