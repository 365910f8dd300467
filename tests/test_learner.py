"""A method for a loop of one's own does what `nlft train` does around its loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoTokenizer

import nlft
from nlft.base import load_base
from nlft.config import BaseConfig
from nlft.data.domain import load_domains
from nlft.errors import NlftError
from nlft.events import Events
from nlft.hub import model_location
from nlft.run import run_method
from nlft.train import train_stage

MEMORY = {"kind": "sparse_memory", "slots": 100, "kmeans_steps": 3}


def records(rows: Any) -> list[dict[str, str]]:
    """Rows as a file would hold them."""
    return [
        {"cluster": row.cluster}
        | ({"prompt": row.prompt, "completion": row.completion} if row.prompt else {"text": row.completion})
        for row in rows
    ]


def test_its_tasks_are_those_of_a_run_bit_for_bit(recipe: Callable[..., Any], tmp_path: Path) -> None:
    # A learner of its own computes whole passes.
    chosen = recipe(methods={"memory": {**MEMORY, "lr": 0.3}}, probes=[], prefix={"enabled": False})
    run_method(chosen, "memory", tmp_path / "run", report=False)
    domains = load_domains(chosen)
    base = load_base(BaseConfig())
    learner = nlft.Learner(base.model, base.tokenizer, **MEMORY)
    background = records(domains.background)
    loop: dict[str, Any] = {"pad_id": 0, "label": "t", "events": Events(None), "console": Console(quiet=True)}
    for stage, task in enumerate(domains.tasks, start=1):
        with learner.task(task.name, records(task.train), background, n_tasks=2) as model:
            rows = learner.encode(records(task.train))
            train_stage(model, learner.method, rows, chosen.train, steps=6, lr=0.3, stage=stage, **loop)
    learner.model.save_pretrained(tmp_path / "own")
    wanted, found = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "run" / "adapter", tmp_path / "own")
    )
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    again = learner.task("people", background, background)
    with pytest.raises(NlftError, match="'people' has been learned already"), again:
        pass


def test_what_is_wrong_is_said(make_model: Callable[..., Any]) -> None:
    said = r"^Learner: slots: must be 1 or more, not 0\.\nLearner: slot: unknown key; did you mean 'slots'\?"
    with pytest.raises(NlftError, match=said):
        nlft.Learner(make_model("llama"), None, kind="sparse_memory", slots=0, slot=3)
    with pytest.raises(NlftError, match="Learner: kind: 'memory' is not possible; allowed: full, lora"):
        nlft.Learner(make_model("llama"), None, kind="memory")
    base = load_base(BaseConfig())
    learner = nlft.Learner(base.model, base.tokenizer, **MEMORY)
    with (
        pytest.raises(NlftError, match="'one' of a sparse_memory method needs `background`"),
        learner.task("one", [{"text": "a"}]),
    ):
        pass
    with pytest.raises(NlftError, match="'one' has no rows to learn"), learner.task("one", []):
        pass
    with pytest.raises(NlftError, match="layout of the columns is unknown"), learner.task("one", [{"a": "b"}]):
        pass
    for name in ("a/b", "", " a", "a\n"):
        with pytest.raises(NlftError, match="cannot be used"), learner.task(name, [{"text": "a"}]):
            pass
    with pytest.raises(NlftError, match="No task is open"):
        learner.optimizer(0.1)


def test_what_is_no_base_is_said(make_model: Callable[..., Any]) -> None:
    model, tokenizer = make_model("llama"), AutoTokenizer.from_pretrained(model_location("builtin:tiny"))
    wrong = {
        "is the name 'builtin:tiny', and not the model itself": ("builtin:tiny", tokenizer),
        "Base and tokenizer are swapped": (tokenizer, model),
        "The base is a dict": ({}, tokenizer),
        "The tokenizer is a NoneType": (model, None),
    }
    for said, (base, second) in wrong.items():
        with pytest.raises(NlftError, match=said):
            nlft.Learner(base, second, kind="lora")
    with pytest.raises(NlftError, match="the learning rate is your loop's"):
        nlft.Learner(model, tokenizer, kind="lora", lr=0.1)
    with pytest.raises(NlftError, match="Learner: kind: this key is missing"):
        nlft.Learner(model, tokenizer)
