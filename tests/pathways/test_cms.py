"""A continuum memory system without a gate, as a PEFT tuner on models of many families."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cms_models import EXPERTS, FIELDS, ROWS, cms, every_kind, every_pair, train, trained_cms
from pathway_models import BACKGROUND, TASKS, build, logits, loss
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from nlft.base import fingerprint
from nlft.errors import NlftError
from nlft.pathways.cms.model import begin_task, cms_cores, end_task, levels_of

SECOND = TASKS["second.task"][0]


def factor(name: str) -> str:
    """`A` or `B`."""
    return name.rpartition(".")[2][0]


@every_pair
def test_identity_gradients_and_frozen_base(family, kind):
    base = build(family)
    before, expected = fingerprint(base), logits(base)
    names = frozenset(name for name, _ in [*base.named_parameters(), *base.named_buffers()])
    adapted = cms(base, kind)
    found = []
    for model in (adapted.train(), build(family).train()):
        torch.manual_seed(4)  # of GPT-2's dropout
        found.append(logits(model))
    assert torch.equal(*found)
    assert torch.equal(logits(adapted.eval()), expected)

    levels = levels_of(adapted)
    trainable = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(levels) == 3 and {name for level in levels for name in level} == trainable
    assert sum(map(len, levels)) == len(trainable)
    loss(adapted, ROWS).backward()
    for level in levels:
        assert level
        for name, p in level.items():
            assert p.grad is not None and (float(p.grad.abs().max()) > 0) == (factor(name) == "B"), name
    assert all(p.grad is None for p in adapted.parameters() if not p.requires_grad)
    train(adapted, steps=1, lr=1e-3)
    adapted.zero_grad()
    loss(adapted, ROWS).backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for level in levels for p in level.values())

    train(adapted)
    assert float((logits(adapted) - expected).abs().max()) > 1e-2
    assert float(loss(adapted, ROWS).detach()) < float(loss(build(family), ROWS))
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected)
    assert fingerprint(adapted, names) == before
    plain = adapted.unload()
    assert torch.equal(logits(plain), expected) and fingerprint(plain) == before
    assert {type(one) for one in plain.modules()} == {type(one) for one in build(family).modules()}


@pytest.mark.slow
@every_kind
def test_compiling_changes_nothing(kind):
    adapted = trained_cms(kind)

    def step(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        adapted.zero_grad()
        found = model(input_ids=ROWS.input_ids, use_cache=False).logits
        found.square().mean().backward()
        return found.detach(), [p.grad for p in adapted.parameters() if p.requires_grad]

    torch._dynamo.reset()
    compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True)
    (plain, ours), (same, theirs) = step(adapted), step(compiled)
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-5)
    for one, two in zip(ours, theirs, strict=True):
        assert float(one.abs().max()) > 0
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@every_kind
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_quantised_base(kind, bits, tmp_path):
    build("llama").save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantization, device_map={"": "cpu"})
    base.requires_grad_(False)
    before, expected = fingerprint(base), logits(base)
    names = frozenset(name for name, _ in [*base.named_parameters(), *base.named_buffers()])
    adapted = cms(base, kind)
    assert torch.equal(logits(adapted), expected)
    train(adapted)
    assert not torch.equal(logits(adapted), expected)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), expected)
    assert fingerprint(adapted, names) == before


@pytest.mark.parametrize("kind", [kind for kind in FIELDS if kind != "pretrained"])
def test_merging_is_refused_with_its_reason(kind):
    adapted = trained_cms(kind)
    expected = logits(adapted)
    for merge in (adapted.merge_and_unload, adapted.merge_adapter):
        with pytest.raises(NotImplementedError, match="no linear map, so it cannot be merged"):
            merge()
    assert torch.equal(logits(adapted), expected)


def test_layers_of_the_pretrained_levels():
    def placed(**fields: Any) -> dict[int, list[int]]:
        adapted = cms(build("llama"), "pretrained", **fields)
        return {
            level: [int(name.partition("layers.")[2].partition(".")[0]) for name in tensors if name.endswith("A")]
            for level, tensors in enumerate(levels_of(adapted))
        }

    assert placed() == {0: [0, 1], 1: [2], 2: [3]}
    assert placed(periods=[1, 8]) == {0: [0, 1], 1: [2, 3]}
    assert placed(periods=[1, 8], layers_to_transform=[3, 1]) == {0: [1], 1: [3]}
    assert placed(periods=[1, 8], target_modules=["gate_proj"], layers_to_transform=[1, 2]) == {0: [1], 1: [2]}
    assert placed(periods=[1, 8], gate_layer=2) == {0: [], 1: []}


@pytest.mark.parametrize(
    ("family", "kind", "fields", "said"),
    [
        ("llama", "headwise", {"variant": "parallel"}, "variant: 'parallel' is unknown"),
        ("llama", "headwise", {"init": "random"}, "init: 'random' is unknown"),
        ("llama", "headwise", {"r": 0}, "r: 0 is no number"),
        ("llama", "headwise", {"periods": []}, r"periods: \[\] are no periods"),
        ("llama", "headwise", {"periods": [1, 0]}, "are no periods"),
        ("llama", "headwise", {"periods": [8, 1]}, "do not begin with the fastest"),
        ("llama", "headwise", {"online_chunk": 0}, "online_chunk: 0 is no number of tokens"),
        ("llama", "sequential", {"online_chunk": 4}, "not built for `variant: sequential`"),
        ("llama", "pretrained", {"variant": "nested"}, "has no variant"),
        ("llama", "pretrained", {"periods": [1, 2, 3, 4, 5]}, "5 levels for 4 layers"),
        ("llama", "pretrained", {"target_modules": ["lm_head"]}, "lm_head lies in none of the layers"),
        ("llama", "headwise", {"layers_to_transform": [7]}, "names layer 7"),
        ("llama", "headwise", {"gate_layer": 2, "layers_to_transform": [1]}, "layer 1 lies in front of the gate"),
        ("llama", "headwise", {"gate_layer": 4}, "gate.layer: 4 is no layer"),
        *[(family, "pretrained", {}, "layers.0.mlp .* is a mixture of experts") for family in EXPERTS],
    ],
)
def test_config_errors(family, kind, fields, said):
    with pytest.raises(NlftError, match=said):
        cms(build(family), kind, **fields)


def test_tasks_need_a_gate():
    adapted = trained_cms("headwise")
    for call in (lambda: begin_task(adapted, "law", seed=0), lambda: end_task(adapted)):
        with pytest.raises(NlftError, match="shared by all tasks"):
            call()


def test_autocast_does_not_touch_the_levels():
    core = cms_cores(trained_cms("sequential"))["model.layers.1.mlp"]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = core(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(core(x), plain) and plain.dtype == torch.float32


@every_kind
def test_an_adapter_is_not_the_base_on_other_text_either(kind):
    """Without a gate nothing is silent; that is what the gate is for."""
    assert not torch.equal(logits(trained_cms(kind), BACKGROUND[0]), logits(build("llama"), BACKGROUND[0]))
