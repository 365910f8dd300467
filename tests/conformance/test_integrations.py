"""One small representative of every integration whose checks take seconds; the page has the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import page  # noqa: F401  # registers the checks in the page's order
import pytest
import torch
from integrations_training import trainer
from integrations_trl import sft_on, state_of
from pathway_models import begin
from subject import outcome, trained
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlft.errors import NlftError
from nlft.hub import model_location
from nlft.pathways.cms.config import CmsPeftConfig

SMALLEST = (
    ("Trainer", "prototype", "llama", "pass"),
    ("resume", "gated_lora", "llama", "pass"),
    ("TRL", "cms", "gpt_neox", "pass"),
    ("TRL peft_config", "hope", "llama", "pass"),
    ("TRL peft_config", "gated_lora", "llama", "refuse"),
    ("TRL 4-bit", "gated_lora", "llama", "pass"),
    ("lm-eval", "hope", "llama", "pass"),
)
pytestmark = pytest.mark.filterwarnings("ignore")


DEAR = ("resume", "TRL peft_config-hope")


@pytest.mark.parametrize(
    ("name", "pathway", "family", "kind"),
    [
        pytest.param(*one, marks=pytest.mark.slow if {one[0], f"{one[0]}-{one[1]}"} & set(DEAR) else ())
        for one in SMALLEST
    ],
)
def test_the_smallest(name: str, pathway: str, family: str, kind: str) -> None:
    found = outcome(name, pathway, family)
    assert found.kind == kind, found.sentence
    assert ("`begin_task`" in found.sentence) == (kind == "refuse")


def test_the_checks_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each check guards is taken away."""
    monkeypatch.setattr("nlft.pathways.refusals.check_trainable", lambda tuner: None)
    assert outcome("nothing to train", "prototype", "llama").kind == "fail"
    monkeypatch.setattr("nlft.pathways.block.in_place", lambda model, tensors: dict(tensors))
    assert outcome("PeftModel below", "cms", "llama").sentence.endswith("nobody refused: has no place in the model")
    monkeypatch.setattr("nlft.pathways.precision.in_float32", lambda core, x: core(x))
    assert outcome("TRL 4-bit", "hope", "llama").kind == "fail"


def test_a_task_that_is_open_again_can_be_trained(tmp_path: Path) -> None:
    """The `Trainer` says what is missing, and goes on once it is there."""
    model = trained("prototype", "llama")
    run = trainer("prototype", model, str(tmp_path), steps=1)
    with pytest.raises(NlftError, match="the adapter 'default' has no open task"):
        run.train()
    begin(model, "second.task")
    assert trainer("prototype", model, str(tmp_path), steps=1).train().global_step == 1


def test_supervised_finetuning_of_the_tiny_base(tmp_path: Path) -> None:
    """With a real tokenizer, straight from a config."""
    location = str(model_location("builtin:tiny"))
    base = AutoModelForCausalLM.from_pretrained(location)
    frozen = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    rows = [{"prompt": f"What is {n}? ", "completion": f"It is {n + 1}."} for n in range(6)]
    config = CmsPeftConfig(task_type="CAUSAL_LM", periods=[1, 2], r=3)
    tokenizer = AutoTokenizer.from_pretrained(location)
    run = sft_on(rows, tokenizer, base, str(tmp_path), 5e-2, config, checkpointing=True)
    before = state_of(run.model)
    run.train()
    model: Any = run.model
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}
    plain = model.unload().state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in frozen.items())
