"""Hope as a PEFT adapter: its life on the disk and beside others, quantised bases, compilation, and errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hope_models import (
    KINDS,
    core_of,
    every_kind,
    hope,
    hope_config,
    keeper_of,
    lively,
    rows_of,
    shaken,
    train_hope,
)
from pathway_models import TASKS, build, logits
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from nlft.base import fingerprint
from nlft.errors import NlftError
from nlft.pathways.hope.model import hope_cores, levels_of
from nlft.pathways.layout import check_layout
from nlft.pathways.state import KEEPERS

ROWS = TASKS["first task"][0]


def hook_count(model: Any) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@every_kind
def test_reload_under_another_name(kind, tmp_path):
    adapted = hope(build("llama"), **KINDS[kind])
    train_hope(adapted)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path), adapter_name="other")
    assert torch.equal(logits(again), logits(adapted))
    assert not torch.equal(logits(again), logits(build("llama")))
    again.save_pretrained(tmp_path / "twice")
    third = PeftModel.from_pretrained(build("llama"), str(tmp_path / "twice" / "other"))
    assert torch.equal(logits(third), logits(adapted))


@pytest.mark.parametrize("adapter", ["0", "nlft_state", "levels"])
@pytest.mark.filterwarnings("ignore:Adapter name")
def test_awkward_adapter_names_and_two_adapters(adapter, tmp_path):
    base = build("llama")
    expected = logits(base)
    adapted = shaken(hope(base))
    one = logits(adapted)
    adapted.add_adapter(adapter, hope_config(periods=[1], layers_to_transform=[2, 3]))
    adapted.set_adapter(adapter)
    shaken(adapted, seed=3)
    other = logits(adapted)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), str(tmp_path), adapter_name=adapter)
    again.load_adapter(str(tmp_path / adapter), adapter_name="x")
    assert torch.equal(logits(again), one)
    again.set_adapter("x")
    assert torch.equal(logits(again), other)
    adapted.set_adapter("default")
    adapted.delete_adapter(adapter)
    assert list(getattr(adapted.get_base_model().get_decoder(), KEEPERS)) == ["default"]
    assert torch.equal(logits(adapted), one)
    decoder = adapted.get_base_model().get_decoder()
    adapted.base_model.set_adapter([])
    adapted.delete_adapter("default")
    assert not hasattr(decoder, KEEPERS)
    assert torch.equal(logits(adapted.base_model.model), expected)


def test_copies_are_independent():
    adapted = lively()
    twin = copy.deepcopy(adapted)
    expected = logits(adapted)
    assert torch.equal(logits(twin), expected)
    assert keeper_of(twin) is not keeper_of(adapted) and core_of(twin).keeper[0] is keeper_of(twin)
    with torch.no_grad():
        core_of(twin).output.weight.zero_()
    assert not torch.equal(logits(twin), expected)
    assert hook_count(twin.unload()) == hook_count(build("llama"))
    assert torch.equal(logits(adapted), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dot", "boundary", "mlp", "self-modifying"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_model_computes_the_same(kind):
    adapted = lively(**KINDS[kind])
    ids, mask = rows_of([12, 9])
    compiled = torch.compile(adapted, backend="aot_eager")
    labels = ids.masked_fill(mask == 0, -100)
    results = []
    for model in (adapted, compiled):
        adapted.zero_grad()
        out = model(input_ids=ids, attention_mask=mask, labels=labels)
        out.loss.backward()
        results.append([out.logits.detach(), *(p.grad for p in adapted.parameters() if p.requires_grad)])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_quantised_base(bits, tmp_path):
    build("llama").save_pretrained(tmp_path)
    options: dict[str, Any] = {"load_in_4bit": True} if bits == 4 else {"load_in_8bit": True}
    config = BitsAndBytesConfig(**options)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, device_map={"": "cpu"})
    base.requires_grad_(False)
    before, expected = fingerprint(base), logits(base)
    names = frozenset(name for name, _ in [*base.named_parameters(), *base.named_buffers()])
    adapted = hope(base)
    assert torch.equal(logits(adapted), expected)
    train_hope(adapted)
    assert not torch.equal(logits(adapted), expected)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected)
    assert fingerprint(adapted, names) == before


def test_default_layers_and_levels():
    adapted = hope(build("llama"), layers_to_transform=None, periods=[1, 4])
    assert set(hope_cores(adapted)) == {"model.layers.3.mlp"}
    levels = levels_of(adapted)
    assert [sorted(name.rpartition(".")[2] for name in level) for level in levels] == [["A0", "B0"], ["A1", "B1"]]
    named = dict(adapted.named_parameters())
    assert all(named[name] is one for level in levels for name, one in level.items())
    assert levels_of(hope(build("llama"))) == []


@every_kind
def test_the_layout_of_a_stored_adapter_is_checked(kind, tmp_path):
    from safetensors.torch import load_file

    adapted = lively(**KINDS[kind])
    adapted.save_pretrained(tmp_path)
    config: Any = PeftConfig.from_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    check_layout(config, tensors)
    key = next(key for key in tensors if key.endswith("taps"))
    for wrong, message in (
        ({**tensors, key: tensors[key][:, :2]}, "has the shape"),
        ({**tensors, key: tensors[key] * torch.nan}, "not finite"),
        ({name: t for name, t in tensors.items() if name != key}, "is missing"),
        ({**tensors, key.replace("taps", "more"): tensors[key]}, "unknown to the config"),
        ({}, "there is no block"),
    ):
        with pytest.raises(NlftError, match=message):
            check_layout(config, wrong)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"memory": "tree"}, "memory: 'tree' is unknown"),
        ({"objective": "l1"}, "objective: 'l1' is unknown"),
        ({"heads": 0}, "heads: 0 is too small"),
        ({"chunk": 0}, "chunk: 0 is too small"),
        ({"bptt_chunks": 0}, "bptt_chunks: 0 is too small"),
        ({"rate_max": 1.5}, "rate_max: 1.5 is not"),
        ({"gate_layer": 1}, "Hope has no gate"),
        ({"periods": [8, 1]}, "are no periods"),
        ({"memory": "mlp"}, "is read at boundaries"),
        ({"memory": "mlp", "self_modifying": True}, "its memories are linear"),
        ({"memory": "mlp", "read": "boundary"}, "dot` has no minimum"),
        (
            {"memory": "mlp", "read": "boundary", "objective": "l2", "initial": "zero"},
            "an MLP that starts at zero stays there",
        ),
        ({"self_modifying": True, "initial": "zero"}, "makes its own keys that starts at zero"),
        ({"layers_to_transform": [7]}, "names layer 7"),
    ],
)
def test_config_errors(fields, message):
    with pytest.raises(NlftError, match=message):
        hope(build("llama"), **fields)
