"""Loading, fingerprints, and MLP blocks found by structure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM, OPTConfig, OPTForCausalLM

from nlft.anatomy import block_input, find_blocks
from nlft.base import choose_device, context_length, fingerprint, load_base
from nlft.config import BaseConfig
from nlft.errors import BaseModelError


def test_blocks_are_the_mlps(make_model: Callable[..., Any], family: str) -> None:
    model = make_model(family)
    blocks = find_blocks(model)
    assert len(blocks) == 4
    assert [name.rpartition(".")[2] for name in blocks] == ["mlp"] * 4
    assert [int(name.split(".")[-2]) for name in blocks] == [0, 1, 2, 3]
    x = torch.randn(2, 5, 32)
    for name in blocks:
        out = model.get_submodule(name)(x)
        assert (out[0] if isinstance(out, tuple) else out).shape == x.shape
    assert context_length(model) == 64


def test_bare_maps_are_a_block_that_reads_what_the_first_reads() -> None:
    config = OPTConfig(
        vocab_size=97,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    model = OPTForCausalLM(config)
    assert find_blocks(model) == ["model.decoder.layers.0.fc2", "model.decoder.layers.1.fc2"]
    assert block_input(model, "model.decoder.layers.1.fc2") == "model.decoder.layers.1.fc1"
    for other in ("model.decoder.layers.1", "model.decoder.layers.1.fc1", "model.decoder.layers.1.self_attn.q_proj"):
        assert block_input(model, other) == other


def test_no_block_is_a_sentence() -> None:
    config = MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(BaseModelError, match=r"Layer 0 \(MambaBlock\) has no MLP block"):
        find_blocks(MambaForCausalLM(config))


def test_fingerprint_sees_one_bit(make_model: Callable[..., Any]) -> None:
    model = make_model("llama")
    before = fingerprint(model)
    assert fingerprint(make_model("llama")) == before
    assert fingerprint(make_model("llama", seed=1)) != before
    weight = model.model.layers[2].mlp.up_proj.weight
    with torch.no_grad():
        weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(10.0))
    assert fingerprint(model) != before


def test_fingerprint_sees_buffers(make_model: Callable[..., Any]) -> None:
    model = make_model("llama")
    before = fingerprint(model)
    next(model.buffers()).add_(1e-3)
    assert fingerprint(model) != before


def test_adapted_model_keeps_the_fingerprint(make_model: Callable[..., Any], family: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    make_model(family).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    base = load_base(BaseConfig(model=str(tmp_path)))
    assert not any(p.requires_grad for p in base.model.parameters())
    targets = ["c_proj"] if family == "gpt2" else ["dense"] if family in ("gpt_neox", "phi") else ["o_proj"]
    model = get_peft_model(base.model, LoraConfig(target_modules=targets, task_type="CAUSAL_LM"))
    assert base.is_unchanged(model)
    base_weight = next(p for name, p in model.named_parameters() if "base_layer.weight" in name)
    with torch.no_grad():
        base_weight.view(-1)[0] += 1
    assert not base.is_unchanged(model)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("builtin:huge", "no built-in model 'builtin:huge'"),
        ("./nowhere", "there is no directory './nowhere'"),
        ("{tmp}", "is no model: it has no config.json"),
        ("{tmp}/broken", "could not be loaded as a causal language model"),
        ("{tmp}/empty", "holds no weights"),
        ("{tmp}/file", "is a file, not a model's directory"),
    ],
)
def test_what_is_no_model(name: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "file").write_text("text")
    with pytest.raises(BaseModelError, match=sentence):
        load_base(BaseConfig(model=name.format(tmp=tmp_path)))


def test_half_a_weights_file_is_a_sentence(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BaseModelError, match="could not be loaded as a causal language model"):
        load_base(BaseConfig(model=str(tmp_path)))


def test_a_missing_tokenizer_is_a_whole_sentence(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    with pytest.raises(BaseModelError, match=r"the tokenizer of .* could not be loaded: ") as caught:
        load_base(BaseConfig(model=str(tmp_path)))
    assert not caught.value.message.endswith(":")


def test_without_network_a_hub_model_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import time

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nlft.hub.is_reachable", lambda endpoint: False)
    start = time.perf_counter()
    with pytest.raises(BaseModelError, match="the Hub cannot be reached from here"):
        load_base(BaseConfig(model="nobody/nothing"))
    assert time.perf_counter() - start < 10  # 47 s of retries otherwise


@pytest.mark.parametrize("device", ["banana", "meta", "cpu:x"])
def test_an_unusable_device_is_a_sentence(device: str) -> None:
    with pytest.raises(BaseModelError, match=f"base.device: torch cannot use '{device}'"):
        choose_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_absent_gpu_is_a_sentence() -> None:
    with pytest.raises(BaseModelError, match="torch sees no GPU"):
        choose_device("cuda")


def test_quantised_base_loads_and_keeps_its_hash(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    base = load_base(BaseConfig(model=str(tmp_path), quantization="4bit"))
    kinds = {type(base.model.get_submodule(name + ".up_proj")).__name__ for name in find_blocks(base.model)}
    assert kinds == {"Linear4bit"}
    assert base.is_unchanged(base.model)
