"""What is refused in place of being done in silence, and memories in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cms_models import FIELDS, cms
from gated_models import begin_gated, gated
from hope_models import KINDS, hope
from pathway_models import TASKS, adapt, begin, build, logits, loss, train, trained
from peft import LoraConfig, PeftModel

from nlft.errors import NlftError
from nlft.pathways.block import PathwayLayer
from nlft.pathways.precision import Float32Memories
from nlft.pathways.refusals import Configs
from nlft.pathways.sparse_memory.config import SparseMemoryPeftConfig

ROWS = TASKS["first task"][0]


def memory(addressing: str, **fields: Any) -> Any:
    adapted = adapt(build("llama"), addressing, **fields)
    begin(adapted, "first task")
    return adapted


def maps(kind: str) -> Any:
    adapted = gated(build("llama"), kind)
    begin_gated(adapted, "first task")
    return adapted


EVERY: dict[str, Any] = {
    "prototype": lambda: memory("prototype"),
    "input-dependent": lambda: memory("prototype", input_dependent=True),
    "product_key": lambda: memory("product_key"),
    "gated_lora": lambda: maps("gated_lora"),
    "gated cms": lambda: maps("cms"),
    "online cms": lambda: cms(build("llama"), "headwise", online_chunk=4),
    **{f"cms {kind}": lambda kind=kind: cms(build("llama"), kind) for kind in FIELDS},
    **{f"hope {kind}": lambda kind=kind: hope(build("llama"), **KINDS[kind]) for kind in KINDS},
}


FAST = ("prototype", "gated_lora", "cms headwise", "hope dot")
BY_KIND = [pytest.param(kind, marks=[] if kind in FAST else pytest.mark.slow) for kind in EVERY]


@pytest.mark.parametrize("kind", BY_KIND)
def test_values_in_half_precision_compute_in_float32(kind, tmp_path):
    adapted = EVERY[kind]()
    kept = {name: t.clone() for name, t in adapted.state_dict().items() if ".nlft_" in name}
    own = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    for parameter in own.values():
        parameter.data = parameter.data.to(torch.bfloat16)  # as TRL does beside a quantised base
    train(adapted, "first task", lr=0.1)
    assert {p.grad.dtype for p in own.values() if p.grad is not None} == {torch.bfloat16}
    found = logits(adapted.eval())
    with adapted.disable_adapter():
        assert float((found - logits(adapted)).abs().max()) > 1e-2
    for name, tensor in adapted.state_dict().items():
        assert name in own or name not in kept or torch.equal(tensor, kept[name])
    adapted.save_pretrained(tmp_path)
    for low in (False, True):  # with low memory the tensors stay in half precision
        again = PeftModel.from_pretrained(build("llama"), str(tmp_path), low_cpu_mem_usage=low)
        assert torch.equal(logits(again), found)


@torch.no_grad()
def test_float32_is_asked_for_once_and_half_precision_never_missed(monkeypatch):
    layer, core, asked = Float32Memories(), torch.nn.Linear(3, 3), []
    layer.core = core
    monkeypatch.setattr("nlft.pathways.precision.is_half", lambda t: asked.append(t) or t.dtype.itemsize < 4)
    x = torch.ones(2, 3)
    whole = core(x)
    assert torch.equal(layer.compute("a", core, x), whole) and len(asked) == 2
    assert torch.equal(layer.compute("a", core, x), whole) and len(asked) == 2
    small = {name: tensor.bfloat16() for name, tensor in layer.state_dict().items()}
    changes = {
        "moved": lambda: layer.bfloat16(),
        "loaded": lambda: layer.load_state_dict(small, assign=True),
        "cast": lambda: setattr(core.weight, "data", core.weight.data.bfloat16()) or layer.train(),
    }
    for name, change in changes.items():
        layer.float()
        layer.compute("a", core, x)
        assert layer.whole == {"a"}, name
        change()
        assert layer.compute("a", core, x).dtype == torch.float32 and core.weight.dtype == torch.bfloat16, name
    with torch.enable_grad():  # TRL casts what is trained tensor by tensor
        layer.float().compute("a", core, x)
        core.weight.data = core.weight.data.bfloat16()
        assert layer.compute("a", core, x).dtype == torch.float32


def test_nothing_is_trained_in_silence(tmp_path):
    adapted = trained("llama", "prototype").train()
    with pytest.raises(NlftError, match=r"the adapter 'default' has no open task.*begin_task"):
        loss(adapted, ROWS)
    assert torch.isfinite(logits(adapted)).all()  # without gradients a model in training mode only computes
    assert not loss(adapted.eval(), ROWS).requires_grad
    embedded = adapted.get_input_embeddings()(ROWS.input_ids).requires_grad_()
    adapted.train()(inputs_embeds=embedded).logits.sum().backward()  # what is trained may lie outside
    assert float(embedded.grad.abs().max()) > 0
    hope(build("llama")).save_pretrained(tmp_path)
    frozen = PeftModel.from_pretrained(build("llama"), str(tmp_path)).train()
    with pytest.raises(NlftError, match="`is_trainable=True`"):
        loss(frozen, ROWS)


def test_no_other_method_takes_the_name_of_an_adapter():
    held = Configs({"a": SparseMemoryPeftConfig()})
    held["a"] = SparseMemoryPeftConfig(slots=3)
    held["b"] = LoraConfig()
    for take in (lambda: held.update({"a": LoraConfig()}), lambda: held.__setitem__("a", LoraConfig())):
        with pytest.raises(NlftError, match=r"'a' of another kind .SparseMemoryPeftConfig.*adapter_name="):
            take()
    assert list(held) == ["a", "b"] and held["a"].slots == 3  # pyright: ignore


def test_a_weighted_sum_is_refused_and_harms_nothing():
    adapted = trained("llama", "prototype")
    expected = logits(adapted)
    with pytest.raises(NotImplementedError, match=r"add_weighted_adapter: .*nlft tasks ADAPTER --add OTHER"):
        adapted.add_weighted_adapter(["default"], [1.0], "sum")
    assert torch.equal(logits(adapted), expected)
    assert not any("sum" in module.cores for module in adapted.modules() if isinstance(module, PathwayLayer))
