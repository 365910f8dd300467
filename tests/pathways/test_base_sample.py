"""The base that an adapter was made for, by a few of its weights: it passes in any form, and no other does."""

from __future__ import annotations

import json
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from pathway_models import logits, settings, trained
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from nlft.base import load_base
from nlft.config import BaseConfig
from nlft.errors import NlftError
from nlft.pathways.base_sample import (
    Noted,
    agree,
    base_parameters,
    check_base,
    positions,
    read_sample,
    sample_base,
)
from nlft.rescore import load_weights

FORMS = (torch.float32, torch.bfloat16, torch.float16)
OTHER = "and the base at hand, LlamaForCausalLM, has other weights"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter on disk."""
    folder = tmp_path_factory.mktemp("adapter")
    trained("llama", "prototype").save_pretrained(folder)
    return folder


@pytest.fixture
def config(adapter: Path) -> Any:
    return PeftConfig.from_pretrained(str(adapter))


def moved(share: float, only: str = "") -> Any:
    """The base after a little training of it, or of some of its weights."""
    model = build("llama")
    for name, parameter in model.named_parameters():
        if only in name:
            parameter.data.mul_(1 + share)
    return model


def merged() -> Any:
    """The base with a small LoRA in it."""
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return model.merge_and_unload()  # pyright: ignore


def test_what_is_noted(adapter, config):
    stored = json.loads((adapter / "adapter_config.json").read_text())
    assert stored["base_sample"] == config.base_sample == sample_base(build("llama"))
    assert "check_base" not in stored and "is_fresh" not in stored
    assert stored["base_sample"]["model_type"] == "llama"
    there = dict(build("llama").named_parameters())
    noted = read_sample(config.base_sample)
    for name, one in noted.items():
        assert (one.dtype, one.shape) == (torch.float32, tuple(there[name].shape))
        assert torch.equal(one.values, there[name].flatten()[positions(name, one.shape)])
    matrices = {name for name in noted if there[name].ndim == 2}
    assert all(any(f"layers.{layer}." in name for name in matrices) for layer in range(4))
    assert {"model.embed_tokens.weight", "model.norm.weight"} < set(noted)


def test_many_tensors_are_sampled_over_the_whole_depth():
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2) for _ in range(300)])
    noted = read_sample(sample_base(model))
    numbers = [int(name.split(".")[0]) for name, one in noted.items() if len(one.shape) == 2]
    assert len(noted) == 64 and len(numbers) == 48 and numbers == sorted(set(numbers))
    gaps = [later - earlier for earlier, later in pairwise(numbers)]
    assert numbers[0] == 0 and numbers[-1] == 299 and max(gaps) < 14 and len(set(gaps)) > 1


@pytest.mark.parametrize("dtype", FORMS)
def test_the_base_in_another_dtype_passes(adapter, config, dtype):
    PeftModel.from_pretrained(build("llama").to(dtype), str(adapter))


@pytest.mark.parametrize("noted", FORMS)
@pytest.mark.parametrize("here", FORMS)
def test_an_adapter_of_any_dtype_on_any_other(noted, here):
    """Cast one after the other, as a checkpoint that one person loads in one dtype and the next in another."""
    fresh = settings("prototype")
    fresh.base_sample = sample_base(build("llama").to(noted))
    check_base(fresh, build("llama").to(here))
    with pytest.raises(NlftError, match=OTHER):
        check_base(fresh, moved(0.02).to(here))


def test_numbers_of_agreement():
    def noted(dtype: torch.dtype) -> Noted:
        return Noted(dtype, (4,), torch.tensor([1.0, -3.0, 1e-7, torch.nan]).to(dtype).float())

    value = noted(torch.float32).values
    for one in FORMS:
        for two in FORMS:
            assert agree(noted(one), value.to(two), two)
    assert agree(noted(torch.float32), torch.nextafter(value, value + 1), torch.float32)
    assert not agree(noted(torch.float32), value * (1 + 1e-6), torch.float32)
    for half in (torch.bfloat16, torch.float16):
        last = value.to(half)
        assert not agree(noted(half), torch.nextafter(last, last + 1), half)
    ulp = torch.tensor([1 + 2**-7, 1.0, 1.0, 1.0])
    assert not agree(noted(torch.float32), value.to(torch.bfloat16) * ulp.bfloat16(), torch.bfloat16)
    assert agree(noted(torch.float16), value.to(torch.bfloat16) * ulp.bfloat16(), torch.bfloat16)
    assert not agree(noted(torch.float16), value.to(torch.bfloat16) * (ulp**3).bfloat16(), torch.bfloat16)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_the_base_inside_other_wrappings_passes(adapter, config):
    lora = get_peft_model(
        build("llama"), LoraConfig(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    )
    two = PeftModel.from_pretrained(build("llama"), str(adapter), low_cpu_mem_usage=True)
    two.load_adapter(str(adapter), adapter_name="second")
    native = build("llama")
    native.load_adapter(str(adapter))
    for model in (lora, lora.get_base_model(), two, two.get_base_model(), native, deepcopy(two)):
        assert [name for name, _ in base_parameters(model)] == [name for name, _ in build("llama").named_parameters()]
        assert sample_base(model) == config.base_sample
        check_base(config, model)
    inject_adapter_in_model(config, build("llama"))
    check_base(config, build("llama").to("meta"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: moved(1e-3), "holds other numbers"),
        (lambda: moved(1e-3, "layers.3.mlp"), r"layers.3.mlp\.\w+.weight holds other numbers"),
        (merged, "holds other numbers"),
        (lambda: moved(0.02).bfloat16(), "holds other numbers"),
        (lambda: build("qwen2"), r"\(a llama model; this is a qwen2\)"),
        (lambda: build("gpt2"), r"it has no [\w.]+ \(a llama model; this is a gpt2\)"),
    ],
)
def test_another_base_is_refused(adapter, change, said):
    base = change()
    before = [name for name, _ in base.named_parameters()]
    with pytest.raises(NlftError, match=said) as caught:
        PeftModel.from_pretrained(base, str(adapter))
    assert "The adapter was made for" in caught.value.message and "check_base = False" in caught.value.hint
    with pytest.raises(NlftError, match="has other weights"):
        change().load_adapter(str(adapter))
    assert [name for name, _ in base.named_parameters()] == before  # nothing was wrapped


def test_another_base_by_choice(adapter):
    config: Any = PeftConfig.from_pretrained(str(adapter))
    config.check_base = False
    forced = PeftModel.from_pretrained(moved(1e-3), str(adapter), config=config)
    assert not torch.equal(logits(forced), logits(PeftModel.from_pretrained(build("llama"), str(adapter))))
    assert "check_base" not in forced.active_peft_config.to_dict()  # pyright: ignore


def test_a_second_adapter_and_a_sentence_with_names(adapter, tmp_path):
    stored = json.loads((adapter / "adapter_config.json").read_text())
    stored |= {"base_model_name_or_path": "org/base", "revision": "abc"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stored))
    (tmp_path / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    other = get_peft_model(moved(1e-3), settings("prototype"))
    with pytest.raises(NlftError, match=r"made for org/base \(revision abc\), and"):
        other.load_adapter(str(tmp_path), adapter_name="second")
    assert list(other.peft_config) == ["default"]


def test_a_config_that_is_used_twice_notes_each_base():
    fresh = settings("prototype")
    get_peft_model(build("llama"), fresh)
    get_peft_model(moved(1e-3), fresh)
    assert fresh.base_sample == sample_base(moved(1e-3))


def test_an_adapter_without_a_note_is_let_through_and_gets_none(config):
    config.base_sample = None
    inject_adapter_in_model(config, build("qwen2"))
    assert config.base_sample is None


STORED = {
    "4bit": {"load_in_4bit": True},
    "4bit in bfloat16": {"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"},
    "4bit in float32": {"load_in_4bit": True, "bnb_4bit_quant_storage": "float32"},
    "8bit": {"load_in_8bit": True},
}


@pytest.mark.parametrize("bits", STORED)
def test_a_quantised_base_is_known_by_what_is_not_quantised(config, tmp_path, bits):
    def quantised(model: Any, name: str) -> Any:
        model.save_pretrained(tmp_path / name)
        how = BitsAndBytesConfig(**STORED[bits])  # pyright: ignore
        return AutoModelForCausalLM.from_pretrained(tmp_path / name, quantization_config=how, device_map="cpu")

    same = quantised(build("llama"), "same")
    assert same.model.layers[0].mlp.up_proj.weight.is_floating_point() == (" in " in bits)
    check_base(config, same)
    with pytest.raises(NlftError, match=r"model.embed_tokens.weight holds other numbers"):
        check_base(config, quantised(moved(0.02, "embed"), "other"))


@pytest.mark.parametrize(
    "sample",
    [
        {"tensors": 3},
        {"tensors": {"a": 3}},
        {"tensors": {"a": "float32 4 00000000"}},
        {"tensors": {"a": "int8 4 " + "0" * 32}},
        {"tensors": {"a": "float32 0 " + "0" * 32}},
        {"tensors": {"a\x1b[2J": "float32 4 " + "0" * 32}},
        {"tensors": {str(one): "float32 4 " + "0" * 32 for one in range(65)}},
        {"tensors": {"a": "float32 999999999999x999999999999 " + "0" * 32}},
    ],
)
def test_a_note_that_nlft_never_writes(sample):
    with pytest.raises(NlftError, match="base_sample: "):
        settings("prototype", base_sample=sample)


def test_scoring_on_the_same_base_in_another_form(tmp_path):
    """A sample vouches for a base with another sha256; without one the sha256 decides."""
    base = load_base(BaseConfig(dtype="float32"))
    get_peft_model(base.model, settings("prototype", base_fingerprint=base.fingerprint)).save_pretrained(tmp_path)
    load_weights(tmp_path, load_base(BaseConfig(dtype="float32")))
    load_weights(tmp_path, load_base(BaseConfig(dtype="bfloat16")))
    load_weights(tmp_path, load_base(BaseConfig(dtype="float32", quantization="4bit")))
    other = load_base(BaseConfig(dtype="float32"))
    other.fingerprint = "0" * 64  # as buffers of another version of transformers would make it
    load_weights(tmp_path, other)
    moved = load_base(BaseConfig(dtype="bfloat16"))
    moved.model.model.embed_tokens.weight.data.mul_(1.1)
    with pytest.raises(NlftError, match="holds other numbers"):
        load_weights(tmp_path, moved)
    facts = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts | {"base_sample": {}}))
    other = load_base(BaseConfig(dtype="float32"))
    other.fingerprint = "0" * 64
    with pytest.raises(NlftError, match="was made for a base with other weights than 'builtin:tiny'"):
        load_weights(tmp_path, other)
