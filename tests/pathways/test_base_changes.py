"""Bases that are still those that an adapter was made for, though something was done to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import build
from gated_models import trained_gated
from pathway_models import settings, trained
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from nlft.errors import NlftError
from nlft.pathways.base_sample import base_parameters, check_base, fits, sample_base


@pytest.fixture
def config() -> Any:
    return settings("prototype", base_sample=sample_base(build("llama")))


def scaled(share: float) -> Any:
    """The base after a little training."""
    model = build("llama")
    for parameter in model.parameters():
        parameter.data.mul_(1 + share)
    return model


@pytest.mark.parametrize("rows", [120, 60])
def test_an_embedding_may_get_and_lose_rows(config, rows):
    resized = build("llama")
    resized.resize_token_embeddings(rows, mean_resizing=False)
    check_base(config, resized)
    resized.get_input_embeddings().weight.data[: min(rows, 97)] *= 1.01
    with pytest.raises(NlftError, match=r"embed_tokens\.weight holds other numbers"):
        check_base(config, resized)
    resized.config.vocab_size = 97
    with pytest.raises(NlftError, match=rf"has the shape \[{rows}, 32\], and \[97, 32\] was noted"):
        check_base(config, resized)


def test_the_rows_of_a_model_that_sees_and_of_a_bias():
    seeing = build("qwen3_vl")
    fresh = settings("prototype", base_sample=sample_base(seeing))
    seeing.resize_token_embeddings(120, mean_resizing=False)
    check_base(fresh, seeing)
    head = SimpleNamespace(config=SimpleNamespace(vocab_size=9))
    assert fits(torch.ones(9), (5,), head) and fits(torch.ones(9, 2), (12, 2), head)
    assert not fits(torch.ones(8), (5,), head) and not fits(torch.ones(9, 3), (12, 2), head)


def test_some_names_may_differ_between_versions(config):
    tensors = config.base_sample["tensors"]
    names = list(tensors)
    half = {f"old.{name}" if index % 2 else name: tensors[name] for index, name in enumerate(names)}
    config.base_sample = {"model_type": "llama", "tensors": half}
    check_base(config, build("llama"))
    with pytest.raises(NlftError, match="holds other numbers"):
        check_base(config, scaled(1e-3))
    config.base_sample = {"model_type": "mistral", "tensors": half}
    with pytest.raises(NlftError, match="it has no old"):
        check_base(config, build("llama"))
    few = {f"old.{name}" if index % 3 else name: tensors[name] for index, name in enumerate(names)}
    config.base_sample = {"model_type": "llama", "tensors": few}
    with pytest.raises(NlftError, match="it has no old"):
        check_base(config, build("llama"))


def test_a_lora_that_was_merged_and_taken_out_again(config):
    lora: Any = get_peft_model(
        build("llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False, lora_alpha=16)
    )
    lora.merge_adapter()
    with pytest.raises(NlftError, match="holds other numbers"):
        check_base(config, lora)
    lora.unmerge_adapter()
    before, after = dict(build("llama").named_parameters()), dict(base_parameters(lora))
    assert any(not torch.equal(before[name], tensor) for name, tensor in after.items())
    check_base(config, lora)
    for share in (1e-3, 1e-5):
        with pytest.raises(NlftError, match="holds other numbers"):
            check_base(config, scaled(share))


@pytest.mark.parametrize("make", [lambda: trained("llama", "prototype"), lambda: trained_gated("gated_lora")])
def test_a_compiled_base(make, tmp_path):
    """It is another module around the base. What is loaded onto it and saved again is the same."""
    make().save_pretrained(tmp_path / "plain")
    compiled: Any = torch.compile(build("llama"), backend="eager")
    again = PeftModel.from_pretrained(compiled, str(tmp_path / "plain"))
    again.save_pretrained(str(tmp_path / "again"))
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("plain", "again"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    fresh: Any = get_peft_model(torch.compile(build("llama"), backend="eager"), settings("prototype"))  # pyright: ignore
    assert sorted(fresh.active_peft_config.target_modules) == ["model.layers.1.mlp", "model.layers.2.mlp"]
