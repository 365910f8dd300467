"""Changes of pretrained maps are linear: merged into the base's weights, they compute what they did beside them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cms_models import EXPERTS, ROWS, cms, train, trained_cms
from families import build
from pathway_models import SHAPES, logits
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from nlft.base import fingerprint

DENSE = [family for family in SHAPES if family not in EXPERTS]


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_merged_weights_compute_the_same(family, dtype):
    adapted = trained_cms("pretrained", family).to(dtype)
    expected = logits(adapted)
    with adapted.disable_adapter():
        assert float((expected - logits(adapted)).abs().max()) > 1e-3
    merged = adapted.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert logits(merged).dtype == dtype
    assert {type(one) for one in merged.modules()} == {type(one) for one in build(family).modules()}
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in build(family).named_parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_unmerging_gives_the_base_back_bit_for_bit(family):
    base = build(family)
    before, silent = fingerprint(base), logits(base)
    adapted = cms(base, "pretrained")
    names = frozenset(name for name, _ in [*build(family).named_parameters(), *build(family).named_buffers()])
    train(adapted)
    expected = logits(adapted)
    adapted.merge_adapter()
    assert fingerprint(adapted, names) != before
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=1e-5)
    twin = copy.deepcopy(adapted)
    adapted.unmerge_adapter()
    assert fingerprint(adapted, names) == before and torch.equal(logits(adapted), expected)
    with twin.disable_adapter():  # PEFT unmerges then
        assert torch.equal(logits(twin), silent)
    assert torch.equal(logits(twin), expected)


def test_two_adapters_one_after_the_other_and_together():
    adapted = trained_cms("pretrained", layers_to_transform=[0, 1, 2])
    adapted.add_adapter("second", copy.deepcopy(adapted.peft_config["default"]))
    adapted.set_adapter("second")
    train(adapted, steps=3)
    adapted.base_model.set_adapter(["default", "second"])
    expected = logits(adapted)
    twin = copy.deepcopy(adapted)
    together = logits(twin.merge_and_unload())
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)
    adapted.merge_adapter(["default"])
    assert float((logits(adapted) - expected).abs().max()) > 1e-3
    with pytest.warns(UserWarning, match="additionally merging second"):
        adapted.merge_adapter(["default", "second"])
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=1e-5)


def test_a_base_in_bfloat16_is_rounded_once():
    """The weight is the nearest to what float32 would give, which a change rounded before it is added would not be."""
    adapted = cms(build("llama", torch.bfloat16), "pretrained")
    train(adapted)
    layer: Any = adapted.get_base_model().model.layers[0].mlp.down_proj
    part: Any = next(iter(layer.cores["default"].tasks))
    change = part.B @ part.A
    exact = layer.base_layer.weight.float() + change
    twice = layer.base_layer.weight + change.bfloat16()
    merged: Any = adapted.merge_and_unload()
    found = merged.model.layers[0].mlp.down_proj.weight
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact.bfloat16())
    assert not torch.equal(found, twice)


def test_what_cannot_be_merged_leaves_everything_as_it_is(tmp_path):
    broken = trained_cms("pretrained")
    layers: Any = broken.get_base_model().model.layers
    with torch.no_grad():
        layers[0].mlp.down_proj.cores["default"].tasks[0].A[0, 0] = torch.nan
    weight = layers[0].mlp.down_proj.base_layer.weight.clone()
    with pytest.raises(ValueError, match="NaNs detected"):
        broken.merge_and_unload(safe_merge=True)
    assert torch.equal(layers[0].mlp.down_proj.base_layer.weight, weight)

    gated = cms(build("llama"), "pretrained", gate_layer=1, periods=[1, 2])
    with pytest.raises(NotImplementedError, match="behind a gate depends on what was read, so it cannot be merged"):
        gated.merge_and_unload()

    build("llama").save_pretrained(tmp_path)
    for bits in (4, 8):
        quantization = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
        base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, device_map={"": "cpu"})
        adapted = cms(base, "pretrained")
        expected = logits(adapted, ROWS)
        for merge in (adapted.merge_and_unload, adapted.merge_adapter):
            with pytest.raises(NotImplementedError, match="The base is quantised: rounding would take away"):
                merge()
        assert torch.equal(logits(adapted, ROWS), expected)
