"""Scoring again: any folder with weights by what lies in it, and a sentence for every other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from nlft.errors import NlftError
from nlft.rescore import evaluate_run
from nlft.run import run_method


def test_full_finetuning_is_scored_on_a_recipe_of_other_methods(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """The first method of the recipe is another; the folder decides."""
    out = run_method(recipe(), "full", tmp_path / "run", report=False)
    other = recipe(methods={"lora": {"kind": "lora", "lr": 1e-3}})
    assert evaluate_run(str(out), other) == evaluate_run(str(out))


def test_an_adapter_of_another_architecture_is_a_sentence(
    recipe: Callable[..., Any], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    for family, target in (("gpt2", "c_proj"), ("llama", "o_proj")):
        config = LoraConfig(target_modules=[target], task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
        get_peft_model(make_model(family), config).save_pretrained(str(tmp_path / family))
        with pytest.raises(NlftError, match="does not load onto this LlamaForCausalLM") as caught:
            evaluate_run(str(tmp_path / family), recipe())
        assert "base.model" in caught.value.hint


def test_a_damaged_adapter_is_a_sentence(recipe: Callable[..., Any], tmp_path: Path) -> None:
    out = run_method(recipe(), "lora", tmp_path / "run", report=False)
    path = out / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(NlftError, match="does not load onto this LlamaForCausalLM"):
        evaluate_run(str(out))


def test_an_adapter_that_was_removed(recipe: Callable[..., Any], tmp_path: Path) -> None:
    cell = run_method(recipe(), "lora", tmp_path / "cell", report=False, keep_stages=False)
    shutil.rmtree(cell / "adapter")
    with pytest.raises(NlftError, match="has no folder `adapter`") as caught:
        evaluate_run(str(cell))
    assert "nlft train" in caught.value.hint


def test_what_holds_no_weights(recipe: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(NlftError, match=r"There is no folder .*nowhere"):
        evaluate_run(str(tmp_path / "nowhere"))
    (tmp_path / "c" / "cells" / "full-1").mkdir(parents=True)
    with pytest.raises(NlftError, match=r"is a comparison of 1 run\.") as caught:
        evaluate_run(str(tmp_path / "c"))
    assert "cells/full-1" in caught.value.hint
    cell = run_method(recipe(), "full", tmp_path / "cell", report=False, keep_stages=False)
    with pytest.raises(NlftError, match="a comparison does not keep those of full finetuning") as caught:
        evaluate_run(str(cell))
    assert "nlft train" in caught.value.hint
